"""The coordinator's blobs: whole or not there, what their names say, no more than may be kept."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from echofed.protocol.arrays import sha256_of_file
from echofed.protocol.errors import ArraysError, TooLargeError
from echofed.server import blobs
from echofed.server.blobs import BlobStore


def name_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pieces(content: bytes, size: int = 1000) -> Iterator[memoryview]:
    """Yield a content as the gateway does: two buffers in turn."""
    buffers = [bytearray(size), bytearray(size)]
    for number, start in enumerate(range(0, len(content), size)):
        part = content[start : start + size]
        buffer = memoryview(buffers[number % 2])[: len(part)]
        buffer[:] = part
        yield buffer


def send(store: BlobStore, content: bytes, site: str = "north") -> str:
    store.receive(site, name_of(content), len(content), pieces(content))
    return name_of(content)


def test_what_a_site_sends_is_there_whole(tmp_path: Path) -> None:
    store, content = BlobStore(tmp_path), os.urandom(123_457)
    name = send(store, content)
    assert store.incoming("north", name).read_bytes() == content
    assert store.has_incoming("north", name, len(content))
    assert not store.has_incoming("south", name, len(content))
    assert store.incoming("north", name).stat().st_mode & 0o077 == 0


def test_a_wrong_hash_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with pytest.raises(ArraysError, match="name"):
        store.receive("north", name_of(b"other"), 3, pieces(b"abc"))
    assert list((tmp_path / "blobs" / "incoming" / "north").iterdir()) == []


def test_a_sender_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[memoryview]:
        yield memoryview(b"ab")
        raise ConnectionResetError

    store = BlobStore(tmp_path)
    with pytest.raises(ConnectionResetError):
        store.receive("north", name_of(b"abc"), 3, broken())
    assert list((tmp_path / "blobs" / "incoming" / "north").iterdir()) == []


@pytest.mark.parametrize("name", ["../../members/north.json", "", "A" * 64, "0" * 63, "0" * 64 + "\n", "0" * 65, "."])
def test_only_hashes_are_names(tmp_path: Path, name: str) -> None:
    store = BlobStore(tmp_path)
    for place in (store.published, lambda one: store.incoming("north", one)):
        with pytest.raises(ArraysError, match="64 hexadecimal"):
            place(name)


def test_a_site_keeps_two_and_the_oldest_goes(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    names = []
    for number in range(6):
        names.append(send(store, bytes([number]) * 10))
        os.utime(store.incoming("north", names[-1]), (number, number))
    other = send(store, b"other", "south")
    kept = {path.name for path in (tmp_path / "blobs" / "incoming" / "north").iterdir()}
    assert kept == set(names[4:])
    assert store.has_incoming("south", other, 5)


def test_a_torn_file_counts_for_nothing_and_is_replaced(tmp_path: Path) -> None:
    store, content = BlobStore(tmp_path), os.urandom(5000)
    name = store.publish(content)
    torn = content[:2500] + bytes(2500)
    store.published(name).write_bytes(torn)
    assert store.publish(content) == name
    assert store.published(name).read_bytes() == content
    send(store, content)
    store.incoming("north", name).write_bytes(torn)
    assert not store.has_incoming("north", name, 5000)


def test_what_is_published_stays_until_it_is_no_longer_wanted(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    first, second = store.publish(b"first"), store.publish(b"second")
    store.keep_published({second})
    assert not store.published(first).exists()
    assert store.published(second).read_bytes() == b"second"


def test_a_full_disk_is_left_some_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(tmp_path)
    monkeypatch.setattr(blobs, "SPARE_BYTES", 2**60)
    with pytest.raises(TooLargeError, match="disk"):
        send(store, b"abc")
    assert list((tmp_path / "blobs" / "incoming" / "north").iterdir()) == []


def has_free(monkeypatch: pytest.MonkeyPatch, store: BlobStore, room: int) -> None:
    """Let the disk have room for so many bytes of incoming blobs, parts included."""

    def usage(folder: Path) -> SimpleNamespace:
        used = sum(path.stat().st_size for path in folder.glob("*/*"))
        return SimpleNamespace(free=blobs.SPARE_BYTES + room - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)


def test_what_is_on_its_way_counts_as_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, content = BlobStore(tmp_path), os.urandom(6000)
    has_free(monkeypatch, store, 10_000)

    def another_meanwhile() -> Iterator[memoryview]:
        for number, piece in enumerate(pieces(content)):
            if number in (0, 4):
                with pytest.raises(TooLargeError, match="disk"):
                    send(store, content[::-1], "south")
            yield piece

    store.receive("north", name_of(content), 6000, another_meanwhile())
    assert store.has_incoming("north", name_of(content), 6000)
    with pytest.raises(ConnectionResetError):
        store.receive("east", name_of(b"x" * 4000), 4000, broken_off())
    send(store, b"x" * 4000, "south")  # nothing stays promised


def broken_off() -> Iterator[memoryview]:
    yield memoryview(b"x" * 1000)
    raise ConnectionResetError


def test_when_room_is_short_the_site_that_holds_most_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(tmp_path)
    has_free(monkeypatch, store, 10_000)
    modest = send(store, b"m" * 1000, "modest")
    greedy = [send(store, letter * 4000, "greedy") for letter in (b"a", b"b")]
    os.utime(store.incoming("greedy", greedy[0]), (1, 1))
    wanted = send(store, b"n" * 2000, "north")
    assert store.has_incoming("modest", modest, 1000)
    assert [store.incoming("greedy", name).exists() for name in greedy] == [False, True]
    with pytest.raises(TooLargeError, match="disk"):
        send(store, b"g" * 9500, "greedy")  # more than there is, without the others' blobs
    assert store.has_incoming("north", wanted, 2000)
    assert store.has_incoming("modest", modest, 1000)


def test_a_blob_is_read_once_while_its_file_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, content, read = BlobStore(tmp_path), os.urandom(5000), list[Path]()
    name = send(store, content)

    def noted(path: Path) -> str:
        read.append(path)
        return sha256_of_file(path)

    monkeypatch.setattr(blobs, "sha256_of_file", noted)
    assert store.has_incoming("north", name, 5000)
    assert store.has_incoming("north", name, 5000)
    assert len(read) == 1
    assert not store.has_incoming("north", name, 4999)
    store.incoming("north", name).write_bytes(bytes(5000))
    os.utime(store.incoming("north", name), (1, 1))
    assert not store.has_incoming("north", name, 5000)


def test_what_is_taken_is_gone_and_what_is_not_whole_stays(tmp_path: Path) -> None:
    store, content = BlobStore(tmp_path), os.urandom(5000)
    name = send(store, content)
    assert store.take("north", name, 4999) is None
    assert store.take("south", name, 5000) is None
    assert store.take("north", name, 5000) == content
    assert store.take("north", name, 5000) is None
    assert send(store, content) == name
    assert store.take("north", name, 5000) == content


def test_all_of_one_site_can_go(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    gone, kept = send(store, b"gone"), send(store, b"kept", "south")
    store.drop_site("north")
    store.drop_site("never heard of")
    assert not store.has_incoming("north", gone, 4)
    assert store.has_incoming("south", kept, 4)
    assert store.sites() == ["north", "south"]


def test_parts_of_a_killed_process_go(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    name = send(store, b"whole")
    part = store.incoming("north", name).with_name(f"{name}.1-2.part")
    part.write_bytes(b"wh")
    store.remove_parts()
    assert not part.exists()
    assert store.has_incoming("north", name, 5)
