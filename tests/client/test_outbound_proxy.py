"""The site's outbound proxy: what it carries, for whom, what it does while the gateway is away; stock SuperNode through it."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from echofed.client import uplink as uplink_module
from echofed.client.identity import load_identity
from echofed.client.link import Link
from echofed.client.link_settings import LinkSettings
from echofed.client.link_status import StatusFile, read_link_status
from echofed.client.outbound_proxy import OutboundProxy, listen
from echofed.client.uplink import Uplink
from echofed.protocol.errors import CertificateError, ProxyRefusedError, UnreachableError
from echofed.server.blobs import BlobStore
from echofed.server.gateway_nodes import read_nodes
from echofed.server.members import revoke
from tests.client.test_link import hospital_proxy
from tests.gateways import (
    SUPERNODE,
    Door,
    add_site,
    embedded_door,
    free_port,
    listens,
    make_consortium,
    running,
    superlink,
    wait_for,
)


@contextlib.contextmanager
def outbound(folder: Path, settings: LinkSettings | None = None, retry_seconds: float = 5.0) -> Iterator[int]:
    """Run a site's proxy in a thread; yields its port."""
    settings = settings or LinkSettings()
    listener = listen(0)
    port = listener.getsockname()[1]
    proxy = OutboundProxy(Uplink(folder, settings, StatusFile(folder, port)), listener, settings, retry_seconds)
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    try:
        yield port
    finally:
        proxy.stop()
        thread.join(5)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("proxy")
    coordinator = make_consortium(folder, "north")
    with superlink(folder, coordinator) as port, embedded_door(folder, port) as opened:
        yield opened


def local_link(folder: Path, port: int) -> Link:
    return Link(load_identity(folder), LinkSettings(), base_url=f"http://127.0.0.1:{port}")


def say(port: int, head: str) -> int:
    """Send a head to the proxy and return the status."""
    with socket.create_connection(("127.0.0.1", port), 10) as stream:
        stream.sendall(head.replace("PORT", str(port)).encode())
        response = http.client.HTTPResponse(stream)
        response.begin()
        response.read()
        return response.status


def test_it_carries_blobs_and_documents(door: Door, tmp_path: Path) -> None:
    content = os.urandom(2_000_003)
    (tmp_path / "reply").write_bytes(content)
    store = BlobStore(door.coordinator)
    published = store.publish(content[::-1])
    with outbound(door.folder / "north") as port, contextlib.closing(local_link(door.folder / "north", port)) as link:
        assert link.get_studies() == []
        name = link.put_blob(tmp_path / "reply")
        link.get_blob(published, tmp_path / "fetched", 3_000_000)
        assert link.clock_offset_seconds is not None
        wait_for(lambda: getattr(read_link_status(door.folder / "north"), "state", "") == "connected")
        status = read_link_status(door.folder / "north")
        assert status is not None
        assert status.port == port
        assert status.clock_offset_seconds is not None
        assert abs(status.clock_offset_seconds) < 3
    assert store.incoming("north", name).read_bytes() == content
    assert (tmp_path / "fetched").read_bytes() == content[::-1]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /v1/time HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n", 200),
        ("GET /v1/time HTTP/1.1\r\nHost: evil.example:PORT\r\n\r\n", 403),
        ("GET /v1/time HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nOrigin: http://evil.example\r\n\r\n", 403),
        ("POST /v1/answers HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nSec-Fetch-Site: cross-site\r\n\r\n", 403),
        ("POST /v1/control/list-runs HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n", 404),
        ("GET http://elsewhere.example/ HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n", 404),
        ("CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n", 404),
        ("GET /v1/fleet/../control/x HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n", 404),
        ("POST /v1/answers HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Length: 999999999\r\n\r\n", 413),
        ("POST /v1/answers HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        ("POST /v1/fleet/register-node HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Length: 0\r\n\r\n", 415),
    ],
)
def test_for_whom_and_where_to(door: Door, proxy_port: int, head: str, status: int) -> None:
    assert say(proxy_port, head) == status


@pytest.fixture(scope="module")
def proxy_port(door: Door) -> Iterator[int]:
    with outbound(door.folder / "north") as port:
        yield port


def test_it_listens_on_loopback_alone(proxy_port: int) -> None:
    with socket.socket() as probe:
        probe.settimeout(1)
        assert probe.connect_ex(("127.0.0.2", proxy_port)) != 0
    assert listens(proxy_port)


