"""What an ingest is told again and again: filters, merges and reasons that have changed, copies, and who must not pass."""

import os
import shutil
from pathlib import Path

import pytest

from echofed.client.ingest import pipeline
from echofed.client.ingest.arrival_check import check_arrival
from echofed.client.ingest.dataset import read_dataset
from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.forget import forget
from echofed.client.ingest.forgotten_exams import erase_from_ingest, pseudonyms_of
from echofed.client.ingest.frame_store import frame_files
from echofed.client.ingest.journal import open_journal
from echofed.client.ingest.labels import FolderRule, LabelSettings
from echofed.client.ingest.outcomes import SetAsideError, Verdict, Why
from echofed.client.ingest.pipeline import ingest, ingest_folder
from echofed.client.ingest.pseudonyms import open_pseudonyms
from echofed.client.ingest.review.queue import cases
from echofed.client.ingest.settings import IngestSettings
from echofed.client.ingest.sources.filters import Filters, Selection
from echofed.client.ingest.sources.settings import FolderSource, ReceivedSource
from echofed.simulations.phantoms.dicom_files import DicomSite
from tests.client.ingest.small_hospital import changed_copy, clean_files, entries, hidden_header, label_table

ACCEPTED = (Verdict.ACCEPTED, "")


def test_a_header_that_sources_cannot_step_through_passes_no_filter(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings
) -> None:
    path = hidden_header(changed_copy(clean_files(hospital)[0], tmp_path / "export" / "1.dcm"))
    settings = alone.model_copy(update={"filters": Filters(stations=("NOWHERE",))})
    folder = tmp_path / "ingest"
    assert ingest_folder(folder, path, settings).read == {(Verdict.REFUSED, Why.FILTERED): 1}
    assert list(frame_files(folder)) == []
    # It was not noted: with other filters it is taken.
    assert ingest_folder(folder, path, alone).read == {ACCEPTED: 1}


def test_a_header_that_sources_cannot_step_through_is_of_the_patient_announced(
    hospital: DicomSite, tmp_path: Path
) -> None:
    path = hidden_header(changed_copy(clean_files(hospital)[0], tmp_path / "1.dcm", PatientID="MARTINEZ-4477"))
    dataset, everything = read_dataset(path), Selection(Filters())
    for announced in ("MARTINEZ-4477 ", "", None):
        check_arrival(dataset, everything, announced)
    for other in ("SOMEBODY-ELSE", "MARTÍNEZ-4477"):
        with pytest.raises(SetAsideError, match=Why.WRONG_PATIENT):
            check_arrival(dataset, everything, other)
    dataset.PatientID = "MARTÍNEZ-4477"
    with pytest.raises(SetAsideError, match=Why.WRONG_PATIENT):
        check_arrival(dataset, everything, "MARTINEZ-4477")
    uid = str(dataset.StudyInstanceUID)
    check_arrival(dataset, Selection(Filters(), {uid}, frozenset()), None)
    with pytest.raises(SetAsideError, match=Why.FILTERED):
        check_arrival(dataset, Selection(Filters(), {"2.25.1"}, frozenset()), None)


def test_an_only_copy_that_may_pass_later_is_held(hospital: DicomSite, tmp_path: Path, alone: IngestSettings) -> None:
    first, second, third = clean_files(hospital)[:3]
    folder, received = tmp_path / "ingest", tmp_path / "ingest" / "received"
    changed_copy(first, received / "1.dcm")
    hidden_header(changed_copy(second, received / "2.dcm"))
    changed_copy(third, received / "3.dcm", Modality="CT")
    source = ReceivedSource(path=received)
    report = ingest(folder, source, alone.model_copy(update={"filters": Filters(stations=("NOWHERE",))}))
    assert report.read == {(Verdict.REFUSED, Why.FILTERED): 2, (Verdict.REFUSED, Why.OTHER_MODALITY): 1}
    assert report.held == 2
    assert "2  of these files are held" in report.text()
    held = received / "held"
    assert sorted(path.name for path in received.rglob("*.dcm")) == ["1.dcm", "2.dcm"]
    for path in held.iterdir():
        path.rename(received / path.name)
    report = ingest(folder, source, alone.model_copy(update={"seconds_per_instance": 1e-6}))
    assert report.read == {(Verdict.QUARANTINED, Why.TIMED_OUT): 2}
    assert len(list(held.iterdir())) == 2
    for path in held.iterdir():
        path.rename(received / path.name)
    report = ingest(folder, source, alone)
    assert (report.read, report.held) == ({ACCEPTED: 2}, 0)
    assert list(received.rglob("*.dcm")) == []


