"""How certificates are made: which fields each kind has, and for how long it is valid."""

import ipaddress
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID

from echofed.protocol.certificates import ISSUING_PATH_LENGTH, PURPOSES_OF_USE, ROOT_PATH_LENGTH, Use
from echofed.protocol.errors import CertificateError
from echofed.protocol.membership import CLOCK_TOLERANCE

ROOT_LIFE = timedelta(days=3652)
ISSUING_LIFE = timedelta(days=730)
SIGNING_LIFE = timedelta(days=730)
SERVER_LIFE = timedelta(days=90)

PublicKey = EllipticCurvePublicKey | Ed25519PublicKey


def issue_root(name: str, key: EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Return a consortium's root certificate, signed with its own key."""
    subject = _name(name, " root")
    builder = _begun(subject, key.public_key(), now, now + ROOT_LIFE)
    return _authority(builder, ROOT_PATH_LENGTH).issuer_name(subject).sign(key, hashes.SHA256())


def issue_issuing(
    name: str, public_key: PublicKey, root: x509.Certificate, root_key: EllipticCurvePrivateKey, now: datetime
) -> x509.Certificate:
    """Return the certificate of the issuing authority, signed by the root."""
    builder = _begun(_name(name, " issuing"), public_key, now, _end(root, now + ISSUING_LIFE, now))
    return _signed(_authority(builder, ISSUING_PATH_LENGTH), root, root_key)


def issue_leaf(
    use: Use,
    name: str,
    public_key: PublicKey,
    issuer: x509.Certificate,
    issuer_key: EllipticCurvePrivateKey,
    now: datetime,
    life: timedelta,
) -> x509.Certificate:
    """Return a certificate for one use, valid for `life` but not beyond its issuer's.

    Args:
        use: what for.
        name: of whom; for "server tls" a host's name or IP address.
        public_key: to certify.
        issuer: the root for "coordinator signing", the issuing authority for the others.
        issuer_key: the issuer's.
        now: when it is issued; it is valid from a little earlier, for clocks that are behind.
        life: for how long.

    Raises:
        CertificateError: the issuer's certificate has expired.
    """
    builder = (
        _begun(
            _name(name, " signing" if use == "coordinator signing" else ""),
            public_key,
            now,
            _end(issuer, now + life, now),
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([PURPOSES_OF_USE[use]]), critical=True)
    )
    if use == "server tls":
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(name)]), critical=False)
    return _signed(builder, issuer, issuer_key)


def is_for_host(certificate: x509.Certificate, host: str) -> bool:
    """Return whether a server's certificate names this host."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return list(names) == [_host(host)]


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(name: str, role: str) -> x509.Name:
    # A common name has at most 64 bytes; what is cut is only for people to read.
    common = name.encode()[: 64 - len(role)].decode(errors="ignore") + role
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "EchoFed")
    return x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _begun(subject: x509.Name, key: PublicKey, now: datetime, end: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_TOLERANCE)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _authority(builder: x509.CertificateBuilder, path_length: int) -> x509.CertificateBuilder:
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True).add_extension(
        _usage(authority=True), critical=True
    )


def _signed(
    builder: x509.CertificateBuilder, issuer: x509.Certificate, key: EllipticCurvePrivateKey
) -> x509.Certificate:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    return builder.issuer_name(issuer.subject).add_extension(authority, critical=False).sign(key, hashes.SHA256())


def _end(issuer: x509.Certificate, wanted: datetime, now: datetime) -> datetime:
    if issuer.not_valid_after_utc <= now:
        what = f"The certificate to issue with expired at {issuer.not_valid_after_utc:%Y-%m-%d}."
        raise CertificateError(what, "Put root.key back and run `echofed consortium init` again, as before.")
    return min(wanted, issuer.not_valid_after_utc)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
