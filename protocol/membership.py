"""How a hospital comes into a consortium: invitation, request, membership, renewal.

Each is a Signed document. An invitation and a membership bring the coordinator's certificate with them; that its root is the
right one is known from the words compared over the telephone, and from then on from the site's own copy.
"""

import ipaddress
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AfterValidator, Field, ValidationError

from echofed.protocol.certificates import (
    MAX_PEM_CHARACTERS,
    check_chain,
    common_name,
    parse_certificate,
    parse_request,
    root_fingerprint,
    signing_key_of,
)
from echofed.protocol.document import Document
from echofed.protocol.errors import CertificateError, ClockError, EnrolmentError, SignatureError
from echofed.protocol.messages import SiteName
from echofed.protocol.models import Sha256
from echofed.protocol.signing import Signed, verify

CLOCK_TOLERANCE = timedelta(minutes=10)
"""By how much two parties' clocks may differ."""

_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_ADDRESS = re.compile(r"(?:\[(?P<bracketed>[0-9A-Fa-f:.]+)\]|(?P<plain>[^:\[\]]+)):(?P<port>[0-9]{1,5})")


def iso_time(moment: datetime) -> str:
    """Return a moment as documents write it: UTC, ISO 8601, whole seconds."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def parse_time(text: str) -> datetime:
    """Return the moment a document's text means.

    Raises:
        ValueError: it is not as `iso_time` writes it.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None or iso_time(moment) != text:
        raise ValueError("a time must be UTC, as in 2030-01-31T12:00:00+00:00")
    return moment


