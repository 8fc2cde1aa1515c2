"""The sealed grid over a network that loses, repeats, delays and forges messages."""

import hashlib
import random
import threading
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from itertools import count

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message, RecordDict

from echofed.protocol.audit_log import LogHead
from echofed.protocol.errors import AuditLogError, EchoFedError, InterruptedRunError, ReplayError, ReplyRefusedError
from echofed.protocol.flower_records import buffer_of, content_of, document_of, read_sealed, sealed_content
from echofed.protocol.messages import Instruction
from echofed.protocol.seals import Blob, ErrorReply, InstructionSeal, ReplySeal, SiteHeads
from echofed.protocol.signing import Signed, digest, sign, verify
from echofed.server import sealed_grid
from echofed.server.rounds import exchange
from echofed.server.sealed_grid import SealedGrid
from echofed.server.study_status import Waiting
from echofed.simulations.identity import declare_task

CONSORTIUM, STUDY = "c" * 64, "5" * 64
HEAD = LogHead(log_id="0" * 32, entries=0, hash="0" * 64)
SITES = ["east", "north", "west"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    declare_task()
    monkeypatch.setattr(sealed_grid, "RETRY_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(sealed_grid, "LOST_SECONDS", 0.004)
    monkeypatch.setattr(sealed_grid, "GONE_SECONDS", 0.2)
    monkeypatch.setattr(sealed_grid, "POLL_SECONDS", 0.002)


class Office:
    """The coordinator, in memory."""

    consortium = CONSORTIUM

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.site_keys = {site: Ed25519PrivateKey.generate() for site in SITES}
        self.nodes = {site: number for number, site in enumerate(SITES, start=100)}
        self.silent: set[str] = set()
        self.files: dict[tuple[str, str], bytes] = {}
        self.refused: list[tuple[str, str]] = []
        self.late: list[str] = []
        self.known: dict[str, SiteHeads] = {}

    def node_of(self, site: str) -> tuple[int, bool]:
        return (0, True) if site in self.silent else (self.nodes.get(site, 0), False)

    def sign_instruction(self, seal: InstructionSeal) -> Signed:
        return sign(self.key, "instruction", seal)

    def check_reply(self, site: str, seal: Signed) -> ReplySeal:
        return verify(seal, self.site_keys[site].public_key(), "reply", ReplySeal)

    def publish(self, buffer: bytes) -> Blob:
        name = hashlib.sha256(buffer).hexdigest()
        self.files["published", name] = buffer
        return Blob(sha256=name, size=len(buffer))

    def take(self, site: str, blob: Blob) -> bytes:
        buffer = self.files.get((site, blob.sha256), b"")
        if hashlib.sha256(buffer).hexdigest() != blob.sha256:
            raise ReplyRefusedError("The parameters have not arrived whole.")
        return buffer

    def log_head(self) -> LogHead:
        return HEAD

    def site_heads(self, site: str) -> SiteHeads | None:
        return self.known.get(site)

    def check_heads(self, site: str, told: SiteHeads | None, seal: ReplySeal) -> None:
        if told != self.known.get(site):
            raise ReplayError("Another reply has counted.")
        if not seal.continues(told):
            raise AuditLogError("It forked.")

    def note_reply(self, site: str, seal: ReplySeal, signed: Signed) -> None:
        self.known[site] = SiteHeads(log=seal.log_head, ledger=seal.ledger_head)

    def note_refused(self, site: str, error: EchoFedError) -> None:
        self.refused.append((site, error.code))

    def note_late(self, site: str) -> None:
        self.late.append(site)


Answering = Callable[[str, str, Signed], RecordDict | Error | None]


class Network:
    """Carries messages to sites and back, as badly as `trouble` says (probability of each mishap)."""

    def __init__(self, office: Office, answering: Answering, trouble: float = 0.0, seed: int = 0) -> None:
        self.office, self.answering, self.trouble = office, answering, trouble
        self.random, self.ids = random.Random(seed), count(1)
        self.replies: dict[str, list[Message]] = {}
        self.sent: list[Message] = []

    def push(self, message: Message) -> str | None:
        if self.random.random() < self.trouble:
            return None
        key = f"flower-{next(self.ids)}"
        message.metadata.__dict__["_message_id"] = key
        self.sent.append(message)
        if self.random.random() < self.trouble:
            return key  # lost on the way to the site
        site = next(site for site, node in self.office.nodes.items() if node == message.metadata.dst_node_id)
        document, signed = read_sealed(message.content)
        answer = self.answering(site, document, signed)
        if answer is None or self.random.random() < self.trouble:
            return key  # lost on the way back
        copies = 2 if self.random.random() < self.trouble else 1
        self.replies[key] = [Message(answer, reply_to=message) for _ in range(copies)]
        return key

    def has_news(self) -> bool:
        return True

    def pull(self, message_ids: Iterable[str]) -> list[Message]:
        found = []
        for key in message_ids:
            if self.replies.get(key) and self.random.random() >= self.trouble:
                found += self.replies.pop(key)
        self.random.shuffle(found)
        return found


def honest(office: Office, **changes: object) -> Answering:
    """Return a site that answers with its name and, to `train`, the parameters it got with a byte more."""

    def answering(site: str, document: str, signed: Signed) -> RecordDict:
        seal = verify(signed, office.key.public_key(), "instruction", InstructionSeal)
        said = f'{{"site": "{site}"}}'
        blob = None
        if seal.parameters is not None:
            buffer = office.files["published", seal.parameters.sha256] + site.encode()
            blob = Blob(sha256=hashlib.sha256(buffer).hexdigest(), size=len(buffer))
            office.files[site, blob.sha256] = buffer
        reply = {
            "consortium": CONSORTIUM,
            "site": site,
            "study_hash": seal.study_hash,
            "round_number": seal.round_number,
            "kind": seal.kind,
            "instruction": digest(signed),
            "document": hashlib.sha256(said.encode()).hexdigest(),
            "parameters": blob,
            "log_head": HEAD,
            "ledger_head": None,
            "log_head_then": seal.site_heads and seal.site_heads.log,
        }
        return sealed_content(said, sign(office.site_keys[site], "reply", ReplySeal.model_validate(reply | changes)))

    return answering


def ask(grid: SealedGrid, round_number: int = 1, seconds: float = 5.0, parameters: bytes = b"weights") -> list[Message]:
    """Ask all sites to train and return the replies, in order of the sites."""
    instruction = Instruction(kind="train", study_hash=STUDY, round_number=round_number).model_dump_json()
    messages = [
        grid.create_message(content_of(instruction, parameters), "train", node, str(round_number), seconds)
        for node in grid.get_node_ids()
    ]
    return sorted(exchange(grid, messages, seconds), key=lambda reply: reply.metadata.src_node_id)


def test_each_site_is_asked_by_name_and_answers_once() -> None:
    office = Office()
    network = Network(office, honest(office))
    replies = ask(SealedGrid(office, lambda: network, SITES, largest_update_bytes=100))
    assert [document_of(reply.content) for reply in replies] == [f'{{"site": "{site}"}}' for site in SITES]
    assert [buffer_of(reply.content) for reply in replies] == [b"weights" + site.encode() for site in SITES]
    seals = [
        verify(read_sealed(one.content)[1], office.key.public_key(), "instruction", InstructionSeal)
        for one in network.sent
    ]
    assert [(seal.site, seal.consortium, seal.round_number) for seal in seals] == [
        (site, CONSORTIUM, 1) for site in SITES
    ]


@pytest.mark.parametrize("seed", range(10))
def test_lost_repeated_and_reordered_messages_change_nothing(seed: int) -> None:
    office = Office()
    network = Network(office, honest(office), trouble=0.3, seed=seed)
    grid = SealedGrid(office, lambda: network, SITES, largest_update_bytes=100)
    for round_number in (1, 2):
        replies = ask(grid, round_number, seconds=30.0)
        assert [buffer_of(reply.content) for reply in replies] == [b"weights" + site.encode() for site in SITES]


def test_a_node_that_starts_anew_is_asked_again_at_once() -> None:
    office = Office()

    def dies_once(site: str, document: str, signed: Signed) -> RecordDict | None:
        if site == "north" and office.nodes["north"] == 101:
            office.nodes["north"] = 555
            return None
        return honest(office)(site, document, signed)

    network = Network(office, dies_once)
    replies = ask(SealedGrid(office, lambda: network, SITES, largest_update_bytes=100))
    assert [reply.has_error() for reply in replies] == [False] * 3
    assert [message.metadata.dst_node_id for message in network.sent].count(555) == 1


def test_a_silent_site_does_not_hold_up_the_others() -> None:
    office = Office()
    office.silent.add("north")
    network = Network(office, honest(office))
    replies = ask(SealedGrid(office, lambda: network, SITES, largest_update_bytes=100))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert "offline" in (replies[1].error.reason or "")


def test_a_site_whose_node_is_away_for_a_moment_is_waited_for() -> None:
    office = Office()
    network = Network(office, honest(office))
    office.silent.add("north")
    grid = SealedGrid(office, lambda: network, SITES, lambda: None, largest_update_bytes=100)
    threading.Timer(0.05, office.silent.clear).start()
    assert not any(reply.has_error() for reply in ask(grid))


def test_a_site_that_never_answers_ends_with_the_time_and_its_late_reply_is_dropped() -> None:
    office, kept = Office(), list[Message]()

    def slow(site: str, document: str, signed: Signed) -> RecordDict | None:
        return None if site == "west" else honest(office)(site, document, signed)

    network = Network(office, slow)
    grid = SealedGrid(office, lambda: network, SITES, largest_update_bytes=100)
    replies = ask(grid, seconds=0.2)
    assert [reply.has_error() for reply in replies] == [False, False, True]
    for message in network.sent:
        if message.metadata.dst_node_id == office.nodes["west"]:
            content = honest(office)("west", *read_sealed(message.content))
            network.replies[message.metadata.message_id] = [Message(content, reply_to=message)]
            kept.append(message)
    network.answering = honest(office)
    assert len(ask(grid, 2)) == 3
    assert kept
    assert office.late == ["west"] * len(kept)


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "north"},
        {"round_number": 2},
        {"study_hash": "6" * 64},
        {"consortium": "d" * 64},
        {"instruction": "e" * 64},
        {"kind": "evaluate"},
        {"document": "f" * 64},
    ],
)
def test_a_reply_that_is_not_signed_for_exactly_this_counts_for_nothing(changes: dict[str, object]) -> None:
    office = Office()
    network = Network(office, honest(office, **changes))
    replies = ask(SealedGrid(office, lambda: network, ["east"], largest_update_bytes=100), seconds=0.3)
    assert [reply.has_error() for reply in replies] == [True]
    assert {code for _, code in office.refused} <= {"EF-707", "EF-501"}
    assert office.refused


