"""A DIMSE server that takes instances, and nothing else, from those who may send."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.events import Event
from pynetdicom.transport import ThreadedAssociationServer

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.sources.storage import MAX_PDU_BYTES, allow_silence, bound_reading, storage_contexts

_HANDSHAKE_SECONDS = 10.0


@dataclass(frozen=True)
class Door:
    """Where a server listens and whom it lets in.

    Args:
        ae_title: ours; an association for another is rejected.
        host: address to listen at.
        port: 0: any free one.
        senders: AE titles that may send; empty: any.
        peers: addresses that may send.
        max_associations: at once; more are rejected for now.
        max_bytes: of an instance.
        idle_seconds: after which a silent association is ended.
        tls: None: not encrypted.
    """

    ae_title: str
    host: str
    port: int
    senders: tuple[str, ...]
    peers: frozenset[str]
    max_associations: int
    max_bytes: int
    idle_seconds: float
    tls: ssl.SSLContext | None = None


class _Server(ThreadedAssociationServer):
    door: Door

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        stream, address = cast(socket.socket, self.socket).accept()
        if address[0].removeprefix("::ffff:") not in self.door.peers:
            stream.close()
            raise ConnectionRefusedError
        return stream, address

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: tuple[str, int] | str
    ) -> None:
        # Hands are shaken in this thread: one who says nothing holds up nobody else.
        if self.door.tls is not None and isinstance(request, socket.socket):
            request.settimeout(_HANDSHAKE_SECONDS)
            try:
                request = self.door.tls.wrap_socket(request, server_side=True)
            except OSError:
                self.shutdown_request(request)
                return
        super().process_request_thread(request, client_address)


def _let_go(event: Event) -> None:
    """End an association whose connection was closed before it asked for anything; pynetdicom would wait for it in its place."""
    if not event.assoc.is_established:
        cast(Any, event.assoc.dul.to_user_queue).put(None)  # as if its time were up


@contextmanager
def listening(door: Door, take: Callable[[Event], int], heard: Callable[[], None]) -> Iterator[int]:
    """Serve in other threads while the context is entered, and give the port.

    Args:
        door: where, and who may send.
        take: called with each C-STORE request, in its association's thread; returns the status to answer with.
        heard: called whenever something arrives.

    Raises:
        SourceError: the address or port cannot be had.
    """
    entity = ApplicationEntity(door.ae_title)
    entity.supported_contexts = storage_contexts()
    entity.add_supported_context("1.2.840.10008.1.1")  # C-ECHO
    entity.require_called_aet, entity.require_calling_aet = True, list(door.senders)
    entity.maximum_associations, entity.maximum_pdu_size = door.max_associations, MAX_PDU_BYTES
    entity.network_timeout = entity.acse_timeout = entity.dimse_timeout = door.idle_seconds

    def bound(event: Event) -> None:
        if event.assoc.dul.socket is not None:
            bound_reading(event.assoc.dul.socket, door.max_bytes, heard)
        allow_silence(event.assoc, door.idle_seconds)

    handlers: list[evt.EventHandlerType] = [
        (evt.EVT_CONN_OPEN, bound),
        (evt.EVT_CONN_CLOSE, _let_go),
        (evt.EVT_C_STORE, take),
    ]
    try:
        server = cast(_Server, entity.make_server((door.host, door.port), evt_handlers=handlers, server_class=_Server))
    except OSError as error:
        what = f"The receiver cannot listen at {door.host}, port {door.port}: {error.strerror}."
        raise SourceError(what, "Choose another address or port, or stop the program that uses it.") from error
    server.door = door
    entity._servers.append(server)  # as start_server does; shutdown expects it
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="receiver", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        for association in server.active_associations:
            association.abort()
        thread.join()
