"""The coordinator's end of Flower: a run on SuperLink, whose ServerApp task this process claims for itself.

A Flower run is a means of transport: it carries every study's messages while the process lives, and another takes its place
after a crash. What must survive stands in the studies' checkpoints.
"""

import logging
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import httpx
from flwr.app import Message
from flwr.common.constant import SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    AcquireTaskResponse,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_and_inflate_object_from_tree,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from echofed.protocol.bells import bell_of, last_ring, ring
from echofed.protocol.bundle import bundle_hash, empty_bundle
from echofed.protocol.errors import UnreachableError
from echofed.server.gateway_fleet import REPLIED_BELL, SENT_BELLS, are_small

LOG = logging.getLogger("echofed.server")
HEARTBEAT_SECONDS = 10.0
PARTS_SECONDS = 0.04
LOOK_SECONDS = 1.0
CLAIM_SECONDS = 20.0
WHOLE_SECONDS = 60.0
"""For all parts of a reply to come."""
REPLY_BYTES = 2**20
"""Of all parts of a reply; what is larger travels as a file."""
FAILURES: tuple[type[BaseException], ...] = (httpx.HTTPError, RunNotRunningException, ValueError)
"""What a call to SuperLink may raise."""


class FlowerLink:
    """A claimed ServerApp task on SuperLink; lost when SuperLink forgets it, then another must be opened.

    Args:
        address: host:port of SuperLink, on loopback.
        secret: shared with SuperLink; only who holds it can claim its tasks.
        folder: the coordinator's, with the bells between conductor and gateway.

    Raises:
        UnreachableError: SuperLink does not answer.
    """

    def __init__(self, address: str, secret: bytes, folder: Path) -> None:
        self._address, self._secret = address, secret
        self._sent, self._replied = folder / SENT_BELLS, folder / REPLIED_BELL
        self._heard, self._pulled_at = 0, 0.0
        self._stopped, self.lost = threading.Event(), threading.Event()
        try:
            run_id = self._start_run()
            token = self._claim(run_id)
            self._grid = _OneTryGrid(address, insecure=True, token=token)
            given = self._grid.runtime.PullTaskInput(PullTaskInputRequest())
        except FAILURES as error:
            raise UnreachableError(f"SuperLink at {address} does not answer: {error!r}.", "See its log.") from error
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        self._grid.set_run(run_from_proto(given.run))
        threading.Thread(target=self._beat, daemon=True).start()

    def push(self, message: Message) -> str | None:
        """Hand a message to SuperLink and return its id there; None if it was not taken."""
        try:
            pushed = list(self._grid.push_messages([message]))
        except FAILURES as error:
            self._failed(error)
            return None
        except ObjectPushError as error:  # the request came twice, and SuperLink takes the parts of the later one only
            LOG.info("SuperLink: %s", error)
            return None
        ring(bell_of(self._sent, message.metadata.dst_node_id))
        return pushed[0] if pushed else None

    def has_news(self) -> bool:
        """Return whether the gateway has passed on replies since the last `pull`; now and then also if it has not said so."""
        if self._grid.coming:
            return True
        rung, now = last_ring(self._replied), time.monotonic()
        # A reply comes in parts, each with a ring: the last is waited for.
        return (
            rung != self._heard and time.time() - rung / 1e9 > PARTS_SECONDS
        ) or now - self._pulled_at > LOOK_SECONDS

    def pull(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to some messages that have come."""
        self._heard, self._pulled_at = last_ring(self._replied), time.monotonic()
        try:
            return list(self._grid.pull_messages(list(message_ids)))
        except FAILURES as error:
            self._failed(error)
            return []

    def close(self) -> None:
        """End the run, as far as SuperLink still answers."""
        self._stopped.set()
        try:
            self._grid.runtime.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED, details=""))
        except FAILURES:
            LOG.info("SuperLink was not told that the run has ended.")
        self._grid.close()

    def _failed(self, error: BaseException) -> None:
        LOG.warning("SuperLink: %s", error)
        if not isinstance(error, httpx.TransportError):
            self.lost.set()

    def _start_run(self) -> int:
        interceptor = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
        with ControlHttpClient.from_server_address(self._address, True, None, [interceptor]) as control:
            # Nodes ignore messages of runs that have ended.
            for run_id, run in control.ListRuns(ListRunsRequest()).run_dict.items():
                if not run.status.status.startswith("finished"):
                    control.StopRun(StopRunRequest(run_id=run_id))
            fab = Fab(hash_str=bundle_hash(), content=empty_bundle())
            answer = control.StartRun(StartRunRequest(fab=fab))
        if not answer.run_id:
            raise ValueError("no run was started")
        return int(answer.run_id)

    def _claim(self, run_id: int) -> str:
        interceptors: list[ProtobufClientInterceptor] = [
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(
                master_secret=self._secret, protected_methods=["/flwr.proto.Runtime/AcquireTask"]
            ),
        ]
        deadline = time.monotonic() + CLAIM_SECONDS
        with RuntimeHttpClient.from_server_address(self._address, True, None, interceptors) as runtime:
            while time.monotonic() < deadline:
                claimed: AcquireTaskResponse = runtime.AcquireTask(
                    AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
                )
                if claimed.token and claimed.task.run_id == run_id:
                    return str(claimed.token)
                if not claimed.token:
                    time.sleep(0.1)
        raise ValueError("SuperLink gave no task for the run")

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            try:
                if not self._grid.runtime.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                    self.lost.set()
            except FAILURES as error:
                self._failed(error)
            if self.lost.is_set():
                return


class _OneTryGrid(HttpGrid):
    """Flower's grid, without its endless retries: who calls it has other sites to look after meanwhile."""

    def __init__(self, address: str, *, insecure: bool, token: str) -> None:
        super().__init__(address, insecure, token=token)
        interceptors: list[ProtobufClientInterceptor] = [
            RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
            RuntimeTokenHttpInterceptor(token=token),
        ]
        self.runtime = RuntimeHttpClient.from_server_address(address, insecure, None, interceptors)
        self._client = self.runtime
        self.coming: list[tuple[str, ObjectTree, float]] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come whole; of the others, SuperLink tells once only, and their parts are awaited.

        Flower's own waits up to two hours for the parts of one reply: a site that sends none would stop all others.
        """
        # SuperLink has told of these; asked again, it would say that it never knew them.
        wanted = set(message_ids) - {reply_to for reply_to, _, _ in self.coming}
        answer = self.runtime.PullMessages(PullAppMessagesRequest(message_ids=sorted(wanted)))
        deadline = time.monotonic() + WHOLE_SECONDS
        reply_tos = (one.metadata.reply_to_message_id for one in answer.messages_list)
        told = zip(reply_tos, answer.message_object_trees, strict=True)
        coming = [*self.coming, *((reply_to, tree, deadline) for reply_to, tree in told)]
        self.coming, whole = [], []
        for reply_to, tree, until in coming:
            try:
                whole.append(self._inflated(tree))
            except (ObjectPullError, httpx.HTTPError, RunNotRunningException) as error:
                if time.monotonic() < until:
                    self.coming.append((reply_to, tree, until))
                else:
                    LOG.warning("A reply never came whole: %s", error)
            except Exception as error:  # it was written by whoever holds the site's machine
                LOG.warning("A reply that is none: %r", error)
        return whole

    def _inflated(self, tree: ObjectTree) -> Message:
        if not are_small([tree]):
            raise ValueError("it has too many parts")
        node, run_id = self.node, self.run.run_id
        pull, left = make_pull_object_fn_protobuf(self.runtime.PullObject, node, run_id), REPLY_BYTES

        def pull_within(object_id: str) -> bytes:
            nonlocal left
            content = pull(object_id) if left >= 0 else b""
            left -= len(content)
            if left < 0:
                raise ValueError("it is too large")
            return content

        message = pull_and_inflate_object_from_tree(
            tree,
            pull_within,
            make_confirm_message_received_fn_protobuf(self.runtime.ConfirmMessageReceived, node, run_id),
            return_type=Message,
            max_concurrent_pulls=1,
            max_tries_per_object=1,
        )
        message.metadata.__dict__["_message_id"] = tree.object_id  # as Flower does: what is sent cannot name itself
        return message