def test_what_is_held_of_a_forgotten_patient_goes(hospital: DicomSite, tmp_path: Path) -> None:
    folder, (path, *_) = tmp_path / "ingest", clean_files(hospital)
    held = changed_copy(path, folder / "received" / "held" / "1.dcm", PatientID="HELD-5521")
    open_pseudonyms(folder)
    forget(tmp_path, pseudonyms_of(folder, "HELD-5521"), [erase_from_ingest(folder)])
    assert not held.exists()


def test_merges_of_patients_who_were_ingested_come_too_late(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings
) -> None:
    path, export, folder = clean_files(hospital)[0], tmp_path / "export", tmp_path / "ingest"
    changed_copy(path, export / "1.dcm", PatientID="FIRST-3318")
    changed_copy(path, export / "2.dcm", PatientID="SECOND-7781", SOPInstanceUID="2.25.9001")
    ingest_folder(folder, export, alone)
    merges = tmp_path / "merges.csv"
    settings = alone.model_copy(update={"merges": merges})
    merges.write_text("patient_id,same_as\nNEVER-SEEN,FIRST-3318\n")
    ingest_folder(folder, export, settings)
    merges.write_text("patient_id,same_as\nNEVER-SEEN,FIRST-3318\nSECOND-7781,FIRST-3318\n")
    for _ in range(2):
        with pytest.raises(IngestError, match="merges changed for 1 patient ids"):
            ingest_folder(folder, export, settings)
    with pytest.raises(IngestError, match="merges changed"):
        ingest(folder, None, alone)
    merges.write_text("patient_id,same_as\nNEVER-SEEN,FIRST-3318\n")
    assert ingest(folder, None, settings).training_set.patients == 2


def test_forgetting_one_of_two_ids_forgets_the_patient(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings
) -> None:
    path, export, folder = clean_files(hospital)[0], tmp_path / "export", tmp_path / "ingest"
    for number, patient in enumerate(("FIRST-3318", "SECOND-7781", "THIRD-2209")):
        changed_copy(path, export / f"{number}.dcm", PatientID=patient, SOPInstanceUID=f"2.25.900{number}")
    ingest_folder(folder, export, alone)
    (folder / "ingest.yaml").write_text(f"merges: {tmp_path}/merges.csv\n")
    (tmp_path / "merges.csv").write_text("patient_id,same_as\nSECOND-7781,FIRST-3318\nFIRST-3318,THIRD-2209\n")
    patients = pseudonyms_of(folder, "SECOND-7781")
    assert patients == pseudonyms_of(folder, "THIRD-2209") == {entry.patient for entry in entries(folder)}
    assert forget(tmp_path, patients, [erase_from_ingest(folder)]).others == 3
    assert list(frame_files(folder)) == []
    settings = alone.model_copy(update={"merges": tmp_path / "merges.csv"})
    report = ingest(folder, FolderSource(path=export), settings, state_folder=tmp_path)
    assert report.read == {(Verdict.REFUSED, Why.FORGOTTEN): 3}
    for nobody in ("", "  ", "^^^HOSPITAL"):
        with pytest.raises(IngestError, match="No patient"):
            pseudonyms_of(folder, nobody)


def test_two_people_under_one_id_are_counted_so_and_read_anew_once_put_right(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings
) -> None:
    first, *_, last = clean_files(hospital)
    export, folder = tmp_path / "export", tmp_path / "ingest"
    changed_copy(first, export / "1.dcm", PatientID="SHARED-4410", PatientBirthDate="19310203")
    changed_copy(last, export / "2.dcm", PatientID="SHARED-4410", PatientBirthDate="19720817")
    report = ingest_folder(folder, export, alone)
    assert report.read == {(Verdict.QUARANTINED, Why.TWO_PATIENTS): 2}
    changed_copy(last, export / "2.dcm", PatientID="OTHER-9926", PatientBirthDate="19720817")
    source = FolderSource(path=export)
    assert ingest(folder, source, alone).training_set.patients == 0
    report = ingest(folder, source, alone, again=True)
    assert report.read == {ACCEPTED: 2}
    assert report.training_set.patients == 2


