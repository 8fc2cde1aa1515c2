"""Certificates: each serves one use, under one root, at its time; OpenSSL and EchoFed agree on who is refused."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from echofed.protocol.certificates import (
    MAX_PEM_CHARACTERS,
    PURPOSES_OF_USE,
    Use,
    certificate_from_der,
    certificate_pem,
    check_chain,
    common_name,
    parse_certificate,
    parse_request,
    root_fingerprint,
    signing_key_of,
)
from echofed.protocol.errors import CertificateError, ClockError
from echofed.protocol.key_files import PrivateKey, key_pem
from echofed.server.issuing import PublicKey, issue_issuing, issue_leaf, issue_root
from tests.consortia import DAY, NOW

USES: tuple[Use, ...] = ("site tls", "server tls", "site signing", "coordinator signing")
ROOT_KEY, ISSUING_KEY, TLS_KEY = (generate_private_key(SECP256R1()) for _ in range(3))
SIGNING_KEY = Ed25519PrivateKey.generate()
ROOT = issue_root("Échos", ROOT_KEY, NOW)
ISSUING = issue_issuing("Échos", ISSUING_KEY.public_key(), ROOT, ROOT_KEY, NOW)
KEYS: dict[Use, PrivateKey] = {
    "site tls": TLS_KEY,
    "server tls": TLS_KEY,
    "site signing": SIGNING_KEY,
    "coordinator signing": SIGNING_KEY,
}
OTHER_ROOT_KEY = generate_private_key(SECP256R1())
OTHER_ROOT = issue_root("Échos", OTHER_ROOT_KEY, NOW)


def leaf(use: Use, name: str = "north", key: PublicKey | None = None, now: datetime = NOW) -> x509.Certificate:
    issuer, issuer_key = (ROOT, ROOT_KEY) if use == "coordinator signing" else (ISSUING, ISSUING_KEY)
    return issue_leaf(use, name, key or KEYS[use].public_key(), issuer, issuer_key, now, 14 * DAY)


def forged(
    issuer: x509.Certificate,
    issuer_key: EllipticCurvePrivateKey,
    *,
    authority: bool = False,
    path_length: int | None = None,
    purposes: list[x509.ObjectIdentifier] | None = None,
    subject: x509.Name | None = None,
    extra: x509.ExtensionType | None = None,
    key: PublicKey | None = None,
) -> x509.Certificate:
    """Return a certificate that the consortium's own functions would not issue."""
    name = subject or x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "north")])
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    builder = (
        x509.CertificateBuilder(issuer.subject, name, key or TLS_KEY.public_key(), x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=path_length), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **usage),
            critical=True,
        )
    )
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=True)
    if extra:
        builder = builder.add_extension(extra, critical=True)
    return builder.sign(issuer_key, hashes.SHA256())


@pytest.mark.parametrize("use", USES)
def test_a_certificate_serves_its_own_use_and_no_other(use: Use) -> None:
    certificate = leaf(use)
    check_chain(certificate, ISSUING, ROOT, use, NOW)
    assert parse_certificate(certificate_pem(certificate)) == certificate
    for other in USES:
        if other != use:
            with pytest.raises(CertificateError):
                check_chain(certificate, ISSUING, ROOT, other, NOW)


@pytest.mark.parametrize("use", USES)
def test_validity_is_that_of_the_whole_chain(use: Use) -> None:
    certificate = leaf(use)
    check_chain(certificate, ISSUING, ROOT, use, NOW + 14 * DAY)
    with pytest.raises(CertificateError, match=r"expired at .* clock says") as raised:
        check_chain(certificate, ISSUING, ROOT, use, NOW + 14 * DAY + timedelta(seconds=1))
    assert "set the clock" in raised.value.remedy
    with pytest.raises(ClockError, match="valid from"):
        check_chain(certificate, ISSUING, ROOT, use, NOW - DAY)
    late = leaf(use, now=NOW + DAY)
    with pytest.raises(ClockError, match="north"):
        check_chain(late, ISSUING, ROOT, use, NOW)


def test_nothing_is_valid_beyond_its_issuer() -> None:
    end = ISSUING.not_valid_after_utc
    certificate = leaf("site tls", now=end - DAY)
    assert certificate.not_valid_after_utc == end
    with pytest.raises(CertificateError, match="expired"):
        leaf("site tls", now=end)


