"""Attacks on the coordinator's door, the gateway alone and behind nginx: each is refused, and good sites are served on."""

import contextlib
import hashlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from echofed.protocol.certificates import certificate_pem
from echofed.protocol.key_files import key_pem, new_tls_key
from echofed.server.authority import open_authority
from echofed.server.blobs import BlobStore
from echofed.server.issuing import issue_leaf, issue_root
from echofed.server.members import revoke
from echofed.server.settings import load_settings
from tests.gateways import (
    SLOW_SECONDS,
    Door,
    add_site,
    embedded_door,
    free_port,
    listens,
    make_consortium,
    nginx_door,
    read_answer,
    superlink,
)

NOW = datetime.now(UTC)
ZEROS = "0" * 64
DOORS: dict[str, Callable[[Path, int], contextlib.AbstractContextManager[Door]]] = {
    "embedded": embedded_door,
    "nginx": nginx_door,
}


@pytest.fixture(scope="module", params=list(DOORS))
def doors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp(request.param)
    slow = {"header_timeout_seconds": SLOW_SECONDS, "idle_body_timeout_seconds": SLOW_SECONDS}
    coordinator = make_consortium(folder, "north", "south", **slow, connections_per_site=20)
    with superlink(folder, coordinator) as port, DOORS[request.param](folder, port) as opened:
        yield opened


@pytest.fixture
def door(doors: Door) -> Iterator[Door]:
    """A door that still serves a good site after the test."""
    yield doors
    said = doors.ask("GET", "/v1/time")
    assert said.status == 200, said
    assert (
        doors.ask("POST", "/v1/fleet/register-node", content_type="application/protobuf").status == 401
    )  # SuperLink's own answer


def is_nginx(door: Door) -> bool:
    return (door.folder / "nginx").exists()


def context(door: Door, certificate: str | None, key: EllipticCurvePrivateKey | None = None) -> ssl.SSLContext:
    """Return a client's TLS settings with a certificate of its own making."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(door.coordinator / "authority" / "root.pem")
    if certificate is not None:
        assert key is not None
        path = door.folder / "own.pem"
        path.write_bytes(key_pem(key, None) + certificate.encode())
        made.load_cert_chain(path)
    return made


def is_shut_out(door: Door, made: ssl.SSLContext) -> bool:
    """Return whether nothing is served to whoever presents this."""
    try:
        said = door.say(b"GET /v1/time HTTP/1.1\r\nHost: x\r\n\r\n", made)
    except (ssl.SSLError, ConnectionError):
        return True
    if is_nginx(door):
        return (said.status, said.code) == (403, "EF-702")
    return said.status == 0


def test_without_a_certificate(door: Door) -> None:
    assert is_shut_out(door, context(door, None))


def test_self_signed(door: Door) -> None:
    key = new_tls_key()
    root = issue_root("north", key, NOW)
    assert is_shut_out(door, context(door, certificate_pem(root), key))
    leaf = issue_leaf("site tls", "north", key.public_key(), root, key, NOW, timedelta(days=1))
    assert is_shut_out(door, context(door, certificate_pem(leaf), key))


def test_expired(door: Door) -> None:
    authority, key = open_authority(door.coordinator), new_tls_key()
    issuing, then = authority.consortium.issuing, NOW - timedelta(days=3)
    leaf = issue_leaf("site tls", "north", key.public_key(), issuing, authority.issuing_key, then, timedelta(days=1))
    assert is_shut_out(door, context(door, certificate_pem(leaf) + certificate_pem(issuing), key))


def test_of_another_consortium(door: Door, tmp_path: Path) -> None:
    make_consortium(tmp_path)
    other = add_site(tmp_path, "north")
    made = context(door, None)
    made.load_cert_chain(other.tls_file)
    assert is_shut_out(door, made)


@pytest.mark.parametrize("use", ["site signing", "server tls"])
def test_a_certificate_for_another_use(door: Door, use: str) -> None:
    authority, key = open_authority(door.coordinator), new_tls_key()
    issuing = authority.consortium.issuing
    arguments = ("north", key.public_key(), issuing, authority.issuing_key, NOW, timedelta(days=1))
    leaf = issue_leaf(use, *arguments)  # type: ignore[arg-type]
    assert is_shut_out(door, context(door, certificate_pem(leaf) + certificate_pem(issuing), key))


def test_a_certificate_that_is_not_on_record(door: Door) -> None:
    """Whoever stole the issuing key, but not the coordinator's records, stays outside."""
    authority, key = open_authority(door.coordinator), new_tls_key()
    issuing = authority.consortium.issuing
    leaf = issue_leaf("site tls", "north", key.public_key(), issuing, authority.issuing_key, NOW, timedelta(days=1))
    made = context(door, certificate_pem(leaf) + certificate_pem(issuing), key)
    said = door.say(b"GET /v1/time HTTP/1.1\r\nHost: x\r\n\r\n", made)
    assert (said.status, said.code) == (403, "EF-702")


def test_tls_1_2(door: Door) -> None:
    old = context(door, None)
    old.load_cert_chain(door.identity().tls_file)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        door.connect(old)


