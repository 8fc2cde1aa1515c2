"""The ledger's file: SQLite, append-only, each entry hashed with the one before it."""

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from echofed.privacy.accounting import Mechanism
from echofed.privacy.spends import Spend, SpentSplit, SplitFractions
from echofed.protocol.document import Document, canonical_json
from echofed.protocol.errors import LedgerError
from echofed.protocol.models import Sha256

LEDGER_PATH = Path("ledger", "ledger.sqlite")
"""Of the ledger, in the site's state folder."""
FIRST_PREVIOUS = "0" * 64
SCHEMA_VERSION = 1

Purpose = Literal["count", "training", "figures"]
SPLIT_OF_PURPOSE: dict[Purpose, SpentSplit] = {"count": "training", "training": "training", "figures": "validation"}

_DOMAIN = b"echofed ledger entry 1\n"
_BUSY_TIMEOUT_SECONDS = 60.0
_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE entries (number INTEGER PRIMARY KEY, content TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TRIGGER entry_changed BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entry_deleted BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entry_replaced BEFORE INSERT ON entries
WHEN NEW.number <= (SELECT COALESCE(MAX(number), 0) FROM entries)
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_REMEDIES = {
    "full": "Free some disk space; nothing was spent.",
    "disk I/O": "Free some disk space, or check the disk; nothing was spent.",
    "readonly": "Check the permissions of the state folder; nothing was spent.",
    "unable to open": "Check the permissions of the state folder; nothing was spent.",
    "locked": "Wait until the other process is done; nothing was spent.",
}


class RecordedMechanism(Document):
    """The mechanism of an entry, as it is written."""

    noise_multiplier: float = Field(gt=0)
    sampling_probability: float = Field(gt=0, le=1)
    steps: int = Field(ge=0)


class Entry(Document):
    """One release, as it stands in the ledger."""

    ledger_id: str
    number: int = Field(ge=1)
    previous: Sha256 = Field(description="hash of the entry before; 64 zeros for the first.")
    written_at: str = Field(description="UTC, to inform a reader; the number alone says the order.")
    study_hash: Sha256
    study_title: str
    round_number: int = Field(ge=0, le=10_000)
    purpose: Purpose
    split: SpentSplit
    validation_fraction: float
    test_fraction: float
    mechanism: RecordedMechanism | None = Field(description="null: released without privacy.")
    instruction: Sha256 = Field(description="digest of the instruction it answers.")

    @property
    def spend(self) -> Spend:
        """What the accountant needs of it."""
        fractions = SplitFractions(self.validation_fraction, self.test_fraction)
        mechanism = None if self.mechanism is None else Mechanism(**self.mechanism.model_dump())
        return Spend(self.study_hash, self.split, fractions, mechanism)


@dataclass(frozen=True)
class Chain:
    """A ledger's entries, whole and in order.

    Args:
        ledger_id: of the ledger, random.
        entries: from the first on.
        hashes: of the entries.
    """

    ledger_id: str
    entries: tuple[Entry, ...] = ()
    hashes: tuple[str, ...] = ()

    def hash_at(self, number: int) -> str:
        """Return the hash of an entry; of none, 64 zeros."""
        return self.hashes[number - 1] if number else FIRST_PREVIOUS

    def followed_by(self, entry: Entry) -> "Chain":
        """Return the chain with one entry more."""
        return Chain(self.ledger_id, (*self.entries, entry), (*self.hashes, _hash(_text(entry))))


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file of the ledger into a LedgerError with what to do."""
    try:
        yield
    except sqlite3.Error as error:
        remedy = next((remedy for word, remedy in _REMEDIES.items() if word in str(error)), None)
        raise LedgerError(f"The ledger {path} cannot be used: {error}.", remedy) from error
    except OSError as error:
        remedy = "Free some disk space and check the permissions of the state folder."
        raise LedgerError(f"{path} cannot be used: {error.strerror}.", remedy) from error


def connect(path: Path) -> sqlite3.Connection:
    """Open a ledger's file, which must exist; a commit is on disk when it returns, its folder's entry included."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    database = sqlite3.connect(
        uri, uri=True, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
    )
    # EXTRA also syncs the folder once the journal is deleted: after a power cut no commit can be undone.
    database.execute("PRAGMA synchronous = EXTRA")
    return database


def create_file(path: Path, ledger_id: str) -> None:
    """Write an empty ledger; the file appears whole."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(partial)) as database:
        database.executescript(f"{_TABLES} PRAGMA user_version = {SCHEMA_VERSION};")
        with database:
            database.execute("INSERT INTO about VALUES ('ledger', ?)", (ledger_id,))
    partial.chmod(0o600)
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_writable(database: sqlite3.Connection) -> None:
    """Begin a write and undo it: where nothing can be written, that is known before anyone trains for nothing.

    Raises:
        sqlite3.Error: the folder or the file is read-only, or the disk is full.
    """
    database.execute("BEGIN IMMEDIATE")
    try:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


def append(database: sqlite3.Connection, entry: Entry) -> None:
    """Write one entry; it is on disk on return, or not there."""
    text = _text(entry)
    database.execute("INSERT INTO entries VALUES (?, ?, ?)", (entry.number, text, _hash(text)))


def read_chain(database: sqlite3.Connection, path: Path) -> Chain:
    """Return the entries of a ledger after checking the file, its rules and every hash.

    Raises:
        LedgerError: the file is damaged, of another version, or an entry is missing or not as it was written.
        sqlite3.Error: SQLite cannot read it.
    """
    _check_file(database, path)
    ledger_id = str(database.execute("SELECT content FROM about WHERE name = 'ledger'").fetchone()[0])
    entries: list[Entry] = []
    hashes = [FIRST_PREVIOUS]
    for number, text, digest in database.execute("SELECT number, content, hash FROM entries ORDER BY number"):
        try:
            entry = Entry.model_validate_json(text)
        except ValidationError as error:
            raise _edited(path, number) from error
        place = (entry.ledger_id, entry.number, entry.previous, digest)
        if number != len(hashes) or place != (ledger_id, number, hashes[-1], _hash(text)):
            raise _edited(path, number)
        entries.append(entry)
        hashes.append(digest)
    return Chain(ledger_id, tuple(entries), tuple(hashes[1:]))


def _check_file(database: sqlite3.Connection, path: Path) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise LedgerError(f"{path} is of version {version}; this EchoFed knows {SCHEMA_VERSION}.", "Upgrade EchoFed.")
    found = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise LedgerError(f"{path} is damaged: {found}.")
    if _rules(database) != _own_rules() or database.execute("SELECT COUNT(*) FROM about").fetchone()[0] != 1:
        raise LedgerError(f"The tables of {path} are not those of a ledger.")


def _own_rules() -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as model:
        model.executescript(_TABLES)
        return _rules(model)


def _rules(database: sqlite3.Connection) -> list[tuple[str, str]]:
    return database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()


def _edited(path: Path, number: int) -> LedgerError:
    return LedgerError(f"Entry {number} of {path} is not the one that was written there.")


def _text(entry: Entry) -> str:
    return canonical_json(entry.model_dump(mode="json")).decode()


def _hash(text: str) -> str:
    return hashlib.sha256(_DOMAIN + text.encode()).hexdigest()
