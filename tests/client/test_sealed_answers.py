"""From a sealed instruction to a sealed reply: with real keys, a real log and a real gateway."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from echofed.client.approvals import approve, withdraw
from echofed.client.identity import init_site, join
from echofed.client.identity_files import Identity
from echofed.client.ledger_heads import HEAD_FILE
from echofed.client.link import Link
from echofed.client.link_settings import LinkSettings
from echofed.client.sealed_answers import BLOB_FOLDER, BLOBS_KEPT, Opened, SealedAnswers
from echofed.client.studies_sync import fetch_studies
from echofed.protocol.audit_log import AuditLog, Entry, open_audit_log
from echofed.protocol.errors import (
    ArraysError,
    AuditLogError,
    CertificateError,
    LinkError,
    NotApprovedError,
    PolicyRefusalError,
    ReplayError,
)
from echofed.protocol.messages import Instruction
from echofed.protocol.seals import Blob, ErrorReply, InstructionSeal, ReplySeal, error_said
from echofed.protocol.signing import Signed, digest, sign, verify
from echofed.server.authority import load_signing_key, read_consortium
from echofed.server.blobs import BlobStore
from echofed.server.coordination import Coordination
from echofed.server.members import enrol, invite, revoke, site_signing_key
from echofed.server.publishing import publish_study
from echofed.server.site_heads import forked_sites
from tests.gateways import Door, embedded_door, free_port, make_consortium
from tests.study_files import write_study_files

HEAD = {"log_id": "1" * 32, "entries": 7, "hash": "2" * 64}
SAID = '{"kind":"train","training_loss":null,"patients":3}'
UPDATE = b"an update"


@dataclass
class Site:
    """A hospital whose coordinator's gateway runs."""

    door: Door
    state: Path
    identity: Identity
    study_hash: str
    link: Link
    log: AuditLog
    answers: SealedAnswers
    trained: list[int] = field(default_factory=list)

    def instruction(self, kind: str = "train", number: int = 1, parameters: bytes = b"", **changes: Any) -> Signed:
        """Return what the coordinator signs, its parameters published."""
        coordinator, now = self.door.coordinator, datetime.now(UTC)
        said = Instruction(kind=kind, study_hash=self.study_hash, round_number=number).model_dump_json()
        blob = None
        if parameters:
            blob = Blob(sha256=BlobStore(coordinator).publish(parameters), size=len(parameters))
        seal = {
            "consortium": read_consortium(coordinator).id,
            "site": "north",
            "study_hash": self.study_hash,
            "round_number": number,
            "kind": kind,
            "document": hashlib.sha256(said.encode()).hexdigest(),
            "parameters": blob,
            "issued_at": now.isoformat(timespec="seconds"),
            "expires_at": (now + timedelta(minutes=1)).isoformat(timespec="seconds"),
            "log_head": HEAD,
        }
        return sign(load_signing_key(coordinator), "instruction", InstructionSeal.model_validate({**seal, **changes}))

    def open(self, signed: Signed) -> Opened:
        """Open an instruction."""
        return self.answers.open(InstructionSeal.model_validate_json(signed.payload), signed)

    def make(self) -> tuple[str, bytes]:
        """Return what the ClientApp would."""
        self.trained.append(self.log.head().entries)
        return SAID, UPDATE

    def events(self, *events: str) -> list[Entry]:
        """Return the entries of some events."""
        return [entry for entry in self.log.entries() if entry.event in events]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    coordinator = make_consortium(tmp_path, "north", "south")
    files = write_study_files(tmp_path / "offered")
    study_hash = publish_study(coordinator, files.study_path, files.parameters_path).hash
    state = tmp_path / "north"
    with embedded_door(tmp_path, free_port()) as door, open_audit_log(state, owner="north") as log:
        identity = door.identity()
        link = Link(identity, LinkSettings())
        fetch_studies(state, identity, log, link)
        approve(state, study_hash, "Dr A. Martin", member=identity, log=log)
        answers = SealedAnswers(state, identity, link, log)
        yield Site(door, state, identity, study_hash, link, log, answers)
        link.close()


