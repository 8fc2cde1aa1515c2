"""The gateway as a service: connections come in, requests are answered one after the other, and it ends in an orderly way.

A connection has a thread of its own (`http_connection.py` says why).
"""

import contextlib
import errno
import logging
import re
import socket
import ssl
import threading
import time
from pathlib import Path

from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.errors import (
    GatewayRefusedError,
    UnexpectedError,
    UnreachableError,
)
from echofed.protocol.http_connection import HttpConnection, drain, is_readable
from echofed.protocol.http_head import RefusalError, Request
from echofed.server.authority import read_consortium
from echofed.server.gateway_files import Files
from echofed.server.gateway_fleet import MESSAGES, PREFIX, Fleet
from echofed.server.gateway_limits import Limits, Notes, Quota, Rates, check_length
from echofed.server.gateway_nodes import NodeBook
from echofed.server.gateway_strangers import Stranger, Strangers
from echofed.server.gateway_tls import Door, ServerTls, certificate_from_nginx

LOG = logging.getLogger("echofed.gateway")
STOP_SECONDS = 2.0
"""In which requests under way may end when the gateway stops."""
_BLOB = re.compile(r"/v1/blobs/[0-9a-f]{64}")


class Gateway:
    """The gateway of one consortium.

    Args:
        folder: the coordinator's.
        superlink: host and port of SuperLink.
        limits: what it allows.
        listener: bound; a unix socket means that nginx is in front.

    Raises:
        EchoFedError: the folder, a key or the audit log cannot be used.
    """

    def __init__(self, folder: Path, superlink: tuple[str, int], limits: Limits, listener: socket.socket) -> None:
        self._limits, self._listener = limits, listener
        self._tls = None if listener.family == socket.AF_UNIX else ServerTls(folder)
        self._door = Door(folder)
        self._audit_log = open_audit_log(folder, owner=read_consortium(folder).settings.name)
        self._notes = Notes(self._audit_log)
        self._nodes = NodeBook(folder)
        self._fleet = Fleet(superlink, folder, self._nodes, limits.poll_seconds)
        self._files = Files(folder, limits)
        self._rates = Rates(limits.requests_per_second, limits.burst)
        # All that comes through nginx has no address here; nginx counts addresses itself.
        each, in_all = limits.strangers_per_address, limits.strangers
        self._strangers = Strangers(each, in_all) if self._tls else Strangers(limits.connections, limits.connections)
        self._per_site = Quota(limits.connections_per_site, limits.connections)
        self._open: set[HttpConnection] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def serve(self) -> None:
        """Take connections until `stop`; then let requests under way end, for `STOP_SECONDS` at most."""
        while not self._stopping:
            try:
                stream, peer = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    LOG.error("no connection can be taken: %s", error.strerror)
                    time.sleep(0.1)
                continue  # a connection that broke before it was taken, or `stop`
            address = str(peer[0]) if self._tls else ""
            stranger = Stranger(stream, address)
            dropped = self._strangers.enter(stranger)
            if dropped is not None:
                self._notes.refused(None, "Too many connections.", dropped.address)
            threading.Thread(target=self._welcome, args=(stranger,), daemon=True).start()
        self._finish()

    def stop(self) -> None:
        """Take no connection any more; safe to call from a signal's handler."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def _finish(self) -> None:
        self._listener.close()
        deadline = time.monotonic() + STOP_SECONDS
        while self._open:
            late = time.monotonic() >= deadline
            with self._lock:
                for connection in self._open:
                    if late or connection.is_answered:
                        connection.abort()
            if late:
                break
            time.sleep(0.02)
        self._fleet.close()
        self._notes.close()
        self._audit_log.close()

    def _welcome(self, stranger: Stranger) -> None:
        with contextlib.ExitStack() as held:
            # Closed when it is no stranger any more: nobody else may then still be about to break it.
            held.callback(lambda: stranger.stream.close())
            with contextlib.ExitStack() as place:
                place.callback(self._strangers.leave, stranger)
                certificate = self._shake_hands(stranger, self._tls.context()) if self._tls else None
                if self._tls and certificate is None:
                    return
                connection = HttpConnection(stranger.stream, self._limits.pace)
                with self._lock:
                    self._open.add(connection)
                held.callback(self._forget, connection)
                self._converse(connection, certificate, stranger.address, place)

    def _shake_hands(self, stranger: Stranger, context: ssl.SSLContext) -> bytes | None:
        """Return the stranger's certificate, empty if it showed none; None if TLS did not come about."""
        if not is_readable(stranger.stream, self._limits.silent_seconds):
            self._notes.refused(None, "TLS handshake: not a byte came.", stranger.address)
            return None
        try:
            tls = context.wrap_socket(stranger.stream, server_side=True, do_handshake_on_connect=False)
        except OSError:
            return None
        if not self._strangers.goes_on(stranger, tls):
            return None
        try:
            tls.settimeout(self._limits.handshake_seconds)
            tls.do_handshake()
            return tls.getpeercert(binary_form=True) or b""
        except OSError as error:
            reason = getattr(error, "reason", None) or type(error).__name__
            self._notes.refused(None, f"TLS handshake: {reason}", stranger.address)
            if not isinstance(error, TimeoutError):
                drain(tls)  # so that the peer can read the reason
            return None

    def _converse(
        self, connection: HttpConnection, certificate: bytes | None, address: str, stranger: contextlib.ExitStack
    ) -> None:
        """Answer one request after the other; the place among strangers is given up for one among the site's connections."""
        site: str | None = None
        idle_seconds: float | None = self._limits.pace.head_seconds
        with contextlib.ExitStack() as place:
            while connection.is_open and not self._stopping:
                caller = None
                try:
                    request = connection.read_request(idle_seconds)
                    if request is None:
                        return
                    presented = certificate_from_nginx(request) if certificate is None else certificate
                    caller = self._door.site_of(presented)
                    if caller != site:
                        place.close()
                        place.enter_context(self._per_site.taken(caller, "connections of this site"))
                        stranger.close()
                        site, idle_seconds = caller, None
                    time.sleep(self._rates.wait_seconds(caller))
                    self._answer(caller, presented, request, connection)
                except RefusalError as refusal:
                    if not self._refuse(connection, refusal, caller, address):
                        return
                except OSError:
                    return  # the peer is gone
                except Exception:
                    LOG.exception("a request failed")
                    error = UnexpectedError("The gateway failed.", "Ask the coordinator to look at the gateway's log.")
                    if not self._refuse(connection, RefusalError(500, error, closes=True), caller, address):
                        return

    def _refuse(self, connection: HttpConnection, refusal: RefusalError, site: str | None, address: str) -> bool:
        """Note and say a refusal; False if it cannot be said any more."""
        if not isinstance(refusal.error, UnreachableError):
            self._notes.refused(site, refusal.error.what, address)
        if connection.is_answered:
            return False
        try:
            connection.refuse(refusal, {"Retry-After": "1"} if refusal.status in (429, 503) else None)
        except OSError:
            return False
        return True

    def _answer(self, site: str, certificate: bytes, request: Request, connection: HttpConnection) -> None:
        with contextlib.suppress(OSError):  # a full disk keeps nobody out
            self._nodes.seen(site)
        files = self._files
        match request.method, request.target:
            case "POST", target if target.startswith(PREFIX) and target.removeprefix(PREFIX) in MESSAGES:
                self._forward(site, certificate, request, connection)
            case "GET", "/v1/time":
                files.time(connection)
            case "GET", "/v1/studies":
                files.studies(connection)
            case "GET", target if _BLOB.fullmatch(target):
                files.send_blob(request, connection)
            case "PUT", target if _BLOB.fullmatch(target):
                files.receive_blob(site, request, connection)
            case "POST", "/v1/answers":
                files.take_answer(site, request, connection)
            case "POST", "/v1/renew":
                files.renew(site, request, connection)
            case _:
                raise RefusalError(404, GatewayRefusedError("There is nothing here."))

    def _forward(self, site: str, certificate: bytes, request: Request, connection: HttpConnection) -> None:
        check_length(request, self._limits.fleet_bytes)

        def check() -> None:
            if self._stopping:
                raise RefusalError(503, UnreachableError("The gateway is stopping."), closes=True)
            self._door.site_of(certificate)

        answer = self._fleet.forward(site, request, connection, check)
        if answer is None:
            connection.is_open = False
            return
        if answer.status == 200 and request.target == f"{PREFIX}activate-node":
            self._notes.connected(site)
        connection.answer(answer.status, answer.body, answer.headers)

    def _forget(self, connection: HttpConnection) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()
