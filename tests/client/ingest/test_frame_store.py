"""Stored frames: whole or absent, read as they were written or not at all."""

import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from echofed.client.ingest.errors import FrameStoreError
from echofed.client.ingest.frame_store import (
    MAX_PIXELS,
    frame_files,
    frame_path,
    key_of,
    pixel_key,
    read_frame,
    read_metadata,
    remove_parts,
    spacing_text,
    store_folder,
    sync_frames,
    write_frame,
)

PIXELS = np.random.default_rng(1).integers(0, 256, (37, 53), np.uint8)
TEXTS = {"patient": "PATIENT0000000000000", "spacing_mm": spacing_text((0.1, 0.12)), "vendor": "Überschall"}
KEY = bytes(range(32))


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_a_frame_is_read_as_it_was_written(tmp_path: Path, key: bytes | None) -> None:
    path = write_frame(tmp_path, "abcdef-000", PIXELS, TEXTS, key)
    sync_frames([path])
    assert path == tmp_path / "frames" / "ab" / "abcdef-000.safetensors" == frame_path(tmp_path, "abcdef-000")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == path.parent.parent.stat().st_mode & 0o777 == 0o700
    pixels, texts = read_frame(path, key)
    np.testing.assert_array_equal(pixels, PIXELS)
    assert pixels.dtype == np.uint8
    assert not pixels.flags.writeable
    assert texts == {**TEXTS, "sha256": pixel_key(PIXELS).hex()} == read_metadata(path, key)
    assert json.loads(texts["spacing_mm"]) == [0.1, 0.12]
    assert list(frame_files(tmp_path)) == [path]
    assert store_folder(path) == tmp_path
    assert key_of(path) is None


def test_a_plain_frame_is_a_safetensors_file_and_is_mapped(tmp_path: Path) -> None:
    path = write_frame(tmp_path, "abc", PIXELS, TEXTS, None)
    np.testing.assert_array_equal(load_file(path)["pixels"], PIXELS)
    base: object = read_frame(path, None)[0]
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    assert isinstance(base, mmap.mmap)


def test_a_frame_is_replaced_whole(tmp_path: Path) -> None:
    path = write_frame(tmp_path, "abc", PIXELS, {}, None)
    mapped = read_frame(path, None)[0]
    write_frame(tmp_path, "abc", PIXELS[:9, ::-1], {}, None)
    np.testing.assert_array_equal(mapped, PIXELS)
    np.testing.assert_array_equal(read_frame(path, None)[0], PIXELS[:9, ::-1])
    assert [one.name for one in path.parent.iterdir()] == ["abc.safetensors"]


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
@given(at=st.integers(0, 10**6), damage=st.binary(min_size=1, max_size=16), cut=st.booleans())
def test_no_damage_gives_other_pixels(
    tmp_path_factory: pytest.TempPathFactory, key: bytes | None, at: int, damage: bytes, cut: bool
) -> None:
    path = write_frame(tmp_path_factory.getbasetemp() / f"damaged-{bool(key)}", "abc", PIXELS, TEXTS, key)
    content = bytearray(path.read_bytes())
    at %= len(content)
    content[at:] = b"" if cut else damage + content[at + len(damage) :]
    path.write_bytes(content)
    try:
        pixels, _ = read_frame(path, key)
    except FrameStoreError:
        return
    np.testing.assert_array_equal(pixels, PIXELS)


def hostile(header: object, pixels: bytes = bytes(6)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + pixels


def entry(**changes: object) -> dict[str, object]:
    return {"__metadata__": {}, "pixels": {"dtype": "U8", "shape": [2, 3], "data_offsets": [0, 6], **changes}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        bytes(64),
        (2**63).to_bytes(8, "little") + bytes(64),
        hostile(b"[" * 60_000),
        hostile(b"1" * 10_000),
        hostile([]),
        hostile({"pixels": 1}),
        hostile({**entry(), "more": {}}),
        hostile({**entry(), "__metadata__": []}),
        hostile(entry(dtype="F32")),
        hostile(entry(shape=[2.0, 3])),
        hostile(entry(shape=[True, 6])),
        hostile(entry(shape=[-2, -3])),
        hostile(entry(shape=[2, 3, 1])),
        hostile(entry(shape=[0, 3], data_offsets=[0, 0]), b""),
        hostile(entry(shape=[2**40, 2**40])),
        hostile(entry(data_offsets=[1, 7])),
        hostile(entry(), bytes(7)),
        hostile(entry()),
    ],
)
def test_what_is_no_frame_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(FrameStoreError):
        read_frame(path, None)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as stream:
        stream.truncate(MAX_PIXELS * 4)
    with pytest.raises(FrameStoreError, match="cannot be a frame"):
        read_frame(path, None)


@pytest.mark.parametrize("name", ["", "ab", "../../x", "a/b", ".abc", "abc.", "ä" * 5, "a" * 151, "abc\n"])
def test_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(FrameStoreError, match="cannot be a frame's name"):
        write_frame(tmp_path, name, PIXELS, {}, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pixels", [PIXELS[..., None], PIXELS.astype(np.uint16), PIXELS[:0]])
def test_only_grey_frames_are_stored(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(FrameStoreError, match="is not a frame"):
        write_frame(tmp_path, "abc", pixels, {}, None)


def test_a_full_disk_is_said_and_leaves_the_frame_before(tmp_path: Path) -> None:
    path = write_frame(tmp_path, "abc", PIXELS, {}, None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as on a full disk, writing fails after some bytes
        for name in ("abc", "abd"):
            with pytest.raises(FrameStoreError, match="The disk is full"):
                write_frame(tmp_path, name, 255 - PIXELS, {}, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    np.testing.assert_array_equal(read_frame(path, None)[0], PIXELS)
    assert [one.name for one in path.parent.iterdir()] == ["abc.safetensors"]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "frames").write_text("")
    with pytest.raises(FrameStoreError, match="cannot be written"):
        write_frame(tmp_path, "abc", PIXELS, {}, None)
    with pytest.raises(FrameStoreError, match="cannot be written"):
        sync_frames([tmp_path / "gone" / "abc.safetensors"])


WRITER = """
import sys
from pathlib import Path
import numpy as np
from echofed.client.ingest.frame_store import sync_frames, write_frame
key = bytes(32) if sys.argv[2] else None
for number in range(10**9):
    paths = [write_frame(Path(sys.argv[1]), f"{number % 7:03d}-{at}", np.full((600, 700), number % 251, np.uint8), {}, key)
             for at in range(5)]
    sync_frames(paths)
    print(number, flush=True)
"""


@pytest.mark.parametrize("key", [None, bytes(32)], ids=["plain", "sealed"])
def test_a_writer_killed_anywhere_leaves_whole_frames(tmp_path: Path, key: bytes | None) -> None:
    rng = np.random.default_rng(3)
    parts = 0
    for _ in range(6):
        command = [sys.executable, "-c", WRITER, str(tmp_path), "x" if key else ""]
        writer = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.uniform(0, 0.1))
        writer.kill()
        writer.wait()
        writer.stdout.close()
        found = list(frame_files(tmp_path))
        assert len(found) >= 5
        for path in found:
            assert len(np.unique(read_frame(path, key)[0])) == 1
        parts += remove_parts(tmp_path)
        assert not list(tmp_path.rglob("*.part"))
    assert parts <= 6
