"""The units of the services: systemd's own verdict on them, what they let torch and Flower do, and their installation."""

import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echofed.cli import services
from echofed.cli.services import install, server_unit, site_unit, written_folders
from echofed.client.settings import SiteSettings
from echofed.client.site import create_site
from echofed.protocol.errors import EnrolmentError, KeyFileError, RunError, StateFolderError, UnreachableError
from tests.consortia import ask
from tests.gateways import make_consortium

SITE = "north"
MAX_EXPOSURE = 2.0

FILTER = """
import ctypes, sys
calls, names = ctypes.CDLL("libseccomp.so.2"), sys.argv[1].split()
calls.seccomp_init.restype = ctypes.c_void_p
allow, refuse = 0x7FFF0000, 0x00050001
context = ctypes.c_void_p(calls.seccomp_init(ctypes.c_uint32(refuse)))
for name in names:
    number = calls.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        assert calls.seccomp_rule_add(context, ctypes.c_uint32(allow), ctypes.c_int(number), ctypes.c_uint(0)) == 0
assert calls.seccomp_load(context) == 0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A coordinator's folder C and a site's beside it; the path is awkward on purpose."""
    place = tmp_path / "100% of the 'sites' $HOME"
    place.mkdir()
    make_consortium(place, SITE, port=8443)
    return place


