"""Associations with a PACS: one for each thread, kept for the next request, ended when nothing is heard any more."""

import contextlib
import functools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.sources.credentials import tls_context
from echofed.client.ingest.sources.item import Reason
from echofed.client.ingest.sources.politeness import TransferError
from echofed.client.ingest.sources.settings import DimseSource
from echofed.client.ingest.sources.storage import MAX_PDU_BYTES, allow_silence, bound_reading

_WATCH_SECONDS = 0.5
_DAY_SECONDS = 86_400.0
_PERMANENT = 1


@dataclass(frozen=True)
class Purpose:
    """What associations are for.

    Args:
        contexts: that are asked for; the first one must be accepted.
        roles: storage classes that the PACS is to send to us on the same association (C-GET).
        take: called with each C-STORE request; None: there are none.
    """

    contexts: Sequence[PresentationContext]
    roles: Sequence[str] = ()
    take: Callable[[Event], int] | None = None


class _TlsSocket(ssl.SSLSocket):
    """One that remembers why it failed; pynetdicom keeps that to itself."""

    failure: OSError | None = None

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError as error:
            self.failure = error
            raise

    def recv_into(self, *arguments: Any) -> int:
        try:
            return super().recv_into(*arguments)
        except ssl.SSLError as error:
            # Whether our certificate is refused is told after the handshake.
            self.failure = error
            raise


class _Entity(ApplicationEntity):
    """One whose connections are bounded from their first byte."""

    bound: Callable[[Association, AssociationSocket], None]
    tls: _TlsSocket | None = None

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[ssl.SSLContext, str] | None
    ) -> AssociationSocket:
        stream = super()._create_socket(assoc, address, None)
        if tls_args is not None and stream.socket is not None:
            context, host = tls_args
            self.tls = cast(_TlsSocket, context.wrap_socket(stream.socket, server_hostname=host))
            stream.socket = self.tls
        self.bound(assoc, stream)
        return stream


