"""What the conductor knows of its consortium: answers, nodes, files of parameters and the log, on a real disk."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from echofed.client.approvals import approve, receive, withdraw
from echofed.client.identity import load_identity
from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.errors import CertificateError, EnrolmentError, ReplyRefusedError, SignatureError
from echofed.protocol.seals import Blob, InstructionSeal, ReplySeal
from echofed.protocol.signing import Signed, digest, sign, verify
from echofed.server.blobs import BlobStore
from echofed.server.checkpoint import Checkpoint, write_checkpoint
from echofed.server.coordination import GLOBALS_KEPT, SILENT_SECONDS, Coordination
from echofed.server.gateway_nodes import NODES_FILE
from echofed.server.history import Round, SiteRound, append_round
from echofed.server.members import revoke
from echofed.server.publishing import publish_study
from echofed.server.studies import published, receive_answer
from tests.gateways import make_consortium
from tests.study_files import StudyFiles, write_study_files

HEAD = {"log_id": "1" * 32, "entries": 7, "hash": "2" * 64}


@pytest.fixture
def coordinator(tmp_path: Path) -> Path:
    return make_consortium(tmp_path, "north", "south")


@pytest.fixture
def files(tmp_path: Path, coordinator: Path) -> StudyFiles:
    files = write_study_files(tmp_path / "offered")
    publish_study(coordinator, files.study_path, files.parameters_path)
    return files


def say_yes(coordinator: Path, site: str, files: StudyFiles) -> None:
    state = coordinator.parent / site
    identity = load_identity(state)
    with open_audit_log(state, owner=site) as log:
        receive(state, published(coordinator), member=identity, log=log)
        folder = state / "studies" / files.study.hash
        (folder / "initial.safetensors").write_bytes(files.parameters_path.read_bytes())
        receive_answer(coordinator, site, approve(state, files.study.hash, "Dr A", member=identity, log=log))


def nodes(coordinator: Path, **seen: timedelta) -> None:
    """Write that sites' nodes were seen some time ago."""
    now = datetime.now(UTC)
    path = coordinator / NODES_FILE
    path.parent.mkdir(exist_ok=True)
    entries = {
        site: {
            "node_id": number,
            "public_key": "x",
            "activated_at": now.isoformat(timespec="seconds"),
            "seen_at": (now - ago).isoformat(timespec="seconds"),
        }
        for number, (site, ago) in enumerate(seen.items(), start=100)
    }
    path.write_text(json.dumps(entries))


def reply(
    coordinator: Path, site: str = "north", signer: str | None = None, **changes: Any
) -> tuple[ReplySeal, Signed]:
    said = {
        "consortium": "c" * 64,
        "site": site,
        "study_hash": "5" * 64,
        "round_number": 1,
        "kind": "train",
        "instruction": "0" * 64,
        "document": "0" * 64,
        "parameters": None,
        "log_head": HEAD,
        "ledger_head": None,
    }
    seal = ReplySeal.model_validate({**said, **changes})
    return seal, sign(load_identity(coordinator.parent / (signer or site)).signing_key, "reply", seal)


def test_who_has_approved_and_is_still_a_member_counts(coordinator: Path, files: StudyFiles) -> None:
    office = Coordination(coordinator)
    assert office.approved(files.study) == []
    say_yes(coordinator, "south", files)
    say_yes(coordinator, "north", files)
    assert office.approved(files.study) == ["north", "south"]
    state = coordinator.parent / "south"
    with open_audit_log(state, owner="south") as log:
        no = withdraw(state, files.study.hash, "Dr A", "Enough.", member=load_identity(state), log=log)
    receive_answer(coordinator, "south", no)
    assert office.approved(files.study) == ["north"]
    revoke(coordinator, "north", "A test.")
    assert office.approved(files.study) == []


def test_who_was_heard_of_lately_is_online(coordinator: Path) -> None:
    office = Coordination(coordinator)
    assert (office.node_of("north"), office.is_online("north")) == ((0, True), False)
    nodes(coordinator, north=timedelta(seconds=SILENT_SECONDS - 10), south=timedelta(seconds=SILENT_SECONDS + 10))
    office = Coordination(coordinator)
    assert office.node_of("north") == (100, False)
    assert office.node_of("south") == (0, True)
    assert office.node_of("west") == (0, True)
    assert [office.is_online(site) for site in ("north", "south", "west")] == [True, False, False]
    revoke(coordinator, "north", "A test.")
    assert office.node_of("north") == (0, True)


