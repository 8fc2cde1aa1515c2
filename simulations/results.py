"""What a run found (`results.json`): curves, test figures, privacy spent, data, versions; the report is drawn from it."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from echofed.client.calibration import count_mechanism
from echofed.client.participation import Participation
from echofed.client.site import open_site
from echofed.learning.models import build_model, load_parameters
from echofed.privacy.accounting import Mechanism, epsilon_spent
from echofed.protocol.arrays import Parameters, encode_parameters
from echofed.protocol.errors import NoPatientsError, RunError
from echofed.protocol.figures import calibration_of
from echofed.protocol.messages import SpentPrivacy
from echofed.protocol.study import Study
from echofed.protocol.study_folder import STUDY_FILE, read_study_folder
from echofed.server.checkpoint import Checkpoint, write_atomically
from echofed.server.history import Round, read_history
from echofed.simulations.comparisons import compare
from echofed.simulations.patient_scores import PatientScores, patient_level, summarise
from echofed.simulations.progress import Report, silent
from echofed.simulations.samples import sample_predictions

FORMAT = 1
RESULTS_FILE = "results.json"
REPORT_FILE = "report.html"
BEST_MODEL_FILE = "model-best.safetensors"
LAST_MODEL_FILE = "model-last.safetensors"
EPSILON_POINTS = 6
"""Rounds at which the epsilon spent is worked out; each takes an accountant a good part of a second."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        folder: of the run.
        site_folders: state folders of all sites.
        left_out: sites that did not take part, and why.
        checkpoint: the last.
        seed: of the simulation.
        workers: processes used.
        started_at: when the run was first started, ISO 8601.
        phantoms: the data are phantoms, so images may be shown.
        baselines: train on pooled data and on each site alone, for comparison.
    """

    folder: Path
    site_folders: Sequence[Path]
    left_out: Mapping[str, str]
    checkpoint: Checkpoint
    seed: int
    workers: int
    started_at: str
    phantoms: bool
    baselines: bool


def write_results(run: Run, report: Report = silent) -> None:
    """Write the best and last models, `results.json` and `report.html` into the run's folder."""
    study, initial, metadata = read_study_folder(run.folder)
    checkpoint = run.checkpoint
    best_round = checkpoint.best_round or checkpoint.round_number
    best = checkpoint.best_parameters if checkpoint.best_round else checkpoint.parameters
    for name, shared in ((BEST_MODEL_FILE, best), (LAST_MODEL_FILE, checkpoint.parameters)):
        facts = {
            **metadata,
            "study": study.hash,
            "round": str(best_round if shared is best else checkpoint.round_number),
        }
        write_atomically(run.folder / name, encode_parameters({**initial, **shared}, facts))
    model = build_model(study)
    load_parameters(model, initial)
    parts = {
        folder.name: Participation(study, model, initial, metadata, open_site(folder), run.seed)
        for folder in run.site_folders
        if folder.name not in run.left_out
    }
    scores = _test(study, parts, best, best_round, report)
    rounds = read_history(run.folder, checkpoint.round_number)
    results = {
        **_facts(run, study, rounds, best_round),
        "sites": [_site(study, folder, run, rounds) for folder in run.site_folders],
        "rounds": _rounds(study, rounds),
        "told": _told(study, rounds),
        "test": {"unit": "patient", "labels": list(study.task.labels), **summarise(study, scores, run.seed)},
        # The model still holds the best parameters here; comparing replaces them.
        "samples": sample_predictions(study, model, parts) if run.phantoms else [],
        "comparisons": compare(study, model, initial, parts, run.seed, report) if run.baselines else [],
    }
    write_atomically(run.folder / RESULTS_FILE, json.dumps(results, indent=1, allow_nan=False).encode())
    report("Writing the report", 0, 1)
    render(results, run.folder)
    report("Writing the report", 1, 1)


def read_results(folder: Path) -> dict[str, Any]:
    """Return the results in a run's folder.

    Raises:
        RunError: the folder holds no finished run.
    """
    try:
        results: dict[str, Any] = json.loads((folder / RESULTS_FILE).read_bytes())
        if not isinstance(results, dict) or results.get("format") != FORMAT:
            raise ValueError("another format")
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder} holds no finished run of this version.", "Name the folder of a run; finish it with --resume."
        ) from error
    return results


def render(results: Mapping[str, Any], folder: Path, figures: Path | None = None) -> None:
    """Write the report of some results into a folder and, if asked, each figure for publication into another."""
    from echofed.simulations.report import write_figures, write_report

    write_report(results, folder / REPORT_FILE)
    if figures is not None:
        write_figures(results, figures)


