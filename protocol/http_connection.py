"""HTTP/1.1 as EchoFed's gateway and proxy take it in: the least that is needed, everything else refused, no wait without end.

A connection belongs to one thread: blocking sockets move large bodies about twice as fast as asyncio's TLS.
"""

import contextlib
import itertools
import json
import select
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from echofed.protocol.errors import GatewayRefusedError, TooLargeError
from echofed.protocol.http_head import RefusalError, Request, parse_head

PIECE_BYTES = 2**20
"""A body is moved in pieces of this size."""
MAX_HEAD_BYTES = 2**14
LINGER_SECONDS = 1.0


@dataclass(frozen=True)
class Pace:
    """How long a peer may take.

    Args:
        idle_seconds: between two requests.
        head_seconds: for a request's head, from its first byte.
        grace_seconds: for a body, beyond what its bytes need at the lowest rate.
        idle_body_seconds: without a byte of a body that is read.
        bytes_per_second: the lowest rate of a body, in both directions.
        body_seconds: for a body, whatever its rate.
    """

    idle_seconds: float = 75.0
    head_seconds: float = 10.0
    grace_seconds: float = 10.0
    idle_body_seconds: float = 10.0
    bytes_per_second: float = 16_384.0
    body_seconds: float = 3600.0

    def seconds_for(self, size: int) -> float:
        """Return how long so many bytes of a body may take."""
        return min(self.grace_seconds + size / self.bytes_per_second, self.body_seconds)


