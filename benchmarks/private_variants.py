"""What each choice behind the private breast study is worth: variants beside the default, on the same splits and noise seeds.

    python -m benchmarks.private_variants [--quick]

One setting differs at a time. A variant's learning rate is the best of half, one and two times the default's on validation
patients; the default's is that of `benchmarks.breast`, and the row below it shows what choosing alike would have changed.
All noise is that of the product, for the whole epsilon, with the noisy number of patients and whatever a variant releases
beside gradients. Needs the data named in docs/benchmarks.md.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from scipy.stats import sem, t
from torch import nn

from benchmarks.breast import CLIPPING_NORM, FEDERATION, PRIVATE_LEARNING_RATES, SEEDS, STUDIES
from benchmarks.variant_features import network, phantoms, scattering, warm_start, with_features
from echofed.client.calibration import count_mechanism
from echofed.client.public_count import noisy_count
from echofed.client.site import Split, open_site
from echofed.learning import models
from echofed.learning.centring import CENTRE, patient_means
from echofed.learning.evaluation import evaluate
from echofed.learning.examples import Examples
from echofed.learning.feature_gradients import feature_gradients
from echofed.learning.gradients import intra_op_threads, trainable
from echofed.learning.scattering import ScatteringClassifier, fit_standardisation
from echofed.privacy.accounting import Mechanism, epsilon_spent, noise_multiplier_for
from echofed.privacy.budget import delta_for
from echofed.privacy.clipping import NoisySum
from echofed.privacy.randomness import Words, random_words
from echofed.privacy.sampling import poisson_sample
from echofed.protocol.messages import SpentPrivacy, TrainReply
from echofed.protocol.study import Study
from echofed.protocol.study_file import load_study
from echofed.simulations.baselines import pooled
from echofed.simulations.sites import make_sites
from echofed.strategies.aggregation import aggregation_weight

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Draw = Callable[..., Words]
"""Gives random words for a purpose, a site and perhaps a round."""
NOISE_SEEDS = 2
FACTORS = (0.5, 1.0, 2.0)
AUTOMATIC_STABILITY = 0.01
"""Added to a norm before it divides (Bu et al. (2023), gamma)."""
QUANTILE, QUANTILE_RATE, QUANTILE_SHARE = 0.5, 0.2, 0.1
"""Aim and step of adaptive clipping (Andrew et al. (2021)), and the share of the budget its counts take."""
NETWORK_STEPS, NETWORK_STEPS_QUICK = 900, 45
VALIDATION_FRACTION, TUNING_SPLITS = 0.15, 2


@dataclass(frozen=True)
class Variant:
    """One difference from the default.

    Args:
        changes: of the study document, by block.
        kind: what features are made of: images, copies (slightly changed ones beside them) or network.
        together: all patients at one site, so that noise is added once.
        clipping: norm, automatic or adaptive.
        average: decay of the exponential moving average that is published; 0 publishes the last parameters.
        warm: the head starts from phantoms' labels.
        factors: learning rates to choose from, over the default's.
    """

    name: str
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    kind: str = "images"
    together: bool = False
    clipping: str = "norm"
    average: float = 0.0
    warm: bool = False
    factors: tuple[float, ...] = FACTORS


DEFAULT = Variant("default", factors=(1.0,))
NETWORK = {"name": "small_resnet", "width": 16, "blocks": 1, "encoder": "frozen"}
NO_CENTRING = {"training": {"centring_rounds": 0}}
FROZEN_NETWORK = Variant("small_resnet trained on phantoms, frozen", {"model": NETWORK, **NO_CENTRING}, kind="network")
VARIANTS = (
    DEFAULT,
    Variant("default, learning rate chosen like a variant's"),
    Variant("one common noise, as if all patients were at one site", together=True),
    Variant("no centring", NO_CENTRING),
    Variant("sites weighted by patients", {"strategy": {"weighting": "patients"}}),
    Variant("small head: one hidden layer of 16", {"model": {"head": "small"}}),
    Variant("projection to 64", {"model": {"projection": 64}}),
    Variant("projection to 256", {"model": {"projection": 256}}),
    Variant("no projection: 1,350 features", {"model": {"projection": None}}),
    Variant("loss over each image and 4 changed copies", kind="copies"),
    Variant("moving average, 0.9", average=0.9),
    Variant("moving average, 0.98", average=0.98),
    Variant("automatic clipping", clipping="automatic"),
    Variant("adaptive clipping at the median", clipping="adaptive"),
    Variant("head starts from phantoms' labels", warm=True),
    FROZEN_NETWORK,
    Variant("each step draws a quarter of the patients", {"training": {"sampling_probability": 0.25}}, factors=(1.0,)),
)


@cache
def examples_of(folder: Path, seed: int, validation: float, split: Split) -> dict[str, Examples]:
    """Return a split's examples at the sites that may train, by name."""
    study = study_of(DEFAULT, 8.0, validation, folder)
    sites = [open_site(state) for state in make_sites(FEDERATION, folder / "sites", seed)]
    counts = [site.count_patients(study) for site in sites]
    usable = [count["training"] >= study.evaluation.minimum_patients and count[split] > 0 for count in counts]
    return {site.name: site.examples(study, split) for site, use in zip(sites, usable, strict=True) if use}


