"""A Flower Grid over the worker pool: the transport a simulation swaps in, and nothing else."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from echofed.protocol.flower_records import buffer_of, content_of, document_of
from echofed.server.rounds import exchange
from echofed.simulations.identity import RUN_ID, declare_task
from echofed.simulations.pool import Answer, Job, WorkerPool

WAIT_SECONDS = 0.2
DAY_SECONDS = 86_400.0


@dataclass
class _Sent:
    message: Message
    expires: float
    answer: Answer | None = None
    in_pool: bool = False


class InProcessGrid(Grid):
    """Sends messages to sites simulated by a pool; node 1 is the first site.

    Replies come back in the order the messages were sent, so sums are the same for any number of workers. At most a few
    are in memory at a time: a message is handed to the pool only when those before it are nearly all answered. A message
    that is not answered within its time to live is answered by an error, as Flower's own server does.

    Args:
        pool: runs the ClientApp.
        sites: number of sites.
    """

    def __init__(self, pool: WorkerPool, sites: int) -> None:
        self._pool, self._sites = pool, sites
        declare_task()
        self._run = Run.create_empty(RUN_ID)
        self._ids = count(1)
        self._sent: dict[str, _Sent] = {}
        self._waiting: deque[str] = deque()
        self._in_pool = 0

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of all sites."""
        return range(1, self._sites + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages and return their ids."""
        keys = []
        for message in messages:
            key = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = key  # as Flower's own grids do; the property is read-only
            self._sent[key] = _Sent(message, time.monotonic() + message.metadata.ttl)
            self._waiting.append(key)
            keys.append(key)
        self._feed()
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are next in the order of sending, waiting briefly for the first."""
        wanted = set(message_ids)
        keys = [key for key in self._sent if key in wanted]
        deadline = time.monotonic() + WAIT_SECONDS
        while keys and self._sent[keys[0]].answer is None and (left := deadline - time.monotonic()) > 0:
            for answer in self._pool.answers(left):
                if answer.key in self._sent:
                    self._sent[answer.key].answer = answer
        self._expire(keys)
        return list(self._take_ready(keys))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return all replies."""
        return list(exchange(self, messages, timeout if timeout is not None else DAY_SECONDS))

    def _take_ready(self, keys: Iterable[str]) -> Iterator[Message]:
        for key in keys:
            sent = self._sent[key]
            if sent.answer is None:
                return
            del self._sent[key]
            self._in_pool -= sent.in_pool
            self._feed()
            yield _reply(sent.message, sent.answer)

    def _expire(self, keys: Iterable[str]) -> None:
        for key in keys:
            sent = self._sent[key]
            if sent.answer is None and time.monotonic() > sent.expires:
                self._pool.abandon(key)
                self._waiting = deque(other for other in self._waiting if other != key)
                sent.answer = Answer(key, None, b"", (ErrorCode.MESSAGE_UNAVAILABLE, "It did not answer in time."))

    def _feed(self) -> None:
        while self._waiting and self._in_pool < 4 * self._pool.size:
            key = self._waiting.popleft()
            self._in_pool += 1
            self._sent[key].in_pool = True
            self._pool.submit(_job(key, self._sent[key].message))


def _job(key: str, message: Message) -> Job:
    return Job(
        key=key,
        site=message.metadata.dst_node_id - 1,
        kind=message.metadata.message_type,
        group=message.metadata.group_id,
        document=document_of(message.content),
        parameters=buffer_of(message.content),
    )


def _reply(message: Message, answer: Answer) -> Message:
    if answer.error is not None:
        return Message(Error(*answer.error), reply_to=message)
    return Message(content_of(answer.document or "", answer.parameters), reply_to=message)
