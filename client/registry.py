"""A site's registry: one SQLite file in its state folder, holding what registration found.

Every change is one transaction, so a site killed at any moment keeps its last whole registry. What decoding a file told
is kept as soon as it is known: an interrupted registration goes on where it stopped.
"""

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from echofed.client.checks import CheckedRow, Facts, Source
from echofed.client.images import DECODING_VERSION
from echofed.client.ingest.encryption import is_sealed, seal, unseal
from echofed.client.ingest.errors import FrameStoreError
from echofed.client.ingest.frame_store import key_of
from echofed.client.reasons import Reason
from echofed.client.reports import RegistrationReport
from echofed.client.settings import SiteSettings
from echofed.protocol.errors import KeyFileError, RegistrationError

REGISTRY_FILE = "registry.sqlite"
SCHEMA_VERSION = 1
_BUSY_TIMEOUT_SECONDS = 60.0

_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE facts (
    path TEXT NOT NULL, kind TEXT NOT NULL, size_bytes INTEGER NOT NULL, modified_ns INTEGER NOT NULL,
    decoding_version INTEGER NOT NULL, problem TEXT, pixel_key BLOB NOT NULL, height INTEGER NOT NULL,
    width INTEGER NOT NULL, looks BLOB NOT NULL, thumbnail BLOB NOT NULL, converted TEXT NOT NULL,
    PRIMARY KEY (path, kind));
CREATE TABLE images (
    position INTEGER PRIMARY KEY, file TEXT NOT NULL, patient TEXT NOT NULL, exam TEXT NOT NULL, label TEXT NOT NULL,
    column_values TEXT NOT NULL, path TEXT NOT NULL, pixel_key BLOB NOT NULL, reason TEXT,
    mask_path TEXT NOT NULL, mask_key BLOB NOT NULL, mask_reason TEXT);
"""

_REMEDIES = {
    "full": "Free some disk space.",
    "disk I/O": "Free some disk space, or check the disk.",
    "readonly": "Check its permissions.",
    "unable to open": "Check its permissions.",
    "locked": "Wait until the other process is done.",
}
_REMEDY_IF_DAMAGED = "Move the file away, then create and register the site again."

Kind = Literal["image", "mask"]
KnownFacts = dict[tuple[str, Kind], tuple[Source, Facts]]


class Record(NamedTuple):
    """One row of the registry: an image and what the site says of it.

    Args:
        file: as in the index.
        patient, exam, label: as in the index.
        values_json: the other columns, a JSON object of texts.
        path, key: of the image's file; SHA-256 of its pixels.
        reason: why it is quarantined, None if it can be used.
        mask_path, mask_key, mask_reason: the same of its mask.
    """

    file: str
    patient: str
    exam: str
    label: str
    values_json: str
    path: str
    key: bytes
    reason: str | None
    mask_path: str
    mask_key: bytes
    mask_reason: str | None


@contextlib.contextmanager
def open_registry(state_folder: Path) -> Iterator[sqlite3.Connection]:
    """Open a site's registry, and close it at the end.

    Raises:
        RegistrationError: there is none, it is damaged or of another version, or the disk is full.
    """
    path = state_folder / REGISTRY_FILE
    if not path.is_file():
        raise RegistrationError(f"{state_folder} holds no site.", remedy="Create the site first.")
    with _explained(path), contextlib.closing(_connect(path)) as database:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA_VERSION:
            raise RegistrationError(
                f"{path} has version {version}; this EchoFed knows version {SCHEMA_VERSION}.",
                remedy="Use the EchoFed it was made with, or register again in a new state folder.",
            )
        yield database


def create_registry(state_folder: Path, settings: SiteSettings) -> None:
    """Make a site's registry, or write new settings into the one there is.

    The file appears whole, so one that exists can be opened.

    Raises:
        RegistrationError: it cannot be written, or belongs to a site of another name.
    """
    path = state_folder / REGISTRY_FILE
    with locked(state_folder / "registry.lock"):
        if not path.exists():
            _create(path, settings)
            return
        with open_registry(state_folder) as database:
            before = read_settings(database)
            if before.name != settings.name:
                raise RegistrationError(
                    f"{state_folder} belongs to site {before.name}.",
                    remedy=f"Use another state folder for {settings.name}.",
                )
            if before.columns.patient != settings.columns.patient and read_ledger_id(database):
                raise RegistrationError(
                    f"The ledger counts what patients named by column {before.columns.patient} have spent.",
                    remedy="Keep that column, or register in a new state folder.",
                )
            with database:
                _write_settings(database, settings)


def _create(path: Path, settings: SiteSettings) -> None:
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with _explained(path), contextlib.closing(_connect(partial)) as database:
        database.executescript(f"{_TABLES} PRAGMA user_version = {SCHEMA_VERSION};")
        with database:
            _write_settings(database, settings)
    partial.chmod(0o600)
    partial.replace(path)


def read_settings(database: sqlite3.Connection) -> SiteSettings:
    """Return the site's settings as they were last written."""
    content = _read_about(database, "settings")
    if content is None:
        raise RegistrationError("The registry holds no settings.", remedy="Create the site first.")
    return SiteSettings.model_validate_json(content)


