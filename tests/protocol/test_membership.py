"""Invitations, requests and memberships: opened only whole, by the right party, at the right time."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from echofed.protocol.certificates import certificate_pem, signing_key_of
from echofed.protocol.errors import CertificateError, ClockError, EnrolmentError, SignatureError, TrustError
from echofed.protocol.membership import (
    CLOCK_TOLERANCE,
    Invitation,
    Membership,
    coordinator_key_of,
    iso_time,
    open_invitation,
    open_membership,
    open_request,
    parse_time,
    split_address,
)
from echofed.protocol.signing import Signed, read_signed, sign
from echofed.server.authority import Authority, open_authority
from echofed.server.issuing import issue_leaf
from echofed.server.memberships import make_invitation
from tests.consortia import DAY, NOW, ask, enrolled, make_consortium


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a consortium, a member `north`, and a request of `south`."""
    folder = tmp_path_factory.mktemp("membership")
    make_consortium(folder, now=NOW)
    enrolled(folder, now=NOW)
    ask(folder, "south", now=NOW)
    make_consortium(folder / "elsewhere", now=NOW)
    return folder


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    """Return the consortium's authority."""
    return open_authority(folder / "C")


def membership(folder: Path) -> Signed:
    return read_signed((folder / "C" / "members" / "north.json").read_bytes())


def changed(folder: Path, authority: Authority, **fields: Any) -> Signed:
    """Return north's membership with fields changed, signed by the coordinator itself."""
    document = open_membership(membership(folder), NOW)
    return sign(authority.signing_key, "membership", document.model_copy(update=fields))


def test_an_invitation_is_opened_until_it_expires(authority: Authority) -> None:
    signed = sign(authority.signing_key, "invitation", make_invitation(authority.consortium, "north", NOW))
    assert open_invitation(signed, NOW).site == "north"
    assert open_invitation(signed, NOW + 7 * DAY) == open_invitation(signed, NOW - CLOCK_TOLERANCE)
    with pytest.raises(EnrolmentError, match="expired"):
        open_invitation(signed, NOW + 7 * DAY + timedelta(seconds=1))
    with pytest.raises(ClockError, match="clock says"):
        open_invitation(signed, NOW - CLOCK_TOLERANCE - timedelta(seconds=1))


def test_each_invitation_has_a_secret_of_its_own(authority: Authority) -> None:
    secrets = {make_invitation(authority.consortium, "north", NOW).secret for _ in range(20)}
    assert len(secrets) == 20


def test_an_invitation_can_only_be_signed_by_its_own_root(folder: Path, authority: Authority) -> None:
    invitation = make_invitation(authority.consortium, "north", NOW)
    stranger = open_authority(folder / "elsewhere" / "C")
    with pytest.raises(SignatureError, match="another key"):
        open_invitation(sign(stranger.signing_key, "invitation", invitation), NOW)
    own_pem = {"coordinator_signing_pem": certificate_pem(stranger.consortium.signing)}
    with pytest.raises(CertificateError, match="not issued by this consortium"):
        open_invitation(sign(stranger.signing_key, "invitation", invitation.model_copy(update=own_pem)), NOW)
    own_root = {**own_pem, "root_pem": certificate_pem(stranger.consortium.root)}
    with pytest.raises(CertificateError, match="not the one it names"):
        open_invitation(sign(stranger.signing_key, "invitation", invitation.model_copy(update=own_root)), NOW)


def test_a_member_cannot_invite(folder: Path, authority: Authority) -> None:
    member = open_membership(membership(folder), NOW)
    key = Ed25519PrivateKey.generate()
    issuing = authority.consortium.issuing
    pem = certificate_pem(
        issue_leaf("site signing", "north", key.public_key(), issuing, authority.issuing_key, NOW, DAY)
    )
    invitation = make_invitation(authority.consortium, "south", NOW).model_copy(update={"coordinator_signing_pem": pem})
    assert signing_key_of(authority.consortium.signing) == coordinator_key_of(member)
    with pytest.raises(CertificateError, match="not issued by this consortium"):
        open_invitation(sign(key, "invitation", invitation), NOW)


def test_one_document_is_not_another(folder: Path) -> None:
    with pytest.raises(SignatureError, match="not as 'invitation'"):
        open_invitation(membership(folder), NOW)
    with pytest.raises(SignatureError, match="not as 'enrolment request'"):
        open_request(membership(folder))
    with pytest.raises(SignatureError, match="not as 'membership'"):
        open_membership(read_signed((folder / "south.request").read_bytes()), NOW)