def test_a_reply_of_another_site_or_an_earlier_round_cannot_be_passed_off() -> None:
    office = Office()
    earlier: list[RecordDict] = []

    def replays(site: str, document: str, signed: Signed) -> RecordDict:
        seal = verify(signed, office.key.public_key(), "instruction", InstructionSeal)
        if seal.round_number == 2:
            return earlier[0]
        earlier.append(honest(office)(site, document, signed))
        return earlier[-1]

    grid = SealedGrid(office, lambda: network, ["east", "north"], largest_update_bytes=100)
    network = Network(office, replays)
    assert not any(reply.has_error() for reply in ask(grid, 1))
    assert all(reply.has_error() for reply in ask(grid, 2, seconds=0.3))


def test_parameters_that_are_not_those_the_site_signed_are_asked_for_again() -> None:
    office, tries = Office(), count()

    def torn(site: str, document: str, signed: Signed) -> RecordDict:
        content = honest(office)(site, document, signed)
        if next(tries) == 0:
            office.files = {key: b"torn" if key[0] == site else value for key, value in office.files.items()}
        return content

    network = Network(office, torn)
    replies = ask(SealedGrid(office, lambda: network, ["east"], largest_update_bytes=100))
    assert buffer_of(replies[0].content) == b"weightseast"
    assert next(tries) == 2


