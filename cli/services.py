"""Hardened systemd services for a coordinator and for a site: their units, and their installation.

A unit holds what was true when it was written: where things lie, which addresses the site may reach. `install-service` run
again writes it anew.

What is left open, and why: `MemoryDenyWriteExecute` at a site, because oneDNN, which does torch's convolutions on the
processor, writes machine code as it runs ("could not create a primitive" otherwise); `ProcSubset=pid`, because torch and
Flower read /proc/cpuinfo and /proc/meminfo; the internet's address families, because that is what the service is for.
"""

import ipaddress
import os
import pwd
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import typer

from echofed.protocol.durable import replace_file
from echofed.protocol.errors import KeyFileError, RunError, StateFolderError, UnreachableError
from echofed.protocol.membership import split_address
from echofed.protocol.state_folder import check_state_folder

USER = "echofed"
"""The system user the services run as."""
UNITS_FOLDER = Path("/etc/systemd/system")
SYSTEMD_RUNS = Path("/run/systemd/system")
"""There while systemd is the machine's first process (sd_booted(3))."""
RESOLVER_SETTINGS = Path("/etc/resolv.conf")

_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 (named, not written to)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\\"*?\[\]\udc80-\udcff]")
_PRIVILEGED_PORTS = 1024

_ALWAYS = """\
Type=exec
Restart=always
RestartSec=10
TimeoutStopSec=30
KillMode=mixed
UMask=0077
Environment=PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1
# A memory dump would hold images and keys.
LimitCORE=0
NoNewPrivileges=yes
ProtectSystem=strict
PrivateTmp=yes
PrivateIPC=yes
PrivateMounts=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
LockPersonality=yes
RemoveIPC=yes
KeyringMode=private
DevicePolicy=closed
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM"""


def server_unit(
    state: Path, unix_socket: Path | None = None, *, passphrase_file: Path | None = None, memory_max: str | None = None
) -> str:
    """Return the unit of a coordinator's service.

    It may listen on any address; behind nginx, with a unix socket, it reaches this machine alone.

    Args:
        state: the coordinator's folder.
        unix_socket: on which the gateway listens, behind nginx; in a folder of its own, made by systemd if under /run.
        passphrase_file: holds a line `ECHOFED_PASSPHRASE=...`; readable by root alone.
        memory_max: as systemd writes it, "16G"; None: no limit.

    Raises:
        StateFolderError: there is no consortium in the folder, or a path cannot stand in a unit.
        KeyFileError: the passphrase's file is not there, or others can read it.
    """
    from echofed.server.settings import load_settings

    folder = state.absolute()
    check_state_folder(folder, "consortium")
    settings = load_settings(folder)
    arguments = ["server", "start", "--state", str(folder)]
    lines = ["LimitNOFILE=65536", "MemoryDenyWriteExecute=yes", "PrivateDevices=yes"]
    writable = [folder]
    if unix_socket is not None:
        place = unix_socket.absolute()
        arguments += ["--unix-socket", str(place)]
        lines += ["IPAddressDeny=any", "IPAddressAllow=localhost"]
        if place.parent.parent == Path("/run"):
            # Open to whoever may enter: the socket itself is open to the service's group, which nginx must be in.
            lines += [f"RuntimeDirectory={_escaped(place.parent.name)}", "RuntimeDirectoryMode=0755"]
        else:
            writable.append(place.parent)
    lines += _capabilities(unix_socket is None and settings.bind_port < _PRIVILEGED_PORTS)
    lines += _files(writable, [])
    lines += _optional(passphrase_file, memory_max)
    return _unit("EchoFed: the coordinator", "server", arguments, [folder], lines)


