"""What happened in each round, one JSON line a round, beside the checkpoint."""

import os
from pathlib import Path

from pydantic import Field, ValidationError

from echofed.protocol.document import Document
from echofed.protocol.errors import CheckpointError
from echofed.protocol.messages import NoisyFigures, SpentPrivacy

FILE_NAME = "history.jsonl"


class SiteRound(Document):
    """What one site reported in one round; exact figures in studies without privacy only."""

    trained: bool = False
    training_loss: float | None = None
    spent: SpentPrivacy | None = None
    training_seconds: float | None = None
    validation_patients: int | None = None
    validation_loss: float | None = None
    validation_metric: float | None = None


class Round(Document):
    """What one published round brought."""

    round_number: int = Field(ge=1)
    attempts: int = Field(ge=1)
    seconds: float = Field(ge=0)
    bytes_down: int = Field(ge=0)
    bytes_up: int = Field(ge=0)
    sites: dict[str, SiteRound]
    refused: dict[str, str]
    validation_loss: float | None
    validation_metric: float | None
    validation_noise: float | None = Field(default=None, description="standard error of the metric from privacy noise.")
    figures: NoisyFigures | None = Field(default=None, description="a private study's noisy sums over all sites.")


def append_round(folder: Path, record: Round) -> None:
    """Add a line to the history and put it on disk.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    try:
        with (folder / FILE_NAME).open("a", encoding="utf-8") as stream:
            # The line starts, too, with a newline: what a crash left half written then spoils no other line.
            stream.write("\n" + record.model_dump_json() + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise CheckpointError(f"The history in {folder} cannot be written: {error.strerror}.") from error


def read_history(folder: Path, last_round: int) -> list[Round]:
    """Return the rounds up to `last_round`, in order.

    A line is written before the round's checkpoint, so after a crash the file may end in a round that was never
    published, whole or cut short, and the same round may stand twice; the last whole line of each round counts.

    Raises:
        CheckpointError: a published round is missing.
    """
    path = folder / FILE_NAME
    rounds: dict[int, Round] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = Round.model_validate_json(line)
        except ValidationError:
            continue  # a line cut short by a crash; its round was not published or stands again below
        rounds[record.round_number] = record
    missing = [number for number in range(1, last_round + 1) if number not in rounds]
    if missing:
        raise CheckpointError(f"{path} lacks round {missing[0]}.", "Start the run anew without --resume.")
    return [rounds[number] for number in range(1, last_round + 1)]
