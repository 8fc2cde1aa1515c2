"""The model that a study must end in: trained again in this process, by the sites that replied in each round."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from echofed.client.participation import Participation
from echofed.client.site import open_site
from echofed.learning.models import build_model
from echofed.protocol.arrays import Parameters, decode_parameters
from echofed.protocol.audit_log import open_existing_log
from echofed.protocol.shared_layers import shared_parameters
from echofed.protocol.study_folder import read_study_folder
from echofed.server.conductor import LAST_MODEL_FILE
from echofed.server.history import Round
from echofed.server.studies import study_folder
from echofed.strategies.aggregation import StreamingMean
from echofed.strategies.server_optimizers import apply_update
from tests.faults.harness import Harness
from tests.faults.invariants import rounds_of
from tests.faults.scenario import Ran

TOLERANCE = 1e-7
"""The order in which replies are added may change the last bit of a float32."""


class Replay:
    """Trains again what sites trained in studies without privacy, each thing once.

    Args:
        template: an enrolled consortium with the same data.
    """

    def __init__(self, template: Path) -> None:
        self._template = template
        self._participations: dict[str, Participation] = {}
        self._known: dict[tuple[tuple[str, ...], ...], Parameters] = {}

    def model(self, folder: Path, rounds: Sequence[Round]) -> Parameters:
        """Return the shared parameters after rounds with the same replies."""
        study, initial, metadata = read_study_folder(folder)
        key: tuple[tuple[str, ...], ...] = ()
        current = shared_parameters(study, initial, metadata)
        for record in rounds:
            sites = tuple(sorted(site for site, one in record.sites.items() if one.trained))
            key = (*key, sites)
            if key not in self._known:
                mean = StreamingMean(current)
                for site in sites:
                    mean.add(self._site(site, folder).train(current, record.round_number).update, 1.0)
                self._known[key] = _applied(study.strategy.server_optimizer, current, mean)
            current = self._known[key]
        return current

    def _site(self, site: str, folder: Path) -> Participation:
        if site not in self._participations:
            study, initial, metadata = read_study_folder(folder)
            data = open_site(self._template / "sites" / site)
            self._participations[site] = Participation(study, build_model(study), initial, metadata, data, None)
        return self._participations[site]


def check_model(harness: Harness, ran: Ran, replay: Replay) -> str:
    """Check the model a finished study ended in, add to its problems if it is another, and return what it was compared with.

    Without privacy it is trained again, by the sites that replied in each round: for studies that need all sites, that is the
    model of an undisturbed study. With privacy, whose noise cannot be drawn again, it is added up from the sites' updates.
    """
    rounds, model = rounds_of(harness, ran), published_model(harness, ran.study)
    if ran.variant == "private":
        expected, against = from_updates(harness, ran.study, rounds), "the sum of its updates"
    else:
        folder = study_folder(harness.state("coordinator"), ran.study)
        expected, against = replay.model(folder, rounds), "the same replies in one process"
    if (off := difference(model, expected)) > TOLERANCE:
        ran.problems.append(f"the model differs from {against}: {off:.2g}")
    return against


def from_updates(harness: Harness, study_hash: str, rounds: Sequence[Round]) -> Parameters:
    """Return the shared parameters that the updates add up to which the coordinator logged and the sites had made."""
    coordinator = harness.state("coordinator")
    folder = study_folder(coordinator, study_hash)
    study, initial, metadata = read_study_folder(folder)
    with open_existing_log(coordinator) as log:
        replies = {
            (entry.facts["round"], entry.facts["site"]): str(entry.facts["parameters"])
            for entry in log.entries()
            if entry.event == "reply" and entry.facts["study"] == study_hash and entry.facts["kind"] == "train"
        }
    current = shared_parameters(study, initial, metadata)
    for record in rounds:
        mean = StreamingMean(current)
        for site in (site for site, one in record.sites.items() if one.trained):
            content = harness.update(replies[record.round_number, site]).read_bytes()
            mean.add(decode_parameters(content, len(content)), 1.0)
        current = _applied(study.strategy.server_optimizer, current, mean)
    return current


def published_model(harness: Harness, study_hash: str) -> Parameters:
    """Return all parameters of the model a finished study ended in."""
    content = (study_folder(harness.state("coordinator"), study_hash) / LAST_MODEL_FILE).read_bytes()
    return decode_parameters(content, len(content))


def difference(one: Parameters, other: Parameters) -> float:
    """Return the largest difference between parameters that both have, relative to the largest of them."""
    shared = one.keys() & other.keys()
    assert shared
    scale = max(float(np.abs(one[name]).max(initial=0.0)) for name in shared) or 1.0
    return max(float(np.abs(one[name] - other[name]).max(initial=0.0)) for name in shared) / scale


def _applied(optimizer: object, current: Parameters, mean: StreamingMean) -> Parameters:
    content, _ = apply_update(optimizer, current, mean.take(), {})  # type: ignore[arg-type]
    return decode_parameters(content, len(content))
