"""The hospital's Flower ClientApp: train, evaluate, and describe (a query)."""

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from echofed.client import forgotten
from echofed.client.flower_messages import description_message, evaluation_message, refusal_message, update_message
from echofed.client.participation import Participation
from echofed.client.policy import load_policy
from echofed.client.releases import Releases
from echofed.client.site import open_site
from echofed.learning.models import StudyModel, build_model, load_parameters
from echofed.protocol.arrays import Parameters
from echofed.protocol.errors import EchoFedError, PrivacyError, StudyError, UnexpectedError, WireError
from echofed.protocol.flower_records import content_bytes, content_from, read_document, read_parameters
from echofed.protocol.messages import Instruction
from echofed.protocol.study import Study
from echofed.protocol.study_folder import read_study_folder

LOG = logging.getLogger("echofed.client")
MAX_MODEL_BYTES = 2 * 2**30
Answer = Callable[[Message, Participation, Instruction], Message]
Release = Callable[[Releases, Instruction, bytes, Callable[[], bytes]], bytes]


def make_client_app(study_folder: Path, site_folders: Sequence[Path], seed: int | None) -> ClientApp:
    """Return a ClientApp that takes part in one study.

    Args:
        study_folder: holds the study and its initial parameters (`echofed.protocol.study_folder`).
        site_folders: state folders of the sites; a node is the site at its `partition-id`, the only one if it has none.
        seed: for simulations only, which keep no ledger; None in a hospital.
    """
    app = ClientApp()

    def answering(kind: str, answer: Answer, release: Release) -> Callable[[Message, Context], Message]:
        def respond(message: Message, context: Context) -> Message:
            folder = site_folders[int(context.node_config.get("partition-id", 0))]
            try:
                participation = _participation(study_folder, folder, seed, forgotten.stamp(folder))
                instruction = read_document(message.content, Instruction)
                if instruction.study_hash != participation.study.hash:
                    raise WireError("The instruction is for a study this site has not approved.", "Nothing was run.")
                if instruction.kind != kind:
                    raise WireError(f"A message to {kind} asks to {instruction.kind}.", "Nothing was run.")
                if seed is not None:
                    return answer(message, participation, instruction)
                released = release(
                    Releases(participation),
                    instruction,
                    content_bytes(message.content),
                    lambda: content_bytes(answer(message, participation, instruction).content),
                )
                return Message(content_from(released), reply_to=message)
            except (WireError, StudyError, PrivacyError) as error:
                LOG.warning("%s", error)
                return refusal_message(message, error)
            except EchoFedError as error:
                LOG.warning("%s", error)
                # What is wrong with data may be what is wrong with one patient's: a hospital says that something is.
                return refusal_message(message, error if seed is not None else UnexpectedError("See above."))
            except Exception:
                # Flower would send the exception's text to the coordinator; it may name files or quote data.
                LOG.exception("An error nobody expected")
                return refusal_message(message, UnexpectedError("An error nobody expected."))

        return respond

    app.train()(answering("train", _train, lambda out, asked, *rest: out.train(asked.round_number, *rest)))
    app.evaluate()(answering("evaluate", _evaluate, lambda out, asked, *rest: out.figures(asked.round_number, *rest)))
    app.query()(answering("describe", _describe, lambda out, asked, *rest: out.describe(*rest)))
    return app


@lru_cache(maxsize=1024)
def _participation(
    study_folder: Path, site_folder: Path, seed: int | None, forgotten_stamp: tuple[int, int]
) -> Participation:
    # The stamp is a key of the cache only: whoever was forgotten takes no part in the next round.
    study, model, initial, metadata = _model(study_folder)
    minimum = 1 if seed is not None else load_policy(site_folder).minimum_patients
    return Participation(study, model, initial, metadata, open_site(site_folder), seed, minimum_patients=minimum)


@lru_cache(maxsize=1)
def _model(study_folder: Path) -> tuple[Study, StudyModel, Parameters, dict[str, str]]:
    study, initial, metadata = read_study_folder(study_folder)
    model = build_model(study)
    load_parameters(model, initial)
    return study, model, initial, metadata


def _train(message: Message, participation: Participation, instruction: Instruction) -> Message:
    shared = read_parameters(message.content, MAX_MODEL_BYTES)
    trained = participation.train(shared, instruction.round_number)
    return update_message(
        message,
        participation.study,
        participation.site.name,
        instruction,
        trained.update,
        patients=trained.patients,
        training_loss=trained.loss,
        spent=trained.spent,
        seconds=trained.seconds,
    )


def _evaluate(message: Message, participation: Participation, instruction: Instruction) -> Message:
    shared = read_parameters(message.content, MAX_MODEL_BYTES)
    figures = participation.figures(shared, instruction.round_number)
    return evaluation_message(message, participation.study, participation.site.name, instruction, figures)


def _describe(message: Message, participation: Participation, instruction: Instruction) -> Message:
    return description_message(
        message, participation.study, participation.site.name, instruction, participation.describe()
    )
