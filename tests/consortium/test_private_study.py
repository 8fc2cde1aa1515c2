"""A private study over real processes: what it costs, what leaves, and what the logs of both sides say of it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from echofed.client.kept_replies import FOLDER
from echofed.client.public_count import count_path
from echofed.privacy.budget import delta_for
from echofed.privacy.spends import composed_epsilon
from echofed.protocol.audit_log import Entry, open_audit_log
from echofed.protocol.flower_records import buffer_of, content_from, document_of
from echofed.protocol.study import Study
from echofed.protocol.study_file import load_study
from echofed.server.blobs import INCOMING
from echofed.server.history import read_history
from echofed.simulations.local_consortium import LocalConsortium
from tests.local_consortia import NAMES, audit, enrolled_consortium, ledger, online, published, run_to_end, wait_for
from tests.small_simulations import echofed, small_study
from tests.studies import PRIVATE

ROUNDS = 3
STUDY = small_study(
    privacy=PRIVATE,
    federation={"rounds": ROUNDS, "minimum_sites": 3, "minimum_replies": 3},
    strategy={"weighting": "patients"},
)


@dataclass(frozen=True)
class Done:
    """A private study that has run."""

    consortium: LocalConsortium
    study: Study
    study_hash: str
    folder: Path


@pytest.fixture(scope="module")
def done(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    consortium = enrolled_consortium(tmp_path_factory.mktemp("private"), phantoms)
    with consortium.running():
        wait_for(lambda: online(consortium))
        study_hash = published(consortium, STUDY)
        consortium.approve(study_hash)
        folder = run_to_end(consortium, study_hash)
    return Done(consortium, load_study(folder / "study.yaml"), study_hash, folder)


def replies(state: Path) -> list[Entry]:
    return audit(state, "reply")


def test_every_round_is_charged_once_and_all_of_it_is_within_the_studys_epsilon(done: Done) -> None:
    assert [record.round_number for record in read_history(done.folder, ROUNDS)] == [1, 2, 3]
    for site in NAMES:
        state = done.consortium.sites[site]
        entries = ledger(state)
        told = [entry for entry in replies(state) if "noisy" in entry.facts["holds"]]  # type: ignore[operator]
        figures = [("figures", int(str(entry.facts["round"]))) for entry in told]
        training = [("training", number) for number in (1, 2, 3)]
        assert sorted((entry.purpose, entry.round_number) for entry in entries) == [("count", 0), *figures, *training]
        assert all(entry.mechanism is not None for entry in entries)
        assert {entry.study_hash for entry in entries} == {done.study_hash}
        patients = int(count_path(state, done.study).read_text())
        delta = delta_for(patients, done.study.privacy.delta)
        assert 0 < composed_epsilon([entry.spend for entry in entries], delta) <= PRIVATE["epsilon"]


def test_the_budget_command_says_what_the_ledger_holds(done: Done) -> None:
    for site in NAMES:
        state = done.consortium.sites[site]
        said = echofed("site", "budget", "--state", state).stdout
        entries = ledger(state)
        assert f"{len(entries)} entries, whole" in said
        line = next(line for line in said.splitlines() if done.study_hash[:12] in line)
        assert line.split(done.study_hash[:12])[1].split()[0] == str(ROUNDS)


def test_what_left_stands_in_both_logs_with_its_size_and_hash(done: Done) -> None:
    coordinator = done.consortium.coordinator
    counted = audit(coordinator, "reply")
    for site in NAMES:
        own = replies(done.consortium.sites[site])
        theirs = [entry for entry in counted if entry.facts["site"] == site]
        place = ("study", "round", "kind", "parameters")
        assert [[entry.facts[name] for name in place] for entry in own] == [
            [entry.facts[name] for name in place] for entry in theirs
        ]
        assert [(entry.facts["kind"], entry.facts["round"]) for entry in own] == [
            ("describe", 0),
            *[(kind, number) for number in (1, 2, 3) for kind in ("train", "evaluate")],
        ]
        size = (done.folder / "initial.safetensors").stat().st_size
        for entry in own:
            if entry.facts["kind"] != "train":
                assert entry.facts["parameters"] is None
                continue
            (update,) = [text for text in entry.facts["holds"] if text.startswith("update of")]  # type: ignore[union-attr]
            assert size - 2000 < int(update.split()[2]) <= size  # the same layers, without the file's metadata
            assert 0 < int(str(entry.facts["bytes"])) - int(update.split()[2]) < 1000
            # Nothing exact: neither the loss nor the time it took, which depend on who was drawn.
            assert {"training_loss", "seconds"} & set(entry.facts["holds"]) == set()  # type: ignore[arg-type]
        for entry in own:
            assert "exact" not in entry.facts["holds"]  # type: ignore[operator]
        # The coordinator has removed what it took; the site keeps its last reply, byte for byte as it left.
        (last,) = [entry for entry in own if (entry.facts["kind"], entry.facts["round"]) == ("train", ROUNDS)]
        kept = done.consortium.sites[site] / FOLDER / done.study_hash / f"{ROUNDS:05d}-train"
        content = content_from(kept.read_bytes().split(b"\n", 3)[3])
        document, update = document_of(content), buffer_of(content)
        assert last.facts["parameters"] == hashlib.sha256(update).hexdigest()
        assert last.facts["document"] == hashlib.sha256(document.encode()).hexdigest()
        assert last.facts["bytes"] == len(document.encode()) + len(update)
        assert not list((coordinator / INCOMING / site).glob("*"))


def test_the_ledger_heads_the_coordinator_noted_are_the_sites(done: Done) -> None:
    for site in NAMES:
        noted = [one.facts for one in audit(done.consortium.coordinator, "reply") if one.facts["site"] == site]
        entries = ledger(done.consortium.sites[site])
        assert noted[-1]["ledger_entries"] == len(entries)
        counts = [int(str(facts["ledger_entries"])) for facts in noted]
        assert counts == sorted(counts)
        assert counts[0] >= 1


def test_the_logs_of_both_sides_are_whole_and_agree(done: Done, tmp_path: Path) -> None:
    coordinator = done.consortium.coordinator
    office = tmp_path / "coordinator.json"
    echofed("audit", "show", "--state", coordinator, "--json", office)
    assert "whole" in echofed("audit", "verify", "--state", coordinator).stdout
    for site in NAMES:
        state, export = done.consortium.sites[site], tmp_path / f"{site}.json"
        assert "whole" in echofed("audit", "verify", "--state", state).stdout
        echofed("audit", "show", "--state", state, "--json", export)
        for mine, theirs in ((state, office), (coordinator, export)):
            said = echofed("audit", "verify", "--state", mine, "--against", theirs).stdout
            # Each reply and each instruction carried a head.
            assert "14 heads that one noted of the other's log, all as they should be" in said


def test_a_log_that_was_rewritten_contradicts_what_the_other_side_noted(done: Done, tmp_path: Path) -> None:
    """A site that begins its log anew is caught by the coordinator's, and the coordinator by a site's."""
    for owner, mine, theirs in (
        ("north", done.consortium.sites["north"], done.consortium.coordinator),
        ("Local consortium", done.consortium.coordinator, done.consortium.sites["north"]),
    ):
        anew = tmp_path / owner
        anew.mkdir()
        with open_audit_log(anew, owner=owner) as log:
            for entry in audit(mine):
                if entry.event not in ("reply", "instruction"):
                    log.append(entry.event, **entry.facts)
        export = tmp_path / f"{owner}.json"
        echofed("audit", "show", "--state", anew, "--json", export)
        said = echofed("audit", "verify", "--state", theirs, "--against", export, status=2).stderr
        assert "EF-708" in said
        assert "begun anew" in said
