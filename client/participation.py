"""A site's part in one study: its examples, its model, one round of training or evaluation.

Nothing here knows how messages travel; `client/flower.py` does.
"""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from echofed.client.answered import claim_round
from echofed.client.calibration import noise_multiplier
from echofed.client.personal import read_personal, write_personal
from echofed.client.site import Site, Split
from echofed.learning.engine import train
from echofed.learning.evaluation import Evaluation, evaluate
from echofed.learning.examples import Examples
from echofed.learning.features import fixed_features
from echofed.learning.models import StudyModel, load_parameters, read_parameters
from echofed.learning.randomness import NoiseSource, generator
from echofed.privacy.budget import delta_for
from echofed.protocol.arrays import Parameters, check_like, encode_parameters
from echofed.protocol.errors import NonFiniteLossError, WireError
from echofed.protocol.messages import SpentPrivacy
from echofed.protocol.shared_layers import shared_parameters, trainable_names
from echofed.protocol.study import Study


@dataclass(frozen=True)
class Trained:
    """What a round of training gave: update = local - global, and what may be said of it."""

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
    ) -> None:
        self.study, self.model, self.site, self.seed, self.threads = study, model, site, seed, threads
        self._shared = shared_parameters(study, initial, metadata)
        kept = trainable_names(initial, metadata) - self._shared.keys()
        self._initial_personal = {name: initial[name] for name in sorted(kept)}
        fixed = {name: array for name, array in initial.items() if name not in trainable_names(initial, metadata)}
        self._encoder_hash = hashlib.sha256(encode_parameters(fixed)).hexdigest()
        self._examples: dict[Split, Examples] = {}

    def describe(self) -> dict[Split, int]:
        """Return the number of usable patients in each split; all zero if there are none.

        Images, features and the noise a private study needs are worked out here, so that the first round does not wait
        for them and a site that cannot keep the study's promise says so before it.

        Raises:
            PrivacyError: the study's privacy parameters have no meaning at a site of this size.
        """
        counts = self.site.count_patients(self.study)
        if self.study.is_private and counts["training"]:
            noise_multiplier(self.study, counts["training"], self.site.state_folder)
        for split, count in counts.items():
            if count:
                self.examples(split)
        return counts

    def train(self, shared: Parameters, round_number: int) -> Trained:
        """Train from the global parameters and return the update; layers kept at the site are put aside for next time.

        Raises:
            WireError: the study has no such round; more rounds than agreed would cost more privacy than agreed.
            ArraysError: the global parameters are not those of the study's model.
            NoPatientsError: no usable training patient.
            NonFiniteLossError: the loss or the update is not finite.
            PrivacyError: the study's epsilon has no meaning here, or the round was answered before.
        """
        start = time.monotonic()
        rounds = self.study.federation.rounds
        if not 1 <= round_number <= rounds:
            raise WireError(f"Round {round_number} is not one of the study's {rounds}.", "Nothing was run.")
        examples = self.examples("training")
        self._load(shared, round_number - 1)
        if self.study.is_private and self.seed is None:  # seeded noise repeats itself
            claim_round(self.site.state_folder, self.study, round_number)
        context = (self.study.hash, self.site.name, round_number)
        sigma = (
            noise_multiplier(self.study, examples.patients, self.site.state_folder) if self.study.is_private else None
        )
        loss = train(
            self.model,
            examples,
            self.study,
            rng=generator(self.seed, "sampling", *context),
            noise=None if sigma is None else NoiseSource(sigma, self.seed, context),
            threads=self.threads,
        )
        update = read_parameters(self.model, self._shared.keys())
        for name, array in update.items():
            array -= shared[name]
        if not all(np.isfinite(array).all() for array in update.values()):
            raise NonFiniteLossError("The update is not finite.")
        if self._initial_personal:
            write_personal(
                self.site.state_folder,
                self.study,
                round_number,
                read_parameters(self.model, self._initial_personal.keys()),
            )
        return Trained(
            update, examples.patients, loss, self._spent(sigma, examples, round_number), time.monotonic() - start
        )

    def evaluate(self, shared: Parameters, round_number: int, split: Split = "validation") -> Evaluation:
        """Evaluate the global parameters, with the layers kept at this site, on one split.

        Raises:
            WireError: the study has no such round.
            NoPatientsError: the split has no usable patient.
            NonFiniteLossError: the loss is not finite.
        """
        if not 0 <= round_number <= self.study.federation.rounds:
            raise WireError(f"The study has no round {round_number}.", "Nothing was run.")
        self._load(shared, round_number)
        return evaluate(self.model, self.examples(split), self.study)

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

    def _spent(self, sigma: float | None, examples: Examples, round_number: int) -> SpentPrivacy | None:
        if sigma is None:
            return None
        return SpentPrivacy(
            noise_multiplier=sigma,
            sampling_probability=self.study.training.sampling_probability,
            steps=round_number * self.study.training.local_steps,
            delta=delta_for(examples.patients, self.study.privacy.delta),
        )
