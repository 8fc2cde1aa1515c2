"""A TLS 1.3 connection from a site to the coordinator's gateway, through the hospital's HTTP proxy if there is one.

Every way in which this fails is told apart, because the remedies differ: no route, a proxy that refuses, a server that is not
the consortium's, a certificate that is not accepted, a clock that is off.
"""

import base64
import http.client
import re
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from echofed.client.link_settings import LinkSettings
from echofed.protocol.certificates import parse_certificate
from echofed.protocol.errors import CertificateError, ClockError, EchoFedError, ProxyRefusedError, UnreachableError
from echofed.protocol.membership import Membership, split_address

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")
_MAX_PROXY_ANSWER_BYTES = 2**14
_NOT_YET_VALID, _EXPIRED, _WRONG_HOST, _WRONG_ADDRESS = 9, 10, 62, 64
"""Codes of X509_verify_cert in OpenSSL."""


@dataclass(frozen=True)
class Way:
    """How a site reaches its coordinator's gateway.

    Args:
        membership: says where the gateway is and what it is called.
        context: trusts the consortium's root alone, and presents the site's certificate.
        settings: of the link; name the hospital's proxy, if there is one.
    """

    membership: Membership
    context: ssl.SSLContext
    settings: LinkSettings


class GatewayConnection(http.client.HTTPConnection):
    """HTTP over TLS 1.3 to the gateway; opened by the first request.

    Args:
        way: how to get there.
    """

    def __init__(self, way: Way) -> None:
        super().__init__(*split_address(way.membership.address), timeout=way.settings.read_timeout_seconds)
        self._way = way

    def connect(self) -> None:
        """Open the connection; raises as `open_tunnel`."""
        self.sock = open_tunnel(self._way)
        self.sock.settimeout(self.timeout)


def open_tunnel(way: Way) -> ssl.SSLSocket:
    """Return a connection to the gateway on which TLS is shaken hands.

    With TLS 1.3 the gateway looks at the site's certificate only afterwards: a refusal shows on the first read.

    Raises:
        UnreachableError, ProxyRefusedError, CertificateError, ClockError: as `explained` tells them apart.
    """
    membership, settings = way.membership, way.settings
    deadline = time.monotonic() + settings.connect_timeout_seconds
    try:
        address = split_address(membership.address)
        stream = (
            _through_proxy(address, settings, deadline) if settings.proxy_address else _connected(address, deadline)
        )
        try:
            stream.settimeout(_left(deadline))
            tunnel = way.context.wrap_socket(stream, server_hostname=membership.server_name)
        except BaseException:
            stream.close()
            raise
    except OSError as error:
        raise explained(error, membership) from error
    # Requests are small and answers are waited for.
    tunnel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tunnel


def explained(error: OSError, membership: Membership) -> EchoFedError:
    """Return what went wrong with a connection to the gateway, and what to do."""
    address = membership.address
    if isinstance(error, ssl.SSLCertVerificationError):
        return _server_refused(error, membership)
    if isinstance(error, ssl.SSLError):
        reason = error.reason or "no reason given"
        if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
            what = f"The coordinator's gateway does not accept this site's certificate ({reason.lower()})."
            return _clock_error(membership, what) or CertificateError(what)
        if isinstance(error, ssl.SSLEOFError):
            return UnreachableError(f"{address} closed the connection.")
        what = f"What answers at {address} does not speak TLS 1.3 as the gateway does ({reason.lower()})."
        return UnreachableError(what, "Check the address; a proxy that looks into TLS must leave this address out.")
    if isinstance(error, socket.gaierror):
        return UnreachableError(f"The name of {address} is not known here.")
    if isinstance(error, TimeoutError):
        return UnreachableError(f"{address} did not answer in time.")
    if isinstance(error, ConnectionRefusedError):
        return UnreachableError(f"Nothing listens at {address}.")
    return UnreachableError(f"The connection to {address} broke: {error.strerror or type(error).__name__}.")


def _server_refused(error: ssl.SSLCertVerificationError, membership: Membership) -> EchoFedError:
    """Return why the server's certificate is not accepted; the clock is a reason like any other."""
    what = f"The server at {membership.address} was not accepted: {error.verify_message}."
    if error.verify_code == _NOT_YET_VALID:
        return ClockError(f"{what} This machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.")
    if error.verify_code == _EXPIRED:
        return _clock_error(membership, what) or CertificateError(what, "Ask the coordinator to renew it.")
    if error.verify_code in (_WRONG_HOST, _WRONG_ADDRESS):
        return CertificateError(what, f"The address must lead to {membership.server_name}; check it, and the DNS.")
    return CertificateError(
        what, "It is not this consortium's server, or a proxy looks into TLS: it must leave this address out."
    )


def _clock_error(membership: Membership, what: str) -> ClockError | None:
    """Return an error if this machine's clock is outside the site's own certificate."""
    own = parse_certificate(membership.tls_pem)
    now = datetime.now(UTC)
    if own.not_valid_before_utc <= now <= own.not_valid_after_utc:
        return None
    valid = f"{own.not_valid_before_utc:%Y-%m-%d %H:%M} to {own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    return ClockError(
        f"{what} This machine's clock says {now:%Y-%m-%d %H:%M} UTC; its own certificate is valid from {valid}.",
        "Set the clock; if it is right, the certificate has expired: enrol again with a new invitation.",
    )


def _connected(address: tuple[str, int], deadline: float) -> socket.socket:
    return socket.create_connection(address, _left(deadline))


def _left(deadline: float) -> float:
    return max(0.01, deadline - time.monotonic())


def _through_proxy(address: tuple[str, int], settings: LinkSettings, deadline: float) -> socket.socket:
    """Return a connection that the hospital's proxy has opened for us."""
    assert settings.proxy_address is not None
    name = f"The hospital's proxy {settings.proxy_address[0]}:{settings.proxy_address[1]}"
    try:
        stream = _connected(settings.proxy_address, deadline)
    except OSError as error:
        raise UnreachableError(f"{name} does not answer.", "Check proxy_url in link.yaml, and the firewall.") from error
    try:
        stream.settimeout(_left(deadline))
        stream.sendall(_connect_request(address, settings.proxy_credentials()))
        _check_proxy_answer(_read_proxy_answer(stream, deadline), name, settings)
    except BaseException:
        stream.close()
        raise
    return stream


def _connect_request(address: tuple[str, int], credentials: tuple[str, str] | None) -> bytes:
    host, port = address
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if credentials is not None:
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(':'.join(credentials).encode()).decode()}")
    return "\r\n".join([*lines, "\r\n"]).encode()


def _read_proxy_answer(stream: socket.socket, deadline: float) -> bytes:
    answer = bytearray()
    # Nothing of TLS can be read here by mistake: there the server speaks second.
    while b"\r\n\r\n" not in answer and len(answer) < _MAX_PROXY_ANSWER_BYTES:
        stream.settimeout(_left(deadline))
        data = stream.recv(4096)
        if not data:
            break
        answer += data
    return bytes(answer)


def _check_proxy_answer(answer: bytes, name: str, settings: LinkSettings) -> None:
    match = _STATUS_LINE.match(answer)
    status = int(match[1]) if match else 0
    if 200 <= status < 300:
        return
    if status == 407:
        asked = "refuses the user or the password" if settings.proxy_user else "asks for a user and a password"
        raise ProxyRefusedError(f"{name} {asked}.")
    if status in (502, 503, 504):
        raise UnreachableError(f"{name} cannot reach the coordinator (status {status}).")
    raise ProxyRefusedError(f"{name} does not let the connection through (status {status or 'unknown'}).")
