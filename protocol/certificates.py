"""Certificates of a consortium: what each may be used for, and the chain from it to the root.

A root (ten years, may be kept offline) signs the issuing authority and the coordinator's signing certificate; the issuing
authority signs the server's and the sites' certificates. Every certificate has exactly one use, and says so in an extended
key usage: without one, TLS libraries would take a signing certificate for any use.

References: Cooper et al. (2008), RFC 5280; Ito et al. (2022), RFC 9336 (document signing).
"""

import hashlib
from datetime import UTC, datetime
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from echofed.protocol.errors import CertificateError, ClockError

Use = Literal["site tls", "server tls", "site signing", "coordinator signing"]

MAX_PEM_CHARACTERS = 8192
PURPOSES_OF_USE: dict[Use, x509.ObjectIdentifier] = {
    "site tls": ExtendedKeyUsageOID.CLIENT_AUTH,
    "server tls": ExtendedKeyUsageOID.SERVER_AUTH,
    "site signing": x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36"),
    "coordinator signing": x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36"),
}
KEY_KINDS: dict[Use, type[EllipticCurvePublicKey] | type[Ed25519PublicKey]] = {
    "site tls": EllipticCurvePublicKey,
    "server tls": EllipticCurvePublicKey,
    "site signing": Ed25519PublicKey,
    "coordinator signing": Ed25519PublicKey,
}
ROOT_PATH_LENGTH = 1
ISSUING_PATH_LENGTH = 0

_KNOWN_EXTENSIONS = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
}
# What `cryptography` raises for what it cannot read; InvalidVersion is no ValueError.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_PARSED_LATE = (
    "subject",
    "issuer",
    "extensions",
    "not_valid_before_utc",
    "not_valid_after_utc",
    "signature_hash_algorithm",
)


def parse_certificate(pem: str) -> x509.Certificate:
    """Return the one certificate in a PEM text.

    Raises:
        CertificateError: it is too long, or not one certificate.
    """
    try:
        found = x509.load_pem_x509_certificates(pem.encode()) if len(pem) <= MAX_PEM_CHARACTERS else []
    except _UNREADABLE:
        found = []
    if len(found) != 1:
        raise CertificateError("This is not one certificate in PEM, or it is damaged.")
    return _read_to_the_end(found[0])


def certificate_from_der(content: bytes) -> x509.Certificate:
    """Return a certificate as TLS hands it over.

    Raises:
        CertificateError: it is not one, or damaged.
    """
    try:
        certificate = x509.load_der_x509_certificate(content)
    except _UNREADABLE as error:
        raise CertificateError("The certificate is damaged.") from error
    return _read_to_the_end(certificate)


def parse_request(pem: str, use: Use, name: str) -> x509.CertificateSigningRequest:
    """Return a signing request after checking that its sender holds the key and that it asks for this use and name.

    Raises:
        CertificateError: it is none of that.
    """
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        sound = request.is_signature_valid
        key = request.public_key()
        subject = request.subject
    except _UNREADABLE as error:
        raise CertificateError("This is not a signing request in PEM, or it is damaged.") from error
    if not sound:
        raise CertificateError("The signing request is not signed with the key it holds.")
    _check_key(key, use, "The signing request")
    if common_name(subject) != name:
        raise CertificateError(f"The signing request is not for {name}.")
    return request


def certificate_pem(certificate: x509.Certificate) -> str:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def root_fingerprint(root: x509.Certificate) -> str:
    """Return what names a consortium: the SHA-256 of its root certificate (DER), 64 hexadecimal digits."""
    return hashlib.sha256(root.public_bytes(serialization.Encoding.DER)).hexdigest()


def common_name(subject: x509.Name) -> str:
    """Return the common name of a subject that has exactly one; else an empty text, which no one is called."""
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def same_key(certificate: x509.Certificate | x509.CertificateSigningRequest, key: object) -> bool:
    """Return whether a certificate or request is for this public key."""
    return bool(certificate.public_key() == key)


def signing_key_of(certificate: x509.Certificate) -> Ed25519PublicKey:
    """Return the key of a signing certificate.

    Raises:
        CertificateError: it is a certificate for TLS.
    """
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise CertificateError("This is not a signing certificate.")
    return key


