"""GET requests to a DICOMweb server over kept connections: authenticated, bounded, repeated where it may help."""

import base64
import contextlib
import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.sources.credentials import read_secret, tls_context
from echofed.client.ingest.sources.item import Reason
from echofed.client.ingest.sources.politeness import TransferError
from echofed.client.ingest.sources.settings import DicomWebSource
from echofed.protocol.http_pool import ConnectionPool

MAX_JSON_BYTES = 2**26
KEPT_SECONDS = 1.0
"""Servers close idle connections at their own time; a request on a closed one costs an attempt."""
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
_NOT_THERE = frozenset({404, 410})


class WebClient:
    """Makes requests to one server; safe to use from several threads.

    Args:
        source: address and how to authenticate.

    Raises:
        SourceError: a secret or certificate cannot be read.
    """

    def __init__(self, source: DicomWebSource) -> None:
        parts = urlsplit(source.url)
        self._host, self._port, self._path = parts.hostname or "", parts.port, parts.path.rstrip("/")
        self._timeout_seconds = source.timeout_seconds
        self._tls = (
            tls_context(source.ca_file, source.certificate_file, source.key_file) if parts.scheme == "https" else None
        )
        self._headers = {"User-Agent": "EchoFed", "Accept-Encoding": "identity"} | _authorization(source)
        self._pool = ConnectionPool(self._connect, KEPT_SECONDS)
        self._active: set[socket.socket] = set()

    @contextlib.contextmanager
    def get(self, path: str, accept: str) -> Iterator[http.client.HTTPResponse]:
        """Give the answer to a GET; the connection is kept if the body is read to its end.

        Raises:
            SourceError: our credentials or the server's certificate are refused.
            TransferError: anything else but status 200 or 204; also if reading the body fails in the block.
        """
        connection = self._pool.take() or self._opened()
        stream, is_whole = connection.sock, False
        self._active.add(stream)
        try:
            connection.request("GET", self._path + path, headers={**self._headers, "Accept": accept})
            response = connection.getresponse()
            if response.status not in (200, 204):
                raise _refusal(response)
            yield response
            is_whole = response.isclosed() and not response.will_close
        except (OSError, http.client.HTTPException) as error:
            raise TransferError(Reason.BROKEN_OFF, may_pass=True) from error
        finally:
            self._active.discard(stream)
            if is_whole:
                self._pool.keep(connection)
            else:
                connection.close()

    def get_json(self, path: str, query: Mapping[str, str | int]) -> list[dict[str, Any]]:
        """Return the objects a search finds, none if it says so with 204.

        Raises:
            SourceError, TransferError: as `get`; TransferError too if the answer is no list of objects or too large.
        """
        target = f"{path}?{urlencode(query, quote_via=quote)}"
        with self.get(target, "application/dicom+json") as response:
            content = response.read(MAX_JSON_BYTES + 1)
            if len(content) > MAX_JSON_BYTES:
                raise TransferError(Reason.TOO_LARGE, may_pass=False)
            if response.length:
                raise TransferError(Reason.BROKEN_OFF, may_pass=True)
        if not content:
            return []
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise TransferError(Reason.BAD_ANSWER, may_pass=False) from error
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise TransferError(Reason.BAD_ANSWER, may_pass=False)
        return found

    def abort(self) -> None:
        """Break all requests off, from another thread."""
        for stream in list(self._active):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(stream, socket.SHUT_RDWR)  # TLS stays as it is for the thread that reads

    def close(self) -> None:
        """Close the kept connections."""
        self._pool.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_seconds)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_seconds, context=self._tls)

    def _opened(self) -> http.client.HTTPConnection:
        connection = self._pool.open()
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            raise SourceError(
                f"The PACS's certificate is not accepted: {error.verify_message}.", "Write ca_file."
            ) from error
        except OSError as error:
            connection.close()
            raise TransferError(Reason.UNREACHABLE, may_pass=True) from error
        return connection


def _authorization(source: DicomWebSource) -> dict[str, str]:
    if source.user is not None:
        password = read_secret("PACS password", source.password_file, source.password_env)
        return {"Authorization": "Basic " + base64.b64encode(f"{source.user}:{password}".encode()).decode()}
    if source.token_file is not None or source.token_env is not None:
        token = read_secret("PACS token", source.token_file, source.token_env)
        if not token.isascii():
            raise SourceError("The PACS token holds other than ASCII characters.")
        return {"Authorization": f"Bearer {token}"}
    return {}


def _refusal(response: http.client.HTTPResponse) -> TransferError:
    status = response.status
    if status in (401, 407):
        raise SourceError("The PACS refuses the credentials.", "Correct user, password or token in the settings.")
    if status in _NOT_THERE:
        return TransferError(Reason.NOT_FOUND, may_pass=False)
    if status in _MAY_PASS:
        seconds = response.headers.get("Retry-After", "")
        after = float(seconds) if re.fullmatch(r"[0-9]{1,4}", seconds) else 0.0
        return TransferError(Reason.FAILED, may_pass=True, after_seconds=after)
    # Redirections are not followed: the credentials are for the server that is named.
    return TransferError(Reason.REFUSED, may_pass=False)
