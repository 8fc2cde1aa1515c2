"""The consortium's keys: made once, whole after any kill, renewed in time, the root's kept offline."""

import shutil
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.certificates import check_chain
from echofed.protocol.errors import CertificateError, EchoFedError, KeyFileError, StateFolderError
from echofed.protocol.key_files import PASSPHRASE_VARIABLE
from echofed.server.authority import (
    AUTHORITY_RENEWAL,
    SERVER_RENEWAL,
    consortium_id,
    expiry_warnings,
    init_consortium,
    load_signing_key,
    open_authority,
    read_consortium,
    renew_server_if_due,
)
from echofed.server.settings import load_settings
from tests.consortia import ADDRESS, DAY, NAME, NOW, Killed, enrolled, killed_at, make_consortium

SECOND = timedelta(seconds=1)


def test_a_new_consortium_is_whole(tmp_path: Path) -> None:
    made = make_consortium(tmp_path, now=NOW)
    authority = open_authority(tmp_path / "C")
    assert authority.consortium == made == read_consortium(tmp_path / "C")
    assert made.id == consortium_id(tmp_path / "C")
    check_chain(made.server, made.issuing, made.root, "server tls", NOW)
    check_chain(made.signing, made.issuing, made.root, "coordinator signing", NOW)
    names = made.server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org"]
    lives = [one.not_valid_after_utc - NOW for one in (made.root, made.issuing, made.signing, made.server)]
    assert lives == [3652 * DAY, 730 * DAY, 730 * DAY, 90 * DAY]
    assert load_signing_key(tmp_path / "C").public_key() == made.signing_key
    with open_audit_log(tmp_path / "C", owner=NAME) as log:
        assert [entry.event for entry in log.entries()] == ["initialised"]


def test_only_the_owner_can_read_keys(tmp_path: Path) -> None:
    make_consortium(tmp_path)
    folder = tmp_path / "C"
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((folder / "authority").stat().st_mode) == 0o700
    for path in (folder / "authority").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (folder / "authority" / "issuing.key").chmod(0o640)
    with pytest.raises(KeyFileError, match="others") as raised:
        open_authority(folder)
    assert "chmod 600" in raised.value.remedy


def test_making_it_again_changes_nothing(tmp_path: Path) -> None:
    make_consortium(tmp_path, now=NOW)
    before = {path: path.read_bytes() for path in (tmp_path / "C" / "authority").iterdir()}
    make_consortium(tmp_path, now=NOW + 10 * DAY)
    assert before == {path: path.read_bytes() for path in (tmp_path / "C" / "authority").iterdir()}
    for name, address in (("Other", ADDRESS), (NAME, "other.example.org:1")):
        with pytest.raises(StateFolderError, match="is the folder of"):
            init_consortium(tmp_path / "C", name, address)


def test_killed_between_any_two_writes_it_is_finished_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(1, 100):
        folder = tmp_path / str(step)
        try:
            with killed_at(step, monkeypatch):
                make_consortium(folder)
        except Killed:
            root = folder / "C" / "authority" / "root.pem"
            began = root.read_bytes() if root.exists() else None
            make_consortium(folder)
            assert began in (None, root.read_bytes())
            assert open_authority(folder / "C")
        else:
            break
        shutil.rmtree(folder)
    assert 20 < step < 99


def test_everything_but_its_own_work_goes_on_without_the_root_key(tmp_path: Path) -> None:
    make_consortium(tmp_path, now=NOW)
    (tmp_path / "C" / "authority" / "root.key").rename(tmp_path / "safe.key")
    make_consortium(tmp_path, now=NOW + 100 * DAY)
    enrolled(tmp_path)
    later = NOW + 730 * DAY - AUTHORITY_RENEWAL + SECOND
    with pytest.raises(KeyFileError, match=r"root.key is needed"):
        make_consortium(tmp_path, now=later)
    before = read_consortium(tmp_path / "C")
    (tmp_path / "safe.key").rename(tmp_path / "C" / "authority" / "root.key")
    after = make_consortium(tmp_path, now=later)
    assert after.id == before.id
    for old, new in ((before.issuing, after.issuing), (before.signing, after.signing)):
        assert new.not_valid_after_utc == later + 730 * DAY
        assert new.public_key() == old.public_key()  # what was issued and signed stays good
    check_chain(after.server, before.issuing, after.root, "server tls", later)


def test_the_server_certificate_is_renewed_in_time(tmp_path: Path) -> None:
    before = make_consortium(tmp_path, now=NOW)
    folder = tmp_path / "C"
    assert not renew_server_if_due(folder, now=NOW + 90 * DAY - SERVER_RENEWAL)
    assert renew_server_if_due(folder, now=NOW + 90 * DAY - SERVER_RENEWAL + SECOND)
    after = read_consortium(folder)
    assert after.server.not_valid_after_utc > before.server.not_valid_after_utc
    assert after.server.public_key() == before.server.public_key()
    assert (folder / "authority" / "server.pem").read_text().count("BEGIN CERTIFICATE") == 2


def test_a_changed_address_gives_a_new_server_certificate(tmp_path: Path) -> None:
    make_consortium(tmp_path)
    folder = tmp_path / "C"
    (folder / "consortium.yaml").write_text(f'name: "{NAME}"\naddress: "[2001:db8::7]:443"\n')
    assert renew_server_if_due(folder)
    assert not renew_server_if_due(folder)
    names = read_consortium(folder).server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["2001:db8::7"]


