"""A party's audit log: what it did and what it was told, on its own disk, each entry hashed with the one before it.

`log/audit.sqlite` in the party's state folder holds the entries, `log.head` beside it how far they have got. An entry that is
edited, deleted, inserted or moved breaks the chain; a log that lost its last entries, or an old copy of it, is behind its head.
Whoever owns the machine can rewrite both: that contradicts the heads which the other parties wrote into their own logs
(`head received`), and `protocol/audit_export.py` finds it.

The order of entries is their number. Their time is informative: a clock that goes backwards changes nothing.
"""

import contextlib
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import NamedTuple, Self

from pydantic import ValidationError

from echofed.protocol.audit_entries import FIRST_PREVIOUS, Entry, Event, Fact, LogHead, hash_of, storable
from echofed.protocol.audit_heads import check_noted, create_head, explained, head_path, note_head, read_head
from echofed.protocol.errors import AuditLogError
from echofed.protocol.state_folder import locked

__all__ = ["AUDIT_LOG_PATH", "AuditLog", "Entry", "Event", "Fact", "LogHead", "open_audit_log"]

AUDIT_LOG_PATH = Path("log", "audit.sqlite")
"""Of the log, in a party's state folder."""
SCHEMA_VERSION = 1
_BUSY_TIMEOUT_SECONDS = 60.0
_PAGE_ENTRIES = 1000
_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE entries (number INTEGER PRIMARY KEY, content TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TRIGGER entry_changed BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER entry_deleted BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER entry_replaced BEFORE INSERT ON entries
WHEN NEW.number <= (SELECT COALESCE(MAX(number), 0) FROM entries)
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
"""


class _Last(NamedTuple):
    number: int
    hash: str


def _now() -> datetime:
    return datetime.now(UTC)


class AuditLog:
    """A party's log, open; made by `open_audit_log`, safe to use from several threads, and from several processes at once.

    Args:
        path: of the file.
        owner: whose log it is.
        log_id: of the log, random.
        database: the file, open.
        now: the clock.
    """

    def __init__(
        self, path: Path, owner: str, log_id: str, database: sqlite3.Connection, now: Callable[[], datetime]
    ) -> None:
        self.path, self.owner, self.log_id = path, owner, log_id
        self._database, self._now = database, now
        self._file = _identity(path)
        self._lock = Lock()
        self._known = _Last(0, FIRST_PREVIOUS)

    def append(self, event: Event, **facts: Fact) -> Entry:
        """Write one entry and return it; it is on disk on return. What follows from the event must come after that.

        The chain is not read again: only its last entry, and the one this process knows, are looked at.

        Args:
            event: what happened.
            facts: about it; texts are cut at `MAX_TEXT_LENGTH`.

        Raises:
            AuditLogError: it cannot be written, a fact is not finite, or the file is not the one that was opened, or was
                changed under it.
        """
        with self._lock, explained(self.path):
            self._check_same_file()
            with _writing(self._database):
                last = self._last()
                entry = self._entry(last, event, facts)
                text = entry.text
                here = _Last(entry.number, hash_of(text))
                self._database.execute("INSERT INTO entries VALUES (?, ?, ?)", (entry.number, text, here.hash))
            self._known = here
            note_head(head_path(self.path), self._head(here))
            return entry

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """Yield the entries after a number, in order, as they stand in the file; the chain is not checked.

        The log can be written while this is read.

        Raises:
            AuditLogError: the file cannot be read or an entry is not one.
        """
        for number, text, _ in self._rows(after):
            yield _parsed(text, number, self.path)

    def head(self) -> LogHead:
        """Return how far the log has got.

        Raises:
            AuditLogError: the file cannot be read, or was changed since this process wrote to it.
        """
        with self._lock, explained(self.path):
            self._check_same_file()
            return self._head(self._last())

    def head_at(self, entries: int) -> LogHead | None:
        """Return how far the log had got with so many entries, at least one; None if it has fewer.

        Raises:
            AuditLogError: the file cannot be read.
        """
        with self._lock, explained(self.path):
            self._check_same_file()
            row = self._database.execute("SELECT hash FROM entries WHERE number = ?", (entries,)).fetchone()
            return self._head(_Last(entries, row[0])) if row else None

    def verify(self) -> LogHead:
        """Check the file, its rules, every hash and the head beside it, and return how far the log has got.

        Raises:
            AuditLogError: an entry was edited, deleted, inserted or moved, entries are missing at the end, or the file is
                damaged.
        """
        noted = read_head(head_path(self.path))  # before the log, which another process may be writing
        with self._lock, explained(self.path):
            self._check_same_file()
            found = self._database.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise AuditLogError(f"{self.path} is damaged: {found}.")
            _check_rules(self._database, self.path)
        last = _Last(0, FIRST_PREVIOUS)
        for number, text, digest in self._rows(0):
            entry = _parsed(text, number, self.path)
            if (entry.log_id, entry.number, entry.previous, digest) != (self.log_id, number, last.hash, hash_of(text)):
                raise _edited(self.path, number)
            if number != last.number + 1:
                raise AuditLogError(f"Entry {last.number + 1} of {self.path} is missing.")
            last = _Last(number, digest)
            if noted and noted.entries == number and noted.hash != digest:
                raise _edited(self.path, number)
        head = self._head(last)
        check_noted(noted, head, self.path)
        return head

    def close(self) -> None:
        """Close the file; safe to repeat."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Self:
        """Return the log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def _entry(self, last: _Last, event: Event, facts: Mapping[str, Fact]) -> Entry:
        try:
            return Entry(
                log_id=self.log_id,
                number=last.number + 1,
                previous=last.hash,
                written_at=self._now().isoformat(timespec="seconds"),
                event=event,
                facts={name: storable(fact) for name, fact in facts.items()},
            )
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise AuditLogError(f"This cannot be written into the log: {event}, {where}.") from error

    def _head(self, last: _Last) -> LogHead:
        try:
            return LogHead(log_id=self.log_id, entries=last.number, hash=last.hash)
        except ValidationError as error:
            raise _edited(self.path, last.number) from error

    def _last(self) -> _Last:
        row = self._database.execute("SELECT number, hash FROM entries ORDER BY number DESC LIMIT 1").fetchone()
        last = _Last(*row) if row else _Last(0, FIRST_PREVIOUS)
        known = self._known
        if known.number:
            here = self._database.execute("SELECT hash FROM entries WHERE number = ?", (known.number,)).fetchone()
            if here is None or here[0] != known.hash:
                raise AuditLogError(f"Entry {known.number} of {self.path} was changed while the log was in use.")
        self._known = last
        return last

    def _rows(self, after: int) -> Iterator[tuple[int, str, str]]:
        # In pages: a reader that holds the file open for long would keep writers waiting.
        while True:
            with self._lock, explained(self.path):
                query = "SELECT number, content, hash FROM entries WHERE number > ? ORDER BY number LIMIT ?"
                page = self._database.execute(query, (after, _PAGE_ENTRIES)).fetchall()
            yield from page
            if len(page) < _PAGE_ENTRIES:
                return
            after = page[-1][0]

    def _check_same_file(self) -> None:
        if _identity(self.path) != self._file:
            raise AuditLogError(f"{self.path} was replaced while in use.")


def open_audit_log(state_folder: Path, *, owner: str, now: Callable[[], datetime] = _now) -> AuditLog:
    """Open a party's log, or begin it if the folder never had one.

    What is cheap is checked: the file's rules, its owner, and that it is not behind its head. `AuditLog.verify` checks all.

    Args:
        state_folder: the party's; made by whoever made the party.
        owner: the site's name, or the consortium's for its coordinator.
        now: the clock, UTC.

    Raises:
        AuditLogError: the log is gone, damaged, an old copy or someone else's, or cannot be written.
    """
    path = state_folder / AUDIT_LOG_PATH
    with explained(path):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with locked(path.parent):
            noted = read_head(head_path(path))
            if not path.exists():
                if noted and noted.entries:
                    raise AuditLogError(f"The log {path} is gone.")
                _create(path, owner)
                noted = None
            return _opened(path, owner, noted, now)


def open_existing_log(state_folder: Path) -> AuditLog:
    """Open the log a folder has, whoever owns it.

    Raises:
        AuditLogError: there is none, or as `open_audit_log`.
    """
    path = state_folder / AUDIT_LOG_PATH
    with explained(path):
        noted = read_head(head_path(path))
        if not path.exists():
            what = f"The log {path} is gone." if noted else f"There is no log {path}."
            raise AuditLogError(what, None if noted else "Name the right folder with --state.")
        return _opened(path, None, noted, _now)


def _opened(path: Path, owner: str | None, noted: LogHead | None, now: Callable[[], datetime]) -> AuditLog:
    with contextlib.ExitStack() as resources:
        database = resources.enter_context(contextlib.closing(_connect(path)))
        _check_rules(database, path)
        about = dict(database.execute("SELECT name, content FROM about").fetchall())
        if about.keys() != {"log", "owner"}:
            raise AuditLogError(f"{path} does not say whose log it is.")
        if owner not in (None, about["owner"]):
            raise AuditLogError(f"{path} is the log of {about['owner']}, not of {owner}.")
        log = AuditLog(path, about["owner"], about["log"], database, now)
        head = log.head()
        check_noted(noted, head, path)
        if noted and noted.entries and noted.log_id == log.log_id:
            row = database.execute("SELECT hash FROM entries WHERE number = ?", (noted.entries,)).fetchone()
            if row is None or row[0] != noted.hash:
                raise _edited(path, noted.entries)
        if noted is None:
            create_head(head_path(path), head)
        resources.pop_all()
        return log


def _connect(path: Path) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=rw"
    database = sqlite3.connect(
        uri, uri=True, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
    )
    # EXTRA also syncs the folder once the journal is deleted: after a power cut no commit can be undone.
    database.execute("PRAGMA synchronous = EXTRA")
    return database


def _create(path: Path, owner: str) -> None:
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(partial)) as database:
        database.executescript(f"{_TABLES} PRAGMA user_version = {SCHEMA_VERSION};")
        with database:
            about = [("log", secrets.token_hex(16)), ("owner", owner)]
            database.executemany("INSERT INTO about VALUES (?, ?)", about)
    partial.chmod(0o600)
    head_path(path).unlink(missing_ok=True)
    # The head, made next, syncs the folder.
    partial.replace(path)


@contextlib.contextmanager
def _writing(database: sqlite3.Connection) -> Iterator[None]:
    """Hold the only right to write; what is written inside is on disk afterwards, or nothing of it is."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


def _check_rules(database: sqlite3.Connection, path: Path) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise AuditLogError(f"{path} is of version {version}; this EchoFed knows {SCHEMA_VERSION}.", "Upgrade EchoFed.")
    with contextlib.closing(sqlite3.connect(":memory:")) as model:
        model.executescript(_TABLES)
        if _rules(database) != _rules(model):
            raise AuditLogError(f"The tables of {path} are not those of an audit log.")


def _rules(database: sqlite3.Connection) -> list[tuple[str, str]]:
    return database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()


def _parsed(text: str, number: int, path: Path) -> Entry:
    try:
        return Entry.model_validate_json(text)
    except ValidationError as error:
        raise _edited(path, number) from error


def _edited(path: Path, number: int) -> AuditLogError:
    return AuditLogError(f"Entry {number} of {path} is not the one that was written there.")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another of the same name, None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
