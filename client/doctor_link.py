"""A look at the way from a site to its coordinator: name, network, hospital's proxy, TLS, membership, clock; step by step."""

import contextlib
import http.client
import ipaddress
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from cryptography import x509

from echofed.client.findings import Finding, bad, from_error, good, warning, within
from echofed.client.identity import Identity
from echofed.client.link_settings import LinkSettings
from echofed.client.tunnel import GatewayConnection, Way, explained, open_tunnel
from echofed.protocol.certificates import certificate_from_der, check_validity, common_name
from echofed.protocol.errors import CertificateError, ClockError, EchoFedError, KeyFileError, ProxyRefusedError
from echofed.protocol.membership import Membership, split_address

STEP_SECONDS = 5.0
LOOK_SECONDS = 4 * STEP_SECONDS + 1.0
"""For all steps."""
MAX_OFFSET = timedelta(minutes=5)
"""Beyond it Flower takes nothing from a site."""

_NOTED_OFFSET = timedelta(seconds=30)
_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL: a wrong clock is measured, rather than taken for a wrong certificate."""
_MAX_ANSWER_BYTES = 2**16
_TELL_NETWORK = "Ask the hospital's network team to let this machine reach that address and port."


def look_at_link(
    membership: Membership, identity: Identity | None, settings: LinkSettings, now: Callable[[], datetime]
) -> Iterator[Finding]:
    """Yield what each step finds; the first that fails is the last.

    Args:
        membership: says where the gateway is.
        identity: presents the site's certificate; None: its keys cannot be used, so the last steps are left out.
        settings: of the link.
        now: the clock.
    """
    quick = settings.model_copy(
        update={
            "connect_timeout_seconds": min(settings.connect_timeout_seconds, STEP_SECONDS),
            "read_timeout_seconds": min(settings.read_timeout_seconds, STEP_SECONDS),
        }
    )
    host, port = settings.proxy_address or split_address(membership.address)
    yield (name := _name(host, port, settings))
    if name.state == "bad":
        return
    yield (reach := _reach(host, port))
    if reach.state == "bad" or identity is None:
        return
    yield from _gateway(membership, identity, quick, now)


def _name(host: str, port: int, settings: LinkSettings) -> Finding:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return good("name", f"{host} is an address: no name needs to be known.")
    whose = (
        "the hospital's proxy, which itself looks up the coordinator" if settings.proxy_address else "the coordinator"
    )
    try:
        found = within(STEP_SECONDS, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except OSError as error:
        why = "no name server answered" if isinstance(error, TimeoutError) else "it is not known here"
        return bad("name", f"The name {host} ({whose}): {why}.", "Check the name, and this machine's DNS.")
    addresses = sorted({str(entry[4][0]) for entry in found})
    return good("name", f"{host} ({whose}) is {', '.join(addresses)}.")


def _reach(host: str, port: int) -> Finding:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        within(STEP_SECONDS + 1, lambda: socket.create_connection((host, port), STEP_SECONDS).close())
    except ConnectionRefusedError:
        what = f"{where} refuses connections: nothing listens there, or a firewall says so."
        return bad("network", what, "Check the address, and ask whether the coordinator is running.")
    except TimeoutError:
        return bad("network", f"{where} did not answer within {STEP_SECONDS:.0f} s.", _TELL_NETWORK)
    except OSError as error:
        return bad("network", f"{where}: {error.strerror or error}.", _TELL_NETWORK)
    return good("network", f"{where} can be reached.")


def _gateway(
    membership: Membership, identity: Identity, settings: LinkSettings, now: Callable[[], datetime]
) -> Iterator[Finding]:
    proxy = f"{settings.proxy_address[0]}:{settings.proxy_address[1]}" if settings.proxy_address else ""
    try:
        way = Way(membership, _context(membership, identity), settings)
        connection = GatewayConnection(way)
        connection.connect()
    except ProxyRefusedError as error:
        yield from_error("hospital's proxy", error)
        return
    except EchoFedError as error:
        yield from_error("tls", error)
        if isinstance(error, CertificateError):
            yield from _who_answers(way)
        return
    with contextlib.closing(connection):
        if proxy:
            yield good("hospital's proxy", f"{proxy} lets the connection through.")
        assert isinstance(connection.sock, ssl.SSLSocket)
        yield _server(membership, connection.sock, now)
        yield from _membership(membership, connection, now)


def _context(membership: Membership, identity: Identity) -> ssl.SSLContext:
    """Return what checks all of the server's certificate but its dates, which `_server` looks at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | ssl.VERIFY_X509_STRICT | _NO_CHECK_TIME)
    context.load_verify_locations(cadata=membership.root_pem)
    try:
        context.load_cert_chain(identity.tls_file, password=identity.passphrase or "")
    except (ssl.SSLError, OSError) as error:
        raise KeyFileError(f"{identity.tls_file} cannot be used for TLS.") from error
    return context