@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
@given(st.data())
def test_any_changed_byte_of_what_travels_is_noticed(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["north.membership", "C/invitations/north.invitation", "south.request"]))
    content = bytearray((folder / name).read_bytes().rstrip())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    openers: dict[str, Any] = {
        "m": lambda s: open_membership(s, NOW),
        "C": lambda s: open_invitation(s, NOW),
        "r": open_request,
    }
    opener = openers[{"north.membership": "m", "south.request": "r"}.get(name, "C")]
    with pytest.raises(TrustError):
        opener(read_signed(bytes(content)))


def test_a_membership_holds_for_its_time_and_can_be_read_after(folder: Path) -> None:
    signed = membership(folder)
    opened = open_membership(signed, NOW + 14 * DAY)
    assert parse_time(opened.expires_at) == NOW + 14 * DAY
    with pytest.raises(CertificateError, match="expired"):
        open_membership(signed, NOW + 15 * DAY)
    with pytest.raises(ClockError):
        open_membership(signed, NOW - DAY)
    assert open_membership(signed, None) == opened


def test_a_membership_of_another_consortium_is_refused(folder: Path, authority: Authority) -> None:
    signed = membership(folder)
    assert open_membership(signed, NOW, authority.consortium.id)
    with pytest.raises(CertificateError, match="another consortium"):
        open_membership(signed, NOW, "0" * 64)


def test_what_even_the_coordinator_cannot_hand_out(folder: Path, authority: Authority) -> None:
    document = open_membership(membership(folder), NOW)
    tls, signing = document.tls_pem, document.signing_pem
    for wrong in (
        {"tls_pem": signing},
        {"signing_pem": tls},
        {"tls_pem": certificate_pem(authority.consortium.server)},
        {"signing_pem": certificate_pem(authority.consortium.signing)},
        {"issuing_pem": document.root_pem},
        {"site": "south"},
        {"consortium": "0" * 64},
        {"tls_pem": "nonsense"},
    ):
        with pytest.raises(CertificateError):
            open_membership(changed(folder, authority, **wrong), NOW)


def test_a_request_proves_that_its_sender_holds_both_keys(folder: Path) -> None:
    signed = read_signed((folder / "south.request").read_bytes())
    request = open_request(signed)
    assert request.site == "south"
    with pytest.raises(SignatureError, match="another key"):
        open_request(sign(Ed25519PrivateKey.generate(), "enrolment request", request))
    for wrong in (
        {"site": "north"},
        {"tls_csr_pem": request.signing_csr_pem},
        {"signing_csr_pem": request.tls_csr_pem},
    ):
        with pytest.raises((CertificateError, SignatureError)):
            open_request(sign(Ed25519PrivateKey.generate(), "enrolment request", request.model_copy(update=wrong)))


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("fed.example.org:8443", ("fed.example.org", 8443)),
        ("localhost:1", ("localhost", 1)),
        ("192.0.2.1:65535", ("192.0.2.1", 65535)),
        ("[2001:db8::1]:443", ("2001:db8::1", 443)),
    ],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


NOT_ADDRESSES = (
    "",
    "fed.example.org",
    "fed.example.org:",
    "fed.example.org:0",
    "fed.example.org:65536",
    "https://fed.example.org:1",
    "a b:1",
    "-a:1",
    "a_b:1",
    "2001:db8::1:443",
    "[fed]:1",
    "[2001:db8::g]:1",
    "1.2.3:4",
    "1.2.3.456:4",
    "a/b:1",
    "é:1",
)


@pytest.mark.parametrize("address", NOT_ADDRESSES)
def test_what_is_not_an_address(address: str) -> None:
    with pytest.raises(ValueError):
        split_address(address)


@pytest.mark.parametrize(
    "time", ["2030-01-01", "2030-01-01T00:00:00", "2030-01-01T00:00:00Z", "2030-01-01T00:00:00.5+00:00", ""]
)
def test_times_have_one_spelling(time: str, authority: Authority) -> None:
    with pytest.raises(ValueError):
        parse_time(time)
    fields = make_invitation(authority.consortium, "north", NOW).model_dump()
    with pytest.raises(ValidationError):
        Invitation.model_validate({**fields, "expires_at": time})
    assert parse_time(iso_time(NOW)) == NOW


def test_a_membership_has_limits() -> None:
    assert {"tls_pem", "signing_pem", "root_pem"} <= set(Membership.model_fields)
    with pytest.raises(ValidationError):
        Membership.model_validate(dict.fromkeys(Membership.model_fields, "x" * 10000))