def headline(results: Mapping[str, Any]) -> str:
    """Return the result in one line."""
    pooled, metric = results["test"]["pooled"], str(results["metric"]).replace("_", " ")
    if pooled is None or pooled["metric"] is None:
        return f"No test patient to judge the model by; best round {results['best_round']}."
    interval = pooled["interval"]
    sure = f"95% interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else "too few for an interval"
    protection = "patient-level privacy" if results["private"] else "WITHOUT privacy"
    return (
        f"Test {metric} {pooled['metric']:.3f} ({sure}) on {pooled['patients']} patients, "
        f"round {results['best_round']}, {protection}."
    )


def _test(
    study: Study, parts: Mapping[str, Participation], best: Parameters, best_round: int, report: Report
) -> dict[str, PatientScores]:
    scores: dict[str, PatientScores] = {}
    for number, (site, part) in enumerate(parts.items()):
        report("Testing", number, len(parts))
        with suppress(NoPatientsError):
            scores[site] = patient_level(study, part.evaluate(best, best_round, "test"))
    report("Testing", len(parts), len(parts))
    return scores


def _facts(run: Run, study: Study, rounds: Sequence[Round], best_round: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "title": study.title,
        "study": study.model_dump(mode="json"),
        "study_yaml": (run.folder / STUDY_FILE).read_text(encoding="utf-8"),
        "study_hash": study.hash,
        "seed": run.seed,
        "simulated": True,
        "phantoms": run.phantoms,
        "started_at": run.started_at,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": sum(record.seconds for record in rounds),
        "workers": run.workers,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("echofed", "flwr", "torch", "opacus", "monai", "numpy")},
        },
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "private": study.is_private,
        "dp_noise_seeded": study.is_private,
        "metric": study.metric,
        "best_round": best_round,
        "completed": run.checkpoint.round_number == study.federation.rounds,
    }


def _site(study: Study, folder: Path, run: Run, rounds: Sequence[Round]) -> dict[str, Any]:
    report = open_site(folder).check(study)
    spent = [record.sites[folder.name].spent for record in rounds if folder.name in record.sites]
    last = next((one for one in reversed(spent) if one is not None), None)
    return {
        "name": folder.name,
        "patients": report.patients,
        "images": report.images,
        "labels": report.labels,
        "quarantined": report.quarantined,
        "left_out": run.left_out.get(folder.name),
        "spent": None if last is None else {**last.model_dump(), "epsilon": _epsilon(study, last)},
        "sampling_probability": study.training.sampling_probability,
    }


def _rounds(study: Study, rounds: Sequence[Round]) -> list[dict[str, Any]]:
    shown = set(np.linspace(1, len(rounds), min(EPSILON_POINTS, len(rounds))).round().astype(int).tolist())
    return [
        {
            "round_number": record.round_number,
            "attempt": record.attempts,
            "seconds": record.seconds,
            "bytes_down": record.bytes_down,
            "bytes_up": record.bytes_up,
            "replied": [site for site, one in record.sites.items() if one.trained],
            "refused": record.refused,
            "training_loss": {site: one.training_loss for site, one in record.sites.items()},
            "validation": {
                site: {
                    "metric": one.validation_metric,
                    "loss": one.validation_loss,
                    "patients": one.validation_patients,
                }
                for site, one in record.sites.items()
                if one.validation_patients
            },
            "validation_metric": record.validation_metric,
            "validation_noise": record.validation_noise,
            "validation_loss": record.validation_loss,
            "epsilon": {
                site: _epsilon(study, one.spent)
                for site, one in record.sites.items()
                if one.spent is not None and record.round_number in shown
            },
        }
        for record in rounds
    ]


def _told(study: Study, rounds: Sequence[Round]) -> dict[str, Any] | None:
    """Return what a private study's coordinator knows of the last evaluated model; None if it knows nothing."""
    last = next((record for record in reversed(rounds) if record.figures is not None), None)
    if last is None or last.figures is None:
        return None
    bins = calibration_of(study.task, np.array(last.figures.sums)) if study.task.kind == "binary" else []
    return {
        "round_number": last.round_number,
        "metric": last.validation_metric,
        "noise": last.validation_noise,
        "calibration": [[one.mean_score, one.positive_rate, one.patients] for one in bins],
    }


def _epsilon(study: Study, spent: SpentPrivacy) -> float:
    training = Mechanism(spent.noise_multiplier, spent.sampling_probability, spent.steps)
    return epsilon_spent([count_mechanism(study), training], spent.delta)
