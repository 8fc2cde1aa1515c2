"""Ingests from a PACS that sends an image of another patient than it announced."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from echofed.client.ingest.frame_store import frame_files
from echofed.client.ingest.leaks import find_leaks
from echofed.client.ingest.outcomes import Verdict, Why
from echofed.client.ingest.pipeline import ingest
from echofed.client.ingest.pseudonyms import open_pseudonyms
from echofed.client.ingest.settings import IngestSettings
from echofed.client.ingest.sources.settings import DicomWebSource, DimseSource, MoveSettings, Source
from echofed.simulations.phantoms.dicom_files import DicomSite
from tests.client.ingest.small_hospital import changed_copy, clean_files, entries, hidden_header
from tests.client.ingest.sources import dimse_pacs, web_pacs
from tests.client.ingest.sources.fetches import QUICK

# Both servers announce all they hold as images of P1, in study 2.25.1.
RIGHT, WRONG, HIDDEN = "2.25.11", "2.25.12", "2.25.13"
ANOTHER = {"PatientID": "KARL-3318", "PatientName": "KARLOVIC^ANNA"}


@contextmanager
def _dicomweb(files: dict[str, bytes]) -> Iterator[Source]:
    with web_pacs.serving(web_pacs.WebPacs(files)) as pacs:
        yield DicomWebSource(url=pacs.url)


@contextmanager
def _c_get(files: dict[str, bytes]) -> Iterator[Source]:
    with dimse_pacs.serving(dimse_pacs.DimsePacs(files)) as pacs:
        yield DimseSource(host="127.0.0.1", port=pacs.port, ae_title=dimse_pacs.AE_TITLE, timeout_seconds=5.0)


@contextmanager
def _c_move(files: dict[str, bytes]) -> Iterator[Source]:
    with socket.socket() as stream:
        stream.bind(("127.0.0.1", 0))
        port = int(stream.getsockname()[1])
    with dimse_pacs.serving(dimse_pacs.DimsePacs(files, receiver=("127.0.0.1", port))) as pacs:
        place = MoveSettings(ae_title="US", port=port)
        yield DimseSource(
            host="127.0.0.1", port=pacs.port, ae_title=dimse_pacs.AE_TITLE, timeout_seconds=5.0, move=place
        )


@pytest.mark.parametrize("serving", [_dicomweb, _c_get, _c_move])
def test_an_image_of_another_patient_is_set_aside_and_nothing_of_it_is_stored(
    serving: Callable[[dict[str, bytes]], "contextmanager[Source]"],
    hospital: DicomSite,
    alone: IngestSettings,
    tmp_path: Path,
) -> None:
    path, folder = clean_files(hospital)[0], tmp_path / "ingest"
    images = {
        RIGHT: changed_copy(path, tmp_path / "right.dcm", SOPInstanceUID=RIGHT, PatientID="P1"),
        WRONG: changed_copy(path, tmp_path / "wrong.dcm", SOPInstanceUID=WRONG, **ANOTHER),
        # Where it comes as it is, only its reader can say whose it is.
        HIDDEN: hidden_header(changed_copy(path, tmp_path / "hidden.dcm", SOPInstanceUID=HIDDEN, **ANOTHER)),
    }
    files = {key: image.read_bytes() for key, image in images.items()}
    settings = alone.model_copy(update={"politeness": QUICK, "keep_dicom": True})
    with serving(files) as source:
        report = ingest(folder, source, settings)
        assert report.read == {(Verdict.ACCEPTED, ""): 1, (Verdict.QUARANTINED, Why.WRONG_PATIENT): 2}
        assert f"2  {Why.WRONG_PATIENT}" in report.text()
        assert report.missed == {}
        pseudonyms = open_pseudonyms(folder)
        assert [entry.instance for entry in entries(folder)] == [pseudonyms.instance(RIGHT)]
        theirs = {*ANOTHER.values(), WRONG, HIDDEN, pseudonyms.patient(ANOTHER["PatientID"])}
        theirs |= {pseudonyms.instance(key) for key in (WRONG, HIDDEN)}
        everything = [one for one in folder.rglob("*") if one.is_file()]
        assert len(everything) > len(list(frame_files(folder))) > 0
        assert find_leaks(everything, theirs) == []
        # It is known, and not asked for again until somebody says so.
        assert not ingest(folder, source, settings).read
    right = changed_copy(path, tmp_path / "right.dcm", SOPInstanceUID=WRONG, PatientID="P1").read_bytes()
    with serving({**files, WRONG: right}) as source:
        report = ingest(folder, source, settings, again=True)
    assert report.read == {(Verdict.ACCEPTED, ""): 1, (Verdict.QUARANTINED, Why.WRONG_PATIENT): 1}
