"""Members: let in once, by the words they read out, and out at once; nobody by half, whatever is killed."""

import json
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from echofed.client.identity import _csr, init_site, join, load_identity
from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.certificates import parse_certificate
from echofed.protocol.errors import (
    CertificateError,
    ClockError,
    EchoFedError,
    EnrolmentError,
    SignatureError,
    StateFolderError,
)
from echofed.protocol.key_files import new_tls_key
from echofed.protocol.membership import RenewalRequest, iso_time, open_membership, open_request
from echofed.protocol.signing import MAX_SIGNED_BYTES, Signed, read_signed, sign
from echofed.server.authority import open_authority
from echofed.server.issuing import issue_leaf
from echofed.server.members import (
    check_member,
    enrol,
    invite,
    is_revoked,
    members,
    read_request,
    renew,
    revoke,
    site_signing_key,
)
from echofed.server.roster import open_invitations
from tests.consortia import DAY, NAME, NOW, Killed, ask, enrolled, killed_at, make_consortium
from tests.small_simulations import environment

ROOT = Path(__file__).parents[2]
ENROLLER = """
import sys
from pathlib import Path
from echofed.protocol.errors import EnrolmentError
from echofed.server.members import enrol, read_request

folder, request, number = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
words = read_request(folder / "C", request).words
print("ready", flush=True)
sys.stdin.readline()
try:
    enrol(folder / "C", request, words, folder / f"{number}.membership")
    print("enrolled")
except EnrolmentError as error:
    print(error.what)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a consortium and its member `north`."""
    folder = tmp_path_factory.mktemp("members")
    make_consortium(folder, now=NOW)
    enrolled(folder, now=NOW)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """Return a copy of `prepared`."""
    return shutil.copytree(prepared, tmp_path / "copy")


def events(folder: Path) -> list[str]:
    with open_audit_log(folder / "C", owner=NAME) as log:
        return [entry.event for entry in log.entries()]


def renewal(folder: Path, now: Any = NOW, **changes: Any) -> Signed:
    """Return a renewal request of `north`, with fields changed before it is signed."""
    identity = load_identity(folder / "north")
    fields = {
        "consortium": identity.consortium,
        "site": "north",
        "tls_csr_pem": _csr(new_tls_key(), "north"),
        "requested_at": iso_time(now),
    }
    return sign(identity.signing_key, "renewal request", RenewalRequest.model_validate(fields | changes))


def test_an_enrolled_site_is_a_member(folder: Path) -> None:
    identity = join(folder / "north", folder / "north.membership")
    assert check_member(folder / "C", identity.certificate) == "north"
    assert site_signing_key(folder / "C", "north") == identity.signing_key.public_key()
    assert not is_revoked(folder / "C", "north")
    assert not is_revoked(folder / "C", identity.certificate)
    (member,) = members(folder / "C", NOW)
    assert (member.site, member.enrolled_at, member.expires_at) == ("north", NOW, NOW + 14 * DAY)
    assert (member.revocation, member.seen_at, member.online, member.overdue) == (None, None, False, False)
    assert events(folder) == ["initialised", "invited", "enrolled"]


def test_the_words_decide(folder: Path) -> None:
    request = ask(folder, "south")
    for words in ("", "zigzag " * 8, request.consortium_words, " ".join(reversed(request.words.split()))):
        with pytest.raises(EnrolmentError, match="words"):
            enrol(folder / "C", request.path, words)
    assert [member.site for member in members(folder / "C")] == ["north"]
    enrol(folder / "C", request.path, request.words.upper().replace(" ", ", "))  # misheard words cost nothing
    assert [member.site for member in members(folder / "C")] == ["north", "south"]


def test_who_intercepts_an_invitation_has_other_words(folder: Path) -> None:
    invitation = invite(folder / "C", "south")
    honest = init_site(folder / "south", invitation, path=folder / "south.request")
    thief = init_site(folder / "thief", invitation, path=folder / "thief.request")
    assert thief.consortium_words == honest.consortium_words
    with pytest.raises(EnrolmentError, match="words"):
        enrol(folder / "C", thief.path, honest.words)
    enrol(folder / "C", honest.path, honest.words)
    with pytest.raises(EnrolmentError, match="used already"):
        enrol(folder / "C", thief.path, thief.words)


