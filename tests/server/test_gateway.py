"""The gateway at work: what sites get from it, from SuperLink behind it, and how it starts and stops."""

import base64
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.message_pb2 import Message as FlowerMessage
from flwr.proto.message_pb2 import Metadata, ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from echofed.client.link import Link
from echofed.client.link_settings import LinkSettings
from echofed.protocol.audit_log import open_existing_log
from echofed.protocol.http_head import RefusalError
from echofed.server.authority import init_consortium
from echofed.server.blobs import INCOMING, BlobStore
from echofed.server.gateway_files import UPDATE_SPARE_BYTES
from echofed.server.gateway_fleet import MAX_TREE_NODES
from echofed.server.gateway_limits import MAX_WAIT_SECONDS, Notes, Quota, Rates
from echofed.server.gateway_nodes import read_nodes
from echofed.server.gateway_strangers import Stranger, Strangers
from echofed.server.gateway_tls import ServerTls
from echofed.server.members import revoke
from echofed.server.publishing import publish_study
from echofed.server.settings import load_settings
from tests.gateways import (
    Door,
    Said,
    add_site,
    embedded_door,
    free_port,
    listens,
    make_consortium,
    short_limits,
    superlink,
    wait_for,
)
from tests.study_files import write_study_files


class FlowerNode:
    """A SuperNode's side of Flower's Fleet API, message by message."""

    def __init__(self, door: Door, site: str = "north") -> None:
        self.door, self.site = door, site
        self._private, public = generate_key_pairs()
        self._signer = NodeAuthHttpInterceptor(self._private, public)
        self.public_key = public_key_to_bytes(public)
        self.node_id = 0

    def headers(self) -> dict[str, str]:
        """Return what SuperNode signs a request with."""
        request = httpx.Request("POST", "http://127.0.0.1")
        context = ProtobufRequestContext("", PullMessagesRequest(), request)
        self._signer.intercept(context, lambda _: httpx.Response(200))
        signed = {name: value for name, value in request.headers.items() if name.startswith("flwr-")}
        return {"content-type": "application/protobuf", **signed}

    def send(self, path: str, message: object, site: str | None = None, **headers: str) -> Said:
        """Send a message."""
        body = message.SerializeToString()  # type: ignore[attr-defined]
        target = f"/v1/fleet/{path}"
        return self.door.ask("POST", target, body, site or self.site, **{**self.headers(), **headers})

    def register(self) -> None:
        """Become a node of SuperLink."""
        assert self.send("register-node", RegisterNodeFleetRequest(public_key=self.public_key)).status == 200
        said = self.send("activate-node", ActivateNodeRequest(public_key=self.public_key, heartbeat_interval=30))
        assert said.status == 200, said
        self.node_id = ActivateNodeResponse.FromString(said.body).node_id

    def pull(self, **headers: str) -> Said:
        """Ask for messages."""
        return self.send("pull-messages", PullMessagesRequest(node=Node(node_id=self.node_id)), **headers)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("gateway")
    coordinator = make_consortium(folder, "north", "south")
    with superlink(folder, coordinator) as port, embedded_door(folder, port) as opened:
        yield opened


def test_a_node_is_written_down_as_its_sites(door: Door) -> None:
    node = FlowerNode(door)
    node.register()
    noted = read_nodes(door.coordinator)["north"]
    assert noted.node_id == node.node_id
    assert base64.b64decode(noted.public_key) == node.public_key
    assert any(one["site"] == "north" for one in door.noted("connected"))
    assert node.send("unregister-node", UnregisterNodeFleetRequest(node_id=node.node_id)).status == 200
    assert "north" not in read_nodes(door.coordinator)


def test_an_empty_question_for_messages_is_held(door: Door) -> None:
    node = FlowerNode(door)
    node.register()
    start = time.monotonic()
    said = node.pull()
    assert said.status == 200
    assert said.body == b""
    assert 0.9 < time.monotonic() - start < 3
    start = time.monotonic()
    assert node.pull(prefer="wait=0").status == 200
    assert time.monotonic() - start < 0.6


