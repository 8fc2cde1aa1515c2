"""What makes a reply acceptable; whatever does not is refused, counted and named."""

import math
from collections.abc import Mapping

import numpy as np
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from echofed.privacy.budget import delta_for
from echofed.protocol.arrays import Parameters, check_shapes
from echofed.protocol.errors import ReplyRefusedError
from echofed.protocol.figures import figure_bound, figure_count
from echofed.protocol.flower_records import read_document, read_parameters
from echofed.protocol.messages import (
    LEAST_NOISE,
    MOST_NOISE,
    MOST_PATIENTS,
    EvaluateReply,
    ExactFigures,
    NoisyFigures,
    TrainReply,
)
from echofed.protocol.study import Study
from echofed.strategies.aggregation import norm
from echofed.strategies.noise_floor import least_noise

HEADER_ALLOWANCE_BYTES = 1 << 20
LARGEST_LOSS = 1e9


def read_train_reply(
    message: Message,
    study: Study,
    round_number: int,
    site: str,
    template: Mapping[str, NDArray[np.float32]],
    said_patients: int | None = None,
) -> tuple[TrainReply, Parameters]:
    """Return what a site sent after training, checked.

    Args:
        message: the site's reply.
        study: what was agreed.
        round_number: the round asked for, 1-based.
        site: the name of the site asked.
        template: global parameters; names and shapes must match exactly.
        said_patients: the number of training patients the site said before the first round, None if not known.

    Raises:
        EchoFedError: the site answered with an error, another site, study or round, another set of arrays, NaN, an update
            larger than the study allows, or a training mechanism or number of patients that is not the study's.
    """
    reply = read_document(_records(message), TrainReply)
    _check_addressed(reply, study, round_number, site)
    if (reply.patients is None) != (study.strategy.weighting == "uniform") or reply.patients == 0:
        raise ReplyRefusedError("The number of patients is not as the study's weighting asks.")
    if study.is_private and (reply.spent is None or reply.training_loss is not None):
        raise ReplyRefusedError("The study is private, the reply is not.")
    if not study.is_private and reply.spent is not None:
        raise ReplyRefusedError("The reply is private, the study is not.")
    _check_patients(reply, study, said_patients)
    max_bytes = sum(array.nbytes for array in template.values()) + HEADER_ALLOWANCE_BYTES
    update = read_parameters(message.content, max_bytes)
    check_shapes(update, template)
    size, largest = norm(update), study.strategy.maximum_update_norm
    if not math.isfinite(size):
        raise ReplyRefusedError("The update holds NaN or infinity.")
    if size > largest:
        raise ReplyRefusedError(f"The update's norm {size:.3g} exceeds {largest:g}.")
    return reply, update


def read_evaluate_reply(message: Message, study: Study, round_number: int, site: str) -> EvaluateReply:
    """Return what a site sent after evaluating, checked; raises as `read_train_reply` does."""
    reply = read_document(_records(message), EvaluateReply)
    _check_addressed(reply, study, round_number, site)
    if (study.is_private and reply.exact is not None) or (not study.is_private and reply.noisy is not None):
        raise ReplyRefusedError("The figures are noisy where they should be exact, or the other way round.")
    if reply.noisy is not None and len(reply.noisy.sums) != figure_count(study.task):
        raise ReplyRefusedError(f"There are {len(reply.noisy.sums)} sums, not {figure_count(study.task)}.")
    if reply.noisy is not None:
        _check_noisy(reply.noisy, study)
    if reply.exact is not None:
        _check_exact(reply.exact, study)
    return reply


def _records(message: Message) -> RecordDict:
    if message.has_error():
        raise ReplyRefusedError(f"The site could not answer: {(message.error.reason or 'no reason given')[:300]}.")
    return message.content


def _check_patients(reply: TrainReply, study: Study, said_patients: int | None) -> None:
    """Refuse a training mechanism other than the study's, and a number of patients other than the one drawn once."""
    spent = reply.spent
    if spent is None:
        return
    agreed = (study.training.sampling_probability, reply.round_number * study.training.local_steps)
    if (spent.sampling_probability, spent.steps) != agreed:
        raise ReplyRefusedError("The training mechanism is not the study's.")
    if None not in (reply.patients, said_patients) and reply.patients != said_patients:
        raise ReplyRefusedError(f"The site says {reply.patients} patients, and said {said_patients} before.")
    patients = reply.patients or said_patients
    if study.privacy.delta or patients:
        delta = delta_for(patients or 1, study.privacy.delta)
        if spent.delta != delta:
            raise ReplyRefusedError(f"The training mechanism's delta is {spent.delta:g}, not {delta:g}.")
    least = least_noise(study, spent.delta)
    if spent.noise_multiplier < least:
        raise ReplyRefusedError(
            f"The noise multiplier {spent.noise_multiplier:.3g} cannot keep the study's epsilon; {least:.3g} is the least."
        )


def _check_noisy(noisy: NoisyFigures, study: Study) -> None:
    bound = figure_bound(study.task)
    if not LEAST_NOISE * bound <= noisy.noise_stddev <= MOST_NOISE * bound:
        raise ReplyRefusedError(f"The noise in the figures, {noisy.noise_stddev:.3g}, is not of the agreed form.")
    if max(map(abs, noisy.sums)) > MOST_PATIENTS + 100 * noisy.noise_stddev:
        raise ReplyRefusedError("The sums are larger than patients and noise can make them.")


def _check_exact(exact: ExactFigures, study: Study) -> None:
    span = 1.0 if study.task.value_range is None else study.task.value_range[1] - study.task.value_range[0]
    if abs(exact.loss) > LARGEST_LOSS:
        raise ReplyRefusedError(f"The loss {exact.loss:.3g} is larger than {LARGEST_LOSS:g}.")
    # Values outside the task's range are registered, too, so an error can exceed the range somewhat.
    largest = span * (1 if study.task.value_range is None else 100)
    if exact.metric is not None and not 0 <= exact.metric <= largest:
        raise ReplyRefusedError(f"The metric {exact.metric:.3g} lies outside [0, {largest:g}].")


def _check_addressed(reply: TrainReply | EvaluateReply, study: Study, round_number: int, site: str) -> None:
    if (reply.site, reply.study_hash, reply.round_number) != (site, study.hash, round_number):
        raise ReplyRefusedError(f"The reply is of {reply.site}, round {reply.round_number}, or of another study.")
