"""What became of every instance: one SQLite file in the ingest's folder.

An instance is written with its verdict in one transaction, after its frames are on disk and before its raw file goes: an ingest
killed at any moment goes on where it stopped, loses nothing and takes nothing twice. It names nobody: patients, exams,
instances and what the source calls an item are keyed hashes, whose key lies beside it and never leaves.
"""

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.labels import LabelRow
from echofed.client.ingest.outcomes import Verdict, Why, verdict_of

JOURNAL_FILE = "journal.sqlite"
SCHEMA_VERSION = 2
_BUSY_TIMEOUT_SECONDS = 60.0

_TABLES = """
CREATE TABLE IF NOT EXISTS instances (
    instance TEXT PRIMARY KEY, patient TEXT NOT NULL, exam TEXT NOT NULL, accession TEXT NOT NULL, person TEXT NOT NULL,
    birth TEXT NOT NULL, verdict TEXT NOT NULL, why TEXT, label TEXT NOT NULL, device TEXT NOT NULL, facts TEXT NOT NULL,
    frames TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS instances_by_patient ON instances (patient);
CREATE TABLE IF NOT EXISTS items (item TEXT PRIMARY KEY, instance TEXT NOT NULL, why TEXT);
CREATE TABLE IF NOT EXISTS said (exam TEXT NOT NULL, accession TEXT NOT NULL, patient TEXT NOT NULL, label TEXT NOT NULL,
    PRIMARY KEY (exam, accession, patient, label));
CREATE TABLE IF NOT EXISTS merges (second TEXT PRIMARY KEY, first TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Entry:
    """An instance and what became of it.

    Args:
        instance, patient, exam, accession: keyed hashes; empty if the file does not say.
        person, birth: keyed hashes of the patient's name and birth date, to notice two patients with one id.
        verdict, why: what was decided, and the reason against it.
        label: what labels say of it; empty: nothing.
        device: vendor and model.
        facts: what is known of it, for the index and the quality report; only what may be kept.
        frames: for each stored frame its file (relative to the folder) and what was measured on it.
    """

    instance: str
    patient: str
    exam: str
    accession: str
    person: str
    birth: str
    verdict: Verdict
    why: Why | None
    label: str
    device: str
    facts: dict[str, Any]
    frames: tuple[dict[str, Any], ...]


class Journal:
    """An open journal; made by `open_journal`.

    Args:
        database: its file.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def knows(self, item: str) -> bool:
        """Return whether an item (keyed hash) has a verdict."""
        return self._database.execute("SELECT 1 FROM items WHERE item = ?", (item,)).fetchone() is not None

    def record(self, item: str, entry: Entry) -> None:
        """Keep an instance with its verdict, in place of an earlier one."""
        values = (
            entry.instance,
            entry.patient,
            entry.exam,
            entry.accession,
            entry.person,
            entry.birth,
            entry.verdict,
            entry.why,
            entry.label,
            entry.device,
            json.dumps(entry.facts, sort_keys=True),
            json.dumps(entry.frames, sort_keys=True),
        )
        with self._database:
            if item:
                self._database.execute("INSERT OR REPLACE INTO items VALUES (?, ?, NULL)", (item, entry.instance))
            self._database.execute(f"INSERT OR REPLACE INTO instances VALUES ({', '.join('?' * 12)})", values)  # noqa: S608

    def record_nothing(self, item: str, why: Why) -> None:
        """Note that an item is no instance that could be kept, and why."""
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO items VALUES (?, '', ?)", (item, why))

    def take_anew(self, reasons: Iterable[Why]) -> dict[str, str]:
        """Have items with some reasons not be known any more, nor the instances that are quarantined for one.

        Returns:
            Items whose instance waits for a person, and stays for as long as no copy comes: instance by item; `drop` it then.
        """
        whys = tuple(sorted(reasons))
        among = f"({', '.join('?' * len(whys))})"
        of_items = f"instance IN (SELECT instance FROM instances WHERE why IN {among}"  # noqa: S608
        with self._database:
            rows = self._database.execute(
                f"SELECT item, instance FROM items WHERE {of_items} AND verdict = ?)",  # noqa: S608
                (*whys, Verdict.REVIEW),
            ).fetchall()
            self._database.execute(f"DELETE FROM items WHERE {of_items})", whys)  # noqa: S608
            self._database.execute(f"DELETE FROM items WHERE why IN {among}", whys)  # noqa: S608
            self._database.execute(
                f"DELETE FROM instances WHERE why IN {among} AND verdict = ?",  # noqa: S608
                (*whys, Verdict.QUARANTINED),
            )
        return dict(rows)

    def drop(self, instance: str) -> None:
        """Forget one instance, which is about to be read anew."""
        with self._database:
            self._database.execute("DELETE FROM instances WHERE instance = ?", (instance,))

    def merges(self) -> dict[str, str]:
        """Return the merges of the last ingest: pseudonym of a second id -> that of the id it is the same as."""
        return dict(self._database.execute("SELECT second, first FROM merges"))

    def record_merges(self, merges: Mapping[str, str]) -> None:
        """Keep the merges of this ingest, in pseudonyms."""
        with self._database:
            self._database.execute("DELETE FROM merges")
            self._database.executemany("INSERT INTO merges VALUES (?, ?)", sorted(merges.items()))

    def record_said(self, rows: Iterable[LabelRow]) -> None:
        """Keep what structured reports say of exams, in pseudonyms."""
        values = [(row.exam, row.accession, row.patient, row.label) for row in rows]
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO said VALUES (?, ?, ?, ?)", values)

    def said(self) -> tuple[LabelRow, ...]:
        """Return what structured reports say of exams."""
        rows = self._database.execute("SELECT label, exam, accession, patient FROM said ORDER BY 2, 3, 4, 1")
        return tuple(LabelRow(*row) for row in rows)

    def find(self, instance: str) -> Entry | None:
        """Return what became of an instance, None if it is not known."""
        row = self._database.execute("SELECT * FROM instances WHERE instance = ?", (instance,)).fetchone()
        return _entry(row) if row else None

    def entries(self, verdict: Verdict | None = None) -> Iterator[Entry]:
        """Yield all instances, or those of a verdict, by patient, exam and instance."""
        where, given = ("WHERE verdict = ?", (verdict,)) if verdict else ("", ())
        rows = self._database.execute(f"SELECT * FROM instances {where} ORDER BY patient, exam, instance", given)  # noqa: S608
        for row in rows:
            yield _entry(row)

    def decide(self, entry: Entry, verdict: Verdict, why: Why | None) -> Entry:
        """Change the verdict on an instance that is known and return it as it is now."""
        changed = replace(entry, verdict=verdict, why=why)
        self.record("", changed)
        return changed

    def ambiguous_patients(self) -> set[str]:
        """Return the patients under whose id more than one person seems to lie.

        That is, with more than one birth date; where no birth date is given, with more than one name. People change their
        names, not their birth dates.
        """
        rows = self._database.execute(
            "SELECT patient, COUNT(DISTINCT NULLIF(birth, '')), SUM(birth = ''), COUNT(DISTINCT NULLIF(person, '')) "
            "FROM instances GROUP BY patient"
        )
        return {patient for patient, births, unborn, names in rows if births > 1 or (unborn and names > 1)}

    def counts(self) -> Counter[tuple[Verdict, str]]:
        """Return how many items came to which verdict for which reason."""
        found: Counter[tuple[Verdict, str]] = Counter()
        for verdict, why, count in self._database.execute("SELECT verdict, why, COUNT(*) FROM instances GROUP BY 1, 2"):
            found[Verdict(verdict), why or ""] += count
        rows = self._database.execute("SELECT why, COUNT(*) FROM items WHERE why IS NOT NULL GROUP BY why")
        for why, count in rows:
            found[verdict_of(Why(why)), why] += count
        return found

    def instances_of(self, patient: str) -> tuple[str, ...]:
        """Return a patient's instances."""
        rows = self._database.execute("SELECT instance FROM instances WHERE patient = ? ORDER BY 1", (patient,))
        return tuple(instance for (instance,) in rows)

    def forget(self, patient: str) -> None:
        """Remove a patient; nothing of it stays in the file's free pages."""
        of_patient = "SELECT {} FROM instances WHERE patient = ? AND {} != ''"
        with self._database:
            for column in ("exam", "accession"):
                self._database.execute(
                    f"DELETE FROM said WHERE {column} IN ({of_patient.format(column, column)})",  # noqa: S608
                    (patient,),
                )
            self._database.execute(
                "DELETE FROM items WHERE instance IN (SELECT instance FROM instances WHERE patient = ?)", (patient,)
            )
            self._database.execute("DELETE FROM instances WHERE patient = ?", (patient,))
            self._database.execute("DELETE FROM said WHERE patient = ?", (patient,))
            self._database.execute("DELETE FROM merges WHERE ? IN (second, first)", (patient,))
        self._database.execute("VACUUM")


