"""The executor's answer to every message: real keys, real data, the real ClientApp; only SuperNode is left out."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.supercore.fab import Fab

from echofed.client.approvals import approve
from echofed.client.flower_executor import Executor
from echofed.client.identity_files import Identity
from echofed.client.link import Link
from echofed.client.link_settings import LinkSettings
from echofed.client.releases import close_ledgers
from echofed.client.sealed_answers import SealedAnswers
from echofed.client.settings import SiteSettings
from echofed.client.site import create_site
from echofed.client.studies_sync import fetch_studies
from echofed.protocol.audit_log import AuditLog, open_audit_log
from echofed.protocol.bundle import bundle_hash, empty_bundle
from echofed.protocol.flower_records import read_sealed, sealed_content
from echofed.protocol.messages import DescribeReply, Instruction
from echofed.protocol.seals import ErrorReply, InstructionSeal, ReplySeal
from echofed.protocol.signing import sign, verify
from echofed.server.authority import load_signing_key, read_consortium
from echofed.server.members import site_signing_key
from echofed.server.publishing import publish_study
from echofed.simulations.identity import declare_task
from echofed.simulations.initial import initialise_study
from tests.client.conftest import Hospital
from tests.gateways import Door, embedded_door, free_port, make_consortium
from tests.small_simulations import write_study
from tests.studies import make_study

EMPTY = Fab(bundle_hash(), empty_bundle(), {})
NODE, COORDINATOR = 5, 9


@dataclass
class Node:
    """An executor of a hospital that has approved a study."""

    door: Door
    state: Path
    study_hash: str
    log: AuditLog
    executor: Executor

    def content(self, kind: str = "describe", number: int = 0, **changes: Any) -> RecordDict:
        """Return what the coordinator sends."""
        now = datetime.now(UTC)
        said = Instruction(kind=kind, study_hash=self.study_hash, round_number=number).model_dump_json()
        seal = {
            "consortium": read_consortium(self.door.coordinator).id,
            "site": "north",
            "study_hash": self.study_hash,
            "round_number": number,
            "kind": kind,
            "document": hashlib.sha256(said.encode()).hexdigest(),
            "parameters": None,
            "issued_at": now.isoformat(timespec="seconds"),
            "expires_at": (now + timedelta(minutes=1)).isoformat(timespec="seconds"),
            "log_head": {"log_id": "1" * 32, "entries": 7, "hash": "2" * 64},
        }
        signed = sign(
            load_signing_key(self.door.coordinator), "instruction", InstructionSeal.model_validate({**seal, **changes})
        )
        return sealed_content(said, signed)

    def answer(self, content: RecordDict, message_type: str = "query", fab: Fab = EMPTY) -> Message:
        """Return the executor's answer to a message with some content."""
        return self.answer_to(Message(content, NODE, message_type), fab)

    def answer_to(self, message: Message, fab: Fab = EMPTY) -> Message:
        """Return the executor's answer to a message, which names its receiver alone."""
        message.metadata.__dict__["_message_id"] = "1"
        context = Context(1, NODE, {}, RecordDict(), {})
        declare_task(NODE)  # as the executor does once it has its task
        try:
            return self.executor._answer(message, context, fab)
        finally:
            declare_task(COORDINATOR)

    def refused(self) -> list[str]:
        """Return the codes of what the log says was refused."""
        return [str(entry.facts["code"]) for entry in self.log.entries() if entry.event == "refused request"]

    def signed_refusal(self, reply: Message) -> ErrorReply:
        """Return what an error says that the site has signed."""
        document, signed = read_sealed(reply.content)
        assert verify(signed, site_signing_key(self.door.coordinator, "north"), "reply", ReplySeal).kind == "error"
        return ErrorReply.model_validate_json(document)


@pytest.fixture
def node(tmp_path: Path, hospital: Hospital) -> Iterator[Node]:
    declare_task(COORDINATOR)
    coordinator = make_consortium(tmp_path, "north")
    hospital.fill(12)
    hospital.write_index()
    state = tmp_path / "north"
    create_site(state, SiteSettings(name="north", data_folder=hospital.folder), bytes(32)).register()
    (state / "policy.yaml").write_text("allow_without_privacy: true\nminimum_patients: 1\n")
    path = write_study(tmp_path / "study.yaml", make_study())
    study_hash = publish_study(coordinator, path, initialise_study(path, 0)).hash
    with embedded_door(tmp_path, free_port()) as door, open_audit_log(state, owner="north") as log:
        identity: Identity = door.identity()
        link = Link(identity, LinkSettings())
        fetch_studies(state, identity, log, link)
        approve(state, study_hash, "Dr A. Martin", member=identity, log=log)
        answers = SealedAnswers(state, identity, link, log)
        executor = Executor(state, "127.0.0.1:1", b"", answers, log, threading.Event())
        yield Node(door, state, study_hash, log, executor)
        link.close()
        close_ledgers()


