"""What happened in each round, in an SQLite file beside the checkpoint; others may read it while a study runs."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from echofed.protocol.document import Document
from echofed.protocol.errors import CheckpointError
from echofed.protocol.messages import NoisyFigures, SpentPrivacy

FILE_NAME = "history.sqlite"

_SCHEMA_VERSION = 1
_BUSY_TIMEOUT_SECONDS = 60.0
_TABLE = "CREATE TABLE IF NOT EXISTS rounds (number INTEGER PRIMARY KEY, content TEXT NOT NULL)"


class SiteRound(Document):
    """What one site reported in one round; exact figures in studies without privacy only."""

    trained: bool = False
    patients: int | None = Field(
        default=None, description="for training, as it says; none if all sites weigh the same."
    )
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
    """Write a round into the history, in place of an earlier one of the same number; it is on disk on return.

    Raises:
        CheckpointError: the disk is full, the folder cannot be written, or the file is damaged or of a newer version.
    """
    path = folder / FILE_NAME
    with _explained(path), _opened(path, "rwc") as database:
        database.execute("BEGIN IMMEDIATE")
        if _version(database, path) == 0:
            database.execute(_TABLE)
            database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        row = (record.round_number, record.model_dump_json())
        database.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?)", row)
        database.execute("COMMIT")


def read_history(folder: Path, last_round: int) -> list[Round]:
    """Return the rounds up to `last_round`, in order.

    A round is written before its checkpoint, so after a crash there may be one more that was never published; it is written
    again when it is.

    Raises:
        CheckpointError: a published round is missing, or the file is damaged or of a newer version.
    """
    path = folder / FILE_NAME
    rounds: dict[int, Round] = {}
    if path.exists():
        with _explained(path), _opened(path, "rw") as database:  # a reader, too, may have to undo what a crash left
            if _version(database, path):
                query = "SELECT number, content FROM rounds WHERE number BETWEEN 1 AND ? ORDER BY number"
                rows = database.execute(query, (last_round,))
                rounds = {number: Round.model_validate_json(content) for number, content in rows}
    missing = [number for number in range(1, last_round + 1) if number not in rounds]
    if missing:
        raise CheckpointError(f"{path} lacks round {missing[0]}.", "Start the run anew without --resume.")
    return list(rounds.values())


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    with contextlib.closing(
        sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None)
    ) as database:
        # EXTRA also syncs the folder once the journal is deleted: after a power cut no commit can be undone.
        database.execute("PRAGMA synchronous = EXTRA")
        yield database


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise CheckpointError(f"The history {path} cannot be used: {error}.") from error
    except ValidationError as error:
        raise CheckpointError(f"The history {path} is damaged.", "Start the run anew without --resume.") from error


def _version(database: sqlite3.Connection, path: Path) -> int:
    """Return the version of the file's tables, 0 if it has none yet."""
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if version > _SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} is of version {version}; this EchoFed knows {_SCHEMA_VERSION}.", "Upgrade EchoFed."
        )
    return version
