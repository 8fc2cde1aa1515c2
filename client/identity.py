"""How a site gets its identity and keeps it: asking to be enrolled, joining, renewing its certificate.

All of it can be killed at any instant and run again: what was begun is finished with the same keys, and the identity in force is
replaced in one step or not at all.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from echofed.client.identity_files import (
    IDENTITY,
    MEMBERSHIP,
    PENDING,
    Identity,
    install,
    load_identity,
    read_membership,
)
from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.certificates import same_key
from echofed.protocol.errors import CertificateError, EnrolmentError, KeyFileError, StateFolderError
from echofed.protocol.key_files import (
    PrivateKey,
    find_passphrase,
    is_encrypted,
    new_tls_key,
    read_signing_key,
    read_tls_key,
    write_key,
    write_private_file,
)
from echofed.protocol.membership import (
    EnrolmentRequest,
    Invitation,
    Membership,
    RenewalRequest,
    certificates_of,
    iso_time,
    open_invitation,
    open_membership,
    parse_time,
)
from echofed.protocol.signing import MAX_SIGNED_BYTES, Signed, digest, read_signed, sign
from echofed.protocol.state_folder import locked, mark_state_folder, read_limited
from echofed.protocol.words import fingerprint_words

__all__ = ["Identity", "SiteRequest", "init_site", "join", "load_identity", "renew_if_due"]

RENEWAL_SHARE = 2 / 3
"""Of a certificate's life, after which it is renewed."""


@dataclass(frozen=True)
class SiteRequest:
    """A site's request to be enrolled, and what is compared over the telephone.

    Args:
        path: of the file to send to the coordinator.
        signed: what is in it.
        invitation: what it answers.
    """

    path: Path
    signed: Signed
    invitation: Invitation

    @property
    def consortium_words(self) -> str:
        """Eight words; the coordinator must read out the same."""
        return fingerprint_words(bytes.fromhex(self.invitation.consortium))

    @property
    def words(self) -> str:
        """Eight words to read out to the coordinator."""
        return fingerprint_words(bytes.fromhex(digest(self.signed)))


def init_site(
    state_folder: Path,
    invitation_path: Path,
    name: str | None = None,
    path: Path | None = None,
    *,
    passphrase: str | None = None,
    now: datetime | None = None,
) -> SiteRequest:
    """Make a site's keys and its request to be enrolled; run again with the same invitation, it is the same request.

    A site that is a member stays one, with the keys it has, until it joins with the new ones.

    Args:
        state_folder: the site's; made if need be.
        invitation_path: the coordinator's invitation.
        name: the site's, if it is to be compared with the invitation's.
        path: of the request; None: SITE.request in the current folder.
        passphrase: to encrypt the keys with; None: they are not.
        now: the time; None: the clock's.

    Raises:
        EnrolmentError: the invitation has expired or is for another site.
        SignatureError, CertificateError, ClockError: it was changed, or is from the future.
        StateFolderError: the folder is another consortium's, another site's, no site's, or of a newer version.
        KeyFileError: keys made before cannot be used.
    """
    moment = now or datetime.now(UTC)
    signed = read_signed(read_limited(invitation_path, MAX_SIGNED_BYTES))
    invitation = open_invitation(signed, moment)
    if name not in (None, invitation.site):
        raise EnrolmentError(f"The invitation is for {invitation.site}, not for {name}.")
    mark_state_folder(state_folder, "site")
    folder = state_folder / IDENTITY
    folder.mkdir(mode=0o700, exist_ok=True)
    with locked(folder):
        _check_same_site(state_folder, invitation)
        pending = _begin(folder / PENDING, signed)
        request = _request(pending, invitation, passphrase, moment)
    target = path or Path(f"{invitation.site}.request")
    write_private_file(target, request.model_dump_json().encode() + b"\n")
    return SiteRequest(target, request, invitation)