def test_an_instruction_is_logged_and_its_parameters_fetched(site: Site) -> None:
    signed = site.instruction(parameters=b"global parameters")
    opened = site.open(signed)
    assert opened.parameters == b"global parameters"
    assert opened.study_folder == site.state / "studies" / site.study_hash
    received, head = site.events("instruction", "head received")
    assert received.facts == {
        "study": site.study_hash,
        "round": 1,
        "kind": "train",
        "digest": digest(signed),
        "bytes": len(b"global parameters"),
    }
    assert {name: head.facts[name] for name in HEAD} == HEAD
    # What a rewritten log of the coordinator contradicts, even one that was begun anew.
    assert head.facts["peer"] == site.identity.membership.consortium_name
    assert head.facts["signature"] == signed.signature


def test_what_leaves_is_logged_before_and_signed_for_what_it_is(site: Site) -> None:
    signed = site.instruction(parameters=b"global parameters")
    document, seal = site.answers.answer(site.open(signed), site.make)
    key = site_signing_key(site.door.coordinator, "north")
    said = verify(seal, key, "reply", ReplySeal)
    blob = Blob(sha256=hashlib.sha256(UPDATE).hexdigest(), size=len(UPDATE))
    assert (document, said.kind, said.site, said.round_number) == (SAID, "train", "north", 1)
    assert (said.instruction, said.study_hash, said.parameters) == (digest(signed), site.study_hash, blob)
    assert said.document == hashlib.sha256(SAID.encode()).hexdigest()
    (logged,) = site.events("reply")
    assert logged.facts == {
        "study": site.study_hash,
        "round": 1,
        "kind": "train",
        "document": said.document,
        "parameters": blob.sha256,
        "bytes": len(SAID) + len(UPDATE),
        "holds": ["kind", "patients", f"update of {len(UPDATE)} bytes"],
    }
    # The head that is sent covers the entry of this very reply.
    assert (said.log_head.entries, said.log_head.hash) == (logged.number, logged.hash)
    assert BlobStore(site.door.coordinator).incoming("north", blob.sha256).read_bytes() == UPDATE
    assert [path.name for path in (site.state / BLOB_FOLDER).iterdir()] == [
        hashlib.sha256(b"global parameters").hexdigest()
    ]


def test_an_update_that_cannot_be_delivered_is_logged_and_lies_nowhere(site: Site) -> None:
    opened = site.open(site.instruction(parameters=b"global parameters"))
    revoke(site.door.coordinator, "north", "A test.")
    with pytest.raises((LinkError, CertificateError)):
        site.answers.answer(opened, site.make)
    assert len(site.events("reply")) == 1
    assert not list((site.state / BLOB_FOLDER).glob("*.out"))


def test_the_same_instruction_again_gets_the_same_reply_and_another_does_not(site: Site) -> None:
    first = site.answers.answer(site.open(site.instruction()), site.make)
    again = site.instruction(expires_at=(datetime.now(UTC) + timedelta(minutes=2)).isoformat(timespec="seconds"))
    second = site.answers.answer(site.open(again), site.make)
    assert (first[0], len(site.trained)) == (second[0], 1)
    seals = [ReplySeal.model_validate_json(signed.payload) for _, signed in (first, second)]
    assert seals[0].instruction != seals[1].instruction == digest(again)
    site.answers.answer(site.open(site.instruction(parameters=b"other parameters")), site.make)
    site.answers.answer(site.open(site.instruction(number=2)), site.make)
    assert len(site.trained) == 3
    assert len(site.events("reply")) == 4


def test_a_refusal_says_a_code_and_a_fixed_sentence(site: Site) -> None:
    signed = site.instruction()
    seal = InstructionSeal.model_validate_json(signed.payload)
    document, sealed = site.answers.refuse(seal, signed, ErrorReply(code="EF-202", sentence="No patients."))
    said = verify(sealed, site_signing_key(site.door.coordinator, "north"), "reply", ReplySeal)
    assert json.loads(document) == {"code": "EF-202", "sentence": "No patients."}
    assert (said.kind, said.parameters, said.instruction) == ("error", None, digest(signed))
    (logged,) = site.events("reply")
    assert (logged.facts["kind"], logged.facts["holds"]) == ("error", ["error EF-202"])


