"""A run's checkpoint: one file, replaced atomically, checked when read.

Layout: `echofed checkpoint 1\n`, the SHA-256 of the rest in hexadecimal and `\n`, then one safetensors buffer with the
arrays `parameters/NAME`, `optimizer/SLOT/NAME` and `best/NAME`, and the JSON document below in its header.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from echofed.protocol.arrays import Parameters, decode_parameters, encode_parameters, read_metadata
from echofed.protocol.document import Document
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import CheckpointError, EchoFedError
from echofed.protocol.models import Sha256
from echofed.strategies.server_optimizers import State

MAGIC = b"echofed checkpoint 1\n"
FILE_NAME = "checkpoint.efc"


class _Facts(Document):
    study_hash: Sha256
    round_number: int = Field(ge=0)
    best_round: int = Field(ge=0)
    best_metric: float | None


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on after a round.

    Args:
        study_hash: of the study it belongs to.
        round_number: the last round published; 0 before the first.
        parameters: the shared global parameters.
        optimizer_state: slots of the server optimiser.
        best_round: the round with the best validation metric; 0 if none was measured.
        best_metric: that metric, or None.
        best_parameters: the parameters after that round.
    """

    study_hash: str
    round_number: int
    parameters: Parameters
    optimizer_state: State
    best_round: int
    best_metric: float | None
    best_parameters: Parameters


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint; the old one stays valid until the new one is complete on disk.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    arrays: Parameters = {f"parameters/{name}": array for name, array in checkpoint.parameters.items()}
    arrays |= {f"best/{name}": array for name, array in checkpoint.best_parameters.items()}
    for slot, slot_arrays in checkpoint.optimizer_state.items():
        arrays |= {f"optimizer/{slot}/{name}": array for name, array in slot_arrays.items()}
    facts = _Facts(
        study_hash=checkpoint.study_hash,
        round_number=checkpoint.round_number,
        best_round=checkpoint.best_round,
        best_metric=checkpoint.best_metric,
    )
    body = encode_parameters(arrays, {"facts": facts.model_dump_json()})
    write_atomically(folder / FILE_NAME, MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def read_checkpoint(folder: Path, study_hash: str) -> Checkpoint | None:
    """Return the folder's checkpoint, or None if it has none.

    Raises:
        CheckpointError: the file is damaged, of another version or of another study.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.", "Check the file's permissions.") from error
    digest, body = raw[len(MAGIC) : len(MAGIC) + 64], raw[len(MAGIC) + 65 :]
    if not raw.startswith(MAGIC) or hashlib.sha256(body).hexdigest().encode() != digest:
        raise CheckpointError(f"{path} is damaged or of another version.", "Start the run anew without --resume.")
    try:
        facts = _Facts.model_validate_json(read_metadata(body)["facts"])
        arrays = decode_parameters(body, len(body))
    except (EchoFedError, KeyError, ValidationError) as error:
        raise CheckpointError(f"{path} is of another version.", "Start the run anew without --resume.") from error
    if facts.study_hash != study_hash:
        raise CheckpointError(f"{path} belongs to another study.", "Use another --out folder.")
    optimizer_state: State = {}
    for name, array in arrays.items():
        if name.startswith("optimizer/"):
            _, slot, parameter = name.split("/", 2)
            optimizer_state.setdefault(slot, {})[parameter] = array
    return Checkpoint(
        study_hash=facts.study_hash,
        round_number=facts.round_number,
        parameters=_under(arrays, "parameters/"),
        optimizer_state=optimizer_state,
        best_round=facts.best_round,
        best_metric=facts.best_metric,
        best_parameters=_under(arrays, "best/"),
    )


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; the bytes are on disk on return.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}.") from error


def _under(arrays: Parameters, prefix: str) -> Parameters:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