@contextlib.contextmanager
def open_journal(folder: Path) -> Iterator[Journal]:
    """Open a folder's journal, made if there is none, and close it at the end.

    Raises:
        IngestError: it is damaged, of another version, or cannot be written.
    """
    path = folder / JOURNAL_FILE
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_TIMEOUT_SECONDS)) as database:
            path.chmod(0o600)
            # What is deleted is overwritten; a row that was committed is there after a power cut.
            database.execute("PRAGMA secure_delete = ON")
            database.execute("PRAGMA synchronous = FULL")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                # Another process may have made them by now.
                database.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            elif version != SCHEMA_VERSION:
                raise IngestError(
                    f"{path} has version {version}; this EchoFed knows version {SCHEMA_VERSION}.",
                    remedy="Use the EchoFed it was made with, or ingest into a new folder.",
                )
            yield Journal(database)
    except sqlite3.Error as error:
        raise IngestError(
            f"{path} cannot be used: {error}.", remedy="Free some disk space and check the disk; then ingest again."
        ) from error


def _entry(row: tuple[Any, ...]) -> Entry:
    instance, patient, exam, accession, person, birth, verdict, why, label, device, facts, frames = row
    return Entry(
        instance=instance,
        patient=patient,
        exam=exam,
        accession=accession,
        person=person,
        birth=birth,
        verdict=Verdict(verdict),
        why=Why(why) if why else None,
        label=label,
        device=device,
        facts=json.loads(facts),
        frames=tuple(json.loads(frames)),
    )
