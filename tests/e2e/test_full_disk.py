"""A disk that fills up in the middle of a run costs no round that was published."""

import resource
from dataclasses import replace
from pathlib import Path

import pytest

from echofed.protocol.errors import CheckpointError
from echofed.server.checkpoint import FILE_NAME, read_checkpoint
from echofed.simulations.run import Simulation, simulate_study
from tests.small_simulations import small_study, source, write_study

LIMIT_BYTES = 40_000
"""More than the history needs and less than the checkpoint."""


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_later(phantoms: Path, tmp_path: Path) -> None:
    study = small_study(strategy={"preset": "FedAdam"}, federation={"rounds": 4})
    file = write_study(tmp_path / "study.yaml", study)
    undisturbed = simulate_study(Simulation(file, source(phantoms), tmp_path / "undisturbed"))
    simulation = Simulation(file, source(phantoms), tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "Training" and done == 2:
            # As on a full disk, the write fails after some bytes; a limit needs no disk to fill.
            assert (tmp_path / "run" / FILE_NAME).stat().st_size > LIMIT_BYTES
            resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, hard))

    try:
        with pytest.raises(CheckpointError, match="cannot be written: File too large") as raised:
            simulate_study(simulation, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.code == "EF-602"
    kept = read_checkpoint(tmp_path / "run", study.hash)
    assert kept is not None
    assert kept.round_number == 2
    assert list((tmp_path / "run").glob("*.part")) == []
    simulate_study(replace(simulation, resume=True))
    for name in ("model-last.safetensors", "model-best.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (undisturbed / name).read_bytes()