def test_only_an_approved_study_is_opened_and_only_until_it_is_withdrawn_from(site: Site) -> None:
    with pytest.raises(NotApprovedError):
        site.open(site.instruction(study_hash="0" * 64))
    assert site.events("instruction") == []
    site.open(site.instruction(number=1))
    withdraw(site.state, site.study_hash, "Dr A. Martin", member=site.identity, log=site.log)
    with pytest.raises(NotApprovedError, match="withdrawn"):
        site.open(site.instruction(number=2))
    assert len(site.events("instruction")) == 1


def test_the_policy_of_the_moment_counts(site: Site) -> None:
    (site.state / "policy.yaml").write_text("secure_aggregation_required: true\n")
    with pytest.raises(PolicyRefusalError):
        site.open(site.instruction())
    (site.state / "policy.yaml").unlink()
    assert site.open(site.instruction()).parameters == b""


def test_an_older_round_is_refused_and_a_question_before_the_first_is_not(site: Site) -> None:
    site.open(site.instruction(number=3))
    with pytest.raises(ReplayError):
        site.open(site.instruction(number=2))
    with pytest.raises(ReplayError):
        site.open(site.instruction("evaluate", number=1))
    assert site.open(site.instruction("describe", number=0)).seal.kind == "describe"


def test_parameters_larger_than_the_policy_allows_are_not_taken(site: Site) -> None:
    (site.state / "policy.yaml").write_text("maximum_message_mb: 1\n")
    with pytest.raises(PolicyRefusalError, match="maximum_message_mb"):
        site.open(site.instruction(parameters=bytes(2**20 + 1)))
    assert not (site.state / BLOB_FOLDER).exists()
    assert len(site.open(site.instruction(parameters=bytes(2**20))).parameters) == 2**20


def test_parameters_that_are_not_those_of_the_seal_are_refused(site: Site) -> None:
    signed = site.instruction(parameters=b"global parameters")
    published = site.door.coordinator / "blobs" / "published" / hashlib.sha256(b"global parameters").hexdigest()
    for content in (b"global Parameters", b"global", b"global parameters and more"):
        published.write_bytes(content)
        with pytest.raises((ArraysError, LinkError)):
            site.open(signed)
        assert list((site.state / BLOB_FOLDER).iterdir()) == []
    published.unlink()
    with pytest.raises(LinkError):
        site.open(signed)


def test_a_kept_file_that_was_damaged_is_fetched_again(site: Site) -> None:
    signed = site.instruction(parameters=b"global parameters")
    site.open(signed)
    (kept,) = (site.state / BLOB_FOLDER).iterdir()
    for content in (b"GLOBAL parameters", b"", b"global parameters, and more"):
        kept.write_bytes(content)
        assert site.open(signed).parameters == b"global parameters"


def test_few_files_of_parameters_are_kept(site: Site) -> None:
    for number in range(1, BLOBS_KEPT + 3):
        site.open(site.instruction(number=number, parameters=f"parameters {number}".encode()))
    assert len(list((site.state / BLOB_FOLDER).iterdir())) == BLOBS_KEPT


def ask(site: Site, office: Coordination, number: int) -> ReplySeal:
    """Have the site answer a round as the coordinator asks for it now, and the coordinator count the reply."""
    told = office.site_heads("north")
    signed = site.instruction(number=number, site_heads=told)
    try:
        _, sealed = site.answers.answer(site.open(signed), site.make)
    except AuditLogError as error:
        seal = InstructionSeal.model_validate_json(signed.payload)
        _, sealed = site.answers.refuse(seal, signed, error_said(error))
    said = office.check_reply("north", sealed)
    office.check_heads("north", told, said)
    office.note_reply("north", said, sealed)
    return said