def test_what_timed_out_and_what_waited_for_text_recognition_is_read_anew(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    export, folder = tmp_path / "export", tmp_path / "ingest"
    changed_copy(clean_files(hospital)[0], export / "1.dcm")
    slow = alone.model_copy(update={"seconds_per_instance": 1e-6})
    source = FolderSource(path=export)
    assert ingest(folder, source, slow).read == {(Verdict.QUARANTINED, Why.TIMED_OUT): 1}
    assert not ingest(folder, source, alone).read
    assert ingest(folder, source, alone, again=True).read == {ACCEPTED: 1}
    written = next(row for row in hospital.rows if row.fault == "words" and row.kind == "still")
    changed_copy(hospital.export / written.file, export / "2.dcm")
    changed_copy(hospital.export / written.file, export / "3.dcm", SOPInstanceUID="2.25.9005")
    ingest(folder, source, alone)
    # As if text recognition had not been installed.
    with open_journal(folder) as journal:
        for entry in list(journal.entries(Verdict.REVIEW)):
            journal.decide(entry, Verdict.REVIEW, Why.NO_TEXT_CHECK)
    (export / "3.dcm").unlink()
    report = ingest(folder, source, alone, again=True)
    assert report.read.total() == 1
    assert report.copies == 0
    # The one that did not come again still waits.
    assert {entry.why for entry in entries(folder) if entry.verdict is Verdict.REVIEW} >= {Why.NO_TEXT_CHECK}
    assert len(cases(folder / "review")) == 2


def test_copies_are_counted_as_copies(hospital: DicomSite, tmp_path: Path, alone: IngestSettings) -> None:
    export, folder = tmp_path / "export", tmp_path / "ingest"
    changed_copy(clean_files(hospital)[0], export / "1.dcm")
    shutil.copy(export / "1.dcm", export / "2.dcm")
    report = ingest_folder(folder, export, alone)
    assert (report.read, report.copies) == ({ACCEPTED: 1}, 1)
    assert "1 instances read" in report.text()
    assert "1  more files are copies" in report.text()


def test_folders_of_any_name_give_labels(hospital: DicomSite, tmp_path: Path, alone: IngestSettings) -> None:
    first, second, third, fourth = clean_files(hospital)[:4]
    export, folder = tmp_path / "export", tmp_path / "ingest"
    changed_copy(first, export / "be|nign" / "1.dcm", StudyInstanceUID="2.25.91")
    odd = Path(os.fsdecode(bytes(export) + b"/b\xe9nin"))
    odd.mkdir()
    shutil.copy(changed_copy(second, tmp_path / "2.dcm", StudyInstanceUID="2.25.92"), odd / "2.dcm")
    inside = tmp_path / "inside"
    changed_copy(third, inside / "malignant" / "3.dcm", StudyInstanceUID="2.25.93")
    (export / "cysts").mkdir()
    shutil.make_archive(str(export / "cysts" / "a"), "zip", inside)
    flat = tmp_path / "flat"
    changed_copy(fourth, flat / "4.dcm", StudyInstanceUID="2.25.94")
    shutil.make_archive(str(export / "cysts" / "b"), "zip", flat)
    names = {"be|nign": "benign", "b\N{REPLACEMENT CHARACTER}nin": "unclear", "malignant": "malignant", "cysts": "cyst"}
    labels = LabelSettings(folder=FolderRule(labels=names))
    report = ingest_folder(folder, export, alone.model_copy(update={"labels": labels}))
    assert report.read == {ACCEPTED: 4}
    assert {entry.label for entry in entries(folder)} == set(names.values())


def test_tables_are_read_before_anything_is_fetched(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(pipeline, "fetch_all", fetch)
    tables = (label_table(tmp_path / "none.csv"),)
    with pytest.raises(IngestError, match=r"none\.csv"):
        ingest_folder(
            tmp_path / "a", clean_files(hospital)[0], alone.model_copy(update={"labels": LabelSettings(tables=tables)})
        )
    with pytest.raises(IngestError, match="merges"):
        ingest_folder(
            tmp_path / "b", clean_files(hospital)[0], alone.model_copy(update={"merges": tmp_path / "none.csv"})
        )


def test_what_is_no_ultrasound_is_counted_as_what_it_is(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings
) -> None:
    path, export, folder = clean_files(hospital)[0], tmp_path / "export", tmp_path / "ingest"
    for modality in ("CT", "SR", "DOC"):
        changed_copy(path, export / f"{modality}.dcm", Modality=modality)
    report = ingest_folder(folder, export, alone)
    assert set(report.read) == {(Verdict.REFUSED, why) for why in (Why.OTHER_MODALITY, Why.REPORT, Why.DOCUMENT)}
    # They are looked at again: filters may be others next time.
    with open_journal(folder) as journal:
        assert journal.counts().total() == 0
