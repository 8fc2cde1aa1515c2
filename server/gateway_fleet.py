"""Flower's Fleet API, and nothing else of SuperLink: each message is checked for whose node sends it, then forwarded.

SuperLink listens on loopback; its answers pass unchanged. A question for messages is held until there is one, because stock
SuperNode sleeps three seconds after an empty answer.
"""

import http.client
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.run_pb2 import GetRunRequest
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from echofed.protocol.bells import bell_of, last_ring, ring
from echofed.protocol.errors import GatewayRefusedError, TooLargeError, UnreachableError
from echofed.protocol.http_connection import HttpConnection
from echofed.protocol.http_head import RefusalError, Request
from echofed.protocol.http_pool import ConnectionPool
from echofed.server.gateway_nodes import NodeBook

PREFIX = "/v1/fleet/"
MESSAGES: dict[str, type[Message]] = {
    "register-node": RegisterNodeFleetRequest,
    "activate-node": ActivateNodeRequest,
    "deactivate-node": DeactivateNodeRequest,
    "unregister-node": UnregisterNodeFleetRequest,
    "send-node-heartbeat": SendNodeHeartbeatRequest,
    "pull-messages": PullMessagesRequest,
    "push-messages": PushMessagesRequest,
    "get-run": GetRunRequest,
    "get-fab": GetFabRequest,
    "push-object": PushObjectRequest,
    "pull-object": PullObjectRequest,
    "confirm-message-received": ConfirmMessageReceivedRequest,
}
"""What a site may ask of SuperLink, each under `PREFIX`."""
SENT_BELLS = Path("gateway", "sent")
REPLIED_BELL = Path("gateway", "replied")
"""Of the coordinator's folder: rung by the conductor when it has sent a node something, by the gateway for a reply."""
LOOK_SECONDS = 0.02
"""Between two looks for a new message while a site waits."""
ASK_SECONDS = 2.0
"""Between two questions to SuperLink while the bell is not rung."""
UPSTREAM_SECONDS = 25.0
UPSTREAM_IDLE_SECONDS = 4.0
"""SuperLink closes an idle connection after five."""

MAX_TREE_NODES = 8
"""Objects of a Flower message; a site's reply has three: the message, its records, the one record."""

_MAX_ANSWER_BYTES = 64 * 2**20
_KEY_HEADER = "flwr-public-key"
_FORWARDED = (
    "content-type",
    "accept",
    _KEY_HEADER,
    "flwr-signature",
    "flwr-timestamp",
    "flwr-package-name",
    "flwr-package-version",
    "flwr-component-name",
)