def split_address(address: str) -> tuple[str, int]:
    """Return the host (a name or an IP address, without brackets) and the port of "host:port".

    Raises:
        ValueError: it is not an address.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= (port := int(match["port"])) <= 65535:
        raise ValueError("write the address as host:port, as in fed.example.org:8443")
    host = match["bracketed"] or match["plain"]
    if match["bracketed"] or re.fullmatch(r"[0-9.]+", host):
        ipaddress.ip_address(host)
    elif not _HOST.fullmatch(host):
        raise ValueError(f"{host} is not a host's name")
    return host, port


def _checked_time(text: str) -> str:
    parse_time(text)
    return text


def _checked_address(address: str) -> str:
    split_address(address)
    return address


Time = Annotated[str, Field(max_length=32), AfterValidator(_checked_time)]
Address = Annotated[str, Field(max_length=300), AfterValidator(_checked_address)]
Pem = Annotated[str, Field(max_length=MAX_PEM_CHARACTERS)]
ConsortiumName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]


class _FromCoordinator(Document):
    """What the coordinator hands to a site, with what it takes to check the signature under it."""

    consortium: Sha256 = Field(description="of the root certificate, DER.")
    site: SiteName
    address: Address = Field(description="of the coordinator's server.")
    root_pem: Pem
    coordinator_signing_pem: Pem
    issued_at: Time
    expires_at: Time


FromCoordinator = TypeVar("FromCoordinator", bound=_FromCoordinator)
AnyDocument = TypeVar("AnyDocument", bound=Document)


class Invitation(_FromCoordinator):
    """Lets one hospital ask once to be enrolled."""

    name: ConsortiumName
    secret: str = Field(pattern=r"^[0-9a-f]{32}$", description="random, 128 bits.")


class Membership(_FromCoordinator):
    """All a site needs to take part; nothing in it is secret."""

    consortium_name: ConsortiumName
    issuing_pem: Pem
    server_name: str = Field(max_length=253, description="for which the server's certificate must be.")
    tls_pem: Pem
    signing_pem: Pem


class EnrolmentRequest(Document):
    """A site asks to be enrolled, signed with the signing key it has just made."""

    consortium: Sha256
    invitation: Sha256 = Field(description="of the invitation's secret.")
    site: SiteName
    tls_csr_pem: Pem
    signing_csr_pem: Pem
    requested_at: Time


class RenewalRequest(Document):
    """A site asks for new certificates, signed with its signing key; the TLS key is new, the signing key stays."""

    consortium: Sha256
    site: SiteName
    tls_csr_pem: Pem
    requested_at: Time


def open_invitation(signed: Signed, now: datetime) -> Invitation:
    """Return an invitation after checking that it is sound, and not yet expired.

    Whose it is only the words tell that are compared by telephone.

    Raises:
        SignatureError, CertificateError: it was changed, or its certificates are not sound.
        EnrolmentError: it has expired.
        ClockError: it is from the future.
    """
    invitation = _verified(signed, "invitation", Invitation, now)
    if parse_time(invitation.expires_at) < now:
        raise EnrolmentError(f"The invitation expired at {invitation.expires_at}; the clock says {iso_time(now)}.")
    return invitation


def open_membership(signed: Signed, now: datetime | None, consortium: str | None = None) -> Membership:
    """Return a membership after checking its signature and its certificates' chains.

    Args:
        signed: what arrived or was kept.
        now: when all must be valid; None: when it was issued.
        consortium: of which it must be; None: of any.

    Raises:
        SignatureError, CertificateError: it was changed, its certificates are not sound or have expired, or it is of another
            consortium.
        ClockError: it is from the future.
    """
    membership = _verified(signed, "membership", Membership, now)
    if consortium not in (None, membership.consortium):
        raise CertificateError(f"The membership is of another consortium, {membership.consortium_name}.")
    moment = now or parse_time(membership.issued_at)
    root, issuing = parse_certificate(membership.root_pem), parse_certificate(membership.issuing_pem)
    tls, signing = parse_certificate(membership.tls_pem), parse_certificate(membership.signing_pem)
    check_chain(tls, issuing, root, "site tls", moment)
    check_chain(signing, issuing, root, "site signing", moment)
    if {common_name(tls.subject), common_name(signing.subject)} != {membership.site}:
        raise CertificateError(f"The certificates are not those of {membership.site}.")
    return membership


def open_request(signed: Signed) -> EnrolmentRequest:
    """Return an enrolment request after checking that its sender holds both keys it wants certified.

    Raises:
        SignatureError, CertificateError: it was changed, or a signing request in it is not sound.
    """
    claimed = _claimed(signed, EnrolmentRequest, "enrolment request")
    key = parse_request(claimed.signing_csr_pem, "site signing", claimed.site).public_key()
    assert isinstance(key, Ed25519PublicKey)
    request = verify(signed, key, "enrolment request", EnrolmentRequest)
    parse_request(request.tls_csr_pem, "site tls", request.site)
    return request


def coordinator_key_of(membership: Membership) -> Ed25519PublicKey:
    """Return the key the coordinator signs with, as a membership that was opened names it."""
    return signing_key_of(parse_certificate(membership.coordinator_signing_pem))


def certificates_of(membership: Membership) -> tuple[x509.Certificate, x509.Certificate]:
    """Return the site's certificates, for TLS and for signing."""
    return parse_certificate(membership.tls_pem), parse_certificate(membership.signing_pem)


def _verified(
    signed: Signed, purpose: Literal["invitation", "membership"], kind: type[FromCoordinator], now: datetime | None
) -> FromCoordinator:
    claimed = _claimed(signed, kind, purpose)
    root, coordinator = parse_certificate(claimed.root_pem), parse_certificate(claimed.coordinator_signing_pem)
    if root_fingerprint(root) != claimed.consortium:
        raise CertificateError(f"The root certificate in the {purpose} is not the one it names.")
    issued = parse_time(claimed.issued_at)
    if now is not None and issued > now + CLOCK_TOLERANCE:
        raise ClockError(
            f"The {purpose} was issued at {claimed.issued_at}, but this machine's clock says {iso_time(now)}."
        )
    # The root signs the coordinator's certificate: there is no issuing authority between.
    check_chain(coordinator, root, root, "coordinator signing", now or issued)
    return verify(signed, signing_key_of(coordinator), purpose, kind)


def _claimed(signed: Signed, kind: type[AnyDocument], purpose: str) -> AnyDocument:
    """Return what a document says before it is known who signed it: just enough to find the key to check."""
    if signed.purpose != purpose:
        raise SignatureError(
            f"This was signed as {signed.purpose!r}, not as {purpose!r}.", "Check that it is the right file."
        )
    try:
        return kind.model_validate_json(signed.payload)
    except ValidationError as error:
        raise SignatureError(f"What was signed is not a {purpose} this version knows.", "Upgrade EchoFed.") from error
