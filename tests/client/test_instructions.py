"""Which instructions a site follows: its coordinator's, for itself, now, in order."""

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from echofed.client.instructions import ROUND_FILE, check_order, read_instruction
from echofed.protocol.errors import ClockError, EchoFedError, ReplayError, SignatureError, StateFolderError
from echofed.protocol.messages import Instruction
from echofed.protocol.seals import InstructionSeal, ReplySeal
from echofed.protocol.signing import Signed, sign

KEY, OTHER_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
CONSORTIUM, STUDY = "c" * 64, "5" * 64
HEAD = {"log_id": "0" * 32, "entries": 0, "hash": "0" * 64}
MINUTE = timedelta(minutes=1)


def document(**changes: Any) -> str:
    return Instruction(**{"kind": "train", "study_hash": STUDY, "round_number": 2, **changes}).model_dump_json()


def fields(said: str, **changes: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "consortium": CONSORTIUM,
        "site": "north",
        "study_hash": STUDY,
        "round_number": 2,
        "kind": "train",
        "document": hashlib.sha256(said.encode()).hexdigest(),
        "parameters": None,
        "issued_at": now.isoformat(timespec="seconds"),
        "expires_at": (now + MINUTE).isoformat(timespec="seconds"),
        "log_head": HEAD,
        **changes,
    }


def sealed(said: str, key: Ed25519PrivateKey = KEY, **changes: Any) -> Signed:
    return sign(key, "instruction", InstructionSeal.model_validate(fields(said, **changes)))


def read(signed: Signed, said: str, kind: str = "train") -> InstructionSeal:
    return read_instruction(signed, said, kind, consortium=CONSORTIUM, site="north", coordinator=KEY.public_key())


def at(offset: timedelta) -> str:
    return (datetime.now(UTC) + offset).isoformat(timespec="seconds")


def test_an_instruction_of_our_coordinator_for_us_is_followed() -> None:
    seal = read(sealed(document()), document())
    assert (seal.site, seal.study_hash, seal.round_number, seal.kind) == ("north", STUDY, 2, "train")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"consortium": "d" * 64}, ReplayError),
        ({"site": "south"}, ReplayError),
        ({"study_hash": "6" * 64}, ReplayError),
        ({"round_number": 3}, ReplayError),
        ({"kind": "evaluate"}, ReplayError),
        ({"document": "0" * 64}, ReplayError),
        ({"issued_at": at(-660 * MINUTE), "expires_at": at(-600 * MINUTE)}, ReplayError),
        ({"issued_at": at(600 * MINUTE), "expires_at": at(660 * MINUTE)}, ClockError),
    ],
)
def test_one_that_was_meant_otherwise_is_refused(changes: dict[str, Any], error: type[EchoFedError]) -> None:
    with pytest.raises(error):
        read(sealed(document(), **changes), document())


def test_clocks_may_differ_by_minutes() -> None:
    for changes in (
        {"issued_at": at(-5 * MINUTE), "expires_at": at(-4 * MINUTE)},
        {"issued_at": at(4 * MINUTE), "expires_at": at(5 * MINUTE)},
    ):
        assert read(sealed(document(), **changes), document()).round_number == 2


def test_every_byte_of_document_and_seal_counts() -> None:
    said = document()
    signed = sealed(said)
    for place in range(len(said)):
        changed = said[:place] + chr(ord(said[place]) ^ 1) + said[place + 1 :]
        with pytest.raises(ReplayError):
            read(signed, changed)
    for place in range(len(signed.payload)):
        changed = signed.payload[:place] + chr(ord(signed.payload[place]) ^ 1) + signed.payload[place + 1 :]
        with pytest.raises(SignatureError):
            read(signed.model_copy(update={"payload": changed}), said)


def test_only_the_coordinators_word_for_this_purpose_counts() -> None:
    said = document()
    with pytest.raises(SignatureError, match="another key"):
        read(sealed(said, OTHER_KEY), said)
    # Who claims to be the coordinator still cannot sign for it.
    with pytest.raises(SignatureError, match="does not fit"):
        read(sealed(said, OTHER_KEY).model_copy(update={"signer": sealed(said).signer}), said)
    for purpose in ("publication", "reply"):
        seal = InstructionSeal.model_validate(fields(said))
        signed = sign(KEY, purpose, seal)  # type: ignore[arg-type]
        with pytest.raises(SignatureError, match="not as 'instruction'"):
            read(signed, said)
        with pytest.raises(SignatureError, match="does not fit"):
            read(signed.model_copy(update={"purpose": "instruction"}), said)


def test_a_signed_document_of_another_kind_is_none() -> None:
    said = document()
    reply = fields(said) | {"instruction": "0" * 64, "ledger_head": None}
    for name in ("issued_at", "expires_at"):
        del reply[name]
    with pytest.raises(SignatureError):
        read(sign(KEY, "instruction", ReplySeal.model_validate(reply)), said)


def test_times_that_are_none_are_refused_and_do_not_stop_the_node() -> None:
    said = document()
    for time in ("yesterday", "", "2026-01-01T00:00:00"):
        seal = InstructionSeal.model_validate(fields(said)).model_copy(update={"expires_at": time})
        with pytest.raises(SignatureError):
            read(sign(KEY, "instruction", seal), said)


@pytest.mark.parametrize("said", ["", "{}", "null", '{"kind": "train"}', document()[:-1] + ', "more": 1}'])
def test_a_signed_seal_over_what_is_no_instruction_is_refused(said: str) -> None:
    with pytest.raises(ReplayError, match="agreed form"):
        read(sealed(said), said)


def test_a_message_of_another_kind_than_its_instruction_is_refused() -> None:
    with pytest.raises(ReplayError, match="A message to evaluate carries an instruction to train"):
        read(sealed(document()), document(), "evaluate")


def test_rounds_go_forward_only_whatever_process_asks(tmp_path: Path) -> None:
    for round_number in (1, 1, 2, 5, 5):
        check_order(tmp_path, round_number)
    for round_number in (1, 4):
        with pytest.raises(ReplayError, match=f"Round {round_number} is asked for after round 5"):
            check_order(tmp_path, round_number)
    check_order(tmp_path, 6)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"round_number": "x"}', b"{}", b"\xff\xfe"])
def test_a_damaged_note_of_the_last_round_stops_the_study(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ROUND_FILE).write_bytes(content)
    with pytest.raises(StateFolderError, match="damaged"):
        check_order(tmp_path, 9)
    assert (tmp_path / ROUND_FILE).read_bytes() == content


def test_a_note_that_cannot_be_written_stops_the_round(tmp_path: Path) -> None:
    with pytest.raises(StateFolderError):
        check_order(tmp_path / "gone", 1)