def study_of(variant: Variant, epsilon: float, validation: float, folder: Path) -> Study:
    """Return the breast study at an epsilon, with a variant's changes."""
    content = yaml.safe_load((STUDIES / "breast_malignancy.yaml").read_text(encoding="utf-8"))
    content["privacy"] = {"unit": "patient", "epsilon": epsilon, "clipping_norm": CLIPPING_NORM}
    content["training"]["learning_rate"] = PRIVATE_LEARNING_RATES[epsilon]
    content["evaluation"] = {"validation_fraction": validation, "figures": "none"}
    for block, changes in variant.changes.items():
        content[block] = changes if block == "model" and "name" in changes else {**content[block], **changes}
    if variant.kind == "network":
        content["preprocessing"]["standardise"] = "image"
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_study(path)


class Trial:
    """A variant on one split: its model at the start and its examples with their features.

    Args:
        variant: to try.
        seed: of the split.
        folder: for files.
        quick: train a network for a moment only.
    """

    def __init__(self, variant: Variant, seed: int, folder: Path, quick: bool) -> None:
        self.variant, self.seed, self.folder = variant, seed, folder
        self.steps = NETWORK_STEPS_QUICK if quick else NETWORK_STEPS
        self.model = models.build_model(study_of(variant, 8.0, 0.0, folder))
        encoder = self.model.encoder
        if isinstance(encoder, ScatteringClassifier):
            # Coefficients are worked out once for all splits and projections.
            encoder.add_module("pooled", nn.Identity())
            public = torch.from_numpy(scattering(False).of(phantoms(seed)))
            fit_standardisation(encoder, public)
            if variant.warm:
                models.load_parameters(self.model, warm_start(encoder.encode(public).numpy()))
        self.start = models.read_parameters(self.model)
        self._examples: dict[tuple[float, Split], dict[str, Examples]] = {}

    def area(self, epsilon: float, noise_seed: int, rate: float, validation: float = 0.0) -> float:
        """Return the AUC by patient of what is published: on test patients, or on validation patients if there are any."""
        study, default = (study_of(one, epsilon, validation, self.folder) for one in (self.variant, DEFAULT))
        parts = self._featured(validation, "training")
        parts = {"all": pooled(list(parts.values()))} if self.variant.together else parts
        models.load_parameters(self.model, self.start)

        def draw(purpose: str, *context: str | int) -> Words:
            # A simulation of the default study draws the same noise.
            return random_words(noise_seed, purpose, default.hash, *context)

        federate(self.variant, study, self.model, parts, draw, rate)
        judged = self._featured(validation, "validation" if validation else "test")
        metric = evaluate(self.model, pooled(list(judged.values())), study).metric
        assert metric is not None
        return metric

    def _featured(self, validation: float, split: Split) -> dict[str, Examples]:
        if (validation, split) not in self._examples:
            found = examples_of(self.folder, self.seed, validation, split)
            self._examples[validation, split] = {name: self._with_features(one, split) for name, one in found.items()}
        return self._examples[validation, split]

    def _with_features(self, examples: Examples, split: Split) -> Examples:
        encoder = self.model.encoder
        if not isinstance(encoder, ScatteringClassifier):
            study = study_of(self.variant, 8.0, 0.0, self.folder)
            return with_features(
                examples, network(study, self.folder / "encoder.safetensors", self.steps).of(examples.images)
            )
        copied = self.variant.kind == "copies" and split == "training"
        found = torch.from_numpy(scattering(copied).of(examples.images))
        return with_features(examples, encoder.encode(found.flatten(0, -2)).reshape(*found.shape[:-1], -1).numpy())


@dataclass(frozen=True)
class Site:
    """What a site says of itself, and its noise multipliers: of the centre, of gradients and of adaptive clipping's counts."""

    name: str
    patients: int
    centre_noise: float
    gradient_noise: float
    count_noise: float


