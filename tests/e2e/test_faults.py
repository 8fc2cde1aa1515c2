"""A few of the scenarios of `make faults`, those that need no root: processes killed and stopped while studies run."""

from collections.abc import Iterator

import pytest

from echofed.server.studies import study_folder
from tests.faults import invariants
from tests.faults.faults import LOOPBACK_KINDS, draw_faults
from tests.faults.harness import PARTIES, SITES, Harness
from tests.faults.invariants import check
from tests.faults.replay import TOLERANCE, Replay, check_model, difference
from tests.faults.scenario import Ran, run_study
from tests.faults.studies import Variant, write_scenario_study

SCENARIOS: dict[int, Variant] = {
    0: "two of three",
    1: "private",
    2: "all sites",
    3: "private",
    6: "private",
    8: "two of three",
}
"""Seed of the faults, and of which kind the study is."""


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """A consortium at work."""
    harness = Harness(tmp_path_factory.mktemp("faults"), isolated=False)
    harness.prepare()
    with harness.running():
        yield harness


@pytest.fixture(scope="module")
def studies(harness: Harness, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """A published and approved study for each scenario."""
    folder = tmp_path_factory.mktemp("studies")
    hashes = {}
    for seed, variant in SCENARIOS.items():
        paths = write_scenario_study(folder / str(seed), variant, f"Scenario {seed}", rounds=2)
        hashes[seed] = harness.consortium.publish(*paths)
    harness.approve(list(hashes.values()))
    return hashes


@pytest.fixture(scope="module")
def replay(harness: Harness) -> Replay:
    """What trains again in this process."""
    return Replay(harness.template)


@pytest.mark.parametrize("seed", SCENARIOS)
def test_a_study_survives_whatever_strikes_it(
    harness: Harness, studies: dict[int, str], replay: Replay, seed: int
) -> None:
    faults = draw_faults(seed, LOOPBACK_KINDS, window_seconds=4.0)
    ran = run_study(harness, studies[seed], SCENARIOS[seed], faults, lost_seconds=90.0)
    print(f"{ran.seconds:.1f} s, {ran.recovery_seconds:.1f} s after {', '.join(ran.faults)}")
    assert not ran.problems
    assert ran.faults
    ran.problems += check(harness, ran)
    check_model(harness, ran, replay)
    assert not ran.problems


def test_the_checks_see_what_must_not_be(harness: Harness, studies: dict[int, str], replay: Replay) -> None:
    study = studies[next(seed for seed, variant in SCENARIOS.items() if variant == "all sites")]
    folder = study_folder(harness.state("coordinator"), study)
    logs = {party: invariants.entries_of(harness.state(party)) for party in PARTIES}
    ledgers = {site: invariants.ledger_of(harness.state(site)) for site in SITES}
    published = [entry for entry in logs["coordinator"] if entry.event == "round published"]
    twice = [*logs["coordinator"], next(entry for entry in published if entry.facts["study"] == study)]
    assert list(invariants.published_once(study, folder, logs["coordinator"])) == []
    assert "rounds published" in next(invariants.published_once(study, folder, twice))
    assert "needed" in next(invariants.published_once(study, folder, logs["coordinator"], minimum=4))
    assert list(invariants.paid_for(harness, study, logs, ledgers)) == []
    unpaid = ledgers | {"west": tuple(e for e in ledgers["west"] if e.study_hash != study or e.purpose != "training")}
    assert "not in its ledger" in next(invariants.paid_for(harness, study, logs, unpaid))
    late = ledgers | {"west": tuple(e.model_copy(update={"number": e.number + 99}) for e in ledgers["west"])}
    assert "before its ledger" in next(invariants.paid_for(harness, study, logs, late))
    silent = logs | {"west": [entry for entry in logs["west"] if entry.event != "reply"]}
    assert "not in the site's log" in next(invariants.paid_for(harness, study, silent, ledgers))
    charged = ledgers | {"west": (*ledgers["west"], ledgers["west"][-1])}
    ran = Ran(ledgers["west"][-1].study_hash, "all sites")
    assert "charged twice" in next(invariants.spent_once(ran, folder, charged, None))
    rounds = invariants.rounds_of(harness, Ran(study, "all sites"))
    fewer = [one.model_copy(update={"sites": {"west": one.sites["west"]}}) for one in rounds]
    assert difference(replay.model(folder, rounds), replay.model(folder, fewer)) > TOLERANCE
