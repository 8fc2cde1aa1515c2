"""Every message that leaves a site is built here, from the allow-list in `echofed.protocol.messages`."""

from collections.abc import Mapping

from flwr.app import Message

from echofed.client.splits import Split
from echofed.protocol.arrays import Parameters
from echofed.protocol.errors import EchoFedError
from echofed.protocol.flower_records import content, error_reply, parameters_record
from echofed.protocol.messages import (
    DescribeReply,
    EvaluateReply,
    ExactFigures,
    Instruction,
    NoisyFigures,
    SpentPrivacy,
    TrainReply,
)
from echofed.protocol.study import Study


def update_message(
    reply_to: Message,
    study: Study,
    site: str,
    instruction: Instruction,
    update: Parameters,
    *,
    patients: int,
    training_loss: float | None,
    spent: SpentPrivacy | None,
    seconds: float,
) -> Message:
    """Return the reply that carries an update.

    The number of patients leaves only if the study weights by patients; the training loss and the time it took, which depend
    on who was drawn, only without privacy.
    """
    reply = TrainReply(
        site=site,
        study_hash=study.hash,
        round_number=instruction.round_number,
        patients=None if study.strategy.weighting == "uniform" else patients,
        training_loss=None if study.is_private else training_loss,
        spent=spent,
        seconds=None if study.is_private else seconds,
    )
    return Message(content(reply, parameters_record(update)), reply_to=reply_to)


def evaluation_message(
    reply_to: Message, study: Study, site: str, instruction: Instruction, figures: ExactFigures | NoisyFigures | None
) -> Message:
    """Return the reply that says how the global model does on the site's validation patients, or that this is not said."""
    reply = EvaluateReply(
        site=site,
        study_hash=study.hash,
        round_number=instruction.round_number,
        exact=figures if isinstance(figures, ExactFigures) else None,
        noisy=figures if isinstance(figures, NoisyFigures) else None,
    )
    return Message(content(reply), reply_to=reply_to)


def description_message(
    reply_to: Message, study: Study, site: str, instruction: Instruction, patients: Mapping[Split, int] | None
) -> Message:
    """Return the reply that says whether the site can train, and what it says of its number of patients by split."""
    said = patients or {}
    reply = DescribeReply(
        site=site,
        study_hash=study.hash,
        round_number=instruction.round_number,
        can_train=patients is not None,
        training_patients=said.get("training"),
        validation_patients=said.get("validation"),
        test_patients=said.get("test"),
    )
    return Message(content(reply), reply_to=reply_to)


def refusal_message(reply_to: Message, error: EchoFedError) -> Message:
    """Return the reply that says why the site could not answer: the error's code and sentence, no traceback."""
    return error_reply(error, reply_to)
