"""The head of an HTTP/1.1 request, read in the only way in which it can be read.

Every header once, a body only with its length, no chunks, no folded lines, no bare line feeds: whatever stands in front cannot
read it differently (request smuggling).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from echofed.protocol.errors import EchoFedError, GatewayRefusedError

MAX_HEADERS = 64

_REQUEST_LINE = re.compile(rb"([A-Z]{3,10}) ([\x21-\x7e]{1,2048}) HTTP/1\.1")
_HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*([\x20-\x7e\t]*)")
_LENGTH = re.compile(r"[0-9]{1,15}")


class RefusalError(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        error: what is told to the peer.
        closes: the connection cannot be used further.
    """

    def __init__(self, status: int, error: EchoFedError, *, closes: bool = False) -> None:
        super().__init__(error.what)
        self.status, self.error, self.closes = status, error, closes


@dataclass(frozen=True)
class Request:
    """A request's head.

    Args:
        method: in capitals.
        target: as it was sent; nothing is decoded or normalised.
        headers: names in lower case.
        content_length: of the body; 0 without one.
    """

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    content_length: int


def parse_head(head: bytes) -> Request:
    """Return a request from the bytes before its empty line.

    Raises:
        RefusalError: 400 whatever could be read in two ways; 411 a body without its length; 417 an expectation.
    """
    first, *lines = head.split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None or len(lines) > MAX_HEADERS:
        raise _malformed("The request line or the number of headers is not allowed.")
    headers: dict[str, str] = {}
    for text in lines:
        match = _HEADER_LINE.fullmatch(text)
        if match is None:
            raise _malformed("A header line is malformed.")
        name = match[1].decode().lower()
        if name in headers:
            raise _malformed("A header comes twice.")
        headers[name] = match[2].decode().strip(" \t")
    return Request(line[1].decode(), line[2].decode(), headers, _content_length(headers))


def _content_length(headers: Mapping[str, str]) -> int:
    length = headers.get("content-length")
    if "transfer-encoding" in headers:
        if length is not None:
            raise _malformed("A request has either a Content-Length or a Transfer-Encoding.")
        raise RefusalError(
            411, GatewayRefusedError("A body needs its Content-Length; chunks are not taken."), closes=True
        )
    if "host" not in headers:
        raise _malformed("The Host header is missing.")
    if "expect" in headers:
        raise RefusalError(417, GatewayRefusedError("Expect is not supported; send the body at once."), closes=True)
    if length is not None and not _LENGTH.fullmatch(length):
        raise _malformed("The Content-Length is not a number.")
    return int(length or 0)


def _malformed(what: str) -> RefusalError:
    return RefusalError(400, GatewayRefusedError(what), closes=True)
