"""The key of an encrypted frame store, and sealing what is written there.

`store.key` in the store's folder says that the store is encrypted and how its key is found: in the system's keyring, or in that
file, sealed with a passphrase. The key itself is 32 random bytes; each file is sealed with AES-256-GCM under a nonce of its own,
bound to its name, so that no file passes for another.
"""

import base64
import hmac
import importlib
import secrets
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import Field, ValidationError

from echofed.client.ingest.errors import FrameStoreError
from echofed.protocol.document import Document, canonical_json
from echofed.protocol.errors import KeyFileError
from echofed.protocol.key_files import find_passphrase, new_passphrase, read_private_file, write_private_file

KEY_FILE = "store.key"
KEY_BYTES = 32
MAGIC = b"EchoFed sealed 1"

Place = Literal["keyring", "passphrase"]

_NONCE_BYTES = 12
_SERVICE = "echofed frame store"
_SCRYPT_COST = 2**16
_DOMAIN = b"echofed sealed file 1\0"


class _KeyFile(Document):
    version: Literal[1] = 1
    place: Place
    store_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    check: str = Field(pattern=r"^[0-9a-f]{64}$", description="tells the right key from others.")
    scrypt_cost: int = Field(default=_SCRYPT_COST, ge=2**14, le=2**20)
    salt: str = Field(default="", pattern=r"^([0-9a-f]{32})?$")
    sealed_key: str = Field(default="", max_length=400, description="base64; empty if the key is in the keyring.")


def make_store_key(folder: Path, place: Place) -> bytes:
    """Make a store's key and note in its folder where it is; from then on the store is encrypted.

    Args:
        folder: of the store; exists and holds no key yet.
        place: "keyring" or "passphrase"; that is taken from the environment or, on a terminal, typed twice.

    Returns:
        32 bytes.

    Raises:
        FrameStoreError: the store has a key, or the disk cannot be written.
        KeyFileError: there is no passphrase, no keyring, or the keyring refuses.
    """
    path = folder / KEY_FILE
    if path.exists():
        raise FrameStoreError(f"{folder} has a key already.", remedy="Use it, or ingest into another folder.")
    key, store_id = secrets.token_bytes(KEY_BYTES), secrets.token_hex(16)
    noted = _KeyFile(place=place, store_id=store_id, check=_check(key))
    if place == "keyring":
        _ask_keyring(lambda ring: ring.set_password(_SERVICE, store_id, base64.b64encode(key).decode()))
    else:
        given = new_passphrase(ask=True) or ""
        salt = secrets.token_bytes(16)
        sealed = seal(_derive(given, salt, noted.scrypt_cost), key, store_id)
        noted = noted.model_copy(update={"salt": salt.hex(), "sealed_key": base64.b64encode(sealed).decode()})
    try:
        write_private_file(path, canonical_json(noted.model_dump()) + b"\n")
    except OSError as error:
        raise FrameStoreError(f"{path} cannot be written: {error.strerror}.") from error
    return key


def is_encrypted(folder: Path) -> bool:
    """Return whether a store is encrypted."""
    return (folder / KEY_FILE).exists()


def store_key(folder: Path) -> bytes | None:
    """Return a store's key, None if the store is not encrypted; a process asks for it once.

    Raises:
        KeyFileError: the key file is damaged or open to others, the passphrase is missing or wrong, or the keyring does not
            give the key.
    """
    path = folder / KEY_FILE
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return _opened_key(path, status.st_ino, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _opened_key(path: Path, inode: int, modified_ns: int) -> bytes:
    try:
        noted = _KeyFile.model_validate_json(read_private_file(path))
    except ValidationError as error:
        raise KeyFileError(
            f"{path} is damaged.", "Restore it from a backup: without it no frame can be read."
        ) from error
    key = _from_keyring(noted, path) if noted.place == "keyring" else _from_passphrase(noted, path)
    if not hmac.compare_digest(_check(key), noted.check):
        raise KeyFileError(
            f"The key that was found is not the one of {path}.", "Restore the key and its file together."
        )
    return key


def _from_passphrase(noted: _KeyFile, path: Path) -> bytes:
    try:
        derived = _derive(find_passphrase(path), bytes.fromhex(noted.salt), noted.scrypt_cost)
        return unseal(derived, base64.b64decode(noted.sealed_key, validate=True), noted.store_id)
    except (FrameStoreError, ValueError) as error:
        raise KeyFileError(f"The passphrase does not open {path}, or the file is damaged.") from error


def _from_keyring(noted: _KeyFile, path: Path) -> bytes:
    text = _ask_keyring(lambda ring: ring.get_password(_SERVICE, noted.store_id))
    try:
        return base64.b64decode(text or "", validate=True)
    except ValueError as error:
        raise KeyFileError(f"The system's keyring holds no sound key for {path}.") from error


def _ask_keyring(ask: Callable[[Any], str | None]) -> str | None:
    try:
        ring = importlib.import_module("keyring")
    except ImportError as error:
        remedy = "Install the Python package keyring, or protect the store with a passphrase."
        raise KeyFileError("There is no access to the system's keyring.", remedy) from error
    try:
        return ask(ring)
    except Exception as error:  # its backends raise what they like
        remedy = "Unlock the keyring, or protect the store with a passphrase."
        raise KeyFileError(f"The system's keyring refuses: {type(error).__name__}.", remedy) from error


def _derive(passphrase: str, salt: bytes, cost: int) -> bytes:
    """Return a key from a passphrase; Percival (2009), scrypt, with blocks of 1 KiB and 64 MiB in all."""
    return Scrypt(salt=salt, length=KEY_BYTES, n=cost, r=8, p=1).derive(passphrase.encode())


def _check(key: bytes) -> str:
    return hmac.new(key, b"echofed store key 1", "sha256").hexdigest()


def seal(key: bytes, content: bytes, name: str) -> bytes:
    """Return content that only the key opens and that only opens under this name.

    Nonces are random; NIST SP 800-38D allows 2^32 of them under one key.

    Args:
        key: 32 bytes.
        content: any bytes.
        name: what it is; not kept.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return MAGIC + nonce + AESGCM(key).encrypt(nonce, content, _DOMAIN + name.encode())


def unseal(key: bytes, sealed: bytes, name: str) -> bytes:
    """Return what `seal` was given.

    Raises:
        FrameStoreError: it was not sealed, was sealed with another key or under another name, or is damaged.
    """
    if not is_sealed(sealed):
        raise FrameStoreError(f"{name} is not encrypted, in a store that is.")
    start = len(MAGIC) + _NONCE_BYTES
    try:
        return AESGCM(key).decrypt(sealed[len(MAGIC) : start], sealed[start:], _DOMAIN + name.encode())
    except (InvalidTag, ValueError) as error:
        raise FrameStoreError(f"{name} is damaged, of another store or of another key.") from error


def is_sealed(content: bytes) -> bool:
    """Return whether some bytes are what `seal` returns."""
    return content[: len(MAGIC)] == MAGIC
