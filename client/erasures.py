"""When a site erased patients: notes beside its ledger, each hashed with the one before it, that name nobody.

A note also holds how far the ledger had got, so that it can be told which releases came before the erasure and which after it.
What those before have spent stays spent. The audit log holds each note's hash, where the site has one.
"""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from echofed.client.ledger import read_ledger
from echofed.client.ledger_chain import FIRST_PREVIOUS
from echofed.client.policy import load_policy
from echofed.client.registry import REGISTRY_FILE, locked
from echofed.protocol.document import Document, canonical_json
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import LedgerError
from echofed.protocol.models import Sha256

ERASURES_PATH = Path("ledger", "erasures.jsonl")
"""Of the notes, in the site's state folder."""

_DOMAIN = b"echofed erasure 1\n"


class Erasure(Document):
    """One note."""

    number: int = Field(ge=1)
    previous: Sha256 = Field(description="hash of the note before; 64 zeros for the first.")
    written_at: str = Field(description="UTC.")
    patients: int = Field(ge=1, description="erased at once.")
    ledger_id: str | None = Field(description="null: the site had no ledger.")
    ledger_entries: int = Field(ge=0, description="releases made before.")
    ledger_hash: Sha256 = Field(description="of the last of them; of none, 64 zeros.")

    @property
    def hash(self) -> str:
        """SHA-256 of the note with the one before it, 64 hexadecimal digits."""
        return hashlib.sha256(_DOMAIN + canonical_json(self.model_dump(mode="json"))).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC)


def note_erasure(state_folder: Path, patients: int, now: Callable[[], datetime] = _now) -> Erasure:
    """Note that patients were erased; it is on disk on return.

    Args:
        state_folder: of the site.
        patients: how many.
        now: the clock, UTC.

    Raises:
        LedgerError: the ledger or the notes are damaged or cannot be written.
    """
    has_site = (state_folder / REGISTRY_FILE).exists()
    chain = read_ledger(state_folder, load_policy(state_folder)) if has_site else None
    path = state_folder / ERASURES_PATH
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            before = read_erasures(state_folder)
            entries = len(chain.entries) if chain else 0
            erasure = Erasure(
                number=len(before) + 1,
                previous=before[-1].hash if before else FIRST_PREVIOUS,
                written_at=now().isoformat(timespec="seconds"),
                patients=patients,
                ledger_id=chain.ledger_id if chain else None,
                ledger_entries=entries,
                ledger_hash=chain.hash_at(entries) if chain else FIRST_PREVIOUS,
            )
            lines = [canonical_json(one.model_dump(mode="json")) + b"\n" for one in (*before, erasure)]
            replace_file(path, b"".join(lines))
            path.chmod(0o600)
    except OSError as error:
        raise LedgerError(
            f"{path} cannot be written: {error.strerror}.", "Free some disk space, then try again."
        ) from error
    return erasure


def read_erasures(state_folder: Path) -> tuple[Erasure, ...]:
    """Return the notes, in order, after checking every hash; none if nobody was ever erased.

    Raises:
        LedgerError: they are damaged, or one was edited, deleted, inserted or moved.
    """
    path = state_folder / ERASURES_PATH
    erasures: list[Erasure] = []
    previous = FIRST_PREVIOUS
    try:
        for line in path.read_bytes().splitlines():
            erasure = Erasure.model_validate_json(line)
            if (erasure.number, erasure.previous) != (len(erasures) + 1, previous):
                raise LedgerError(f"Note {len(erasures) + 1} of {path} is not the one that was written there.")
            erasures.append(erasure)
            previous = erasure.hash
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        raise LedgerError(f"{path} is damaged.", "Restore it from the newest copy of the state folder.") from error
    return tuple(erasures)
