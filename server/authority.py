"""The consortium's keys and certificates, in the coordinator's folder.

`authority/` holds four keys, each with its certificate: root, issuing, server and signing. The root's key is needed to begin,
and every other year to renew the issuing and the signing certificate; in between it belongs offline. A renewed certificate
keeps its key, so that one file is replaced and key and certificate fit at any instant.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.certificates import (
    certificate_pem,
    check_chain,
    parse_certificate,
    root_fingerprint,
    same_key,
    signing_key_of,
)
from echofed.protocol.errors import CertificateError, KeyFileError, StateFolderError
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
from echofed.protocol.membership import iso_time
from echofed.protocol.state_folder import check_state_folder, locked, mark_state_folder, read_limited
from echofed.protocol.words import fingerprint_words
from echofed.server.issuing import SERVER_LIFE, SIGNING_LIFE, is_for_host, issue_issuing, issue_leaf, issue_root
from echofed.server.settings import ConsortiumSettings, load_settings, write_settings

AUTHORITY = "authority"
SUBFOLDERS = (AUTHORITY, "members", "enrolments", "invitations", "studies", "blobs", "gateway", "log")
SERVER_RENEWAL = timedelta(days=30)
"""What remains of the server's certificate when it is renewed."""
AUTHORITY_RENEWAL = timedelta(days=180)
"""What remains of the issuing and the signing certificate when they are renewed."""

_UNFINISHED = "Run `echofed consortium init` again, as before."


@dataclass(frozen=True)
class Consortium:
    """What is public of a consortium; no key is opened for it.

    Args:
        folder: the coordinator's.
        settings: its own.
        root: the root certificate.
        issuing: the issuing authority's.
        server: the server's.
        signing: the coordinator's signing certificate.
    """

    folder: Path
    settings: ConsortiumSettings
    root: x509.Certificate
    issuing: x509.Certificate
    server: x509.Certificate
    signing: x509.Certificate

    @property
    def id(self) -> str:
        """SHA-256 of the root certificate, 64 hexadecimal digits."""
        return root_fingerprint(self.root)

    @property
    def words(self) -> str:
        """Eight words that stand for the root certificate, to read out over the telephone."""
        return fingerprint_words(bytes.fromhex(self.id))

    @property
    def signing_key(self) -> Ed25519PublicKey:
        """The key the coordinator's signatures are checked with."""
        return signing_key_of(self.signing)


@dataclass(frozen=True)
class Authority:
    """A consortium with the keys that enrol: the issuing authority's and the coordinator's signing key."""

    consortium: Consortium
    issuing_key: EllipticCurvePrivateKey
    signing_key: Ed25519PrivateKey


def init_consortium(
    folder: Path, name: str, address: str, passphrase: str | None = None, *, now: datetime | None = None
) -> Consortium:
    """Make a consortium, finish one whose making was interrupted, or renew what is about to expire.

    Safe to repeat: what is there and valid stays. Everything but renewing the issuing and the signing certificate works
    without `root.key`.

    Args:
        folder: the coordinator's; made if need be.
        name: the consortium's.
        address: host:port under which hospitals reach its server.
        passphrase: to encrypt new keys with and to open those there; None: new ones are not encrypted.
        now: the time; None: the clock's.

    Raises:
        StateFolderError: the folder holds something else, another consortium or half of one.
        KeyFileError: a key cannot be used, or `root.key` is needed and not there.
    """
    moment = now or datetime.now(UTC)
    mark_state_folder(folder, "consortium")
    with locked(folder):
        settings = _settings(folder, name, address)
        for part in SUBFOLDERS:
            (folder / part).mkdir(mode=0o700, exist_ok=True)
        keys = folder / AUTHORITY
        phrase = passphrase or passphrase_of(folder)
        root = _root(keys, settings.name, phrase, moment)
        issuing = _issuing(keys, root, settings.name, phrase, moment)
        _signing(keys, root, settings.name, phrase, moment)
        _server(keys, issuing, settings.server_name, phrase, moment)
        consortium = read_consortium(folder)
        if not (folder / "revoked.json").exists():
            if any((folder / "enrolments").iterdir()):
                raise StateFolderError(f"{folder / 'revoked.json'} is gone: who is revoked is not known.")
            write_private_file(folder / "revoked.json", b'{"revocations":[]}\n')
        with open_audit_log(folder, owner=settings.name) as log:
            if not log.head().entries:
                log.append("initialised", consortium=consortium.id, address=settings.address)
    return consortium