def test_an_honest_question_is_answered_under_the_sites_signature(node: Node) -> None:
    reply = node.answer(node.content())
    document, signed = read_sealed(reply.content)
    said = verify(signed, site_signing_key(node.door.coordinator, "north"), "reply", ReplySeal)
    assert (said.kind, said.document) == ("describe", hashlib.sha256(document.encode()).hexdigest())
    assert DescribeReply.model_validate_json(document).can_train
    assert said.ledger_head is not None
    assert said.ledger_head.entries == 1
    assert {name: set(record) for name, record in reply.content.items()} == {"document": {"json", "seal"}}
    assert node.refused() == []


@pytest.mark.parametrize(
    "fab",
    [
        Fab("0" * 64, b"import os", {}),
        Fab(bundle_hash(), b"import os", {}),
        Fab("0" * 64, empty_bundle(), {}),
        Fab(bundle_hash(), empty_bundle() + b" ", {}),
        Fab("", b"", {}),
    ],
    ids=["other", "its content", "its hash", "a byte more", "none"],
)
def test_another_bundle_is_refused_whatever_comes_with_it(node: Node, fab: Fab) -> None:
    reply = node.answer(node.content(), fab=fab)
    assert (reply.error.reason or "").startswith("[EF-709]")
    assert node.refused() == ["EF-709"]


@pytest.mark.parametrize("message_type", ["query.other", "train.more", "evaluate.x", "system"])
def test_another_type_of_message_is_refused(node: Node, message_type: str) -> None:
    message = Message(node.content(), NODE, "query")
    message.metadata.__dict__["_message_type"] = message_type
    assert (node.answer_to(message).error.reason or "").startswith("[EF-709]")
    assert node.refused() == ["EF-709"]


def test_an_error_sent_to_the_node_is_refused(node: Node) -> None:
    asked = Message(node.content(), NODE, "query")
    asked.metadata.__dict__["_message_id"] = "1"
    error = Message(Error(1, "x"), reply_to=asked)
    assert (node.answer_to(error).error.reason or "").startswith("[EF-709]")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"document": {"json": "{}"}},
        {"document": {"json": "{}", "seal": "{}"}},
        {"document": {"json": 1, "seal": "{}"}},
        {"document": {"json": "x" * 2**17, "seal": "{}"}},
        {"document": {"json": "{}", "seal": "{}", "more": "{}"}},
        {"document": {"json": "{}", "seal": "{}"}, "more": {"json": "{}"}},
    ],
    ids=["empty", "no seal", "no signature", "a number", "too long", "one text more", "one record more"],
)
def test_content_without_a_seal_is_refused(node: Node, content: dict[str, dict[str, Any]]) -> None:
    records = RecordDict({name: ConfigRecord(record) for name, record in content.items()})
    assert (node.answer(records).error.reason or "").startswith("[EF-501]")
    assert node.refused() == ["EF-501"]


def test_unsigned_messages_do_not_fill_the_log(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def counts() -> list[tuple[object, object]]:
        return [
            (entry.facts["code"], entry.facts["count"])
            for entry in node.log.entries()
            if entry.event == "refused request"
        ]

    for _ in range(20):
        assert (node.answer(RecordDict()).error.reason or "").startswith("[EF-501]")
    node.answer(node.content(), fab=Fab("", b"", {}))
    assert counts() == [("EF-501", 1), ("EF-709", 1)]
    monkeypatch.setattr("echofed.client.flower_executor.NOTE_SECONDS", 0.0)
    node.answer(RecordDict())
    assert counts()[2:] == [("EF-501", 20)]


def test_how_many_were_refused_is_logged_without_another_refusal(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a minute, from the loop that asks for tasks, and at the end."""

    def counts() -> list[object]:
        return [entry.facts["count"] for entry in node.log.entries() if entry.event == "refused request"]

    for _ in range(3):
        node.answer(RecordDict())
    assert counts() == [1]
    node.executor.close()
    assert counts() == [1, 2]
    node.executor.close()
    node.answer(RecordDict())
    assert counts() == [1, 2]
    monkeypatch.setattr("echofed.client.flower_executor.NOTE_SECONDS", 0.0)
    monkeypatch.setattr("echofed.client.flower_executor.PATIENCE_SECONDS", -1.0)
    with pytest.raises(httpx.HTTPError):  # there is no SuperNode at its address
        node.executor.run()
    assert counts() == [1, 2, 1]


def test_what_the_site_will_not_do_it_says_under_its_signature(node: Node) -> None:
    (node.state / "policy.yaml").write_text("allow_without_privacy: false\nminimum_patients: 1\n")
    assert node.signed_refusal(node.answer(node.content())).code == "EF-706"
    assert node.refused() == ["EF-706"]


def test_a_refusal_of_the_client_app_passes_as_it_is(node: Node) -> None:
    said = node.signed_refusal(node.answer(node.content("train", 1), "train"))
    assert said.code == "EF-501"  # no parameters came with it
    assert str(node.state) not in said.sentence


def test_an_error_nobody_expected_tells_nothing_and_the_next_message_is_answered(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(node.executor, "_run", lambda *_: {}["patient 17"])
        said = node.signed_refusal(node.answer(node.content()))
    assert (said.code, "17" in said.sentence) == ("EF-605", False)
    assert [entry.facts["what"] for entry in node.log.entries() if entry.event == "error"] == ["KeyError('patient 17')"]
    assert not node.answer(node.content()).has_error()
