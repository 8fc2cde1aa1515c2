"""An audit log as JSON, and what two parties' logs say of each other: neither can rewrite its own unseen."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

from echofed.protocol.audit_entries import FIRST_PREVIOUS, Entry, LogHead
from echofed.protocol.audit_log import AuditLog
from echofed.protocol.document import Document
from echofed.protocol.errors import AuditLogError
from echofed.protocol.state_folder import read_limited

MAX_EXPORT_BYTES = 512 * 2**20


class AuditExport(Document):
    """A whole log."""

    format: Literal[1]
    owner: str
    log_id: str
    head: LogHead
    entries: tuple[Entry, ...] = Field(description="from the first on.")

    def hash_at(self, number: int) -> str:
        """Return the hash of an entry; of none, 64 zeros."""
        if not number:
            return FIRST_PREVIOUS
        return self.head.hash if number == self.head.entries else self.entries[number].previous


@dataclass(frozen=True)
class Comparison:
    """What two logs say of each other.

    Args:
        compared: heads of one that stand in the other, both ways together.
        contradictions: a sentence for each head that does not fit.
    """

    compared: int
    contradictions: tuple[str, ...]


class _Received(NamedTuple):
    where: int
    peer: str
    log_id: str
    entries: int
    hash: str


def export_of(log: AuditLog) -> AuditExport:
    """Return a log as it can be handed out, after checking it as `AuditLog.verify` does.

    Raises:
        AuditLogError: the log cannot be trusted.
    """
    head = log.verify()
    entries = tuple(entry for entry in log.entries() if entry.number <= head.entries)
    return AuditExport(format=1, owner=log.owner, log_id=log.log_id, head=head, entries=entries)


def read_export(path: Path) -> AuditExport:
    """Return an exported log after checking its chain.

    Raises:
        AuditLogError: the file is not an export, or an entry of it was edited, deleted, inserted or moved.
        StateFolderError: it is larger than `MAX_EXPORT_BYTES`.
    """
    try:
        export = AuditExport.model_validate_json(read_limited(path, MAX_EXPORT_BYTES))
    except OSError as error:
        raise AuditLogError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except ValidationError as error:
        raise AuditLogError(
            f"{path} is not the export of an audit log.", "Ask the other party for it again."
        ) from error
    previous = FIRST_PREVIOUS
    for number, entry in enumerate(export.entries, start=1):
        if (entry.log_id, entry.number, entry.previous) != (export.log_id, number, previous):
            raise _broken(path, number)
        previous = entry.hash
    if export.head != LogHead(log_id=export.log_id, entries=len(export.entries), hash=previous):
        raise _broken(path, len(export.entries))
    return export


def compare(mine: AuditExport, theirs: AuditExport) -> Comparison:
    """Compare the heads that two parties wrote into their logs with what the logs hold now, both ways.

    A head that one received proves how far the other had got; a log that lost entries since, or holds others in their place,
    or was begun anew, contradicts it. Both logs' own chains must have been checked.
    """
    found = [(theirs, one, mine) for one in _received(theirs)] + [(mine, one, theirs) for one in _received(mine)]
    about = [(by, one, of) for by, one, of in found if one.log_id == of.log_id or one.peer == of.owner]
    sentences = [sentence for by, one, of in about if (sentence := _contradiction(by, one, of))]
    return Comparison(len(about), tuple(sentences))


def _contradiction(by: AuditExport, one: _Received, of: AuditExport) -> str | None:
    said = f"{by.owner} noted (entry {one.where})"
    if one.log_id != of.log_id:
        return f"{said} a head of another log of {of.owner} than this one: it was begun anew."
    if one.entries > of.head.entries:
        return f"{said} that the log of {of.owner} had {one.entries} entries; it holds {of.head.entries}."
    if of.hash_at(one.entries) != one.hash:
        return f"{said} another entry {one.entries} of the log of {of.owner} than it holds now, or another before it."
    return None


def _received(export: AuditExport) -> Iterator[_Received]:
    for entry in export.entries:
        facts = entry.facts
        peer, log_id, entries, digest = (facts.get(name) for name in ("peer", "log_id", "entries", "hash"))
        if entry.event != "head received" or type(entries) is not int or entries < 0:
            continue
        yield _Received(entry.number, str(peer), str(log_id), entries, str(digest))


def _broken(path: Path, number: int) -> AuditLogError:
    what = f"{path} is no whole log: the chain breaks at entry {number}."
    return AuditLogError(what, "Ask the other party for it again; if it breaks again, its log was changed.")