def test_an_invitation_expires_is_for_one_site_and_gives_way_to_a_newer(folder: Path) -> None:
    request = ask(folder, "south", now=NOW)
    with pytest.raises(EnrolmentError, match="expired"):
        enrol(folder / "C", request.path, request.words, now=NOW + 7 * DAY + timedelta(seconds=1))
    invite(folder / "C", "south", now=NOW)
    with pytest.raises(EnrolmentError, match="not known"):
        enrol(folder / "C", request.path, request.words)
    assert [one.site for one in open_invitations(folder / "C", NOW + DAY)] == ["south"]


def test_a_request_under_another_name_is_refused(folder: Path) -> None:
    request = ask(folder, "south")
    signed = read_signed(request.path.read_bytes())
    key, tls = Ed25519PrivateKey.generate(), new_tls_key()
    renamed = open_request(signed).model_copy(
        update={"site": "north", "tls_csr_pem": _csr(tls, "north"), "signing_csr_pem": _csr(key, "north")}
    )
    path = folder / "renamed.request"
    path.write_text(sign(key, "enrolment request", renamed).model_dump_json())
    with pytest.raises(EnrolmentError, match="is for south, the request is from north"):
        enrol(folder / "C", path, read_request(folder / "C", path).words)


def test_a_request_to_another_consortium_is_refused(folder: Path) -> None:
    make_consortium(folder / "elsewhere")
    request = ask(folder / "elsewhere")
    with pytest.raises(EnrolmentError, match="another consortium"):
        enrol(folder / "C", request.path, request.words)


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * (MAX_SIGNED_BYTES + 1), b"\x00" * 100])
def test_what_is_not_a_request_is_refused(folder: Path, content: bytes) -> None:
    path = folder / "any.request"
    path.write_bytes(content)
    with pytest.raises((SignatureError, StateFolderError)):
        read_request(folder / "C", path)


