"""A site's part in one study: its examples, its model, one round of training or evaluation.

Nothing here knows how messages travel; `client/flower.py` does.
"""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from echofed.client.calibration import noise_multiplier, release_mechanism
from echofed.client.personal import read_personal, write_personal
from echofed.client.public_count import public_count
from echofed.client.site import Site, Split
from echofed.learning.engine import PatientPrivacy, train
from echofed.learning.evaluation import Evaluation, evaluate
from echofed.learning.examples import Examples
from echofed.learning.features import fixed_features
from echofed.learning.metrics import patient_scores
from echofed.learning.models import StudyModel, load_parameters, read_parameters
from echofed.learning.randomness import generator
from echofed.privacy.accounting import Mechanism
from echofed.privacy.budget import delta_for
from echofed.privacy.clipping import NoisySum
from echofed.privacy.randomness import random_words
from echofed.protocol.arrays import Parameters, check_like, encode_parameters
from echofed.protocol.errors import NonFiniteLossError, TooFewPatientsError, WireError
from echofed.protocol.figures import contributions, figure_bound, figure_count
from echofed.protocol.messages import ExactFigures, NoisyFigures, SpentPrivacy
from echofed.protocol.shared_layers import shared_parameters, trainable_names
from echofed.protocol.study import Study


@dataclass(frozen=True)
class Trained:
    """What a round of training gave: update = local - global, and what may be said of it.

    Args:
        patients: the number of training patients the site says it has.
    """

    update: Parameters
    patients: int
    loss: float | None
    spent: SpentPrivacy | None
    seconds: float


