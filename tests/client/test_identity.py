"""A site's identity: made once, installed whole, renewed in time, and refused when anything does not fit."""

import os
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from echofed.client.identity import init_site, join, load_identity, renew_if_due
from echofed.client.link_settings import LinkSettings, load_link_settings
from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.errors import (
    CertificateError,
    ClockError,
    EchoFedError,
    EnrolmentError,
    KeyFileError,
    ProxyRefusedError,
    SignatureError,
    StateFolderError,
    UnreachableError,
)
from echofed.protocol.key_files import PASSPHRASE_VARIABLE
from echofed.protocol.signing import MAX_SIGNED_BYTES, Signed
from echofed.server.members import check_member, enrol, invite, renew
from tests.consortia import ADDRESS, DAY, NAME, NOW, Killed, ask, enrolled, killed_at, make_consortium
from tests.small_simulations import environment

ROOT = Path(__file__).parents[2]
DUE = NOW + DAY * 28 / 3
RENEWER = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from echofed.client.identity import load_identity, renew_if_due
from echofed.protocol.membership import parse_time
from echofed.server.members import renew

folder = Path(sys.argv[1])
while True:
    now = parse_time(load_identity(folder / "north").membership.expires_at) - timedelta(days=1)
    assert renew_if_due(folder / "north", lambda signed: renew(folder / "C", "north", signed, now=now), now=now)
    print("renewed", flush=True)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a consortium and its member `north`."""
    folder = tmp_path_factory.mktemp("identity")
    make_consortium(folder, now=NOW)
    enrolled(folder, now=NOW)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """Return a copy of `prepared`."""
    return shutil.copytree(prepared, tmp_path / "copy")


def post(folder: Path, **options: Any) -> Any:
    """Return what sends north's renewal requests to its coordinator."""
    return lambda signed: renew(folder / "C", "north", signed, **options)


def test_a_member_knows_who_it_is(folder: Path) -> None:
    identity = load_identity(folder / "north")
    assert (identity.site, identity.membership.consortium_name) == ("north", NAME)
    assert (identity.membership.address, identity.membership.server_name) == (ADDRESS, "fed.example.org")
    assert identity.ssl_context().minimum_version == ssl.TLSVersion.TLSv1_3
    assert "PRIVATE" not in repr(identity)
    with open_audit_log(folder / "north", owner="north") as log:
        assert [entry.event for entry in log.entries()] == ["enrolled"]


def test_keys_stay_on_the_site_and_are_the_owners_alone(folder: Path) -> None:
    identity = folder / "north" / "identity"
    assert stat.S_IMODE(identity.stat().st_mode) == 0o700
    files = [path for path in identity.iterdir() if path.is_file()]
    assert len(files) == 4
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for sent in (folder / "north.request", folder / "north.membership", *(folder / "C").rglob("*north*")):
        assert b"PRIVATE KEY" not in sent.read_bytes()


@pytest.mark.parametrize("pattern", ["tls-*", "signing-*"])
def test_key_files_that_cannot_be_used(folder: Path, pattern: str) -> None:
    (path,) = (folder / "north" / "identity").glob(pattern)
    content = path.read_bytes()
    path.chmod(0o604)
    with pytest.raises(KeyFileError, match="others"):
        load_identity(folder / "north")
    path.chmod(0o600)
    for damaged in (b"", content[:100], content.replace(b"PRIVATE", b"PUBLIC"), b"x" * 100_000):
        path.write_bytes(damaged)
        with pytest.raises(KeyFileError):
            load_identity(folder / "north")
    enrolled(folder, "south", now=NOW)
    (other,) = (folder / "south" / "identity").glob(pattern)
    path.write_bytes(other.read_bytes())
    with pytest.raises(KeyFileError, match="not the key of north"):
        load_identity(folder / "north")
    path.unlink()
    with pytest.raises(KeyFileError, match="cannot be read"):
        load_identity(folder / "north")
    os.mkfifo(path, 0o600)
    with pytest.raises(KeyFileError, match="plain file"):
        load_identity(folder / "north")


def test_a_changed_membership_is_refused(folder: Path) -> None:
    path = folder / "north" / "identity" / "membership.json"
    content = path.read_bytes()
    for damaged in (content[:-50], content.replace(b"8443", b"8444"), b"", b" " * (MAX_SIGNED_BYTES + 1)):
        path.write_bytes(damaged)
        with pytest.raises((SignatureError, CertificateError, StateFolderError)):
            load_identity(folder / "north")


