"""Every message that leaves a site is built here, from the allow-list in `echofed.protocol.messages`."""

from collections.abc import Mapping

from flwr.app import Message

from echofed.client.splits import Split
from echofed.protocol.arrays import Parameters
from echofed.protocol.errors import EchoFedError
from echofed.protocol.flower_records import content, error_reply, parameters_record
from echofed.protocol.messages import DescribeReply, EvaluateReply, Instruction, SpentPrivacy, TrainReply
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

    The number of patients leaves only if the study weights by patients, the training loss only without privacy: both
    would say something of single patients that no noise covers.
    """
    reply = TrainReply(
        site=site,
        study_hash=study.hash,
        round_number=instruction.round_number,
        patients=patients if study.strategy.weighting == "patients" else None,
        training_loss=None if study.is_private else training_loss,
        spent=spent,
        seconds=seconds,
    )
    return Message(content(reply, parameters_record(update)), reply_to=reply_to)


def evaluation_message(
    reply_to: Message,
    study: Study,
    site: str,
    instruction: Instruction,
    *,
    patients: int,
    loss: float | None,
    metric: float | None,
) -> Message:
    """Return the reply that says how the global model does on the site's validation patients."""
    reply = EvaluateReply(
        site=site,
        study_hash=study.hash,
        round_number=instruction.round_number,
        patients=patients,
        loss=loss,
        metric=metric,
    )
    return Message(content(reply), reply_to=reply_to)


def description_message(
    reply_to: Message, study: Study, site: str, instruction: Instruction, patients: Mapping[Split, int]
) -> Message:
    """Return the reply that says how many patients the site has for the study, by split."""
    reply = DescribeReply(
        site=site,
        study_hash=study.hash,
        round_number=instruction.round_number,
        training_patients=patients["training"],
        validation_patients=patients["validation"],
        test_patients=patients["test"],
    )
    return Message(content(reply), reply_to=reply_to)


def refusal_message(reply_to: Message, error: EchoFedError) -> Message:
    """Return the reply that says why the site could not answer: the error's code and sentence, no traceback."""
    return error_reply(error, reply_to)
