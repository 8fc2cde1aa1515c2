"""What a source hands over: instances that were fetched, those that were missed, and how far it is."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.outcomes import Why

HELD_FOLDER = "held"
"""What the receiver was sent and the ingest could not take, for reasons that may pass."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Reason(StrEnum):
    """Why something could not be had, as reports spell it; reports hold counts, never who."""

    UNREADABLE = "cannot be read"
    NOT_DICOM = "not a DICOM file"
    OUTSIDE = "a link or path that leads outside"
    ABSENT = "listed but not there"
    TOO_LARGE = "larger than the limit"
    ARCHIVE_DAMAGED = "in a damaged archive"
    ARCHIVE_ENCRYPTED = "in an encrypted archive"
    ARCHIVE_LIMITS = "in an archive beyond the limits"
    ARCHIVE_NESTED = "an archive inside an archive"

    NOT_FOUND = "not known to the PACS"
    REFUSED = "refused by the PACS"
    FAILED = "the PACS failed"
    BROKEN_OFF = "the transfer broke off"
    UNREACHABLE = "the PACS did not answer"
    NO_TLS = "the PACS broke off before TLS was agreed"
    BAD_ANSWER = "the PACS's answer makes no sense"
    FEWER = "promised by the PACS but not sent"


NO_ANSWER = (Reason.UNREACHABLE, Reason.NO_TLS)


@dataclass(frozen=True)
class Missed:
    """What could not be had; the next ingest tries again.

    Args:
        key: of the instance, or of the series, study, file or archive; identifies a patient, so it is never reported.
        reason: why.
        count: how many instances, as far as is known.
    """

    key: str
    reason: Reason
    count: int = 1


@dataclass(frozen=True)
class Fetched:
    """An instance in the spool, byte for byte as the source sent it; leaving the context removes the file.

    If it is the only copy, an error that leaves the context keeps it for the next ingest.

    Args:
        path: in the spool; the one who gets it may move it away.
        key: stable over runs; identifies a patient.
        size_bytes: of the file.
        expected_patient: patient id the source announced, None if it announced none.
        why: what speaks against it already (another patient, outside the filters); None: nothing so far.
        is_only_copy: the source does not have it any more.
        study: in which the source found it (StudyInstanceUID); empty: only the file can say.
        source_path: where it lay, folders separated by slashes; empty: not in folders.
    """

    path: Path
    key: str
    size_bytes: int
    expected_patient: str | None = None
    why: Why | None = None
    is_only_copy: bool = False
    study: str = ""
    source_path: str = ""

    def hold(self) -> None:
        """Keep it in `HELD_FOLDER` beside where it lies, instead of having it removed."""
        folder = self.path.parent / HELD_FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        self.path.replace(folder / self.path.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self.is_only_copy:
            self.path.unlink(missing_ok=True)


Outcome = Fetched | Missed


@dataclass(frozen=True)
class Progress:
    """How far a source is.

    Args:
        units: studies of a PACS or files of a folder that there are to look at; None until they are counted.
        units_done: of these, all of whose instances are fetched, skipped or missed.
        found: instances.
        fetched: instances handed over.
        skipped: instances known from earlier.
        missed: instances that could not be had.
        fetched_bytes: of the instances handed over.
    """

    units: int | None = None
    units_done: int = 0
    found: int = 0
    fetched: int = 0
    skipped: int = 0
    missed: int = 0
    fetched_bytes: int = 0


@dataclass
class SpoolFile:
    """A file that is being written."""

    stream: BinaryIO
    path: Path
    size_bytes: int = 0

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Append; raises SourceError if the disk is full."""
        try:
            self.stream.write(piece)
        except OSError as error:
            raise _spool_error(error) from error
        self.size_bytes += len(piece)


@contextmanager
def spooling(spool: Path) -> Iterator[SpoolFile]:
    """Give a new file of a random name in the spool; it is whole at the end, and gone if the block raises.

    It is not synced: what a crash loses is fetched again.

    Raises:
        SourceError: the disk is full or the spool cannot be written.
    """
    path = spool / f"{secrets.token_hex(12)}.dcm"
    part = path.with_suffix(".part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _spool_error(error) from error
    file = SpoolFile(os.fdopen(descriptor, "wb", buffering=0), path)
    try:
        with file.stream:
            yield file
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def clear_spool(spool: Path) -> None:
    """Make the spool, or remove what a killed run has left in it.

    Raises:
        SourceError: it cannot be written.
    """
    try:
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in spool.iterdir():
            if left.suffix in (".part", ".dcm"):
                left.unlink()
    except OSError as error:
        raise _spool_error(error) from error


def _spool_error(error: OSError) -> SourceError:
    if error.errno in _FULL:
        return SourceError(
            "The disk of the spool is full.", "Free some space, then ingest again: it goes on where it stopped."
        )
    return SourceError(f"The spool cannot be written: {error.strerror}.", "Check the permissions of the state folder.")
