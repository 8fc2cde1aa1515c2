"""How far an audit log has got, noted in a file beside it: a log that lost its last entries gives itself away."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from echofed.protocol.audit_entries import LogHead
from echofed.protocol.document import canonical_json
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import AuditLogError

_HEAD_BYTES = 512
"""One sector of a disk: a power cut leaves the old head or the new one."""
_REMEDIES = {
    "full": "Free some disk space.",
    "disk I/O": "Free some disk space, or check the disk.",
    "readonly": "Check the permissions of the state folder.",
    "unable to open": "Check the permissions of the state folder.",
    "locked": "Another process holds the log for too long; stop that process.",
}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file of the log into an AuditLogError with what to do."""
    try:
        yield
    except sqlite3.Error as error:
        remedy = next((remedy for word, remedy in _REMEDIES.items() if word in str(error)), None)
        raise AuditLogError(f"The log {path} cannot be used: {error}.", remedy) from error
    except OSError as error:
        remedy = "Free some disk space and check the permissions of the state folder."
        raise AuditLogError(f"The log {path} cannot be used: {error.strerror}.", remedy) from error


def head_path(path: Path) -> Path:
    """Return where the head of the log in `path` is noted."""
    return path.parent.with_suffix(".head")


def create_head(path: Path, head: LogHead) -> None:
    """Write the first note; on disk on return."""
    replace_file(path, _head_bytes(head), mode=0o600)


def note_head(path: Path, head: LogHead) -> None:
    """Note how far the log has got; the note may be behind after a crash, never ahead, so it is not synced."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Of two processes, the one that wrote first may come here second.
        if _parsed_head(os.pread(descriptor, _HEAD_BYTES, 0), path).entries < head.entries:
            os.pwrite(descriptor, _head_bytes(head), 0)
    finally:
        os.close(descriptor)


def read_head(path: Path) -> LogHead | None:
    """Return what is noted, None if there is no such file; to be read before the log, which another process may write.

    Raises:
        AuditLogError: it is damaged or cannot be read.
    """
    with explained(path), contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            content = os.pread(descriptor, _HEAD_BYTES, 0)
        finally:
            os.close(descriptor)
        return _parsed_head(content, path)
    return None


def _head_bytes(head: LogHead) -> bytes:
    return canonical_json(head.model_dump(mode="json")).ljust(_HEAD_BYTES - 1) + b"\n"


def _parsed_head(content: bytes, path: Path) -> LogHead:
    try:
        return LogHead.model_validate_json(content)
    except ValidationError as error:
        raise AuditLogError(
            f"{path} is damaged; it says how far the log had got.", f"Restore any copy of {path}."
        ) from error


def check_noted(noted: LogHead | None, head: LogHead, path: Path) -> None:
    """Compare a log with its head, read before it; the head may be behind, as after a crash, never ahead.

    Raises:
        AuditLogError: the note is gone, belongs to another log, or names more entries than there are.
    """
    if noted is None:
        if head.entries:
            beside = head_path(path)
            raise AuditLogError(f"{beside} is gone; it says how far the log had got.", f"Restore any copy of {beside}.")
    elif noted.log_id != head.log_id:
        raise AuditLogError(f"{head_path(path)} belongs to another log than {path}.")
    elif noted.entries > head.entries:
        raise AuditLogError(
            f"{path} holds {head.entries} entries, {noted.entries} were written: entries are missing, or it is an old copy."
        )