def test_an_instruction_is_logged_as_it_is_signed(coordinator: Path) -> None:
    office, now = Coordination(coordinator), datetime.now(UTC).isoformat(timespec="seconds")
    seal = InstructionSeal.model_validate(
        {
            "consortium": office.consortium,
            "site": "north",
            "study_hash": "5" * 64,
            "round_number": 3,
            "kind": "train",
            "document": "0" * 64,
            "parameters": None,
            "issued_at": now,
            "expires_at": now,
            "log_head": office.log_head(),
        }
    )
    signed = office.sign_instruction(seal)
    identity = load_identity(coordinator.parent / "north")
    assert verify(signed, identity.coordinator_key, "instruction", InstructionSeal) == seal
    (logged,) = [entry for entry in office.log.entries() if entry.event == "instruction"]
    assert (logged.facts["digest"], logged.facts["site"], logged.facts["round"]) == (digest(signed), "north", 3)
    assert office.log_head().entries == logged.number == seal.log_head.entries + 1


def test_a_reply_counts_only_with_the_signature_of_the_site_it_came_from(coordinator: Path) -> None:
    office = Coordination(coordinator)
    seal, signed = reply(coordinator)
    assert office.check_reply("north", signed) == seal
    with pytest.raises(SignatureError):
        office.check_reply("south", signed)
    with pytest.raises(SignatureError):
        office.check_reply("north", reply(coordinator, signer="south")[1])
    with pytest.raises(SignatureError):
        office.check_reply("north", signed.model_copy(update={"payload": signed.payload.replace("5555", "5556")}))
    with pytest.raises((CertificateError, EnrolmentError)):
        office.check_reply("west", signed)
    revoke(coordinator, "north", "A test.")
    with pytest.raises(CertificateError, match="revoked"):
        office.check_reply("north", signed)


def test_a_reply_is_logged_with_the_heads_the_site_has_signed(coordinator: Path) -> None:
    office = Coordination(coordinator)
    blob = Blob(sha256="9" * 64, size=3)
    seal, signed = reply(coordinator, parameters=blob, ledger_head={**HEAD, "entries": 4})
    office.note_reply("north", seal, signed)
    logged, head = list(office.log.entries())[-2:]
    assert (logged.event, logged.facts["parameters"], logged.facts["ledger_entries"]) == ("reply", blob.sha256, 4)
    assert head.event == "head received"
    assert head.facts == {"peer": "north", **HEAD, "signature": signed.signature}


def test_the_newest_global_parameters_and_those_studies_start_from_are_kept(
    coordinator: Path, files: StudyFiles
) -> None:
    office, store = Coordination(coordinator), BlobStore(coordinator)
    names = [office.publish(f"parameters {number}".encode()).sha256 for number in range(GLOBALS_KEPT + 2)]
    initial = hashlib.sha256(files.parameters_path.read_bytes()).hexdigest()
    kept = {path.name for path in store.published(initial).parent.iterdir()}
    assert kept == {initial, *names[-GLOBALS_KEPT:]}
    assert store.published(names[-1]).read_bytes() == f"parameters {GLOBALS_KEPT + 1}".encode()


def test_a_sites_parameters_are_taken_only_whole_and_as_signed(coordinator: Path) -> None:
    office, store = Coordination(coordinator), BlobStore(coordinator)
    content = b"an update"
    blob = Blob(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    with pytest.raises(ReplyRefusedError, match="not arrived"):
        office.take("north", blob)
    store.receive("south", blob.sha256, blob.size, [memoryview(content)])
    with pytest.raises(ReplyRefusedError):
        office.take("north", blob)
    assert office.take("south", blob) == content
    assert not store.incoming("south", blob.sha256).exists()
    with pytest.raises(ReplyRefusedError):
        office.take("south", blob.model_copy(update={"size": 8}))
    store.incoming("south", blob.sha256).write_bytes(b"An update")
    with pytest.raises(ReplyRefusedError):
        office.take("south", blob)


def test_a_round_whose_entry_a_crash_cut_off_is_logged_once(coordinator: Path, files: StudyFiles) -> None:
    study, folder = files.study, coordinator / "studies" / files.study.hash
    office = Coordination(coordinator)
    office.note_unlogged_round(study, folder)
    record = Round(
        round_number=1,
        attempts=1,
        seconds=1.0,
        bytes_down=0,
        bytes_up=0,
        sites={"north": SiteRound(trained=True), "south": SiteRound()},
        refused={"south": "[EF-501] No."},
        validation_loss=None,
        validation_metric=None,
    )
    append_round(folder, record)
    write_checkpoint(folder, Checkpoint(study.hash, 1, {}, {}, 1, None, {}))
    for _ in range(2):
        Coordination(coordinator).note_unlogged_round(study, folder)
    logged = [entry.facts for entry in office.log.entries() if entry.event == "round published"]
    assert logged == [{"study": study.hash, "round": 1, "sites": ["north"], "refused": ["south: [EF-501] No."]}]


def test_refused_and_late_replies_are_logged(coordinator: Path) -> None:
    office = Coordination(coordinator)
    office.note_refused("north", ReplyRefusedError("It was bad."))
    office.note_late("south")
    refused, late = list(office.log.entries())[-2:]
    assert (refused.event, refused.facts) == (
        "reply refused",
        {"site": "north", "code": "EF-501", "what": "It was bad."},
    )
    assert (late.event, late.facts) == ("late reply", {"site": "south"})
