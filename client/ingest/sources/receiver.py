"""The storage receiver: scanners and PACS send to it, and an ingest takes what it has received.

What is acknowledged is on disk. The same file sent twice is kept once; another file under the same instance id is kept too,
for the ingest to judge.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.events import Event

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.sources.arrivals import judge
from echofed.client.ingest.sources.credentials import tls_context
from echofed.client.ingest.sources.filters import Selection
from echofed.client.ingest.sources.item import HELD_FOLDER, Fetched, Missed, Outcome, Reason
from echofed.client.ingest.sources.run import Job, Run
from echofed.client.ingest.sources.settings import ReceivedSource, ReceiverSettings
from echofed.client.ingest.sources.storage import DOES_NOT_FIT, OUT_OF_RESOURCES, SUCCESS
from echofed.client.ingest.sources.storage_server import Door, listening
from echofed.protocol.durable import replacing


@dataclass
class Received:
    """How much a receiver has taken and refused since it was started."""

    instances: int = 0
    received_bytes: int = 0
    refused: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, size_bytes: int | None) -> None:
        """Add an instance of so many bytes; None: one that was refused."""
        with self._lock:
            self.instances += size_bytes is not None
            self.received_bytes += size_bytes or 0
            self.refused += size_bytes is None


@contextmanager
def receiving(settings: ReceiverSettings, folder: Path) -> Iterator[tuple[int, Received]]:
    """Take what is sent into a folder while the context is entered; give the port and the counts.

    Raises:
        SourceError: the folder cannot be written, the port not be had, or a certificate not be read.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in folder.glob("*.part"):
            part.unlink()
    except OSError as error:
        raise SourceError(f"{folder} cannot be written: {error.strerror}.", "Check its permissions.") from error
    tls = None
    if settings.certificate_file is not None:
        tls = tls_context(settings.ca_file, settings.certificate_file, settings.key_file, is_server=True)
    door = Door(
        settings.ae_title,
        settings.host,
        settings.port,
        settings.senders,
        frozenset(settings.peers),
        settings.max_associations,
        settings.max_file_bytes,
        settings.idle_seconds,
        tls,
    )
    received = Received()
    with listening(door, lambda event: _take(event, settings, folder, received), lambda: None) as port:
        yield port, received


def take_up_held(folder: Path) -> int:
    """Let what was held be ingested again, and return how many files that are; filters and limits may be others now.

    Args:
        folder: of what was received.

    Raises:
        SourceError: it cannot be written.
    """
    try:
        held = sorted((folder / HELD_FOLDER).glob("*.dcm"))
        for path in held:
            path.replace(folder / path.name)
    except OSError as error:
        raise SourceError(f"{folder} cannot be written: {error.strerror}.", "Check its permissions.") from error
    return len(held)


def fetch_received(source: ReceivedSource, selection: Selection, run: Run) -> Iterator[Outcome]:
    """Yield what the receiver's folder holds, the files themselves; see `fetching.fetch_all`."""
    try:
        paths = sorted(source.path.glob("*.dcm"))
    except OSError as error:
        raise SourceError(f"{source.path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    yield from run.outcomes(_jobs(paths, selection, run))


def _jobs(paths: list[Path], selection: Selection, run: Run) -> Iterator[Job | Missed]:
    run.count(units=len(paths))
    for path in paths:
        if run.is_wanted(path.name):
            yield _handing_over(path, selection, run)
        else:
            # It was ingested, but the process ended before it could be removed.
            path.unlink(missing_ok=True)
        run.count(units_done=1)


def _handing_over(path: Path, selection: Selection, run: Run) -> Callable[[], None]:
    def hand_over() -> None:
        try:
            size = path.stat().st_size
        except OSError:
            run.emit(Missed(path.name, Reason.UNREADABLE))
            return
        run.emit(Fetched(path, path.name, size, None, judge(path, selection, None), is_only_copy=True))

    return hand_over


def _take(event: Event, settings: ReceiverSettings, folder: Path, received: Received) -> int:
    request: Any = event.request
    if not request.AffectedSOPClassUID or not request.AffectedSOPInstanceUID or request.DataSet is None:
        received.count(None)
        return DOES_NOT_FIT
    meta = create_file_meta(
        sop_class_uid=request.AffectedSOPClassUID,
        sop_instance_uid=request.AffectedSOPInstanceUID,
        transfer_syntax=event.context.transfer_syntax,
    )
    head = bytes(128) + b"DICM" + encode_file_meta(meta)
    try:
        with request.DataSet.getbuffer() as content:
            size = len(head) + len(content)
            free = os.statvfs(folder)
            if free.f_bavail * free.f_frsize - size < settings.min_free_bytes:
                received.count(None)
                return OUT_OF_RESOURCES
            digest = hashlib.sha256(head)
            digest.update(content)
            with replacing(folder / f"{digest.hexdigest()}.dcm") as stream:
                stream.write(head)
                stream.write(content)
    except OSError:
        received.count(None)
        return OUT_OF_RESOURCES
    received.count(size)
    return SUCCESS
