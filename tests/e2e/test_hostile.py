"""Hostile coordinators, machines in between and hospitals, against real processes.

North is an honest hospital. South and west have changed their own EchoFed (`hostile_site.py`). The intruder has the coordinator's
machine: he reaches SuperLink, and in some tests the coordinator's signing key.
"""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.constant import TaskType

from echofed.client.identity import load_identity
from echofed.protocol.arrays import decode_parameters
from echofed.protocol.bundle import empty_bundle
from echofed.protocol.flower_records import content_of, read_sealed, sealed_content
from echofed.protocol.messages import Instruction
from echofed.protocol.seals import Blob, ErrorReply, InstructionSeal, ReplySeal
from echofed.protocol.signing import sign, verify
from echofed.server.authority import init_consortium, load_signing_key, read_consortium
from echofed.server.gateway_nodes import read_nodes
from echofed.server.history import read_history
from echofed.simulations.local_consortium import LocalConsortium
from echofed.simulations.run import Simulation, simulate_study
from tests.local_consortia import (
    ENVIRONMENT,
    Intruder,
    audit,
    enrolled_consortium,
    intruder,
    last_entry,
    ledger,
    online,
    published,
    run_to_end,
    wait_for,
)
from tests.small_simulations import environment, small_study, source, write_study

SCRIPT = Path(__file__).with_name("hostile_site.py")
TYPES = {"train": "train", "evaluate": "evaluate", "describe": "query"}
ANSWER_SECONDS = 60.0
PLAN = {
    "1": ["foreign key", "document changed", "not a number"],
    "2": ["last round again", "reply of another site", "name of another"],
}
REFUSED_SEALS = ["EF-703", "EF-501", "EF-707", "EF-703"]
REFUSED_CONTENT = ["EF-501", "EF-501"]
HOSTILE_STUDY = small_study(
    title="With hostile sites",
    federation={"rounds": 2, "minimum_sites": 2, "minimum_replies": 2, "round_timeout_seconds": 60.0},
    training={"sampling_probability": 1.0},
)
# Their own settings name a file to write, too: nothing of a bundle may be evaluated.
PYPROJECT = """\
[project]
name = "{name}"
version = "1.0.0"
description = ""
license = {{ file = "LICENSE" }}
requires-python = ">=3.11"
dependencies = ["flwr>=1.41.0"]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.flwr.app]
publisher = "intruder"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
{components}

[tool.flwr.app.config]
run-at-start = "__import__('pathlib').Path({canary!r}).touch()"
"""
CANARY = "from pathlib import Path\nPath({canary!r}).touch()\n"
CLIENT_APP = (
    CANARY
    + """\
from flwr.clientapp import ClientApp
app = ClientApp()

@app.query()
def query(message, context):
    Path({canary!r}).touch()
"""
)
AGENT = 'agentapp = "code.client:app"'
APPS = 'serverapp = "code.client:app"\nclientapp = "code.client:app"'


@dataclass(frozen=True)
class Field:
    """The consortium under attack.

    Args:
        consortium: its processes run.
        target: hash of a study that all sites have approved.
        unapproved: hash of one that none has.
    """

    consortium: LocalConsortium
    target: str
    unapproved: str

    @property
    def north(self) -> Path:
        """State folder of the site that is attacked."""
        return self.consortium.sites["north"]

    @property
    def coordinator_key(self) -> Ed25519PrivateKey:
        """What the coordinator signs with."""
        return load_signing_key(self.consortium.coordinator)

    def instruction(self, **changes: Any) -> tuple[str, InstructionSeal]:
        """Return an honest question to north to describe itself, but for the changes to its seal."""
        now = datetime.now(UTC)
        kind = changes.get("kind", "describe")
        study, number = changes.get("study_hash", self.target), changes.get("round_number", 0)
        document = Instruction(kind=kind, study_hash=study, round_number=number).model_dump_json()
        seal = {
            "consortium": read_consortium(self.consortium.coordinator).id,
            "site": "north",
            "study_hash": study,
            "round_number": number,
            "kind": kind,
            "document": hashlib.sha256(document.encode()).hexdigest(),
            "parameters": None,
            "issued_at": now.isoformat(timespec="seconds"),
            "expires_at": (now + timedelta(minutes=5)).isoformat(timespec="seconds"),
            "log_head": {"log_id": "0" * 32, "entries": 0, "hash": "0" * 64},
        }
        return document, InstructionSeal.model_validate({**seal, **changes})

    def sealed(self, key: Ed25519PrivateKey | None = None, **changes: Any) -> RecordDict:
        """Return such a question as Flower carries it, signed by the coordinator or by another key."""
        document, seal = self.instruction(**changes)
        return sealed_content(document, sign(key or self.coordinator_key, "instruction", seal))


