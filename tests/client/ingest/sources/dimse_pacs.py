"""A small DIMSE PACS on loopback that can be told to misbehave."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.events import Event

from echofed.client.ingest.sources.find import FIND
from echofed.client.ingest.sources.storage import storage_classes, storage_contexts

GET, MOVE = "1.2.840.10008.5.1.4.1.2.2.3", "1.2.840.10008.5.1.4.1.2.2.2"
AE_TITLE = "SMALLPACS"


@dataclass
class DimsePacs:
    """What the PACS holds and does.

    Args:
        files: by instance id; one study "2.25.1", one series "2.25.1.1".
        promised: instances the series is said to have.
        withheld: never sent, though it says that all was.
        takes_lists: sends what is asked for in a list; else only single instances.
        unasked: sent along with whatever is asked for.
        aborts: ends the association this many times in the middle of a request.
        silent_seconds: waits before it sends.
        status: of every retrieval, instead of sending.
        receiver: address of the only place it knows to send to.
    """

    files: dict[str, bytes]
    promised: int | None = None
    withheld: frozenset[str] = frozenset()
    takes_lists: bool = True
    unasked: tuple[str, ...] = ()
    aborts: int = 0
    silent_seconds: float = 0.0
    status: int | None = None
    receiver: tuple[str, int] | None = None
    requests: list[list[str]] = field(default_factory=list)
    port: int = 0

    def find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        """Answer C-FIND."""
        level, answer = event.identifier.QueryRetrieveLevel, Dataset()
        answer.QueryRetrieveLevel, answer.PatientID = level, "P1"
        answer.StudyInstanceUID = "2.25.1"
        if level == "IMAGE":
            for key in self.files:
                answer.SOPInstanceUID = key
                yield 0xFF00, answer
            return
        if level == "SERIES":
            answer.SeriesInstanceUID, answer.Modality = "2.25.1.1", "US"
            answer.NumberOfSeriesRelatedInstances = self.promised or len(self.files)
        yield 0xFF00, answer

    def retrieve(self, event: Event) -> Iterator[object]:
        """Answer C-GET and C-MOVE."""
        asked = event.identifier.SOPInstanceUID
        keys = [asked] if isinstance(asked, str) else list(asked)
        self.requests.append(keys)
        if event.request.__class__.__name__ == "C_MOVE":
            yield self.receiver or (None, None)
        time.sleep(self.silent_seconds)
        if self.status is not None:
            yield 1
            yield self.status, None
            return
        sent = [key for key in keys if key not in self.withheld] if self.takes_lists or len(keys) == 1 else []
        contents = [self.files[key] for key in sent] + [_small(key) for key in self.unasked]
        yield len(contents)
        for number, content in enumerate(contents):
            if self.aborts and number == len(contents) // 2:
                self.aborts -= 1
                event.assoc.abort()
                return
            yield 0xFF00, pydicom.dcmread(io.BytesIO(content))


def _small(uid: str) -> bytes:
    from tests.client.ingest.sources.samples import small_instance

    return small_instance(uid)


@contextmanager
def serving(pacs: DimsePacs) -> Iterator[DimsePacs]:
    """Serve on loopback while the context is entered."""
    entity = AE(AE_TITLE)
    for model in (FIND, GET, MOVE):
        entity.add_supported_context(model)
    for one in storage_classes():
        entity.add_supported_context(one, ALL_TRANSFER_SYNTAXES, scu_role=True, scp_role=True)
    entity.requested_contexts = storage_contexts()
    entity.require_called_aet = True
    handlers = [(evt.EVT_C_FIND, pacs.find), (evt.EVT_C_GET, pacs.retrieve), (evt.EVT_C_MOVE, pacs.retrieve)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    pacs.port = server.server_address[1]
    try:
        yield pacs
    finally:
        server.shutdown()
        for thread in threading.enumerate():
            if "AcceptorThread" in thread.name:
                thread.join(5)