class Associations:
    """Opens associations for one purpose; a context that closes them all.

    Args:
        source: the PACS.
        purpose: what they are for.

    Raises:
        SourceError: a certificate cannot be read.
    """

    def __init__(self, source: DimseSource, purpose: Purpose) -> None:
        self._source, self._purpose = source, purpose
        self._tls = None
        if source.tls:
            self._tls = tls_context(source.ca_file, source.certificate_file, source.key_file)
            self._tls.sslsocket_class = _TlsSocket
        self._local = threading.local()
        self._heard: dict[Association, float] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._watch = threading.Thread(target=self._end_silent, name="silence", daemon=True)

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._watch.join()
        for association in self._open():
            if association.is_established:
                association.release()

    def take(self) -> Association:
        """Return this thread's association, a new one if the PACS has ended the last.

        Raises:
            SourceError: the PACS does not want to talk to us at all.
            TransferError: it cannot be reached, or has no association free.
        """
        association = getattr(self._local, "association", None)
        if association is None or not association.is_established:
            association = self._local.association = self._associate()
        self.hear(association)
        return association

    def drop(self) -> None:
        """Give this thread's association up: after an error it may be dead without knowing it yet."""
        association = getattr(self._local, "association", None)
        self._local.association = None
        if association is not None:
            with self._lock:
                self._heard.pop(association, None)
            _break_off(association)

    def hear(self, association: Association | None = None) -> None:
        """Note that the PACS shows life, on one association or on whatever it sends elsewhere."""
        with self._lock:
            for one in [association] if association is not None else list(self._heard):
                self._heard[one] = time.monotonic()

    def abort(self) -> None:
        """Break all associations off, from another thread."""
        for association in self._open():
            _break_off(association)

    def _open(self) -> list[Association]:
        with self._lock:
            return list(self._heard)

    def _associate(self) -> Association:
        source = self._source
        entity = _Entity(source.our_ae_title)
        entity.bound = self._bound
        entity.connection_timeout = entity.acse_timeout = entity.network_timeout = source.timeout_seconds
        # pynetdicom counts until an instance is whole, however large it is; silence is watched for here.
        entity.dimse_timeout = _DAY_SECONDS
        handlers: list[Any] = [(evt.EVT_CONN_OPEN, self._connected), (evt.EVT_CONN_CLOSE, self._forget)]
        if self._purpose.take is not None:
            handlers.append((evt.EVT_C_STORE, self._purpose.take))
        try:
            association = entity.associate(
                source.host,
                source.port,
                list(self._purpose.contexts),
                source.ae_title,
                MAX_PDU_BYTES,
                [_role(one) for one in self._purpose.roles] or None,
                tls_args=(self._tls, source.host) if self._tls is not None else None,
                evt_handlers=handlers,
            )
        except (OSError, RuntimeError) as error:
            raise TransferError(Reason.UNREACHABLE, may_pass=True) from error
        if association.is_rejected:
            answer: Any = association.acceptor.primitive
            if answer is not None and answer.result == _PERMANENT:
                what = f"The PACS rejects our AE title {source.our_ae_title}, or its own is not {source.ae_title}."
                raise SourceError(what, "Correct the AE titles, or have this site's registered at the PACS.")
            raise TransferError(Reason.UNREACHABLE, may_pass=True)
        if not association.is_established:
            if entity.tls is not None and entity.tls.failure is not None:
                raise _tls_error(entity.tls.failure)
            raise TransferError(Reason.UNREACHABLE, may_pass=True)
        wanted = self._purpose.contexts[0].abstract_syntax
        if wanted not in {context.abstract_syntax for context in association.accepted_contexts}:
            association.release()
            raise SourceError(f"The PACS does not offer {getattr(wanted, 'name', wanted)}.", "Fetch in another way.")
        return association

    def _bound(self, association: Association, stream: AssociationSocket) -> None:
        bound_reading(stream, self._source.max_file_bytes, functools.partial(self.hear, association))

    def _connected(self, event: Event) -> None:
        allow_silence(event.assoc, self._source.timeout_seconds)
        self.hear(event.assoc)

    def _forget(self, event: Event) -> None:
        with self._lock:
            self._heard.pop(event.assoc, None)

    def _end_silent(self) -> None:
        while not self._closed.wait(_WATCH_SECONDS):
            limit = time.monotonic() - self._source.timeout_seconds
            with self._lock:
                silent = [association for association, heard in self._heard.items() if heard < limit]
                for association in silent:
                    del self._heard[association]
            for association in silent:
                _break_off(association)


def _break_off(association: Association) -> None:
    stream = association.dul.socket
    if stream is not None and stream.socket is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(stream.socket, socket.SHUT_RDWR)
    # As pynetdicom does when a connection closes; whoever waits for an answer wakes up, also if it was closed before.
    association.dimse.msg_queue.put((None, None))


def _tls_error(failure: OSError) -> SourceError | TransferError:
    if isinstance(failure, ssl.SSLCertVerificationError):
        what = f"The PACS's certificate is not accepted: {failure.verify_message.rstrip('.')}."
        return SourceError(what, "Write its authority as ca_file, and host as its certificate has it.")
    reason = (isinstance(failure, ssl.SSLError) and failure.reason) or ""
    if "ALERT" in reason:
        what = f"The PACS refuses the TLS connection: {reason.lower().replace('_', ' ')}."
        return SourceError(what, "Write a certificate_file and key_file that it accepts.")
    if reason == "WRONG_VERSION_NUMBER":
        return SourceError("The PACS does not speak TLS at this port.", "Write the port at which it does.")
    # One that does not know TLS may hang up, but so does one that is being started.
    return TransferError(Reason.NO_TLS, may_pass=True)


def _role(storage_class: str) -> SCP_SCU_RoleSelectionNegotiation:
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = storage_class, False, True
    return role
