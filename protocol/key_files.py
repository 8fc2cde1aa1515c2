"""Private keys on disk: readable by their owner alone, encrypted if a passphrase is set, whole or not there."""

import getpass
import os
import stat
import sys
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from echofed.protocol.durable import replace_file
from echofed.protocol.errors import KeyFileError

PASSPHRASE_VARIABLE = "ECHOFED_PASSPHRASE"  # noqa: S105 (its name, not its content)
MAX_KEY_FILE_BYTES = 64 * 2**10

_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"

PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey


def new_tls_key() -> EllipticCurvePrivateKey:
    """Return a new P-256 key, for TLS and for certificate authorities."""
    return generate_private_key(SECP256R1())


def key_pem(key: PrivateKey, passphrase: str | None) -> bytes:
    """Return a private key as PKCS #8 PEM, encrypted if there is a passphrase."""
    encryption = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def write_key(path: Path, key: PrivateKey, passphrase: str | None) -> None:
    """Write a private key so that nobody but its owner can ever read it and a reader sees all of it or none."""
    write_private_file(path, key_pem(key, passphrase))


def write_private_file(path: Path, content: bytes) -> None:
    """Write a file of mode 0600, for its owner alone at every instant; otherwise as `replace_file`."""
    replace_file(path, content, mode=0o600)


def read_tls_key(path: Path, passphrase: str | None = None) -> EllipticCurvePrivateKey:
    """Return the P-256 key in a PEM file, which may hold certificates after it.

    Args:
        path: the file.
        passphrase: if the key is encrypted; None: from the environment or, on a terminal, typed.

    Raises:
        KeyFileError: there is no such file, others may read it, it is too large, holds no key or one of another kind,
            or the passphrase is wrong or missing.
    """
    key = _read(path, passphrase)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise KeyFileError(f"The key in {path} is not of the kind that is used there.")
    return key


def read_signing_key(path: Path, passphrase: str | None = None) -> Ed25519PrivateKey:
    """Return the Ed25519 key in a PEM file; arguments and errors as `read_tls_key`."""
    key = _read(path, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"The key in {path} is not of the kind that is used there.")
    return key


def _read(path: Path, passphrase: str | None) -> object:
    content = read_private_file(path)
    encrypted = _ENCRYPTED in content
    password = (passphrase or find_passphrase(path)).encode() if encrypted else None
    try:
        return serialization.load_pem_private_key(content, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise KeyFileError(f"The passphrase does not open {path}, or the file is damaged.") from error
        raise KeyFileError(f"{path} holds no private key, or is damaged.") from error


def read_private_file(path: Path) -> bytes:
    """Return the content of a file that only its owner can read.

    Raises:
        KeyFileError: there is no such file, it is not a plain file, others may read it, or it is too large.
    """
    try:
        # Not blocking: a pipe laid in place of the file would be waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{path} is not a plain file.")
            if status.st_mode & 0o077:
                what = f"{path} can be read by others than its owner (mode {status.st_mode & 0o777:04o})."
                raise KeyFileError(what, f"Run `chmod 600 {path}`; if others may have read it, enrol with new keys.")
            content = stream.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"The key file {path} cannot be read: {error.strerror}.") from error
    if len(content) > MAX_KEY_FILE_BYTES:
        raise KeyFileError(f"{path} is too large to be a key file.")
    return content


def is_encrypted(path: Path) -> bool:
    """Return whether a key file asks for a passphrase; raises as `read_private_file`."""
    return _ENCRYPTED in read_private_file(path)


def find_passphrase(path: Path) -> str:
    """Return the passphrase from the environment or, on a terminal, typed without being shown.

    Raises:
        KeyFileError: there is neither.
    """
    if given := os.environ.get(PASSPHRASE_VARIABLE):
        return given
    if sys.stdin.isatty() and (typed := getpass.getpass(f"Passphrase of {path}: ")):
        return typed
    raise KeyFileError(f"{path} is encrypted.", f"Set {PASSPHRASE_VARIABLE}, or run the command on a terminal.")


def new_passphrase(*, ask: bool) -> str | None:
    """Return the passphrase for keys about to be made: from the environment, else typed twice if asked for, else none.

    Raises:
        KeyFileError: it is to be asked for but there is no terminal, or what was typed is empty or differs.
    """
    if given := os.environ.get(PASSPHRASE_VARIABLE):
        return given
    if not ask:
        return None
    if not sys.stdin.isatty():
        raise KeyFileError("There is no terminal to type a passphrase on.", f"Set {PASSPHRASE_VARIABLE}.")
    typed = getpass.getpass("New passphrase for the private keys: ")
    if not typed or typed != getpass.getpass("The same again: "):
        raise KeyFileError("The passphrase is empty, or the two differ.", "Run the command again.")
    return typed
