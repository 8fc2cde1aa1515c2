"""The review page: served to this machine's own browser, and to nothing else.

What is shown may hold patients' names. The server listens on loopback alone. Its address opens once: it gives the browser
a cookie that only this page's own path sends back, and works for nobody who reads it afterwards from a screen or a list
of processes. Each request must name loopback as its host (against DNS rebinding), and what another page or another
program's page on this machine sends is refused. Nothing is cached, and the page can load nothing from elsewhere.
"""

import hmac
import json
import secrets
import sys
import threading
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.review.answers import Answer, Review, answer_get, answer_post
from echofed.client.ingest.review.case import Decision
from echofed.protocol.errors import EchoFedError, PortInUseError, TrustError, UnexpectedError

LOOPBACK = "127.0.0.1"
MAX_BODY_BYTES = 256 * 2**10
_COOKIE = "echofed-review"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class ReviewServer(ThreadingHTTPServer):
    """A queue's page on a port of 127.0.0.1.

    Args:
        review: what is shown, and what happens on a decision.
        port: 0 for any that is free.

    Raises:
        PortInUseError: it is taken, or the system keeps it for itself.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, review: Review, port: int = 0) -> None:
        self.review = review
        self._lock, self._opened = threading.Lock(), False
        self.entry, self.page, self.cookie = (secrets.token_urlsafe(24) for _ in range(3))
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            raise PortInUseError(f"The review page cannot be served on port {port} of {LOOPBACK}.") from error

    @property
    def url(self) -> str:
        """Where a browser opens the page, once."""
        return f"http://{LOOPBACK}:{self.server_port}/open/{self.entry}"

    def enter(self, entry: str) -> bool:
        """Return whether this opens the page, which it does once."""
        if not _same(entry, self.entry):
            return False
        with self._lock:
            first, self._opened = not self._opened, True
        return first

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a browser that went away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def serve(
    folder: Path,
    port: int = 0,
    who: str | None = None,
    on_decision: Callable[[Decision], None] | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        folder: of the queue.
        port: of 127.0.0.1; 0 for any that is free.
        who: decides; None: the page asks.
        on_decision: called after each decision is on disk, from the request's own thread.
        announce: told the address, once it can be opened.

    Raises:
        PortInUseError: the port is taken.
    """
    with ReviewServer(Review(folder, who, on_decision), port) as server:
        try:
            announce(server.url)
            server.serve_forever()
        except KeyboardInterrupt:
            return


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "EchoFed", ""
    timeout = 60.0

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: addresses hold secrets."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is not HTTP as everything else is answered."""
        self.close_connection = True
        self._send(_error(code, IngestError("The request cannot be understood.", "Load the page again.")))

    def _answer(self, ask: Callable[[], Answer]) -> None:
        try:
            answer = ask()
        except TrustError as error:
            answer = _error(403, error)
        except EchoFedError as error:
            answer = _error(409, error)
        except OSError as error:
            answer = _error(500, IngestError(f"{error.strerror}.", "Check the disk and its permissions."))
        except Exception as error:
            answer = _error(500, UnexpectedError(f"The page failed on a request: {type(error).__name__}."))
        if answer.status >= 400:
            self.close_connection = True  # what is left of the request is not read
        self._send(answer)

    def _get(self) -> Answer:
        self._check_host()
        path = urlsplit(self.path).path
        if path == "/favicon.ico":
            return Answer(204, "", b"")
        if path.startswith("/open/"):
            return self._open(path.removeprefix("/open/"))
        return answer_get(self.server.review, self._inside(path))

    def _open(self, entry: str) -> Answer:
        page = f"/review/{self.server.page}/"
        if not self.server.enter(entry) and not (_same(entry, self.server.entry) and self._has_cookie()):
            what = "This address does not open the page, or another browser has opened it before."
            raise TrustError(what, "Run `echofed site review` again.")
        cookie = f"{_COOKIE}={self.server.cookie}; HttpOnly; SameSite=Strict; Path="
        # The second one lets the same browser come in again.
        headers = (("Location", page), ("Set-Cookie", cookie + page), ("Set-Cookie", f"{cookie}/open/{entry}"))
        return Answer(303, "", b"", headers)

    def _post(self) -> Answer:
        host = self._check_host()
        inside = self._inside(urlsplit(self.path).path)
        if self.headers.get_all("Origin") != [f"http://{host}"]:
            raise TrustError("The request comes from another page.", "Use the page that `echofed site review` opens.")
        if self.headers.get_content_type() != "application/json" or "Transfer-Encoding" in self.headers:
            raise IngestError("The request is not JSON of a known length.", "Load the page again.")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or len(length) > 9 or int(length) > MAX_BODY_BYTES:
            raise IngestError("The request is larger than any decision.", "Draw fewer masks.")
        try:
            content = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise IngestError("The request is not JSON.", "Load the page again.") from error
        return answer_post(self.server.review, inside, content)

    def _check_host(self) -> str:
        hosts = self.headers.get_all("Host") or []
        port = self.server.server_port
        if len(hosts) != 1 or hosts[0] not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
            raise TrustError("The request names another host.", "Open the address that `echofed site review` shows.")
        return hosts[0]

    def _inside(self, path: str) -> str:
        """Return the path within the page, for a browser that holds the cookie and asks by itself."""
        _, _, page, inside = [*path.split("/", 3), "", "", ""][:4]
        from_page = self.headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none")
        if not (path.startswith("/review/") and _same(page, self.server.page) and self._has_cookie() and from_page):
            raise TrustError("This browser was not let in.", "Run `echofed site review` again.")
        return inside

    def _has_cookie(self) -> bool:
        try:
            cookie = SimpleCookie("; ".join(self.headers.get_all("Cookie") or [])).get(_COOKIE)
        except CookieError:
            return False
        return cookie is not None and _same(cookie.value, self.server.cookie)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in (*_HEADERS.items(), *answer.headers):
            self.send_header(name, value)
        if answer.kind:
            self.send_header("Content-Type", answer.kind)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)


def _error(status: int, error: EchoFedError) -> Answer:
    said = {"code": error.code, "what": error.what, "remedy": error.remedy}
    return Answer(status, "application/json", json.dumps(said).encode())


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(), secret.encode())
