"""The storage receiver against senders that may and may not send."""

import io
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
from pydantic import ValidationError
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import Event

from echofed.client.ingest.sources.receiver import receiving
from echofed.client.ingest.sources.settings import ReceivedSource, ReceiverSettings
from echofed.client.ingest.sources.storage import bound_reading
from tests.client.ingest.sources.fetches import fetch
from tests.client.ingest.sources.samples import body_of, small_instance

US = "1.2.840.10008.5.1.4.1.1.6.1"
FILE = small_instance("2.25.11")


def _settings(**settings: object) -> ReceiverSettings:
    return ReceiverSettings.model_validate({"port": 0, "min_free_bytes": 0, **settings})


def _associate(port: int, ae_title: str = "ECHOFED", sender: str = "SCANNER") -> Association:
    entity = AE(sender)
    entity.acse_timeout = 5
    entity.add_requested_context(US, pydicom.uid.ExplicitVRLittleEndian)
    return entity.associate("127.0.0.1", port, ae_title=ae_title, evt_handlers=[(evt.EVT_CONN_OPEN, _close_for_good)])


def _close_for_good(event: Event) -> None:
    bound_reading(event.assoc.dul.socket, 2**20, lambda: None)


def _send(port: int, files: Sequence[bytes]) -> list[int | None]:
    association = _associate(port)
    assert association.is_established
    statuses = []
    for content in files:
        answer = association.send_c_store(pydicom.dcmread(io.BytesIO(content)))
        statuses.append(answer.get("Status"))
    association.release()
    return statuses


def test_what_is_sent_is_kept_once_and_ingested_once(tmp_path: Path) -> None:
    folder, other = tmp_path / "received", small_instance("2.25.11", PatientID="P2")
    with receiving(_settings(senders=("SCANNER",)), folder) as (port, received):
        assert _send(port, [FILE, FILE, other]) == [0, 0, 0]
        assert (received.instances, received.refused) == (3, 0)
    assert {body_of(path.read_bytes()) for path in folder.iterdir()} == {body_of(FILE), body_of(other)}
    assert folder.stat().st_mode & 0o777 == 0o700
    came = fetch(ReceivedSource(path=folder), tmp_path / "spool")
    assert len(came.files) == 2
    assert list(folder.iterdir()) == []


def test_an_ingest_that_fails_keeps_what_was_received(tmp_path: Path) -> None:
    folder = tmp_path / "received"
    with receiving(_settings(), folder) as (port, _):
        _send(port, [FILE])

    def fail(count: int) -> None:
        raise KeyboardInterrupt

    (path,) = folder.iterdir()
    with pytest.raises(KeyboardInterrupt):
        fetch(ReceivedSource(path=folder), tmp_path / "spool", at=lambda count: path.write_bytes(FILE) and fail(count))
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize(("ae_title", "sender"), [("OTHER", "SCANNER"), ("ECHOFED", "STRANGER")])
def test_others_are_rejected(tmp_path: Path, ae_title: str, sender: str) -> None:
    with receiving(_settings(senders=("SCANNER",)), tmp_path / "received") as (port, _):
        association = _associate(port, ae_title, sender)
        assert association.is_rejected


def test_other_addresses_are_not_let_in(tmp_path: Path) -> None:
    with receiving(_settings(peers=("192.0.2.1",)), tmp_path / "received") as (port, _):
        assert not _associate(port).is_established


def test_more_associations_than_allowed_are_rejected_for_now(tmp_path: Path) -> None:
    with receiving(_settings(max_associations=1), tmp_path / "received") as (port, _):
        first, second = _associate(port), _associate(port)
        assert first.is_established
        assert second.is_rejected
        first.release()


def test_connections_that_close_at_once_keep_nobody_out(tmp_path: Path) -> None:
    """As those of a health check do."""
    with receiving(_settings(max_associations=2, idle_seconds=60), tmp_path / "received") as (port, _):
        for _ in range(4):
            socket.create_connection(("127.0.0.1", port)).close()
        deadline = time.monotonic() + 20
        while not (association := _associate(port)).is_established:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        association.release()


def test_a_full_disk_is_said_to_the_sender(tmp_path: Path) -> None:
    with receiving(_settings(min_free_bytes=2**60), tmp_path / "received") as (port, received):
        assert _send(port, [FILE]) == [0xA700]
        assert received.refused == 1
    assert list((tmp_path / "received").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a disk in memory with some options; it is gone at the end."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / "received"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def _largest_file(size_bytes: int) -> Iterator[None]:
    """Have larger files of this process end where a full disk would end them."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("options", ["size=4m", "size=40m,nr_inodes=4"])
def test_a_disk_is_filled_and_taken_up_again_once_there_is_room(
    options: str, small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = small_disk(options)
    files = {key: small_instance(key, TextValue="x" * 700_000) for key in map("2.25.{}".format, range(100, 108))}
    with receiving(_settings(), folder) as (port, received):
        statuses = _send(port, list(files.values()))
        taken = statuses.index(0xA700)
        assert 2 <= taken < len(files) - 1
        assert statuses == [0] * taken + [0xA700] * (len(files) - taken)
        assert (received.instances, received.refused) == (taken, len(files) - taken)
        # What was acknowledged is there and whole, and nothing else is.
        kept = {body_of(path.read_bytes()) for path in folder.iterdir()}
        assert kept == {body_of(files[key]) for key in list(files)[:taken]}
        came = fetch(ReceivedSource(path=folder), tmp_path / "spool")
        assert len(came.files) == taken
        assert list(folder.iterdir()) == []
        assert _send(port, list(files.values())[taken : taken + 2]) == [0, 0]
    assert len(list(folder.iterdir())) == 2


def test_a_file_that_ends_half_way_is_not_kept(tmp_path: Path) -> None:
    folder, large = tmp_path / "received", small_instance("2.25.12", TextValue="x" * 3 * 2**20)
    with receiving(_settings(), folder) as (port, received):
        with _largest_file(2**20):
            assert _send(port, [large, FILE]) == [0xA700, 0]
        assert [body_of(path.read_bytes()) for path in folder.iterdir()] == [body_of(FILE)]
        assert _send(port, [large]) == [0]
        assert (received.instances, received.refused) == (2, 1)


def test_an_instance_larger_than_allowed_ends_the_association(tmp_path: Path) -> None:
    large = small_instance("2.25.12", TextValue="x" * 3 * 2**20)
    with receiving(_settings(max_file_bytes=2**20), tmp_path / "received") as (port, _):
        assert _send(port, [FILE, large]) == [0, None]
        assert _send(port, [FILE]) == [0]
    assert len(list((tmp_path / "received").iterdir())) == 1


def test_listening_to_others_takes_their_addresses() -> None:
    assert ReceiverSettings().host == "127.0.0.1"
    with pytest.raises(ValidationError, match="peers"):
        ReceiverSettings(host="0.0.0.0", peers=())