def verdict(unit: str, tmp_path: Path) -> float:
    """Return the exposure that systemd sees in a unit, after it has accepted it without a word."""
    analyze = shutil.which("systemd-analyze")
    assert analyze, "systemd-analyze is needed: install the package systemd"
    path = tmp_path / "units" / "echofed-test.service"
    path.parent.mkdir(exist_ok=True)
    path.write_text(unit)
    done = subprocess.run([analyze, "verify", "--man=no", str(path)], capture_output=True, text=True)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "echofed" in line]) == (0, [])
    command = [analyze, "security", "--offline=true", "--no-pager", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", said)
    assert found, said
    return float(found[1])


def settings_of(unit: str, name: str) -> list[str]:
    """Return all values of a setting."""
    return [line.partition("=")[2] for line in unit.splitlines() if line.startswith(f"{name}=")]


def set_port(folder: Path, port: int) -> None:
    """Have the coordinator listen on another port."""
    path = folder / "C" / "consortium.yaml"
    path.write_text(re.sub(r'"bind_port": *[0-9]+, *', "", path.read_text()).replace("8443", str(port)))


def test_systemd_accepts_the_units_and_finds_little_exposed(folder: Path, tmp_path: Path) -> None:
    site, server = folder / SITE, folder / "C"
    create_site(site, SiteSettings(name=SITE, data_folder=folder))
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("ECHOFED_PASSPHRASE=x\n")
    passphrase.chmod(0o600)
    (tmp_path / "witness").mkdir()
    (site / "policy.yaml").write_text(f"cores: 3\nledger_witness: {tmp_path}/witness/ledger\n")
    units = {
        "server": server_unit(server, passphrase_file=passphrase, memory_max="2G"),
        "server behind nginx": server_unit(server, Path("/run/echofed/gateway.sock")),
        "site": site_unit(site),
        "site with everything": site_unit(
            site, passphrase_file=passphrase, memory_max="16G", gpu=True, groups=["radiology"]
        ),
    }
    set_port(folder, 443)
    units["server on a privileged port"] = server_unit(server)
    exposures = {name: verdict(unit, tmp_path) for name, unit in units.items()}
    assert {name: exposure for name, exposure in exposures.items() if exposure > MAX_EXPOSURE} == {}
    # The verdict can be another one: this unit lacks what the others have.
    assert verdict("[Service]\nExecStart=/bin/true\n", tmp_path) > 9


def test_what_the_site_may_touch(folder: Path, tmp_path: Path) -> None:
    site = folder / SITE
    data = tmp_path / "data"
    data.mkdir()
    create_site(site, SiteSettings(name=SITE, data_folder=data))
    (site / "policy.yaml").write_text(f"cores: 3\nledger_witness: {tmp_path}/witness/ledger\n")
    unit = site_unit(site, gpu=True, groups=["radiology"])
    assert written_folders(unit) == [site, tmp_path / "witness"]
    assert settings_of(unit, "ReadOnlyPaths") == [f'"{data}"']
    assert settings_of(unit, "NoExecPaths")[0] == settings_of(unit, "ReadWritePaths")[0]
    assert settings_of(unit, "CPUQuota") == ["300%"]
    assert settings_of(unit, "CapabilityBoundingSet") == [""]
    assert settings_of(unit, "DeviceAllow") == ["char-nvidia* rw"]
    assert settings_of(unit, "SupplementaryGroups") == ["radiology"]
    assert settings_of(unit, "IPAddressDeny") == ["any"]
    assert settings_of(unit, "IPAddressAllow") == ["localhost 127.0.0.1"]
    assert settings_of(site_unit(site), "PrivateDevices") == ["yes"]
    # It would keep torch from working; the coordinator can do without.
    assert settings_of(unit, "MemoryDenyWriteExecute") == []
    assert settings_of(server_unit(folder / "C"), "MemoryDenyWriteExecute") == ["yes"]
    assert "PYTHONSAFEPATH=1" in settings_of(unit, "Environment")[0].split()


def test_paths_are_escaped(folder: Path) -> None:
    unit = server_unit(folder / "C")
    path = str(folder / "C").replace("%", "%%")
    (start,) = settings_of(unit, "ExecStart")
    assert start == (f'"{sys.executable}" "-m" "echofed.cli" "server" "start" "--state" "{path.replace("$", "$$")}"')
    assert settings_of(unit, "ReadWritePaths") == [f'"{path}"']


@given(st.text(st.characters(exclude_characters='/\\"*?[]', exclude_categories=("C",)), min_size=1))
def test_a_path_comes_back_from_the_unit(name: str) -> None:
    path = Path("/srv") / name
    line = f"ReadWritePaths={services._quoted(str(path))}\n"
    assert written_folders(line) == [path]
    assert "%" not in line.replace("%%", "")


@pytest.mark.parametrize("name", ["line\nExecStartPre=/bin/false", 'quote"', "back\\slash", "wild*card", "\udcff"])
def test_a_path_that_could_mean_something_else_is_refused(name: str) -> None:
    with pytest.raises(StateFolderError, match="cannot stand in a systemd unit"):
        services._quoted(f"/srv/{name}")


def test_homes_are_out_of_sight_but_for_what_is_needed() -> None:
    home = Path("/home/ada/site")
    lines = services._files([home], [Path("/home/data"), Path("/srv/data")])
    assert "ProtectHome=tmpfs" in lines
    assert 'BindPaths="/home/ada/site"' in lines
    assert 'BindReadOnlyPaths="/home/data"' in lines
    assert not any("/srv/data" in line for line in lines if line.startswith("Bind"))
    assert 'ReadOnlyPaths="/srv/data"' in lines


def test_a_port_below_1024_needs_one_capability(folder: Path) -> None:
    assert settings_of(server_unit(folder / "C"), "CapabilityBoundingSet") == [""]
    set_port(folder, 443)
    unit = server_unit(folder / "C")
    assert settings_of(unit, "CapabilityBoundingSet") == ["CAP_NET_BIND_SERVICE"]
    assert settings_of(unit, "AmbientCapabilities") == ["CAP_NET_BIND_SERVICE"]
    behind = server_unit(folder / "C", Path("/run/echofed/gateway.sock"))
    assert settings_of(behind, "CapabilityBoundingSet") == [""]
    assert settings_of(behind, "RuntimeDirectory") == ["echofed"]
    assert settings_of(behind, "IPAddressAllow") == ["localhost"]


def test_a_site_reaches_its_proxy_and_the_name_server_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = folder / SITE
    resolver = folder / "resolv.conf"
    resolver.write_text("# none\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\noptions edns0\n")
    monkeypatch.setattr(services, "RESOLVER_SETTINGS", resolver)
    (site / "link.yaml").write_text("proxy_url: http://192.0.2.9:3128\n")
    assert settings_of(site_unit(site), "IPAddressAllow") == ["localhost 192.0.2.9"]
    (site / "link.yaml").write_text("proxy_url: http://localhost:3128\n")
    (allowed,) = settings_of(site_unit(site), "IPAddressAllow")
    assert allowed.endswith(" 192.0.2.53 fe80::1")
    assert "127.0.0.1" in allowed or "::1" in allowed
    (site / "link.yaml").write_text("proxy_url: http://no-such-proxy.invalid:3128\n")
    with pytest.raises(UnreachableError, match=r"no-such-proxy\.invalid"):
        site_unit(site)


def test_what_cannot_be_a_service(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StateFolderError):
        site_unit(folder / "C")
    with pytest.raises(StateFolderError):
        server_unit(tmp_path / "nothing")
    ask(folder, "south")
    with pytest.raises(EnrolmentError, match="not enrolled yet"):
        site_unit(folder / "south")
    passphrase = tmp_path / "passphrase"
    with pytest.raises(KeyFileError, match="no file"):
        server_unit(folder / "C", passphrase_file=passphrase)
    passphrase.write_text("x")
    passphrase.chmod(0o640)
    with pytest.raises(KeyFileError, match="can be read by others"):
        server_unit(folder / "C", passphrase_file=passphrase)


def allowed_calls(unit: str) -> list[str]:
    """Return the system calls a unit allows, as systemd spells out its groups."""

    def members(names: list[str]) -> set[str]:
        found: set[str] = set()
        for name in names:
            if name.startswith("@"):
                said = subprocess.run(
                    ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
                )
                lines = [line.strip() for line in said.stdout.splitlines()[1:]]
                found |= members([line for line in lines if line and not line.startswith("#")])
            else:
                found.add(name)
        return found

    allowed, refused = settings_of(unit, "SystemCallFilter")
    assert refused.startswith("~")
    return sorted(members(allowed.split()) - members(refused.removeprefix("~").split()))


def run_filtered(unit: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code under a unit's own filter of system calls, set up as systemd does it."""
    command = [sys.executable, "-c", FILTER + code, " ".join(allowed_calls(unit))]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


TRAINS = """
import sqlite3, subprocess, torch
from echofed.client import flower, outbound_proxy
net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
net(torch.randn(4, 1, 64, 64)).sum().backward()
sqlite3.connect("trained.sqlite").execute("CREATE TABLE t (n INTEGER)")
assert subprocess.run(["true"], start_new_session=True).returncode == 0
"""
SERVES = """
import socket, ssl, threading
from flwr.superlink.cli import flower_superlink
from echofed.server import gateway, conductor
with socket.create_server(("127.0.0.1", 0)) as listener:
    threading.Thread(target=lambda: listener.accept()).start()
    socket.create_connection(listener.getsockname()).close()
"""


def test_torch_trains_under_the_filter_of_the_site(folder: Path) -> None:
    done = run_filtered(site_unit(folder / SITE), TRAINS, folder)
    assert done.returncode == 0, done.stderr


def test_the_coordinator_works_under_its_filter(folder: Path) -> None:
    done = run_filtered(server_unit(folder / "C"), SERVES, folder)
    assert done.returncode == 0, done.stderr


def test_the_filter_refuses_what_no_site_does(folder: Path) -> None:
    code = "\nimport os\nos.setuid(os.getuid())"
    done = run_filtered(site_unit(folder / SITE), code, folder)
    assert done.returncode == 1
    assert "PermissionError" in done.stderr


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A machine that systemd runs, whose commands are noted instead of obeyed; gives what was run."""
    noted, commands = tmp_path / "noted", tmp_path / "bin"
    for name in ("etc", "booted", "bin"):
        (tmp_path / name).mkdir()
    for name in ("systemctl", "useradd"):
        (commands / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{noted}"\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setattr(services, "UNITS_FOLDER", tmp_path / "etc")
    monkeypatch.setattr(services, "SYSTEMD_RUNS", tmp_path / "booted")
    monkeypatch.setattr(services, "USER", "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return lambda: noted.read_text().splitlines() if noted.exists() else []


def test_an_installation(
    folder: Path, tmp_path: Path, machine: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    site = folder / SITE
    outside = tmp_path / "outside"
    outside.write_text("x")
    (site / "link").symlink_to(outside)
    before = outside.stat().st_uid
    (site / "policy.yaml").write_text("ledger_witness: /mnt/witness/ledger\n")
    unit = site_unit(site)
    for _ in range(2):
        install("echofed-site", unit, dry_run=False)
    path = tmp_path / "etc" / "echofed-site.service"
    assert path.read_text() == unit
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert machine() == ["systemctl daemon-reload", "systemctl enable echofed-site.service"] * 2
    owner = pwd.getpwnam(services.USER).pw_uid
    assert {entry.lstat().st_uid for entry in (site, *site.rglob("*"))} == {owner}
    assert outside.stat().st_uid == before
    said = capsys.readouterr().out
    assert f"Wrote {path}. {site} now belongs to the user {services.USER}." in said
    assert f"The user {services.USER} must be able to write in /mnt/witness." in said
    assert "systemctl restart echofed-site" in said


def test_the_user_is_made_once(
    machine: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    services._make_user()
    assert machine() == []
    monkeypatch.setattr(services, "USER", "echofed-nobody-has-this-name")
    services._make_user()
    (command,) = machine()
    assert command.startswith("useradd --system --user-group --no-create-home")
    assert command.endswith("nologin echofed-nobody-has-this-name")
    assert "Made the system user" in capsys.readouterr().out


def test_a_dry_run_prints_the_unit_and_does_nothing(
    folder: Path, tmp_path: Path, machine: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    unit = server_unit(folder / "C")
    install("echofed-server", unit, dry_run=True)
    assert capsys.readouterr().out == unit
    assert machine() == list((tmp_path / "etc").iterdir()) == []


def test_machines_on_which_nothing_can_be_installed(
    folder: Path, tmp_path: Path, machine: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = server_unit(folder / "C")
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(RunError, match="Only root"):
            install("echofed-server", unit, dry_run=False)
        patch.setattr(services, "SYSTEMD_RUNS", tmp_path / "not there")
        with pytest.raises(RunError, match="does not run systemd"):
            install("echofed-server", unit, dry_run=False)
    assert machine() == list((tmp_path / "etc").iterdir()) == []
    (tmp_path / "bin" / "systemctl").write_text("#!/bin/sh\necho no bus >&2\nexit 1\n")
    with pytest.raises(RunError, match="`systemctl daemon-reload` failed: no bus"):
        install("echofed-server", unit, dry_run=False)