def site_of(variant: Variant, study: Study, name: str, training_patients: int, draw: Draw) -> Site:
    """Let a site say its number of patients and calibrate its noise, as a participation does."""
    epsilon, minimum, q = study.privacy.epsilon, study.evaluation.minimum_patients, study.training.sampling_probability
    assert epsilon is not None
    patients = noisy_count(training_patients, study.privacy.count_noise, minimum, draw("count", name))
    delta, said = delta_for(patients), count_mechanism(study)
    sigma = noise_multiplier_for(epsilon, delta, q, study.steps, (said,))
    if variant.clipping != "adaptive":
        return Site(name, patients, sigma, sigma, 0.0)
    gradients, counts = sigma / (1 - QUANTILE_SHARE) ** 0.5, sigma / QUANTILE_SHARE**0.5
    centring = study.training.centring_rounds
    shares = ((sigma, centring), (gradients, study.steps - centring), (counts, study.steps - centring))
    spent = epsilon_spent([said, *(Mechanism(noise, q, steps) for noise, steps in shares)], delta)
    assert spent <= epsilon * (1 + 1e-6)
    return Site(name, patients, sigma, gradients, counts)


def weight_of(study: Study, site: Site, size: int) -> float:
    """Return the aggregation weight of a site whose update has so many numbers."""
    q, delta = study.training.sampling_probability, delta_for(site.patients)
    spent = SpentPrivacy(noise_multiplier=site.centre_noise, sampling_probability=q, steps=1, delta=delta)
    private: dict[str, Any] = {"training_loss": None, "seconds": None}
    named: dict[str, Any] = {"site": site.name, "study_hash": study.hash, "round_number": 1}
    return aggregation_weight(study, TrainReply(**named, **private, patients=site.patients, spent=spent), size)


@dataclass(frozen=True)
class Cohort:
    """Sites, their patients in one list, the place of each site's first, and what its noisy sums are multiplied by."""

    sites: Sequence[Site]
    examples: Examples
    starts: NDArray[np.int64]
    shares: Doubles
    sampling_probability: float

    def drawn(self, words: Sequence[Words]) -> NDArray[np.int64]:
        """Return the patients that all sites draw."""
        sizes, q = np.diff(self.starts), self.sampling_probability
        drawn = [poisson_sample(int(size), q, one) for size, one in zip(sizes, words, strict=True)]
        return np.concatenate([rows + start for rows, start in zip(drawn, self.starts[:-1], strict=True)])

    def noisy_mean(
        self,
        parts: Sequence[Floats | Doubles],
        patients: NDArray[np.int64],
        bound: float,
        noises: Sequence[float],
        words: Sequence[Words],
    ) -> list[Doubles]:
        """Return the mean over sites of what each releases of its patients' contributions."""
        totals, owner = [np.zeros(part.shape[1]) for part in parts], np.searchsorted(self.starts, patients, "right") - 1
        for site, (noise, share, one) in enumerate(zip(noises, self.shares, words, strict=True)):
            noisy = NoisySum([part.shape[1] for part in parts], bound, noise)
            noisy.add([part[owner == site] for part in parts])
            for total, released in zip(totals, noisy.release(one), strict=True):
                total += share * released
        return totals


def federate(
    variant: Variant, study: Study, model: models.StudyModel, parts: Mapping[str, Examples], draw: Draw, rate: float
) -> None:
    """Train a model in place by rounds of one step at each site, and leave in it what the study publishes.

    Args:
        variant: says how gradients are clipped, and which parameters are published.
        study: of the variant.
        model: at the study's start.
        parts: training examples by site, with features.
        draw: gives random words for a purpose at a site.
        rate: learning rate over the study's.
    """
    sites = [site_of(variant, study, name, part.patients, draw) for name, part in parts.items()]
    size = sum(model.get_parameter(name).numel() for name in models.trainable_names(model))
    weights, q = np.array([weight_of(study, site, size) for site in sites]), study.training.sampling_probability
    shares = weights / weights.sum() / [q * site.patients for site in sites]
    starts = np.cumsum([0, *(part.patients for part in parts.values())])
    cohort = Cohort(sites, pooled(list(parts.values())), starts, shares, q)
    if study.training.centring_rounds:
        learn_centre(study, model, cohort, draw)
    learn_head(variant, study, model, cohort, draw, rate)


def learn_centre(study: Study, model: models.StudyModel, cohort: Cohort, draw: Draw) -> None:
    """Set the centre to the mean of the first rounds' noisy means, as `engine.train` does."""
    centre, means = model.get_parameter(CENTRE), patient_means(cohort.examples) * np.float32(CLIPPING_NORM)
    noises = [site.centre_noise for site in cohort.sites]
    for number in range(1, study.training.centring_rounds + 1):
        words = [draw("privacy", site.name, number) for site in cohort.sites]
        drawn = cohort.drawn(words)
        mean = cohort.noisy_mean([means[drawn]], drawn, CLIPPING_NORM, noises, words)[0] / CLIPPING_NORM
        with torch.no_grad():
            centre.add_((torch.from_numpy(mean).to(centre.dtype) - centre) / number)


