"""Whether an instruction may be followed: signed by our coordinator, for us, now, in order, for a study we have approved."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from echofed.protocol.durable import replace_file
from echofed.protocol.errors import ClockError, ReplayError, StateFolderError
from echofed.protocol.messages import Instruction
from echofed.protocol.seals import InstructionSeal
from echofed.protocol.signing import Signed, verify

ROUND_FILE = "last_round.json"
CLOCK_TOLERANCE = timedelta(minutes=5)


def read_instruction(
    signed: Signed, document: str, kind: str, *, consortium: str, site: str, coordinator: Ed25519PublicKey
) -> InstructionSeal:
    """Return what the coordinator signed, after checking that it is meant for this site, now, and for this document.

    Args:
        signed: the seal that came with the document.
        document: the instruction's JSON, as it came.
        kind: what the message asks for: train, evaluate or describe.
        consortium: the site's consortium.
        site: the site's name.
        coordinator: the coordinator's public signing key.

    Raises:
        SignatureError: the coordinator did not sign it.
        ReplayError: it is of another consortium, for another site, expired, or does not fit its document.
        ClockError: it seems to come from the future.
    """
    seal = verify(signed, coordinator, "instruction", InstructionSeal)
    if (seal.consortium, seal.site) != (consortium, site):
        raise ReplayError("The instruction is for another site or of another consortium.")
    if seal.document != hashlib.sha256(document.encode()).hexdigest():
        raise ReplayError("The instruction is not the one the coordinator signed.")
    try:
        said = Instruction.model_validate_json(document)
    except ValidationError as error:
        raise ReplayError("The instruction is not of the agreed form.") from error
    if (said.kind, said.study_hash, said.round_number) != (seal.kind, seal.study_hash, seal.round_number):
        raise ReplayError("The instruction is for another study, round or kind than its seal.")
    if seal.kind != kind:
        raise ReplayError(f"A message to {kind} carries an instruction to {seal.kind}.")
    _check_time(seal)
    return seal


def _check_time(seal: InstructionSeal) -> None:
    now = datetime.now(UTC)
    issued, expires = datetime.fromisoformat(seal.issued_at), datetime.fromisoformat(seal.expires_at)
    if now < issued - CLOCK_TOLERANCE:
        raise ClockError(f"The instruction is from {seal.issued_at}, this system's clock says {now.isoformat()[:19]}.")
    if now > expires + CLOCK_TOLERANCE:
        raise ReplayError(
            f"The instruction expired at {seal.expires_at}; this system's clock says {now.isoformat()[:19]}.",
            "Check the system's clock; if it is right, somebody has sent an old instruction again.",
        )


def check_order(study_folder: Path, round_number: int) -> None:
    """Refuse a round before the last one asked for in this study, and note this one; on disk on return.

    A repeated instruction for the same round is answered from what is kept; it tells nothing new.

    Raises:
        ReplayError: a later round has been asked for before.
        StateFolderError: the note is damaged or cannot be written.
    """
    path = study_folder / ROUND_FILE
    try:
        last = int(json.loads(path.read_text())["round_number"]) if path.exists() else 0
        if round_number > last:
            replace_file(path, json.dumps({"round_number": round_number}).encode())
    except (ValueError, KeyError, TypeError) as error:
        raise StateFolderError(f"{path} is damaged; it says which round was asked for last.") from error
    except OSError as error:
        raise StateFolderError(f"{path} cannot be used: {error.strerror}.", "Free some disk space.") from error
    if round_number < last:
        raise ReplayError(f"Round {round_number} is asked for after round {last}.")
