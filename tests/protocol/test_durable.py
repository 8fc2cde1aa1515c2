"""Files that are whole or not there, with the permissions they are to have from the first byte on."""

import os
import stat
import threading
from pathlib import Path

import pytest

from echofed.protocol.durable import replace_file, replacing
from echofed.protocol.key_files import write_private_file


@pytest.fixture
def mask() -> int:
    """Return what new files' permissions are masked with."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_file_is_private_while_it_is_written(tmp_path: Path, mask: int) -> None:
    key, other = tmp_path / "key", tmp_path / "other"
    write_private_file(key, b"secret")
    replace_file(other, b"public")
    assert (mode(key), mode(other)) == (0o600, 0o666 & ~mask)
    with replacing(key, 0o600) as stream:
        (part,) = tmp_path.glob("key.*.part")
        assert mode(part) == 0o600
        stream.write(b"another")
        assert key.read_bytes() == b"secret"
    assert key.read_bytes() == b"another"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "other"]


@pytest.mark.parametrize("write", [replace_file, write_private_file])
def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(tmp_path: Path, write: object) -> None:
    part = tmp_path / f"file.{os.getpid()}-{threading.get_ident()}.part"
    part.write_bytes(b"left behind, and longer")
    part.chmod(0o666)
    write(tmp_path / "file", b"new")  # type: ignore[operator]
    assert (tmp_path / "file").read_bytes() == b"new"
    assert not part.exists()
    assert mode(tmp_path / "file") != 0o666


@pytest.mark.parametrize("write", [replace_file, write_private_file])
def test_what_cannot_be_written_changes_nothing(tmp_path: Path, write: object) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write(tmp_path / "folder", b"new")  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
