"""The journal: an instance has one verdict, a killed ingest goes on, a forgotten patient leaves no trace."""

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.journal import JOURNAL_FILE, Entry, open_journal
from echofed.client.ingest.outcomes import Verdict, Why

ENTRY = Entry(
    instance="i1",
    patient="p1",
    exam="e1",
    accession="a1",
    person="n1",
    birth="b1",
    verdict=Verdict.ACCEPTED,
    why=None,
    label="",
    device="aquila A1",
    facts={"vendor": "aquila"},
    frames=({"file": "frames/i1/i1-0001.safetensors", "height": 40},),
)


def test_what_was_recorded_is_found_and_replaced(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        assert not journal.knows("item")
        journal.record("item", ENTRY)
        assert journal.knows("item")
        assert journal.find("i1") == ENTRY
        assert journal.find("i2") is None
    with open_journal(tmp_path) as journal:
        assert list(journal.entries(Verdict.ACCEPTED)) == [ENTRY]
        changed = journal.decide(ENTRY, Verdict.QUARANTINED, Why.REJECTED)
        assert list(journal.entries()) == [changed]
        assert list(journal.entries(Verdict.ACCEPTED)) == []
        journal.record_nothing("paper", Why.DOCUMENT)
        assert journal.counts() == {
            (Verdict.QUARANTINED, Why.REJECTED): 1,
            (Verdict.REFUSED, Why.DOCUMENT): 1,
        }


def test_two_birth_dates_or_without_them_two_names_make_a_patient_ambiguous(tmp_path: Path) -> None:
    def entry(number: int, patient: str, person: str, birth: str) -> Entry:
        return dataclasses.replace(ENTRY, instance=f"i{number}", patient=patient, person=person, birth=birth)

    given = [("born twice", "n1", "b1"), ("born twice", "n1", "b2"), ("married", "n1", "b1"), ("married", "n2", "b1")]
    given += [("two names", "n1", ""), ("two names", "n2", "b1"), ("half said", "n1", "b1"), ("half said", "", "")]
    with open_journal(tmp_path) as journal:
        for number, (patient, person, birth) in enumerate(given):
            journal.record(f"item{number}", entry(number, patient, person, birth))
        assert journal.ambiguous_patients() == {"born twice", "two names"}


def test_nothing_of_a_forgotten_patient_stays_in_the_file(tmp_path: Path) -> None:
    secret = dataclasses.replace(ENTRY, patient="patientpseudonym", facts={"text": "x" * 10_000})
    with open_journal(tmp_path) as journal:
        journal.record("item", secret)
        journal.record("other", dataclasses.replace(ENTRY, instance="i2", patient="p2"))
        assert journal.instances_of("patientpseudonym") == ("i1",)
        journal.forget("patientpseudonym")
        assert not journal.knows("item")
        assert [entry.patient for entry in journal.entries()] == ["p2"]
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"patientpseudonym" not in content
    assert b"xxxxxxxx" not in content


def test_a_process_killed_while_it_writes_leaves_whole_entries(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import dataclasses, sys
        from pathlib import Path
        from echofed.client.ingest.journal import open_journal
        from tests.client.ingest.test_journal import ENTRY
        with open_journal(Path(sys.argv[1])) as journal:
            for number in range(10**6):
                journal.record(f"item{number}", dataclasses.replace(ENTRY, instance=f"i{number}"))
    """)
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[3])
    for _ in range(600):
        if (tmp_path / JOURNAL_FILE).exists() and _items(tmp_path) > 20:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with open_journal(tmp_path) as journal:
        found = {entry.instance for entry in journal.entries()}
        assert len(found) > 20
        assert all(journal.knows(f"item{instance[1:]}") for instance in found)
        assert not journal.knows(f"item{len(found)}")


def _items(folder: Path) -> int:
    try:
        with open_journal(folder) as journal:
            return sum(1 for _ in journal.entries())
    except IngestError:
        return 0


def test_many_may_make_the_journal_at_once(tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def make(folder: Path) -> int:
        together.wait()
        with open_journal(folder) as journal:
            return sum(1 for _ in journal.entries())

    with ThreadPoolExecutor(4) as pool:
        for number in range(40):
            folder = tmp_path / str(number)
            folder.mkdir()
            assert list(pool.map(make, [folder] * 4)) == [0] * 4


def test_damaged_and_newer_journals_are_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path):
        pass
    with sqlite3.connect(tmp_path / JOURNAL_FILE) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(IngestError, match="version 9"), open_journal(tmp_path):
        pass
    (tmp_path / JOURNAL_FILE).write_bytes(b"not a database at all" * 100)
    with pytest.raises(IngestError, match="cannot be used"), open_journal(tmp_path):
        pass
