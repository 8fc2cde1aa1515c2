"""Signatures: each stands for one document and one purpose, and nothing that was touched is accepted."""

import base64
import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from echofed.protocol.document import Document
from echofed.protocol.errors import SignatureError
from echofed.protocol.signing import (
    MAX_PAYLOAD_BYTES,
    MAX_SIGNED_BYTES,
    PURPOSES,
    Purpose,
    Signed,
    digest,
    key_id,
    read_signed,
    sign,
    verify,
)


class Letter(Document):
    """A document to sign."""

    text: str
    number: int = 0


class Note(Document):
    """Another kind of document."""

    line: str


KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key()
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
LETTER = Letter(text="écho", number=7)


def test_golden_vector() -> None:
    # Made with `openssl pkeyutl -sign -rawin` over 'echofed answer 1\n{"number":7,"text":"écho"}'; the digest with sha256sum.
    signed = sign(KEY, "answer", LETTER)
    assert signed.payload == '{"number":7,"text":"écho"}'
    assert signed.signer == "56475aa75463474c0285df5dbf2bcab73da651358839e9b77481b2eab107708c"
    assert (
        signed.signature == "GIa1S4gQ0+DcsFwqXs3XbDR5PEPdjHK86edyI77OBrddpWGegsQLOv9ejeFYXJWiCEZpdyMqhtc7qaA6v/yDCg=="
    )
    assert digest(signed) == "47402f50153b03f2a6ff2dfb2f03edf05d97ebcc69dec50edf839eab35de7024"


@pytest.mark.parametrize("purpose", PURPOSES)
def test_what_was_signed_comes_back(purpose: Purpose) -> None:
    signed = sign(KEY, purpose, LETTER)
    assert verify(read_signed(signed.model_dump_json()), PUBLIC, purpose, Letter) == LETTER
    assert signed.signer == key_id(PUBLIC) != key_id(OTHER.public_key())


@pytest.mark.parametrize(("signed_for", "used_for"), [*itertools.permutations(PURPOSES, 2)])
def test_no_signature_serves_another_purpose(signed_for: Purpose, used_for: Purpose) -> None:
    signed = sign(KEY, signed_for, LETTER)
    with pytest.raises(SignatureError):
        verify(signed, PUBLIC, used_for, Letter)
    with pytest.raises(SignatureError, match="changed after signing"):
        verify(signed.model_copy(update={"purpose": used_for}), PUBLIC, used_for, Letter)


@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    written = sign(KEY, "publication", LETTER).model_dump_json().encode()
    position = data.draw(st.integers(0, len(written) - 1))
    changed = bytearray(written)
    changed[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SignatureError):
        verify(read_signed(bytes(changed)), PUBLIC, "publication", Letter)


@given(text=st.text(), number=st.integers())
def test_any_document_can_be_signed(text: str, number: int) -> None:
    letter = Letter(text=text, number=number)
    assert verify(sign(KEY, "reply", letter), PUBLIC, "reply", Letter) == letter


def test_the_signer_must_be_the_one_expected() -> None:
    signed = sign(OTHER, "answer", LETTER)
    with pytest.raises(SignatureError, match="another key"):
        verify(signed, PUBLIC, "answer", Letter)
    claimed = signed.model_copy(update={"signer": key_id(PUBLIC)})
    with pytest.raises(SignatureError, match="changed after signing"):
        verify(claimed, PUBLIC, "answer", Letter)


def test_a_signature_has_one_spelling() -> None:
    signed = sign(KEY, "answer", LETTER)
    assert signed.signature.endswith("==")
    # The last character before the padding has bits that mean nothing.
    last = signed.signature[-3]
    twins = [other for other in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" if other != last]
    same = [
        spelling
        for other in twins
        if base64.b64decode(spelling := signed.signature[:-3] + other + "==") == base64.b64decode(signed.signature)
    ]
    assert len(same) == 15
    for spelling in [*same, signed.signature[:-2], signed.signature[:-1], "", "é" * 88]:
        with pytest.raises(SignatureError):
            verify(signed.model_copy(update={"signature": spelling}), PUBLIC, "answer", Letter)


@pytest.mark.parametrize(
    "payload",
    ['{"text":"a", "number":0}', '{"text":"a","number":0}', '{"number":0,"number":0,"text":"a"}', '{"text":"b"}'],
)
def test_only_canonical_json_of_the_kind_is_accepted(payload: str) -> None:
    signature = base64.b64encode(KEY.sign(b"echofed answer 1\n" + payload.encode())).decode()
    signed = Signed(purpose="answer", signer=key_id(PUBLIC), payload=payload, signature=signature)
    if payload == '{"text":"b"}':  # canonical; a field with a default may be left out
        assert verify(signed, PUBLIC, "answer", Letter) == Letter(text="b")
    else:
        with pytest.raises(SignatureError, match="spelling"):
            verify(signed, PUBLIC, "answer", Letter)
    with pytest.raises(SignatureError, match="not a answer"):
        verify(signed, PUBLIC, "answer", Note)


def test_what_is_too_large_is_neither_signed_nor_read() -> None:
    fits = Letter(text="x" * (MAX_PAYLOAD_BYTES - len('{"number":0,"text":""}')))
    signed = sign(KEY, "answer", fits)
    assert verify(read_signed(signed.model_dump_json()), PUBLIC, "answer", Letter) == fits
    with pytest.raises(SignatureError, match="at most"):
        sign(KEY, "answer", Letter(text=fits.text + "x"))
    with pytest.raises(SignatureError, match="at most"):
        read_signed(b" " * (MAX_SIGNED_BYTES + 1))
    with pytest.raises(ValidationError):
        Signed.model_validate({**signed.model_dump(), "payload": signed.payload + "x"})


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"purpose":"answer"}'])
def test_what_is_not_signed_is_refused(content: bytes) -> None:
    with pytest.raises(SignatureError, match="not a document signed"):
        read_signed(content)


def test_the_digest_names_purpose_and_content_but_not_the_signer() -> None:
    signed = sign(KEY, "answer", LETTER)
    assert digest(signed) == digest(sign(OTHER, "answer", LETTER))
    others = [sign(KEY, "reply", LETTER), sign(KEY, "answer", Letter(text="echo", number=7))]
    assert digest(signed) not in {digest(other) for other in others}
