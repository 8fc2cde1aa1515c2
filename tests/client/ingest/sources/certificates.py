"""Authorities, and the certificates they sign for PACS, scanners and us."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from echofed.protocol.key_files import new_tls_key, write_key


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as PEM files."""

    certificate_file: Path
    key_file: Path


class Authority:
    """One that signs certificates.

    Args:
        folder: for the files; made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder, self._key = folder, new_tls_key()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        builder = _builder(self._name, self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.file = folder / "authority.pem"
        self.file.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def sign(self, name: str, host: str = "127.0.0.1") -> Certificate:
        """Return a certificate of one who is at a host, a name or an address."""
        try:
            known_as: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            known_as = x509.DNSName(host)
        key = new_tls_key()
        signed = (
            _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), self._name, key)
            .add_extension(x509.SubjectAlternativeName([known_as]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        made = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        made.certificate_file.write_bytes(signed.public_bytes(Encoding.PEM))
        write_key(made.key_file, key, None)
        return made


def _builder(subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer, subject, key.public_key(), x509.random_serial_number(), now - timedelta(1), now + timedelta(1)
    )
