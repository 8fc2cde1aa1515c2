"""Who trains and who tests: a keyed hash of each patient's id decides once and for all."""

import contextlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path
from typing import Literal

from echofed.protocol.errors import RegistrationError
from echofed.protocol.study import Evaluation

KEY_BYTES = 32
KEY_FILE = "split.key"

Split = Literal["training", "validation", "test"]
SPLITS: tuple[Split, ...] = ("training", "validation", "test")


def split_of(patient: str, key: bytes, evaluation: Evaluation) -> Split:
    """Return the split a patient belongs to.

    It depends on the patient's id, the site's key and the study's fractions only, so adding data moves nobody, and
    nobody without the key can tell where a patient went. Fractions hold on average: with few patients they vary.

    Args:
        patient: the site's own id.
        key: the site's secret, 32 bytes.
        evaluation: the study's fractions.
    """
    position = int.from_bytes(keyed_hash(key, "split", patient)[:8], "big") / 2**64
    if position < evaluation.test_fraction:
        return "test"
    if position < evaluation.test_fraction + evaluation.validation_fraction:
        return "validation"
    return "training"


def keyed_hash(key: bytes, purpose: str, text: str) -> bytes:
    """Return HMAC-SHA256 of a text, 32 bytes; hashes for different purposes have nothing in common."""
    return hmac.digest(key, f"{purpose}\0{text}".encode(), "sha256")


def keep_split_key(state_folder: Path, key: bytes | None = None) -> bytes:
    """Return the site's key, making it on first use.

    The key's file is only readable by its owner and either holds a whole key or does not exist.

    Args:
        state_folder: the site's state folder, which exists.
        key: 32 bytes to use, for simulations whose splits are to follow a seed; absent: from the operating system.

    Raises:
        RegistrationError: the given key is not 32 bytes or differs from the one kept, or the file is damaged.
    """
    if key is not None and len(key) != KEY_BYTES:
        raise RegistrationError(f"A split key has {KEY_BYTES} bytes, not {len(key)}.", remedy="Give another key.")
    path = state_folder / KEY_FILE
    if not path.exists():
        _write_once(path, key or secrets.token_bytes(KEY_BYTES))
    kept = read_split_key(state_folder)
    if key is not None and key != kept:
        raise RegistrationError(
            f"{state_folder} was split with another key.", remedy="Use a new state folder, or the same key."
        )
    return kept


def read_split_key(state_folder: Path) -> bytes:
    """Return the key of a site that has one; another would move patients between training, validation and test.

    Raises:
        RegistrationError: it is gone or damaged.
    """
    path = state_folder / KEY_FILE
    kept = path.read_bytes() if path.exists() else b""
    if len(kept) != KEY_BYTES:
        raise RegistrationError(
            f"{path} is {'damaged' if path.exists() else 'gone'}.",
            remedy="Restore it from a backup: it decides who is in the test, and what each patient has spent.",
        )
    return kept


def _write_once(path: Path, content: bytes) -> None:
    """Write a file that is whole or absent; if another process was first, its file stays."""
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink()
