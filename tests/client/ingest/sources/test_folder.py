"""Folders, USB exports and archives, sound and hostile."""

import io
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.uid import ExplicitVRLittleEndian

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.outcomes import Why
from echofed.client.ingest.sources.filters import Filters
from echofed.client.ingest.sources.item import Reason
from echofed.client.ingest.sources.settings import FolderSource
from tests.client.ingest.sources.fetches import Came, fetch
from tests.client.ingest.sources.samples import small_instance

A, B = small_instance("2.25.1"), small_instance("2.25.2", Modality="CT")


@pytest.fixture
def export(tmp_path: Path) -> Path:
    (tmp_path / "export" / "DICOM" / "deep").mkdir(parents=True)
    (tmp_path / "export" / "DICOM" / "deep" / "IM1").write_bytes(A)
    return tmp_path / "export"


def _fetch(export: Path, filters: Filters | None = None, known: tuple[str, ...] = (), **limits: object) -> Came:
    source = FolderSource.model_validate({"path": export, **limits})
    return fetch(source, export.parent / "spool", filters, known=known)


def test_real_files_come_byte_for_byte(shared_data: Path, tmp_path: Path) -> None:
    came = fetch(FolderSource(path=shared_data / "dicom_us"), tmp_path / "spool")
    assert sorted(came.files.values()) == sorted(one.read_bytes() for one in (shared_data / "dicom_us").glob("*.dcm"))
    assert came.why_missed == {Reason.NOT_DICOM}
    assert set(came.whys.values()) == {None}
    assert (came.progress.units_done, came.progress.found) == (15, 11)


def test_known_files_are_skipped_and_changed_ones_are_not(export: Path) -> None:
    (key,) = _fetch(export).files
    again = _fetch(export, known=(key,))
    assert (again.files, again.progress.skipped) == ({}, 1)
    path = export / "DICOM" / "deep" / "IM1"
    path.write_bytes(A[:-1] + b"!")
    os.utime(path, ns=(0, 0))
    assert len(_fetch(export, known=(key,)).files) == 1


def test_files_without_a_preamble_are_found(export: Path) -> None:
    (export / "old").write_bytes(A[132:])
    assert sorted(_fetch(export).files.values()) == sorted([A, A[132:]])


def test_filters_are_checked_on_loose_files(export: Path) -> None:
    (export / "ct").write_bytes(B)
    assert sorted(_fetch(export).whys.values(), key=str) == [None, Why.OTHER_MODALITY]


