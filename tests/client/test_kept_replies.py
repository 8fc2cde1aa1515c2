"""A kept reply is sent again byte for byte, for the same instruction only."""

import resource
from pathlib import Path

import pytest

from echofed.client.kept_replies import FOLDER, forget_replies_before, keep_reply, kept_reply
from echofed.protocol.errors import LedgerError

STUDY, OTHER = "a" * 64, "b" * 64
ASKED, ASKED_OTHERWISE = "1" * 64, "2" * 64
REPLY = bytes(range(256)) * 20


def test_a_reply_comes_back_for_the_same_instruction_only(tmp_path: Path) -> None:
    keep_reply(tmp_path, STUDY, 3, "train", ASKED, REPLY)
    assert kept_reply(tmp_path, STUDY, 3, "train", ASKED) == REPLY
    assert kept_reply(tmp_path, STUDY, 3, "train", ASKED_OTHERWISE) is None
    assert kept_reply(tmp_path, STUDY, 3, "evaluate", ASKED) is None
    assert kept_reply(tmp_path, STUDY, 2, "train", ASKED) is None
    assert kept_reply(tmp_path, OTHER, 3, "train", ASKED) is None
    keep_reply(tmp_path, STUDY, 3, "train", ASKED_OTHERWISE, b"")
    assert kept_reply(tmp_path, STUDY, 3, "train", ASKED_OTHERWISE) == b""
    assert kept_reply(tmp_path, STUDY, 3, "train", ASKED) is None


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    keep_reply(tmp_path, STUDY, 3, "train", ASKED, REPLY)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / FOLDER).stat().st_mode & 0o777 == 0o700


def test_a_damaged_reply_is_not_sent(tmp_path: Path) -> None:
    keep_reply(tmp_path, STUDY, 3, "train", ASKED, REPLY)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    whole = file.read_bytes()
    for damaged in (
        b"",
        whole[:40],
        whole[:-1],
        whole + b"x",
        *(_flipped(whole, at) for at in range(0, len(whole), 97)),
    ):
        file.write_bytes(damaged)
        assert kept_reply(tmp_path, STUDY, 3, "train", ASKED) is None
    file.write_bytes(whole)
    assert kept_reply(tmp_path, STUDY, 3, "train", ASKED) == REPLY


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_earlier_rounds_are_forgotten(tmp_path: Path) -> None:
    forget_replies_before(tmp_path, STUDY, 3)
    for number in (0, 2, 3, 10):
        keep_reply(tmp_path, STUDY, number, "train", ASKED, REPLY)
    keep_reply(tmp_path, OTHER, 1, "train", ASKED, REPLY)
    (tmp_path / FOLDER / STUDY / "00002-train.77.part").write_bytes(b"cut short")
    for _ in range(2):
        forget_replies_before(tmp_path, STUDY, 3)
    assert sorted(path.name for path in (tmp_path / FOLDER / STUDY).iterdir()) == ["00003-train", "00010-train"]
    assert kept_reply(tmp_path, OTHER, 1, "train", ASKED) == REPLY


def test_a_full_disk_is_said_and_leaves_the_reply_kept_before(tmp_path: Path) -> None:
    keep_reply(tmp_path, STUDY, 3, "train", ASKED, REPLY)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(LedgerError, match="cannot be kept"):
            keep_reply(tmp_path, STUDY, 3, "train", ASKED_OTHERWISE, REPLY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kept_reply(tmp_path, STUDY, 3, "train", ASKED) == REPLY