class HttpConnection:
    """One accepted connection.

    Args:
        stream: connected; TLS is shaken hands on.
        pace: how long the peer may take.
    """

    def __init__(self, stream: socket.socket, pace: Pace) -> None:
        self._stream, self._pace = stream, pace
        self._kept = bytearray()
        self._unread_bytes = 0
        self._answered, self._lingers = True, False
        self.is_open = True
        """Whether another request may follow."""

    def read_request(self, idle_seconds: float | None = None) -> Request | None:
        """Wait for the next request and return its head; None if the peer has closed or sent nothing for too long.

        Args:
            idle_seconds: how long to wait for its first byte; None: as the pace says.

        Raises:
            RefusalError: the head is malformed (400), too large (431) or too slow (408).
            OSError: the connection broke.
        """
        try:
            if not self._kept and not self._receive(idle_seconds or self._pace.idle_seconds):
                return None
        except TimeoutError:
            return None
        self._answered = False
        head = self._read_head()
        if head is None:
            return None
        request = parse_head(head)
        self._unread_bytes = request.content_length
        if request.headers.get("connection", "").lower() == "close":
            self.is_open = False
        return request

    def _read_head(self) -> bytes | None:
        deadline = time.monotonic() + self._pace.head_seconds
        while (end := self._kept.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)) < 0:
            if len(self._kept) >= MAX_HEAD_BYTES:
                raise RefusalError(431, TooLargeError(f"The headers exceed {MAX_HEAD_BYTES} bytes."), closes=True)
            try:
                if not self._receive(deadline - time.monotonic()):
                    return None
            except TimeoutError:
                raise RefusalError(408, GatewayRefusedError("The headers came too slowly."), closes=True) from None
        head = bytes(self._kept[:end])
        del self._kept[: end + 4]
        return head

    def body(self) -> Iterator[memoryview]:
        """Yield the current request's body in pieces of at most `PIECE_BYTES`; each overwrites the last but one.

        Raises:
            RefusalError: the body came too slowly (408) or ended early (400).
            OSError: the connection broke.
        """
        buffers = piece_buffers(self._unread_bytes)
        start, done = time.monotonic(), 0
        while self._unread_bytes:
            piece = next(buffers)[: min(self._unread_bytes, PIECE_BYTES)]
            self._fill(piece, start, done)
            done += len(piece)
            self._unread_bytes -= len(piece)
            yield piece

    def read_body(self) -> bytes:
        """Return the current request's whole body; the caller has checked its length. Raises as `body`."""
        return b"".join(bytes(piece) for piece in self.body())

    def _fill(self, piece: memoryview, start: float, done: int) -> None:
        """Fill a piece of a body that began at `start` and has `done` bytes before it."""
        filled = min(len(self._kept), len(piece))
        piece[:filled] = self._kept[:filled]
        del self._kept[:filled]
        try:
            # What follows happens for every 16 kB: the timeout is set once, the time is looked at every time.
            left = start + self._pace.seconds_for(done + filled) - time.monotonic()
            self._allow(min(left, self._pace.idle_body_seconds))
            while filled < len(piece):
                size = self._stream.recv_into(piece[filled:])
                filled += size
                if not size:
                    raise RefusalError(
                        400, GatewayRefusedError("The body ended before its Content-Length."), closes=True
                    )
                if time.monotonic() - start > self._pace.seconds_for(done + filled):
                    raise TimeoutError
        except TimeoutError:
            raise RefusalError(408, GatewayRefusedError("The body came too slowly."), closes=True) from None

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Send a whole answer. Raises OSError if the peer does not take it."""
        self.start_answer(status, {**headers, "Content-Length": str(len(body))}, body)

    def refuse(self, refusal: RefusalError, headers: Mapping[str, str] | None = None) -> None:
        """Answer with an error as JSON, and close if the request's body was not read."""
        self.is_open = self.is_open and not refusal.closes
        self._lingers = refusal.closes
        error = refusal.error
        content = {"code": error.code, "what": error.what, "remedy": error.remedy}
        self.answer(
            refusal.status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def start_answer(self, status: int, headers: Mapping[str, str], first: bytes = b"") -> None:
        """Send an answer's head, and the first bytes of its body; the rest follows with `send`."""
        self.is_open = self.is_open and not self._unread_bytes
        self._answered = True
        lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
        lines += [f"{name}: {value}" for name, value in {"Date": formatdate(usegmt=True), **headers}.items()]
        if not self.is_open:
            lines.append("Connection: close")
        self.send("\r\n".join([*lines, "\r\n"]).encode("latin-1") + first)

    def send(self, data: bytes | memoryview) -> None:
        """Send bytes of a body. Raises OSError if the peer takes them too slowly or is gone."""
        view = memoryview(data)
        for start in range(0, len(view), PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            self._allow(self._pace.seconds_for(len(piece)))
            self._stream.sendall(piece)

    @property
    def is_answered(self) -> bool:
        """Whether an answer to the current request has begun."""
        return self._answered

    def peer_is_gone(self) -> bool:
        """Return whether the peer has closed, without waiting; what it sends early is kept."""
        if self._kept or not is_readable(self._stream):
            return False
        try:
            return not self._receive(0.001)
        except TimeoutError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close; a peer that is still sending can read the answer first."""
        if self._unread_bytes or self._lingers:
            drain(self._stream)
        self._stream.close()

    def abort(self) -> None:
        """Break the connection from another thread."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._stream, socket.SHUT_RDWR)  # TLS stays as it is for the thread that reads

    def _receive(self, seconds: float) -> bool:
        self._allow(seconds)
        data = self._stream.recv(MAX_HEAD_BYTES)
        self._kept += data
        return bool(data)

    def _allow(self, seconds: float) -> None:
        if seconds <= 0:
            raise TimeoutError
        self._stream.settimeout(seconds)


def piece_buffers(size: int) -> Iterator[memoryview]:
    """Yield two buffers in turn, for a body of so many bytes: while one is hashed the other can be filled."""
    return itertools.cycle([memoryview(bytearray(min(size, PIECE_BYTES))) for _ in range(2)])


def drain(stream: socket.socket) -> None:
    """End what is sent, and let the peer read it: for `LINGER_SECONDS` at most, what it still sends is thrown away.

    Closing with unread bytes would reset the connection, and the peer might lose the answer.
    """
    deadline = time.monotonic() + LINGER_SECONDS
    with contextlib.suppress(OSError, ValueError):
        stream.shutdown(socket.SHUT_WR)
        while (seconds := deadline - time.monotonic()) > 0:
            stream.settimeout(seconds)
            if not stream.recv(PIECE_BYTES):
                return


def is_readable(stream: socket.socket, seconds: float = 0.0) -> bool:
    """Return whether something can be read, be it the end of the stream, within so many seconds."""
    pending = getattr(stream, "pending", None)
    if pending is not None and pending():
        return True
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
