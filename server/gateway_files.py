"""What the gateway answers itself: the time, studies, files of parameters, the sites' answers and renewals."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.errors import (
    ArraysError,
    AuditLogError,
    EchoFedError,
    GatewayRefusedError,
    KeyFileError,
    StateFolderError,
    TooLargeError,
    UnexpectedError,
)
from echofed.protocol.http_connection import PIECE_BYTES, HttpConnection
from echofed.protocol.http_head import RefusalError, Request
from echofed.protocol.publication import Publication
from echofed.protocol.signing import Signed, read_signed
from echofed.server.authority import read_consortium
from echofed.server.blobs import BlobStore
from echofed.server.gateway_limits import Limits, Quota, check_length
from echofed.server.members import renew
from echofed.server.roster import is_revoked
from echofed.server.studies import published_and_damaged, published_studies, receive_answer

LOG = logging.getLogger("echofed.gateway")
BLOBS_PREFIX = "/v1/blobs/"
UPDATE_SPARE_BYTES = 2**20
"""An update has the model's parameters, or fewer; this is for its head."""
_JSON = {"Content-Type": "application/json"}
_OWN_FAULTS = (AuditLogError, KeyFileError, StateFolderError)
"""Which are not the asking site's."""


class Files:
    """The coordinator's folder, as far as sites may see it.

    Args:
        folder: the coordinator's.
        limits: of bodies.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._blobs = BlobStore(folder)
        self._blobs.remove_parts()
        self._uploads = Quota(limits.uploads_per_site)
        self._largest = (frozenset[str](), 0)
        self._damaged: set[str] = set()
        self._drop_revoked()

    def time(self, connection: HttpConnection) -> None:
        """Answer with this machine's clock."""
        _answer_json(connection, {"utc": datetime.now(UTC).isoformat(timespec="milliseconds")})

    def studies(self, connection: HttpConnection) -> None:
        """Answer with all signed publications and withdrawals; a damaged one is left out, and logged."""
        signed, damaged = published_and_damaged(self._folder)
        self._note_damaged(damaged)
        _answer_json(connection, [one.model_dump(mode="json") for one in signed])

    def _note_damaged(self, damaged: Mapping[str, EchoFedError]) -> None:
        """Log the studies that are damaged now and were not when somebody asked last."""
        new, self._damaged = damaged.keys() - self._damaged, set(damaged)
        for study in sorted(new):
            LOG.error("Study %s: %s", study[:12], damaged[study])
            with (
                contextlib.suppress(AuditLogError),  # a full disk keeps nobody out
                open_audit_log(self._folder, owner=read_consortium(self._folder).settings.name) as log,
            ):
                log.append("error", study=study, code=damaged[study].code, what=damaged[study].what)

    def send_blob(self, request: Request, connection: HttpConnection) -> None:
        """Answer with a published blob, in pieces.

        Raises:
            RefusalError: 404, there is none of this name.
        """
        try:
            stream = self._blobs.published(request.target.removeprefix(BLOBS_PREFIX)).open("rb", buffering=0)
        except (ArraysError, FileNotFoundError):
            raise RefusalError(404, GatewayRefusedError("There is no such file of parameters.")) from None
        with stream:
            left = stream.seek(0, 2)
            stream.seek(0)
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(left)}
            connection.start_answer(200, headers)
            buffer = memoryview(bytearray(PIECE_BYTES))
            while left:
                read = stream.readinto(buffer[: min(left, PIECE_BYTES)])
                if not read:
                    raise OSError("the file became shorter")
                connection.send(buffer[:read])
                left -= read

    def receive_blob(self, site: str, request: Request, connection: HttpConnection) -> None:
        """Take a site's blob; one that is there already is answered at once.

        Raises:
            RefusalError: 400 a wrong name or content; 411; 413; 503 too many at a time; 507 the disk is full.
        """
        check_length(request, self._largest_blob())
        self._drop_revoked()
        name, size = request.target.removeprefix(BLOBS_PREFIX), request.content_length
        with self._uploads.taken(site, "uploads"):
            try:
                if not self._blobs.has_incoming(site, name, size):
                    self._blobs.receive(site, name, size, connection.body())
            except ArraysError as error:
                raise RefusalError(400, error, closes=True) from error
            except TooLargeError as error:
                raise RefusalError(507, error, closes=True) from error
        _answer_json(connection, {"sha256": name, "size": size})

    def _largest_blob(self) -> int:
        """Return the bytes of the largest update a published study can have; if not known, what the settings say."""
        studies = frozenset(published_studies(self._folder))
        if studies != self._largest[0]:
            seen, damaged = published_and_damaged(self._folder)
            signed = [one for one in seen if one.purpose == "publication"]
            sizes = [Publication.model_validate_json(one.payload).parameters_bytes for one in signed]
            self._largest = (frozenset(), 0) if damaged else (studies, max(sizes, default=0))
        largest = self._largest[1]
        return min(self._limits.blob_bytes, largest + UPDATE_SPARE_BYTES) if largest else self._limits.blob_bytes

    def _drop_revoked(self) -> None:
        for site in self._blobs.sites():
            if is_revoked(self._folder, site):
                self._blobs.drop_site(site)

    def take_answer(self, site: str, request: Request, connection: HttpConnection) -> None:
        """Keep what a site says to a study. Raises RefusalError: 400 it is not a sound answer of this site's; 411; 413; 500."""
        with self._judging():
            receive_answer(self._folder, site, self._signed(request, connection))
        _answer_json(connection, {"kept": True})

    def renew(self, site: str, request: Request, connection: HttpConnection) -> None:
        """Answer with a site's new membership. Raises RefusalError: 400 it is not a sound request of its; 411; 413; 500."""
        with self._judging():
            membership = renew(self._folder, site, self._signed(request, connection))
        _answer_json(connection, membership.model_dump(mode="json"))

    def _signed(self, request: Request, connection: HttpConnection) -> Signed:
        check_length(request, self._limits.document_bytes)
        return read_signed(connection.read_body())

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """Turn the errors of looking at a document into refusals; the gateway's own faults are not explained to sites."""
        try:
            yield
        except _OWN_FAULTS as error:
            LOG.error("%s", error)
            what = "The coordinator cannot take this now."
            raise RefusalError(
                500, UnexpectedError(what, "Ask the coordinator to look at the gateway's log.")
            ) from error
        except EchoFedError as error:
            raise RefusalError(400, error) from error


def _answer_json(connection: HttpConnection, content: object) -> None:
    connection.answer(200, json.dumps(content).encode(), _JSON)
