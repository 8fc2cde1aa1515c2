"""What befalls an ingest over the years: copies, mixed-up patients, new labels, masks, leaks, killed processes."""

import csv
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pydicom
import pytest

from echofed.client.ingest import pipeline
from echofed.client.ingest.errors import IngestError, LeakError
from echofed.client.ingest.frame_store import frame_files, read_frame
from echofed.client.ingest.instance import Frame, refuse_leaks
from echofed.client.ingest.journal import open_journal
from echofed.client.ingest.labels import LabelSettings
from echofed.client.ingest.last_search import WITHHELD_FILE, search_stored
from echofed.client.ingest.leaks import Search, find_leaks
from echofed.client.ingest.outcomes import SetAsideError, Verdict, Why
from echofed.client.ingest.pipeline import ingest, ingest_folder
from echofed.client.ingest.pseudonyms import open_pseudonyms
from echofed.client.ingest.review.case import Decision
from echofed.client.ingest.review.queue import cases, decide, frames_of
from echofed.client.ingest.settings import IngestSettings
from echofed.client.ingest.sources.settings import FolderSource
from echofed.client.settings import SiteSettings
from echofed.client.site import create_site
from echofed.simulations.phantoms.dicom_files import DicomSite
from tests.client.ingest.small_hospital import changed_copy, clean_files, entries, label_table, quick_settings

BY = {"by": "Dr A. Martin", "decided_at": "2030-01-01T00:00:00+00:00"}


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _written(hospital: DicomSite) -> Path:
    """Return a still with writing on its tissue."""
    return next(hospital.export / row.file for row in hospital.rows if row.fault == "words" and row.kind == "still")


