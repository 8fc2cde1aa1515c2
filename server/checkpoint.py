"""A run's checkpoint: one file, replaced atomically, checked when read, mapped into memory rather than loaded.

Layout: `echofed checkpoint 2` and four newlines, one safetensors buffer with the arrays `parameters/NAME`,
`optimizer/SLOT/NAME` and `best/NAME` (absent if the last round is the best) and the facts below as JSON in its header, then
the buffer's SHA-256, 32 bytes. There is no random state to keep: the coordinator draws nothing at random.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from echofed.protocol.arrays import Parameters, decode_parameters, read_metadata, write_parameters
from echofed.protocol.document import Document
from echofed.protocol.durable import replace_file, replacing
from echofed.protocol.errors import ArraysError, CheckpointError
from echofed.protocol.mapped_files import map_file
from echofed.protocol.models import Sha256
from echofed.strategies.server_optimizers import State

MAGIC = b"echofed checkpoint 2\n\n\n\n"
"""A multiple of eight bytes, so that the numbers lie in the file as in memory."""
FILE_NAME = "checkpoint.efc"

_DIGEST_BYTES = hashlib.sha256().digest_size
_READ_BYTES = 1 << 20


class Facts(Document):
    """What a checkpoint says beside its arrays."""

    study_hash: Sha256
    round_number: int = Field(ge=0)
    replied: tuple[str, ...]
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
        replied: the sites whose updates are in the last round.
    """

    study_hash: str
    round_number: int
    parameters: Parameters
    optimizer_state: State
    best_round: int
    best_metric: float | None
    best_parameters: Parameters
    replied: tuple[str, ...] = ()


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Checkpoint:
    """Replace the folder's checkpoint; the old one stays valid until the new one is complete on disk.

    Returns:
        The same checkpoint, its arrays read-only views of the file: they come into memory where they are looked at.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    path = folder / FILE_NAME
    arrays: Parameters = {f"parameters/{name}": array for name, array in checkpoint.parameters.items()}
    if checkpoint.best_round != checkpoint.round_number:
        arrays |= {f"best/{name}": array for name, array in checkpoint.best_parameters.items()}
    for slot, slot_arrays in checkpoint.optimizer_state.items():
        arrays |= {f"optimizer/{slot}/{name}": array for name, array in slot_arrays.items()}
    facts = Facts(
        study_hash=checkpoint.study_hash,
        round_number=checkpoint.round_number,
        replied=checkpoint.replied,
        best_round=checkpoint.best_round,
        best_metric=checkpoint.best_metric,
    )
    digest = hashlib.sha256()
    try:
        with replacing(path) as stream:

            def write(piece: memoryview) -> None:
                digest.update(piece)
                stream.write(piece)

            stream.write(MAGIC)
            write_parameters(write, arrays, {"facts": facts.model_dump_json()})
            stream.write(digest.digest())
        return _from_body(_body(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}.") from error


def read_checkpoint(folder: Path, study_hash: str) -> Checkpoint | None:
    """Return the folder's checkpoint, or None if it has none; its arrays are read-only views of the file.

    Raises:
        CheckpointError: the file is damaged, of another version or of another study.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        if not _is_whole(path):
            raise CheckpointError(f"{path} is damaged or of another version.", "Start the run anew without --resume.")
        checkpoint = _from_body(_body(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.", "Check the file's permissions.") from error
    except (ArraysError, KeyError, ValidationError) as error:
        raise CheckpointError(f"{path} is of another version.", "Start the run anew without --resume.") from error
    if checkpoint.study_hash != study_hash:
        raise CheckpointError(f"{path} belongs to another study.", "Use another --out folder.")
    return checkpoint


def read_facts(folder: Path) -> Facts | None:
    """Return what the folder's checkpoint says beside its arrays, which are neither read nor checked; None if it has none.

    Raises:
        CheckpointError: the file cannot be read, is damaged or of another version.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        return Facts.model_validate_json(read_metadata(_body(path))["facts"])
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.", "Check the file's permissions.") from error
    except (ArraysError, KeyError, ValidationError) as error:
        raise CheckpointError(f"{path} is damaged or of another version.", "Start the study anew.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; the bytes are on disk on return.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}.") from error


def _is_whole(path: Path) -> bool:
    """Return whether the file is of this version and what it should be; read, not mapped, so that a bad disk is an error."""
    left, digest = path.stat().st_size - len(MAGIC) - _DIGEST_BYTES, hashlib.sha256()
    with path.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            return False
        while left > 0 and (piece := stream.read(min(left, _READ_BYTES))):
            digest.update(piece)
            left -= len(piece)
        return left == 0 and stream.read() == digest.digest()


def _body(path: Path) -> memoryview:
    return map_file(path)[len(MAGIC) : -_DIGEST_BYTES]


def _from_body(body: memoryview) -> Checkpoint:
    facts = Facts.model_validate_json(read_metadata(body)["facts"])
    arrays = decode_parameters(body, len(body))
    optimizer_state: State = {}
    for name, array in arrays.items():
        if name.startswith("optimizer/"):
            _, slot, parameter = name.split("/", 2)
            optimizer_state.setdefault(slot, {})[parameter] = array
    parameters = _under(arrays, "parameters/")
    return Checkpoint(
        study_hash=facts.study_hash,
        round_number=facts.round_number,
        parameters=parameters,
        optimizer_state=optimizer_state,
        best_round=facts.best_round,
        best_metric=facts.best_metric,
        best_parameters=parameters if facts.best_round == facts.round_number else _under(arrays, "best/"),
        replied=facts.replied,
    )


def _under(arrays: Parameters, prefix: str) -> Parameters:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
