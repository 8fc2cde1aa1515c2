"""Replies a site keeps until they are acknowledged, so that a lost one is sent again byte for byte.

Sending the same bytes again tells nothing new; making another reply would. A later round's instruction shows that the earlier
ones have arrived or are given up.
"""

import hashlib
import re
from pathlib import Path
from typing import Literal

from echofed.protocol.durable import replace_file
from echofed.protocol.errors import LedgerError

FOLDER = "replies"
ReplyKind = Literal["train", "evaluate", "describe"]

_HEADER = "echofed reply 1"
_NAME = re.compile(r"(\d{5})-[a-z]+(\..*)?")


def keep_reply(
    state_folder: Path, study_hash: str, round_number: int, kind: ReplyKind, instruction_digest: str, reply: bytes
) -> None:
    """Keep a reply, in place of an earlier one of the same round and kind; it is on disk on return.

    Args:
        state_folder: the site's state folder.
        study_hash: 64 hexadecimal digits.
        round_number: 0 to 10,000.
        kind: what was asked.
        instruction_digest: SHA-256 of the whole instruction, parameters included, 64 hexadecimal digits.
        reply: what is sent.

    Raises:
        LedgerError: it cannot be written.
    """
    path = _path(state_folder, study_hash, round_number, kind)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.parent.parent.chmod(0o700)
        replace_file(path, _head(instruction_digest, reply) + reply, mode=0o600)
    except OSError as error:
        raise LedgerError(
            f"The reply of round {round_number} cannot be kept: {error.strerror}.",
            remedy="Free some disk space and check the permissions of the state folder.",
        ) from error


def kept_reply(
    state_folder: Path, study_hash: str, round_number: int, kind: ReplyKind, instruction_digest: str
) -> bytes | None:
    """Return the reply kept for exactly this instruction; None if there is none or its file is damaged."""
    try:
        content = _path(state_folder, study_hash, round_number, kind).read_bytes()
    except OSError:
        return None
    reply = content[len(_head(instruction_digest, b"")) :]
    return reply if content == _head(instruction_digest, reply) + reply else None


def forget_replies_before(state_folder: Path, study_hash: str, round_number: int) -> None:
    """Delete the replies to earlier rounds of a study, and what a crash left half written; safe to repeat.

    Raises:
        LedgerError: a file cannot be deleted.
    """
    folder = state_folder / FOLDER / study_hash
    try:
        for path in folder.iterdir() if folder.is_dir() else ():
            name = _NAME.fullmatch(path.name)
            if name and int(name[1]) < round_number:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise LedgerError(
            f"Old replies in {folder} cannot be deleted: {error.strerror}.",
            remedy="Check the permissions of the state folder.",
        ) from error


def _path(state_folder: Path, study_hash: str, round_number: int, kind: ReplyKind) -> Path:
    return state_folder / FOLDER / study_hash / f"{round_number:05d}-{kind}"


def _head(instruction_digest: str, reply: bytes) -> bytes:
    return f"{_HEADER}\n{instruction_digest}\n{hashlib.sha256(reply).hexdigest()}\n".encode()
