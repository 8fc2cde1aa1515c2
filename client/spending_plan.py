"""What a study will still release at a site: its budget is judged by the whole study, not by the next round."""

from collections.abc import Sequence
from pathlib import Path

from echofed.client.calibration import release_mechanism
from echofed.client.ledger_chain import SPLIT_OF_PURPOSE, Entry, Purpose
from echofed.privacy.accounting import Mechanism
from echofed.privacy.spends import Spend, spend_in
from echofed.protocol.study import Study


def spends_to_come(study: Study, public_patients: int, entries: Sequence[Entry], state_folder: Path) -> list[Spend]:
    """Return what a study will release at this site beyond what is in the ledger already.

    A mechanism the study has used before goes on with the noise it had. Releases without privacy come one a round.

    Args:
        study: any.
        public_patients: the number of training patients the site says it has, or is to say.
        entries: of the site's ledger.
        state_folder: the site's; remembers calibrations.

    Raises:
        PrivacyError: the study's privacy parameters have no meaning at a site of this size.
    """
    spends: list[Spend] = []
    for purpose, rounds in _rounds(study).items():
        done = [entry for entry in entries if (entry.study_hash, entry.purpose) == (study.hash, purpose)]
        left, split = rounds - len(done), SPLIT_OF_PURPOSE[purpose]
        if left > 0 and not study.is_private:
            spends += [spend_in(study, split, None)] * left
        elif left > 0:
            earlier = done[-1].spend.mechanism if done else None
            one = earlier or release_mechanism(study, purpose, public_patients, state_folder)
            together = Mechanism(one.noise_multiplier, one.sampling_probability, one.steps * left)
            spends.append(spend_in(study, split, together))
    return spends


def _rounds(study: Study) -> dict[Purpose, int]:
    """Return how often a study releases something of each purpose."""
    figures = study.evaluations if study.evaluation.validation_fraction else 0
    return {"count": 1, "training": study.federation.rounds, "figures": figures}
