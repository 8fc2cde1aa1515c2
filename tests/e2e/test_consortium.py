"""A small real consortium: a coordinator and three hospitals, each with its own processes, over TLS on loopback."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from echofed.protocol.arrays import decode_parameters
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

STUDY = small_study(
    strategy={"preset": "FedAdam", "weighting": "patients"},
    federation={"minimum_sites": 3, "minimum_replies": 3, "rounds": 3},
    training={"sampling_probability": 1.0},
)


@pytest.fixture(scope="module")
def consortium(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalConsortium]:
    made = enrolled_consortium(tmp_path_factory.mktemp("consortium"), phantoms)
    with made.running():
        wait_for(lambda: online(made))
        yield made


def test_real_processes_give_the_model_of_the_simulation(consortium: LocalConsortium, phantoms: Path) -> None:
    """With every patient in every step there is no chance in training: same study and splits, same model."""
    study_hash = published(consortium, STUDY)
    consortium.approve(study_hash)
    folder = run_to_end(consortium, study_hash)
    simulated = simulate_study(
        Simulation(
            consortium.folder / "study.yaml",
            source(phantoms),
            consortium.folder / "simulated",
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
        # Where there is no validation patient there is no figure, and nothing to charge.
        figures = [("figures", one.round_number) for one in rounds if one.sites[site].validation_patients]
        training = [("training", one.round_number) for one in rounds]
        assert sorted((entry.purpose, entry.round_number) for entry in kept) == [("count", 0), *figures, *training]
        replies = audit(consortium.sites[site], "reply")
        assert [entry.facts["kind"] for entry in replies if entry.facts["study"] == study_hash] == [
            "describe",
            *["train", "evaluate"] * 3,
        ]