def _server(membership: Membership, stream: ssl.SSLSocket, now: Callable[[], datetime]) -> Finding:
    certificate = certificate_from_der(stream.getpeercert(binary_form=True) or b"")
    what = f"The server's certificate ({common_name(certificate.subject)})"
    try:
        check_validity(certificate, now(), what)
    except (CertificateError, ClockError) as error:
        return from_error("tls", error)
    who = f"{membership.server_name} of the consortium {membership.consortium_name}"
    return good("tls", f"{who} answers, in {stream.version()}; its certificate is valid to {_day(certificate)}.")


def _who_answers(way: Way) -> Iterator[Finding]:
    """Say who is there instead of the consortium's server; none of it is proven."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(EchoFedError, OSError, ValueError):
        with contextlib.closing(open_tunnel(Way(way.membership, context, way.settings))) as stream:
            found = certificate_from_der(stream.getpeercert(binary_form=True) or b"")
        subject, issuer = common_name(found.subject) or "nobody", common_name(found.issuer) or "nobody"
        what = f"What answers at {way.membership.address} calls itself {subject}, certified by {issuer}."
        expected = (
            f"It must be {way.membership.server_name}, certified by {way.membership.consortium_name}'s authority."
        )
        yield warning("who answers", what, expected)


def _membership(
    membership: Membership, connection: GatewayConnection, now: Callable[[], datetime]
) -> Iterator[Finding]:
    try:
        connection.request("GET", "/v1/time")
        response = connection.getresponse()
        content = response.read(_MAX_ANSWER_BYTES)
        here = now()
    except http.client.HTTPException as error:
        remedy = "Ask the coordinator for the gateway's log."
        yield bad("membership", f"The gateway's answer makes no sense: {error!r}.", remedy)
        return
    except OSError as error:
        yield from_error("membership", explained(error, membership))
        return
    try:
        said = json.loads(content)
        if response.status != 200:
            remedy = "Ask the coordinator whether the site is still enrolled."
            yield bad("membership", f"[{said['code']}] {said['what']}"[:500], str(said.get("remedy") or remedy)[:500])
            return
        there = datetime.fromisoformat(said["utc"])
        offset = here - there
    except (ValueError, KeyError, TypeError):
        what = f"The gateway's answer makes no sense (status {response.status})."
        yield bad("membership", what, "Ask the coordinator for the gateway's log.")
        return
    yield good("membership", f"The gateway accepts the certificate of {membership.site}: it is not revoked.")
    yield _clock(offset)


def _clock(offset: timedelta) -> Finding:
    if abs(offset) <= _NOTED_OFFSET:
        return good("clock", "This machine's clock agrees with the coordinator's to half a minute.")
    side = "ahead of" if offset > timedelta(0) else "behind"
    what = f"This machine's clock is {_spelled(abs(offset))} {side} the coordinator's."
    remedy = "Set the clock (timedatectl shows it), and let systemd-timesyncd or chrony keep it."
    if abs(offset) <= MAX_OFFSET:
        return warning("clock", what, remedy)
    return bad("clock", f"{what} Nothing this site sends is taken while it is more than 5 minutes off.", remedy)


def _spelled(span: timedelta) -> str:
    seconds = round(span.total_seconds())
    if seconds < 120:
        return f"{seconds} seconds"
    if seconds < 7200:
        return f"{round(seconds / 60)} minutes"
    if seconds < 86_400:
        return f"{round(seconds / 3600)} hours"
    days = round(seconds / 86_400)
    return f"{days} day{'' if days == 1 else 's'}"


def _day(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"