def read_consortium(folder: Path) -> Consortium:
    """Return what is public of the consortium in a coordinator's folder; no passphrase is needed.

    Raises:
        StateFolderError: the folder holds no consortium, half of one, or is of a newer version.
        CertificateError: its certificates do not belong together.
    """
    check_state_folder(folder, "consortium")
    settings = load_settings(folder)
    names = ("root", "issuing", "server", "signing")
    consortium = Consortium(folder, settings, *(_certificate(folder / AUTHORITY / f"{name}.pem") for name in names))
    check_chain(
        consortium.signing,
        consortium.issuing,
        consortium.root,
        "coordinator signing",
        consortium.signing.not_valid_before_utc,
    )
    return consortium


def consortium_id(folder: Path) -> str:
    """Return what names the consortium in a coordinator's folder; raises as `read_consortium`."""
    return read_consortium(folder).id


def open_authority(folder: Path, passphrase: str | None = None) -> Authority:
    """Return the consortium with the keys that enrol; `root.key` is not needed.

    Raises:
        StateFolderError, CertificateError: as `read_consortium`.
        KeyFileError: a key is missing, can be read by others, does not fit its certificate, or the passphrase is wrong.
    """
    consortium = read_consortium(folder)
    path = folder / AUTHORITY / "issuing.key"
    phrase = passphrase or passphrase_of(folder)  # typed once, for both keys
    issuing_key = read_tls_key(path, phrase)
    _check_fits(issuing_key, consortium.issuing, path)
    return Authority(consortium, issuing_key, load_signing_key(folder, phrase))


def load_signing_key(folder: Path, passphrase: str | None = None) -> Ed25519PrivateKey:
    """Return the coordinator's signing key alone; raises as `open_authority`."""
    certificate = read_consortium(folder).signing
    path = folder / AUTHORITY / "signing.key"
    key = read_signing_key(path, passphrase)
    _check_fits(key, certificate, path)
    return key


def renew_server_if_due(folder: Path, passphrase: str | None = None, *, now: datetime | None = None) -> bool:
    """Renew the server's certificate if it is about to expire or the address has changed; return whether it was.

    The key stays; `root.key` is not needed. Whoever serves with the certificate must load it again.

    Raises:
        StateFolderError, CertificateError, KeyFileError: as `open_authority`.
    """
    moment = now or datetime.now(UTC)
    consortium = read_consortium(folder)
    with locked(folder):
        return _server(folder / AUTHORITY, consortium.issuing, consortium.settings.server_name, passphrase, moment)


def expiry_warnings(consortium: Consortium, now: datetime) -> list[str]:
    """Return a sentence for each of the consortium's own certificates that is about to expire."""
    warnings = []
    for what, certificate, margin in (
        ("root", consortium.root, 2 * AUTHORITY_RENEWAL),
        ("issuing", consortium.issuing, AUTHORITY_RENEWAL),
        ("signing", consortium.signing, AUTHORITY_RENEWAL),
        ("server's", consortium.server, SERVER_RENEWAL),
    ):
        if certificate.not_valid_after_utc - now < margin:
            need = {"root": "begin a new consortium", "server's": "run `echofed consortium init` again"}
            remedy = need.get(what, "put root.key back and run `echofed consortium init` again")
            warnings.append(f"The {what} certificate expires at {iso_time(certificate.not_valid_after_utc)}: {remedy}.")
    return warnings


def _settings(folder: Path, name: str, address: str) -> ConsortiumSettings:
    try:
        wanted = ConsortiumSettings.model_validate({"name": name, "address": address})
    except ValidationError as error:
        raise StateFolderError(
            f"{name!r} at {address!r} makes no consortium: {error.errors()[0]['msg']}.", "Correct it."
        ) from error
    if not (folder / "consortium.yaml").exists():
        write_settings(folder, name, address)
    settings = load_settings(folder)
    if (settings.name, settings.address) != (wanted.name, wanted.address):
        what = f"{folder} is the folder of {settings.name} at {settings.address}."
        raise StateFolderError(what, "Use another folder; to change the address, edit consortium.yaml first.")
    return settings


def passphrase_of(folder: Path) -> str | None:
    """Return the passphrase of a coordinator's keys, from the environment or typed; None if they are not encrypted.

    Raises:
        KeyFileError: it is needed and there is none.
    """
    found = next((path for path in sorted((folder / AUTHORITY).glob("*.key")) if is_encrypted(path)), None)
    return find_passphrase(found) if found else None