def test_a_request_waits_for_a_gateway_that_is_away(tmp_path: Path) -> None:
    make_consortium(tmp_path, "north")
    statuses: list[int] = []
    head = "GET /v1/time HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n"
    with outbound(tmp_path / "north", retry_seconds=10.0) as port:
        thread = threading.Thread(target=lambda: statuses.append(say(port, head)))
        thread.start()
        wait_for(lambda: getattr(read_link_status(tmp_path / "north"), "state", "") == "unreachable")
        assert statuses == []
        with embedded_door(tmp_path, free_port()):
            thread.join(10)
            assert statuses == [200]
            status = read_link_status(tmp_path / "north")
            assert status is not None
            assert (status.state, status.code) == ("connected", None)


def test_it_gives_up_in_the_end(tmp_path: Path) -> None:
    make_consortium(tmp_path, "north")
    with outbound(tmp_path / "north", retry_seconds=0.5) as port:
        start = time.monotonic()
        with pytest.raises(UnreachableError, match="Nothing listens"):
            local_link(tmp_path / "north", port).get_studies(deadline_seconds=0.1)
        assert time.monotonic() - start < 4


def test_a_revoked_site_is_told_so(door: Door) -> None:
    add_site(door.folder, "leaving")
    with (
        outbound(door.folder / "leaving") as port,
        contextlib.closing(local_link(door.folder / "leaving", port)) as link,
    ):
        assert link.get_studies() == []
        revoke(door.coordinator, "leaving", "test")
        with pytest.raises(CertificateError, match="revoked"):
            link.get_studies()
        status = read_link_status(door.folder / "leaving")
        assert status is not None
        assert (status.state, status.code) == ("refused", "EF-702")
        # SuperNode would take a 403 for the end of its run.
        assert say(port, "POST /v1/fleet/get-run HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Length: 0\r\n\r\n") == 503


def test_a_proxy_of_the_hospital_that_asks_for_a_password_is_said_once(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    with hospital_proxy(credentials="user:password") as hospital:
        settings = LinkSettings(proxy_url=f"http://127.0.0.1:{hospital}")
        with (
            outbound(door.folder / "north", settings) as port,
            contextlib.closing(local_link(door.folder / "north", port)) as link,
        ):
            for _ in range(5):
                with pytest.raises(ProxyRefusedError, match="asks for a user"):
                    link.get_studies()
            status = read_link_status(door.folder / "north")
            assert status is not None
            assert (status.state, status.code) == ("refused", "EF-802")
    assert caplog.text.count("EF-802") == 1


def test_a_renewed_certificate_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_consortium(tmp_path, "north")
    monkeypatch.setattr(uplink_module, "LOOK_SECONDS", 0.1)
    with (
        embedded_door(tmp_path, free_port()),
        outbound(tmp_path / "north") as port,
        contextlib.closing(local_link(tmp_path / "north", port)) as link,
    ):
        before = load_identity(tmp_path / "north").certificate.serial_number
        assert link.get_studies() == []
        with monkeypatch.context() as patch:
            patch.setattr("echofed.client.identity.RENEWAL_SHARE", 0.0)
            wait_for(lambda: load_identity(tmp_path / "north").certificate.serial_number != before)
        assert link.get_studies() == []


def test_the_process_says_a_port_in_use_and_stops_when_told(door: Door) -> None:
    command = [sys.executable, "-m", "echofed.client.outbound_proxy", str(door.folder / "north"), "--port"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = subprocess.run(
            [*command, str(taken.getsockname()[1])], capture_output=True, text=True, timeout=60, check=False
        )
    assert result.returncode == 2
    assert result.stderr.startswith("[EF-804]")
    port = free_port()
    process = subprocess.Popen([*command, str(port)], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: process.poll() is not None or listens(port))
    assert say(port, "GET /v1/time HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n") == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(3) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_stock_supernode_registers_and_outlives_a_restart_of_the_gateway(tmp_path: Path) -> None:
    coordinator = make_consortium(tmp_path, "north")
    with superlink(tmp_path, coordinator) as superlink_port, outbound(tmp_path / "north", retry_seconds=20.0) as port:
        command = [sys.executable, "-c", SUPERNODE, "--insecure", "--superlink", f"127.0.0.1:{port}"]
        command += ["--isolation", "process", "--host", "127.0.0.1", "--port", str(free_port())]
        with running(command, tmp_path / "supernode.log", FLWR_HOME=str(tmp_path / "node")) as supernode:
            with embedded_door(tmp_path, superlink_port):
                wait_for(lambda: "north" in read_nodes(coordinator), 40)
                first = read_nodes(coordinator)["north"]
            with embedded_door(tmp_path, superlink_port):
                wait_for(lambda: read_nodes(coordinator)["north"].seen_at > first.seen_at, 30)
                assert read_nodes(coordinator)["north"].node_id == first.node_id
                assert supernode.poll() is None, (tmp_path / "supernode.log").read_text()
                supernode.terminate()
                wait_for(lambda: "north" not in read_nodes(coordinator))
