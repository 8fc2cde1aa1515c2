"""The last search: what names somebody is found in every value, and EchoFed's own words and the hospital's own files are not."""

import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from safetensors import safe_open

from echofed.client.ingest.errors import LeakError
from echofed.client.ingest.instance import Frame, Reading, read_instance, store_frames
from echofed.client.ingest.journal import Entry, open_journal
from echofed.client.ingest.labels import FolderRule, LabelSettings, LabelTable, ReportRule
from echofed.client.ingest.last_search import WITHHELD_FILE, check_not_withheld, search_shared, search_stored
from echofed.client.ingest.outcomes import Verdict, Why
from echofed.client.ingest.pipeline import ingest, ingest_folder
from echofed.client.ingest.pseudonyms import open_pseudonyms
from echofed.client.ingest.settings import IngestSettings
from echofed.client.ingest.training_set import write_training_set
from echofed.simulations.phantoms.dicom_files import DicomSite
from tests.client.ingest.small_hospital import changed_copy, clean_files, label_table, quick_settings

SURNAMES = frozenset(
    """White Page Head Lang Weight Mean Left Right Body Style Title Solid Grid Root Share Said Device Clip Data Keep Name Null
    True False Label Frame Region Width Size Block Bold Center Text Table Spacing Sans Shape Offsets Basic Profile Primary Fact
    Index Item Verdict Birth Person Facts Number Sharpness Frozen Nearly Pairs Several Doubtful Brightness Median Quarter Lossy
    Transducer Accession Instance Other Derived Removed Clean Option""".split()  # noqa: SIM905 (as words it can be read)
)


@pytest.fixture(scope="module")
def settings(hospital: DicomSite) -> IngestSettings:
    return quick_settings(hospital, workers=1, keep_dicom=True)


