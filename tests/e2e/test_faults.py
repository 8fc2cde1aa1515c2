"""A few of the scenarios of `make faults`, those that need no root: processes killed and stopped while studies run."""

from collections.abc import Iterator

import pytest

from tests.faults.faults import LOOPBACK_KINDS, draw_faults
from tests.faults.harness import Harness
from tests.faults.invariants import check
from tests.faults.replay import Replay, check_model
from tests.faults.scenario import run_study
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