@pytest.mark.parametrize("use", USES)
def test_another_consortium_of_the_same_name_is_another(use: Use) -> None:
    assert OTHER_ROOT.subject == ROOT.subject
    assert root_fingerprint(OTHER_ROOT) != root_fingerprint(ROOT)
    with pytest.raises(CertificateError, match="not issued by this consortium"):
        check_chain(leaf(use), ISSUING, OTHER_ROOT, use, NOW)
    other_issuing = issue_issuing("Échos", ISSUING_KEY.public_key(), OTHER_ROOT, OTHER_ROOT_KEY, NOW)
    if use != "coordinator signing":  # which no issuing authority stands behind
        with pytest.raises(CertificateError, match="not issued by this consortium"):
            check_chain(leaf(use), other_issuing, ROOT, use, NOW)


def test_what_a_site_could_sign_itself_is_refused() -> None:
    own_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "north")])
    dummy = forged(ROOT, TLS_KEY, subject=own_name)
    self_signed = forged(dummy, TLS_KEY, purposes=[PURPOSES_OF_USE["site tls"]])
    with pytest.raises(CertificateError, match="self-signed"):
        check_chain(self_signed, ISSUING, ROOT, "site tls", NOW)
    by_a_member = forged(leaf("site tls"), TLS_KEY, purposes=[PURPOSES_OF_USE["site tls"]])
    for issuing in (ISSUING, leaf("site tls")):
        with pytest.raises(CertificateError):
            check_chain(by_a_member, issuing, ROOT, "site tls", NOW)
    stolen_name = forged(ISSUING, TLS_KEY, purposes=[PURPOSES_OF_USE["site tls"]])
    with pytest.raises(CertificateError, match="not issued by this consortium"):
        check_chain(stolen_name, ISSUING, ROOT, "site tls", NOW)


@pytest.mark.parametrize(("authority", "path_length"), [(True, None), (True, 1), (False, None)])
def test_an_issuing_certificate_of_the_wrong_path_is_refused(authority: bool, path_length: int | None) -> None:
    issuing = forged(
        ROOT,
        ROOT_KEY,
        authority=authority,
        path_length=path_length,
        subject=ISSUING.subject,
        key=ISSUING_KEY.public_key(),
    )
    with pytest.raises(CertificateError, match=r"path length|may not sign"):
        check_chain(leaf("site tls"), issuing, ROOT, "site tls", NOW)


def test_a_root_is_refused_as_an_issuing_certificate_and_as_a_leaf() -> None:
    under_root = issue_leaf("site tls", "north", TLS_KEY.public_key(), ROOT, ROOT_KEY, NOW, DAY)
    with pytest.raises(CertificateError, match="path length"):
        check_chain(under_root, ROOT, ROOT, "site tls", NOW)
    for authority in (ROOT, ISSUING):
        with pytest.raises(CertificateError):
            check_chain(authority, ISSUING, ROOT, "coordinator signing", NOW)


def test_a_leaf_says_exactly_what_it_is_for() -> None:
    site, server = PURPOSES_OF_USE["site tls"], PURPOSES_OF_USE["server tls"]
    for purposes in (None, [site, server], [server], [x509.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]):
        with pytest.raises(CertificateError, match=r"used"):
            check_chain(forged(ISSUING, ISSUING_KEY, purposes=purposes), ISSUING, ROOT, "site tls", NOW)
    check_chain(forged(ISSUING, ISSUING_KEY, purposes=[site]), ISSUING, ROOT, "site tls", NOW)
    constraints = x509.InhibitAnyPolicy(0)
    with pytest.raises(CertificateError, match="extension"):
        check_chain(forged(ISSUING, ISSUING_KEY, purposes=[site], extra=constraints), ISSUING, ROOT, "site tls", NOW)
    with pytest.raises(CertificateError, match="authority"):
        check_chain(forged(ISSUING, ISSUING_KEY, purposes=[site], authority=True), ISSUING, ROOT, "site tls", NOW)


@pytest.mark.parametrize("use", USES)
def test_keys_are_of_the_kind_their_use_wants(use: Use) -> None:
    wrong = SIGNING_KEY if "tls" in use else TLS_KEY
    for key in (wrong.public_key(), generate_private_key(SECP384R1()).public_key()):
        with pytest.raises(CertificateError, match="key of another kind"):
            check_chain(leaf(use, key=key), ISSUING, ROOT, use, NOW)
    if "tls" in use:
        with pytest.raises(CertificateError):
            signing_key_of(leaf(use))
    else:
        assert signing_key_of(leaf(use)) == SIGNING_KEY.public_key()