def test_plain_http(door: Door) -> None:
    with socket.create_connection(("127.0.0.1", door.port), 10) as stream:
        stream.sendall(b"GET /v1/time HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(stream).status in (0, 400, 403)


def test_revoked_between_two_requests_of_one_connection(door: Door) -> None:
    site = f"leaving{door.port}"
    identity = add_site(door.folder, site)
    ask = b"GET /v1/time HTTP/1.1\r\nHost: x\r\n\r\n"
    with door.connect(identity.ssl_context()) as tls:
        tls.sendall(ask)
        assert read_answer(tls).status == 200
        revoke(door.coordinator, site, "test")
        tls.sendall(ask)
        said = read_answer(tls)
    assert (said.status, said.code) == (403, "EF-702")
    assert door.ask("GET", "/v1/studies", site=site).status == 403
    assert any(one["site"] in (site, None) and "revoked" in str(one["reason"]) for one in door.noted())


@pytest.mark.parametrize(
    ("path", "method"),
    [(f"/v1/blobs/{ZEROS}", "PUT"), ("/v1/fleet/push-object", "POST"), ("/v1/answers", "POST"), ("/v1/renew", "POST")],
)
def test_ten_gigabytes_announced(door: Door, path: str, method: str) -> None:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10737418240\r\n\r\n"
    with door.connect() as tls:
        tls.sendall(head.encode())
        start = time.monotonic()
        said = read_answer(tls)
        assert (said.status, said.code) == (413, "EF-805")
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while tls.recv(4096):
                pass
        assert time.monotonic() - start < 8
    assert not list((door.coordinator / "blobs" / "incoming").glob("*/*.part"))


@pytest.mark.parametrize("path", [f"/v1/blobs/{ZEROS}", "/v1/answers"])
def test_chunks_without_end(door: Door, path: str) -> None:
    method = "PUT" if "blobs" in path else "POST"
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with door.connect() as tls:
        tls.sendall(head.encode())
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            for _ in range(20):
                tls.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        said = read_answer(tls)
    # The embedded gateway always gets its answer through; nginx may reset a connection that it was still reading.
    assert said.status == 411 or (is_nginx(door) and said.status in (0, 502))


def test_a_head_without_end(door: Door) -> None:
    start = time.monotonic()
    with door.connect() as tls:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            for byte in b"GET /v1/time HTTP/1.1\r\nHost: slow":
                tls.sendall(bytes([byte]))
                time.sleep(SLOW_SECONDS / 8)
        said = read_answer(tls)
    assert said.status in (0, 408)
    assert time.monotonic() - start < 8 * SLOW_SECONDS


@pytest.mark.parametrize("target", [f"PUT /v1/blobs/{ZEROS}", "POST /v1/fleet/push-object"])
def test_a_body_without_end(door: Door, target: str) -> None:
    start = time.monotonic()
    with door.connect() as tls:
        tls.sendall(f"{target} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while time.monotonic() - start < 4 * SLOW_SECONDS:
                tls.sendall(b"x")
                time.sleep(SLOW_SECONDS / 10)
        assert read_answer(tls).status in (0, 408)
    assert not list((door.coordinator / "blobs" / "incoming").glob("*/*.part"))


def test_handshakes_that_never_end(door: Door) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(40):
            held.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", door.port), 5)))
        time.sleep(1.5 * SLOW_SECONDS)
        assert door.ask("GET", "/v1/time").status == 200


def test_too_many_connections_of_a_site(door: Door) -> None:
    ask = b"GET /v1/time HTTP/1.1\r\nHost: x\r\n\r\n"
    statuses = []
    with contextlib.ExitStack() as held:
        for _ in range(30):
            tls = held.enter_context(door.connect(door.identity("south").ssl_context()))
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                tls.sendall(ask)
            statuses.append(read_answer(tls).status)
        assert statuses[:20] == [200] * 20
        assert is_nginx(door) or 200 not in statuses[20:]  # nginx itself closes idle ones when it has too many
        assert door.ask("GET", "/v1/time", site="north").status == 200


@pytest.mark.parametrize("lines", [["X: " + "a" * 40_000], [f"X{number}: {'a' * 100}" for number in range(1000)]])
def test_huge_heads(door: Door, lines: list[str]) -> None:
    said = door.say("\r\n".join(["GET /v1/time HTTP/1.1", "Host: x", *lines, "\r\n"]).encode())
    assert said.status in (0, 400, 431)


@pytest.mark.parametrize(
    "head",
    [
        "POST /v1/answers HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/answers HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "POST /v1/answers HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
        "POST /v1/answers HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 40\r\n\r\nabcd",
        "POST /v1/answers HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 4\r\n\r\nabcd",
        "POST /v1/answers HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\nabcd",
        "POST /v1/answers HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        "POST /v1/answers HTTP/1.1\r\nHost: x\r\nContent-Length : 4\r\n\r\nabcd",
        "POST /v1/answers HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\x0bchunked\r\nContent-Length: 4\r\n\r\nabcd",
        "POST /v1/answers HTTP/1.1\r\nHost: x\r\n Content-Length: 4\r\n\r\nabcd",
        "POST /v1/answers HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\nContent-Length: 4\r\n\r\nabcd",
        "POST /v1/answers HTTP/1.1\r\n\r\n",
        "POST /v1/answers\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_requests_that_can_be_read_in_two_ways(door: Door, head: str) -> None:
    follow_up = "GET /v1/studies HTTP/1.1\r\nHost: x\r\n\r\n"
    with door.connect() as tls:
        tls.sendall((head + follow_up).encode())
        said = read_answer(tls)
        assert said.status in (0, 501) or 400 <= said.status < 500
        # What follows was part of nothing: the connection is closed, or it was a request like any other.
        assert read_answer(tls).status in (0, 200, 400)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/control/list-runs",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/runtime/get-nodes",
        "/v1/fleet/unknown",
        "/v1/fleet/",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "/v1/fleet//register-node",
        "//v1/fleet/register-node",
        "/v1/%66leet/register-node",
        "/V1/FLEET/register-node",
        "/v1/fleet/register-node/",
        "/v1/fleet/register-node?x=1",
        "/v1/fleet/register-node;x",
        "/v1/fleet/./register-node",
        "/v1/fleet/register-node%00",
        "/docs",
        "/openapi.json",
        "/",
        "*",
        "/v1/time",
        "/v1/blobs/",
    ],
)
def test_what_is_not_listed_is_not_there(door: Door, target: str) -> None:
    said = door.ask("POST", target, b"", content_type="application/protobuf")
    assert said.status in (400, 404)
    assert b"flwr" not in said.body
    assert b"SuperNode" not in said.body


def test_the_absolute_form_reaches_nothing_else(door: Door) -> None:
    said = door.ask("POST", f"http://127.0.0.1:{door.port}/v1/control/list-runs", b"")
    assert said.status in (400, 404)


@pytest.mark.parametrize("name", ["X-Client-Cert", "x-client-cert", "X_Client_Cert"])
def test_a_forged_certificate_header_changes_nothing(door: Door, name: str) -> None:
    """With south's certificate in the header, north stays north."""
    content = f"{name} from {door.port}".encode()
    target = f"/v1/blobs/{hashlib.sha256(content).hexdigest()}"
    forged = door.identity("south").membership.tls_pem.replace("\n", "%0A").replace(" ", "%20")
    head = f"PUT {target} HTTP/1.1\r\nHost: x\r\n{name}: {forged}\r\nContent-Length: {len(content)}\r\n\r\n"
    assert door.say(head.encode() + content).status == 200
    store, digest = BlobStore(door.coordinator), hashlib.sha256(content).hexdigest()
    assert store.has_incoming("north", digest, len(content))
    assert not store.has_incoming("south", digest, len(content))


def test_a_forged_header_is_no_certificate(door: Door) -> None:
    forged = door.identity("north").membership.tls_pem.replace("\n", "%0A").replace(" ", "%20")
    made = context(door, None)
    try:
        said = door.say(f"GET /v1/time HTTP/1.1\r\nHost: x\r\nX-Client-Cert: {forged}\r\n\r\n".encode(), made)
    except (ssl.SSLError, ConnectionError):
        return
    assert said.status in (0, 403)


def test_a_blob_that_is_not_what_its_name_says(door: Door) -> None:
    said = door.ask("PUT", f"/v1/blobs/{ZEROS}", b"something else")
    assert (said.status, said.code) == (400, "EF-502")
    assert not list((door.coordinator / "blobs" / "incoming").glob(f"*/{ZEROS}*"))


@pytest.mark.parametrize(
    "name", ["../../members/north.json", "..%2f..%2fconsortium.yaml", "%2e%2e/x", ZEROS[:-1], ZEROS + "0", "A" * 64, ""]
)
def test_blobs_that_are_not_named_by_a_hash(door: Door, name: str) -> None:
    assert door.ask("GET", f"/v1/blobs/{name}").status in (400, 404)
    assert door.ask("PUT", f"/v1/blobs/{name}", b"x").status in (400, 404)


def test_another_sites_blob_cannot_be_fetched(door: Door) -> None:
    content = f"private to north at {door.port}".encode()
    name = hashlib.sha256(content).hexdigest()
    assert door.ask("PUT", f"/v1/blobs/{name}", content).status == 200
    for site in ("north", "south"):
        said = door.ask("GET", f"/v1/blobs/{name}", site=site)
        assert (said.status, said.code) == (404, "EF-803")


def test_documents_that_are_none(door: Door) -> None:
    for target in ("/v1/answers", "/v1/renew"):
        for body in (b"", b"{}", b"\xff" * 100, b"[" * 100_000):
            said = door.ask("POST", target, body)
            assert (said.status, said.code) == (400, "EF-703")


def test_it_listens_where_it_was_told_to_and_nowhere_else(door: Door) -> None:
    assert load_settings(door.coordinator).bind_host == "127.0.0.1"
    assert listens(door.port)
    with socket.socket() as probe:
        probe.settimeout(1)
        assert probe.connect_ex(("127.0.0.2", door.port)) != 0
    assert free_port() != door.port
