"""The link between a site and its coordinator: what it carries, and how each way of failing is told apart."""

import base64
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from echofed.client import link as link_module
from echofed.client.identity import init_site, join
from echofed.client.link import Link
from echofed.client.link_settings import LinkSettings
from echofed.client.refusals import refusal_of
from echofed.protocol.errors import (
    ArraysError,
    CertificateError,
    ClockError,
    EchoFedError,
    GatewayRefusedError,
    PolicyRefusalError,
    ProxyRefusedError,
    SignatureError,
    TooLargeError,
    UnreachableError,
)
from echofed.protocol.signing import Signed
from echofed.server.authority import init_consortium
from echofed.server.blobs import BlobStore
from echofed.server.members import enrol, invite, revoke
from tests.gateways import Door, add_site, embedded_door, free_port, make_consortium

SOON = 0.3
"""Deadline, in seconds, where trying again would not help."""
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("link")
    make_consortium(folder, "north")
    with embedded_door(folder, free_port()) as opened:
        yield opened


@pytest.fixture
def link(door: Door) -> Iterator[Link]:
    opened = Link(door.identity(), LinkSettings())
    yield opened
    opened.close()


@contextlib.contextmanager
def hospital_proxy(answer: bytes | None = None, credentials: str | None = None) -> Iterator[int]:
    """Be a hospital's HTTP proxy that knows CONNECT; yields its port.

    Args:
        answer: given to everyone, instead of a connection.
        credentials: user:password it asks for.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    opened = [listener]

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                stream, _ = listener.accept()
                opened.append(stream)
                head = stream.recv(65536).decode()
                wanted = credentials and base64.b64encode(credentials.encode()).decode()
                if answer is not None:
                    stream.sendall(answer)
                    stream.close()
                elif wanted and f"Proxy-Authorization: Basic {wanted}" not in head:
                    stream.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                    stream.close()
                else:
                    host, port = head.split()[1].rsplit(":", 1)
                    upstream = socket.create_connection((host, int(port)))
                    opened.append(upstream)
                    stream.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    for pair in ((stream, upstream), (upstream, stream)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for one in opened:
        one.close()


def test_the_time_and_the_studies(link: Link) -> None:
    assert abs(link.get_time() - datetime.now(UTC)) < timedelta(seconds=5)
    assert link.get_studies() == []
    assert link.clock_offset_seconds is not None
    assert abs(link.clock_offset_seconds) < 3


def test_a_blob_is_checked_as_it_comes(door: Door, link: Link, tmp_path: Path) -> None:
    store = BlobStore(door.coordinator)
    name = store.publish(os.urandom(300_000))
    with pytest.raises(TooLargeError):
        link.get_blob(name, tmp_path / "file", 299_999)
    link.get_blob(name, tmp_path / "file", 300_000)
    assert (tmp_path / "file").read_bytes() == store.published(name).read_bytes()
    store.published(name).write_bytes(bytes(300_000))
    with pytest.raises(ArraysError):
        link.get_blob(name, tmp_path / "other", 300_000)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(GatewayRefusedError, match="no such file"):
        link.get_blob("0" * 64, tmp_path / "other", 1000)


def test_a_full_disk_of_ones_own_is_not_taken_for_the_link(door: Door, link: Link, tmp_path: Path) -> None:
    name = BlobStore(door.coordinator).publish(b"content")
    with pytest.raises(FileNotFoundError):
        link.get_blob(name, tmp_path / "missing" / "file", 100)
    with pytest.raises(FileNotFoundError):
        link.put_blob(tmp_path / "missing")
    assert link.get_studies() == []


def test_what_the_gateway_refuses_comes_out_as_its_error(door: Door, link: Link, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(ArraysError):
        link.put_blob(tmp_path / "file", "0" * 64)
    nonsense = Signed(purpose="answer", signer="0" * 64, payload="{}", signature="")
    with pytest.raises(SignatureError):
        link.post_answer(nonsense)
    with pytest.raises(EchoFedError):
        link.renew(nonsense)


def test_a_large_file_that_is_refused_is_not_sent_to_its_end(door: Door, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    make_consortium(folder, "north", blob_bytes=2**16)
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(2**33)
    with (
        embedded_door(folder, free_port()) as small,
        contextlib.closing(Link(small.identity(), LinkSettings())) as link,
    ):
        with pytest.raises(TooLargeError):
            link.put_blob(tmp_path / "large", "0" * 64)
        assert link.get_studies() == []


@pytest.mark.parametrize(
    ("address", "what"),
    [("nowhere.invalid:443", "not known"), (f"127.0.0.1:{free_port()}", "Nothing listens")],
)
def test_nobody_there(door: Door, address: str, what: str) -> None:
    identity = door.identity()
    elsewhere = identity.membership.model_copy(update={"address": address})
    link = Link(identity.__class__(**{**vars(identity), "membership": elsewhere}), LinkSettings())
    with pytest.raises(UnreachableError, match=what):
        link.get_studies(deadline_seconds=SOON)


def test_a_server_that_says_nothing(door: Door) -> None:
    identity = door.identity()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        elsewhere = identity.membership.model_copy(update={"address": address})
        settings = LinkSettings(connect_timeout_seconds=0.3)
        link = Link(identity.__class__(**{**vars(identity), "membership": elsewhere}), settings)
        with pytest.raises(UnreachableError, match="did not answer in time"):
            link.get_studies(deadline_seconds=SOON)


def test_another_consortiums_server(door: Door, tmp_path: Path) -> None:
    make_consortium(tmp_path, "north", port=door.port)
    link = Link(Door(tmp_path, door.port).identity(), LinkSettings())
    with pytest.raises(CertificateError, match="not accepted"):
        link.get_studies()


def test_a_server_of_another_name(door: Door) -> None:
    identity = door.identity()
    elsewhere = identity.membership.model_copy(update={"server_name": "other.example.org"})
    link = Link(identity.__class__(**{**vars(identity), "membership": elsewhere}), LinkSettings())
    with pytest.raises(CertificateError, match=r"other\.example\.org"):
        link.get_studies()


def test_a_revoked_site(door: Door) -> None:
    identity = add_site(door.folder, "leaving")
    with contextlib.closing(Link(identity, LinkSettings())) as link:
        assert link.get_studies() == []
        revoke(door.coordinator, "leaving", "test")
        with pytest.raises(CertificateError, match="revoked"):
            link.get_studies()


@pytest.mark.parametrize(("days", "expected"), [(-30, CertificateError), (+30, ClockError)])
def test_a_clock_that_is_days_off(tmp_path: Path, days: int, expected: type[EchoFedError]) -> None:
    then = datetime.now(UTC) + days * DAY
    init_consortium(tmp_path / "C", "Test", f"127.0.0.1:{free_port()}", now=then)
    request = init_site(
        tmp_path / "north", invite(tmp_path / "C", "north", now=then), path=tmp_path / "request", now=then
    )
    identity = join(tmp_path / "north", enrol(tmp_path / "C", request.path, request.words, now=then), now=then)
    with pytest.raises(expected, match="clock"):
        Link(identity, LinkSettings())


def test_a_clock_that_is_an_hour_off(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "clock_offset", lambda _: 3600.0)
    with pytest.raises(ClockError, match="3600 s behind"):
        link.get_studies()
    assert link.get_time() is not None
    assert link.clock_offset_seconds == 3600.0


def test_through_the_hospitals_proxy(door: Door, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "password").chmod(0o600)
    with hospital_proxy(credentials="hospital:secret") as port:
        url = f"http://127.0.0.1:{port}"
        settings = LinkSettings(proxy_url=url, proxy_user="hospital", proxy_password_file=tmp_path / "password")
        with contextlib.closing(Link(door.identity(), settings)) as link:
            assert link.get_studies() == []
        with pytest.raises(ProxyRefusedError, match="asks for a user"):
            Link(door.identity(), LinkSettings(proxy_url=url)).get_studies()
        (tmp_path / "password").write_text("wrong")
        with pytest.raises(ProxyRefusedError, match="refuses the user") as refused:
            Link(door.identity(), settings).get_studies()
    assert "wrong" not in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", ProxyRefusedError),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", UnreachableError),
        (b"SSH-2.0-OpenSSH\r\n\r\n", ProxyRefusedError),
        (b"HTTP/1.1 200 OK\r\n\r\nnot TLS at all", UnreachableError),
        (b"", ProxyRefusedError),
    ],
)
def test_a_hospitals_proxy_that_will_not(door: Door, answer: bytes, kind: type[EchoFedError]) -> None:
    with hospital_proxy(answer) as port:
        link = Link(door.identity(), LinkSettings(proxy_url=f"http://127.0.0.1:{port}"))
        with pytest.raises(kind):
            link.get_studies(deadline_seconds=SOON)


def test_it_tries_again_until_the_gateway_is_back(tmp_path: Path) -> None:
    make_consortium(tmp_path, "north")
    with embedded_door(tmp_path, free_port()) as first:
        link = Link(first.identity(), LinkSettings())
        assert link.get_studies() == []
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(link.get_studies(deadline_seconds=20)))
    thread.start()
    with embedded_door(tmp_path, free_port()):
        thread.join(20)
        assert found == [[]]
        link.close()


def test_the_meaning_of_refusals() -> None:
    said = b'{"code": "EF-706", "what": "a\\u001b[31mb", "remedy": "c"}'
    error = refusal_of(400, said)
    assert isinstance(error, PolicyRefusalError)
    assert error.what == "a?[31mb"
    assert isinstance(refusal_of(503, b"<html>"), UnreachableError)
    assert isinstance(refusal_of(404, b"<html>"), GatewayRefusedError)
    assert isinstance(refusal_of(400, b'["EF-706"]'), GatewayRefusedError)
    assert isinstance(refusal_of(400, b'{"code": "EF-999", "what": "", "remedy": ""}'), GatewayRefusedError)