def site_unit(
    state: Path,
    *,
    passphrase_file: Path | None = None,
    memory_max: str | None = None,
    gpu: bool = False,
    groups: Sequence[str] = (),
) -> str:
    """Return the unit of a site's service, which reaches this machine, the coordinator (or the hospital's proxy) and no other.

    Addresses are those the names have now; the name server is let through as well. When the coordinator's address changes, the
    unit must be written anew.

    Args:
        state: the site's folder.
        passphrase_file: holds a line `ECHOFED_PASSPHRASE=...`; readable by root alone.
        memory_max: as systemd writes it, "16G"; None: no limit.
        gpu: let it use NVIDIA's devices, which must be there before it starts (nvidia-persistenced makes them).
        groups: that may read the data folder, beside the service's own.

    Raises:
        StateFolderError: the site has not joined a consortium, its link.yaml is not sound, or a path cannot stand in a unit.
        PrivacyParameterError: its policy.yaml is not sound.
        UnreachableError: the coordinator's or the proxy's name is not known.
        KeyFileError: the passphrase's file is not there, or others can read it.
    """
    from echofed.client.policy import load_policy

    folder = state.absolute()
    check_state_folder(folder, "site")
    policy = load_policy(folder)
    witness = [policy.ledger_witness.parent] if policy.ledger_witness else []
    data = _data_folders(folder)
    lines = ["PrivateDevices=yes"] if not gpu else ["PrivateDevices=no", "DeviceAllow=char-nvidia* rw"]
    lines += [f"SupplementaryGroups={_escaped(group)}" for group in groups]
    lines += _capabilities(privileged_port=False)
    lines += [f"# Addresses of {datetime.now(UTC):%Y-%m-%d}: install the service again when the coordinator's changes."]
    lines += ["IPAddressDeny=any", f"IPAddressAllow=localhost {' '.join(_peers(folder))}"]
    lines += _files([folder, *witness], data)
    lines += [f"CPUQuota={policy.cores * 100}%"] if policy.cores else []
    lines += _optional(passphrase_file, memory_max)
    arguments = ["site", "start", "--state", str(folder)]
    return _unit("EchoFed: a site", "site", arguments, [folder, *witness, *data], lines)


def install(name: str, unit: str, *, dry_run: bool) -> None:
    """Install a unit, so that the service starts with the machine, and say what was done; it is not started.

    The system user is made if need be, and the state folder becomes that user's. Safe to repeat.

    Args:
        name: of the service, without ".service".
        unit: from `server_unit` or `site_unit`.
        dry_run: print the unit only.

    Raises:
        RunError: the user is not root, the machine does not run systemd, or one of its commands failed.
    """
    if dry_run:
        typer.echo(unit, nl=False)
        return
    if not SYSTEMD_RUNS.is_dir():
        raise RunError("This machine does not run systemd.", "Start it with your own supervisor; --dry-run shows how.")
    if os.geteuid() != 0:
        raise RunError("Only root can install a service.", "Run the command with sudo, and --state as it is now.")
    state, *others = written_folders(unit)
    _make_user()
    _give(state)
    replace_file(UNITS_FOLDER / f"{name}.service", unit.encode())
    (UNITS_FOLDER / f"{name}.service").chmod(0o644)
    _run("systemctl", "daemon-reload")
    _run("systemctl", "enable", f"{name}.service")
    typer.echo(f"Wrote {UNITS_FOLDER / name}.service. {state} now belongs to the user {USER}.")
    for folder in others:
        typer.echo(f"The user {USER} must be able to write in {folder}.")
    typer.echo(f"It starts with the machine; to start it now, or anew: systemctl restart {name}")


def written_folders(unit: str) -> list[Path]:
    """Return the folders in which a unit's service may write, the state folder first."""
    lines = [line.partition("=")[2] for line in unit.splitlines() if line.startswith("ReadWritePaths=")]
    return [Path(line.removeprefix('"').removesuffix('"').replace("%%", "%")) for line in lines]


def _unit(title: str, role: str, arguments: Iterable[str], needed: Iterable[Path], lines: Iterable[str]) -> str:
    command = [str(Path(sys.executable).absolute()), "-m", "echofed.cli", *arguments]
    python, *rest = map(_quoted, command)
    start = " ".join([python, *(argument.replace("$", "$$") for argument in rest)])
    mounts = " ".join(_quoted(str(path)) for path in needed)
    remedy = f"# Written by `echofed {role} install-service`; what is changed by hand is lost when it runs again."
    head = f"[Unit]\nDescription={title}\nWants=network-online.target\nAfter=network-online.target time-sync.target\n"
    head += f"RequiresMountsFor={mounts}\n# It is started again however often it fails.\nStartLimitIntervalSec=0\n"
    body = "\n".join([f"User={USER}", f"Group={USER}", f"ExecStart={start}", _ALWAYS, *lines])
    return f"{remedy}\n{head}\n[Service]\n{body}\n\n[Install]\nWantedBy=multi-user.target\n"


