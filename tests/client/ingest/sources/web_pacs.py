"""A small DICOMweb server on loopback that can be told to misbehave."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

BOUNDARY = "frontier"


@dataclass
class WebPacs:
    """What the server holds and does.

    Args:
        files: by instance id; one study "2.25.1", one series "2.25.1.1".
        before: called with the handler and the path before the answer; returns whether it has answered itself.
        promised: instances the series is said to have; None: as it has.
        patient: id in the answers to searches.
        page: most instances in an answer.
        ignores_offset: gives the first page for any.
        with_length: parts tell their length.
        chunked: answers do not tell theirs.
    """

    files: dict[str, bytes]
    before: Callable[["Handler", str], bool] = lambda handler, path: False
    promised: int | None = None
    patient: str = "P1"
    page: int = 1000
    ignores_offset: bool = False
    with_length: bool = True
    chunked: bool = False
    requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    url: str = ""

    def paths(self) -> list[str]:
        """Return the paths asked for, without the queries."""
        return [path.partition("?")[0] for path, _ in self.requests]


class Handler(BaseHTTPRequestHandler):
    """Answers from the PACS of its class."""

    protocol_version = "HTTP/1.1"
    pacs: ClassVar[WebPacs]

    def do_GET(self) -> None:
        """Answer searches and requests for instances."""
        self.pacs.requests.append((self.path, dict(self.headers)))
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        names = parts.path.strip("/").split("/")
        if self.pacs.before(self, parts.path):
            return
        match names:
            case ["dicom-web", "studies"]:
                self._list([{"0020000D": ["2.25.1"], "00100020": [self.pacs.patient]}], query)
            case ["dicom-web", "studies", "2.25.1", "series"]:
                count = len(self.pacs.files) if self.pacs.promised is None else self.pacs.promised
                self._list([{"0020000E": ["2.25.1.1"], "00201209": [count]}], query)
            case ["dicom-web", "studies", "2.25.1", "series", "2.25.1.1", "instances"]:
                self._list([{"00080018": [key]} for key in self.pacs.files], query)
            case [*_, "instances", uid] if uid in self.pacs.files:
                self.send_instance(self.pacs.files[uid])
            case _:
                self.send(404, b"")

    def send_instance(self, content: bytes) -> None:
        """Send an instance as multipart/related."""
        length = f"Content-Length: {len(content)}\r\n" if self.pacs.with_length else ""
        head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n{length}\r\n".encode()
        body = head + content + f"\r\n--{BOUNDARY}--\r\n".encode()
        self.send(200, body, {"Content-Type": f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'})

    def send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, claimed: int = 0) -> None:
        """Send an answer, which may claim to be longer than it is; then the connection is closed."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.pacs.chunked and not claimed:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(body), 1000):
                piece = body[start : start + 1000]
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(claimed or len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = bool(claimed)

    def _list(self, found: list[dict[str, list[Any]]], query: Mapping[str, str]) -> None:
        start = 0 if self.pacs.ignores_offset else int(query["offset"])
        page = found[start : start + min(int(query["limit"]), self.pacs.page)]
        if not page:
            self.send(204, b"")
            return
        objects = [{tag: {"vr": "UI", "Value": values} for tag, values in one.items()} for one in page]
        self.send(200, json.dumps(objects).encode(), {"Content-Type": "application/dicom+json"})

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""


@contextmanager
def serving(pacs: WebPacs, tls: ssl.SSLContext | None = None) -> Iterator[WebPacs]:
    """Serve on loopback while the context is entered."""
    server = _Server(("127.0.0.1", 0), type("Bound", (Handler,), {"pacs": pacs}))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    pacs.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}/dicom-web"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield pacs
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