def test_directory_limits_and_tells_what_is_missing(tmp_path: Path) -> None:
    files = FileSet()
    for content in (A, B):
        dataset = pydicom.dcmread(io.BytesIO(content))
        dataset.StudyTime, dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "1200", "1", 1, 1
        dataset.PatientName = "Nobody"
        if dataset.Modality == "CT":
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.3", "2.25.3.1"
        assert isinstance(dataset.file_meta, FileMetaDataset)
        assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        files.add(dataset)
    files.write(tmp_path / "export")
    files._stage["t"].cleanup()  # pydicom leaves it to the garbage collector
    came = _fetch(tmp_path / "export")
    assert len(came.files) == 1, "the directory says that the other one is CT"
    next(path for path in (tmp_path / "export").rglob("*") if path.is_file() and path.name != "DICOMDIR").unlink()
    assert _fetch(tmp_path / "export").reasons[Reason.ABSENT] == 1
    content = (tmp_path / "export" / "DICOMDIR").read_bytes()
    (tmp_path / "export" / "DICOMDIR").write_bytes(content[: len(content) // 2])
    assert _fetch(tmp_path / "export").reasons[Reason.ABSENT] == 0


def test_links_are_not_followed(export: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(A)
    (export / "folder").symlink_to(tmp_path / "outside")
    (export / "file").symlink_to(tmp_path / "outside" / "secret")
    (export / "inside").symlink_to(export / "DICOM")
    (export / "circle").symlink_to(export)
    (export / "dangling").symlink_to(export / "nowhere")
    came = _fetch(export)
    assert list(came.files.values()) == [A]
    assert came.reasons == {Reason.OUTSIDE: 2, Reason.ABSENT: 1}


def test_pipes_and_sockets_do_not_block(export: Path) -> None:
    os.mkfifo(export / "pipe")
    came = _fetch(export)
    assert (list(came.files.values()), came.reasons) == ([A], {Reason.UNREADABLE: 1})


@pytest.fixture
def readable_by_all() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_unreadable_files_are_counted(readable_by_all: Path) -> None:
    export = readable_by_all / "export"
    (export / "closed").mkdir(parents=True)
    (export / "closed").chmod(0)
    (export / "mine").write_bytes(A)
    (export / "theirs").write_bytes(A)
    (export / "theirs").chmod(0)
    was = os.geteuid()
    os.seteuid(was or 65534)  # root may read everything
    try:
        came = _fetch(export)
    finally:
        os.seteuid(was)
        (export / "closed").chmod(0o700)
    assert (list(came.files.values()), came.reasons) == ([A], {Reason.UNREADABLE: 2})


def test_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        _fetch(tmp_path / "nowhere")


def _zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_archives_are_opened(export: Path) -> None:
    _zip(export / "more.zip", {"a/IM2": A + b"2", "readme.txt": b"hello", "a/": b""})
    came = _fetch(export)
    assert sorted(came.files.values()) == [A, A + b"2"]
    assert came.reasons == {Reason.NOT_DICOM: 1}
    assert _fetch(export, known=tuple(came.files)).files == {}


def test_an_archive_can_be_the_source(tmp_path: Path) -> None:
    assert list(_fetch(_zip(tmp_path / "export.zip", {"IM": A})).files.values()) == [A]


def test_names_in_an_archive_lead_nowhere(export: Path, tmp_path: Path) -> None:
    _zip(export / "a.zip", {"../../evil": A, "/tmp/evil": A, "..\\evil": A, "C:\\evil": A, "good": A})
    before = set(tmp_path.rglob("*"))
    came = _fetch(export)
    assert len(came.files) == 2
    assert came.reasons == {Reason.OUTSIDE: 4}
    assert {path for path in tmp_path.rglob("*") if path.name != "spool"} == {
        one for one in before if one.name != "spool"
    }


def test_bombs_are_not_unpacked(export: Path) -> None:
    _zip(export / "ratio.zip", {"IM": A + bytes(2**25), "good": A})
    came = _fetch(export)
    assert (len(came.files), came.reasons) == (2, {Reason.ARCHIVE_LIMITS: 1})
    assert _fetch(export, max_archive_files=1).reasons == {Reason.ARCHIVE_LIMITS: 2}
    assert _fetch(export, max_archive_bytes=2**24).reasons == {Reason.ARCHIVE_LIMITS: 2}
    assert _fetch(export, max_file_bytes=2**24).reasons == {Reason.TOO_LARGE: 1}


def test_lies_about_sizes_are_found_out(export: Path) -> None:
    path = _zip(export / "lies.zip", {"IM": A + bytes(2**25)})
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"PK\1\2")
    content[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(content)
    came = _fetch(export)
    assert (list(came.files.values()), came.reasons) == ([A], {Reason.ARCHIVE_DAMAGED: 1})


def test_archives_in_archives_are_not_opened(export: Path, tmp_path: Path) -> None:
    inner = _zip(tmp_path / "inner.zip", {"IM": A}).read_bytes()
    _zip(export / "outer.zip", {"inner.zip": inner, "IM0001": inner})
    assert _fetch(export).reasons == {Reason.ARCHIVE_NESTED: 2}


def test_encrypted_and_damaged_archives_are_refused(export: Path) -> None:
    content = bytearray(_zip(export / "a.zip", {"IM": A, "IM2": A}).read_bytes())
    content[content.find(b"PK\1\2") + 8] |= 1
    (export / "a.zip").write_bytes(content)
    (export / "b.zip").write_bytes(content[:100])
    assert _fetch(export).reasons == {Reason.ARCHIVE_ENCRYPTED: 2, Reason.ARCHIVE_DAMAGED: 1}