def _files(writable: Sequence[Path], readable: Sequence[Path]) -> list[str]:
    """Return what of the disk the service sees; all else is read-only, homes and temporary files are out of sight."""
    program = {Path(sys.prefix), Path(sys.base_prefix), Path(__file__).absolute().parents[1]}
    hidden = [path for path in (*writable, *readable, *sorted(program)) if _is_hidden(path, (*_HOMES, *_TEMPORARY))]
    # A folder out of sight is brought back alone, at the same place.
    lines = [f"ProtectHome={'tmpfs' if any(_is_hidden(path, _HOMES) for path in hidden) else 'yes'}"]
    # systemd's own /root could not be entered.
    lines += ["TemporaryFileSystem=/root:ro,mode=0755"] if any(_is_hidden(one, _HOMES[1:2]) for one in hidden) else []
    lines += [f"{'BindPaths' if one in writable else 'BindReadOnlyPaths'}={_quoted(str(one))}" for one in hidden]
    lines += [f"ReadWritePaths={_quoted(str(path))}" for path in writable]
    lines += [f"ReadOnlyPaths={_quoted(str(path))}" for path in readable]
    # What arrived over the network cannot be run as a program.
    return lines + [f"NoExecPaths={_quoted(str(path))}" for path in (*writable, *readable)]


def _capabilities(privileged_port: bool) -> list[str]:
    if privileged_port:
        return ["CapabilityBoundingSet=CAP_NET_BIND_SERVICE", "AmbientCapabilities=CAP_NET_BIND_SERVICE"]
    return ["CapabilityBoundingSet=", "AmbientCapabilities=", "PrivateUsers=yes"]


def _optional(passphrase_file: Path | None, memory_max: str | None) -> list[str]:
    lines = [f"MemoryMax={_escaped(memory_max)}"] if memory_max else []
    if passphrase_file is not None:
        path = passphrase_file.absolute()
        if not path.is_file():
            raise KeyFileError(f"There is no file {path}.", "Write ECHOFED_PASSPHRASE=... into it; mode 0600.")
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise KeyFileError(f"{path} can be read by others than its owner.", f"Run `chmod 600 {path}`.")
        # systemd reads it as root: the service itself needs no right to it.
        lines.append(f"EnvironmentFile={_escaped(str(path))}")
    return lines


def _data_folders(folder: Path) -> list[Path]:
    from echofed.client.registry import REGISTRY_FILE, open_registry, read_settings

    if not (folder / REGISTRY_FILE).is_file():
        return []
    with open_registry(folder) as database:
        settings = read_settings(database)
    data, index = settings.data_folder.absolute(), settings.index_path.absolute()
    return [data] if index.is_relative_to(data) else [data, index.parent]


def _peers(folder: Path) -> list[str]:
    """Return the addresses a site must reach, those of name servers among them if there is a name."""
    from echofed.client.identity_files import read_membership
    from echofed.client.link_settings import load_link_settings
    from echofed.protocol.membership import open_membership

    membership = open_membership(read_membership(folder), None)
    host, port = load_link_settings(folder).proxy_address or split_address(membership.address)
    try:
        ipaddress.ip_address(host)
        return [host]
    except ValueError:
        pass
    try:
        found = {_address(str(entry[4][0])) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        remedy = "Check the name, and this machine's DNS: the service may reach this address only, so it must be known."
        raise UnreachableError(f"The name {host} is not known here.", remedy) from error
    return sorted(found) + _name_servers()


def _name_servers() -> list[str]:
    try:
        lines = RESOLVER_SETTINGS.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    words = [line.split() for line in lines]
    return sorted({_address(word[1]) for word in words if len(word) > 1 and word[0] == "nameserver"})


def _address(text: str) -> str:
    """Return an address without the interface that a link-local one names."""
    return text.partition("%")[0]


def _is_hidden(path: Path, roots: Iterable[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _escaped(text: str) -> str:
    if _UNSAFE.search(text):
        what = f"{text!r} cannot stand in a systemd unit: a control character, quotation mark, backslash or wildcard is in it."
        raise StateFolderError(what, "Use a path of letters, digits, spaces and plain signs.")
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _make_user() -> None:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        shell = shutil.which("nologin") or "/usr/sbin/nologin"
        options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", shell]
        _run("useradd", *options, USER)
        typer.echo(f"Made the system user {USER}.")


def _give(state: Path) -> None:
    owner = pwd.getpwnam(USER)
    for folder, folders, files in os.walk(state):
        for path in [Path(folder), *(Path(folder, name) for name in (*folders, *files))]:
            # Not followed: a link in the folder must not give away what it points to.
            os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(
            f"`{shlex.join(command)}` could not be run: {error}.", "Run it by hand, then try again."
        ) from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise RunError(f"`{shlex.join(command)}` failed: {said}", "Run it by hand, then try again.")