def test_damaged_certificates_are_refused() -> None:
    pem = certificate_pem(leaf("site tls"))
    for text in ("", "x", pem[:200], pem + pem, pem.replace("M", "N"), "é" * 10, pem + " " * MAX_PEM_CHARACTERS):
        with pytest.raises(CertificateError):
            parse_certificate(text)


@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
@pytest.mark.parametrize("change", [0x01, 0x02, 0x1B, 0x40, 0x80, 0xFF])
def test_no_changed_byte_of_a_certificate_or_request_ends_in_another_error(change: int) -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "north")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(TLS_KEY, hashes.SHA256())
    certificate = leaf("site tls")

    def read_request(content: bytes) -> None:
        pem = ssl.DER_cert_to_PEM_cert(content).replace("CERTIFICATE", "CERTIFICATE REQUEST")
        parse_request(pem, "site tls", "north")

    def read_certificate(content: bytes) -> None:
        check_chain(certificate_from_der(content), ISSUING, ROOT, "site tls", NOW)

    _no_changed_byte_passes(
        request.public_bytes(serialization.Encoding.DER), request.tbs_certrequest_bytes, change, read_request
    )
    _no_changed_byte_passes(
        certificate.public_bytes(serialization.Encoding.DER),
        certificate.tbs_certificate_bytes,
        change,
        read_certificate,
    )


def _no_changed_byte_passes(content: bytes, signed: bytes, change: int, read: Callable[[bytes], None]) -> None:
    start, refused = content.index(signed), (CertificateError, ClockError)
    for place in range(len(content)):
        # How many bits of the signature's last byte are unused is not signed.
        within = start <= place < start + len(signed)
        with pytest.raises(refused) if within else contextlib.suppress(*refused):
            read(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])


def test_a_signing_request_proves_that_its_sender_holds_the_key() -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "north")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(TLS_KEY, hashes.SHA256())
    pem = request.public_bytes(serialization.Encoding.PEM).decode()
    assert parse_request(pem, "site tls", "north").public_key() == TLS_KEY.public_key()
    assert common_name(request.subject) == "north"
    with pytest.raises(CertificateError, match="not for south"):
        parse_request(pem, "site tls", "south")
    with pytest.raises(CertificateError, match="another kind"):
        parse_request(pem, "site signing", "north")
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    with pytest.raises(CertificateError):
        parse_request(
            ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST"), "site tls", "north"
        )
    with pytest.raises(CertificateError, match="not a signing request"):
        parse_request("nonsense", "site tls", "north")


def test_tls_itself_takes_a_site_for_a_site_and_nothing_else(tmp_path: Path) -> None:
    assert _shakes_hands(tmp_path, leaf("server tls", "fed.example.org"), TLS_KEY, leaf("site tls"), TLS_KEY)
    for use in ("server tls", "site signing", "coordinator signing"):
        client = leaf(use, "north.example.org")
        assert not _shakes_hands(tmp_path, leaf("server tls", "fed.example.org"), TLS_KEY, client, KEYS[use])
    for use in ("site tls", "site signing"):
        assert not _shakes_hands(tmp_path, leaf(use, "fed.example.org"), KEYS[use], leaf("site tls"), TLS_KEY)
    other = leaf("server tls", "fed.example.net")
    assert not _shakes_hands(tmp_path, other, TLS_KEY, leaf("site tls"), TLS_KEY)


def _shakes_hands(
    folder: Path, server: x509.Certificate, server_key: PrivateKey, client: x509.Certificate, client_key: PrivateKey
) -> bool:
    """Return whether the two accept each other over TLS 1.3."""
    contexts = []
    for protocol, certificate, key in (
        (ssl.PROTOCOL_TLS_SERVER, server, server_key),
        (ssl.PROTOCOL_TLS_CLIENT, client, client_key),
    ):
        file = folder / "pair.pem"
        file.write_bytes(key_pem(key, None) + (certificate_pem(certificate) + certificate_pem(ISSUING)).encode())
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_cert_chain(file)
        context.load_verify_locations(cadata=certificate_pem(ROOT))
        contexts.append(context)
    near, far = socket.socketpair()
    answers: list[bytes] = []

    def serve() -> None:
        try:
            with contexts[0].wrap_socket(far, server_side=True) as stream:
                stream.sendall(b"welcome")
        except OSError:
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with contexts[1].wrap_socket(near, server_hostname="fed.example.org") as stream:
            answers.append(stream.recv(7))
    except OSError:
        near.close()
    thread.join()
    return answers == [b"welcome"]