def learn_head(
    variant: Variant, study: Study, model: models.StudyModel, cohort: Cohort, draw: Draw, rate: float
) -> None:
    """Train the head in the rounds that are left."""
    examples, parameters, clip = cohort.examples, trainable(model), CLIPPING_NORM
    source, average = feature_gradients(model, examples, study), [torch.zeros_like(one) for one in parameters]
    for number in range(study.training.centring_rounds + 1, study.federation.rounds + 1):
        words = [draw("privacy", site.name, number) for site in cohort.sites]
        drawn = cohort.drawn(words)
        gradients = [one.gradients for one in source(drawn, [0] * len(drawn))]
        contributions = [torch.cat(part).flatten(1).numpy() for part in zip(*gradients, strict=True)]
        norms = np.sqrt(sum(np.square(part, dtype=np.float64).sum(1) for part in contributions))[:, None]
        if variant.clipping == "automatic":
            contributions = [part * (clip / (norms + AUTOMATIC_STABILITY)) for part in contributions]
        step = cohort.noisy_mean(contributions, drawn, clip, [site.gradient_noise for site in cohort.sites], words)
        # Adaptive clipping moves by a step over its norm, so that one learning rate fits all norms.
        scale = rate * study.training.learning_rate * CLIPPING_NORM / clip
        with torch.no_grad():
            for parameter, mean, running in zip(parameters, step, average, strict=True):
                parameter.sub_(torch.from_numpy(scale * mean).view(parameter.shape).to(parameter.dtype))
                running.mul_(variant.average).add_(parameter, alpha=1 - variant.average)
        if variant.clipping == "adaptive":
            noises, within = [site.count_noise for site in cohort.sites], (norms <= clip) - 0.5
            more_than_half = float(cohort.noisy_mean([within], drawn, 0.5, noises, words)[0][0])
            clip *= float(np.exp(-QUANTILE_RATE * (0.5 + more_than_half - QUANTILE)))
    steps = study.federation.rounds - study.training.centring_rounds
    with torch.no_grad():
        for parameter, running in zip(parameters, average, strict=True):
            parameter.copy_(running / (1 - variant.average**steps))


def run(quick: bool) -> Iterator[dict[str, Any]]:
    """Yield one row for each variant and epsilon."""
    seeds, noises = (SEEDS[:2], 1) if quick else (SEEDS, NOISE_SEEDS)
    default: dict[float, Doubles] = {}
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            trials = [Trial(variant, seed, Path(folder), quick) for seed in seeds]
            for epsilon in PRIVATE_LEARNING_RATES:
                rate = 1.0 if quick else best_rate(trials[:TUNING_SPLITS], epsilon)
                # The first noise seed of a split is the one with which `benchmarks.breast` simulates it.
                areas = np.array(
                    [
                        np.mean([trial.area(epsilon, trial.seed + len(SEEDS) * noise, rate) for noise in range(noises)])
                        for trial in trials
                    ]
                )
                differences = areas - default.setdefault(epsilon, areas)
                difference, half = float(differences.mean()), float(t.ppf(0.975, len(seeds) - 1) * sem(differences))
                row = {"variant": variant.name, "epsilon": epsilon, "rate": rate, "auc": float(areas.mean())}
                yield {**row, "difference": difference, "low": difference - half, "high": difference + half}


def best_rate(trials: Sequence[Trial], epsilon: float) -> float:
    """Return the learning rate, over the default's, that is best on validation patients."""
    factors = trials[0].variant.factors
    if len(factors) == 1:
        return factors[0]
    areas = [[trial.area(epsilon, trial.seed, rate, VALIDATION_FRACTION) for trial in trials] for rate in factors]
    return factors[int(np.argmax(np.mean(areas, axis=1)))]


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two splits, one noise seed, default learning rates")
    quick = parser.parse_args().quick
    print("| variant | " + " | ".join(f"epsilon {epsilon:g}" for epsilon in PRIVATE_LEARNING_RATES) + " |")
    print("|---" * (1 + len(PRIVATE_LEARNING_RATES)) + "|")
    with intra_op_threads(1):
        cells: list[str] = []
        for row in run(quick):
            rate = "" if row["rate"] == 1 else f", rate x {row['rate']:g}"
            difference = f": {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}{rate})"
            cells.append(f"{row['auc']:.3f}" + ("" if row["variant"] == DEFAULT.name else difference))
            if len(cells) == len(PRIVATE_LEARNING_RATES):
                print(f"| {row['variant']} | " + " | ".join(cells) + " |", flush=True)
                cells = []


if __name__ == "__main__":
    main()
