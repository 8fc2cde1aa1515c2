"""Who is in the consortium: inviting, enrolling, renewing and revoking sites.

Everything that changes members holds the folder's lock, so that an invitation is used once however many processes try. Each step
is written in an order in which a kill leaves the invitation usable by the same request, and nobody let in by half.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from echofed.protocol.audit_log import Event, Fact, open_audit_log
from echofed.protocol.certificates import (
    parse_request,
)
from echofed.protocol.errors import ClockError, EnrolmentError
from echofed.protocol.key_files import write_private_file
from echofed.protocol.membership import (
    CLOCK_TOLERANCE,
    EnrolmentRequest,
    RenewalRequest,
    iso_time,
    open_request,
    parse_time,
)
from echofed.protocol.signing import MAX_SIGNED_BYTES, Signed, digest, read_signed, sign, verify
from echofed.protocol.state_folder import locked, read_limited
from echofed.protocol.words import fingerprint_words, same_words
from echofed.server.authority import Authority, Consortium, open_authority, read_consortium
from echofed.server.enrolments import (
    REVOKED,
    Enrolment,
    OpenInvitation,
    Revocation,
    Revocations,
    enrolment_path,
    invitation_path,
    invitations_of,
    issued,
    key_hash,
    read_enrolment,
    read_invitation,
    read_revocations,
    site_name,
    unexpired,
    write_record,
)
from echofed.server.memberships import make_invitation, make_membership, write_membership
from echofed.server.roster import Member, check_member, is_revoked, member_file, members, site_signing_key

__all__ = [
    "Member",
    "check_member",
    "enrol",
    "invite",
    "is_revoked",
    "members",
    "read_request",
    "renew",
    "revoke",
    "site_signing_key",
]


@dataclass(frozen=True)
class ReceivedRequest:
    """A request whose signature was checked; whose it is only its words tell, read out by the hospital."""

    signed: Signed
    request: EnrolmentRequest

    @property
    def words(self) -> str:
        """Eight words that stand for the request."""
        return fingerprint_words(bytes.fromhex(digest(self.signed)))


def invite(
    folder: Path,
    site: str,
    path: Path | None = None,
    *,
    readmit: bool = False,
    passphrase: str | None = None,
    now: datetime | None = None,
) -> Path:
    """Write a one-time invitation for a site and return its file; earlier ones of that site are void from now on.

    Args:
        folder: the coordinator's.
        site: the hospital's name in this consortium; if a member has it, enrolling replaces that member.
        path: of the file; None: SITE.invitation among the coordinator's invitations.
        readmit: let in a site that is revoked.
        passphrase: of the keys; None: from the environment or typed, if they are encrypted.
        now: the time; None: the clock's.

    Raises:
        EnrolmentError: it is not a site's name, or the site is revoked and `readmit` is not set.
        KeyFileError, CertificateError, StateFolderError, AuditLogError: as `open_authority`, or nothing can be logged.
    """
    name, moment = site_name(site), now or datetime.now(UTC)
    authority = open_authority(folder, passphrase)
    consortium = authority.consortium
    invitation = make_invitation(consortium, name, moment)
    with locked(folder):
        revocation = read_revocations(folder).open_for(name)
        if revocation and not readmit:
            what = f"{name} was revoked at {revocation.revoked_at}: {revocation.reason}"
            raise EnrolmentError(what, "To let it in again nevertheless, invite it with --readmit.")
        _log(consortium, "invited", site=name, expires_at=invitation.expires_at, readmits=readmit)
        for earlier in invitations_of(folder, name):
            earlier.unlink()
        record = OpenInvitation(
            site=name, issued_at=invitation.issued_at, expires_at=invitation.expires_at, readmits=readmit
        )
        write_record(invitation_path(folder, _hash(invitation.secret)), record)
        signed = sign(authority.signing_key, "invitation", invitation)
        target = path or folder / "invitations" / f"{name}.invitation"
        write_private_file(target, signed.model_dump_json().encode() + b"\n")
    return target


def read_request(folder: Path, path: Path) -> ReceivedRequest:
    """Return a site's request for enrolment after checking what can be checked without asking the site.

    Raises:
        EnrolmentError: it is for another consortium.
        SignatureError, CertificateError, StateFolderError: it is damaged, changed, too large, or its keys are not sound.
    """
    signed = read_signed(read_limited(path, MAX_SIGNED_BYTES))
    request = open_request(signed)
    if request.consortium != read_consortium(folder).id:
        raise EnrolmentError("The request is for another consortium.", "Ask the site which invitation it used.")
    return ReceivedRequest(signed, request)


def enrol(
    folder: Path,
    request_path: Path,
    words: str,
    path: Path | None = None,
    *,
    passphrase: str | None = None,
    now: datetime | None = None,
) -> Path:
    """Enrol a site and return the file with its membership, which holds nothing secret.

    Repeating it with the same request finishes what was interrupted, and lets nobody else in.

    Args:
        folder: the coordinator's.
        request_path: the site's request.
        words: what the hospital read out over the telephone.
        path: of the membership; None: SITE.membership beside the request.
        passphrase: of the keys; None: from the environment or typed, if they are encrypted.
        now: the time; None: the clock's.

    Raises:
        EnrolmentError: the words differ, or the invitation is unknown, void, used, expired or for another site.
        SignatureError, CertificateError: the request is damaged, changed or not sound.
        KeyFileError, StateFolderError, AuditLogError: as `open_authority`, or nothing can be logged.
    """
    moment = now or datetime.now(UTC)
    received = read_request(folder, request_path)
    site = received.request.site
    if not same_words(words, received.words):
        what = (
            f"The words are not those of {request_path.name}: it is not the request {site} made, or one was misheard."
        )
        raise EnrolmentError(what, "Have the hospital read them out again; if they differ, do not enrol it.")
    authority = open_authority(folder, passphrase)
    with locked(folder):
        _use_invitation(folder, received, moment)
        before = read_enrolment(folder, site)
        kept = member_file(folder, site)
        if before is None or before.request != digest(received.signed) or not kept.exists():
            _admit(authority, received, before, moment)
        _readmit(folder, site, moment)
        target = path or request_path.with_name(f"{site}.membership")
        write_private_file(target, kept.read_bytes())
    return target


def renew(
    folder: Path, site: str, signed: Signed, *, passphrase: str | None = None, now: datetime | None = None
) -> Signed:
    """Return a new membership for a site that asks for one; the certificate it has stays valid until it expires.

    Args:
        folder: the coordinator's.
        site: who sent it, as its TLS certificate says.
        signed: the request.
        passphrase: of the keys; None: from the environment or typed, if they are encrypted.
        now: the time; None: the clock's.

    Raises:
        EnrolmentError: the request is not from this site, is for another consortium or its key is not new.
        CertificateError: the site is revoked or not a member.
        ClockError: the request is older or newer than the clocks may differ.
        SignatureError: the request was not signed with the member's key.
    """
    moment = now or datetime.now(UTC)
    authority = open_authority(folder, passphrase)
    with locked(folder):
        request = _renewal(authority.consortium, site, signed, moment)
        before = read_enrolment(folder, request.site)
        assert before is not None
        csr = parse_request(request.tls_csr_pem, "site tls", request.site)
        current = unexpired(before, moment)
        if current and current[-1].key == key_hash(csr):
            return read_signed(member_file(folder, request.site).read_bytes())
        if key_hash(csr) in {one.key for one in before.certificates}:
            raise EnrolmentError(f"{request.site} asks to have a key certified again.", "Renew with a new key.")
        signing = site_signing_key(folder, request.site)
        membership, tls = make_membership(authority, request.site, csr, signing, moment)
        _log(authority.consortium, "renewed", site=request.site, serial=f"{tls.serial_number:x}")
        certificates = (*current, issued(tls, membership.expires_at))
        write_record(enrolment_path(folder, request.site), before.model_copy(update={"certificates": certificates}))
        return write_membership(authority, membership)


def revoke(folder: Path, site: str, reason: str, *, now: datetime | None = None) -> None:
    """Let a site in no more, from the gateway's next look at the file (at each request); its invitations are void.

    Raises:
        EnrolmentError: it is neither a member nor invited, or revoked already, or no reason is given.
        StateFolderError, AuditLogError: the state cannot be read, or nothing can be logged.
    """
    name, moment = site_name(site), now or datetime.now(UTC)
    consortium = read_consortium(folder)
    if not reason.strip() or len(reason) > 500:
        raise EnrolmentError("A revocation needs a reason of at most 500 characters.", "Give one with --reason.")
    with locked(folder):
        revocations, enrolment = read_revocations(folder), read_enrolment(folder, name)
        if already := revocations.open_for(name):
            raise EnrolmentError(
                f"{name} is revoked since {already.revoked_at}: {already.reason}", "Nothing is to be done."
            )
        invitations = invitations_of(folder, name)
        if enrolment is None and not invitations:
            raise EnrolmentError(f"There is no site {name}.", "`echofed consortium status` lists the sites.")
        _log(consortium, "revoked", site=name, reason=reason)
        # First: an invitation that outlives an interrupted revocation could let the site in again.
        for invitation in invitations:
            invitation.unlink()
        _add_revocation(folder, revocations, name, reason, enrolment, moment, None)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _use_invitation(folder: Path, received: ReceivedRequest, now: datetime) -> None:
    """Mark the invitation as used by this request; the same request may come again."""
    request, own = received.request, digest(received.signed)
    record = read_invitation(folder, request.invitation)
    if record is None:
        raise EnrolmentError("The request's invitation is not known: it was replaced by a newer one, or withdrawn.")
    if record.site != request.site:
        raise EnrolmentError(f"The invitation is for {record.site}, the request is from {request.site}.")
    if record.used_by not in (None, own):
        raise EnrolmentError(f"The invitation of {record.site} was used already, by another request.")
    if record.used_by is None and parse_time(record.expires_at) < now:
        raise EnrolmentError(f"The invitation of {record.site} expired at {record.expires_at}.")
    revocation = read_revocations(folder).open_for(request.site)
    if revocation and not record.readmits:
        raise EnrolmentError(f"{request.site} is revoked: {revocation.reason}", "Invite it with --readmit.")
    if record.used_by is None:
        write_record(invitation_path(folder, request.invitation), record.model_copy(update={"used_by": own}))


def _admit(authority: Authority, received: ReceivedRequest, before: Enrolment | None, now: datetime) -> None:
    request, folder = received.request, authority.consortium.folder
    csr = parse_request(request.tls_csr_pem, "site tls", request.site)
    signing = parse_request(request.signing_csr_pem, "site signing", request.site).public_key()
    assert isinstance(signing, Ed25519PublicKey)
    membership, tls = make_membership(authority, request.site, csr, signing, now)
    own = digest(received.signed)
    _log(authority.consortium, "enrolled", site=request.site, serial=f"{tls.serial_number:x}", request=own)
    revocations = read_revocations(folder)
    if before and before.request != own and not revocations.open_for(request.site):
        reason = "replaced by a new enrolment"
        _add_revocation(folder, revocations, request.site, reason, before, now, iso_time(now))
    record = Enrolment(
        site=request.site,
        enrolled_at=iso_time(now),
        request=own,
        certificates=(issued(tls, membership.expires_at),),
    )
    # A membership of the earlier enrolment must not stand beside the new record.
    member_file(folder, request.site).unlink(missing_ok=True)
    write_record(enrolment_path(folder, request.site), record)
    write_membership(authority, membership)


def _readmit(folder: Path, site: str, now: datetime) -> None:
    revocations = read_revocations(folder)
    if revocations.open_for(site):
        changed = tuple(
            one.model_copy(update={"readmitted_at": iso_time(now)})
            if one.site == site and not one.readmitted_at
            else one
            for one in revocations.revocations
        )
        write_record(folder / REVOKED, Revocations(revocations=changed))


def _add_revocation(
    folder: Path,
    revocations: Revocations,
    site: str,
    reason: str,
    enrolment: Enrolment | None,
    now: datetime,
    readmitted_at: str | None,
) -> None:
    one = Revocation(
        site=site,
        revoked_at=iso_time(now),
        reason=reason,
        serials=tuple(one.serial for one in enrolment.certificates) if enrolment else (),
        readmitted_at=readmitted_at,
    )
    write_record(folder / REVOKED, Revocations(revocations=(*revocations.revocations, one)))


def _renewal(consortium: Consortium, site: str, signed: Signed, now: datetime) -> RenewalRequest:
    """Return a renewal request that this member has signed, just now."""
    request = verify(signed, site_signing_key(consortium.folder, site), "renewal request", RenewalRequest)
    if (request.site, request.consortium) != (site, consortium.id):
        raise EnrolmentError(f"The renewal request is not from {site} to this consortium.", "Nothing was issued.")
    if abs(parse_time(request.requested_at) - now) > CLOCK_TOLERANCE:
        what = f"The renewal request was made at {request.requested_at}; the coordinator's clock says {iso_time(now)}."
        raise ClockError(what, "Set the clock of the side that is off.")
    return request


def _log(consortium: Consortium, event: Event, **facts: Fact) -> None:
    with open_audit_log(consortium.folder, owner=consortium.settings.name) as log:
        log.append(event, **facts)
