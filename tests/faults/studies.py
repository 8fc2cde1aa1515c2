"""The studies that scenarios run: three rounds of three sites, so small that what is measured is the consortium."""

from pathlib import Path
from typing import Any, Literal, get_args

from echofed.protocol.study import Study
from echofed.simulations.initial import initialise_study
from tests.small_simulations import small_study, write_study

Variant = Literal["all sites", "two of three", "private"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
ROUNDS = 3
_FEDERATION = {"rounds": ROUNDS, "minimum_sites": 3, "minimum_replies": 3, "retries": 2, "round_timeout_seconds": 15.0}
_PARTS: dict[Variant, dict[str, Any]] = {
    "all sites": {},
    "two of three": {"federation": {**_FEDERATION, "minimum_sites": 2, "minimum_replies": 2}},
    "private": {
        # The delta is written down, so that the noise does not depend on the noisy number of patients.
        "privacy": {"unit": "patient", "epsilon": 8.0, "delta": 0.005, "clipping_norm": 1.0},
        "training": {"learning_rate": 0.05, "local_steps": 2, "sampling_probability": 0.5},
    },
}


def scenario_study(variant: Variant, name: str, rounds: int = ROUNDS) -> Study:
    """Return a study; every patient is in every step unless it is private, so that training is the same each time."""
    parts: dict[str, Any] = {
        "title": name,
        "training": {"learning_rate": 0.05, "local_steps": 2, "sampling_probability": 1.0},
        "federation": _FEDERATION,
        "evaluation": {"minimum_patients": 1, "every_rounds": 2},
        **_PARTS[variant],
    }
    return small_study(**{**parts, "federation": {**parts["federation"], "rounds": rounds}})


def write_scenario_study(folder: Path, variant: Variant, name: str, rounds: int = ROUNDS) -> tuple[Path, Path]:
    """Write a study and its initial parameters, the same for all of a variant, and return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_study(folder / "study.yaml", scenario_study(variant, name, rounds))
    return path, initialise_study(path, 0)