def test_a_site_s_refusal_is_passed_on_and_flower_s_own_errors_are_not() -> None:
    office, tries = Office(), count()

    def refuses(site: str, document: str, signed: Signed) -> RecordDict | Error:
        if next(tries) == 0:
            return Error(1, "a lie, or a lost message: nobody signed it")
        said = ErrorReply(code="EF-706", sentence="The hospital's policy does not allow this.").model_dump_json()
        seal = verify(signed, office.key.public_key(), "instruction", InstructionSeal)
        reply = ReplySeal(
            consortium=CONSORTIUM,
            site=site,
            study_hash=seal.study_hash,
            round_number=seal.round_number,
            kind="error",
            instruction=digest(signed),
            document=hashlib.sha256(said.encode()).hexdigest(),
            parameters=None,
            log_head=HEAD,
            ledger_head=None,
        )
        return sealed_content(said, sign(office.site_keys[site], "reply", reply))

    network = Network(office, refuses)
    replies = ask(SealedGrid(office, lambda: network, ["east"], largest_update_bytes=100))
    assert replies[0].error.reason == "[EF-706] The hospital's policy does not allow this."


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": Blob(sha256="a" * 64, size=101)},
        {"kind": "error", "parameters": Blob(sha256="a" * 64, size=1)},
        {"kind": "error", "parameters": None},  # signed, and no error's document
    ],
)
def test_a_site_whose_replies_cannot_be_used_ends_its_turn_and_nothing_is_read(
    changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    office, read = Office(), list[Blob]()
    monkeypatch.setattr(office, "take", lambda site, blob: read.append(blob))
    network = Network(office, honest(office, **changes))
    replies = ask(SealedGrid(office, lambda: network, ["east"], largest_update_bytes=100), seconds=30.0)
    assert "asked 5 times, and no reply can be used" in (replies[0].error.reason or "")
    assert office.refused == [("east", "EF-501")] * 5
    assert read == []


def test_an_answer_to_another_question_brings_no_parameters() -> None:
    office = Office()
    network = Network(office, honest(office, parameters=Blob(sha256="a" * 64, size=1)))
    grid = SealedGrid(office, lambda: network, ["east"], largest_update_bytes=100)
    document = Instruction(kind="evaluate", study_hash=STUDY, round_number=1).model_dump_json()
    message = grid.create_message(content_of(document, b""), "evaluate", 1, "1", 30.0)
    (reply,) = exchange(grid, [message], 30.0)
    assert "nobody asked for" in (reply.error.reason or "")


def test_parameters_that_never_come_whole_end_the_site_s_turn() -> None:
    office = Office()
    network = Network(office, honest(office, parameters=Blob(sha256="a" * 64, size=9)))
    replies = ask(SealedGrid(office, lambda: network, ["east"], largest_update_bytes=100), seconds=30.0)
    assert "not arrived whole" in (replies[0].error.reason or "")
    assert len(network.sent) == 5


@pytest.mark.parametrize(
    "forked",
    [
        {
            "log_head": HEAD.model_copy(update={"entries": 8}),
            "log_head_then": HEAD.model_copy(update={"hash": "1" * 64}),
        },
        {"log_head": HEAD.model_copy(update={"entries": 8}), "log_head_then": None},
        {"log_head": HEAD.model_copy(update={"hash": "1" * 64})},
        {"log_head": HEAD.model_copy(update={"log_id": "1" * 32, "entries": 9})},
    ],
    ids=["another entry there", "no entry there", "another last entry", "another log"],
)
def test_a_site_whose_log_has_forked_ends_its_turn_at_once(forked: dict[str, object]) -> None:
    office = Office()
    network = Network(office, honest(office))
    grid = SealedGrid(office, lambda: network, ["east", "north"], largest_update_bytes=100)
    assert not any(reply.has_error() for reply in ask(grid, 1))
    seen = dict(office.known)
    network.answering = lambda site, document, signed: honest(office, **(forked if site == "east" else {}))(
        site, document, signed
    )
    replies = ask(grid, 2, seconds=30.0)
    assert [reply.error.reason if reply.has_error() else None for reply in replies] == ["[EF-708] It forked.", None]
    assert (office.refused, office.known["east"]) == ([("east", "EF-708")], seen["east"])
    assert len(network.sent) == 4


def test_a_reply_that_another_has_overtaken_is_asked_for_again() -> None:
    """As when a site's second machine has answered meanwhile: of two replies, the second must go on from the first."""
    office, ahead = Office(), HEAD.model_copy(update={"entries": 6})

    def overtaken(site: str, document: str, signed: Signed) -> RecordDict:
        if not office.refused:
            office.known["east"] = SiteHeads(log=HEAD.model_copy(update={"entries": 5}), ledger=None)
        return honest(office, log_head=ahead)(site, document, signed)

    network = Network(office, overtaken)
    replies = ask(SealedGrid(office, lambda: network, ["east"], largest_update_bytes=100))
    assert not replies[0].has_error()
    assert office.refused == [("east", "EF-707")]
    assert office.known["east"].log == ahead


def test_whom_a_round_waits_for_is_told_once_it_has_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_grid, "WAITING_SECONDS", 0.05)
    office, told = Office(), list[Waiting | None]()

    def slow(site: str, document: str, signed: Signed) -> RecordDict | None:
        return None if site != "north" else honest(office)(site, document, signed)

    network = Network(office, slow)
    grid = SealedGrid(office, lambda: network, SITES, waiting=told.append, largest_update_bytes=100)
    ask(grid, seconds=2.5)
    assert [waiting and waiting.sites for waiting in told] == [("east", "west"), None]
    waiting = told[0]
    assert waiting is not None
    asked = datetime.fromisoformat(waiting.until) - datetime.fromisoformat(waiting.since)
    assert timedelta(seconds=2) <= asked <= timedelta(seconds=3)
    network.answering = honest(office)
    ask(grid, 2)
    assert len(told) == 2


def test_a_round_can_be_given_up() -> None:
    office = Office()

    def stopped() -> None:
        raise InterruptedRunError("The study was stopped.")

    network = Network(office, honest(office))
    with pytest.raises(InterruptedRunError):
        ask(SealedGrid(office, lambda: network, SITES, stopped, largest_update_bytes=100))