@contextmanager
def copied(site: Site, state: Path) -> Iterator[Site]:
    """Give a second machine that works with a copy of the site's folder."""
    shutil.copytree(site.state, state)
    with open_audit_log(state, owner="north") as log:
        answers = SealedAnswers(state, site.identity, site.link, log)
        yield Site(site.door, state, site.identity, site.study_hash, site.link, log, answers)


@pytest.fixture
def office(site: Site) -> Iterator[Coordination]:
    office = Coordination(site.door.coordinator)
    yield office
    office.log.close()


def test_of_two_machines_with_one_identity_only_the_one_that_answers_first_goes_on(
    site: Site, office: Coordination, tmp_path: Path
) -> None:
    ask(site, office, 1)
    with copied(site, tmp_path / "copy") as copy:
        ask(copy, office, 2)
        with pytest.raises(AuditLogError, match="two machines use its identity"):
            ask(site, office, 2)
        assert site.trained == [site.trained[0]], "the original released a round of its own"
        assert site.events("reply")[-1].facts["holds"] == ["error EF-708"]
        # However long its own chain gets, and whenever the coordinator starts anew.
        for _ in range(9):
            site.log.append("started")
        again = Coordination(site.door.coordinator)
        with pytest.raises(AuditLogError):
            ask(site, again, 3)
        assert len(site.trained) == 1
        assert ask(copy, again, 3).kind == "train"
        assert "two machines use its identity" in forked_sites(site.door.coordinator)["north"]
        again.log.close()


def test_a_folder_put_back_to_a_copy_is_noticed_before_anything_leaves(
    site: Site, office: Coordination, tmp_path: Path
) -> None:
    with copied(site, tmp_path / "copy") as copy:
        ask(site, office, 1)
        signed = copy.instruction(number=2, parameters=b"global", site_heads=office.site_heads("north"))
        with pytest.raises(AuditLogError, match="two machines use this identity, or the state folder was put back"):
            copy.open(signed)
        assert copy.events("instruction", "reply") == []
        assert not (copy.state / BLOB_FOLDER).exists()


def test_a_ledger_put_back_to_a_copy_is_noticed(site: Site, office: Coordination) -> None:
    def ledger(entries: int) -> None:
        head = {"ledger_id": "1" * 32, "entries": entries, "hash": f"{entries:064}", "witness": None}
        (site.state / HEAD_FILE).write_text(json.dumps(head))

    for entries in (2, 2, 5):
        ledger(entries)
        ask(site, office, 1)
    ledger(4)
    with pytest.raises(AuditLogError, match=r"ledger of .* is not the one the coordinator saw"):
        site.open(site.instruction(site_heads=office.site_heads("north")))
    with pytest.raises(AuditLogError):
        ask(site, office, 1)
    (site.state / HEAD_FILE).unlink()
    with pytest.raises(AuditLogError):
        ask(site, office, 1)


def test_enrolled_anew_a_site_goes_on(site: Site, office: Coordination, tmp_path: Path) -> None:
    coordinator = site.door.coordinator
    with copied(site, tmp_path / "copy") as copy:
        ask(copy, office, 1)
        with pytest.raises(AuditLogError):
            ask(site, office, 1)
    revoke(coordinator, "north", "Two machines.")
    assert forked_sites(coordinator) == {}
    request = init_site(site.state, invite(coordinator, "north", readmit=True), path=tmp_path / "again.request")
    member = join(site.state, enrol(coordinator, request.path, request.words))
    link = Link(member, LinkSettings())
    approve(site.state, site.study_hash, "Dr A. Martin", member=member, log=site.log)
    answers = SealedAnswers(site.state, member, link, site.log)
    anew = Site(site.door, site.state, member, site.study_hash, link, site.log, answers)
    assert office.site_heads("north") is None
    assert ask(anew, office, 1).kind == "train"
    assert office.site_heads("north") is not None
    assert forked_sites(coordinator) == {}
    link.close()


def test_a_reply_counts_only_if_it_was_asked_for_after_the_last_one(site: Site, office: Coordination) -> None:
    early = ask(site, office, 1)
    ask(site, office, 2)
    with pytest.raises(ReplayError):
        office.check_heads("north", None, early)
    assert forked_sites(site.door.coordinator) == {}
