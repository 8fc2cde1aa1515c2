"""The site's executor: claims tasks from the SuperNode and runs what is installed here, nothing else.

    python -m echofed.client.flower_executor STATE

Flower's own executor starts a process for each message and runs the app bundle that came with it. This one is a single warm
process. It looks at the bundle's hash only: a bundle other than EchoFed's empty one, a message of another type or without
the coordinator's seal is refused and logged. Nothing in a bundle is unpacked, imported or evaluated.
"""

import logging
import math
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import httpx
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, fab_from_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from echofed.client.flower import make_client_app
from echofed.client.forwarding import MESSAGE_BELL
from echofed.client.identity import Identity, load_identity
from echofed.client.link import Link
from echofed.client.link_settings import load_link_settings
from echofed.client.policy import load_policy
from echofed.client.sealed_answers import Opened, Reply, SealedAnswers
from echofed.client.studies_sync import fetch_studies, send_answers
from echofed.protocol.audit_log import AuditLog, open_audit_log
from echofed.protocol.bells import last_ring
from echofed.protocol.bundle import bundle_hash, empty_bundle
from echofed.protocol.errors import EchoFedError, ForeignCodeError, UnexpectedError
from echofed.protocol.flower_records import (
    buffer_of,
    content_of,
    document_of,
    error_reply,
    read_sealed,
    sealed_content,
)
from echofed.protocol.seals import ErrorReply, error_said

LOG = logging.getLogger("echofed.client")
KINDS = {"train": "train", "evaluate": "evaluate", "query": "describe"}
"""What each type of Flower message asks for; other types are refused."""
TASK_TYPES = (TaskType.CLIENT_APP, TaskType.AGENT_APP)
"""What SuperNode makes of messages. It waits for the answer to each: one nobody claims would hold up all that come after."""
LOOK_SECONDS, EXPECT_SECONDS, ASK_SECONDS = 0.02, 5.0, 1.0
"""Between two looks at the bell; for which a task is expected after it; between two questions otherwise."""
WHOLE_SECONDS = 15.0
"""For all parts of a message to come; somewhat longer than the SuperNode waits for them."""
HEARTBEAT_SECONDS = 15.0
STUDIES_SECONDS = 30.0
NOTE_SECONDS = 60.0
"""Between two entries in the audit log of what anybody can send: unsigned messages must not fill the disk."""
PATIENCE_SECONDS = 60.0
"""How long the SuperNode may be silent before the executor ends, to be started anew with it."""


