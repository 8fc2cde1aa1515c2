"""A site seen from all sides: whole and well, half-written, open to others, cut off, with a wrong clock."""

import contextlib
import ctypes
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from echofed.cli.site_doctor import doctor
from echofed.client.doctor import TOTAL_SECONDS, Finding, examine, is_well
from echofed.client.findings import good, look
from echofed.client.ledger import open_ledger
from echofed.client.policy import load_policy
from echofed.client.settings import SiteSettings
from echofed.client.site import create_site
from echofed.protocol.key_files import PASSPHRASE_VARIABLE
from echofed.server.authority import init_consortium
from echofed.server.members import revoke
from tests.consortia import ask, enrolled
from tests.consortia import make_consortium as make_distant_consortium
from tests.gateways import Door, embedded_door, free_port, make_consortium

SITE = "north"


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """A gateway and one site that is its member; no SuperLink, which no check needs."""
    make_consortium(tmp_path, SITE)
    with embedded_door(tmp_path, free_port()) as opened:
        yield opened


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A member whose coordinator is not running."""
    make_consortium(tmp_path, SITE)
    return tmp_path / SITE


def seen(folder: Path, **options: object) -> dict[str, Finding]:
    """Return findings by name; of several with one name, the worst."""
    order = {"good": 0, "warning": 1, "bad": 2}
    found = sorted(examine(folder, **options), key=lambda finding: order[finding.state])  # type: ignore[arg-type]
    assert all(finding.what for finding in found)
    assert all(bool(finding.remedy) == (finding.state != "good") for finding in found)
    return {finding.name: finding for finding in found}


def write_link(folder: Path, **settings: object) -> None:
    """Write a site's link.yaml."""
    (folder / "link.yaml").write_text(json.dumps(settings))


@contextmanager
def says_the_same(answer: bytes, context: ssl.SSLContext | None = None, port: int = 0) -> Iterator[int]:
    """A server that says the same to everybody, in TLS if there is a context; yields its port."""
    with socket.create_server(("127.0.0.1", port)) as listener:

        def serve() -> None:
            while True:
                try:
                    stream, _ = listener.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), wrap(stream) as spoken:
                    if spoken.recv(4096):
                        spoken.sendall(answer)
                        spoken.recv(4096)

        def wrap(stream: socket.socket) -> socket.socket:
            return context.wrap_socket(stream, server_side=True) if context else stream

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_site_that_is_well(door: Door) -> None:
    create_site(door.folder / SITE, SiteSettings(name=SITE, data_folder=door.folder))
    found = seen(door.folder / SITE)
    assert is_well(found.values())
    well = ["state folder", "key files", "consortium", "certificate", "keys", "link settings", "policy", "proxy port"]
    well += ["name", "network", "tls", "membership", "clock", "audit log", "ledger"]
    assert [name for name in well if found[name].state != "good"] == []
    assert "127.0.0.1 of the consortium Test answers, in TLSv1.3" in found["tls"].what
    assert found["registry"].state == found["processes"].state == "warning"
    assert "0 patients" in found["registry"].what


def test_an_address_where_nothing_listens(alone: Path) -> None:
    found = seen(alone)
    assert found["network"].state == "bad"
    assert "refuses connections" in found["network"].what
    assert "tls" not in found
    assert found["keys"].state == found["audit log"].state == "good"


def test_a_name_nobody_knows(tmp_path: Path) -> None:
    make_distant_consortium(tmp_path)
    enrolled(tmp_path)
    write_link(tmp_path / SITE, proxy_url="http://no-such-proxy.invalid:3128")
    found = seen(tmp_path / SITE)
    assert found["name"].state == "bad"
    assert "no-such-proxy.invalid (the hospital's proxy" in found["name"].what
    assert "network" not in found


def test_the_server_of_another_consortium(door: Door, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_consortium(other, SITE, port=door.port)
    found = seen(other / SITE)
    assert found["tls"].state == "bad"
    assert "EF-702" in found["tls"].what
    assert "calls itself 127.0.0.1, certified by Test issuing" in found["who answers"].what
    assert "membership" not in found


@pytest.mark.parametrize(
    ("offset", "state", "said"),
    [
        (timedelta(days=1), "bad", "1 day ahead of"),
        (timedelta(days=-1), "bad", "1 day behind"),
        (timedelta(days=30), "bad", "30 days ahead of"),
        (timedelta(minutes=6), "bad", "6 minutes ahead of"),
        (timedelta(minutes=-3), "warning", "3 minutes behind"),
    ],
)
def test_a_wrong_clock_is_measured(door: Door, offset: timedelta, state: str, said: str) -> None:
    found = [one for one in examine(door.folder / SITE, now=lambda: datetime.now(UTC) + offset) if one.name == "clock"]
    assert found[-1].state == state
    assert f"This machine's clock is {said} the coordinator's." in found[-1].what


def test_a_clock_so_wrong_that_no_certificate_is_valid_yet(tmp_path: Path) -> None:
    ahead, port = timedelta(days=2), free_port()
    there = datetime.now(UTC) + ahead
    init_consortium(tmp_path / "C", "Test", f"127.0.0.1:{port}", now=there)
    enrolled(tmp_path, now=there)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "C" / "authority" / "server.pem", tmp_path / "C" / "authority" / "server.key")
    context.load_verify_locations(tmp_path / "C" / "authority" / "issuing.pem")
    body = json.dumps({"utc": there.isoformat(timespec="seconds")}).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with says_the_same(answer, context, port):
        found = [one for one in examine(tmp_path / SITE) if one.state == "bad"]
    assert [one.name for one in found] == ["certificate", "tls", "clock"]
    assert "2 days behind the coordinator's" in found[-1].what