@pytest.fixture(scope="module")
def ingested(hospital: DicomSite, settings: IngestSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ingest of the whole hospital."""
    folder = tmp_path_factory.mktemp("ingested")
    ingest_folder(folder, hospital.export, settings)
    return folder


@pytest.fixture
def folder(ingested: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(ingested, tmp_path / "ingest"))


def _accepted(folder: Path) -> list[Entry]:
    with open_journal(folder) as journal:
        return list(journal.entries(Verdict.ACCEPTED))


def _write_again(folder: Path, settings: IngestSettings) -> None:
    with open_journal(folder) as journal:
        write_training_set(Reading(folder, settings, open_pseudonyms(folder), None), journal)


def test_people_who_are_called_like_words_of_echofed_end_no_ingest(folder: Path) -> None:
    search_shared(folder, set(SURNAMES))
    assert (folder / "index.csv").exists()
    with open_journal(folder) as journal:
        assert search_stored(folder, journal, _accepted(folder), set(SURNAMES)) == 0
    # As bytes, most of these words are there.
    stored = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file()).lower()
    assert sum(name.lower().encode() in stored for name in SURNAMES) > len(SURNAMES) / 2


def test_a_patient_called_none_does_not_end_an_ingest_that_accepts_nothing(
    tmp_path: Path, settings: IngestSettings
) -> None:
    with open_journal(tmp_path) as journal:
        reading = Reading(
            tmp_path, settings.model_copy(update={"labels": LabelSettings()}), open_pseudonyms(tmp_path), None
        )
        assert write_training_set(reading, journal).frames == 0
    search_shared(tmp_path, {"None", "NONE^NONE"})
    assert (tmp_path / "index.csv").exists()


@pytest.mark.parametrize("file", ["quality.html", "quality.json", "index.csv", "journal.sqlite"])
def test_every_word_of_a_shared_file_is_echofeds_own(folder: Path, file: str) -> None:
    # Of this hospital's exams nothing is written in words: labels and devices are on EchoFed's lists, all else is codes.
    content = (folder / file).read_text(encoding="latin-1")
    if file == "journal.sqlite":
        with sqlite3.connect(folder / file) as database:
            content = "\n".join(database.iterdump())
        database.close()
    words = set(re.findall(r"[a-z]{4,}", re.sub(r"[0-9a-z]{16,}", "", content.lower())))
    assert len(words) > 10
    search_shared(folder, words)


def test_every_word_of_a_frames_head_and_of_a_copy_is_echofeds_own(folder: Path) -> None:
    (entry, *_) = _accepted(folder)
    with safe_open(folder / str(entry.frames[0]["file"]), "numpy") as frame:
        texts = {*frame.metadata(), *frame.keys(), "dtype", "shape", "data_offsets", "data"}
    copy = pydicom.dcmread(folder / "dicom" / f"{entry.instance}.dcm", stop_before_pixels=True)
    texts |= {
        str(word)
        for element in copy.iterall()
        if element.VR in ("CS", "LO", "SH")
        for word in str(element.value).split()
    }
    texts -= {entry.patient, *entry.device.split()}
    with open_journal(folder) as journal:
        assert search_stored(folder, journal, [entry], texts) == 0


@pytest.mark.parametrize("name", ["White", "Karlovic", "WHITE^ANNA", "White Anna", "NAME PATIENT"])
def test_a_name_among_the_labels_is_found_also_where_it_is_a_word_of_echofed(
    folder: Path, settings: IngestSettings, name: str
) -> None:
    with open_journal(folder) as journal:
        entry = next(journal.entries(Verdict.ACCEPTED))
        journal.record("", Entry(**{**vars(entry), "label": name}))
    _write_again(folder, settings.model_copy(update={"labels": LabelSettings()}))
    with pytest.raises(LeakError, match="journal"):
        search_shared(folder, {name, "Page"})
    assert not (folder / "index.csv").exists()
    with pytest.raises(LeakError, match="earlier"):
        check_not_withheld(folder)


def test_a_name_in_a_frames_text_or_in_the_journals_facts_is_found(folder: Path) -> None:
    first, second, *_ = _accepted(folder)
    pixels = Frame(np.full((9, 9), 7, np.uint8), 0, 1, None)
    with open_journal(folder) as journal:
        named = store_frames(folder, Entry(**{**vars(first), "exam": "Karlovic"}), [pixels], None)
        assert search_stored(folder, journal, [named, second], {"Karlovic", "Data"}) == 1
        assert journal.find(first.instance).why is Why.IDENTIFIER_LEFT  # type: ignore[union-attr]
        journal.record("", Entry(**{**vars(second), "facts": {**second.facts, "model": "of Karlovic"}}))
    with pytest.raises(LeakError, match="journal"):
        search_shared(folder, {"Karlovic"})


def test_the_hospitals_own_files_are_not_searched(folder: Path) -> None:
    for name in (
        "labels.csv",
        "merges.csv",
        "studies.csv",
        "pacs.password",
        "ingest.yaml",
        ".lock",
        "received/1.dcm",
        "x/1.txt",
    ):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("patient,label\nKarlovic^Anna,benign\n")
    search_shared(folder, {"Karlovic^Anna"})
    assert (folder / "index.csv").exists()
    assert not (folder / WITHHELD_FILE).exists()


def test_the_remedy_says_to_delete_the_note_and_no_file_of_the_hospital(folder: Path) -> None:
    with sqlite3.connect(folder / "journal.sqlite") as database:
        database.execute("INSERT INTO said VALUES ('', '', '', 'Karlovic')")
    database.close()
    with pytest.raises(LeakError) as found:
        search_shared(folder, {"Karlovic"})
    with pytest.raises(LeakError) as withheld:
        check_not_withheld(folder)
    for error in (found.value, withheld.value):
        assert re.findall(r"delete (\S+)", error.remedy, re.IGNORECASE) == [str(folder / WITHHELD_FILE)]
        assert "Karlovic" not in f"{error}"
    assert (folder / WITHHELD_FILE).stat().st_mode & 0o777 == 0o600


def test_what_is_written_is_for_its_owner_alone(folder: Path, settings: IngestSettings) -> None:
    for name in ("index.csv", "quality.html", "quality.json"):
        (folder / name).chmod(0o644)
    _write_again(folder, settings)
    for name in ("index.csv", "quality.html", "quality.json", "journal.sqlite"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600, name


@pytest.mark.parametrize(
    "rules",
    [
        {"tables": (LabelTable(file=Path("labels.csv"), accession="acc", labels={"cyst": "Hepatic cyst"}),)},
        {"folder": FolderRule(labels={"unsorted": "hepatic CYST"})},
        {
            "reports": (ReportRule(concept="x", labels={"x": "Hepatic cyst"}),),
            "folder": FolderRule(labels={"unsorted": "Hepatic cyst"}),
        },
    ],
)
def test_a_configured_label_that_stands_in_a_header_is_no_leak(
    hospital: DicomSite, tmp_path: Path, rules: dict[str, Any]
) -> None:
    path = changed_copy(
        clean_files(hospital)[0], tmp_path / "export" / "unsorted" / "1.dcm", StudyDescription="HEPATIC CYST"
    )
    accession = pydicom.dcmread(path, stop_before_pixels=True).AccessionNumber
    folder = tmp_path / "ingest"
    folder.mkdir()
    (folder / "labels.csv").write_text(f"acc,label\n{accession},cyst\n")
    report = ingest_folder(
        folder, tmp_path / "export", quick_settings(hospital, workers=1, labels=LabelSettings(**rules))
    )
    assert "hepatic cyst" in (folder / "index.csv").read_text().lower()
    assert report.training_set.exams == 1
    assert report.read[Verdict.ACCEPTED, ""] == 1


def test_a_name_in_a_table_of_labels_never_reaches_the_index(hospital: DicomSite, tmp_path: Path) -> None:
    """Neither when the images were read by an ingest before, whose headers nobody remembers."""
    settings, folder = quick_settings(hospital), tmp_path / "ingest"
    ingest_folder(folder, hospital.export, settings)
    content = hospital.labels.read_text()
    (tmp_path / "labels.csv").write_text(content.replace("malignant", "Vantongeren Rosalind"))
    tables = (label_table(tmp_path / "labels.csv"),)
    report = ingest(folder, None, settings.model_copy(update={"labels": LabelSettings(tables=tables)}))
    assert report.training_set.exams > 0
    assert "benign" in (folder / "index.csv").read_text()
    assert not [path for path in folder.iterdir() if path.is_file() and b"Vantongeren" in path.read_bytes()]


def test_a_header_with_thousands_of_texts_is_set_aside_where_it_is_read(
    hospital: DicomSite, tmp_path: Path, settings: IngestSettings
) -> None:
    lines = ["\n".join(f"line {element}{line:03}" for line in range(1000)) for element in "abcdefgh"]
    dataset = pydicom.dcmread(clean_files(hospital)[0])
    block = dataset.private_block(0x0011, "SOMEBODY", create=True)
    for number, text in enumerate(lines):
        block.add_new(number, "LT", text)
    dataset.save_as(tmp_path / "1.dcm")
    read = read_instance(tmp_path / "1.dcm", Reading(tmp_path, settings, open_pseudonyms(tmp_path), None))
    assert (read.entry, read.why, read.texts) == (None, Why.TOO_LARGE, frozenset())
    for number in range(4, 8):
        del block[number]
    dataset.save_as(tmp_path / "1.dcm")
    read = read_instance(tmp_path / "1.dcm", Reading(tmp_path, settings, open_pseudonyms(tmp_path), None))
    assert read.why is None
    assert len(read.texts) > 4000


def test_real_images_of_a_patient_called_name_are_ingested(shared_data: Path, tmp_path: Path) -> None:
    report = ingest_folder(tmp_path, shared_data / "dicom_us", IngestSettings(text_check="strokes", workers=1))
    assert sum(report.read.values()) > 5
    assert (tmp_path / "index.csv").exists()