def check_chain(
    certificate: x509.Certificate, issuing: x509.Certificate, root: x509.Certificate, use: Use, now: datetime
) -> None:
    """Check that a certificate is for this use and leads to this root.

    Args:
        certificate: what is to be trusted.
        issuing: the issuing authority's; not looked at for "coordinator signing", which the root signs itself.
        root: the consortium's, trusted already.
        use: what the certificate is about to be used for.
        now: the moment at which all must be valid.

    Raises:
        CertificateError: a signature, use, key or path length is wrong, or a certificate has expired.
        ClockError: a certificate is not valid yet: nobody issues those, so the clock is behind.
    """
    _check_authority(root, root, "The consortium's root certificate", ROOT_PATH_LENGTH)
    check_validity(root, now, "The consortium's root certificate")
    issuer = root
    if use != "coordinator signing":
        issuer = issuing
        _check_authority(issuing, root, "The issuing certificate", ISSUING_PATH_LENGTH)
        check_validity(issuing, now, "The issuing certificate")
    what = f"The certificate ({use}) of {common_name(certificate.subject) or 'nobody'}"
    _check_signed_by(certificate, issuer, what)
    _check_leaf(certificate, use, what)
    check_validity(certificate, now, what)


def check_validity(certificate: x509.Certificate, now: datetime, what: str) -> None:
    """Check that a certificate is valid at a moment.

    Raises:
        CertificateError: it has expired.
        ClockError: it is not valid yet.
    """
    clock = f"this machine's clock says {now.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if now < (start := certificate.not_valid_before_utc):
        raise ClockError(f"{what} is valid from {start:%Y-%m-%d %H:%M} UTC, but {clock}.")
    if now > (end := certificate.not_valid_after_utc):
        remedy = f"{CertificateError.default_remedy} If that is not the time, set the clock."
        raise CertificateError(f"{what} expired at {end:%Y-%m-%d %H:%M} UTC; {clock}.", remedy)


def _read_to_the_end(certificate: x509.Certificate) -> x509.Certificate:
    """Return a certificate whose parts can all be read.

    `cryptography` parses each part when it is first asked for, and says ValueError then, wherever that is.
    """
    try:
        for part in _PARSED_LATE:
            getattr(certificate, part)
        certificate.public_key()
    except _UNREADABLE as error:
        raise CertificateError("This certificate is damaged.") from error
    return certificate


def _check_authority(certificate: x509.Certificate, issuer: x509.Certificate, what: str, path_length: int) -> None:
    _check_signed_by(certificate, issuer, what)
    _check_key(certificate.public_key(), "server tls", what)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as error:
        raise CertificateError(f"{what} does not say that it may sign certificates.") from error
    if not constraints.ca or not usage.key_cert_sign:
        raise CertificateError(f"{what} may not sign certificates.")
    if constraints.path_length != path_length:
        raise CertificateError(f"{what} has path length {constraints.path_length}, not {path_length}.")
    _check_known_extensions(certificate, what)


def _check_leaf(certificate: x509.Certificate, use: Use, what: str) -> None:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        purposes = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound as error:
        raise CertificateError(f"{what} does not say what it may be used for.") from error
    if constraints.ca or usage.key_cert_sign or not usage.digital_signature:
        raise CertificateError(f"{what} is an authority's, not one for use.")
    if purposes != [PURPOSES_OF_USE[use]]:
        raise CertificateError(f"{what} may not be used so: it was issued for something else.")
    _check_key(certificate.public_key(), use, what)
    _check_known_extensions(certificate, what)


def _check_signed_by(certificate: x509.Certificate, issuer: x509.Certificate, what: str) -> None:
    if certificate.issuer == certificate.subject and certificate != issuer:
        raise CertificateError(f"{what} is self-signed.")
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*_UNREADABLE, InvalidSignature) as error:
        raise CertificateError(f"{what} was not issued by this consortium.") from error


def _check_key(key: object, use: Use, what: str) -> None:
    weak = isinstance(key, EllipticCurvePublicKey) and not isinstance(key.curve, SECP256R1)
    if not isinstance(key, KEY_KINDS[use]) or weak:
        raise CertificateError(f"{what} holds a key of another kind than is used here.")


def _check_known_extensions(certificate: x509.Certificate, what: str) -> None:
    unknown = [extension.oid for extension in certificate.extensions if extension.oid not in _KNOWN_EXTENSIONS]
    if unknown:
        raise CertificateError(f"{what} has an extension that is not used here: {unknown[0].dotted_string}.")
