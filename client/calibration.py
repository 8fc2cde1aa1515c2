"""The noise a site needs for a study, worked out once and remembered."""

import json
from pathlib import Path

from echofed.privacy.accounting import noise_multiplier_for
from echofed.privacy.budget import check_budget, delta_for
from echofed.protocol.durable import replace_file
from echofed.protocol.study import Study

FILE_NAME = "calibrations.json"


def noise_multiplier(study: Study, training_patients: int, state_folder: Path) -> float:
    """Return sigma / C such that all steps of the study together cost at most the study's epsilon at this site.

    The result is a function of the study and the number of patients only, so it is kept in the site's state folder.

    Raises:
        PrivacyError: the study's privacy parameters have no meaning at a site of this size.
    """
    assert study.privacy.epsilon is not None, "only a private study is calibrated"
    delta = delta_for(training_patients, study.privacy.delta)
    check_budget(study.privacy.epsilon, delta, training_patients)
    arguments = (
        study.privacy.epsilon,
        delta,
        study.training.sampling_probability,
        study.steps,
        study.privacy.accountant,
    )
    key, path = json.dumps(arguments), state_folder / FILE_NAME
    known = _read(path)
    if key not in known:
        known[key] = noise_multiplier_for(*arguments)
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