class Executor:
    """Answers the messages that reach one site.

    Args:
        state_folder: the site's.
        runtime_address: host:port of the SuperNode's Runtime API, on loopback.
        secret: shared with the SuperNode, so that no other program on the machine can claim its tasks.
        answers: opens instructions and seals replies.
        log: the site's audit log.
        ending: set when the executor is to end, between two tasks.
    """

    def __init__(
        self,
        state_folder: Path,
        runtime_address: str,
        secret: bytes,
        answers: SealedAnswers,
        log: AuditLog,
        ending: threading.Event,
    ) -> None:
        self._state_folder, self._address, self._answers, self._log = state_folder, runtime_address, answers, log
        self._secret, self._ending = secret, ending
        self._noted: dict[str, _Noted] = {}
        self._app = lru_cache(maxsize=4)(lambda folder: make_client_app(folder, [state_folder], None))

    def run(self) -> None:
        """Claim and answer tasks until it is to end.

        Raises:
            Exception: the SuperNode has been silent for too long, or a task could not be finished. The SuperNode waits for
                each task's reply, so both are started anew then.
        """
        interceptors: list[ProtobufClientInterceptor] = [
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(
                master_secret=self._secret, protected_methods=["/flwr.proto.Runtime/AcquireTask"]
            ),
        ]
        heard = time.monotonic()
        with RuntimeHttpClient.from_server_address(self._address, True, None, interceptors) as runtime:
            while not self._ending.is_set():
                self._note_unwritten(NOTE_SECONDS)
                bell = last_ring(self._state_folder / MESSAGE_BELL)
                try:
                    claimed = runtime.AcquireTask(AcquireTaskRequest(supported_task_types=TASK_TYPES))
                    heard = time.monotonic()
                except httpx.HTTPError:
                    if time.monotonic() - heard > PATIENCE_SECONDS:
                        raise
                    time.sleep(1.0)
                    continue
                if claimed.token:
                    try:
                        self._work(claimed.token)
                    except httpx.ConnectError:  # SuperNode has ended: nothing waits for the answer any more
                        LOG.warning("SuperNode has ended, and a task with it.")
                else:
                    self._wait(bell)

    def close(self) -> None:
        """Log the refusals that still wait for their minute to end."""
        self._note_unwritten(0.0)

    def _wait(self, before: int) -> None:
        """Wait until a message may have come."""
        if time.time() - before / 1e9 < EXPECT_SECONDS:
            time.sleep(2 * LOOK_SECONDS)  # SuperNode is fetching what the bell was rung for
            return
        until = time.monotonic() + ASK_SECONDS
        while time.monotonic() < until and last_ring(self._state_folder / MESSAGE_BELL) == before:
            time.sleep(LOOK_SECONDS)

    def _work(self, token: str) -> None:
        interceptors: list[ProtobufClientInterceptor] = [
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(token),
        ]
        with RuntimeHttpClient.from_server_address(self._address, True, None, interceptors) as task:
            done = threading.Event()
            beating = threading.Thread(target=_beat, args=(task, done), daemon=True)
            beating.start()
            try:
                message, context, fab = _pull(task)
                TaskIdentity.run_id, TaskIdentity.node_id = context.run_id, context.node_id
                push_message(task, self._answer(message, context, fab), context)
                push_task_output(task, None, SubStatus.COMPLETED, "")
            finally:
                done.set()
                beating.join()

    def _answer(self, message: Message, context: Context, fab: Fab) -> Message:
        try:
            kind = _own_kind(message, fab)
            document, signed = read_sealed(message.content)
            seal = self._answers.read(document, signed, kind)
        except EchoFedError as error:
            # Whoever sent it is not our coordinator, as far as anybody can prove: it is told the code, unsigned.
            self._refused_unsigned(error)
            return error_reply(error, message)
        try:
            opened = self._answers.open(seal, signed)
            reply, reply_seal = self._answers.answer(opened, lambda: self._run(opened, message, context, document))
        except _SiteRefusalError as refusal:
            reply, reply_seal = self._answers.refuse(seal, signed, refusal.said)
        except EchoFedError as error:
            self._refused(error, study=seal.study_hash, round=seal.round_number)
            reply, reply_seal = self._answers.refuse(seal, signed, error_said(error))
        except Exception as error:
            LOG.exception("An error nobody expected")
            self._log.append("error", what=repr(error)[:200])
            said = error_said(UnexpectedError("An error nobody expected."))
            reply, reply_seal = self._answers.refuse(seal, signed, said)
        return Message(sealed_content(reply, reply_seal), reply_to=message)

    def _run(self, opened: Opened, message: Message, context: Context, document: str) -> Reply:
        import torch

        if cores := load_policy(self._state_folder).cores:
            torch.set_num_threads(cores)
        message.content = content_of(document, opened.parameters)
        app: ClientApp = self._app(opened.study_folder)
        reply = app(message=message, context=context)
        if reply.has_error():
            raise _SiteRefusalError(reply.error)
        return document_of(reply.content), buffer_of(reply.content)

    def _refused_unsigned(self, error: EchoFedError) -> None:
        """Log at most one refusal of each code a minute, with the number of those since the last entry."""
        noted = self._noted.setdefault(error.code, _Noted(error))
        noted.error, noted.unwritten = error, noted.unwritten + 1
        self._note_unwritten(NOTE_SECONDS)

    def _note_unwritten(self, seconds: float) -> None:
        """Log the refusals that are not in the log yet, of each code if nothing was written for so long."""
        now = time.monotonic()
        for noted in self._noted.values():
            if noted.unwritten and now - noted.written_at >= seconds:
                self._refused(noted.error, count=noted.unwritten)
                noted.written_at, noted.unwritten = now, 0

    def _refused(self, error: EchoFedError, **facts: str | int) -> None:
        LOG.warning("Refused: %s", error)
        self._log.append("refused request", code=error.code, what=error.what, **facts)


