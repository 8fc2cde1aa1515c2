"""One request through the outbound proxy: to the gateway and back, tried again while it does not come through."""

import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from echofed.client.refusals import MAX_REFUSAL_BYTES, refusal_of
from echofed.client.uplink import Uplink
from echofed.protocol.bells import ring
from echofed.protocol.errors import CertificateError, ClockError, EchoFedError, UnreachableError
from echofed.protocol.http_connection import PIECE_BYTES, HttpConnection, is_readable
from echofed.protocol.http_head import RefusalError, Request

RETRY_SECONDS = 20.0
"""For which a request waits for a gateway that cannot be reached."""
PATIENCE_SECONDS = 25.0
"""Of SuperNode, with a margin: it gives up a request after thirty."""
MAX_MESSAGE_BYTES = 64 * 2**20
MESSAGE_BELL = Path("run", "message")
"""Of the state folder: rung when a message has come, for the site's executor."""

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.1, 1.0
_PULL = "/v1/fleet/pull-messages"
_BRINGING = (_PULL, "/v1/fleet/confirm-message-received")
"""A message, and the last of its parts."""
_NOT_FORWARDED = ("connection", "host", "content-length", "keep-alive", "prefer")
_PASSED_BACK = ("content-type", "date", "retry-after")
_TEMPORARY = (502, 503, 504)


@dataclass(frozen=True)
class Forwarder:
    """Forwards requests to the gateway.

    Args:
        uplink: the way there.
        answer_seconds: for which an answer is waited for.
        retry_seconds: for which a request is tried again.
        is_stopping: whether the proxy is about to end.
        bell: rung when a message has come for the site's executor.
    """

    uplink: Uplink
    answer_seconds: float
    retry_seconds: float
    is_stopping: Callable[[], bool]
    bell: Path

    def forward(self, request: Request, connection: HttpConnection) -> None:
        """Send a request on and its answer back, trying again what did not come through."""
        body = None if is_streamed(request) else connection.read_body()
        started = time.monotonic()
        wait, fresh = _FIRST_WAIT_SECONDS, False
        while True:
            try:
                return self._exchange(request, body, connection, started, fresh=fresh)
            except _NotForwardedError as error:
                late = time.monotonic() + wait >= started + self.retry_seconds
                if late or not error.may_pass or self.is_stopping():
                    raise RefusalError(503, error.meaning, closes=body is None) from error
            fresh = True
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
            if connection.peer_is_gone():
                connection.is_open = False
                return None

    def _exchange(
        self, request: Request, body: bytes | None, connection: HttpConnection, started: float, *, fresh: bool
    ) -> None:
        try:
            upstream = self.uplink.connect(fresh=fresh)
        except EchoFedError as error:
            raise _NotForwardedError(error, may_pass=isinstance(error, UnreachableError)) from error
        try:
            response = self._ask(upstream, request, body, connection, started)
            if response is None:
                return
            if response.status < 400:
                self.uplink.answered(response, None)
                if request.target in _BRINGING and response.length:
                    ring(self.bell)
                _pass_back(response, connection)
            else:
                self._pass_refusal(response, body, connection)
            if response.isclosed() and not response.will_close:
                self.uplink.keep(upstream)
                return
        except BaseException:
            upstream.close()
            raise
        upstream.close()

    def _pass_refusal(self, response: http.client.HTTPResponse, body: bytes | None, connection: HttpConnection) -> None:
        """Pass back an error, unless the gateway refuses the site as such or may answer otherwise soon.

        SuperNode would take a 403 for the end of its run; told that the way is closed for now, it waits.
        """
        content = response.read(MAX_REFUSAL_BYTES)
        meaning = refusal_of(response.status, content)
        is_final = response.status == 403 and isinstance(meaning, CertificateError | ClockError)
        # A node that another took the place of is told so too: people must hear of it, SuperNode does not say it.
        self.uplink.answered(response, meaning if response.status == http.HTTPStatus.FORBIDDEN else None)
        if is_final or (body is not None and response.status in _TEMPORARY):
            raise _NotForwardedError(meaning, may_pass=not is_final)
        connection.answer(response.status, content, _headers_back(response))

    def _ask(
        self,
        upstream: http.client.HTTPConnection,
        request: Request,
        body: bytes | None,
        connection: HttpConnection,
        started: float,
    ) -> http.client.HTTPResponse | None:
        """Return the gateway's answer; None if whoever asked has gone."""
        try:
            _send_head(upstream, request, PATIENCE_SECONDS - (time.monotonic() - started))
            if body is not None:
                upstream.send(body)
            else:
                _send_body(upstream, connection)
            if not self._await(upstream, connection):
                upstream.close()
                return None
            return upstream.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise _NotForwardedError(self.uplink.failed(error), may_pass=body is not None) from error

    def _await(self, upstream: http.client.HTTPConnection, connection: HttpConnection) -> bool:
        """Wait for an answer to begin; False if whoever asked has gone."""
        deadline = time.monotonic() + self.answer_seconds
        while not is_readable(upstream.sock, 0.5):
            if connection.peer_is_gone() or self.is_stopping():
                connection.is_open = False
                return False
            if time.monotonic() >= deadline:
                raise TimeoutError
        return True


class _NotForwardedError(Exception):
    """A request did not come through to the gateway, or its answer not back.

    Args:
        meaning: why.
        may_pass: trying again makes sense.
    """

    def __init__(self, meaning: EchoFedError, *, may_pass: bool) -> None:
        super().__init__(meaning.what)
        self.meaning, self.may_pass = meaning, may_pass


def is_streamed(request: Request) -> bool:
    """Return whether a request's body is moved in pieces; others are kept whole, to be sent again."""
    return request.method == "PUT"


def _send_head(upstream: http.client.HTTPConnection, request: Request, patience_seconds: float) -> None:
    upstream.putrequest(request.method, request.target, skip_accept_encoding=True)
    for name, value in request.headers.items():
        if name not in _NOT_FORWARDED:
            upstream.putheader(name, value)
    if request.method != "GET":
        upstream.putheader("content-length", str(request.content_length))
    if request.target == _PULL:
        upstream.putheader("prefer", f"wait={max(0, int(patience_seconds))}")
    upstream.endheaders()


def _send_body(upstream: http.client.HTTPConnection, connection: HttpConnection) -> None:
    """Send a body on as it comes, until its end or an early answer."""
    for piece in connection.body():
        if is_readable(upstream.sock):
            return
        try:
            upstream.send(piece)
        except ConnectionError:
            return  # it may have answered before it closed


def _headers_back(response: http.client.HTTPResponse) -> dict[str, str]:
    return {
        name: value
        for name, value in response.getheaders()
        if name.lower() in _PASSED_BACK or name.lower().startswith("flwr-")
    }


def _pass_back(response: http.client.HTTPResponse, connection: HttpConnection) -> None:
    if response.length is None:
        connection.answer(response.status, response.read(MAX_MESSAGE_BYTES), _headers_back(response))
        return
    connection.start_answer(response.status, {**_headers_back(response), "Content-Length": str(response.length)})
    buffer = memoryview(bytearray(min(PIECE_BYTES, response.length)))
    try:
        while response.length:
            read = response.readinto(buffer)
            if not read:
                raise ConnectionAbortedError("the gateway's answer ended early")
            connection.send(buffer[:read])
    except http.client.HTTPException as error:
        raise ConnectionAbortedError("the gateway's answer broke off") from error