def test_two_processes_cannot_use_one_invitation(folder: Path) -> None:
    invitation = invite(folder / "C", "south")
    requests = [init_site(folder / name, invitation, path=folder / f"{name}.request") for name in ("one", "two")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ENROLLER, str(folder), str(request.path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
        )
        for number, request in enumerate(requests)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    said = _released(processes)
    assert sorted(said) == ["The invitation of south was used already, by another request.\n", "enrolled\n"]
    winner = said.index("enrolled\n")
    assert join(folder / ("one", "two")[winner], folder / f"{winner}.membership").site == "south"
    assert not (folder / f"{1 - winner}.membership").exists()


def test_killed_between_any_two_writes_enrolling_is_finished_by_the_same_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation = invite(folder / "C", "south")
    request = init_site(folder / "south", invitation, path=folder / "south.request")
    thief = init_site(folder / "thief", invitation, path=folder / "thief.request")
    for step in range(1, 60):
        copy = folder / str(step)
        shutil.copytree(folder / "C", copy / "C")
        try:
            with killed_at(step, monkeypatch):
                enrol(copy / "C", request.path, request.words, copy / "south.membership")
        except Killed:
            records = [json.loads(path.read_bytes()) for path in (copy / "C" / "invitations").glob("*.json")]
            used = any(one["used_by"] for one in records if one["site"] == "south")
            if used:
                with pytest.raises(EnrolmentError, match="used already"):
                    enrol(copy / "C", thief.path, thief.words)
            enrol(copy / "C", request.path, request.words, copy / "south.membership")
        else:
            break
        shutil.copytree(folder / "south", copy / "south")
        identity = join(copy / "south", copy / "south.membership")
        assert check_member(copy / "C", identity.certificate) == "south"
        assert events(copy).count("enrolled") >= 2
    assert 8 < step < 59


def test_revoking_works_at_once_and_for_all_certificates(folder: Path) -> None:
    identity = join(folder / "north", folder / "north.membership")
    newer = parse_certificate(open_membership(renew(folder / "C", "north", renewal(folder), now=NOW), NOW).tls_pem)
    for certificate in (identity.certificate, newer):
        assert check_member(folder / "C", certificate) == "north"
    script = "import sys; from pathlib import Path; from echofed.server.members import revoke; "
    script += "revoke(Path(sys.argv[1]), 'north', 'left the consortium')"
    subprocess.run([sys.executable, "-c", script, str(folder / "C")], check=True, cwd=ROOT, env=environment())
    started = time.monotonic()
    while not is_revoked(folder / "C", "north"):
        time.sleep(0.01)
    assert time.monotonic() - started < 1
    for certificate in (identity.certificate, newer):
        assert is_revoked(folder / "C", certificate)
        assert is_revoked(folder / "C", certificate.serial_number)
        with pytest.raises(CertificateError, match="revoked"):
            check_member(folder / "C", certificate)
    for refused in (
        lambda: site_signing_key(folder / "C", "north"),
        lambda: renew(folder / "C", "north", renewal(folder), now=NOW),
    ):
        with pytest.raises(CertificateError, match="revoked"):
            refused()
    (member,) = members(folder / "C")
    assert member.revocation is not None
    assert member.revocation.reason == "left the consortium"
    assert events(folder)[-1] == "revoked"


def test_a_revoked_site_comes_back_only_on_purpose(folder: Path) -> None:
    before = join(folder / "north", folder / "north.membership")
    request = ask(folder, "north")
    revoke(folder / "C", "north", "a laptop was stolen")
    with pytest.raises(EnrolmentError, match="not known"):  # its open invitation is void
        enrol(folder / "C", request.path, request.words)
    with pytest.raises(EnrolmentError, match="a laptop was stolen") as raised:
        invite(folder / "C", "north")
    assert "--readmit" in raised.value.remedy
    invitation = invite(folder / "C", "north", readmit=True)
    assert is_revoked(folder / "C", "north")  # until it is enrolled
    request = init_site(folder / "north", invitation, path=folder / "north.request")
    after = join(folder / "north", enrol(folder / "C", request.path, request.words))
    assert check_member(folder / "C", after.certificate) == "north"
    assert is_revoked(folder / "C", before.certificate)
    with pytest.raises(CertificateError, match="revoked"):
        check_member(folder / "C", before.certificate)
    revoke(folder / "C", "north", "again")
    with pytest.raises(EnrolmentError, match="not known"):  # nor does the used invitation let it in again
        enrol(folder / "C", request.path, request.words)
    assert is_revoked(folder / "C", after.certificate)


def test_what_cannot_be_revoked(folder: Path) -> None:
    with pytest.raises(EnrolmentError, match="no site"):
        revoke(folder / "C", "south", "x")
    for reason in ("", "  ", "x" * 501):
        with pytest.raises(EnrolmentError, match="reason"):
            revoke(folder / "C", "north", reason)
    revoke(folder / "C", "north", "once")
    with pytest.raises(EnrolmentError, match=r"revoked since .*: once"):
        revoke(folder / "C", "north", "twice")
    invite(folder / "C", "south")
    revoke(folder / "C", "south", "invited by mistake")
    assert open_invitations(folder / "C") == []


@pytest.mark.parametrize("content", [None, b"", b"{}x", b'{"revocations":[{}]}'])
def test_without_the_list_of_revocations_nobody_is_let_in(folder: Path, content: bytes | None) -> None:
    identity = join(folder / "north", folder / "north.membership")
    assert check_member(folder / "C", identity.certificate) == "north"
    path = folder / "C" / "revoked.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StateFolderError, match="revoked"):
        check_member(folder / "C", identity.certificate)
    with pytest.raises(StateFolderError, match="revoked"):
        is_revoked(folder / "C", "north")


def test_a_certificate_behind_the_coordinators_back_is_refused(folder: Path) -> None:
    authority = open_authority(folder / "C")
    for name in ("north", "ghost", "../north", "x y"):
        stolen = issue_leaf(
            "site tls", name, new_tls_key().public_key(), authority.consortium.issuing, authority.issuing_key, NOW, DAY
        )
        with pytest.raises((CertificateError, EnrolmentError)):
            check_member(folder / "C", stolen)


def test_enrolling_anew_replaces_the_member(folder: Path) -> None:
    before = join(folder / "north", folder / "north.membership")
    shutil.rmtree(folder / "north")  # the hospital has lost its machine
    after = enrolled(folder, "north")
    assert check_member(folder / "C", after.certificate) == "north"
    assert is_revoked(folder / "C", before.certificate)
    assert not is_revoked(folder / "C", "north")
    assert site_signing_key(folder / "C", "north") == after.signing_key.public_key()


def test_a_renewal_must_be_the_members_own_new_and_recent(folder: Path) -> None:
    signed = renewal(folder)
    answer = renew(folder / "C", "north", signed, now=NOW + DAY / 200)
    assert open_membership(answer, NOW).expires_at == iso_time(NOW + 14 * DAY + DAY / 200)
    assert renew(folder / "C", "north", signed, now=NOW) == answer  # the answer was lost: the same again
    assert renew(folder / "C", "north", renewal(folder), now=NOW) != answer
    with pytest.raises(EnrolmentError, match="certified again"):
        renew(folder / "C", "north", signed, now=NOW)
    for offset in (-DAY, DAY):
        with pytest.raises(ClockError, match="clock says"):
            renew(folder / "C", "north", renewal(folder, now=NOW + offset), now=NOW)
    wrong: tuple[tuple[str, Signed, type[EchoFedError]], ...] = (
        ("south", renewal(folder), CertificateError),
        ("../north", renewal(folder), EnrolmentError),
        ("north", renewal(folder, consortium="0" * 64), EnrolmentError),
        ("north", renewal(folder, site="south"), EnrolmentError),
        ("north", renewal(folder, tls_csr_pem="x"), CertificateError),
        ("north", read_signed((folder / "north.request").read_bytes()), SignatureError),
    )
    for site, request, error in wrong:
        with pytest.raises(error):
            renew(folder / "C", site, request, now=NOW)
    enrolled(folder, "south")
    with pytest.raises(SignatureError, match="another key"):
        renew(folder / "C", "south", renewal(folder), now=NOW)
    assert events(folder).count("renewed") == 2


def test_killed_while_renewing_the_site_has_a_certificate_that_works(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = join(folder / "north", folder / "north.membership")
    signed = renewal(folder)
    for step in range(1, 40):
        copy = folder / str(step)
        shutil.copytree(folder / "C", copy / "C")
        try:
            with killed_at(step, monkeypatch):
                renew(copy / "C", "north", signed, now=NOW)
        except Killed:
            assert check_member(copy / "C", before.certificate) == "north"
            answer = open_membership(renew(copy / "C", "north", renewal(folder), now=NOW), NOW)
            assert check_member(copy / "C", parse_certificate(answer.tls_pem)) == "north"
        else:
            break
    assert 3 < step < 39


def test_online_is_seen_within_a_minute(folder: Path) -> None:
    nodes = folder / "C" / "gateway" / "nodes.json"
    for seconds, online in ((5, True), (59, True), (61, False)):
        seen = iso_time(NOW - timedelta(seconds=seconds))
        nodes.write_text(json.dumps({"north": {"node_id": 1, "public_key": "", "activated_at": seen, "seen_at": seen}}))
        (member,) = members(folder / "C", NOW)
        assert (member.online, member.seen_at) == (online, NOW - timedelta(seconds=seconds))
    for damaged in ("[]", "{", '{"north": 1}', '{"north": {"seen_at": "yesterday"}}'):
        nodes.write_text(damaged)
        with pytest.raises(StateFolderError, match="damaged"):
            members(folder / "C", NOW)


def test_a_member_that_should_have_renewed_is_noticed(folder: Path) -> None:
    assert not members(folder / "C", NOW + 11 * DAY)[0].overdue
    assert members(folder / "C", NOW + 12 * DAY)[0].overdue


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a b", "é", "a\x00"])
def test_names_never_leave_their_folder(folder: Path, name: str) -> None:
    with pytest.raises(EnrolmentError, match="site's name"):
        invite(folder / "C", name)
    with pytest.raises(EnrolmentError, match="site's name"):
        revoke(folder / "C", name, "x")


def test_members_of_another_name_or_consortium_are_not_believed(folder: Path) -> None:
    kept = folder / "C" / "members"
    shutil.copy(kept / "north.json", kept / "south.json")
    with pytest.raises(StateFolderError, match="membership of north"):
        site_signing_key(folder / "C", "south")
    make_consortium(folder / "elsewhere")
    enrolled(folder / "elsewhere")
    shutil.copy(folder / "elsewhere" / "C" / "members" / "north.json", kept / "north.json")
    with pytest.raises(CertificateError, match="another consortium"):
        site_signing_key(folder / "C", "north")


def _released(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Let processes that wait go on at the same time, and return what they say."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate()[0] for process in processes]
