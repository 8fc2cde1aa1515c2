"""The federation beside all data in one place and each site alone, judged on the same test patients."""

from collections.abc import Mapping
from typing import Any

from echofed.client.participation import Participation
from echofed.learning.evaluation import evaluate
from echofed.learning.examples import Examples
from echofed.learning.models import StudyModel, load_parameters
from echofed.protocol.arrays import Parameters
from echofed.protocol.errors import EchoFedError, NoPatientsError
from echofed.protocol.study import Study
from echofed.simulations.baselines import pooled, single_sites, train_alone
from echofed.simulations.patient_scores import figure, patient_level
from echofed.simulations.progress import Report

POOLED = "Pooled data"


def compare(
    study: Study,
    model: StudyModel,
    initial: Parameters,
    parts: Mapping[str, Participation],
    seed: int,
    report: Report,
) -> list[dict[str, Any]]:
    """Train on the pooled data and on each site alone and return each one's figure on all sites' test patients.

    Args:
        study: what to train, and how; as many steps as each site takes in the federation.
        model: built for the study; its parameters are replaced.
        initial: all parameters to start from.
        parts: the sites that took part.
        seed: of the simulation.
        report: told how far the work is.
    """
    test, validation = _split(parts, "test"), _split(parts, "validation")
    training = _split(parts, "training")
    if not test:
        return []
    everyone, runs = pooled(list(test.values())), [(POOLED, pooled(list(training.values())))]
    runs += [(f"Only {site}", examples) for site, examples in single_sites(training).items()]
    rows: list[dict[str, Any]] = []
    for number, (name, examples) in enumerate(runs):
        report("Training for comparison", number, len(runs), name)
        chooser = pooled(list(validation.values())) if name == POOLED and validation else validation.get(name[5:])
        try:
            baseline = train_alone(name, study, model, initial, examples, chooser, seed)
        except EchoFedError as error:
            rows.append({"name": name, "metric": None, "interval": None, "note": error.what})
            continue
        load_parameters(model, baseline.parameters)
        scores = patient_level(study, evaluate(model, everyone, study))
        rows.append({"name": name, **figure(study, scores, seed)})
    report("Training for comparison", len(runs), len(runs))
    return rows


def _split(parts: Mapping[str, Participation], split: Any) -> dict[str, Examples]:
    found: dict[str, Examples] = {}
    for site, part in parts.items():
        try:
            found[site] = part.examples(split)
        except NoPatientsError:
            continue
    return found