def test_a_passphrase_protects_both_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    make_consortium(tmp_path)
    invitation = invite(tmp_path / "C", "north")
    request = init_site(tmp_path / "north", invitation, path=tmp_path / "r", passphrase="mère")
    membership = enrol(tmp_path / "C", request.path, request.words)
    for wrong in ("wrong", None):
        with pytest.raises(KeyFileError):
            join(tmp_path / "north", membership, passphrase=wrong)
    identity = join(tmp_path / "north", membership, passphrase="mère")
    assert all(b"ENCRYPTED" in path.read_bytes() for path in (tmp_path / "north" / "identity").glob("*-*"))
    assert identity.ssl_context().get_ca_certs()
    assert "mère" not in repr(identity)
    with pytest.raises(KeyFileError, match="passphrase"):
        load_identity(tmp_path / "north", "wrong")
    with pytest.raises(KeyFileError, match="encrypted") as raised:
        load_identity(tmp_path / "north")
    assert PASSPHRASE_VARIABLE in raised.value.remedy
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "mère")
    later = NOW + 13 * DAY
    assert renew_if_due(tmp_path / "north", post(tmp_path, now=later), now=later)
    assert all(b"ENCRYPTED" in path.read_bytes() for path in (tmp_path / "north" / "identity").glob("*-*"))


def test_asking_again_with_the_same_invitation_is_the_same_request(folder: Path) -> None:
    invitation = invite(folder / "C", "south")
    first = init_site(folder / "south", invitation, path=folder / "first")
    again = init_site(folder / "south", invitation, path=folder / "again")
    assert (first.words, first.path.read_bytes()) == (again.words, again.path.read_bytes())
    newer = init_site(folder / "south", invite(folder / "C", "south"), path=folder / "newer")
    assert newer.words != first.words
    membership = enrol(folder / "C", newer.path, newer.words)
    assert join(folder / "south", membership).site == "south"


def test_invitations_that_are_refused(folder: Path) -> None:
    invitation = invite(folder / "C", "south", now=NOW)
    with pytest.raises(EnrolmentError, match="for south, not for north"):
        init_site(folder / "south", invitation, "north")
    with pytest.raises(EnrolmentError, match="expired"):
        init_site(folder / "south", invitation, now=NOW + 8 * DAY)
    with pytest.raises(ClockError):
        init_site(folder / "south", invitation, now=NOW - DAY)
    content = invitation.read_bytes()
    for damaged in (b"", content[:-9], content.replace(b"south", b"north"), b" " * (MAX_SIGNED_BYTES + 1)):
        invitation.write_bytes(damaged)
        with pytest.raises((SignatureError, StateFolderError)):
            init_site(folder / "south", invitation)
    assert not (folder / "south").exists()


def test_a_folder_is_one_sites_in_one_consortium(folder: Path) -> None:
    make_consortium(folder / "elsewhere")
    with pytest.raises(StateFolderError, match="folder of north"):
        init_site(folder / "north", invite(folder / "C", "south"), path=folder / "r")
    with pytest.raises(StateFolderError, match="folder of north"):
        init_site(folder / "north", invite(folder / "elsewhere" / "C", "north"), path=folder / "r")
    with pytest.raises(StateFolderError, match="of a consortium"):
        init_site(folder / "C", invite(folder / "C", "south"), path=folder / "r")
    assert load_identity(folder / "north").site == "north"


def test_memberships_that_are_refused(folder: Path) -> None:
    south = ask(folder, "south", now=NOW)
    make_consortium(folder / "elsewhere", now=NOW)
    enrolled(folder / "elsewhere", "south", now=NOW)
    cases: tuple[tuple[Path, type[EchoFedError], str], ...] = (
        (folder / "elsewhere" / "south.membership", CertificateError, "another consortium"),
        (folder / "north.membership", EnrolmentError, "for north"),
        (south.path, SignatureError, "not as 'membership'"),
    )
    for path, error, words in cases:
        with pytest.raises(error, match=words):
            join(folder / "south", path, now=NOW)
    membership = enrol(folder / "C", south.path, south.words, now=NOW)
    with pytest.raises(CertificateError, match="expired"):
        join(folder / "south", membership, now=NOW + 15 * DAY)
    with pytest.raises(ClockError, match="clock says"):
        join(folder / "south", membership, now=NOW - DAY)
    shutil.rmtree(folder / "south")
    init_site(folder / "south", folder / "C" / "invitations" / "south.invitation", path=south.path, now=NOW)
    with pytest.raises(KeyFileError, match="other keys"):
        join(folder / "south", membership, now=NOW)


