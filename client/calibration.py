"""The noise a site needs for a study, worked out once and remembered.

What one patient costs is covered by the study's epsilon twice over, on different patients: a training patient by the noisy
number of patients and the training steps together, a validation patient by the figures of all evaluated rounds.
"""

import json
import math
from pathlib import Path
from typing import Literal

from echofed.client.ledger_chain import Purpose
from echofed.privacy.accounting import Mechanism, noise_multiplier_for
from echofed.privacy.budget import check_budget, delta_for
from echofed.protocol.durable import replace_file
from echofed.protocol.study import Study

FILE_NAME = "calibrations.json"


def count_mechanism(study: Study) -> Mechanism:
    """Return the mechanism by which a site says how many training patients it has."""
    return Mechanism(study.privacy.count_noise, 1.0, 1)


def release_mechanism(study: Study, purpose: Purpose, public_patients: int, folder: Path) -> Mechanism:
    """Return what protects one release of a private study: the count, one round of training, one round's figures.

    Arguments and errors as for `noise_multiplier`.
    """
    if purpose == "count":
        return count_mechanism(study)
    noise = noise_multiplier(study, purpose, public_patients, folder)
    if purpose == "training":
        return Mechanism(noise, study.training.sampling_probability, study.training.local_steps)
    return Mechanism(noise, 1.0, 1)


def noise_multiplier(
    study: Study, purpose: Literal["training", "figures"], public_patients: int, folder: Path
) -> float:
    """Return the noise multiplier such that all of a purpose's releases cost at most the study's epsilon at this site.

    The result is a function of the study and of what the site has said in public only, so it is kept in its state folder.

    Args:
        study: private; with evaluated rounds if figures are asked for.
        purpose: training: all steps of the study, beside the number of patients; figures: all evaluated rounds.
        public_patients: the number of training patients the site says it has.
        folder: the site's state folder.

    Raises:
        PrivacyError: the study's privacy parameters have no meaning at a site of this size.
    """
    assert study.privacy.epsilon is not None, "only a private study is calibrated"
    delta = delta_for(public_patients, study.privacy.delta)
    # The true number of patients is most likely below m and three times the noise in it.
    surely = 0 if study.privacy.delta is None else math.ceil(3 * study.privacy.count_noise)
    check_budget(study.privacy.epsilon, delta, public_patients + surely)
    beside = [count_mechanism(study)] if purpose == "training" else []
    probability = study.training.sampling_probability if purpose == "training" else 1.0
    steps = study.steps if purpose == "training" else study.evaluations
    key = json.dumps([study.privacy.epsilon, delta, probability, steps, [one.noise_multiplier for one in beside]])
    path = folder / FILE_NAME
    known = _read(path)
    if key not in known:
        known[key] = noise_multiplier_for(study.privacy.epsilon, delta, probability, steps, beside)
        replace_file(path, json.dumps(known, indent=1).encode())
    return known[key]


def _read(path: Path) -> dict[str, float]:
    """Return what was worked out before; what cannot be read is worked out again."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    sound = isinstance(known, dict) and all(isinstance(sigma, float) and sigma > 0 for sigma in known.values())
    return known if sound else {}