def join(
    state_folder: Path, membership_path: Path, *, passphrase: str | None = None, now: datetime | None = None
) -> Identity:
    """Install the membership the coordinator sent, and return the site's identity; safe to repeat.

    Args:
        state_folder: the site's, where `init_site` made the keys.
        membership_path: the coordinator's answer.
        passphrase: of the keys; None: from the environment or typed, if they are encrypted.
        now: the time; None: the clock's.

    Raises:
        EnrolmentError: no request is under way, or the membership is another site's.
        CertificateError: it is of another consortium than invited, its certificates are not sound or have expired.
        ClockError: it is from the future.
        SignatureError: it was changed.
        KeyFileError: it was issued for other keys than the request's, or these cannot be used.
    """
    moment = now or datetime.now(UTC)
    signed = read_signed(read_limited(membership_path, MAX_SIGNED_BYTES))
    folder = state_folder / IDENTITY
    pending = folder / PENDING
    if not pending.exists():
        installed = read_membership(state_folder)  # says what there is, if nothing is
        if installed == signed:
            return load_identity(state_folder, passphrase)
    with locked(folder):
        if (folder / MEMBERSHIP).exists() and read_membership(state_folder) == signed:
            shutil.rmtree(pending, ignore_errors=True)
            return load_identity(state_folder, passphrase)
        if not (pending / "request.json").exists():
            what = f"No request to be enrolled is under way in {state_folder}."
            raise EnrolmentError(what, "Run `echofed site init` with the coordinator's invitation.")
        invitation = _kept_invitation(pending)
        membership = open_membership(signed, moment, invitation.consortium)
        if membership.site != invitation.site:
            raise EnrolmentError(f"The membership is for {membership.site}; the invitation was for {invitation.site}.")
        phrase = passphrase or _passphrase_of(pending / "signing.key")
        keys = read_tls_key(pending / "tls.key", phrase), read_signing_key(pending / "signing.key", phrase)
        _check_keys(membership, keys)
        with open_audit_log(state_folder, owner=membership.site) as log:
            log.append("enrolled", consortium=membership.consortium, address=membership.address, **_serial(membership))
        install(folder, signed, membership, keys, phrase)
        shutil.rmtree(pending)
    return load_identity(state_folder, phrase)


def known_name(state_folder: Path) -> str | None:
    """Return the name under which a site is enrolled, None if it has not joined a consortium."""
    if not (state_folder / IDENTITY / MEMBERSHIP).exists():
        return None
    return open_membership(read_membership(state_folder), None).site


def renewal_due(membership: Membership, now: datetime) -> bool:
    """Return whether two thirds of a membership's life are over."""
    start, end = parse_time(membership.issued_at), parse_time(membership.expires_at)
    return now >= start + (end - start) * RENEWAL_SHARE


def renew_if_due(
    state_folder: Path,
    post: Callable[[Signed], Signed],
    *,
    passphrase: str | None = None,
    now: datetime | None = None,
) -> bool:
    """Renew the site's certificates if it is time, with a new TLS key; return whether they were renewed.

    If anything fails, the ones there stay in force. Processes that use the old ones can go on until these expire.

    Args:
        state_folder: the site's.
        post: sends the request to the coordinator and returns its answer.
        passphrase: of the keys; None: from the environment or typed, if they are encrypted.
        now: the time; None: the clock's.

    Raises:
        CertificateError: the certificate has expired (a new invitation is needed), or the answer is not sound.
        ClockError: the certificate is not valid yet.
        SignatureError, KeyFileError: the answer was changed or is not for the keys that were sent.
        StateFolderError, EnrolmentError: as `load_identity`.
        EchoFedError: whatever `post` raises.
    """
    moment = now or datetime.now(UTC)
    folder = state_folder / IDENTITY
    if not renewal_due(open_membership(read_membership(state_folder), None), moment):
        return False
    with locked(folder):
        identity = load_identity(state_folder, passphrase)
        if not renewal_due(identity.membership, moment):
            return False  # another process was first
        identity.check_valid(moment)
        tls_key = new_tls_key()
        request = RenewalRequest(
            consortium=identity.consortium,
            site=identity.site,
            tls_csr_pem=_csr(tls_key, identity.site),
            requested_at=iso_time(moment),
        )
        answer = post(sign(identity.signing_key, "renewal request", request))
        membership = open_membership(answer, moment, identity.consortium)
        if membership.site != identity.site:
            raise CertificateError(f"The coordinator answered with the membership of {membership.site}.")
        keys = tls_key, identity.signing_key
        _check_keys(membership, keys)
        with open_audit_log(state_folder, owner=identity.site) as log:
            log.append("renewed", expires_at=membership.expires_at, **_serial(membership))
        install(folder, answer, membership, keys, identity.passphrase)
    return True


