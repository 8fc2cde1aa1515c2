"""The coordinator's end of Flower, against a real SuperLink and a node that need not be honest."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.control_pb2 import ListRunsRequest, StopRunRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

from echofed.cli.server_processes import SUPERLINK
from echofed.protocol.errors import UnreachableError
from echofed.server.flower_link import FlowerLink
from tests.gateways import free_port, listens, running, wait_for

SECRET = b"0123456789abcdef0123456789abcdef"


@dataclass
class Flower:
    """A SuperLink and one node.

    Args:
        folder: the coordinator's.
        address: of SuperLink.
        node: id.
        receive: returns the next message, None if there is none.
        send: sends a reply, without its parts.
        push_object: sends one of its parts.
        confirm: says that a message has come.
    """

    folder: Path
    address: str
    node: int
    receive: Callable[[], Any]
    send: Callable[..., Any]
    push_object: Callable[..., Any]
    confirm: Callable[..., Any]

    def link(self, secret: bytes = SECRET) -> FlowerLink:
        """Open a link."""
        return FlowerLink(self.address, secret, self.folder)

    def take(self) -> Message:
        """Return the next message that reaches the node."""
        found: list[Any] = []
        wait_for(lambda: found.append(self.receive()) or found[-1] is not None)
        message: Message = found[-1][0]
        self.confirm(message.metadata.run_id, message.metadata.message_id)
        return message

    def reply(self, to: Message, said: str | dict[str, ConfigRecord], parts: int | None = None) -> Callable[[], None]:
        """Reply with some of the message's parts, all if not said; returns what sends the others."""
        coordinator, TaskIdentity.node_id = TaskIdentity.node_id, self.node
        records = {"said": ConfigRecord({"text": said})} if isinstance(said, str) else said
        message = Message(RecordDict({**records}), reply_to=to)
        TaskIdentity.node_id = coordinator
        message.metadata.__dict__["_run_id"] = to.metadata.run_id
        message.metadata.__dict__["_message_id"] = message.object_id
        with no_object_id_recompute():
            tree, objects = get_object_tree(message), get_all_nested_objects(message)
            wanted, session = self.send(message, tree, 0.1)
            contents = [(key, one.deflate()) for key, one in objects.items() if key in wanted]
        run_id = to.metadata.run_id
        first = contents if parts is None else contents[:parts]
        for key, content in first:
            self.push_object(run_id, session, key, content)

        def rest() -> None:
            for key, content in contents[len(first) :]:
                self.push_object(run_id, session, key, content)

        return rest


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    folder, port = tmp_path_factory.mktemp("flower"), free_port()
    for name in ("run", "gateway"):
        (folder / name).mkdir()
    (folder / "secret").write_bytes(SECRET)
    command = [sys.executable, "-c", SUPERLINK, "--insecure", "--isolation", "process", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--superexec-auth-secret-file", str(folder / "secret")]
    command += ["--disable-runtime-dependency-installation"]
    with running(command, folder / "superlink.log", FLWR_HOME=str(folder / "home")) as process:
        wait_for(lambda: process.poll() is not None or listens(port), 60)
        address = f"127.0.0.1:{port}"
        with http_request_response(address, True) as (node, receive, send, _, _, _, push_object, confirm):
            yield Flower(folder, address, node, receive, send, push_object, confirm)


@contextmanager
def opened(flower: Flower) -> Iterator[FlowerLink]:
    link = flower.link()
    try:
        yield link
    finally:
        link.close()


def ask(flower: Flower, link: FlowerLink, text: str = "what?") -> str:
    key = link.push(Message(RecordDict({"asked": ConfigRecord({"text": text})}), flower.node, "query", ttl=60.0))
    assert key is not None
    return key


def pulled(link: FlowerLink, keys: list[str], seconds: float = 10.0) -> list[Message]:
    found: list[Message] = []
    deadline = time.monotonic() + seconds
    while not found and time.monotonic() < deadline:
        found += link.pull(keys)
        time.sleep(0.02)
    return found


def text_of(message: Message) -> str:
    record = message.content["said"]
    assert isinstance(record, ConfigRecord)
    return str(record["text"])


def test_a_message_goes_out_and_its_reply_comes_back(flower: Flower) -> None:
    with opened(flower) as link:
        key = ask(flower, link)
        flower.reply(flower.take(), "this")
        (reply,) = pulled(link, [key])
        assert (text_of(reply), reply.metadata.reply_to_message_id) == ("this", key)
        assert link.pull([ask(flower, link, "more")]) == []
        flower.reply(flower.take(), "nothing")


def test_a_reply_without_its_parts_holds_up_nobody_and_counts_when_they_come(flower: Flower) -> None:
    with opened(flower) as link:
        slow, quick = ask(flower, link, "slow"), ask(flower, link, "quick")
        rest = flower.reply(flower.take(), "slow", parts=1)
        start = time.monotonic()
        assert link.pull([slow, quick]) == []
        flower.reply(flower.take(), "quick")
        (reply,) = pulled(link, [slow, quick])
        assert text_of(reply) == "quick"
        assert link.pull([slow]) == []
        assert time.monotonic() - start < 5
        assert link.has_news()
        rest()
        (reply,) = pulled(link, [slow])
        assert (text_of(reply), reply.metadata.reply_to_message_id) == ("slow", slow)


@pytest.mark.parametrize("large", ["one record", "many records"])
def test_a_large_reply_is_none(flower: Flower, large: str) -> None:
    records = {"said": ConfigRecord({"text": "x" * 2**21})}
    if large == "many records":
        records = {str(number): ConfigRecord({"text": str(number)}) for number in range(8)}
    with opened(flower) as link:
        key = ask(flower, link)
        flower.reply(flower.take(), records)
        assert all(one.has_error() for one in pulled(link, [key], 1.0))  # Flower says that it knows of none
        key = ask(flower, link)
        flower.reply(flower.take(), "small")
        (reply,) = pulled(link, [key])
        assert text_of(reply) == "small"


def test_another_secret_claims_nothing(flower: Flower) -> None:
    with pytest.raises(UnreachableError):
        flower.link(b"x" * 32)


def test_a_link_ends_the_runs_before_it(flower: Flower) -> None:
    with opened(flower) as first:
        ask(flower, first)
        flower.reply(flower.take(), "before")
        with opened(flower) as second:
            key = ask(flower, second)
            flower.reply(flower.take(), "after")
            assert text_of(pulled(second, [key])[0]) == "after"
            assert first.push(Message(RecordDict(), flower.node, "query", ttl=60.0)) is None
            assert first.lost.is_set()
            assert not second.lost.is_set()


def test_a_run_somebody_stopped_is_noticed(flower: Flower) -> None:
    with opened(flower) as link:
        interceptor = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
        with ControlHttpClient.from_server_address(flower.address, True, None, [interceptor]) as control:
            for run_id, run in control.ListRuns(ListRunsRequest()).run_dict.items():
                if not run.status.status.startswith("finished"):
                    control.StopRun(StopRunRequest(run_id=run_id))
        assert link.push(Message(RecordDict(), flower.node, "query", ttl=60.0)) is None
        assert link.lost.is_set()
    with opened(flower) as link:
        key = ask(flower, link)
        flower.reply(flower.take(), "again")
        assert text_of(pulled(link, [key])[0]) == "again"


def test_a_superlink_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="does not answer"):
        FlowerLink(f"127.0.0.1:{free_port()}", SECRET, tmp_path)
