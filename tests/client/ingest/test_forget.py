"""Forgetting: nothing of a patient is left anywhere, and nothing of it comes back."""

import csv
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echofed.client import flower, forgotten
from echofed.client.erasures import ERASURES_PATH, note_erasure, read_erasures
from echofed.client.forgotten import add_forgotten, allow_again, read_forgotten
from echofed.client.ingest.encryption import make_store_key
from echofed.client.ingest.errors import FrameStoreError, IngestError
from echofed.client.ingest.forget import Erased, forget, traces
from echofed.client.ingest.frame_store import frame_files, write_frame
from echofed.client.ledger import open_ledger, read_ledger
from echofed.client.policy import SitePolicy
from echofed.client.reasons import Reason
from echofed.client.registry import open_registry, read_records
from echofed.client.settings import SiteSettings
from echofed.client.site import Site, create_site, open_site
from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.errors import LedgerError, RegistrationError, StateFolderError
from echofed.protocol.key_files import PASSPHRASE_VARIABLE
from echofed.protocol.state_folder import locked
from echofed.protocol.study_folder import PARAMETERS_FILE, STUDY_FILE
from echofed.simulations.identity import declare_task
from echofed.simulations.initial import write_initial_parameters
from tests.client.conftest import Hospital
from tests.client.test_ledger import spend
from tests.small_simulations import write_study
from tests.studies import make_study as make_small_study