def test_a_certificate_that_has_expired_or_is_late(alone: Path) -> None:
    for days, state in ((8, "good"), (12, "warning"), (15, "bad")):
        found = seen(alone, now=lambda days=days: datetime.now(UTC) + timedelta(days=days))
        assert found["certificate"].state == state
    assert "expired" in found["certificate"].what


def test_a_site_that_was_revoked(door: Door) -> None:
    revoke(door.coordinator, SITE, "left")
    time.sleep(1.1)
    found = seen(door.folder / SITE)
    assert found["tls"].state == "good"
    assert found["membership"].state == "bad"
    assert "EF-702" in found["membership"].what


def test_a_proxy_that_asks_for_a_password(alone: Path) -> None:
    with says_the_same(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n") as port:
        write_link(alone, proxy_url=f"http://127.0.0.1:{port}")
        found = seen(alone)
    assert found["network"].state == "good"
    assert found["hospital's proxy"].state == "bad"
    assert "EF-802" in found["hospital's proxy"].what
    assert "asks for a user and a password" in found["hospital's proxy"].what


def test_what_does_not_answer_is_given_up(alone: Path) -> None:
    with says_the_same(b"") as port:
        write_link(alone, proxy_url=f"http://127.0.0.1:{port}", connect_timeout_seconds=0.5)
        begun = time.monotonic()
        found = seen(alone)
    assert time.monotonic() - begun < TOTAL_SECONDS / 4
    assert found["tls"].state == "bad"
    assert "EF-801" in found["tls"].what


def test_a_check_that_hangs_is_left_behind() -> None:
    def hangs() -> Iterator[Finding]:
        yield good("first", "It was found.")
        time.sleep(30)

    begun = time.monotonic()
    first, late = look("disk", 0.2, hangs)
    assert time.monotonic() - begun < 5
    assert (first.name, late.state, late.name) == ("first", "warning", "disk")


def test_a_check_that_fails_unexpectedly_is_a_finding() -> None:
    (found,) = look("disk", 5, lambda: [Finding("x", "good", str(1 // 0))])
    assert (found.name, found.state) == ("disk", "bad")
    assert "ZeroDivisionError" in found.what


def test_keys_that_others_can_read(alone: Path) -> None:
    (key,) = (alone / "identity").glob("signing-*.key")
    key.chmod(0o640)
    found = seen(alone)
    assert found["key files"].state == found["keys"].state == "bad"
    assert "0640" in found["key files"].what
    assert f"chmod 600 '{key}'" in found["key files"].remedy
    key.chmod(0o600)
    alone.chmod(0o755)
    assert seen(alone)["state folder"].state == "warning"


def test_encrypted_keys_ask_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_consortium(tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv(PASSPHRASE_VARIABLE, "correct horse")
        enrolled(tmp_path, passphrase="correct horse")
    found = seen(tmp_path / SITE)
    assert found["keys"].state == "warning"
    assert PASSPHRASE_VARIABLE in found["keys"].remedy
    assert seen(tmp_path / SITE, passphrase="correct horse")["keys"].state == "good"
    assert "EF-701" in seen(tmp_path / SITE, passphrase="wrong")["keys"].what
    assert capsys.readouterr() == ("", "")


def test_no_folder_and_folders_that_are_not_a_site(tmp_path: Path) -> None:
    make_consortium(tmp_path)
    for folder in (tmp_path / "nothing", tmp_path, tmp_path / "C"):
        (found,) = examine(folder)
        assert (found.name, found.state) == ("state folder", "bad")
        assert "EF-710" in found.what


def test_a_folder_of_a_newer_version(alone: Path) -> None:
    (alone / "state.json").write_text('{"kind":"site","version":99}')
    (found,) = examine(alone)
    assert "newer EchoFed" in found.what
    assert found.remedy == "Upgrade EchoFed."


def test_a_site_that_has_not_joined_yet(tmp_path: Path) -> None:
    make_consortium(tmp_path)
    ask(tmp_path)
    found = seen(tmp_path / SITE)
    assert found["state folder"].state == "good"
    assert "EF-704" in found["certificate"].what
    assert "echofed site join" in found["certificate"].remedy


def test_half_written_folders_are_found_bad_and_never_raise(alone: Path, tmp_path: Path) -> None:
    create_site(alone, SiteSettings(name=SITE, data_folder=tmp_path))
    with open_ledger(alone, load_policy(alone)):
        pass
    files = [path for path in alone.rglob("*") if path.is_file()]
    harmless = {".lock", "registry.lock", "lock"}
    assert len(files) >= 10
    for path in files:
        for content in (None, b"", b"\xff{"):
            copy = tmp_path / "copy"
            shutil.copytree(alone, copy)
            damaged = copy / path.relative_to(alone)
            damaged.unlink() if content is None else damaged.write_bytes(content)
            names = {one.name for one in examine(copy) if one.state == "bad"} - {"network"}
            assert bool(names) == (path.name not in harmless), (path, content, names)
            shutil.rmtree(copy)


def test_settings_with_a_typo(alone: Path) -> None:
    (alone / "policy.yaml").write_text("epsilon_per_studdy: 3\n")
    write_link(alone, proxy_port="eight")
    found = seen(alone)
    assert found["policy"].state == found["link settings"].state == "bad"
    assert "epsilon_per_studdy" in found["policy"].what
    assert "proxy_port" in found["link settings"].what


def test_a_port_another_program_has(alone: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        write_link(alone, proxy_port=other.getsockname()[1])
        assert "EF-804" in seen(alone)["proxy port"].what
    assert seen(alone)["proxy port"].what.endswith("is free.")


def test_a_ledger_in_use_is_read_all_the_same(alone: Path, tmp_path: Path) -> None:
    create_site(alone, SiteSettings(name=SITE, data_folder=tmp_path))
    with open_ledger(alone, load_policy(alone)):
        found = seen(alone)["ledger"]
    assert found == good(
        "ledger", f"Verified: 0 entries, none changed and none missing; in use by process {os.getpid()}."
    )


@contextmanager
def process(code: str, *, telemetry: str = "0") -> Iterator[int]:
    """Run a process that looks like one of the site's; yields its number."""
    command = [sys.executable, "-c", f"{code}; print(flush=True); import time; time.sleep(60)", "echofed"]
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": telemetry}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as started:
        assert started.stdout is not None
        started.stdout.readline()
        yield started.pid
        started.kill()


NO_NEW_PRIVILEGES = "import ctypes; assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0"


def test_processes_and_the_walls_around_them(alone: Path) -> None:
    assert ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) == 0, "the tests themselves run without new privileges"
    with process(NO_NEW_PRIVILEGES) as confined, process("pass", telemetry="1") as free:
        (alone / "run").mkdir()
        lines = f"proxy {confined}\nsupernode {confined}\nexecutor {confined}\n"
        (alone / "run" / "processes").write_text(lines)
        found = seen(alone)
        assert found["processes"].state == found["no new privileges"].state == found["no telemetry"].state == "good"
        assert found["no new privileges"].what == "In force."
        assert (found["system calls filtered"].state, found["system calls filtered"].what) == (
            "warning",
            "Not in force.",
        )
        assert found["no network but the coordinator"].state == "warning"
        (alone / "run" / "processes").write_text(f"supernode {free}\nexecutor {free}\n")
        found = seen(alone)
        assert found["no new privileges"].what == "Not in force."
        assert found["no telemetry"].state == found["processes"].state == "bad"
        assert found["processes"].what == "Not running: proxy."


def test_the_number_of_another_program_is_not_ours(alone: Path) -> None:
    (alone / "run").mkdir()
    with subprocess.Popen(["sleep", "60"]) as other:
        (alone / "run" / "processes").write_text(f"executor {other.pid}\nproxy 4194303\n")
        assert seen(alone)["processes"].what == "The site is not running."
        other.kill()


def test_the_command(alone: Path) -> None:
    app = typer.Typer()
    app.command()(doctor)
    # Wide, so that no sentence is broken.
    shown = CliRunner().invoke(app, ["--state", str(alone)], env={"COLUMNS": "300"})
    assert shown.exit_code == 1
    assert "refuses connections" in shown.output
    assert "-> Check the address" in shown.output
    told = CliRunner().invoke(app, ["--state", str(alone), "--json"])
    assert told.exit_code == 1
    entries = json.loads(told.output)
    assert {"name", "state", "what", "remedy"} == set(entries[0])
    assert [entry["name"] for entry in entries if entry["state"] == "bad"] == ["network"]


def test_the_command_succeeds_at_a_site_that_is_well(door: Door) -> None:
    app = typer.Typer()
    app.command()(doctor)
    assert CliRunner().invoke(app, ["--state", str(door.folder / SITE), "--json"]).exit_code == 0


def test_root_looks_with_the_eyes_of_the_owner(alone: Path) -> None:
    before = os.getresuid(), os.getresgid(), os.getgroups()
    is_root = os.geteuid() == 0
    if is_root:
        # The folder above stays root's own: its new owner cannot come here.
        alone.parent.chmod(0o700)
        for path in (alone, *alone.rglob("*")):
            os.chown(path, 65534, 65534)
    found = seen(alone)
    assert ("Permission denied" in found["state folder"].what) == is_root
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before
