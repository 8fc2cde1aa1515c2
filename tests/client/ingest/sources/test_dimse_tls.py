"""DIMSE over TLS: a real PACS that asks for our certificate, and everyone to whom nothing may be said in plain text."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import pytest
from pydantic import ValidationError

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.outcomes import Verdict
from echofed.client.ingest.pipeline import ingest
from echofed.client.ingest.settings import IngestSettings
from echofed.client.ingest.sources.settings import DimseSource, MoveSettings
from echofed.simulations.phantoms.dicom_files import DicomSite
from tests.client.ingest import orthanc
from tests.client.ingest.small_hospital import clean_files
from tests.client.ingest.sources.certificates import Authority
from tests.client.ingest.sources.fetches import QUICK, fetch

TLS_RECORDS = (0x14, 0x15, 0x16, 0x17)
MOVE = MoveSettings(ae_title=orthanc.OUR_AE_TITLE, port=orthanc.RECEIVER_PORT)


@dataclass(frozen=True)
class Trust:
    """Who signs for the PACS and for us, and another who signs for neither."""

    authority: Authority
    other: Authority


@dataclass
class Wire:
    """What went over a wire to a PACS and back."""

    port: int = 0
    there: bytearray = field(default_factory=bytearray)
    back: bytearray = field(default_factory=bytearray)

    def is_tls_alone(self) -> bool:
        """Whether we sent something, and no AE title in plain text."""
        return bool(self.there) and self.there[0] in TLS_RECORDS and orthanc.AE_TITLE.encode() not in self.there


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    folder = tmp_path_factory.mktemp("trust")
    return Trust(Authority(folder / "authority"), Authority(folder / "other"))


@pytest.fixture(scope="module")
def images(hospital: DicomSite) -> list[Path]:
    return clean_files(hospital)[:2]


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, images: list[Path], trust: Trust) -> Iterator[orthanc.Orthanc]:
    theirs = trust.authority.sign("pacs")
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsRemoteCertificateRequired": True,
        "DicomTlsCertificate": str(theirs.certificate_file),
        "DicomTlsPrivateKey": str(theirs.key_file),
        "DicomTlsTrustedCertificates": str(trust.authority.file),
        "DicomModalities": {
            "echofed": {
                **{"AET": orthanc.OUR_AE_TITLE, "Host": "127.0.0.1", "Port": orthanc.RECEIVER_PORT},
                "UseDicomTls": True,
            }
        },
    }
    with orthanc.running(tmp_path_factory.mktemp("orthanc"), **settings) as running:
        running.upload(path.read_bytes() for path in images)
        yield running


@pytest.fixture
def source(trust: Trust) -> DimseSource:
    """The PACS, and what it takes to talk to it."""
    ours = trust.authority.sign("site")
    return DimseSource(
        host="127.0.0.1",
        port=orthanc.DICOM_PORT,
        ae_title=orthanc.AE_TITLE,
        tls=True,
        ca_file=trust.authority.file,
        certificate_file=ours.certificate_file,
        key_file=ours.key_file,
        timeout_seconds=10,
    )


@contextmanager
def _wire(port: int) -> Iterator[Wire]:
    """Lead connections to a port of this machine, and keep what goes over them."""
    wire, streams = Wire(), list[socket.socket]()

    def carry(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        with suppress(OSError):
            while piece := source.recv(2**16):
                kept += piece
                target.sendall(piece)
        for stream in (source, target):
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", port))
                streams.extend((near, far))
                for ends in ((near, far, wire.there), (far, near, wire.back)):
                    threads.append(threading.Thread(target=carry, args=ends))
                    threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire.port = listener.getsockname()[1]
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        try:
            yield wire
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            threads[0].join()
            for stream in streams:
                with suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for stream in streams:
                stream.close()


@pytest.mark.parametrize("move", [None, MOVE], ids=["c-get", "c-move"])
def test_an_ingest_over_tls_takes_all_and_says_nothing_in_plain_text(
    move: MoveSettings | None,
    pacs: orthanc.Orthanc,
    source: DimseSource,
    images: list[Path],
    alone: IngestSettings,
    tmp_path: Path,
) -> None:
    settings = alone.model_copy(update={"politeness": QUICK})
    with pacs.inside(), _wire(orthanc.DICOM_PORT) as wire:
        report = ingest(tmp_path, source.model_copy(update={"port": wire.port, "move": move}), settings)
    assert (report.read, report.missed) == ({(Verdict.ACCEPTED, ""): len(images)}, {})
    assert wire.is_tls_alone()
    for path in images:
        patient = str(pydicom.dcmread(path, stop_before_pixels=True).PatientID).encode()
        assert patient not in wire.there + wire.back


@pytest.mark.parametrize("wrong", ["authority of the PACS", "none for the PACS", "host", "our authority", "none of us"])
def test_whoever_does_not_trust_the_other_is_told_so_at_once(
    wrong: str, pacs: orthanc.Orthanc, source: DimseSource, trust: Trust, tmp_path: Path
) -> None:
    stranger = trust.other.sign("stranger")
    changes, said = {
        "authority of the PACS": ({"ca_file": trust.other.file}, "certificate is not accepted: self-signed"),
        "none for the PACS": ({"ca_file": None}, "certificate is not accepted: self-signed"),
        "host": ({"host": "localhost"}, "certificate is not accepted: Hostname mismatch"),
        "our authority": (vars(stranger), "refuses the TLS connection: .*unknown ca"),
        "none of us": ({"certificate_file": None, "key_file": None}, "refuses the TLS connection"),
    }[wrong]
    with pacs.inside(), _wire(orthanc.DICOM_PORT) as wire, pytest.raises(SourceError, match=said) as found:
        fetch(source.model_copy(update={**changes, "port": wire.port}), tmp_path / "spool")
    assert "file" in found.value.remedy
    assert wire.is_tls_alone()


@pytest.mark.parametrize(
    ("port", "said"),
    [
        (orthanc.DICOM_PORT, "broke off before TLS was agreed"),  # it hangs up
        (orthanc.HTTP_PORT, "does not speak TLS at this port"),  # it answers in plain text
    ],
)
def test_a_pacs_that_does_not_know_tls_is_told_nothing(
    port: int, said: str, source: DimseSource, tmp_path: Path
) -> None:
    (tmp_path / "orthanc").mkdir()
    with orthanc.running(tmp_path / "orthanc") as plain, plain.inside(), _wire(port) as wire:
        with pytest.raises(SourceError, match=said):
            fetch(source.model_copy(update={"port": wire.port}), tmp_path / "spool")
        assert wire.is_tls_alone()


def test_a_receiver_of_c_move_is_not_without_a_certificate(source: DimseSource, tmp_path: Path) -> None:
    written = source.model_dump(exclude={"certificate_file", "key_file"})
    with pytest.raises(ValidationError, match="certificate_file"):
        DimseSource.model_validate({**written, "move": MOVE})