@contextmanager
def hostile(consortium: LocalConsortium, site: str, plan: dict[str, list[str]]) -> Iterator[None]:
    state = consortium.sites[site]
    (state / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, str(SCRIPT), "start", str(state)]
    with (consortium.folder / f"{site}.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment() | ENVIRONMENT)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def field(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    consortium = enrolled_consortium(tmp_path_factory.mktemp("hostile"), phantoms)
    target = published(consortium, small_study(title="Target"), "target")
    unapproved = published(consortium, small_study(title="Unapproved"), "unapproved")
    try:
        for name in ("coordinator", "north"):
            consortium.start(name)
        with hostile(consortium, "south", {}), hostile(consortium, "west", PLAN):
            wait_for(lambda: online(consortium))
            consortium.approve(target)
            yield Field(consortium, target, unapproved)
    finally:
        for name in list(consortium.processes):
            consortium.stop(name)


def send(field: Field, link: Intruder, content: RecordDict, message_type: str = "query") -> str:
    """Send north a message over an intruder's run and return its id."""
    node = read_nodes(field.consortium.coordinator)["north"].node_id
    key = link.push(Message(content, node, message_type, ttl=300.0))
    assert key is not None
    return key


def received(link: Intruder, keys: list[str], seconds: float = ANSWER_SECONDS) -> list[Message]:
    """Return the replies to messages, in their order."""
    found: dict[str, Message] = {}
    deadline = time.monotonic() + seconds
    while len(found) < len(keys):
        assert time.monotonic() < deadline, f"{len(found)} of {len(keys)} answers came"
        for reply in link.pull([key for key in keys if key not in found]):
            if reply.metadata.reply_to_message_id in keys:  # an agent's run is also given its own prompt
                found[reply.metadata.reply_to_message_id] = reply
        time.sleep(0.1)
    return [found[key] for key in keys]


def said(field: Field, reply: Message) -> str:
    """Return what north answered: an EchoFed code, or `described`."""
    if reply.has_error():
        return (reply.error.reason or "")[1:7]
    document, signed = read_sealed(reply.content)
    seal = verify(signed, load_identity(field.north).signing_key.public_key(), "reply", ReplySeal)
    return ErrorReply.model_validate_json(document).code if seal.kind == "error" else "described"


def refusals(field: Field, after: int) -> list[str]:
    """Return the codes of what north's audit log says was refused since an entry."""
    return [str(entry.facts["code"]) for entry in audit(field.north, "refused request", after)]


def attacks(field: Field, other: Ed25519PrivateKey) -> list[tuple[str, RecordDict, str, str]]:
    """Return what is sent to north: name, content, type of message, and the code it is to be refused with."""
    coordinator = field.consortium.coordinator
    past, later = (f"{datetime.now(UTC) - timedelta(minutes=ago):%Y-%m-%dT%H:%M:%S}+00:00" for ago in (30, 25))
    document, seal = field.instruction()
    signed = sign(field.coordinator_key, "instruction", seal)
    altered = coordinator / "blobs" / "published" / hashlib.sha256(b"the parameters").hexdigest()
    altered.write_bytes(b"The parameters")
    member = load_identity(field.consortium.sites["south"]).signing_key
    times = {"issued_at": past, "expires_at": later}
    round_3 = {"round_number": 3, "parameters": Blob(sha256=altered.name, size=14)}
    near = f"{field.target[:-1]}{_next(field.target)}"
    return [
        ("an unapproved study", field.sealed(study_hash=field.unapproved), "query", "EF-705"),
        ("a study changed by a byte", field.sealed(study_hash=near), "query", "EF-705"),
        ("the document changed", sealed_content(document.replace("0}", "1}"), signed), "query", "EF-707"),
        ("another consortium of the same names", field.sealed(other), "query", "EF-703"),
        ("for another site", field.sealed(site="south"), "query", "EF-707"),
        ("signed by a member", field.sealed(member), "query", "EF-703"),
        ("signed by nobody", content_of(document, b""), "query", "EF-501"),
        ("expired", field.sealed(**times), "query", "EF-707"),
        ("a foreign type of message", field.sealed(), "query.other", "EF-709"),
        ("parameters changed on the way", field.sealed(kind="evaluate", **round_3), "evaluate", "EF-502"),
        ("an older round", field.sealed(kind="train", round_number=2), "train", "EF-707"),
    ]


def _next(study_hash: str) -> str:
    return "0123456789abcdef0"["0123456789abcdef".index(study_hash[-1]) + 1]


def bundles(folder: Path, canary: Path) -> dict[str, bytes]:
    """Return app bundles with code that touches a file: Flower's own, an agent's, and two made by hand."""
    made = {}
    for name, components in (("real", APPS), ("agent", AGENT)):
        (folder / name / "code").mkdir(parents=True)
        text = PYPROJECT.format(name=name, components=components, canary=str(canary))
        (folder / name / "pyproject.toml").write_text(text)
        (folder / name / "code" / "__init__.py").write_text(CANARY.format(canary=str(canary)))
        (folder / name / "code" / "client.py").write_text(CLIENT_APP.format(canary=str(canary)))
        (folder / name / "LICENSE").write_text("None.")
        made[name] = build_fab_from_disk(folder / name)
    for name in ("slip", "bomb"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("pyproject.toml", PYPROJECT.format(name=name, components=APPS, canary=str(canary)))
            if name == "slip":
                archive.writestr("../" * 12 + str(canary).lstrip("/"), "slipped out")
                archive.writestr(str(canary), "slipped out")
            else:
                with archive.open("code/__init__.py", "w", force_zip64=True) as entry:
                    for _ in range(512):
                        entry.write(bytes(2**20))
        made[name] = buffer.getvalue()
    return made


# Flower's own build command warns of how it reads patterns.
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_code_in_a_bundle_runs_nowhere_and_the_node_goes_on(field: Field, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    after = last_entry(field.north)
    for name, bundle in bundles(tmp_path, canary).items():
        task = TaskType.AGENT_APP if name == "agent" else TaskType.SERVER_APP
        with intruder(field.consortium.coordinator, bundle, task) as link:
            reply = received(link, [send(field, link, field.sealed())])[0]
        assert said(field, reply) == "EF-709", name
    assert set(refusals(field, after)) == {"EF-709"}  # one a minute, with the number of the others in the next
    with intruder(field.consortium.coordinator, empty_bundle()) as link:
        assert said(field, received(link, [send(field, link, field.sealed())])[0]) == "described"
    assert not canary.exists()
    unpacked = [path for state in (field.north, field.consortium.coordinator) for path in state.rglob("client.py")]
    assert unpacked == []


def test_what_the_coordinator_did_not_sign_or_the_hospital_not_approve_is_refused_and_logged(
    field: Field, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    init_consortium(other, "Local consortium", field.consortium.address)
    after, before = last_entry(field.north), ledger(field.north)
    sent = attacks(field, load_signing_key(other))
    with intruder(field.consortium.coordinator, empty_bundle()) as link:
        keys = [send(field, link, content, kind) for _, content, kind, _ in sent]
        answers = [said(field, reply) for reply in received(link, keys)]
    expected = {name: code for name, _, _, code in sent}
    assert dict(zip(expected, answers, strict=True)) == expected
    # Of what nobody has signed, one refusal of each code is logged a minute; foreign code was refused above.
    assert set(refusals(field, after)) | {"EF-709"} == set(expected.values())
    assert refusals(field, after).count("EF-705") == 2
    assert ledger(field.north) == before


def test_a_byte_changed_on_the_hospitals_disk_stops_the_study_until_it_is_as_approved(field: Field) -> None:
    study = field.north / "studies" / field.target
    expected = {"study.yaml": "EF-703", "initial.safetensors": "EF-705"}
    answers = {}
    with intruder(field.consortium.coordinator, empty_bundle()) as link:
        after = last_entry(field.north)
        for name in expected:
            content = (study / name).read_bytes()
            damaged = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
            for _ in range(5):
                (study / name).write_bytes(damaged)
                answers[name] = said(field, received(link, [send(field, link, field.sealed())])[0])
                # The node may have asked for the studies meanwhile, and put the text back as it was published.
                if answers[name] != "described" or (study / name).read_bytes() == damaged:
                    break
            (study / name).write_bytes(content)
        assert answers == expected
        # Counts of what nobody signed are written a minute late, at any moment.
        assert [code for code in refusals(field, after) if code != "EF-709"] == list(expected.values())
        assert said(field, received(link, [send(field, link, field.sealed())])[0]) == "described"


def test_an_instruction_sent_again_is_answered_with_the_same_words_and_charged_once(field: Field) -> None:
    content = field.sealed()
    with intruder(field.consortium.coordinator, empty_bundle()) as link:
        first, second = received(link, [send(field, link, content), send(field, link, content)])
    documents = [read_sealed(reply.content)[0] for reply in (first, second)]
    assert documents[0] == documents[1]
    assert [(entry.purpose, entry.round_number) for entry in ledger(field.north)] == [("count", 0)]


def test_forged_replies_do_not_count_and_the_study_ends_with_the_honest_ones(
    field: Field, phantoms: Path, tmp_path: Path
) -> None:
    consortium = field.consortium
    study_hash, after = published(consortium, HOSTILE_STUDY, "hostile"), last_entry(consortium.coordinator)
    consortium.approve(study_hash)
    folder = run_to_end(consortium, study_hash)
    rounds = read_history(folder, 2)
    assert [[site for site, one in record.sites.items() if one.trained] for record in rounds] == [
        ["north", "south"]
    ] * 2
    assert [record.refused["west"][1:7] for record in rounds] == REFUSED_CONTENT
    logged = [str(entry.facts["refused"]) for entry in audit(consortium.coordinator, "round published", after)]
    assert ["west: [EF-" in one for one in logged] == [True, True]
    refused = audit(consortium.coordinator, "reply refused", after)
    assert [(entry.facts["site"], entry.facts["code"]) for entry in refused] == [
        ("west", code) for code in REFUSED_SEALS
    ]
    honest = tmp_path / "honest"
    for site in ("north", "south"):
        shutil.copytree(phantoms / site, honest / site)
    alone = write_study(tmp_path / "hostile.yaml", HOSTILE_STUDY)
    simulated = simulate_study(
        Simulation(alone, source(honest), tmp_path / "run", initial=consortium.folder / "hostile.safetensors")
    )
    real, expected = (
        decode_parameters((one / "model-last.safetensors").read_bytes(), 10**9) for one in (folder, simulated)
    )
    for layer, array in expected.items():
        np.testing.assert_allclose(real[layer], array, rtol=1e-6, atol=1e-6)
