"""Folders that hold a party's keys and state: who wrote them, for which version, one writer at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from echofed.protocol.document import Document, canonical_json
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import StateFolderError

MARKER = "state.json"
STATE_VERSION = 1
MAX_STATE_FILE_BYTES = 16 * 2**20
"""Of any file of the state that is read whole."""

Kind = Literal["consortium", "site"]
_COMMANDS: dict[Kind, str] = {"consortium": "echofed consortium init", "site": "echofed site init"}


class _Marker(Document):
    kind: Kind
    version: int = Field(ge=1)


def mark_state_folder(folder: Path, kind: Kind) -> None:
    """Make the folder, readable by its owner alone, and note whose it is; a folder marked so already is left as it is.

    Raises:
        StateFolderError: it is another kind of folder, or of a newer version.
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MARKER).exists():
        check_state_folder(folder, kind)
        return
    folder.chmod(0o700)
    replace_file(folder / MARKER, canonical_json(_Marker(kind=kind, version=STATE_VERSION).model_dump()) + b"\n")


def check_state_folder(folder: Path, kind: Kind) -> None:
    """Check that a folder is of this kind and version.

    Raises:
        StateFolderError: there is no such folder, it was not begun, is of another kind or of a newer version.
    """
    path = folder / MARKER
    try:
        marker = _Marker.model_validate_json(read_limited(path))
    except FileNotFoundError as error:
        what = f"{folder} holds no {kind}."
        raise StateFolderError(what, f"Run `{_COMMANDS[kind]}`, or name the right folder with --state.") from error
    except ValidationError as error:
        raise StateFolderError(f"{path} is damaged.") from error
    if marker.version > STATE_VERSION:
        what = f"{folder} was written by a newer EchoFed: version {marker.version}, this one knows {STATE_VERSION}."
        raise StateFolderError(what, "Upgrade EchoFed.")
    if marker.kind != kind:
        raise StateFolderError(f"{folder} is the folder of a {marker.kind}, not of a {kind}.", "Use another folder.")


def read_limited(path: Path, limit: int = MAX_STATE_FILE_BYTES) -> bytes:
    """Return a file's bytes.

    Raises:
        StateFolderError: it has more than `limit` bytes; no more than that are read.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise StateFolderError(f"{path} has more than {limit} bytes.", "Check that it is the right file.")
    return content


@contextlib.contextmanager
def locked(folder: Path, role: str | None = None) -> Iterator[None]:
    """Hold a folder's lock; a killed process lets go of it.

    Args:
        folder: the folder.
        role: None: others wait, for a change that is soon done. Else for as long as a process plays this role, which
            only one may: a second one is told.

    Raises:
        StateFolderError: another process plays the role.
        OSError: the folder cannot be written.
    """
    path = folder / (f".{role}.lock" if role else ".lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if role else 0))
        yield
    except BlockingIOError as error:
        what = f"Another process already runs the {role} of {folder}."
        raise StateFolderError(what, "Stop it first, or use another folder.") from error
    finally:
        os.close(descriptor)
