"""What a site asks of its coordinator: studies, files of parameters, answers, renewals, the time.

Straight to the gateway (command line), or through the site's own outbound proxy (executor). Every failure comes out as an error
that says what to do; what may pass by itself is tried again until a deadline.
"""

import contextlib
import http.client
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from echofed.client.identity import Identity
from echofed.client.link_settings import LinkSettings
from echofed.client.refusals import MAX_REFUSAL_BYTES, refusal_of
from echofed.client.tunnel import GatewayConnection, Way, explained
from echofed.protocol.arrays import sha256_of_file
from echofed.protocol.errors import (
    ArraysError,
    ClockError,
    EchoFedError,
    GatewayRefusedError,
    TooLargeError,
    UnreachableError,
)
from echofed.protocol.http_connection import PIECE_BYTES, is_readable, piece_buffers
from echofed.protocol.http_pool import ConnectionPool
from echofed.protocol.parallel_hash import ParallelSha256
from echofed.protocol.signing import Signed

MAX_CLOCK_OFFSET_SECONDS = 300.0
"""Beyond it SuperLink takes nothing from a SuperNode."""
CALL_SECONDS = 30.0
BLOB_SECONDS = 600.0
MAX_DOCUMENTS_BYTES = 256 * 2**20
IDLE_SECONDS = 30.0

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.1, 2.0
_T = TypeVar("_T")
_Receive = Callable[[http.client.HTTPResponse], _T]
_SIGNED_LIST = TypeAdapter(list[Signed])