def test_another_sites_node_and_key_are_refused(door: Door) -> None:
    north, south = FlowerNode(door, "north"), FlowerNode(door, "south")
    north.register()
    south.register()
    said = south.send("pull-messages", PullMessagesRequest(node=Node(node_id=north.node_id)))
    assert (said.status, said.code) == (403, "EF-803")
    said = north.send("pull-messages", PullMessagesRequest(node=Node(node_id=north.node_id)), site="south")
    assert (said.status, said.code) == (403, "EF-803")
    said = south.send("activate-node", ActivateNodeRequest(public_key=north.public_key, heartbeat_interval=30))
    assert (said.status, said.code) == (403, "EF-803")
    said = south.send("register-node", RegisterNodeFleetRequest(public_key=north.public_key))
    assert (said.status, said.code) == (403, "EF-803")
    key = base64.b64encode(north.public_key).decode()
    said = south.send(
        "pull-messages", PullMessagesRequest(node=Node(node_id=south.node_id)), **{"flwr-public-key": key}
    )
    assert (said.status, said.code) == (403, "EF-803")
    assert any(one["site"] == "south" and "not this site" in str(one["reason"]) for one in door.noted())
    assert north.pull(prefer="wait=0").status == 200


def test_a_message_of_many_objects_and_a_large_one_are_refused(door: Door) -> None:
    node = FlowerNode(door)
    node.register()
    message = FlowerMessage(metadata=Metadata(src_node_id=node.node_id))
    tree = ObjectTree(object_id="0", children=[ObjectTree(object_id=str(number)) for number in range(1, 9)])
    pushed = PushMessagesRequest(node=Node(node_id=node.node_id), messages_list=[message], message_object_trees=[tree])
    said = node.send("push-messages", pushed)
    assert (said.status, said.code) == (413, "EF-805")
    del tree.children[MAX_TREE_NODES - 1 :]
    pushed = PushMessagesRequest(node=Node(node_id=node.node_id), messages_list=[message], message_object_trees=[tree])
    assert node.send("push-messages", pushed).status != 413
    part = PushObjectRequest(node=Node(node_id=node.node_id), object_id="0", object_content=bytes(2**20))
    said = node.send("push-object", part)
    assert (said.status, said.code) == (413, "EF-805")


def test_superlinks_own_errors_pass_unchanged(door: Door) -> None:
    node = FlowerNode(door)
    node.register()
    said = node.pull(**{"flwr-signature": "AAAA"})
    assert (said.status, json.loads(said.body)) == (401, {"detail": "Invalid SuperNode authentication"})
    said = door.ask("POST", "/v1/fleet/register-node", b"", content_type="application/protobuf")
    assert said.status == 401
    assert json.loads(said.body) == {"detail": "Invalid SuperNode authentication"}
    assert door.ask("POST", "/v1/fleet/get-run", b"\xff\xff").code == "EF-803"