def test_processes_that_are_killed_cost_no_instance(hospital: DicomSite, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        assert done <= total or not total
        if stage == "Reading" and done in (1, 4) and len(killed) < done:
            for child in multiprocessing.active_children():
                killed.append(child.pid or 0)
                os.kill(child.pid or 0, signal.SIGKILL)

    report = ingest(tmp_path, FolderSource(path=hospital.export), quick_settings(hospital), kill)
    assert len(killed) >= 2
    assert not {Why.WORKER_DIED, Why.DAMAGED} & {why for _, why in report.read}
    assert len(entries(tmp_path)) == len({row.instance for row in hospital.rows if row.kind in ("still", "cine")})
    stored = [path for path in tmp_path.rglob("*") if path.is_file() and "review" not in path.parts]
    assert find_leaks(stored, hospital.identifying) == []


def test_an_instance_that_takes_too_long_is_set_aside(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings
) -> None:
    settings = alone.model_copy(update={"seconds_per_instance": 1e-6})
    report = ingest_folder(tmp_path, clean_files(hospital)[0], settings)
    assert report.read == {(Verdict.QUARANTINED, Why.TIMED_OUT): 1}
    assert list((tmp_path / "spool").iterdir()) == []


def test_copies_change_nothing_but_a_whole_one_takes_the_place_of_a_damaged_one(
    hospital: DicomSite, tmp_path: Path
) -> None:
    first, second = clean_files(hospital)[:2]
    export, folder = tmp_path / "export", tmp_path / "ingest"
    (export / "a").mkdir(parents=True)
    content = bytearray(first.read_bytes())
    shutil.copy(second, export / "a" / "1.dcm")
    shutil.copy(second, export / "a" / "2.dcm")
    # The header is whole, the pixels are not.
    dataset = pydicom.dcmread(first)
    dataset.PixelData = dataset.PixelData[: len(content) // 3 * 2]
    dataset.save_as(export / "a" / "3.dcm")
    report = ingest_folder(folder, export, quick_settings(hospital))
    assert (report.read[Verdict.ACCEPTED, ""], report.copies) == (1, 1)
    assert report.training_set.exams == 1
    (damaged,) = [entry for entry in entries(folder) if entry.verdict is not Verdict.ACCEPTED]
    assert damaged.verdict is Verdict.QUARANTINED
    shutil.copy(first, export / "a" / "4.dcm")
    ingest_folder(folder, export, quick_settings(hospital))
    assert [entry.verdict for entry in entries(folder)] == [Verdict.ACCEPTED] * 2
    noted = {row["file"] for row in _rows(folder)}
    assert {str(path.relative_to(folder)) for path in frame_files(folder)} == noted


def test_one_patient_with_two_ids_and_two_people_under_one(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings
) -> None:
    first, *_, last = clean_files(hospital)
    header = pydicom.dcmread(first, stop_before_pixels=True)
    export, folder = tmp_path / "export", tmp_path / "ingest"
    folder.mkdir()
    changed_copy(first, export / "1.dcm")
    changed_copy(
        first, export / "2.dcm", PatientID="SECOND-7781", SOPInstanceUID="2.25.9001", StudyInstanceUID="2.25.91"
    )
    changed_copy(last, export / "3.dcm", PatientID="SHARED-4410")
    merges = tmp_path / "merges.csv"
    merges.write_text(f"patient_id,same_as\nSECOND-7781,{header.PatientID}\n")
    settings = alone.model_copy(update={"merges": merges})
    assert ingest_folder(folder, export, settings).training_set.patients == 2
    assert {entry.patient for entry in entries(folder)} == {
        open_pseudonyms(folder).patient(str(one)) for one in (header.PatientID, "SHARED-4410")
    }
    changed_copy(
        first, export / "4.dcm", PatientID="SHARED-4410", PatientBirthDate="19310203", SOPInstanceUID="2.25.9002"
    )
    report = ingest_folder(folder, export, settings)
    assert report.training_set.patients == 1
    shared = open_pseudonyms(folder).patient("SHARED-4410")
    assert {entry.why for entry in entries(folder) if entry.patient == shared} == {Why.TWO_PATIENTS}
    assert shared not in (folder / "index.csv").read_text()
    assert len(list(frame_files(folder))) == len(_rows(folder))


def test_new_labels_need_no_images(hospital: DicomSite, tmp_path: Path, alone: IngestSettings) -> None:
    path = clean_files(hospital)[0]
    accession = pydicom.dcmread(path, stop_before_pixels=True).AccessionNumber
    table = tmp_path / "labels.csv"
    table.write_text(f"accession_number,label\n{accession},benign\n")
    labels = LabelSettings(tables=(label_table(table),))
    settings, folder = alone.model_copy(update={"labels": labels}), tmp_path / "ingest"
    ingest_folder(folder, path, settings)
    assert {row["label"] for row in _rows(folder)} == {"benign"}
    before = {file: file.stat().st_mtime_ns for file in frame_files(folder)}
    table.write_text(f"accession_number,label\n{accession},malignant\n")
    assert ingest(folder, None, settings).read.total() == 0
    assert {row["label"] for row in _rows(folder)} == {"malignant"}
    assert {file: file.stat().st_mtime_ns for file in frame_files(folder)} == before


def test_a_mask_that_is_remembered_is_laid_on_the_next_image_of_the_layout(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings
) -> None:
    export, folder = tmp_path / "export", tmp_path / "ingest"
    changed_copy(_written(hospital), export / "1.dcm")
    settings = alone.model_copy(update={"keep_dicom": True})
    ingest_folder(folder, export, settings)
    (case,) = cases(folder / "review")
    assert case.writing
    before = frames_of(folder / "review", case.instance)[0].copy()
    decide(
        folder / "review",
        Decision(instance=case.instance, decision="accept", boxes=case.writing, remember=True, **BY),
    )
    changed_copy(_written(hospital), export / "2.dcm", SOPInstanceUID="2.25.9003")
    report = ingest_folder(folder, export, settings)
    assert report.decided == 1
    assert sorted(path.suffix for path in (folder / "dicom").iterdir()) == [".dcm"] * (2 - report.waiting)
    by_instance = {entry.instance: entry for entry in entries(folder)}
    second = open_pseudonyms(folder).instance("2.25.9003")
    box = case.writing[0]
    if by_instance[second].verdict is Verdict.ACCEPTED:
        shown, _ = read_frame(folder / str(by_instance[second].frames[0]["file"]), None)
    else:
        shown = frames_of(folder / "review", second)[0]
    assert box.of(before).any()
    assert not box.of(shown).any()


def test_copies_kept_as_dicom_are_readable_and_name_nobody(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings
) -> None:
    export, folder = tmp_path / "export", tmp_path / "ingest"
    export.mkdir()
    for number, path in enumerate(clean_files(hospital)[:3]):
        shutil.copy(path, export / f"{number}.dcm")
    ingest_folder(folder, export, alone.model_copy(update={"keep_dicom": True}))
    copies = sorted((folder / "dicom").glob("*.dcm"))
    assert {path.stem for path in copies} == {entry.instance for entry in entries(folder)}
    assert find_leaks(copies, hospital.identifying) == []
    spacing = {row["clip"]: float(row["pixel_spacing_mm"]) for row in _rows(folder)}
    for path in copies:
        copy = pydicom.dcmread(path)
        assert copy.PatientIdentityRemoved == "YES"
        assert copy.pixel_array.any()
        delta_mm = 10 * float(copy.SequenceOfUltrasoundRegions[0].PhysicalDeltaY)
        assert delta_mm == pytest.approx(spacing[path.stem], rel=1e-3)
    registered = create_site(tmp_path / "state", SiteSettings(name="north", data_folder=folder)).register()
    assert registered.images == len(_rows(folder))


def test_a_name_in_what_is_stored_of_all_withholds_the_index(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings
) -> None:
    path, folder = clean_files(hospital)[0], tmp_path / "ingest"
    note = folder / "templates" / "note.txt"
    note.parent.mkdir(parents=True)
    note.write_text(f"drawn on {pydicom.dcmread(path, stop_before_pixels=True).PatientID}\n")
    with pytest.raises(LeakError, match=r"note\.txt"):
        ingest_folder(folder, path, alone)
    assert not (folder / "index.csv").exists()
    with pytest.raises(LeakError, match="earlier"):
        ingest(folder, None, alone)
    note.unlink()
    (folder / WITHHELD_FILE).unlink()
    assert ingest(folder, None, alone).training_set.exams == 1


def test_what_a_killed_ingest_left_is_removed_but_not_a_decision(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings
) -> None:
    export = tmp_path / "export"
    changed_copy(_written(hospital), export / "1.dcm")
    changed_copy(_written(hospital), export / "2.dcm", SOPInstanceUID="2.25.9004")
    folder = tmp_path / "ingest"
    ingest_folder(folder, export, alone)
    first, second = cases(folder / "review")
    with open_journal(folder) as journal:
        journal.forget(first.patient)  # as if it had never been noted
    (folder / "dicom").mkdir()
    (folder / "dicom" / f"{first.instance}.dcm").write_bytes(b"of an instance nobody knows")
    decide(folder / "review", Decision(instance=first.instance, decision="reject", boxes=(), remember=False, **BY))
    assert ingest(folder, None, alone).decided == 0
    assert cases(folder / "review") == []
    assert list((folder / "dicom").iterdir()) == []
    ingest_folder(folder, export, alone)
    assert [case.instance for case in cases(folder / "review")] == [second.instance]
    report = ingest(folder, None, alone)
    assert (report.decided, report.waiting) == (1, 1)


def test_a_store_is_encrypted_from_its_first_frame_or_not_at_all(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings
) -> None:
    ingest_folder(tmp_path, clean_files(hospital)[0], alone)
    with pytest.raises(IngestError, match="not encrypted"):
        ingest(tmp_path, None, alone.model_copy(update={"encryption": "passphrase"}))
    assert not (tmp_path / "store.key").exists()


def test_texts_do_not_pile_up_and_what_holds_one_is_quarantined(
    hospital: DicomSite, tmp_path: Path, alone: IngestSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "MAX_TEXTS", 1)
    export, folder, stages = tmp_path / "export", tmp_path / "ingest", list[str]()
    export.mkdir()
    for number, path in enumerate(clean_files(hospital)[:2]):
        shutil.copy(path, export / f"{number}.dcm")
    report = ingest(folder, FolderSource(path=export), alone, lambda stage, done, total: stages.append(stage))
    assert report.read == {(Verdict.ACCEPTED, ""): 2}
    assert stages.count("Searching") == 2 * (2 + 1)
    first, second = entries(folder)
    with open_journal(folder) as journal:
        # As if this were in the header of another patient.
        assert search_stored(folder, journal, [first, second], {first.frames[0]["file"][-30:-13]}) == 1
    assert [one.why for one in entries(folder)] == [Why.IDENTIFIER_LEFT, None]
    assert not (folder / str(first.frames[0]["file"])).exists()
    assert (folder / str(second.frames[0]["file"])).exists()


def test_what_would_be_stored_is_searched_for_the_instances_own_texts() -> None:
    search = Search(["MARTINEZ-4477"])
    frame = Frame(np.zeros((40, 40), np.uint8), 0, 1, None)
    refuse_leaks(search, {"vendor": "aquila"}, [frame])
    with pytest.raises(SetAsideError, match=Why.IDENTIFIER_LEFT):
        refuse_leaks(search, {"vendor": "of Martinez-4477"})
    frame.pixels.flat[100:113] = list(b"MARTINEZ-4477")
    with pytest.raises(SetAsideError, match=Why.IDENTIFIER_LEFT):
        refuse_leaks(search, {}, [frame])
