"""Sources against a real PACS, in a network namespace of its own."""

import datetime
import io
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.sources.filters import Filters
from echofed.client.ingest.sources.item import Missed, Reason
from echofed.client.ingest.sources.settings import DicomWebSource, DimseSource, MoveSettings, Source
from tests.client.ingest import orthanc
from tests.client.ingest.sources.fetches import UNHURRIED, Came, fetch
from tests.client.ingest.sources.samples import real_instances

COUNT = 22
WEB = DicomWebSource(url=orthanc.URL, user=orthanc.USER, password_env="ECHOFED_TEST_PASSWORD")
GET = DimseSource(host="127.0.0.1", port=orthanc.DICOM_PORT, ae_title=orthanc.AE_TITLE, batch=3)
MOVE = GET.model_copy(update={"move": MoveSettings(ae_title=orthanc.OUR_AE_TITLE, port=orthanc.RECEIVER_PORT)})
SOURCES = {"dicomweb": WEB, "c-get": GET, "c-move": MOVE}

every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


@pytest.fixture(scope="module")
def files(shared_data: Path) -> dict[str, bytes]:
    return real_instances(shared_data, COUNT)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> Iterator[orthanc.Orthanc]:
    with orthanc.running(tmp_path_factory.mktemp("orthanc")) as running:
        running.upload(files.values())
        yield running


@pytest.fixture(autouse=True)
def inside(pacs: orthanc.Orthanc, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ECHOFED_TEST_PASSWORD", orthanc.PASSWORD)
    with pacs.inside():
        yield


def _stored(content: bytes) -> tuple[str, bytes]:
    """Return transfer syntax and pixels as they are encoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(content))
        return str(dataset.file_meta.TransferSyntaxUID), dataset.PixelData


@every_source
def test_everything_comes_as_it_is_stored(source: Source, files: dict[str, bytes], tmp_path: Path) -> None:
    came = fetch(source, tmp_path / "spool")
    assert came.files.keys() == files.keys()
    # Orthanc writes the header anew when it sends over DIMSE; what is compressed stays as it is.
    assert {key: _stored(one) for key, one in came.files.items()} == {key: _stored(one) for key, one in files.items()}
    assert len({_stored(one)[0] for one in files.values()}) == 6
    assert set(came.whys.values()) == {None}
    assert set(came.patients.values()) == {"P1", "P2", "P3"}
    progress = came.progress
    assert (progress.units, progress.units_done, progress.found, progress.fetched) == (3, 3, COUNT, COUNT)
    assert progress.fetched_bytes == sum(map(len, came.files.values()))
    assert came.missed == []


def test_dicomweb_keeps_every_byte(files: dict[str, bytes], tmp_path: Path) -> None:
    assert fetch(WEB.model_copy(update={"page_size": 3}), tmp_path / "spool").files == files


@every_source
def test_filters_limit_what_is_fetched(source: Source, files: dict[str, bytes], tmp_path: Path) -> None:
    second = {key for number, key in enumerate(files) if number % 3 == 1}
    day = datetime.date(2024, 1, 2)
    assert fetch(source, tmp_path / "spool", Filters(since=day, until=day)).files.keys() == second
    assert fetch(source, tmp_path / "spool", Filters(stations=("ROOM2",))).files.keys() == second
    assert fetch(source, tmp_path / "spool", Filters(modalities=("MR",))).files == {}


@every_source
def test_listed_studies_are_fetched_and_unknown_ones_reported(
    source: Source, files: dict[str, bytes], tmp_path: Path
) -> None:
    listed = tmp_path / "studies.csv"
    listed.write_text("study_uid,accession_number\n2.25.1,\n,A2\n2.25.404,\n,A404\n")
    came = fetch(source, tmp_path / "spool", Filters(studies_file=listed))
    assert came.files.keys() == {key for number, key in enumerate(files) if number % 3 < 2}
    assert came.missed == [Missed("2.25.404", Reason.NOT_FOUND), Missed("A404", Reason.NOT_FOUND)]


@every_source
def test_what_is_known_is_not_fetched(source: Source, files: dict[str, bytes], tmp_path: Path) -> None:
    known = set(list(files)[: COUNT - 4])
    came = fetch(source, tmp_path / "spool", known=known)
    assert came.files.keys() == files.keys() - known
    assert (came.progress.skipped, came.progress.fetched) == (COUNT - 4, 4)


@every_source
def test_a_pacs_that_is_killed_and_restarted_costs_nothing(
    source: Source, files: dict[str, bytes], pacs: orthanc.Orthanc, tmp_path: Path
) -> None:
    def restart() -> None:
        time.sleep(0.5)
        pacs.start()

    restarting = threading.Thread(target=restart)

    def kill(count: int) -> None:
        if count == 5:
            pacs.kill()
            restarting.start()

    came = fetch(source, tmp_path / "spool", politeness=UNHURRIED, at=kill)
    restarting.join()
    assert came.files.keys() == files.keys()
    assert came.missed == []


@every_source
def test_a_pacs_that_stays_away_ends_the_run_and_the_next_one_goes_on(
    source: Source, files: dict[str, bytes], pacs: orthanc.Orthanc, tmp_path: Path
) -> None:
    before = Came()
    try:
        with pytest.raises(SourceError, match="PACS"):
            fetch(source, tmp_path / "spool", at=lambda count: pacs.kill() if count == 5 else None, came=before)
    finally:
        pacs.start()
    assert 5 <= len(before.files) < COUNT
    after = fetch(source, tmp_path / "spool", known=before.files)
    assert before.files.keys() | after.files.keys() == files.keys()
    assert not before.files.keys() & after.files.keys()


def test_wrong_password_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOFED_TEST_PASSWORD", "wrong")
    with pytest.raises(SourceError, match="credentials"):
        fetch(WEB, tmp_path / "spool")


def test_what_is_sent_to_an_unknown_receiver_is_missed(tmp_path: Path) -> None:
    place = MoveSettings(ae_title="NOBODY", port=orthanc.RECEIVER_PORT)
    came = fetch(GET.model_copy(update={"move": place, "batch": 500}), tmp_path / "spool")
    assert (came.files, came.reasons) == ({}, {Reason.FAILED: COUNT})
