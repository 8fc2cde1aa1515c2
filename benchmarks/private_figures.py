"""What noise costs the figures a private study hears: AUC and calibration from noisy histograms beside the exact ones.

    python -m benchmarks.private_figures [--quick]

The scores are those of the breast study's model of epsilon 8 on the test patients of its centres; for more sites, patients
are drawn from them with replacement. Each site adds its own noise, for its whole epsilon over all evaluated rounds.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.breast import FEDERATION, STUDIES, with_epsilon
from echofed.learning.metrics import auc
from echofed.privacy.accounting import noise_multiplier_for
from echofed.privacy.clipping import NoisySum
from echofed.privacy.randomness import random_words
from echofed.protocol.figures import calibration_of, contributions, figure_bound, figure_count, metric_of
from echofed.protocol.study_file import load_study
from echofed.simulations.results import read_results
from echofed.simulations.run import Simulation, simulate_study

Floats = NDArray[np.float64]
EPSILONS = (8.0, 3.0, 1.0)
EVALUATIONS = (1, 4)
REPEATS = 200
TASK = load_study(STUDIES / "breast_malignancy.yaml").task
Site = tuple[Floats, Floats]
"""Scores and targets of a site's patients, [patients, 1] each."""


def run(quick: bool) -> list[dict[str, object]]:
    """Return one row for each consortium, epsilon and number of evaluations."""
    rng = np.random.default_rng(0)
    real = _real_sites()
    larger = [_drawn(real, 60, rng) for _ in range(46)]
    consortia = {"5 sites of the breast study": real, "46 sites of 60 patients": larger}
    repeats = REPEATS // 10 if quick else REPEATS
    return [row for name, sites in consortia.items() for row in _rows(name, sites, repeats)]


def _rows(name: str, sites: Sequence[Site], repeats: int) -> Iterator[dict[str, object]]:
    scores, targets = (np.concatenate([site[part] for site in sites]) for part in (0, 1))
    exact, without_noise = auc(scores[:, 0], targets[:, 0] > 0.5), contributions(TASK, scores, targets).sum(0)
    assert exact is not None
    binned = metric_of(TASK, without_noise)
    assert binned is not None
    for epsilon in EPSILONS:
        for evaluations in EVALUATIONS:
            found = [_noisy(sites, epsilon, evaluations, repeat) for repeat in range(repeats)]
            known = [one for one in found if one[0] is not None]
            areas = np.array([one[0] for one in known])
            yield {
                "consortium": f"{name}, {len(scores)} patients",
                "epsilon": epsilon,
                "evaluations": evaluations,
                "exact": exact,
                "binned": binned[0],
                "undefined": len(found) - len(known),
                "error": float(np.sqrt(np.mean((areas - exact) ** 2))) if known else float("nan"),
                "bias": float(areas.mean() - exact) if known else float("nan"),
                "said": float(np.mean([one[1] for one in known])) if known else float("nan"),
                "calibration": float(np.mean([_calibration_error(one[2], without_noise) for one in found])),
            }


def _noisy(sites: Sequence[Site], epsilon: float, evaluations: int, repeat: int) -> tuple[float | None, float, Floats]:
    total, variance = np.zeros(figure_count(TASK)), 0.0
    for number, (scores, targets) in enumerate(sites):
        delta = 1 / (10 * 4 * len(scores))  # a study trains on about four times as many patients as it evaluates on
        multiplier = noise_multiplier_for(epsilon, delta, 1.0, evaluations)
        figures = NoisySum([figure_count(TASK)], figure_bound(TASK), multiplier)
        figures.add([contributions(TASK, scores, targets)])
        total += figures.release(random_words(0, epsilon.hex(), evaluations, repeat, number))[0]
        variance += (multiplier * figure_bound(TASK)) ** 2
    found = metric_of(TASK, total, variance**0.5)
    return (None, 0.0, total) if found is None else (*found, total)


def _calibration_error(noisy: Floats, exact: Floats) -> float:
    """Return the mean difference of the rate of positives over the bins of the exact diagram, by their patients."""
    told = {bin_.mean_score: bin_.positive_rate for bin_ in calibration_of(TASK, noisy)}
    bins = calibration_of(TASK, exact)
    differences = [abs(told.get(bin_.mean_score, 0.5) - bin_.positive_rate) for bin_ in bins]
    return float(np.average(differences, weights=[bin_.patients for bin_ in bins]))


def _real_sites() -> list[Site]:
    with tempfile.TemporaryDirectory() as folder:
        study = with_epsilon(STUDIES / "breast_malignancy.yaml", EPSILONS[0], Path(folder))
        out = simulate_study(Simulation(study, FEDERATION, Path(folder) / "run"))
        told = read_results(out)["test"]["predictions"]
    sites = [(np.array(one["score"], float), np.array(one["target"], float)) for one in told.values()]
    return [site for site in sites if len(site[0]) >= 10]


def _drawn(sites: Sequence[Site], patients: int, rng: np.random.Generator) -> Site:
    scores, targets = (np.concatenate([site[part] for site in sites]) for part in (0, 1))
    drawn = rng.integers(len(scores), size=patients)
    return scores[drawn], targets[drawn]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the repeats")
    for row in run(parser.parse_args().quick):
        print(
            f"{row['consortium']:<45} epsilon {row['epsilon']:g}, {row['evaluations']} evaluated: exact {row['exact']:.3f}, "
            f"binned {row['binned']:.3f}, error {row['error']:.3f} (said {row['said']:.3f}), bias {row['bias']:+.3f}, "
            f"undefined {row['undefined']}, calibration off by {row['calibration']:.3f}"
        )


if __name__ == "__main__":
    main()