def read_facts(database: sqlite3.Connection) -> KnownFacts:
    """Return what is known of files decoded before, by path and kind."""
    rows = database.execute(
        "SELECT path, kind, size_bytes, modified_ns, problem, pixel_key, height, width, looks, thumbnail, converted "
        "FROM facts WHERE decoding_version = ?",
        (DECODING_VERSION,),
    )
    known: KnownFacts = {}
    for path, kind, size_bytes, modified_ns, problem, key, height, width, looks, thumbnail, converted in rows:
        seen = _opened(path, looks), _opened(path, thumbnail)
        if seen[0] is None or seen[1] is None:
            continue
        facts = Facts(
            *(
                Reason(problem) if problem else None,
                key,
                height,
                width,
                int.from_bytes(seen[0], "big"),
                seen[1],
                converted,
            )
        )
        known[path, kind] = (Source(path, size_bytes, modified_ns), facts)
    return known


def write_facts(database: sqlite3.Connection, found: Iterable[tuple[Kind, Source, Facts]]) -> None:
    """Keep what decoding some files told, in one transaction."""
    rows = [
        (
            *(source.path, kind, source.size_bytes, source.modified_ns, DECODING_VERSION, facts.problem, facts.key),
            *(facts.height, facts.width, _sealed(source.path, facts.looks.to_bytes(8, "big"))),
            *(_sealed(source.path, facts.thumbnail), facts.converted),
        )
        for kind, source, facts in found
    ]
    with database:
        database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def replace_records(database: sqlite3.Connection, checked: Iterable[CheckedRow], report: RegistrationReport) -> None:
    """Replace the whole registry in one transaction, and forget files that are no longer in the index."""
    with database:
        database.execute("DELETE FROM images")
        database.executemany(
            "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ((position, *_as_row(row)) for position, row in enumerate(checked)),
        )
        database.execute(
            "DELETE FROM facts WHERE path NOT IN (SELECT path FROM images UNION SELECT mask_path FROM images)"
        )
        _write_about(database, "report", json.dumps(report.to_json()))


def remove_patients(database: sqlite3.Connection, patients: Collection[str]) -> int:
    """Remove patients and what decoding their files told, so that nothing stays in the file; return how many images that were."""
    with database:
        removed = sum(
            database.execute("DELETE FROM images WHERE patient = ?", (patient,)).rowcount for patient in patients
        )
        database.execute(
            "DELETE FROM facts WHERE path NOT IN (SELECT path FROM images UNION SELECT mask_path FROM images)"
        )
    database.execute("VACUUM")
    return removed


def read_records(database: sqlite3.Connection) -> list[Record]:
    """Return every row of the registry, in the order of the index.

    Raises:
        RegistrationError: nothing has been registered yet.
    """
    if _read_about(database, "report") is None:
        raise RegistrationError("No data have been registered at this site.", remedy="Register its data first.")
    rows = database.execute(
        "SELECT file, patient, exam, label, column_values, path, pixel_key, reason, mask_path, mask_key, mask_reason "
        "FROM images ORDER BY position"
    )
    return list(map(Record._make, rows))


def count_patients(database: sqlite3.Connection) -> int:
    """Return the number of patients with a usable image, whatever the study."""
    row = database.execute("SELECT COUNT(DISTINCT patient) FROM images WHERE reason IS NULL").fetchone()
    return int(row[0])


def read_ledger_id(database: sqlite3.Connection) -> str | None:
    """Return the id of the site's ledger; None if it has never had one."""
    return _read_about(database, "ledger")


def write_ledger_id(database: sqlite3.Connection, ledger_id: str) -> None:
    """Remember the site's ledger, so that its loss is noticed."""
    with database:
        _write_about(database, "ledger", ledger_id)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the system frees it when its holder dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _as_row(checked: CheckedRow) -> tuple[object, ...]:
    row, image, mask = checked.row, checked.image, checked.mask
    return (
        *(row.file, row.patient, row.exam, row.label, json.dumps(row.values, ensure_ascii=False)),
        *(image.path if image else "", checked.facts.key, checked.reason),
        *(mask.path if mask else "", checked.mask_facts.key, checked.mask_reason),
    )


def _sealed(path: str, content: bytes) -> bytes:
    """Return what is kept of an image's looks: of a frame in an encrypted store not in clear."""
    key = key_of(Path(path))
    return content if key is None else seal(key, content, path)


def _opened(path: str, content: bytes) -> bytes | None:
    """Return what `_sealed` was given, None if the key for it is not to be had: the file is then decoded again."""
    if not is_sealed(content):
        return content
    try:
        return unseal(key_of(Path(path)) or b"", content, path)
    except (FrameStoreError, KeyFileError):
        return None


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_SECONDS)
    database.execute("PRAGMA synchronous = FULL")
    # What is deleted, a patient or a thumbnail, is overwritten.
    database.execute("PRAGMA secure_delete = ON")
    return database


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        remedy = next((remedy for word, remedy in _REMEDIES.items() if word in str(error)), _REMEDY_IF_DAMAGED)
        raise RegistrationError(f"{path} cannot be used: {error}.", remedy=remedy) from error


def _read_about(database: sqlite3.Connection, name: str) -> str | None:
    row = database.execute("SELECT content FROM about WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _write_settings(database: sqlite3.Connection, settings: SiteSettings) -> None:
    # What was not written stays unwritten: an optional column is only required if the settings name it.
    _write_about(database, "settings", settings.model_dump_json(exclude_unset=True))


def _write_about(database: sqlite3.Connection, name: str, content: str) -> None:
    database.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, content))
