"""Whole ingests from a real PACS: the same index as from the export, whatever happens to the PACS meanwhile."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.journal import open_journal
from echofed.client.ingest.outcomes import Verdict
from echofed.client.ingest.pipeline import ingest, ingest_folder
from echofed.client.ingest.sources.politeness import Politeness
from echofed.client.ingest.sources.settings import DicomWebSource, DimseSource, Source
from echofed.simulations.phantoms.dicom_files import DicomSite
from tests.client.ingest import orthanc
from tests.client.ingest.small_hospital import quick_settings

POLITE = Politeness(per_second=10_000.0, first_delay_seconds=0.3, attempts=4)
SOURCES: dict[str, Source] = {
    "dicomweb": DicomWebSource(url=orthanc.URL, user=orthanc.USER, password_env="ECHOFED_TEST_PASSWORD"),
    "c-get": DimseSource(host="127.0.0.1", port=orthanc.DICOM_PORT, ae_title=orthanc.AE_TITLE, batch=3),
}
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, hospital: DicomSite) -> Iterator[orthanc.Orthanc]:
    files = [hospital.export / row.file for row in hospital.rows if row.instance]
    with orthanc.running(tmp_path_factory.mktemp("orthanc")) as running:
        running.upload(path.read_bytes() for path in files)
        yield running


@pytest.fixture(scope="module")
def from_folder(tmp_path_factory: pytest.TempPathFactory, hospital: DicomSite) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    ingest_folder(folder, hospital.export, quick_settings(hospital))
    return folder


@pytest.fixture(autouse=True)
def inside(pacs: orthanc.Orthanc, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ECHOFED_TEST_PASSWORD", orthanc.PASSWORD)
    with pacs.inside():
        yield


@pytest.fixture
def folder(tmp_path: Path, from_folder: Path) -> Path:
    """An empty ingest with the key of the other, so that their pseudonyms are the same."""
    (tmp_path / "pseudonym.key").write_bytes((from_folder / "pseudonym.key").read_bytes())
    (tmp_path / "pseudonym.key").chmod(0o600)
    return tmp_path


def _verdicts(folder: Path) -> dict[str, tuple[Verdict, object]]:
    with open_journal(folder) as journal:
        return {entry.instance: (entry.verdict, entry.why) for entry in journal.entries()}


@every_source
def test_a_pacs_gives_the_index_of_its_export(
    source: Source, hospital: DicomSite, from_folder: Path, folder: Path
) -> None:
    settings = quick_settings(hospital, politeness=POLITE)
    report = ingest(folder, source, settings)
    assert (folder / "index.csv").read_bytes() == (from_folder / "index.csv").read_bytes()
    assert _verdicts(folder) == _verdicts(from_folder)
    assert report.missed == {}
    again = ingest(folder, source, settings)
    assert again.read.total() == 0
    assert list((folder / "spool").iterdir()) == []


@every_source
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_pacs_that_is_killed_loses_nothing_and_gives_nothing_twice(
    source: Source, comes_back: bool, hospital: DicomSite, pacs: orthanc.Orthanc, from_folder: Path, folder: Path
) -> None:
    settings, undisturbed = quick_settings(hospital, politeness=POLITE), _verdicts(from_folder)
    killed: list[threading.Thread] = []

    def restart() -> None:
        time.sleep(0.4)
        pacs.start()

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "Reading" and done == 2 and not killed:
            pacs.kill()
            killed.append(threading.Thread(target=restart))
            if comes_back:
                killed[0].start()

    read = 0
    try:
        read += ingest(folder, source, settings, kill).read.total()
    except SourceError:
        with open_journal(folder) as journal:
            read += journal.counts().total()
    finally:
        if comes_back:
            killed[0].join()
        else:
            pacs.start()
    assert killed
    read += ingest(folder, source, settings).read.total()
    assert (folder / "index.csv").read_bytes() == (from_folder / "index.csv").read_bytes()
    assert _verdicts(folder) == undisturbed
    assert read == len({row.instance for row in hospital.rows if row.instance and row.kind in ("still", "cine")})
