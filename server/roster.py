"""Who is in the consortium, and who may come in: what is read of members, and never changes them."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from echofed.protocol.certificates import check_chain, common_name, parse_certificate, signing_key_of
from echofed.protocol.errors import CertificateError, StateFolderError
from echofed.protocol.membership import Membership, open_membership, parse_time
from echofed.protocol.signing import MAX_SIGNED_BYTES, read_signed
from echofed.protocol.state_folder import read_limited
from echofed.server.authority import Consortium, read_consortium
from echofed.server.enrolments import (
    OpenInvitation,
    Revocation,
    all_invitations,
    key_hash,
    read_enrolment,
    read_revocations,
    site_name,
)

ONLINE_SECONDS = 60.0
NODES = Path("gateway", "nodes.json")


@dataclass(frozen=True)
class Member:
    """A site, as the coordinator knows it.

    Args:
        site: its name.
        enrolled_at: since when it is a member.
        expires_at: when its certificate expires.
        revocation: why it is not let in, if so.
        seen_at: its last request to the gateway, if any.
        online: whether that was less than a minute ago.
        overdue: whether its certificate should have been renewed by now, or has expired.
    """

    site: str
    enrolled_at: datetime
    expires_at: datetime
    revocation: Revocation | None
    seen_at: datetime | None
    online: bool
    overdue: bool


def is_revoked(folder: Path, who: str | int | x509.Certificate) -> bool:
    """Return whether a site (by name) or a TLS certificate (by serial number, or itself) is revoked.

    Costs a look at one file's status; a revocation by another process is seen at once.

    Raises:
        StateFolderError: who is revoked is not known.
    """
    revocations = read_revocations(folder)
    if isinstance(who, x509.Certificate):
        return revocations.open_for(common_name(who.subject)) is not None or is_revoked(folder, who.serial_number)
    if isinstance(who, int):
        return any(f"{who:x}" in one.serials for one in revocations.revocations)
    return revocations.open_for(who) is not None


def check_member(folder: Path, certificate: x509.Certificate, now: datetime | None = None) -> str:
    """Return the site a TLS certificate lets in.

    Only certificates on record are accepted: one that the issuing key signed behind the coordinator's back is not.

    Args:
        folder: the coordinator's.
        certificate: what the site came with.
        now: the time; None: the clock's.

    Raises:
        CertificateError: it is not the certificate of a member, is revoked, has expired or is not for TLS.
        ClockError: it is not valid yet.
        StateFolderError: who is revoked is not known.
    """
    consortium = read_consortium(folder)
    check_chain(certificate, consortium.issuing, consortium.root, "site tls", now or datetime.now(UTC))
    site = common_name(certificate.subject)
    if is_revoked(folder, certificate):
        raise CertificateError(f"{site} is revoked.", "Ask the coordinator why, and for a new invitation.")
    enrolment = read_enrolment(folder, site)
    wanted = (f"{certificate.serial_number:x}", key_hash(certificate))
    if enrolment is None or wanted not in {(one.serial, one.key) for one in enrolment.certificates}:
        raise CertificateError(f"{site} came with a certificate that is not on record.")
    return site


def members(folder: Path, now: datetime | None = None) -> list[Member]:
    """Return all sites that were ever enrolled, sorted by name.

    Raises:
        StateFolderError: the folder's state cannot be read.
    """
    moment = now or datetime.now(UTC)
    consortium, revocations, seen = read_consortium(folder), read_revocations(folder), _seen(folder)
    found = []
    for path in sorted((folder / "members").glob("*.json")):
        membership, enrolment = read_member(consortium, path.stem), read_enrolment(folder, path.stem)
        if enrolment is None:
            continue
        issued_at, expires_at = parse_time(membership.issued_at), parse_time(membership.expires_at)
        seen_at = seen.get(path.stem)
        online = seen_at is not None and abs((moment - seen_at).total_seconds()) < ONLINE_SECONDS
        # Sites renew after two thirds; a sixth more is for those that were off.
        overdue = moment > issued_at + (expires_at - issued_at) * 5 / 6
        revocation = revocations.open_for(path.stem)
        found.append(
            Member(path.stem, parse_time(enrolment.enrolled_at), expires_at, revocation, seen_at, online, overdue)
        )
    return found


def open_invitations(folder: Path, now: datetime | None = None) -> list[OpenInvitation]:
    """Return the invitations that can still be used."""
    moment = now or datetime.now(UTC)
    return [one for one in all_invitations(folder) if one.used_by is None and parse_time(one.expires_at) >= moment]


def site_signing_key(folder: Path, site: str) -> Ed25519PublicKey:
    """Return the key a member signs with; signatures it made while its certificate was valid stay valid.

    Raises:
        CertificateError: the site is not a member, or is revoked.
        StateFolderError: the folder's state cannot be read.
    """
    if is_revoked(folder, site):
        raise CertificateError(f"{site} is revoked.", "Ask the coordinator why, and for a new invitation.")
    membership = read_member(read_consortium(folder), site_name(site))
    return signing_key_of(parse_certificate(membership.signing_pem))


def read_member(consortium: Consortium, site: str) -> Membership:
    """Return a member's newest membership.

    Raises:
        CertificateError: there is none.
        SignatureError, StateFolderError: it is damaged, or another site's.
    """
    path = member_file(consortium.folder, site)
    try:
        signed = read_signed(read_limited(path, MAX_SIGNED_BYTES))
    except FileNotFoundError as error:
        raise CertificateError(f"{site} is not a member of {consortium.settings.name}.") from error
    membership = open_membership(signed, None, consortium.id)
    if membership.site != site:
        raise StateFolderError(f"{path} is the membership of {membership.site}.")
    return membership


def member_file(folder: Path, site: str) -> Path:
    """Return where a member's newest membership lies."""
    return folder / "members" / f"{site_name(site)}.json"


def _seen(folder: Path) -> dict[str, datetime]:
    """Return when the gateway last saw each site."""
    path = folder / NODES
    if not path.exists():
        return {}
    try:
        nodes = json.loads(read_limited(path))
        return {site: datetime.fromisoformat(node["seen_at"]) for site, node in nodes.items() if node.get("seen_at")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateFolderError(f"{path} is damaged.", "Delete it: the gateway writes it again.") from error
