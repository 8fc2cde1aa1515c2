"""Every kind of task, with and without privacy, from the study document to its report."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echofed.protocol.arrays import decode_parameters, read_metadata
from echofed.protocol.study import Study
from echofed.server.checkpoint import read_checkpoint
from echofed.simulations.run import Simulation, simulate_study
from tests.small_simulations import PATIENTS, small_study, source, write_study
from tests.studies import PRIVATE

SCATTERING = {"name": "scattering", "scales": 3, "angles": 4}
STUDIES: dict[str, Study] = {
    "binary, private": small_study("binary", model=SCATTERING, privacy=PRIVATE),
    "multiclass": small_study("multiclass", strategy={"weighting": "patients"}),
    "multilabel, private": small_study("multilabel", privacy=PRIVATE),
    "segmentation": small_study(
        "segmentation", training={"optimizer": "adam", "learning_rate": 0.01, "local_steps": 1}
    ),
    "regression": small_study("regression", model=SCATTERING),
    "exam, private": small_study("exam", privacy=PRIVATE),
}


@pytest.fixture(params=STUDIES)
def finished(request: pytest.FixtureRequest, phantoms: Path, tmp_path: Path) -> tuple[Study, Path]:
    study = STUDIES[request.param]
    file = write_study(tmp_path / "study.yaml", study)
    baselines = request.param in ("exam, private", "regression")
    out = simulate_study(Simulation(file, source(phantoms), tmp_path / "run", baselines=baselines, phantoms=True))
    return study, out


def test_a_study_ends_in_models_and_a_report(finished: tuple[Study, Path]) -> None:
    study, out = finished
    results = json.loads((out / "results.json").read_bytes())
    assert (results["study_hash"], results["completed"]) == (study.hash, True)
    _check_sites(study, results)
    _check_rounds(study, results)
    _check_test(study, results)
    _check_models(study, out, results)
    report = (out / "report.html").read_text()
    assert study.title in report
    assert str(out.parent) not in report + json.dumps(results)
    assert ">nan<" not in report.lower()
    if results["comparisons"]:
        assert results["comparisons"][0]["name"] == "Pooled data"
        assert any(row["metric"] is not None for row in results["comparisons"])


def _check_sites(study: Study, results: dict[str, Any]) -> None:
    assert [site["name"] for site in results["sites"]] == sorted(PATIENTS)
    for site in results["sites"]:
        excluded = site["quarantined"].get("label excluded by the study", 0)
        patients = sum(site["patients"].values())
        assert site["left_out"] is None
        assert (0 < patients < PATIENTS[site["name"]]) if excluded else (patients == PATIENTS[site["name"]])
        assert (site["spent"] is not None) == study.is_private
        if study.is_private:
            # Calibrated: all of the study's epsilon may be spent, and no more.
            assert 0.9 * study.privacy.epsilon < site["spent"]["epsilon"] <= study.privacy.epsilon
            assert site["spent"]["steps"] == study.steps
            # One in ten times the noisy number of patients, which is a whole number.
            said = 1 / (10 * site["spent"]["delta"])
            assert round(said) == pytest.approx(said)
            assert 1 <= said < 60


def _check_rounds(study: Study, results: dict[str, Any]) -> None:
    assert [one["round_number"] for one in results["rounds"]] == list(range(1, study.federation.rounds + 1))
    for one in results["rounds"]:
        assert (sorted(one["replied"]), one["refused"]) == (sorted(PATIENTS), {})
        assert one["bytes_down"] > one["bytes_up"] > 0
        losses = list(one["training_loss"].values())
        if study.is_private:
            assert losses == [None] * 3
        else:
            # Poisson sampling of a few patients may draw none, and then there is no loss.
            assert all(loss is None or 0 < loss < 10 for loss in losses)
            assert any(loss is not None for loss in losses)
    if study.is_private:
        first, last = (results["rounds"][at]["epsilon"] for at in (0, -1))
        assert all(0 < first[site] < last[site] <= study.privacy.epsilon for site in PATIENTS)


def _check_test(study: Study, results: dict[str, Any]) -> None:
    pooled, predictions = results["test"]["pooled"], results["test"]["predictions"]
    assert pooled["patients"] == sum(site["patients"]["test"] for site in results["sites"]) > 3
    for site, found in results["test"]["per_site"].items():
        assert found["patients"] == len(predictions[site]["score"]) == len(predictions[site]["target"])
    scores = np.concatenate([np.array(one["score"]) for one in predictions.values() if one["score"]])
    low, high = study.task.value_range or (0.0, 1.0)
    assert ((low <= scores) & (scores <= high)).all()
    assert scores.shape[1] == len(study.task.labels) - (study.task.kind == "binary")
    if study.task.kind == "regression":
        assert 0 < pooled["metric"] < 60
    elif pooled["metric"] is not None:
        assert 0 <= pooled["metric"] <= 1
    if study.is_private:
        assert results["rounds"][-1]["validation_loss"] is None
    else:
        assert math.isfinite(results["rounds"][-1]["validation_loss"])


def _check_models(study: Study, out: Path, results: dict[str, Any]) -> None:
    models = {name: (out / f"model-{name}.safetensors").read_bytes() for name in ("last", "best")}
    initial = decode_parameters((out / "initial.safetensors").read_bytes(), 10**9)
    last = decode_parameters(models["last"], 10**9)
    checkpoint = read_checkpoint(out, study.hash)
    assert checkpoint is not None
    assert last.keys() == initial.keys()
    for name, array in checkpoint.parameters.items():
        np.testing.assert_array_equal(last[name], array)
    assert any((last[name] != initial[name]).any() for name in checkpoint.parameters)
    assert read_metadata(models["best"])["round"] == str(results["best_round"])
    assert read_metadata(models["last"])["study"] == study.hash
