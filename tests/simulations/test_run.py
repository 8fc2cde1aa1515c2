"""The folder of a run: one process at a time, one study, data and seed; what went wrong before round 1 costs no name."""

import fcntl
from dataclasses import replace
from pathlib import Path

import pytest

from echofed.protocol.errors import CheckpointError, RegistrationError, RunError, SitesError, StudySyntaxError
from echofed.simulations.run import Simulation, simulate_study
from tests.small_simulations import draw_sites, small_study, source, write_study


@pytest.fixture(scope="module")
def finished(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """A small finished run."""
    folder = tmp_path_factory.mktemp("finished")
    study = write_study(folder / "study.yaml", small_study(training={"local_steps": 1}))
    simulation = Simulation(study, source(phantoms), folder / "run")
    simulate_study(simulation)
    return simulation


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_not_run_over(finished: Simulation) -> None:
    assert finished.out is not None
    before = contents(finished.out)
    with pytest.raises(RunError, match="holds a run"):
        simulate_study(finished)
    assert contents(finished.out) == before


def test_resuming_a_finished_run_gives_the_same_models(finished: Simulation) -> None:
    assert finished.out is not None
    before = contents(finished.out)
    assert simulate_study(replace(finished, resume=True)) == finished.out
    after = contents(finished.out)
    changed = {Path(name).name for name in before if before[name] != after[name]}
    assert changed <= {"results.json", "report.html", "registry.sqlite"}


@pytest.mark.parametrize("other", ["study", "data", "index", "seed"])
def test_another_study_data_or_seed_is_not_a_resumption(
    finished: Simulation, tmp_path: Path, other: str, phantoms: Path
) -> None:
    assert finished.out is not None
    simulation = replace(finished, resume=True)
    if other == "study":
        study = small_study(training={"local_steps": 1, "learning_rate": 0.2})
        simulation = replace(simulation, study=write_study(tmp_path / "study.yaml", study))
    elif other == "data":
        simulation = replace(simulation, source=source(draw_sites(tmp_path / "phantoms")))
    elif other == "seed":
        simulation = replace(simulation, seed=1)
    else:
        index = phantoms / "north" / "index.csv"
        text = index.read_text()
        index.write_text(text.replace("malignant", "benign"))
    try:
        before = contents(finished.out)
        with pytest.raises(RunError, match="another run: another study, data or seed"):
            simulate_study(simulation)
        assert contents(finished.out) == before
    finally:
        if other == "index":
            index.write_text(text)


def test_a_folder_in_use_is_refused(finished: Simulation) -> None:
    assert finished.out is not None
    with (finished.out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="Another process is running"):
            simulate_study(replace(finished, resume=True))


def test_a_folder_holding_something_else_is_left_alone(finished: Simulation, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("mine")
    with pytest.raises(RunError, match="something else"):
        simulate_study(replace(finished, out=tmp_path))
    assert (tmp_path / "study.yaml").read_text() == "mine"


def test_a_file_where_the_folder_should_be_is_refused(finished: Simulation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be used"):
        simulate_study(replace(finished, out=tmp_path / "file" / "run"))


def test_a_damaged_run_file_is_refused(finished: Simulation, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        simulate_study(replace(finished, out=tmp_path, resume=True))


def test_what_failed_before_the_first_round_can_be_corrected_and_run_again(
    finished: Simulation, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(RegistrationError):
        simulate_study(replace(finished, source=source(tmp_path / "mistyped"), out=out))
    demanding = small_study(federation={"minimum_sites": 9})
    with pytest.raises(SitesError, match="needs 9 sites; 3 can train"):
        simulate_study(replace(finished, study=write_study(tmp_path / "study.yaml", demanding), out=out))
    simulate_study(replace(finished, out=out))
    assert finished.out is not None
    assert (out / "model-last.safetensors").read_bytes() == (finished.out / "model-last.safetensors").read_bytes()


def test_an_unknown_engine_or_study_makes_no_folder(finished: Simulation, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no engine 'fast'"):
        simulate_study(replace(finished, engine="fast", out=tmp_path / "a"))
    with pytest.raises(StudySyntaxError):
        simulate_study(replace(finished, study=tmp_path / "absent.yaml", out=tmp_path / "b"))
    assert list(tmp_path.iterdir()) == []
