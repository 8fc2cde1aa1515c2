"""What the coordinator hands to sites: invitations and memberships."""

import secrets
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from echofed.protocol.certificates import certificate_pem
from echofed.protocol.key_files import write_private_file
from echofed.protocol.membership import Invitation, Membership, iso_time, open_membership, parse_time
from echofed.protocol.signing import Signed, sign
from echofed.server.authority import Authority, Consortium
from echofed.server.issuing import issue_leaf
from echofed.server.roster import member_file


def make_invitation(consortium: Consortium, site: str, now: datetime) -> Invitation:
    """Return a new invitation, with a secret of its own."""
    return Invitation(
        consortium=consortium.id,
        name=consortium.settings.name,
        site=site,
        address=consortium.settings.address,
        root_pem=certificate_pem(consortium.root),
        coordinator_signing_pem=certificate_pem(consortium.signing),
        secret=secrets.token_hex(16),
        issued_at=iso_time(now),
        expires_at=iso_time(now + timedelta(days=consortium.settings.invitation_days)),
    )


def make_membership(
    authority: Authority, site: str, csr: x509.CertificateSigningRequest, signing: Ed25519PublicKey, now: datetime
) -> tuple[Membership, x509.Certificate]:
    """Return a new membership with new certificates for both keys, and the TLS certificate in it.

    Raises:
        CertificateError: the issuing authority's certificate has expired.
    """
    consortium = authority.consortium
    life = timedelta(days=consortium.settings.certificate_days)
    tls_key = csr.public_key()
    assert isinstance(tls_key, EllipticCurvePublicKey)
    issuer = (consortium.issuing, authority.issuing_key, now, life)
    tls = issue_leaf("site tls", site, tls_key, *issuer)
    membership = Membership(
        consortium=consortium.id,
        consortium_name=consortium.settings.name,
        site=site,
        address=consortium.settings.address,
        server_name=consortium.settings.server_name,
        root_pem=certificate_pem(consortium.root),
        issuing_pem=certificate_pem(consortium.issuing),
        coordinator_signing_pem=certificate_pem(consortium.signing),
        tls_pem=certificate_pem(tls),
        signing_pem=certificate_pem(issue_leaf("site signing", site, signing, *issuer)),
        issued_at=iso_time(now),
        expires_at=iso_time(tls.not_valid_after_utc),
    )
    return membership, tls


def write_membership(authority: Authority, membership: Membership) -> Signed:
    """Sign a membership and keep it as the site's newest."""
    signed = sign(authority.signing_key, "membership", membership)
    # What is handed out is looked at as the site will look at it.
    open_membership(signed, parse_time(membership.issued_at), authority.consortium.id)
    path = member_file(authority.consortium.folder, membership.site)
    write_private_file(path, signed.model_dump_json().encode() + b"\n")
    return signed
