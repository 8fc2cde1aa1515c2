"""The same seed gives the same model, byte for byte: whatever the number of workers, whichever engine carries it."""

from pathlib import Path

import numpy as np
import pytest

from echofed.protocol.arrays import decode_parameters
from echofed.simulations.run import Simulation, simulate_study
from tests.small_simulations import small_study, source, write_study
from tests.studies import PRIVATE

STUDY = small_study(privacy=PRIVATE, strategy={"preset": "FedAdam"}, federation={"minimum_replies": 2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("same-seed")
    write_study(path / "study.yaml", STUDY)
    return path


def models(phantoms: Path, folder: Path, name: str, seed: int = 0, workers: int = 1, engine: str = "pool") -> bytes:
    study, out = folder / "study.yaml", folder / name
    if not out.exists():
        simulate_study(Simulation(study, source(phantoms), out, seed, workers, engine=engine))
    return (out / "model-last.safetensors").read_bytes() + (out / "model-best.safetensors").read_bytes()


def test_workers_change_nothing_and_the_seed_everything(phantoms: Path, folder: Path) -> None:
    one, two = models(phantoms, folder, "one"), models(phantoms, folder, "two", workers=2)
    assert one == two
    assert models(phantoms, folder, "other", seed=1) != one


def test_flowers_own_engine_gives_the_same_model(phantoms: Path, folder: Path) -> None:
    models(phantoms, folder, "one")
    models(phantoms, folder, "flower", workers=2, engine="flower")
    pool, flower = (
        decode_parameters((folder / name / "model-last.safetensors").read_bytes(), 10**9) for name in ("one", "flower")
    )
    assert pool.keys() == flower.keys()
    for name, array in pool.items():
        # Replies come in any order, so the sum in float64 may round to the next float32.
        np.testing.assert_allclose(flower[name], array, rtol=1e-6, atol=1e-7)