@dataclass(frozen=True)
class Answer:
    """What SuperLink said."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Fleet:
    """The way to SuperLink.

    Args:
        address: host and port of SuperLink.
        folder: the coordinator's, with the bells.
        nodes: which node is whose.
        poll_seconds: for which a question for messages is held at most.
    """

    def __init__(self, address: tuple[str, int], folder: Path, nodes: NodeBook, poll_seconds: float) -> None:
        self._sent, self._replied = folder / SENT_BELLS, folder / REPLIED_BELL
        self._sent.mkdir(mode=0o700, exist_ok=True)
        self._nodes, self._poll_seconds = nodes, poll_seconds
        self._pool = ConnectionPool(
            lambda: http.client.HTTPConnection(*address, timeout=UPSTREAM_SECONDS), UPSTREAM_IDLE_SECONDS
        )

    def forward(
        self, site: str, request: Request, connection: HttpConnection, check: Callable[[], None]
    ) -> Answer | None:
        """Check a message and return SuperLink's answer; None if the site has gone meanwhile.

        Args:
            site: whose certificate it is.
            request: its path is one of `MESSAGES`; its length was checked.
            connection: with the body still to be read.
            check: raises RefusalError when the site is no longer welcome.

        Raises:
            RefusalError: 400 not the message its path says; 403 another site's node or key; 413 too many objects;
                503 SuperLink does not answer.
        """
        name = request.target.removeprefix(PREFIX)
        body = connection.read_body()
        message = _parsed(MESSAGES[name], body)
        self._check(site, message, request.headers.get(_KEY_HEADER))
        headers = {header: value for header in _FORWARDED if (value := request.headers.get(header)) is not None}
        if name == "pull-messages":
            bell = bell_of(self._sent, _node_id(message))
            return self._poll(request, body, headers, connection, check, bell)
        answer = self._ask(request.target, body, headers)
        self._note(site, message, answer)
        if name in ("push-messages", "push-object"):
            ring(self._replied)
        return answer

    def close(self) -> None:
        """Close the connections kept."""
        self._pool.close()

    def _check(self, site: str, message: Message, public_key: str | None) -> None:
        if isinstance(message, RegisterNodeFleetRequest | ActivateNodeRequest):
            self._nodes.check_key(site, message.public_key)
            return
        node_id = _node_id(message)
        self._nodes.check_node(site, node_id, public_key)
        if isinstance(message, PushMessagesRequest):
            for pushed in message.messages_list:
                if pushed.metadata.src_node_id != node_id:
                    raise RefusalError(403, GatewayRefusedError("The message is in another node's name."))
            if not are_small(message.message_object_trees):
                raise RefusalError(413, TooLargeError(f"A message has more than {MAX_TREE_NODES} objects."))

    def _note(self, site: str, message: Message, answer: Answer) -> None:
        if answer.status != 200:
            return
        if isinstance(message, ActivateNodeRequest):
            node_id = ActivateNodeResponse.FromString(answer.body).node_id
            self._nodes.activated(site, node_id, message.public_key)
        elif isinstance(message, UnregisterNodeFleetRequest):
            self._nodes.unregistered(site)

    def _poll(
        self,
        request: Request,
        body: bytes,
        headers: Mapping[str, str],
        connection: HttpConnection,
        check: Callable[[], None],
        bell: Path,
    ) -> Answer | None:
        deadline = time.monotonic() + min(self._poll_seconds, _wanted_wait(request))
        while True:
            before = last_ring(bell)  # before asking: what is sent during the question is not missed
            asked_at = time.monotonic()
            answer = self._ask(request.target, body, headers)
            if answer.status != 200 or PullMessagesResponse.FromString(answer.body).messages_list:
                return answer
            while True:
                time.sleep(LOOK_SECONDS)
                now = time.monotonic()
                if now >= deadline:
                    return answer
                if connection.peer_is_gone():
                    return None
                check()
                if last_ring(bell) != before or now - asked_at >= ASK_SECONDS:
                    break

    def _ask(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        kept = self._pool.take()
        try:
            if kept is not None:
                try:
                    return self._exchange(kept, path, body, headers)
                except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                    kept.close()  # SuperLink closed it in the same instant; it has not read the request
            return self._exchange(self._pool.open(), path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            remedy = "It is starting or restarting: try again; if it lasts, the coordinator looks at SuperLink's log."
            raise RefusalError(503, UnreachableError("SuperLink does not answer.", remedy)) from error

    def _exchange(
        self, upstream: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str]
    ) -> Answer:
        try:
            upstream.request("POST", path, body, dict(headers))
            response = upstream.getresponse()
            content = response.read(_MAX_ANSWER_BYTES)
        except BaseException:
            upstream.close()
            raise
        if response.isclosed():
            self._pool.keep(upstream)
        else:
            upstream.close()
        passed = {name: value for name, value in response.getheaders() if name.lower().startswith("flwr-")}
        passed["Content-Type"] = response.getheader("content-type", "application/octet-stream")
        return Answer(response.status, passed, content)


def are_small(trees: Iterable[ObjectTree]) -> bool:
    """Return whether all trees together have at most `MAX_TREE_NODES` nodes; no more of them are looked at."""
    waiting, nodes = list(trees), 0
    while waiting and nodes + len(waiting) <= MAX_TREE_NODES:
        waiting.extend(waiting.pop().children)
        nodes += 1
    return not waiting


def _parsed(kind: type[Message], body: bytes) -> Message:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise RefusalError(400, GatewayRefusedError("The body is not the message its path says.")) from error


def _node_id(message: Message) -> int:
    if isinstance(message, DeactivateNodeRequest | UnregisterNodeFleetRequest):
        return message.node_id
    node = getattr(message, "node", None)
    return int(node.node_id) if node is not None else -1


def _wanted_wait(request: Request) -> float:
    """Return for how long the site is ready to wait, as it says in `Prefer: wait=SECONDS` (Snell (2014), RFC 7240)."""
    name, _, seconds = request.headers.get("prefer", "").partition("=")
    return float(seconds) if name == "wait" and seconds.isascii() and seconds.isdigit() else float("inf")