PATIENTS = [f"PSEUDONYM{number:011d}" for number in range(6)]
GONE, *KEPT = PATIENTS
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass
class Ingested:
    """A site whose data came from an ingest, with a journal of its own."""

    state: Path
    hospital: Hospital
    key: bytes | None = None
    rows: list[dict[str, str]] = field(default_factory=list)

    @property
    def ingest(self) -> Path:
        return self.state / "ingest"

    @property
    def journal(self) -> Path:
        return self.ingest / "journal.sqlite"

    def add(self, patient: str, name: str, *, listed: bool = True) -> Path:
        pixels = self.hospital.picture(len(self.rows))
        path = write_frame(self.ingest, name, pixels, {"patient": patient}, self.key)
        row = {"file": str(path.relative_to(self.ingest)), "patient_id": patient, "label": "benign", "exam": "e"}
        if listed:
            self.rows.append(row)
        with closing(sqlite3.connect(self.journal)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS instances (patient TEXT, frames TEXT)")
            database.execute("INSERT INTO instances VALUES (?, ?)", (patient, row["file"]))
        return path

    def write_index(self) -> None:
        with (self.ingest / "index.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)

    def site(self) -> Site:
        site = create_site(self.state, SiteSettings(name="a", data_folder=self.ingest), bytes(32))
        site.register()
        return site

    def erase(self, patients: frozenset[str]) -> int:
        """Remove patients from the journal, as the ingest's own does, and their cases from the queue."""
        with closing(sqlite3.connect(self.journal)) as database:
            database.execute("PRAGMA secure_delete = ON")
            with database:
                gone = [
                    database.execute("DELETE FROM instances WHERE patient = ?", (one,)).rowcount for one in patients
                ]
            database.execute("VACUUM")
        return sum(gone)


def ingested(tmp_path: Path, hospital: Hospital, *, sealed: bool) -> Ingested:
    made = Ingested(tmp_path / "state", hospital)
    made.ingest.mkdir(parents=True)
    made.key = make_store_key(made.ingest, "passphrase") if sealed else None
    for number, patient in enumerate(PATIENTS):
        for frame in range(3):
            made.add(patient, f"i{number}-{frame}")
    made.write_index()
    made.site()
    return made


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    """One whose images were not ingested."""
    (tmp_path / "data").mkdir()
    return Hospital(tmp_path / "data", tmp_path / "state")


@pytest.fixture(params=[False, True], ids=["plain", "sealed"])
def data(tmp_path: Path, hospital: Hospital, request: Any, monkeypatch: pytest.MonkeyPatch) -> Ingested:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "a")
    return ingested(tmp_path, hospital, sealed=request.param)


@pytest.fixture
def plain(tmp_path: Path, hospital: Hospital) -> Ingested:
    return ingested(tmp_path, hospital, sealed=False)


def everyone_trains(make_study: Any) -> Any:
    return make_study(evaluation={"validation_fraction": 0.0, "test_fraction": 0.0})


def holding(folder: Path, text: bytes) -> set[str]:
    """Return the files that hold some bytes in their name or content; read whole, unlike `traces`."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name for path in files if text in path.read_bytes() or text in str(path).encode()}


def test_nothing_of_a_patient_is_left(data: Ingested, make_study: Any) -> None:
    study = everyone_trains(make_study)
    site = open_site(data.state)
    images = np.array(site.examples(study, "training").images)
    site.cached_features(study, "encoder", lambda: [np.zeros((18, 4), np.float32)])
    unlisted = data.add(GONE, "orphan", listed=False)
    with open_audit_log(data.state, owner="a") as log:
        log.append("started")
    assert len(holding(data.state, GONE.encode())) >= 3

    found = forget(data.state, [f" {GONE} "], [data.erase], now=lambda: NOW)

    assert found == Erased(1, frames=4, index_rows=3, images=3, caches=found.caches, others=4)
    assert found.caches == (0 if data.key else 2)
    assert holding(data.state, GONE.encode()) == set()
    assert holding(data.state, GONE.encode("utf-16-le")) == set()
    assert not unlisted.exists()
    assert len(list(frame_files(data.ingest))) == 15
    listed = csv.DictReader((data.ingest / "index.csv").read_text().splitlines())
    assert {row["patient_id"] for row in listed} == set(KEPT)
    with open_registry(data.state) as database:
        assert {record.patient for record in read_records(database)} == set(KEPT)
    after = open_site(data.state).examples(study, "training")
    assert after.patients == 5
    np.testing.assert_array_equal(after.images, images[3:])
    assert not any(images[at, 10].tobytes() in path.read_bytes() for path in data.state.rglob("*.*") for at in range(3))


def test_the_thumbnails_and_rows_in_the_registry_are_overwritten(plain: Ingested) -> None:
    with open_registry(plain.state) as database:
        where = "path IN (SELECT path FROM images WHERE patient = ?)"
        secrets = [bytes(one) for (one,) in database.execute(f"SELECT thumbnail FROM facts WHERE {where}", (GONE,))]
        secrets += [
            bytes(one) for (one,) in database.execute("SELECT pixel_key FROM images WHERE patient = ?", (GONE,))
        ]
    assert len(secrets) == 6
    assert all(holding(plain.state, secret) for secret in secrets)
    forget(plain.state, [GONE], [plain.erase])
    assert not any(holding(plain.state, secret) for secret in secrets)


def test_a_forgotten_patient_does_not_come_back(plain: Ingested) -> None:
    forget(plain.state, [GONE], [plain.erase])
    known = read_forgotten(plain.state)
    assert GONE in known
    assert f" {GONE} " in known
    assert not any(patient in known for patient in KEPT)
    plain.add(GONE, "again")
    plain.write_index()
    report = open_site(plain.state).register()
    assert report.quarantined[Reason.FORGOTTEN] == 4
    assert report.patients == 5
    assert allow_again(plain.state, KEPT) == 0
    assert allow_again(plain.state, [GONE]) == 1
    assert GONE not in read_forgotten(plain.state)
    assert open_site(plain.state).register().patients == 6


def test_a_forgetting_that_fails_takes_effect_at_once_and_can_be_finished(plain: Ingested, make_study: Any) -> None:
    def fail(patients: frozenset[str]) -> int:
        raise OSError("killed here")

    study = everyone_trains(make_study)
    with pytest.raises(OSError, match="killed here"):
        forget(plain.state, [GONE], [fail])
    assert len(list(frame_files(plain.ingest))) == 18
    assert open_site(plain.state).examples(study, "training").patients == 5
    assert read_erasures(plain.state) == ()
    assert forget(plain.state, [GONE], [plain.erase]).frames == 3
    assert forget(plain.state, [GONE], [plain.erase]) == Erased(1, 0, 0, 0, 0, 0)
    assert holding(plain.state, GONE.encode()) == set()


def test_what_is_left_elsewhere_is_said(plain: Ingested) -> None:
    (plain.ingest / "review").mkdir()
    note = plain.ingest / "review" / "case.json"
    note.write_bytes(b"x" * (2**20 - 7) + GONE.encode("utf-16-le"))
    with pytest.raises(IngestError, match=r"is left in ingest/journal\.sqlite, ingest/review/case\.json\."):
        forget(plain.state, [GONE])
    with pytest.raises(IngestError, match=r"is left in ingest/review/case\.json\."):
        forget(plain.state, [GONE], [plain.erase])
    assert read_erasures(plain.state) == ()
    note.rename(note.with_name(f"{GONE}.json"))
    assert list(traces(plain.state, [GONE])) == [note.with_name(f"{GONE}.json")]
    note.with_name(f"{GONE}.json").unlink()
    forget(plain.state, [GONE], [plain.erase])
    assert len(read_erasures(plain.state)) == 1


def test_frames_that_nobody_can_read_belong_to_whom_the_index_says(data: Ingested) -> None:
    mine, other = data.ingest / data.rows[0]["file"], data.ingest / data.rows[-1]["file"]
    for path in (mine, other):
        path.write_bytes(b"damaged")
    forget(data.state, [GONE], [data.erase])
    assert not mine.exists()
    assert other.exists()
    unlisted = data.add(KEPT[0], "unlisted", listed=False)
    forget(data.state, [GONE], [data.erase])
    unlisted.write_bytes(b"damaged")
    with pytest.raises(FrameStoreError, match="1 stored frames cannot be read"):
        forget(data.state, [GONE], [data.erase])
    assert unlisted.exists()


def test_without_its_key_no_frame_is_taken_for_nobodys(data: Ingested) -> None:
    if data.key is None:
        (data.ingest / "index.csv").unlink()
        assert forget(data.state, [GONE], [data.erase]).frames == 3
        return
    (data.ingest / "store.key").unlink()
    (data.ingest / "index.csv").unlink()
    with pytest.raises(FrameStoreError, match="18 stored frames cannot be read"):
        forget(data.state, [GONE], [data.erase])
    assert len(list(frame_files(data.ingest))) == 18


def test_the_ledger_goes_on_and_the_erasure_is_marked(plain: Ingested) -> None:
    with open_ledger(plain.state, SitePolicy()) as ledger:
        spend(ledger, 1)
    with open_audit_log(plain.state, owner="a") as log:
        forget(plain.state, [GONE, KEPT[0]], [plain.erase], now=lambda: NOW)
        (entry,) = log.entries()
        log.verify()
    with open_ledger(plain.state, SitePolicy()) as ledger:
        spend(ledger, 2)
        forget(plain.state, [KEPT[1]], [plain.erase], now=lambda: NOW)
    chain = read_ledger(plain.state, SitePolicy())
    assert chain is not None
    first, second = read_erasures(plain.state)
    assert (first.patients, first.ledger_entries, first.ledger_hash) == (2, 1, chain.hash_at(1))
    assert (second.patients, second.ledger_entries, second.ledger_id) == (1, 2, chain.ledger_id)
    assert first.written_at == "2026-01-02T03:04:05+00:00"
    assert entry.event == "forgotten"
    assert entry.facts["patients"] == 2
    assert entry.facts["erasure"] == first.hash
    assert set(entry.facts["tombstones"]) < read_forgotten(plain.state).tombstones


@pytest.mark.parametrize(
    ("before", "after"), [(b'"patients":1', b'"patients":2'), (b"2026", b"2025"), (b"\n", b""), (b'{"ledger', b"{")]
)
def test_an_edited_note_is_noticed(tmp_path: Path, before: bytes, after: bytes) -> None:
    for _ in range(3):
        note_erasure(tmp_path, 1, now=lambda: NOW)
    path = tmp_path / ERASURES_PATH
    assert [erasure.number for erasure in read_erasures(tmp_path)] == [1, 2, 3]
    path.write_bytes(path.read_bytes().replace(before, after, 1))
    with pytest.raises(LedgerError):
        read_erasures(tmp_path)


def test_a_deleted_note_is_noticed(tmp_path: Path) -> None:
    for _ in range(3):
        note_erasure(tmp_path, 1)
    path = tmp_path / ERASURES_PATH
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(LedgerError, match="Note 1"):
        read_erasures(tmp_path)


def test_nobody_is_forgotten_while_an_ingest_runs_or_without_a_name(plain: Ingested) -> None:
    with locked(plain.ingest, "ingest"), pytest.raises(StateFolderError, match="runs the ingest"):
        forget(plain.state, [GONE])
    for patients in ([], [" "], [GONE, ""]):
        with pytest.raises(IngestError, match="No patient"):
            forget(plain.state, patients)
    assert not read_forgotten(plain.state).tombstones


def test_a_damaged_list_of_the_forgotten_is_not_taken_for_none(plain: Ingested) -> None:
    add_forgotten(plain.state, [GONE])
    content = (plain.state / forgotten.FILE_NAME).read_bytes()
    assert GONE.encode() not in content
    assert (plain.state / forgotten.FILE_NAME).stat().st_mode & 0o777 == 0o600
    (plain.state / forgotten.FILE_NAME).write_bytes(content[:-9])
    for use in (open_site(plain.state).register, lambda: forget(plain.state, [GONE])):
        with pytest.raises(RegistrationError, match="damaged"):
            use()


def test_images_that_are_the_hospitals_own_stay_but_take_no_part(hospital: Hospital, make_study: Any) -> None:
    hospital.fill(patients=5, images=2)
    site = hospital.registered()
    site.examples(everyone_trains(make_study), "training")
    found = forget(hospital.state, ["p1"])
    assert (found.frames, found.index_rows, found.images) == (0, 0, 2)
    assert len(list(hospital.folder.glob("*.png"))) == 10
    assert open_site(hospital.state).examples(everyone_trains(make_study), "training").patients == 4
    assert open_site(hospital.state).register().quarantined == {Reason.FORGOTTEN: 2}


def test_a_running_node_leaves_a_forgotten_patient_out_of_the_next_round(plain: Ingested, tmp_path: Path) -> None:
    study = make_small_study(evaluation={"validation_fraction": 0.0, "test_fraction": 0.0})
    folder = tmp_path / "study"
    folder.mkdir()
    declare_task()
    write_study(folder / STUDY_FILE, study)
    write_initial_parameters(study, folder / PARAMETERS_FILE, 0)

    def patients() -> int:
        node = flower._participation(folder, plain.state, 0, forgotten.stamp(plain.state))
        return node.site.count_patients(study)["training"]

    assert patients() == 6
    forget(plain.state, [GONE], [plain.erase])
    assert patients() == 5
    allow_again(plain.state, [GONE])
    assert patients() == 5  # nothing of the patient is there any more