def test_what_is_about_to_expire_is_said(tmp_path: Path) -> None:
    made = make_consortium(tmp_path, now=NOW)
    assert expiry_warnings(made, NOW) == []
    assert [one.split(" certificate")[0] for one in expiry_warnings(made, NOW + 61 * DAY)] == ["The server's"]
    assert len(expiry_warnings(made, NOW + 3651 * DAY)) == 4


def test_encrypted_keys_open_with_their_passphrase_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    make_consortium(tmp_path, passphrase="écho écho")
    folder = tmp_path / "C"
    for path in (folder / "authority").glob("*.key"):
        assert b"ENCRYPTED" in path.read_bytes()
    assert open_authority(folder, "écho écho")
    with pytest.raises(KeyFileError, match="passphrase"):
        open_authority(folder, "wrong")
    with pytest.raises(KeyFileError, match="is encrypted") as raised:
        open_authority(folder)
    assert PASSPHRASE_VARIABLE in raised.value.remedy
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "écho écho")
    assert open_authority(folder)
    make_consortium(tmp_path, now=NOW + 80 * DAY)  # renews the server's certificate with the keys that are there


def test_a_key_that_does_not_fit_its_certificate_is_refused(tmp_path: Path) -> None:
    make_consortium(tmp_path)
    make_consortium(tmp_path / "other")
    mine, other = tmp_path / "C" / "authority", tmp_path / "other" / "C" / "authority"
    for name in ("issuing.key", "signing.key"):
        kept = (mine / name).read_bytes()
        (mine / name).write_bytes((other / name).read_bytes())
        with pytest.raises(KeyFileError, match="does not fit"):
            open_authority(tmp_path / "C")
        (mine / name).write_bytes(
            (mine / "issuing.key" if name == "signing.key" else mine / "signing.key").read_bytes()
        )
        with pytest.raises(KeyFileError, match="kind"):
            open_authority(tmp_path / "C")
        (mine / name).write_bytes(kept)
    (mine / "signing.pem").write_bytes((other / "signing.pem").read_bytes())
    with pytest.raises(CertificateError, match="not issued by this consortium"):
        read_consortium(tmp_path / "C")


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("state.json", b'{"kind":"consortium","version":2}', StateFolderError),
        ("state.json", b'{"kind":"site","version":1}', StateFolderError),
        ("state.json", b"{", StateFolderError),
        ("state.json", b"x" * 20_000_000, StateFolderError),
        ("state.json", None, StateFolderError),
        ("consortium.yaml", None, StateFolderError),
        ("consortium.yaml", b"name: a\naddress: b\n", StateFolderError),
        ("consortium.yaml", b"name: a\naddress: b:1\nlimits: {blob_byte: 1}\n", StateFolderError),
        ("authority/root.pem", None, StateFolderError),
        ("authority/issuing.pem", None, StateFolderError),
        ("authority/issuing.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", CertificateError),
        ("authority/issuing.pem", b"\xff", CertificateError),
        ("authority/issuing.key", None, KeyFileError),
        ("authority/issuing.key", b"", KeyFileError),
        ("authority/issuing.key", b"x" * 100_000, KeyFileError),
    ],
)
def test_a_damaged_folder_says_so(tmp_path: Path, file: str, content: bytes | None, error: type[EchoFedError]) -> None:
    make_consortium(tmp_path)
    path = tmp_path / "C" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(error) as raised:
        open_authority(tmp_path / "C")
    assert (
        path.name.split(".")[0] in str(raised.value) or "finished" in str(raised.value) or "folder" in str(raised.value)
    )


def test_a_lost_list_of_revocations_is_not_made_anew(tmp_path: Path) -> None:
    make_consortium(tmp_path)
    enrolled(tmp_path)
    (tmp_path / "C" / "revoked.json").unlink()
    with pytest.raises(StateFolderError, match="who is revoked is not known"):
        make_consortium(tmp_path)


@pytest.mark.parametrize(("name", "address"), [("", ADDRESS), ("x" * 65, ADDRESS), ("a\nb", ADDRESS), (NAME, "fed")])
def test_a_consortium_needs_a_name_and_an_address(tmp_path: Path, name: str, address: str) -> None:
    with pytest.raises(StateFolderError):
        init_consortium(tmp_path / "C", name, address)
    assert not (tmp_path / "C" / "consortium.yaml").exists()


def test_settings_default_to_the_address_port_and_can_be_edited(tmp_path: Path) -> None:
    make_consortium(tmp_path)
    path = tmp_path / "C" / "consortium.yaml"
    assert (load_settings(tmp_path / "C").bind_port, load_settings(tmp_path / "C").server_name) == (
        8443,
        "fed.example.org",
    )
    path.write_text(path.read_text() + "bind_port: 9000\nlimits:\n  connections_per_site: 4\n")
    settings = load_settings(tmp_path / "C")
    assert (settings.bind_port, settings.limits.connections_per_site, settings.name) == (9000, 4, NAME)
    assert read_consortium(tmp_path / "C").settings == settings


def test_any_name_of_64_characters_makes_certificates(tmp_path: Path) -> None:
    made = make_consortium(tmp_path, "É" * 64)
    assert enrolled(tmp_path).membership.consortium_name == "É" * 64 == made.settings.name