def test_what_comes_first_is_said(folder: Path) -> None:
    with pytest.raises(StateFolderError, match="holds no site"):
        load_identity(folder / "nowhere")
    with pytest.raises(StateFolderError, match="holds no site"):
        join(folder / "nowhere", folder / "north.membership")
    ask(folder, "south")
    with pytest.raises(EnrolmentError, match="not enrolled yet") as raised:
        load_identity(folder / "south")
    assert "site join" in raised.value.remedy
    shutil.rmtree(folder / "south" / "identity" / "pending")
    with pytest.raises(EnrolmentError, match="in no consortium"):
        load_identity(folder / "south")
    (folder / "north" / "state.json").write_text('{"kind":"site","version":2}')
    with pytest.raises(StateFolderError, match="newer"):
        load_identity(folder / "north")


def test_a_member_without_a_request_under_way_joins_nothing_new(folder: Path) -> None:
    assert join(folder / "north", folder / "north.membership").site == "north"
    enrolled(folder, "south")
    with pytest.raises(EnrolmentError, match="No request"):
        join(folder / "north", folder / "south.membership")


@pytest.mark.parametrize("action", ["init", "join"])
def test_killed_between_any_two_writes_the_next_try_completes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    invitation = invite(folder / "C", "south")
    ready = init_site(folder / "ready", invitation, path=folder / "ready.request")
    membership = enrol(folder / "C", ready.path, ready.words)
    for step in range(1, 60):
        state = folder / f"state-{step}"
        if action == "join":
            shutil.copytree(folder / "ready", state)
        try:
            with killed_at(step, monkeypatch):
                if action == "init":
                    init_site(state, invitation, path=folder / "again.request")
                else:
                    join(state, membership)
        except Killed:
            if action == "init":
                first = init_site(state, invitation, path=folder / "again.request")
                assert init_site(state, invitation, path=folder / "again.request") == first
            else:
                assert join(state, membership).ssl_context()
                assert not (state / "identity" / "pending").exists()
        else:
            break
    assert 6 < step < 59


def test_a_certificate_is_renewed_after_two_thirds_of_its_life(folder: Path) -> None:
    before = load_identity(folder / "north")

    def refuse(signed: Signed) -> Signed:
        raise AssertionError("not due")

    assert not renew_if_due(folder / "north", refuse, now=DUE - timedelta(seconds=1))
    assert renew_if_due(folder / "north", post(folder, now=DUE), now=DUE)
    after = load_identity(folder / "north")
    assert not renew_if_due(folder / "north", refuse, now=DUE)
    assert after.certificate.public_key() != before.certificate.public_key()
    assert after.signing_key.public_key() == before.signing_key.public_key()
    assert before.ssl_context()  # a process that has not noticed goes on
    for identity in (before, after):
        assert check_member(folder / "C", identity.certificate, DUE) == "north"
    second = DUE + DAY * 10
    assert renew_if_due(folder / "north", post(folder, now=second), now=second)
    assert not before.tls_file.exists()
    assert after.tls_file.exists()
    with open_audit_log(folder / "north", owner="north") as log:
        assert [entry.event for entry in log.entries()] == ["enrolled", "renewed", "renewed"]


def test_a_renewal_that_fails_leaves_all_as_it_was(folder: Path) -> None:
    before = load_identity(folder / "north")
    enrolled(folder, "south", now=DUE)

    def unreachable(signed: Signed) -> Signed:
        raise UnreachableError("no route")

    def old(signed: Signed) -> Signed:
        return Signed.model_validate_json((folder / "C" / "members" / "north.json").read_bytes())

    def other(signed: Signed) -> Signed:
        return Signed.model_validate_json((folder / "C" / "members" / "south.json").read_bytes())

    def tampered(signed: Signed) -> Signed:
        answer: Signed = post(folder, now=DUE)(signed)
        return answer.model_copy(update={"payload": answer.payload.replace("8443", "8444")})

    cases = (
        (unreachable, UnreachableError),
        (old, KeyFileError),
        (other, CertificateError),
        (tampered, SignatureError),
    )
    for answer, error in cases:
        with pytest.raises(error):
            renew_if_due(folder / "north", answer, now=DUE)
    assert load_identity(folder / "north").membership == before.membership
    with pytest.raises(CertificateError, match="expired"):
        renew_if_due(folder / "north", unreachable, now=NOW + 15 * DAY)


