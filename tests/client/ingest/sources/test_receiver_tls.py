"""The storage receiver over TLS: it takes from those whom its authority vouches for, and outlives all others."""

import io
import socket
import ssl
import time
from pathlib import Path

import pydicom
import pytest
from pydantic import ValidationError
from pynetdicom import AE, evt
from pynetdicom.events import Event

from echofed.client.ingest.sources.receiver import receiving
from echofed.client.ingest.sources.settings import ReceiverSettings
from echofed.client.ingest.sources.storage import bound_reading
from tests.client.ingest.sources.certificates import Authority, Certificate
from tests.client.ingest.sources.samples import body_of, small_instance

US = "1.2.840.10008.5.1.4.1.1.6.1"
FILE = small_instance("2.25.11")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def settings(authority: Authority) -> ReceiverSettings:
    ours = vars(authority.sign("receiver"))
    return ReceiverSettings.model_validate({"port": 0, "min_free_bytes": 0, "ca_file": authority.file, **ours})


def _context(authority: Authority, certificate: Certificate | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.file)
    if certificate is not None:
        context.load_cert_chain(certificate.certificate_file, certificate.key_file)
    return context


def _send(port: int, context: ssl.SSLContext | None) -> int | None:
    """Send a file as a scanner does; return the status, None if it was not let in."""
    entity = AE("SCANNER")
    entity.acse_timeout = entity.network_timeout = 5
    entity.add_requested_context(US, pydicom.uid.ExplicitVRLittleEndian)
    tls = None if context is None else (context, "127.0.0.1")
    closing = [(evt.EVT_CONN_OPEN, _close_for_good)]
    association = entity.associate("127.0.0.1", port, ae_title="ECHOFED", tls_args=tls, evt_handlers=closing)
    if not association.is_established:
        return None
    status = association.send_c_store(pydicom.dcmread(io.BytesIO(FILE))).get("Status")
    association.release()
    return int(status)


def _close_for_good(event: Event) -> None:
    bound_reading(event.assoc.dul.socket, 2**20, lambda: None)


def test_a_sender_of_our_authority_is_taken(tmp_path: Path, authority: Authority, settings: ReceiverSettings) -> None:
    folder = tmp_path / "received"
    with receiving(settings, folder) as (port, received):
        assert _send(port, _context(authority, authority.sign("scanner"))) == 0
        assert (received.instances, received.refused) == (1, 0)
    assert [body_of(path.read_bytes()) for path in folder.iterdir()] == [body_of(FILE)]


@pytest.mark.parametrize("sender", ["without a certificate", "of another authority", "in plain text", "of nonsense"])
def test_another_sender_is_refused_and_the_next_one_taken(
    sender: str, tmp_path: Path, authority: Authority, settings: ReceiverSettings
) -> None:
    folder = tmp_path / "received"
    with receiving(settings, folder) as (port, received):
        if sender == "of nonsense":
            with socket.create_connection(("127.0.0.1", port), 5) as stream:
                stream.sendall(b"\x16\x03\x01" + bytes(4000))
        else:
            other = Authority(tmp_path / "other").sign("scanner")
            context = {
                "without a certificate": _context(authority, None),
                "of another authority": _context(authority, other),
                "in plain text": None,
            }[sender]
            assert _send(port, context) is None
        assert list(folder.iterdir()) == []
        assert _send(port, _context(authority, authority.sign("known"))) == 0
        assert (received.instances, received.refused) == (1, 0)


def test_one_who_says_nothing_holds_up_nobody_else(
    tmp_path: Path, authority: Authority, settings: ReceiverSettings
) -> None:
    with (
        receiving(settings, tmp_path / "received") as (port, _),
        socket.create_connection(("127.0.0.1", port), 5),
        socket.create_connection(("127.0.0.1", port), 5),
    ):
        start = time.monotonic()
        assert _send(port, _context(authority, authority.sign("scanner"))) == 0
        assert time.monotonic() - start < 5


def test_without_an_authority_the_receiver_proves_who_it_is_and_asks_nobody(
    tmp_path: Path, authority: Authority, settings: ReceiverSettings
) -> None:
    settings = settings.model_copy(update={"ca_file": None})
    with receiving(settings, tmp_path / "received") as (port, _):
        assert _send(port, _context(authority, None)) == 0
        assert _send(port, _context(Authority(tmp_path / "other"), None)) is None
        assert _send(port, None) is None


def test_an_authority_without_a_certificate_is_not_left_unused(authority: Authority) -> None:
    with pytest.raises(ValidationError, match="certificate_file"):
        ReceiverSettings(ca_file=authority.file)