def test_a_site_that_goes_away_is_noticed(door: Door) -> None:
    node = FlowerNode(door)
    node.register()
    counts = []
    for _ in range(25):  # those of the requests before may still be ending
        time.sleep(0.02)
        counts.append(threading.active_count())
    before = min(counts)
    tls = door.connect()
    body = PullMessagesRequest(node=Node(node_id=node.node_id)).SerializeToString()
    lines = ["POST /v1/fleet/pull-messages HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in node.headers().items()]
    tls.sendall("\r\n".join([*lines, "\r\n"]).encode() + body)
    wait_for(lambda: threading.active_count() > before)
    tls.close()
    wait_for(lambda: threading.active_count() <= before, 0.8)


def test_blobs_go_both_ways(door: Door, tmp_path: Path) -> None:
    link = Link(door.identity(), LinkSettings())
    content = os.urandom(3_000_001)
    (tmp_path / "reply").write_bytes(content)
    name = link.put_blob(tmp_path / "reply")
    store = BlobStore(door.coordinator)
    assert store.incoming("north", name).read_bytes() == content
    assert link.put_blob(tmp_path / "reply", name) == name  # again: it is there
    published = store.publish(content[::-1])
    link.get_blob(published, tmp_path / "fetched", 4_000_000)
    assert (tmp_path / "fetched").read_bytes() == content[::-1]
    link.close()


def test_a_blob_that_is_there_is_answered_before_it_is_sent(door: Door) -> None:
    content = b"known already" * 100
    name = hashlib.sha256(content).hexdigest()
    assert door.ask("PUT", f"/v1/blobs/{name}", content).status == 200
    head = f"PUT /v1/blobs/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    assert door.say(head.encode()).status == 200


def test_without_superlink_it_says_so_and_to_try_again(tmp_path: Path) -> None:
    make_consortium(tmp_path, "north")
    with embedded_door(tmp_path, free_port()) as door:
        said = door.ask("POST", "/v1/fleet/register-node", b"")
    assert (said.status, said.code) == (503, "EF-801")
    assert said.headers["retry-after"] == "1"


def test_a_renewed_server_certificate_is_taken_up(tmp_path: Path) -> None:
    coordinator = make_consortium(tmp_path, "north")
    tls = ServerTls(coordinator, reload_seconds=0.0)
    first = tls.context()
    assert tls.context() is first
    (coordinator / "authority" / "server.pem").unlink()
    assert tls.context() is first  # it goes on with what it has
    init_consortium(coordinator, "Test", load_settings(coordinator).address)
    assert tls.context() is not first


def test_the_process_stops_within_three_seconds_though_sites_wait(tmp_path: Path) -> None:
    coordinator = make_consortium(tmp_path, "north")
    port = load_settings(coordinator).bind_port
    command = [sys.executable, "-m", "echofed.server.gateway", str(coordinator), f"127.0.0.1:{free_port()}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: process.poll() is not None or listens(port))
    door = Door(tmp_path, port)
    idle, sending = door.connect(), door.connect()
    idle.sendall(b"GET /v1/time HTTP/1.1\r\nHost: x\r\n\r\n")
    assert idle.recv(4096).startswith(b"HTTP/1.1 200")
    sending.sendall(b"PUT /v1/blobs/" + b"0" * 64 + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx")
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert time.monotonic() - start < 3
    idle.close()
    sending.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    coordinator = make_consortium(tmp_path, "north")
    with socket.create_server(("127.0.0.1", load_settings(coordinator).bind_port)):
        command = [sys.executable, "-m", "echofed.server.gateway", str(coordinator), "127.0.0.1:1"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.startswith("[EF-804]")


def test_too_many_requests_wait_and_then_are_refused() -> None:
    now = [100.0]
    rates = Rates(10.0, 5, lambda: now[0])
    assert [rates.wait_seconds("north") for _ in range(5)] == pytest.approx([0.0] * 5)
    assert rates.wait_seconds("north") == pytest.approx(0.1)
    assert rates.wait_seconds("south") == 0.0
    waits = [rates.wait_seconds("north") for _ in range(19)]
    assert max(waits) <= MAX_WAIT_SECONDS + 1e-9
    with pytest.raises(RefusalError, match="Too many requests") as refused:
        rates.wait_seconds("north")
    assert refused.value.status == 429
    now[0] += MAX_WAIT_SECONDS + 1
    assert rates.wait_seconds("north") == 0.0


def test_the_door_stays_open_however_many_wait_in_it(tmp_path: Path) -> None:
    coordinator = make_consortium(tmp_path, "north")
    limits = replace(short_limits(coordinator), strangers=4, strangers_per_address=4)
    with embedded_door(tmp_path, free_port(), limits) as door, contextlib.ExitStack() as held:
        start = time.monotonic()
        silent = [socket.create_connection(("127.0.0.1", door.port), 5) for _ in range(8)]
        for stream in silent:
            held.callback(stream.close)
        assert door.ask("GET", "/v1/time").status == 200
        assert time.monotonic() - start < limits.silent_seconds
        for stream in silent:
            assert stream.recv(1) == b""
        assert time.monotonic() - start < limits.silent_seconds + 2 < limits.handshake_seconds


def test_the_oldest_stranger_of_the_fullest_address_goes() -> None:
    strangers, pairs = Strangers(2, 4), list[tuple[socket.socket, socket.socket]]()

    def enter(address: str) -> tuple[Stranger, Stranger | None]:
        pairs.append(socket.socketpair())
        stranger = Stranger(pairs[-1][0], address)
        return stranger, strangers.enter(stranger)

    (first, _), (second, dropped) = enter("a"), enter("a")
    assert dropped is None
    assert enter("a")[1] is first  # its address is full
    assert pairs[0][1].recv(1) == b""
    assert not strangers.goes_on(first, first.stream)
    assert strangers.goes_on(second, second.stream)
    strangers.leave(first)  # it has no place to give back
    assert [enter(address)[1] for address in "bcd"] == [None, None, second]
    for pair in pairs:
        pair[0].close()
        pair[1].close()


def test_a_blob_larger_than_any_published_model_is_refused(tmp_path: Path) -> None:
    coordinator, files = make_consortium(tmp_path, "north"), write_study_files(tmp_path / "offered")
    head = f"PUT /v1/blobs/{'0' * 64} HTTP/1.1\r\nHost: x\r\nContent-Length: {{}}\r\n\r\n"
    largest = files.parameters_path.stat().st_size + UPDATE_SPARE_BYTES
    with embedded_door(tmp_path, free_port()) as door:
        with door.connect() as tls:
            tls.sendall(head.format(largest + 1).encode() + b"x")
            tls.settimeout(0.3)
            with pytest.raises(TimeoutError):
                tls.recv(1)  # without a study it is waited for
        publish_study(coordinator, files.study_path, files.parameters_path)
        assert door.say(head.format(largest + 1).encode()).status == 413


def test_a_damaged_study_is_logged_once_and_the_others_are_handed_out(tmp_path: Path) -> None:
    coordinator = make_consortium(tmp_path, "north")
    small = write_study_files(tmp_path / "small", title="Small")
    publish_study(coordinator, small.study_path, small.parameters_path)
    large = write_study_files(tmp_path / "large", title="Large")
    path = publish_study(coordinator, large.study_path, large.parameters_path).folder / "publication.json"
    whole = path.read_bytes()
    put = f"PUT /v1/blobs/{'0' * 64} HTTP/1.1\r\nHost: x\r\nContent-Length: {2**22}\r\n\r\n"

    def handed_out(door: Door) -> list[str]:
        said = door.ask("GET", "/v1/studies")
        assert said.status == 200
        return [json.loads(one["payload"])["study_hash"] for one in json.loads(said.body)]

    with embedded_door(tmp_path, free_port()) as door:
        path.write_bytes(whole[:-100])
        for _ in range(3):
            assert handed_out(door) == [small.study.hash]
        with door.connect() as tls:
            tls.sendall(put.encode())
            tls.settimeout(0.3)
            with pytest.raises(TimeoutError):
                tls.recv(1)  # how large an update of the damaged study may be is not known: it is waited for
        path.write_bytes(whole)
        assert handed_out(door) == sorted([small.study.hash, large.study.hash])
        assert door.say(put.encode()).status == 413
    with open_existing_log(coordinator) as log:
        errors = [entry.facts for entry in log.entries() if entry.event == "error"]
    assert [(one["study"], one["code"]) for one in errors] == [(large.study.hash, "EF-703")]
    assert str(path) in str(errors[0]["what"])


def test_what_a_revoked_site_sent_goes(door: Door) -> None:
    store = BlobStore(door.coordinator)
    add_site(door.folder, "leaving")
    for site in ("leaving", "north"):
        content = f"from {site}".encode()
        assert door.ask("PUT", f"/v1/blobs/{hashlib.sha256(content).hexdigest()}", content, site).status == 200
    assert list((door.coordinator / INCOMING / "leaving").iterdir())
    revoke(door.coordinator, "leaving", "test")
    assert door.ask("PUT", f"/v1/blobs/{hashlib.sha256(b'next').hexdigest()}", b"next").status == 200
    assert not list((door.coordinator / INCOMING / "leaving").iterdir())
    assert store.has_incoming("north", hashlib.sha256(b"from north").hexdigest(), len(b"from north"))


def test_each_has_a_share_and_gives_it_back() -> None:
    quota = Quota(2, 3)
    assert [quota.take("a"), quota.take("a"), quota.take("a"), quota.take("b"), quota.take("c")] == [
        True,
        True,
        False,
        True,
        False,
    ]
    quota.give_back("a")
    assert quota.take("c")


def test_refusals_of_a_kind_are_noted_once_a_minute(door: Door) -> None:
    class Log:
        def __init__(self) -> None:
            self.entries: list[tuple[str, object]] = []

        def append(self, event: str, **facts: object) -> None:
            self.entries.append((str(facts["reason"]), facts["count"]))

    now, log = [0.0], Log()
    notes = Notes(log, lambda: now[0])  # type: ignore[arg-type]
    for _ in range(1000):
        notes.refused("north", "why", "127.0.0.1")
    notes.refused("south", "why", "127.0.0.1")
    assert log.entries == [("why", 1), ("why", 1)]
    now[0] = 61.0
    notes.refused("north", "why", "127.0.0.1")
    assert log.entries[2:] == [("why", 1000)]
    for number in range(5000):
        notes.refused("north", f"{number}", "127.0.0.1")
    assert len(log.entries) < 1100
    notes.refused("north", "why", "127.0.0.1")
    notes.close()
    assert ("why", 1) in log.entries[-2:]