@dataclass
class _Noted:
    """Refusals with one code: the last of them, when one was written into the log, how many came since."""

    error: EchoFedError
    written_at: float = -math.inf
    unwritten: int = 0


class _SiteRefusalError(Exception):
    """The ClientApp answered with an error, of the form `error_reply` gives it."""

    def __init__(self, error: Error) -> None:
        code, _, sentence = (error.reason or "").partition("] ")
        self.said = ErrorReply(code=code.removeprefix("["), sentence=sentence)
        super().__init__(sentence)


def _pull(task: RuntimeHttpClient) -> tuple[Message, Context, Fab]:
    """Return what a task is about; as Flower's own executor does it, but without waiting hours for what never comes."""
    given = task.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
    TaskIdentity.node_id = given.context.node_id
    tree = task.PullMessages(PullAppMessagesRequest()).message_object_trees[0]
    node, run_id = Node(node_id=given.context.node_id), given.run.run_id
    message = pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(task.PullObject, node, run_id),
        make_confirm_message_received_fn_protobuf(task.ConfirmMessageReceived, node, run_id),
        return_type=Message,
        max_time=WHOLE_SECONDS,
        initial_backoff=LOOK_SECONDS,
        backoff_cap=10 * LOOK_SECONDS,
    )
    message.metadata.__dict__["_message_id"] = tree.object_id  # as Flower does: what is sent cannot name itself
    return message, context_from_proto(given.context), fab_from_proto(given.fab)


def _own_kind(message: Message, fab: Fab) -> str:
    if fab.hash_str != bundle_hash() or fab.content != empty_bundle():
        raise ForeignCodeError(f"A Flower app bundle with hash {fab.hash_str[:16]} came; it was not opened.")
    kind = KINDS.get(message.metadata.message_type)
    if kind is None or message.has_error():
        raise ForeignCodeError(f"A message of type '{message.metadata.message_type[:60]}' came.")
    return kind


def _beat(task: RuntimeHttpClient, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT_SECONDS):
        with suppress(httpx.HTTPError):
            task.SendTaskHeartbeat(SendTaskHeartbeatRequest())


def _keep_up_to_date(
    state_folder: Path, identity: Identity, log: AuditLog, link: Link, renewed: threading.Event
) -> None:
    """Send the hospital's answers, learn what the coordinator has published or taken back, and see if the keys are new."""
    while True:
        try:
            send_answers(state_folder, link)
            fetch_studies(state_folder, identity, log, link)
            if load_identity(state_folder).membership != identity.membership:
                renewed.set()
        except EchoFedError as error:
            LOG.info("%s", error.what)
        time.sleep(STUDIES_SECONDS)


def main(state_folder: Path, runtime_address: str, secret_file: Path) -> None:
    """Run the executor of a site until it is stopped, or until its certificate is renewed: it is then started anew."""
    identity = load_identity(state_folder)
    log = open_audit_log(state_folder, owner=identity.site)
    link, renewed = Link(identity, load_link_settings(state_folder)), threading.Event()
    arguments = (state_folder, identity, log, link, renewed)
    threading.Thread(target=_keep_up_to_date, args=arguments, daemon=True).start()
    answers = SealedAnswers(state_folder, identity, link, log)
    executor = Executor(state_folder, runtime_address, secret_file.read_bytes(), answers, log, renewed)
    try:
        executor.run()
    except Exception as error:
        LOG.error("A task could not be finished, the node starts anew: %r", error)
        sys.exit(1)
    finally:
        executor.close()


if __name__ == "__main__":
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
