"""A Flower Grid over the real network: instructions go out signed, replies count only if signed by the site.

Node numbers here are the sites' places in the list; a site's Flower node changes whenever its node starts anew. An instruction is
sent again, signed anew, when that happens, when Flower loses it, or when a reply cannot be used, until its time is up.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from echofed.protocol.errors import AuditLogError, EchoFedError, ReplayError, ReplyRefusedError
from echofed.protocol.flower_records import (
    SITE_ERROR_CODE,
    buffer_of,
    content_of,
    document_of,
    read_sealed,
    sealed_content,
)
from echofed.protocol.messages import Instruction
from echofed.protocol.seals import Blob, ErrorReply, InstructionSeal, SiteHeads
from echofed.protocol.signing import digest
from echofed.server.grid_sides import Coordinator, Transport
from echofed.server.study_status import Waiting

LOG = logging.getLogger("echofed.server")
WAIT_SECONDS = 0.25
POLL_SECONDS = 0.02
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
LOST_SECONDS = 15.0
GONE_SECONDS = 20.0
"""For which a site may be without a node before it counts as offline: its node may just be starting anew."""
WAITING_SECONDS = 1.0
"""Between two words on who is waited for; quicker answers need none."""
LATE_KEPT = 1000
MOST_UNUSABLE = 5
"""Replies to one instruction that cannot be used before the site is answered for with an error: it would hold up the round."""


@dataclass
class _Asked:
    message: Message
    site: str
    document: str
    parameters: Blob | None
    deadline: float
    asked_at: datetime
    node: int = 0
    pushed: set[str] = field(default_factory=set)
    told: dict[str, SiteHeads | None] = field(default_factory=dict)
    """What each instruction said, by its digest."""
    tries: int = 0
    unusable: int = 0
    next_try: float = 0.0
    seen_at: float = field(default_factory=time.monotonic)
    answer: tuple[str, Blob | None] | Error | None = None


class SealedGrid(Grid):
    """Sends a study's instructions to its sites and returns their replies, one at a time.

    A reply is returned once, and only if the site signed it for an instruction that was sent in this round. A site that has
    been silent too long, whose replies cannot be used again and again, or that does not answer within the message's time to
    live, is answered for with an error.

    Args:
        coordinator: keys, nodes, files and the audit log.
        transport: carries the messages; read anew at each use, as it may be replaced.
        sites: the study's sites; node `n` here is `sites[n - 1]`.
        stopped: raises if the round at hand is to be given up.
        waiting: told whom the round waits for, when it has waited a while and whenever that changes; None: for nobody.
        largest_update_bytes: parameters of a reply that are larger are refused before any of them is read.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        transport: Callable[[], Transport],
        sites: Sequence[str],
        stopped: Callable[[], None] = lambda: None,
        waiting: Callable[[Waiting | None], None] = lambda waiting: None,
        *,
        largest_update_bytes: int,
    ) -> None:
        self._coordinator, self._transport, self._stopped, self._waiting = coordinator, transport, stopped, waiting
        self._sites, self._largest_update_bytes = list(sites), largest_update_bytes
        self._asked: dict[str, _Asked] = {}
        self._late: dict[str, str] = {}
        self._told: Waiting | None = None
        self._tell_at = 0.0
        self._ids = count(1)
        self._run = Run.create_empty(1)

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of all sites."""
        return range(1, len(self._sites) + 1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to a site."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages to send, and return their ids."""
        keys, published = [], dict[int, Blob]()
        self._tell_at = time.monotonic() + WAITING_SECONDS
        for message in messages:
            key, buffer = f"sealed-{next(self._ids)}", buffer_of(message.content)
            if buffer and id(buffer) not in published:
                published[id(buffer)] = self._coordinator.publish(buffer)
            message.metadata.__dict__["_message_id"] = key  # as Flower's own grids do; the property is read-only
            self._asked[key] = _Asked(
                message=message,
                site=self._sites[message.metadata.dst_node_id - 1],
                document=document_of(message.content),
                parameters=published[id(buffer)] if buffer else None,
                deadline=time.monotonic() + message.metadata.ttl,
                asked_at=datetime.now(UTC),
            )
            keys.append(key)
        for key in keys:  # the parameters are in a file now; the round's messages need not hold them in memory
            message = self._asked[key].message
            message.content = content_of(self._asked[key].document, b"")
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the next reply, waiting briefly for it."""
        wanted = set(message_ids)
        until = time.monotonic() + WAIT_SECONDS
        while True:
            self._stopped()
            asked = [one for key, one in self._asked.items() if key in wanted]
            self._send([one for one in asked if one.answer is None])
            self._receive()
            self._expire(asked)
            self._tell([one for one in asked if one.answer is None])
            for key in [key for key in self._asked if key in wanted]:
                if self._asked[key].answer is not None and (reply := self._finish(key)) is not None:
                    return [reply]
            if not asked or time.monotonic() > until:
                return []
            time.sleep(POLL_SECONDS)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return all replies."""
        waiting, replies = set(self.push_messages(messages)), []
        while waiting:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def forget(self) -> None:
        """Give up all that was asked."""
        self._asked.clear()

    def _send(self, asked: Iterable[_Asked]) -> None:
        for one in asked:
            node, _ = self._coordinator.node_of(one.site)
            if node and (node != one.node or time.monotonic() >= one.next_try):
                self._send_one(one, node)

    def _send_one(self, one: _Asked, node: int) -> None:
        instruction = Instruction.model_validate_json(one.document)
        left = max(1.0, one.deadline - time.monotonic())
        issued, known = datetime.now(UTC), self._coordinator.site_heads(one.site)
        signed = self._coordinator.sign_instruction(
            InstructionSeal(
                consortium=self._coordinator.consortium,
                site=one.site,
                study_hash=instruction.study_hash,
                round_number=instruction.round_number,
                kind=instruction.kind,
                document=_sha256(one.document),
                parameters=one.parameters,
                issued_at=issued.isoformat(timespec="seconds"),
                expires_at=(issued + timedelta(seconds=left)).isoformat(timespec="seconds"),
                log_head=self._coordinator.log_head(),
                site_heads=known,
            )
        )
        metadata = one.message.metadata
        content = sealed_content(one.document, signed)
        pushed = self._transport().push(
            Message(content, node, metadata.message_type, ttl=left, group_id=metadata.group_id)
        )
        one.node = node
        one.told[digest(signed)] = known
        if pushed is None:
            self._try_again(one)
            return
        one.pushed.add(pushed)
        # A message can be lost after the node has fetched it. A site answers the same instruction from what it keeps.
        one.next_try = time.monotonic() + LOST_SECONDS * 2 ** len(one.pushed)

    def _try_again(self, one: _Asked) -> None:
        one.next_try = time.monotonic() + RETRY_SECONDS[min(one.tries, len(RETRY_SECONDS) - 1)]
        one.tries += 1

    def _receive(self) -> None:
        transport = self._transport()
        if not transport.has_news():
            return
        by_id = {pushed: one for one in self._asked.values() for pushed in one.pushed}
        ids = [*by_id, *self._late]
        for reply in transport.pull(ids) if ids else []:
            pushed = reply.metadata.reply_to_message_id
            if pushed in self._late:
                self._coordinator.note_late(self._late.pop(pushed))
                continue
            one = by_id.get(pushed)
            if one is None:
                continue
            one.pushed.discard(pushed)
            if one.answer is None:
                self._read(one, reply)

    def _read(self, one: _Asked, reply: Message) -> None:
        if reply.has_error():
            # Flower's own word, signed by nobody: the message was lost on the way, or the node's executor died.
            LOG.info("%s: Flower says %s", one.site, (reply.error.reason or "")[:200])
            self._try_again(one)
            return
        try:
            one.answer = self._checked(one, reply)
        except EchoFedError as error:
            LOG.warning("%s: a reply that cannot be used: %s", one.site, error.what)
            self._coordinator.note_refused(one.site, error)
            self._unusable(one, error)
        except ValueError:
            LOG.warning("%s: a reply that is not of the agreed form", one.site)
            refusal = ReplyRefusedError("The reply is not of the agreed form.")
            self._coordinator.note_refused(one.site, refusal)
            self._unusable(one, refusal)

    def _unusable(self, one: _Asked, error: EchoFedError) -> None:
        one.unusable += 1
        if one.unusable >= MOST_UNUSABLE:
            reason = f"It was asked {one.unusable} times, and no reply can be used: {error.what}"
            one.answer = Error(ErrorCode.MESSAGE_UNAVAILABLE, reason)
        else:
            self._try_again(one)

    def _checked(self, one: _Asked, reply: Message) -> tuple[str, Blob | None] | Error:
        document, signed = read_sealed(reply.content)
        seal = self._coordinator.check_reply(one.site, signed)
        asked = Instruction.model_validate_json(one.document)
        place = (self._coordinator.consortium, one.site, asked.study_hash, asked.round_number)
        if (seal.consortium, seal.site, seal.study_hash, seal.round_number) != place:
            raise ReplayError("The reply is of another consortium, site, study or round.")
        if seal.instruction not in one.told or seal.kind not in (asked.kind, "error"):
            raise ReplayError("The reply answers another instruction.")
        if seal.document != _sha256(document):
            raise ReplyRefusedError("The reply's document is not the one the site signed.")
        if seal.parameters is not None and seal.kind != "train":
            raise ReplyRefusedError("The reply brings parameters that nobody asked for.")
        if seal.parameters is not None and seal.parameters.size > self._largest_update_bytes:
            raise ReplyRefusedError(f"The update of {seal.parameters.size} bytes is larger than the study's model.")
        said = ErrorReply.model_validate_json(document) if seal.kind == "error" else None
        try:
            self._coordinator.check_heads(one.site, one.told[seal.instruction], seal)
        except AuditLogError as fork:  # asking again would not mend it
            LOG.warning("%s", fork)
            self._coordinator.note_refused(one.site, fork)
            return Error(SITE_ERROR_CODE, f"[{fork.code}] {fork.what}")
        self._coordinator.note_reply(one.site, seal, signed)
        return Error(SITE_ERROR_CODE, f"[{said.code}] {said.sentence}") if said else (document, seal.parameters)

    def _expire(self, asked: Iterable[_Asked]) -> None:
        for one in asked:
            if one.answer is not None:
                continue
            now, (_, silent) = time.monotonic(), self._coordinator.node_of(one.site)
            if not silent:
                one.seen_at = now
            if now > one.deadline:
                one.answer = Error(ErrorCode.MESSAGE_UNAVAILABLE, "It did not answer in time.")
            elif now > one.seen_at + GONE_SECONDS:
                one.answer = Error(ErrorCode.NODE_UNAVAILABLE, "It is offline.")

    def _tell(self, silent: Sequence[_Asked]) -> None:
        """Say whom is waited for if that has changed; at once if it is nobody any more, otherwise once in a while."""
        waiting = None
        if silent:
            since = min(one.asked_at for one in silent)
            until = max(one.asked_at + timedelta(seconds=one.message.metadata.ttl) for one in silent)
            waiting = Waiting(
                sites=tuple(one.site for one in silent),
                since=since.isoformat(timespec="seconds"),
                until=until.isoformat(timespec="seconds"),
            )
        if waiting != self._told and (waiting is None or time.monotonic() >= self._tell_at):
            self._told, self._tell_at = waiting, time.monotonic() + WAITING_SECONDS
            self._waiting(waiting)

    def _finish(self, key: str) -> Message | None:
        one = self._asked[key]
        assert one.answer is not None
        if isinstance(one.answer, Error):
            return self._end(key, Message(one.answer, reply_to=one.message))
        document, blob = one.answer
        try:
            buffer = self._coordinator.take(one.site, blob) if blob else b""
        except EchoFedError as error:
            LOG.warning("%s: %s", one.site, error.what)
            one.answer = None
            self._unusable(one, error)
            return None
        return self._end(key, Message(content_of(document, buffer), reply_to=one.message))

    def _end(self, key: str, reply: Message) -> Message:
        one = self._asked.pop(key)
        self._late |= dict.fromkeys(one.pushed, one.site)
        while len(self._late) > LATE_KEPT:
            del self._late[next(iter(self._late))]
        return reply


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