class Participation:
    """One site in one study; keep it between rounds, building it is slow.

    Args:
        study: what was approved.
        model: the study's model; sites simulated in one process may share it, its parameters are set before each use.
        initial: all parameters and fixed buffers of the model, from the study's initial-parameters file.
        metadata: of that file.
        site: the site's registered data.
        seed: makes sampling, augmentation and privacy noise reproducible; simulations only. None: the operating
            system's generator.
        threads: cores one training may use.
        minimum_patients: the site's own; the study's counts if it is larger.

    Raises:
        ParametersError: the initial parameters do not fit the study's model.
    """

    def __init__(
        self,
        study: Study,
        model: StudyModel,
        initial: Parameters,
        metadata: dict[str, str],
        site: Site,
        seed: int | None,
        threads: int = 1,
        minimum_patients: int = 1,
    ) -> None:
        self.study, self.model, self.site, self.seed, self.threads = study, model, site, seed, threads
        self.minimum_patients = max(minimum_patients, study.evaluation.minimum_patients)
        self._shared = shared_parameters(study, initial, metadata)
        kept = trainable_names(initial, metadata) - self._shared.keys()
        self._initial_personal = {name: initial[name] for name in sorted(kept)}
        fixed = {name: array for name, array in initial.items() if name not in trainable_names(initial, metadata)}
        self._encoder_hash = hashlib.sha256(encode_parameters(fixed)).hexdigest()
        self._examples: dict[Split, Examples] = {}

    @property
    def training_patients(self) -> int | None:
        """The number of training patients the site says it has, None if it may not train.

        Never less than the minimum; with noise if the study is private, and then not at all with fewer patients than that.
        """
        patients = self.site.count_patients(self.study)["training"]
        if not self.study.is_private:
            return max(patients, self.minimum_patients) if patients else None
        if patients < self.minimum_patients:
            return None
        folder = self.site.state_folder
        return public_count(
            self.study, patients, self.minimum_patients, site=self.site.name, state_folder=folder, seed=self.seed
        )

    @property
    def training_mechanism(self) -> Mechanism | None:
        """What protects one round of training; None in a study without privacy.

        Raises:
            TooFewPatientsError: the site may not train.
        """
        return self._mechanism("training")

    @property
    def figures_mechanism(self) -> Mechanism | None:
        """What protects the figures of one round; as `training_mechanism`."""
        return self._mechanism("figures")

    @property
    def has_figures(self) -> bool:
        """Whether there are enough validation patients to say anything of them."""
        return self.site.count_patients(self.study)["validation"] >= self.minimum_patients

    def describe(self) -> dict[Split, int] | None:
        """Return what the site says of its patients in each split, None if it cannot train.

        A number below the minimum is left out; a private study is told the number of training patients only, with noise.
        Images, features and the noise a private study needs are worked out here, so that the first round does not wait
        for them and a site that cannot keep the study's promise says so before it.

        Raises:
            PrivacyError: the study's privacy parameters have no meaning at a site of this size.
        """
        patients = self.training_patients
        if patients is None:
            return None
        counts = self.site.count_patients(self.study)
        for split, count in counts.items():
            if count:
                self.examples(split)
        if self.study.is_private:
            noise_multiplier(self.study, "training", patients, self.site.state_folder)
            return {"training": patients}
        return {split: count for split, count in counts.items() if count >= self.minimum_patients}

    def train(self, shared: Parameters, round_number: int) -> Trained:
        """Train from the global parameters and return the update; layers kept at the site are put aside for next time.

        Raises:
            WireError: the study has no such round; more rounds than agreed would cost more privacy than agreed.
            ArraysError: the global parameters are not those of the study's model.
            TooFewPatientsError: too few usable training patients.
            NonFiniteLossError: without privacy, the loss or the update is not finite.
            PrivacyError: the study's epsilon has no meaning here.
        """
        start = time.monotonic()
        rounds = self.study.federation.rounds
        if not 1 <= round_number <= rounds:
            raise WireError(f"Round {round_number} is not one of the study's {rounds}.", "Nothing was run.")
        patients = self._patients()
        self._load(shared, round_number - 1)
        context = (self.study.hash, self.site.name, round_number)
        spent = self._spent(patients, round_number) if self.study.is_private else None
        loss = train(
            self.model,
            self.examples("training"),
            self.study,
            rng=generator(self.seed, "sampling", *context),
            privacy=None
            if spent is None
            else PatientPrivacy(spent.noise_multiplier, patients, random_words(self.seed, "privacy", *context)),
            threads=self.threads,
            steps_before=(round_number - 1) * self.study.training.local_steps,
        )
        update = read_parameters(self.model, self._shared.keys())
        for name, array in update.items():
            array -= shared[name]
        for array in update.values():
            if self.study.is_private:
                # Noise has been drawn: an error would tell of it, and might be asked for again.
                np.nan_to_num(array, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
            elif not np.isfinite(array).all():
                raise NonFiniteLossError("The update is not finite.")
        if self._initial_personal:
            write_personal(
                self.site.state_folder,
                self.study,
                round_number,
                read_parameters(self.model, self._initial_personal.keys()),
            )
        return Trained(update, patients, loss, spent, time.monotonic() - start)

    def evaluate(self, shared: Parameters, round_number: int, split: Split = "validation") -> Evaluation:
        """Evaluate the global parameters, with the layers kept at this site, on one split; for the site's own eyes.

        Raises:
            WireError: the study has no such round.
            NoPatientsError: the split has no usable patient.
            NonFiniteLossError: the loss is not finite.
        """
        if not 0 <= round_number <= self.study.federation.rounds:
            raise WireError(f"The study has no round {round_number}.", "Nothing was run.")
        self._load(shared, round_number)
        return evaluate(self.model, self.examples(split), self.study)

    def figures(self, shared: Parameters, round_number: int) -> ExactFigures | NoisyFigures | None:
        """Return what may be said of how the global parameters do on the validation patients; None if these are too few.

        In a private study sums with noise that hides each patient, and only in rounds for which the noise was calibrated.

        Raises:
            WireError: the round is not one the study evaluates.
            TooFewPatientsError: the site may not train.
            NonFiniteLossError: without privacy, the loss is not finite.
        """
        if not self.study.evaluation.is_due(round_number, self.study.federation.rounds):
            raise WireError(f"The study does not evaluate round {round_number}.", "Nothing was run.")
        if not self.has_figures:
            return None
        mechanism, evaluation = self.figures_mechanism, self.evaluate(shared, round_number)
        if mechanism is None:
            patients = self.examples("validation").patients
            return ExactFigures(patients=patients, loss=evaluation.loss, metric=evaluation.metric)
        task, bound = self.study.task, figure_bound(self.study.task)
        scores, targets = patient_scores(task, evaluation.scores, evaluation.targets, evaluation.patients)
        total = NoisySum([figure_count(task)], bound, mechanism.noise_multiplier)
        total.add([contributions(task, scores, targets)])
        sums = total.release(random_words(self.seed, "figures", self.study.hash, self.site.name, round_number))[0]
        return NoisyFigures(sums=tuple(sums.round(3).tolist()), noise_stddev=mechanism.noise_multiplier * bound)

    def _mechanism(self, purpose: Literal["training", "figures"]) -> Mechanism | None:
        if not self.study.is_private:
            return None
        return release_mechanism(self.study, purpose, self._patients(), self.site.state_folder)

    def _patients(self) -> int:
        patients = self.training_patients
        if patients is None:
            raise TooFewPatientsError(f"{self.site.name} has fewer than {self.minimum_patients} training patients.")
        return patients

    def examples(self, split: Split) -> Examples:
        """Return a split's examples, with the features of a fixed encoder worked out once."""
        if split not in self._examples:
            examples = self.site.examples(self.study, split)
            if self.model.has_fixed_features and not self.study.training.augmentation.is_on:
                examples = replace(examples, features=self._features(examples.images))
            self._examples[split] = examples
        return self._examples[split]

    def _features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        def compute() -> Iterable[NDArray[np.float32]]:
            return fixed_features(self.model, images, self.study)

        return self.site.cached_features(self.study, self._encoder_hash, compute)

    def _load(self, shared: Parameters, round_number: int) -> None:
        check_like(shared, self._shared)
        personal = read_personal(self.site.state_folder, self.study, round_number) if self._initial_personal else None
        load_parameters(self.model, {**(personal or self._initial_personal), **shared})

    def _spent(self, patients: int, round_number: int) -> SpentPrivacy:
        return SpentPrivacy(
            noise_multiplier=noise_multiplier(self.study, "training", patients, self.site.state_folder),
            sampling_probability=self.study.training.sampling_probability,
            steps=round_number * self.study.training.local_steps,
            delta=delta_for(patients, self.study.privacy.delta),
        )