def _check_same_site(state_folder: Path, invitation: Invitation) -> None:
    if not (state_folder / IDENTITY / MEMBERSHIP).exists():
        return
    membership = open_membership(read_membership(state_folder), None)
    if (membership.consortium, membership.site) != (invitation.consortium, invitation.site):
        what = f"{state_folder} is the folder of {membership.site} in {membership.consortium_name}."
        raise StateFolderError(what, "Use another state folder for another site or consortium.")


def _kept_invitation(pending: Path) -> Invitation:
    """Return the invitation a request was made for; that it may have expired since does not matter."""
    signed = read_signed(read_limited(pending / "invitation.json", MAX_SIGNED_BYTES))
    claimed = Invitation.model_validate_json(signed.payload)
    return open_invitation(signed, parse_time(claimed.issued_at))


def _begin(pending: Path, signed: Signed) -> Path:
    """Return the folder of the request for this invitation; keys made for another one are of no use any more."""
    kept = pending / "invitation.json"
    if not kept.exists() or read_signed(read_limited(kept, MAX_SIGNED_BYTES)) != signed:
        shutil.rmtree(pending, ignore_errors=True)
        pending.mkdir(mode=0o700)
        write_private_file(kept, signed.model_dump_json().encode() + b"\n")
    return pending


def _request(pending: Path, invitation: Invitation, passphrase: str | None, now: datetime) -> Signed:
    """Return the request, and make what is still missing for it; the request itself is written last."""
    phrase = passphrase or _passphrase_of(pending / "signing.key")
    for path in (pending / "signing.key", pending / "tls.key"):
        if not path.exists():
            write_key(path, Ed25519PrivateKey.generate() if path.stem == "signing" else new_tls_key(), phrase)
    signing_key, tls_key = read_signing_key(pending / "signing.key", phrase), read_tls_key(pending / "tls.key", phrase)
    path = pending / "request.json"
    if path.exists():
        return read_signed(read_limited(path, MAX_SIGNED_BYTES))
    request = EnrolmentRequest(
        consortium=invitation.consortium,
        invitation=hashlib.sha256(invitation.secret.encode()).hexdigest(),
        site=invitation.site,
        tls_csr_pem=_csr(tls_key, invitation.site),
        signing_csr_pem=_csr(signing_key, invitation.site),
        requested_at=iso_time(now),
    )
    signed = sign(signing_key, "enrolment request", request)
    write_private_file(path, signed.model_dump_json().encode() + b"\n")
    return signed


def _csr(key: PrivateKey, site: str) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    )
    request = builder.sign(key, hashes.SHA256() if isinstance(key, EllipticCurvePrivateKey) else None)
    return request.public_bytes(serialization.Encoding.PEM).decode()


def _check_keys(membership: Membership, keys: tuple[PrivateKey, Ed25519PrivateKey]) -> None:
    for certificate, key in zip(certificates_of(membership), keys, strict=True):
        if not same_key(certificate, key.public_key()):
            what = f"The membership was issued for other keys than {membership.site} has made."
            raise KeyFileError(what, "Join with the membership made from this site's newest request.")


def _passphrase_of(path: Path) -> str | None:
    return find_passphrase(path) if path.exists() and is_encrypted(path) else None


def _serial(membership: Membership) -> dict[str, str]:
    return {"serial": f"{certificates_of(membership)[0].serial_number:x}"}