class Link:
    """The way from a site to its coordinator; safe to use from several threads.

    Args:
        identity: of the site.
        settings: of the link.
        base_url: of the site's outbound proxy; None: straight to the gateway.

    Raises:
        CertificateError, ClockError: without `base_url`, when the site's certificate is not valid now.
        KeyFileError: its key cannot be used.
    """

    def __init__(self, identity: Identity, settings: LinkSettings, *, base_url: str | None = None) -> None:
        self._membership = identity.membership
        self._is_direct = base_url is None
        if base_url is None:
            way = Way(identity.membership, identity.ssl_context(), settings)
            self._pool = ConnectionPool(lambda: GatewayConnection(way), IDLE_SECONDS)
        else:
            parts = urlsplit(base_url)
            host, port, seconds = parts.hostname or "", parts.port, settings.read_timeout_seconds
            self._pool = ConnectionPool(lambda: http.client.HTTPConnection(host, port, timeout=seconds), IDLE_SECONDS)
        self.clock_offset_seconds: float | None = None
        """How far the coordinator's clock is ahead of this one, to about a second; None before the first answer."""

    def get_time(self, *, deadline_seconds: float = CALL_SECONDS) -> datetime:
        """Return the coordinator's time; whatever this machine's clock says. Raises as `get_studies`, but for the clock."""
        content = self._call("GET", "/v1/time", None, _read_small, deadline_seconds, checks_clock=False)
        try:
            return datetime.fromisoformat(json.loads(content)["utc"])
        except (ValueError, KeyError, TypeError) as error:
            raise _nonsense() from error

    def get_studies(self, *, deadline_seconds: float = CALL_SECONDS) -> list[Signed]:
        """Return the publications and withdrawals the coordinator shows; no signature is checked here.

        Raises:
            UnreachableError, ProxyRefusedError: the gateway was not reached by the deadline.
            CertificateError: one side does not accept the other's certificate.
            ClockError: this machine's clock is off, by the certificates or by more than five minutes from the coordinator's.
            LinkError: the gateway refused, or what it says makes no sense.
        """
        content = self._call("GET", "/v1/studies", None, _read_documents, deadline_seconds)
        try:
            return _SIGNED_LIST.validate_json(content)
        except ValidationError as error:
            raise _nonsense() from error

    def post_answer(self, signed: Signed, *, deadline_seconds: float = CALL_SECONDS) -> None:
        """Hand in what the site says to a study. Raises as `get_studies`."""
        self._call("POST", "/v1/answers", signed.model_dump_json().encode(), _read_small, deadline_seconds)

    def renew(self, signed: Signed, *, deadline_seconds: float = CALL_SECONDS) -> Signed:
        """Hand in a request for renewal and return the new membership, unchecked. Raises as `get_studies`."""
        content = self._call("POST", "/v1/renew", signed.model_dump_json().encode(), _read_small, deadline_seconds)
        try:
            return Signed.model_validate_json(content)
        except ValidationError as error:
            raise _nonsense() from error

    def get_blob(self, name: str, path: Path, max_bytes: int, *, deadline_seconds: float = BLOB_SECONDS) -> None:
        """Fetch a published file of parameters; it is at `path` when it is whole and fits its name, and not before.

        Args:
            name: SHA-256 of its content.
            path: where to.
            max_bytes: what may be taken at most.
            deadline_seconds: after which it is not tried again.

        Raises:
            TooLargeError: it is larger; nothing was read.
            ArraysError: the content is not what the name says.
            OSError: it cannot be written.
            LinkError, TrustError: as `get_studies`.
        """

        def receive(response: http.client.HTTPResponse) -> None:
            _receive_blob(response, name, path, max_bytes)

        self._call("GET", f"/v1/blobs/{name}", None, receive, deadline_seconds)

    def put_blob(self, path: Path, name: str | None = None, *, deadline_seconds: float = BLOB_SECONDS) -> str:
        """Send a file of parameters and return its name; what the coordinator has already is not sent again.

        Args:
            path: of the file.
            name: SHA-256 of its content; None: it is read to find out.
            deadline_seconds: after which it is not tried again.

        Raises:
            OSError: it cannot be read.
            LinkError, TrustError: as `get_studies`.
        """
        name = name or sha256_of_file(path)
        self._call("PUT", f"/v1/blobs/{name}", path, _read_small, deadline_seconds)
        return name

    def close(self) -> None:
        """Close the connections kept."""
        self._pool.close()

    def _call(
        self,
        method: str,
        target: str,
        body: bytes | Path | None,
        receive: _Receive[_T],
        seconds: float,
        *,
        checks_clock: bool = True,
    ) -> _T:
        deadline = time.monotonic() + seconds
        wait = _FIRST_WAIT_SECONDS
        while True:
            try:
                return self._try(method, target, body, receive, checks_clock)
            except UnreachableError:
                if time.monotonic() + wait >= deadline:
                    raise
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

    def _try(
        self, method: str, target: str, body: bytes | Path | None, receive: _Receive[_T], checks_clock: bool
    ) -> _T:
        with self._exchange() as connection:
            response = _send(connection, method, target, body)
            self.clock_offset_seconds = clock_offset(response)
            if response.status >= 400:
                raise self._refusal(response)
            if checks_clock:
                self._check_clock()
            received = receive(response)
            if response.isclosed() and not response.will_close:
                self._pool.keep(connection)
            else:
                connection.close()
            return received

    @contextmanager
    def _exchange(self) -> Iterator[http.client.HTTPConnection]:
        """Yield a connection for one request; whatever goes wrong with it is explained, and it is closed."""
        connection = self._pool.take() or self._pool.open()
        try:
            yield connection
        except _LocalError as error:
            connection.close()
            raise error.cause from None
        except (ssl.SSLError, TimeoutError, ConnectionError, socket.gaierror) as error:
            connection.close()
            raise self._explained(error) from error
        except http.client.HTTPException as error:
            connection.close()
            raise UnreachableError(f"The answer of {self._membership.address} broke off or is not HTTP.") from error
        except OSError as error:
            connection.close()
            raise self._explained(error) from error
        except BaseException:
            connection.close()
            raise

    def _explained(self, error: OSError) -> EchoFedError:
        if self._is_direct:
            return explained(error, self._membership)
        what = f"The site's outbound proxy does not answer: {error.strerror or type(error).__name__}."
        return UnreachableError(what, "Look at its log; `echofed site start` runs it.")

    def _check_clock(self) -> None:
        offset = self.clock_offset_seconds
        if offset is not None and abs(offset) > MAX_CLOCK_OFFSET_SECONDS:
            side = "behind" if offset > 0 else "ahead of"
            raise ClockError(f"This machine's clock is {abs(offset):.0f} s {side} the coordinator's.")

    def _refusal(self, response: http.client.HTTPResponse) -> EchoFedError:
        error = refusal_of(response.status, response.read(MAX_REFUSAL_BYTES))
        if not isinstance(error, UnreachableError):
            try:
                self._check_clock()  # a wrong clock is the likelier reason
            except ClockError as clock_error:
                return clock_error
        return error


