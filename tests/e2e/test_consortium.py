"""A small real consortium: a coordinator and three hospitals, each with its own processes, over TLS on loopback."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from echofed.protocol.arrays import decode_parameters
from echofed.protocol.study import Study
from echofed.server.history import read_history
from echofed.simulations.local_consortium import LocalConsortium
from echofed.simulations.run import Simulation, simulate_study
from tests.local_consortia import (
    NAMES,
    audit,
    enrolled_consortium,
    ledger,
    online,
    published,
    run_to_end,
    wait_for,
)
from tests.small_simulations import small_study, source

EVERYONE = {"minimum_sites": 3, "minimum_replies": 3, "rounds": 3}
WHOLE = {"sampling_probability": 1.0}
STUDIES = {
    "by patients": small_study(
        title="By patients", strategy={"weighting": "patients"}, federation=EVERYONE, training=WHOLE
    ),
    "adam": small_study(title="Adam", strategy={"preset": "FedAdam"}, federation=EVERYONE, training=WHOLE),
}


@pytest.fixture(scope="module")
def consortium(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalConsortium]:
    made = enrolled_consortium(tmp_path_factory.mktemp("consortium"), phantoms)
    with made.running():
        wait_for(lambda: online(made))
        yield made


@pytest.mark.parametrize("name", STUDIES)
def test_real_processes_give_the_model_of_the_simulation(
    consortium: LocalConsortium, phantoms: Path, name: str
) -> None:
    study: Study = STUDIES[name]
    study_hash = published(consortium, study, name.replace(" ", "-"))
    consortium.approve(study_hash)
    folder = run_to_end(consortium, study_hash)
    simulated = simulate_study(
        Simulation(
            consortium.folder / f"{name.replace(' ', '-')}.yaml",
            source(phantoms),
            consortium.folder / f"simulated-{name}",
            sites=consortium.folder / "registered",
        )
    )
    for model in ("model-last.safetensors", "model-best.safetensors"):
        real, expected = (decode_parameters((one / model).read_bytes(), 10**9) for one in (folder, simulated))
        assert real.keys() == expected.keys()
        for layer, array in expected.items():
            np.testing.assert_allclose(real[layer], array, rtol=1e-6, atol=1e-6)
    rounds, expected_rounds = (read_history(one, 3) for one in (folder, simulated))
    assert [sorted(one.sites) for one in rounds] == [sorted(NAMES)] * 3
    for one, other in zip(rounds, expected_rounds, strict=True):
        assert one.validation_metric == pytest.approx(other.validation_metric, abs=1e-6)
    initial = decode_parameters((folder / "initial.safetensors").read_bytes(), 10**9)
    trained = decode_parameters((folder / "model-last.safetensors").read_bytes(), 10**9)
    assert max(float(np.abs(trained[layer] - initial[layer]).max()) for layer in initial) > 1e-3
    for site in NAMES:
        kept = [entry for entry in ledger(consortium.sites[site]) if entry.study_hash == study_hash]
        said = sorted((entry.purpose, entry.round_number) for entry in kept)
        figures = [("figures", number) for number in (1, 2, 3)]
        training = [("training", number) for number in (1, 2, 3)]
        assert said == [("count", 0), *figures, *training]
        replies = audit(consortium.sites[site], "reply")
        assert [entry.facts["kind"] for entry in replies if entry.facts["study"] == study_hash] == [
            "describe",
            *["train", "evaluate"] * 3,
        ]