def test_killed_between_any_two_writes_of_a_renewal_key_and_certificate_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(1, 60):
        copy = folder / str(step)
        shutil.copytree(folder / "C", copy / "C")
        shutil.copytree(folder / "north", copy / "north")
        try:
            with killed_at(step, monkeypatch):
                renew_if_due(copy / "north", post(copy, now=DUE), now=DUE)
        except Killed:
            identity = load_identity(copy / "north")
            assert identity.ssl_context()
            assert check_member(copy / "C", identity.certificate, DUE) == "north"
            renew_if_due(copy / "north", post(copy, now=DUE), now=DUE)
            renewed = load_identity(copy / "north")
            assert renewed.certificate.not_valid_after_utc == (DUE + 14 * DAY).replace(microsecond=0)
            assert check_member(copy / "C", renewed.certificate, DUE) == "north"
        else:
            break
    assert 8 < step < 59


def test_killed_for_real_while_renewing_over_and_over(folder: Path) -> None:
    for moment in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", RENEWER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "renewed\n"
        time.sleep(0.007 * moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        identity = load_identity(folder / "north")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(identity.tls_file)
        assert check_member(folder / "C", identity.certificate, identity.certificate.not_valid_before_utc + DAY / 24)


def test_an_expired_certificate_can_sign_but_not_connect(tmp_path: Path) -> None:
    past = NOW - 20 * DAY
    make_consortium(tmp_path, now=past)
    identity = enrolled(tmp_path, now=past)
    assert load_identity(tmp_path / "north").signing_key.sign(b"withdraw")
    with pytest.raises(CertificateError, match="expired"):
        identity.ssl_context()
    with pytest.raises(ClockError):
        identity.check_valid(past - DAY)


def test_after_expiry_a_new_invitation_replaces_the_identity(tmp_path: Path) -> None:
    past = NOW - 20 * DAY
    make_consortium(tmp_path, now=past)
    before = enrolled(tmp_path, now=past)
    request = ask(tmp_path, now=NOW)
    assert load_identity(tmp_path / "north").membership == before.membership  # until it joins
    after = join(tmp_path / "north", enrol(tmp_path / "C", request.path, request.words))
    assert after.ssl_context()
    assert after.signing_key.public_key() != before.signing_key.public_key()


def test_link_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_link_settings(tmp_path) == LinkSettings()
    assert (LinkSettings().proxy_address, LinkSettings().proxy_credentials()) == (None, None)
    path = tmp_path / "link.yaml"
    path.write_text("proxy_url: http://proxy:3128\nproxy_user: me\nproxy_password_file: secret\n")
    with pytest.raises(ProxyRefusedError, match="cannot be read"):
        load_link_settings(tmp_path).proxy_credentials()
    (tmp_path / "secret").write_text("pass word\n")
    (tmp_path / "secret").chmod(0o640)
    with pytest.raises(KeyFileError, match=r"can be read by others than its owner \(mode 0640\)") as raised:
        load_link_settings(tmp_path).proxy_credentials()
    assert "have the password changed" in raised.value.remedy
    (tmp_path / "secret").chmod(0o600)
    assert load_link_settings(tmp_path).proxy_credentials() == ("me", "pass word")
    assert load_link_settings(tmp_path).proxy_address == ("proxy", 3128)
    path.write_text("proxy_url: http://[2001:db8::1]:3128\nproxy_user: me\nproxy_password_env: PROXY_WORD\n")
    monkeypatch.delenv("PROXY_WORD", raising=False)
    with pytest.raises(ProxyRefusedError, match="PROXY_WORD"):
        load_link_settings(tmp_path).proxy_credentials()
    monkeypatch.setenv("PROXY_WORD", "x")
    assert load_link_settings(tmp_path).proxy_credentials() == ("me", "x")
    assert load_link_settings(tmp_path).proxy_address == ("2001:db8::1", 3128)


@pytest.mark.parametrize(
    "text",
    [
        "proxy_url: proxy:3128",
        "proxy_url: https://proxy:3128",
        "proxy_url: http://proxy",
        "proxy_url: http://proxy:99999",
        "proxy_url: http://me:word@proxy:3128",
        "proxy_url: http://proxy:3128/path",
        "proxy_user: me",
        "proxy_url: http://proxy:3128\nproxy_user: me",
        "proxy_url: http://proxy:3128\nproxy_password_env: X",
        "proxy_url: http://proxy:3128\nproxy_user: me\nproxy_password_env: X\nproxy_password_file: y",
        "connect_timeout_seconds: 0",
        "proxy_port: 70000",
        "proxyurl: http://proxy:3128",
        "- a",
    ],
)
def test_link_settings_with_a_mistake_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "link.yaml").write_text(text)
    with pytest.raises(StateFolderError, match=r"link\.yaml"):
        load_link_settings(tmp_path)
