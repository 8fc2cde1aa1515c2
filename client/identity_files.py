"""A site's identity: keys that never leave it, and the membership the coordinator signed for them.

`identity/` in the state folder holds `membership.json`, which says who the site is, and key files named by what they are for:
`tls-SERIAL.pem` (key and chain) and `signing-KEY.key`. A renewal writes the new key file first and then replaces the membership:
at any instant the membership names files that are whole. The TLS key before the newest is kept, for processes that still use it.
Keys of a request that is under way wait in `identity/pending/`.
"""

import contextlib
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from echofed.protocol.certificates import check_validity, parse_certificate, same_key
from echofed.protocol.errors import EnrolmentError, KeyFileError
from echofed.protocol.key_files import (
    PrivateKey,
    find_passphrase,
    is_encrypted,
    key_pem,
    read_signing_key,
    read_tls_key,
    write_private_file,
)
from echofed.protocol.membership import Membership, certificates_of, coordinator_key_of, open_membership
from echofed.protocol.signing import MAX_SIGNED_BYTES, Signed, key_id, read_signed
from echofed.protocol.state_folder import check_state_folder, read_limited

IDENTITY = "identity"
MEMBERSHIP = "membership.json"
PENDING = "pending"


@dataclass(frozen=True)
class Identity:
    """Who a site is, with its signing key open.

    Args:
        site: its name.
        consortium: SHA-256 of the consortium's root certificate.
        membership: as the coordinator signed it.
        signing_key: the site's own.
        coordinator_key: what the coordinator signs with.
        tls_file: key and chain for TLS, PEM.
        passphrase: of `tls_file`, None if it is not encrypted.
    """

    site: str
    consortium: str
    membership: Membership = field(repr=False)
    signing_key: Ed25519PrivateKey = field(repr=False)
    coordinator_key: Ed25519PublicKey
    tls_file: Path
    passphrase: str | None = field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        """The site's certificate for TLS."""
        return parse_certificate(self.membership.tls_pem)

    def check_valid(self, now: datetime | None = None) -> None:
        """Check that the site's certificates are valid.

        Raises:
            CertificateError: they have expired.
            ClockError: they are not valid yet.
        """
        for certificate in certificates_of(self.membership):
            check_validity(certificate, now or datetime.now(UTC), f"The certificate of {self.site}")

    def ssl_context(self) -> ssl.SSLContext:
        """Return what connects to the coordinator: TLS 1.3, the site's certificate, this consortium's root and no other.

        The server must be called `membership.server_name`.

        Raises:
            CertificateError, ClockError: the site's certificate has expired or is not valid yet.
            KeyFileError: the key file cannot be used.
        """
        self.check_valid()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=self.membership.root_pem)
        try:
            # Without a passphrase OpenSSL would ask on the terminal; an empty one fails instead.
            context.load_cert_chain(self.tls_file, password=self.passphrase or "")
        except (ssl.SSLError, OSError) as error:
            raise KeyFileError(f"{self.tls_file} cannot be used for TLS.") from error
        return context


def load_identity(state_folder: Path, passphrase: str | None = None) -> Identity:
    """Return a site's identity after checking that membership and keys belong together.

    A certificate that has expired is no error here (a hospital can still withdraw from a study), but in `ssl_context`.

    Args:
        state_folder: the site's.
        passphrase: of its keys; None: from the environment or typed, if they are encrypted.

    Raises:
        StateFolderError: the folder holds no site, or is of a newer version.
        EnrolmentError: the site has not (yet) joined a consortium.
        KeyFileError: a key is missing, can be read by others, is another's, or the passphrase is wrong.
        SignatureError, CertificateError: the membership was changed.
    """
    folder = state_folder / IDENTITY
    before = None
    while True:
        membership = open_membership(read_membership(state_folder), None)
        try:
            return _with_keys(folder, membership, passphrase)
        except KeyFileError:
            # Another process may have renewed twice since the membership was read: then there is another one now.
            if membership == before or open_membership(read_membership(state_folder), None) == membership:
                raise
            before = membership


def read_membership(state_folder: Path) -> Signed:
    """Return the membership of a site, as it was signed; nothing is checked but its form.

    Raises:
        StateFolderError, EnrolmentError: as `load_identity`.
    """
    check_state_folder(state_folder, "site")
    folder = state_folder / IDENTITY
    try:
        return read_signed(read_limited(folder / MEMBERSHIP, MAX_SIGNED_BYTES))
    except FileNotFoundError as error:
        if (folder / PENDING).exists():
            remedy = "Run `echofed site join` with the membership file the coordinator sent."
            raise EnrolmentError(f"The site in {state_folder} was not enrolled yet.", remedy) from error
        remedy = "Run `echofed site init` with the coordinator's invitation."
        raise EnrolmentError(f"The site in {state_folder} is in no consortium.", remedy) from error


def install(
    folder: Path,
    signed: Signed,
    membership: Membership,
    keys: tuple[PrivateKey, Ed25519PrivateKey],
    passphrase: str | None,
) -> None:
    """Write a membership with its keys; until the last file is replaced, what was there before stays in force.

    Args:
        folder: `identity/` of the site.
        signed: the membership, as it arrived.
        membership: what it holds, checked.
        keys: for TLS and for signing.
        passphrase: to encrypt them with; None: they are not.
    """
    tls_key, signing_key = keys
    kept = _files_in_use(folder)
    tls_file, signing_file = _files_of(folder, membership)
    chain = membership.tls_pem + membership.issuing_pem
    write_private_file(tls_file, key_pem(tls_key, passphrase) + chain.encode())
    if signing_file not in kept:
        write_private_file(signing_file, key_pem(signing_key, passphrase))
    write_private_file(folder / MEMBERSHIP, signed.model_dump_json().encode() + b"\n")
    for path in (*folder.glob("tls-*"), *folder.glob("signing-*")):
        if path not in {*kept, tls_file, signing_file}:
            path.unlink()


def _files_in_use(folder: Path) -> set[Path]:
    with contextlib.suppress(FileNotFoundError):
        signed = read_signed(read_limited(folder / MEMBERSHIP, MAX_SIGNED_BYTES))
        return set(_files_of(folder, open_membership(signed, None)))
    return set()


def _files_of(folder: Path, membership: Membership) -> tuple[Path, Path]:
    tls, signing = certificates_of(membership)
    key = signing.public_key()
    assert isinstance(key, Ed25519PublicKey)
    return folder / f"tls-{tls.serial_number:x}.pem", folder / f"signing-{key_id(key)[:16]}.key"


def _with_keys(folder: Path, membership: Membership, passphrase: str | None) -> Identity:
    tls_file, signing_file = _files_of(folder, membership)
    phrase = passphrase or (find_passphrase(signing_file) if is_encrypted(signing_file) else None)
    signing_key = read_signing_key(signing_file, phrase)
    tls, signing = certificates_of(membership)
    if not same_key(signing, signing_key.public_key()):
        raise KeyFileError(f"{signing_file} is not the key of {membership.site}'s certificate.")
    if not same_key(tls, read_tls_key(tls_file, phrase).public_key()):
        raise KeyFileError(f"{tls_file} is not the key of {membership.site}'s certificate.")
    return Identity(
        site=membership.site,
        consortium=membership.consortium,
        membership=membership,
        signing_key=signing_key,
        coordinator_key=coordinator_key_of(membership),
        tls_file=tls_file,
        passphrase=phrase if is_encrypted(tls_file) else None,
    )
