"""The breast studies on real data: the federation beside pooled data, single sites and the trivial predictor.

    python -m benchmarks.breast [--quick]

Each study runs on several random splits by patient (seeds); figures are means over them with a 95% t interval. Settings
come from the study files and were chosen without looking at test patients. Needs the data named in docs/benchmarks.md.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy import stats

from echofed.client.settings import Columns
from echofed.client.site import open_site
from echofed.learning.examples import Examples
from echofed.learning.metrics import dice
from echofed.protocol.study_file import load_study
from echofed.protocol.study_folder import PARAMETERS_FILE
from echofed.simulations.results import read_results
from echofed.simulations.run import Simulation, simulate_study
from echofed.simulations.sites import DataSource

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "simulations" / "studies"
DATA = Path(os.environ.get("ECHOFED_DATA", ROOT.parent / "shared" / "data"))
FEDERATION = DataSource(DATA / "breast_federation.csv")
DESCRIPTORS = DataSource(DATA / "breast_lesions_usg" / "index.csv", virtual_sites=4, columns=Columns(label=None))
CLIPPING_NORM = 1.2
PRIVATE_LEARNING_RATES = {8.0: 1.5, 3.0: 0.7, 1.0: 0.27}
"""By epsilon; like the study's other settings, chosen on inner validation patients."""
SEEDS = (0, 1, 2, 3, 4)
Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Run every study and return one row a figure."""
    seeds = SEEDS[:1] if quick else SEEDS
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        return [
            *_malignancy(work, seeds),
            *_segmentation(work, seeds[:1] if quick else seeds[:3]),
            *_descriptors(work, seeds),
        ]


def _malignancy(work: Path, seeds: Sequence[int]) -> Iterator[Row]:
    for epsilon in (None, *PRIVATE_LEARNING_RATES):
        study = with_epsilon(STUDIES / "breast_malignancy.yaml", epsilon, work)
        label = "no privacy" if epsilon is None else f"epsilon {epsilon:g}"
        runs = [_simulate(study, FEDERATION, work, seed, baselines=True) for seed in seeds]
        federation = [one["test"]["pooled"]["metric"] for one in runs]
        pooled = [_comparison(one, "Pooled data") for one in runs]
        single = [float(np.mean(list(_single(one)))) for one in runs]
        yield _row("malignancy", label, "AUC, federation of five centres", federation)
        yield _row("malignancy", label, "AUC, pooled data, as many steps", pooled)
        yield _row("malignancy", label, "AUC, mean of the single centres", single)
        yield _row("malignancy", label, "federation - pooled", np.subtract(federation, pooled))
        yield _row("malignancy", label, "federation - mean single", np.subtract(federation, single))


def _segmentation(work: Path, seeds: Sequence[int]) -> Iterator[Row]:
    study = STUDIES / "breast_segmentation.yaml"
    runs = [_simulate(study, FEDERATION, work, seed) for seed in seeds]
    yield _row("segmentation", "no privacy", "Dice, federation", [one["test"]["pooled"]["metric"] for one in runs])
    yield _row(
        "segmentation",
        "no privacy",
        "Dice, the mean training mask for all",
        [_mean_mask_dice(work, seed) for seed in seeds],
    )


def _descriptors(work: Path, seeds: Sequence[int]) -> Iterator[Row]:
    runs = [_simulate(STUDIES / "breast_descriptors.yaml", DESCRIPTORS, work, seed) for seed in seeds]
    yield _row("descriptors", "no privacy", "mean AUC, federation", [one["test"]["pooled"]["metric"] for one in runs])
    yield _row("descriptors", "no privacy", "mean AUC, trivial predictor", [0.5 for _ in runs])


def _simulate(study: Path, source: DataSource, work: Path, seed: int, baselines: bool = False) -> dict[str, Any]:
    out, model = work / f"{study.stem}-{seed}", load_study(study).model
    # Studies that differ in privacy only start from the same parameters; they are made once.
    initial = work / f"{model.name}-{study.stem.partition('-')[0]}-{seed}.safetensors"
    simulate_study(
        Simulation(
            study,
            source,
            out,
            seed,
            workers=os.cpu_count() or 1,
            initial=initial if initial.exists() else None,
            baselines=baselines,
            sites=work / "sites",
        )
    )
    shutil.copyfile(out / PARAMETERS_FILE, initial)
    results = read_results(out)
    print(f"  {study.stem}, seed {seed}: {results['test']['pooled']['metric']:.3f}", flush=True)
    return results


def _mean_mask_dice(work: Path, seed: int) -> float:
    """Return the best Dice of a predictor that never looks at the image: the mean training mask, cut at some level."""
    study = load_study(STUDIES / "breast_segmentation.yaml")
    folders = (work / "sites" / f"{FEDERATION.fingerprint}-{seed}").glob("*/registry.sqlite")
    opened = [open_site(path.parent) for path in sorted(folders)]
    sites = [site for site in opened if all(site.count_patients(study).values())]
    mean = np.concatenate([_masks(site.examples(study, "training")) for site in sites]).mean(0)
    test = np.concatenate([_masks(site.examples(study, "test")) for site in sites])
    levels = np.linspace(0, mean.max(), 20)[:-1]
    return max(float(dice(np.broadcast_to(mean > level, test.shape).astype(float), test).mean()) for level in levels)


def _masks(examples: Examples) -> NDArray[np.uint8]:
    assert examples.masks is not None
    return np.asarray(examples.masks[np.concatenate(examples.item_images)])


def with_epsilon(study: Path, epsilon: float | None, work: Path) -> Path:
    """Write a study with this epsilon and the settings that go with it into a folder, and return its path."""
    content = yaml.safe_load(study.read_text(encoding="utf-8"))
    if epsilon is not None:
        content["privacy"] = {"unit": "patient", "epsilon": epsilon, "clipping_norm": CLIPPING_NORM}
        content["training"]["learning_rate"] = PRIVATE_LEARNING_RATES[epsilon]
        # A private study publishes its last round, so it needs no patients to choose one by.
        content["evaluation"] = {"validation_fraction": 0.0, "figures": "none"}
    path = work / f"{study.stem}-{epsilon or 'open'}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def _comparison(results: dict[str, Any], name: str) -> float:
    return float(next(row["metric"] for row in results["comparisons"] if row["name"] == name))


def _single(results: dict[str, Any]) -> Iterator[float]:
    for row in results["comparisons"]:
        if row["name"].startswith("Only") and row["metric"] is not None:
            yield row["metric"]


def _row(study: str, privacy: str, figure: str, values: Sequence[float] | np.ndarray) -> Row:
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else float("nan")
    return {
        "study": study,
        "privacy": privacy,
        "figure": figure,
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "splits": len(values),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one split only")
    for row in run(parser.parse_args().quick):
        interval = f"({row['low']:.3f} to {row['high']:.3f})"
        figure = f"{row['study']:<13} {row['privacy']:<11} {row['figure']:<38} {row['mean']:6.3f}"
        print(f"{figure} {interval} over {row['splits']} splits")


if __name__ == "__main__":
    main()
