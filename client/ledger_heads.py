"""How far a ledger has got, noted outside of it: an older copy of the ledger then gives itself away.

One note lies beside the ledger in the state folder; another, the witness, wherever the site's policy says.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from echofed.client.ledger_chain import Chain, explained
from echofed.protocol.document import Document, canonical_json
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import LedgerError
from echofed.protocol.models import Sha256

HEAD_FILE = "ledger.head"
_MAX_BYTES = 10_000


class Head(Document):
    """What is noted."""

    ledger_id: str
    entries: int = Field(ge=0)
    hash: Sha256 = Field(description="of the last entry.")
    witness: str | None = Field(description="path of the witness, if there is one.")


@dataclass(frozen=True)
class Notes:
    """Both notes as they are found; None: there is no such file."""

    path: Path
    head: Head | None
    witness: Path | None
    seen: Head | None


def write_notes(state_folder: Path, witness: Path | None, chain: Chain) -> None:
    """Note how far the ledger has got; on disk on return.

    Raises:
        LedgerError: a note cannot be written.
    """
    number = len(chain.entries)
    head = Head(
        ledger_id=chain.ledger_id,
        entries=number,
        hash=chain.hash_at(number),
        witness=None if witness is None else str(witness),
    )
    content = canonical_json(head.model_dump(mode="json")) + b"\n"
    # The witness first: the note beside the ledger then never names one that was not written.
    for path in (witness, state_folder / HEAD_FILE):
        if path is not None:
            with explained(path):
                replace_file(path, content)


def read_notes(state_folder: Path, witness: Path | None) -> Notes:
    """Return what is noted; to be read before the ledger, which another process may be writing.

    Raises:
        LedgerError: a note is damaged or cannot be read.
    """
    path = state_folder / HEAD_FILE
    return Notes(path, _read(path), witness, None if witness is None else _read(witness))


def check_notes(notes: Notes, chain: Chain, *, is_new: bool) -> None:
    """Compare a ledger with what was noted; a note may be behind the ledger, as after a crash, never ahead.

    Args:
        notes: read before the chain.
        chain: what the ledger holds.
        is_new: the ledger is being made, or its making was cut short; notes may be missing.

    Raises:
        LedgerError: the ledger is older than noted or another one, or a note is missing.
    """
    head, witness = notes.head, notes.witness
    if head is None and not is_new:
        raise LedgerError(
            f"{notes.path} is gone; it says how far the ledger had got.", f"Restore any copy of {notes.path}."
        )
    _compare(head, notes.path, chain)
    if witness is not None and notes.seen is None and head is not None and head.witness == str(witness):
        raise LedgerError(
            f"The ledger's witness {witness} is gone.",
            "Mount its disk; if it is lost for good, name another file as ledger_witness in the site's policy.",
        )
    if witness is not None:
        _compare(notes.seen, witness, chain)


def _read(path: Path) -> Head | None:
    with explained(path), contextlib.suppress(FileNotFoundError):
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES)
        try:
            return Head.model_validate_json(content)
        except ValidationError as error:
            raise LedgerError(
                f"{path} is damaged; it says how far the ledger had got.", f"Restore any copy of {path}."
            ) from error
    return None


def _compare(head: Head | None, path: Path, chain: Chain) -> None:
    if head is None:
        return
    if head.ledger_id != chain.ledger_id:
        raise LedgerError(f"{path} belongs to another ledger than the one in the state folder.")
    if head.entries > len(chain.entries):
        raise LedgerError(
            f"The ledger holds {len(chain.entries)} entries, {head.entries} were written (says {path}): it is an old copy."
        )
    if chain.hash_at(head.entries) != head.hash:
        raise LedgerError(f"Entry {head.entries} of the ledger is not the one that {path} noted.")
