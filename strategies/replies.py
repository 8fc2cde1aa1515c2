"""What makes a reply acceptable; whatever does not is refused, counted and named."""

import math
from collections.abc import Mapping

import numpy as np
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from echofed.protocol.arrays import Parameters, check_shapes
from echofed.protocol.errors import ReplyRefusedError
from echofed.protocol.figures import figure_count
from echofed.protocol.flower_records import read_document, read_parameters
from echofed.protocol.messages import EvaluateReply, TrainReply
from echofed.protocol.study import Study
from echofed.strategies.aggregation import norm

HEADER_ALLOWANCE_BYTES = 1 << 20


def read_train_reply(
    message: Message, study: Study, round_number: int, site: str, template: Mapping[str, NDArray[np.float32]]
) -> tuple[TrainReply, Parameters]:
    """Return what a site sent after training, checked.

    Args:
        message: the site's reply.
        study: what was agreed.
        round_number: the round asked for, 1-based.
        site: the name of the site asked.
        template: global parameters; names and shapes must match exactly.

    Raises:
        EchoFedError: the site answered with an error, another site, study or round, another set of arrays, NaN, or an
            update larger than the study allows.
    """
    reply = read_document(_records(message), TrainReply)
    _check_addressed(reply, study, round_number, site)
    if (reply.patients is None) != (study.strategy.weighting == "uniform") or reply.patients == 0:
        raise ReplyRefusedError("The number of patients is not as the study's weighting asks.")
    if study.is_private and (reply.spent is None or reply.training_loss is not None):
        raise ReplyRefusedError("The study is private, the reply is not.")
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
    return reply


def _records(message: Message) -> RecordDict:
    if message.has_error():
        raise ReplyRefusedError(f"The site could not answer: {(message.error.reason or 'no reason given')[:300]}.")
    return message.content


def _check_addressed(reply: TrainReply | EvaluateReply, study: Study, round_number: int, site: str) -> None:
    if (reply.site, reply.study_hash, reply.round_number) != (site, study.hash, round_number):
        raise ReplyRefusedError(f"The reply is of {reply.site}, round {reply.round_number}, or of another study.")
