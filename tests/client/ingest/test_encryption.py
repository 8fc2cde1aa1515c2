"""An encrypted store: who has the key reads it, everybody else reads nothing."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from echofed.client.ingest.encryption import KEY_FILE, is_encrypted, make_store_key, seal, store_key, unseal
from echofed.client.ingest.errors import FrameStoreError
from echofed.client.ingest.frame_store import frame_path, key_of, read_frame, write_frame
from echofed.protocol.errors import KeyFileError
from echofed.protocol.key_files import PASSPHRASE_VARIABLE

PIXELS = np.random.default_rng(1).integers(0, 256, (37, 53), np.uint8)
KEY = bytes(range(32))


class Ring(types.ModuleType):
    """A keyring of this process, with the two functions of the real one's."""

    def __init__(self) -> None:
        super().__init__("keyring")
        self.kept: dict[tuple[str, str], str] = {}
        self.is_locked = False

    def set_password(self, service: str, name: str, text: str) -> None:
        self.check()
        self.kept[service, name] = text

    def get_password(self, service: str, name: str) -> str | None:
        self.check()
        return self.kept.get((service, name))

    def check(self) -> None:
        if self.is_locked:
            raise RuntimeError("locked")


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Ring:
    ring = Ring()
    monkeypatch.setitem(sys.modules, "keyring", ring)
    return ring


def reopened(folder: Path) -> bytes | None:
    """Return a store's key as another process finds it."""
    path = folder / KEY_FILE
    path.rename(folder / "moved")
    path.write_bytes((folder / "moved").read_bytes())
    path.chmod(0o600)
    (folder / "moved").unlink()
    return store_key(folder)


def test_what_is_sealed_opens_with_its_key_under_its_name_only() -> None:
    sealed = seal(KEY, b"content", "a")
    assert b"content" not in sealed
    assert sealed != seal(KEY, b"content", "a")
    assert unseal(KEY, sealed, "a") == b"content"
    for key, content, name in (
        (bytes(32), sealed, "a"),
        (KEY, sealed, "b"),
        (KEY, sealed[:-1], "a"),
        (KEY, sealed[:20], "a"),
        (KEY, sealed[:20] + bytes([sealed[20] ^ 1]) + sealed[21:], "a"),
        (KEY, b"content", "a"),
        (KEY, b"", "a"),
    ):
        with pytest.raises(FrameStoreError):
            unseal(key, content, name)


def test_a_passphrase_opens_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_encrypted(tmp_path)
    assert store_key(tmp_path) is None
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct horse")
    key = make_store_key(tmp_path, "passphrase")
    content = (tmp_path / KEY_FILE).read_bytes()
    assert len(key) == 32
    assert key not in content
    assert key.hex().encode() not in content
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert is_encrypted(tmp_path)
    assert reopened(tmp_path) == key
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "another")
    assert store_key(tmp_path) == key  # asked for once a process
    with pytest.raises(KeyFileError, match="passphrase does not open"):
        reopened(tmp_path)
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    with pytest.raises(KeyFileError, match="is encrypted"):
        reopened(tmp_path)


def test_a_store_keeps_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "a")
    make_store_key(tmp_path, "passphrase")
    before = (tmp_path / KEY_FILE).read_bytes()
    with pytest.raises(FrameStoreError, match="has a key already"):
        make_store_key(tmp_path, "passphrase")
    assert (tmp_path / KEY_FILE).read_bytes() == before


def test_the_keyring_keeps_the_key_and_the_file_does_not(tmp_path: Path, ring: Ring) -> None:
    key = make_store_key(tmp_path, "keyring")
    assert len(ring.kept) == 1
    assert not any(text.encode() in (tmp_path / KEY_FILE).read_bytes() for text in ring.kept.values())
    assert reopened(tmp_path) == key
    ring.is_locked = True
    with pytest.raises(KeyFileError, match="keyring refuses"):
        reopened(tmp_path)
    ring.is_locked = False
    other = make_store_key(tmp_path.parent, "keyring")
    assert other != key
    names = list(ring.kept)
    ring.kept[names[0]], ring.kept[names[1]] = ring.kept[names[1]], ring.kept[names[0]]
    with pytest.raises(KeyFileError, match="not the one"):
        reopened(tmp_path)
    ring.kept.clear()
    with pytest.raises(KeyFileError, match="not the one"):
        reopened(tmp_path)


def test_without_a_keyring_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(KeyFileError, match="no access to the system's keyring"):
        make_store_key(tmp_path, "keyring")
    assert not is_encrypted(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"place": "moon"}', b"\xff"])
def test_a_damaged_key_file_is_not_taken_for_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / KEY_FILE
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="damaged"):
        store_key(tmp_path)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="read by others"):
        store_key(tmp_path)


def test_an_encrypted_frame_shows_nothing_and_passes_for_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "a")
    key = make_store_key(tmp_path, "passphrase")
    path = write_frame(tmp_path, "abc", PIXELS, {"patient": "SOMEBODY"}, key)
    content = path.read_bytes()
    assert key_of(path) == key
    assert b"SOMEBODY" not in content
    assert b"pixels" not in content
    assert PIXELS[3].tobytes()[:8] not in content
    np.testing.assert_array_equal(read_frame(path, key)[0], PIXELS)
    other = frame_path(tmp_path, "abd")
    other.write_bytes(content)
    plain = write_frame(tmp_path, "abe", PIXELS, {}, None)
    for wrong in (other, plain):
        with pytest.raises(FrameStoreError):
            read_frame(wrong, key)
    for wrong_key in (None, bytes(32)):
        with pytest.raises(FrameStoreError):
            read_frame(path, wrong_key)
