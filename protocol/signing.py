"""Signatures: every one names what it signs, so that none can stand under anything else."""

import base64
import binascii
import hashlib
import json
from typing import Literal, TypeVar, get_args

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError

from echofed.protocol.document import Document, canonical_json
from echofed.protocol.errors import SignatureError
from echofed.protocol.models import Sha256

Purpose = Literal[
    "invitation",
    "enrolment request",
    "membership",
    "renewal request",
    "publication",
    "withdrawn publication",
    "answer",
    "instruction",
    "reply",
    "log head",
]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
MAX_PAYLOAD_BYTES = 2**20
MAX_SIGNED_BYTES = 2 * MAX_PAYLOAD_BYTES + 4096
"""Of a Signed written as JSON: its payload's quotation marks are escaped."""

_SIGNATURE_CHARACTERS = 88

D = TypeVar("D", bound=Document)


class Signed(Document):
    """A document and the signature under it; worth nothing until `verify` returns it."""

    purpose: Purpose
    signer: Sha256 = Field(description="of the signer's raw Ed25519 public key; says which key to try, proves nothing.")
    payload: str = Field(max_length=MAX_PAYLOAD_BYTES, description="the document, as canonical JSON.")
    signature: str = Field(max_length=_SIGNATURE_CHARACTERS, description="base64.")


def sign(key: Ed25519PrivateKey, purpose: Purpose, document: Document) -> Signed:
    """Return a document signed for one purpose.

    Raises:
        SignatureError: the document is larger than `MAX_PAYLOAD_BYTES`.
    """
    payload = canonical_json(document.model_dump(mode="json"))
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise SignatureError(
            f"The {purpose} has {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} can be signed.",
            "Make the document smaller.",
        )
    signature = key.sign(_signed_bytes(purpose, payload))
    return Signed(
        purpose=purpose,
        signer=key_id(key.public_key()),
        payload=payload.decode(),
        signature=base64.b64encode(signature).decode(),
    )


def verify(signed: Signed, key: Ed25519PublicKey, purpose: Purpose, kind: type[D]) -> D:
    """Return the document that was signed, after checking that this key signed it for this purpose.

    Only canonical JSON is accepted, so that what was signed has one spelling.

    Args:
        signed: what arrived.
        key: of the one who must have signed.
        purpose: what it must have been signed for.
        kind: the document's class.

    Raises:
        SignatureError: signed for another purpose, by another key, changed since, or not a document of this kind.
    """
    if signed.purpose != purpose:
        raise SignatureError(f"This was signed as {signed.purpose!r}, not as {purpose!r}.")
    if signed.signer != key_id(key):
        raise SignatureError(f"The {purpose} is signed by another key than expected.")
    payload = signed.payload.encode()
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise SignatureError(f"The {purpose} has {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} are read.")
    try:
        signature = base64.b64decode(signed.signature, validate=True)
        if base64.b64encode(signature).decode() != signed.signature:
            raise SignatureError(f"The signature of the {purpose} is not spelt as it was written.")
        key.verify(signature, _signed_bytes(purpose, payload))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise SignatureError(f"The signature does not fit the {purpose}: it was changed after signing.") from error
    return _parse(payload, purpose, kind)


def read_signed(content: bytes | str) -> Signed:
    """Return a Signed from its JSON; who signed it is not checked.

    Raises:
        SignatureError: it is larger than `MAX_SIGNED_BYTES`, or not a signed document.
    """
    if len(content) > MAX_SIGNED_BYTES:
        raise SignatureError(f"A signed document has at most {MAX_SIGNED_BYTES} bytes; this has {len(content)}.")
    try:
        return Signed.model_validate_json(content)
    except ValidationError as error:
        raise SignatureError("This is not a document signed with EchoFed, or it is damaged.") from error


def key_id(public_key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a raw public key, 64 hexadecimal digits."""
    return hashlib.sha256(public_key.public_bytes_raw()).hexdigest()


def digest(signed: Signed) -> str:
    """Return the SHA-256 of what is signed (purpose and payload), 64 hexadecimal digits; who signs does not change it."""
    return hashlib.sha256(_signed_bytes(signed.purpose, signed.payload.encode())).hexdigest()


def _signed_bytes(purpose: Purpose, payload: bytes) -> bytes:
    return b"echofed " + purpose.encode() + b" 1\n" + payload


def _parse(payload: bytes, purpose: Purpose, kind: type[D]) -> D:
    try:
        document = kind.model_validate_json(payload)
        canonical = canonical_json(json.loads(payload))
    except (ValidationError, ValueError) as error:
        raise SignatureError(f"What was signed is not a {purpose} this version knows.", "Upgrade EchoFed.") from error
    if canonical != payload:
        raise SignatureError(f"The {purpose} is not written in the one agreed spelling.")
    return document
