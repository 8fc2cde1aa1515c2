"""Who is at the door: TLS 1.3 with the site's certificate, or what nginx in front found of it; and whether it is still good."""

import logging
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from echofed.protocol.certificates import certificate_from_der
from echofed.protocol.errors import (
    CertificateError,
    EchoFedError,
    GatewayRefusedError,
    KeyFileError,
    StateFolderError,
    TrustError,
)
from echofed.protocol.http_head import RefusalError, Request
from echofed.protocol.key_files import find_passphrase, is_encrypted
from echofed.server.roster import check_member, is_revoked

LOG = logging.getLogger("echofed.gateway")
ROOT, ISSUING = Path("authority", "root.pem"), Path("authority", "issuing.pem")
SERVER_CERTIFICATE, SERVER_KEY = Path("authority", "server.pem"), Path("authority", "server.key")
"""Of the coordinator's folder."""
RELOAD_SECONDS = 60.0
CERTIFICATE_HEADER = "x-client-cert"

_MAX_KNOWN = 1024


class ServerTls:
    """The gateway's own certificate and what it asks of others; read again when it changes on disk.

    Args:
        folder: the coordinator's.
        reload_seconds: how often the disk is looked at.
        passphrase: of the key; None: from the environment or typed, if it is encrypted.

    Raises:
        TrustError: a file is missing, damaged, or the passphrase is wrong.
    """

    def __init__(self, folder: Path, reload_seconds: float = RELOAD_SECONDS, passphrase: str | None = None) -> None:
        self._folder, self._reload_seconds = folder, reload_seconds
        self._stamp = self._file_stamp()
        encrypted = is_encrypted(folder / SERVER_KEY)
        self._passphrase = (passphrase or find_passphrase(folder / SERVER_KEY)) if encrypted else None
        self._context = self._load()
        self._looked_at = time.monotonic()

    def context(self) -> ssl.SSLContext:
        """Return what new connections use; if what is on disk has become unusable, what was read before."""
        if time.monotonic() - self._looked_at >= self._reload_seconds:
            self._looked_at = time.monotonic()
            try:
                stamp = self._file_stamp()
                if stamp != self._stamp:
                    self._context, self._stamp = self._load(), stamp
                    LOG.info("the server's certificate was read again")
            except EchoFedError as error:
                LOG.error("%s", error)
        return self._context

    def _file_stamp(self) -> tuple[int, ...]:
        try:
            files = (ROOT, ISSUING, SERVER_CERTIFICATE, SERVER_KEY)
            return tuple((self._folder / path).stat().st_mtime_ns for path in files)
        except OSError as error:
            raise KeyFileError(f"{error.filename} cannot be read: {error.strerror}.") from error

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        # Every connection shows its certificate anew: no session is resumed.
        context.num_tickets = 0
        try:
            context.load_verify_locations(self._folder / ROOT)
            context.load_verify_locations(self._folder / ISSUING)
            passphrase = self._passphrase or ""  # an empty one, lest OpenSSL asks on the terminal
            context.load_cert_chain(self._folder / SERVER_CERTIFICATE, self._folder / SERVER_KEY, passphrase)
        except (OSError, ValueError) as error:
            raise KeyFileError(f"The server's certificate and key cannot be used: {error}.") from error
        return context


class Door:
    """Which certificates let in; safe to use from several threads.

    Args:
        folder: the coordinator's.
        now: the clock, UTC.
    """

    def __init__(self, folder: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._folder, self._now = folder, now
        self._known: dict[bytes, tuple[str, x509.Certificate]] = {}
        self._lock = threading.Lock()

    def site_of(self, certificate: bytes) -> str:
        """Return the name of the site whose certificate this is; to be asked for every request, costs a look at one file.

        Args:
            certificate: DER.

        Raises:
            RefusalError: 403, it is not a member's, on record, valid now and not revoked; 503, that cannot be told.
        """
        try:
            site, known = self._known.get(certificate) or self._checked(certificate)
            if is_revoked(self._folder, known):
                raise CertificateError(f"{site} is revoked.", "Ask the coordinator why, and for a new invitation.")
            if self._now() > known.not_valid_after_utc:
                raise CertificateError(f"The certificate of {site} has expired.")
        except StateFolderError as error:
            LOG.error("%s", error)
            what = "The coordinator cannot tell now who may come in."
            raise RefusalError(
                503, GatewayRefusedError(what, "Ask the coordinator to look at the gateway's log.")
            ) from error
        except TrustError as error:
            raise RefusalError(403, error, closes=True) from error
        return site

    def _checked(self, certificate: bytes) -> tuple[str, x509.Certificate]:
        parsed = certificate_from_der(certificate)
        checked = check_member(self._folder, parsed, self._now()), parsed
        with self._lock:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[certificate] = checked
        return checked


def certificate_from_nginx(request: Request) -> bytes:
    """Return the certificate (DER) that nginx passes on.

    Only for a socket that nothing but nginx can reach: nginx always sets this header, whatever the site sent.

    Raises:
        RefusalError: 403, there is none.
    """
    pem = urllib.parse.unquote(request.headers.get(CERTIFICATE_HEADER, ""))
    try:
        return ssl.PEM_cert_to_DER_cert(pem)
    except ValueError as error:
        raise RefusalError(403, CertificateError("nginx passed on no certificate."), closes=True) from error