def clock_offset(response: http.client.HTTPResponse) -> float | None:
    """Return by how many seconds the coordinator's clock is ahead of this one, to about one; None if it does not say."""
    try:
        there = parsedate_to_datetime(response.getheader("Date", ""))
    except ValueError:
        return None
    # A date has whole seconds, rounded down.
    return there.timestamp() + 0.5 - time.time()


class _LocalError(Exception):
    """This machine's own disk failed: not to be taken for the connection's failure."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def _own_files() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _LocalError(error) from error


def _send(
    connection: http.client.HTTPConnection, method: str, target: str, body: bytes | Path | None
) -> http.client.HTTPResponse:
    connection.putrequest(method, target, skip_accept_encoding=True)
    if not isinstance(body, Path):
        if body is not None:
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        return connection.getresponse()
    with contextlib.ExitStack() as opened:
        with _own_files():
            stream = opened.enter_context(body.open("rb", buffering=0))
            size = os.fstat(stream.fileno()).st_size
        connection.putheader("Content-Type", "application/octet-stream")
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        with contextlib.suppress(ConnectionError):  # it may have answered before it closed
            _send_file(connection, stream.fileno(), size)
    return connection.getresponse()


def _send_file(connection: http.client.HTTPConnection, descriptor: int, size: int) -> None:
    """Send a file's bytes until the end or an early answer: then the rest is not wanted."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    sent = 0
    while sent < size and not is_readable(connection.sock):
        with _own_files():
            read = os.preadv(descriptor, [buffer], sent)
        if not read:
            raise _LocalError(OSError("the file became shorter while it was sent"))
        connection.send(buffer[:read])
        sent += read


def _receive_blob(response: http.client.HTTPResponse, name: str, path: Path, max_bytes: int) -> None:
    size = response.length
    if size is None or size > max_bytes:
        raise TooLargeError(f"The file of parameters has {size} bytes; at most {max_bytes} are taken.")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    buffers = piece_buffers(size)
    try:
        with contextlib.ExitStack() as opened:
            with _own_files():
                stream = opened.enter_context(part.open("wb", buffering=0))
            digest = opened.enter_context(ParallelSha256())
            left = size
            while left:
                buffer = next(buffers)
                read = response.readinto(buffer[: min(left, len(buffer))])
                if not read:
                    raise http.client.IncompleteRead(b"", left)
                digest.update(buffer[:read])
                with _own_files():
                    stream.write(buffer[:read])
                left -= read
            found = digest.hexdigest()
        if found != name:
            raise ArraysError(
                "The file of parameters is not what its name says.", "Ask the coordinator to publish again."
            )
        with _own_files():
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read_small(response: http.client.HTTPResponse) -> bytes:
    return _read(response, 2**22)


def _read_documents(response: http.client.HTTPResponse) -> bytes:
    return _read(response, MAX_DOCUMENTS_BYTES)


def _read(response: http.client.HTTPResponse, limit: int) -> bytes:
    content = response.read(limit + 1)
    if len(content) > limit:
        raise TooLargeError(f"The answer has more than {limit} bytes.")
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return content


def _nonsense() -> GatewayRefusedError:
    return GatewayRefusedError("The gateway's answer makes no sense to this version.", "Upgrade EchoFed on both sides.")