def _root(keys: Path, name: str, passphrase: str | None, now: datetime) -> x509.Certificate:
    path = keys / "root.pem"
    if not path.exists():
        if (keys / "issuing.pem").exists():
            what = f"{path} is gone."
            raise StateFolderError(what, "Put it back from a copy; every site holds it in its membership.")
        key = _tls_key(path, passphrase)
        write_private_file(path, certificate_pem(issue_root(name, key, now)).encode())
    return _certificate(path)


def _issuing(keys: Path, root: x509.Certificate, name: str, passphrase: str | None, now: datetime) -> x509.Certificate:
    path = keys / "issuing.pem"
    if not _lasts(path, now, AUTHORITY_RENEWAL):
        root_key = _root_key(keys, root, passphrase)
        issued = issue_issuing(name, _tls_key(path, passphrase).public_key(), root, root_key, now)
        write_private_file(path, certificate_pem(issued).encode())
    return _certificate(path)


def _signing(keys: Path, root: x509.Certificate, name: str, passphrase: str | None, now: datetime) -> None:
    path = keys / "signing.pem"
    if not _lasts(path, now, AUTHORITY_RENEWAL):
        root_key = _root_key(keys, root, passphrase)
        key = _signing_key(path, passphrase).public_key()
        issued = issue_leaf("coordinator signing", name, key, root, root_key, now, SIGNING_LIFE)
        write_private_file(path, certificate_pem(issued).encode())


def _server(keys: Path, issuing: x509.Certificate, host: str, passphrase: str | None, now: datetime) -> bool:
    path = keys / "server.pem"
    chain = certificate_pem(issuing)
    if _lasts(path, now, SERVER_RENEWAL) and is_for_host(_certificate(path), host) and chain in path.read_text():
        return False
    issuing_key = read_tls_key(keys / "issuing.key", passphrase)
    _check_fits(issuing_key, issuing, keys / "issuing.key")
    key = _tls_key(path, passphrase).public_key()
    issued = issue_leaf("server tls", host, key, issuing, issuing_key, now, SERVER_LIFE)
    write_private_file(path, (certificate_pem(issued) + chain).encode())
    return True


def _root_key(keys: Path, root: x509.Certificate, passphrase: str | None) -> EllipticCurvePrivateKey:
    path = keys / "root.key"
    if not path.exists():
        raise KeyFileError(f"{path} is needed for this.", "Put it back, and run this command again, as before.")
    key = read_tls_key(path, passphrase)
    _check_fits(key, root, path)
    return key


def _tls_key(certificate: Path, passphrase: str | None) -> EllipticCurvePrivateKey:
    """Return the key beside a certificate, a new one if there is neither."""
    path = certificate.with_suffix(".key")
    if certificate.exists() or path.exists():
        return read_tls_key(path, passphrase)
    key = new_tls_key()
    write_key(path, key, passphrase)
    return key


def _signing_key(certificate: Path, passphrase: str | None) -> Ed25519PrivateKey:
    path = certificate.with_suffix(".key")
    if certificate.exists() or path.exists():
        return read_signing_key(path, passphrase)
    key = Ed25519PrivateKey.generate()
    write_key(path, key, passphrase)
    return key


def _check_fits(key: PrivateKey, certificate: x509.Certificate, path: Path) -> None:
    if not same_key(certificate, key.public_key()):
        raise KeyFileError(f"{path} does not fit the certificate beside it.", "Put back the key that was made with it.")


def _lasts(path: Path, now: datetime, margin: timedelta) -> bool:
    return path.exists() and _certificate(path).not_valid_after_utc - now >= margin


def _certificate(path: Path) -> x509.Certificate:
    """Return the first certificate in a file; the server's is followed by its issuer's."""
    try:
        text = read_limited(path, 2**16).decode()
    except FileNotFoundError as error:
        raise StateFolderError(f"{path} is not there: the consortium was not finished.", _UNFINISHED) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CertificateError(f"{path} cannot be read.", "Put it back from a copy.") from error
    end = "-----END CERTIFICATE-----\n"
    try:
        return parse_certificate(text[: text.find(end) + len(end)])
    except CertificateError as error:
        raise CertificateError(f"{path} is damaged.", "Put it back from a copy.") from error
