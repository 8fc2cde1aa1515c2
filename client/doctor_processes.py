"""A look at a site's running processes: whether they run, and which walls systemd has put around them."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from echofed.client.findings import Finding, bad, good, warning
from echofed.client.link_settings import LinkSettings
from echofed.client.link_status import read_link_status
from echofed.client.outbound_proxy import listen
from echofed.protocol.errors import PortInUseError

PROCESSES_FILE = Path("run", "processes")
"""Of the state folder: one line "name pid" a process, written by the supervisor."""
EXPECTED = ("proxy", "supernode", "executor")
PROC = Path("/proc")

_START = "Start the site: `echofed site start`, or `systemctl start echofed-site`."
_INSTALL = "Run the site as a service: `echofed site install-service`."
_OURS = (b"echofed", b"flwr")
_SYSTEMCTL_SECONDS = 3.0


def read_processes(state_folder: Path) -> dict[str, int]:
    """Return the processes that run for this site, by name; those that have ended, or whose number is another's, are left out."""
    try:
        lines = (state_folder / PROCESSES_FILE).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    named = {match[1]: int(match[2]) for line in lines if (match := re.fullmatch(r"([a-z]+) ([0-9]{1,10})", line))}
    return {name: pid for name, pid in named.items() if any(word in _read(pid, "cmdline") for word in _OURS)}


def look_at_processes(state_folder: Path) -> Iterator[Finding]:
    """Yield whether the site's processes run, and how the link stood when the proxy last wrote so."""
    running = read_processes(state_folder)
    if not running:
        yield warning("processes", "The site is not running.", _START)
    for name, pid in running.items():
        state = _status(pid).get("State", "? unknown")
        if state[:1] in "ZXT":
            yield bad(
                "processes", f"The {name} (process {pid}) is {state[2:].strip('()') or 'gone'}.", "Restart the site."
            )
    missing = [name for name in EXPECTED if running and name not in running]
    if missing:
        what = f"Not running: {', '.join(missing)}."
        yield bad("processes", what, "The supervisor starts it again; the site's log says why it ended.")
    elif running:
        yield good("processes", f"Running: {', '.join(f'{name} ({pid})' for name, pid in running.items())}.")
    yield _last_contact(state_folder, is_running="proxy" in running)


def look_at_port(state_folder: Path, settings: LinkSettings) -> Iterator[Finding]:
    """Yield whether the port of the site's own proxy is ours or free."""
    status = read_link_status(state_folder)
    port = settings.proxy_port
    if "proxy" in read_processes(state_folder) and status and port in (0, status.port):
        yield good("proxy port", f"The site's own proxy listens at 127.0.0.1:{status.port}.")
    elif port == 0:
        yield good("proxy port", "Any free port will be taken.")
    else:
        try:
            listen(port).close()
            yield good("proxy port", f"127.0.0.1:{port} is free.")
        except PortInUseError as error:
            yield bad("proxy port", f"[{error.code}] {error.what}", error.remedy)


def look_at_walls(state_folder: Path) -> Iterator[Finding]:
    """Yield, for each wall around the executor, whether it is in force now: the kernel's word, not the unit's."""
    pid = read_processes(state_folder).get("executor")
    if pid is None:
        yield warning("confinement", "The executor is not running: what would be in force cannot be seen.", _START)
        return
    status, mounts = _status(pid), _mounts(pid)
    yield _wall("no new privileges", status.get("NoNewPrivs") == "1")
    yield _wall("system calls filtered", status.get("Seccomp") == "2")
    yield _wall("no capabilities", "CapEff" in status and int(status["CapEff"], 16) == 0)
    yield _wall("user of its own, not root", bool(status) and status.get("Uid", "0").split()[0] != "0")
    if mounts is None:
        remedy = "Run the command as root, or as the service's user."
        yield warning("disk outside its folder read-only", "The mounts of the executor cannot be read.", remedy)
    else:
        yield _wall("disk outside its folder read-only", "ro" in _options(mounts, Path("/")))
        own = _options(mounts, state_folder.resolve())
        yield _wall("no programs run from its folder", "noexec" in own)
    yield _network(pid)
    yield _telemetry(state_folder)


def _wall(name: str, in_force: bool) -> Finding:
    if in_force:
        return good(name, "In force.")
    return warning(name, "Not in force.", _INSTALL)


def _network(pid: int) -> Finding:
    name = "no network but the coordinator"
    unit = _read(pid, "cgroup").decode(errors="replace").strip().rpartition("/")[2]
    systemctl = shutil.which("systemctl")
    if not unit.endswith(".service") or systemctl is None:
        return _wall(name, False)
    command = [systemctl, "show", unit, "--property=IPAddressDeny,IPAddressAllow"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SYSTEMCTL_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return warning(name, "systemctl did not answer.", "Run `systemctl status`.")
    said = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    denied = {"0.0.0.0/0", "::/0"} <= set(said.get("IPAddressDeny", "").split())
    if not denied:
        return _wall(name, False)
    return good(name, f"In force; let through: {said.get('IPAddressAllow', '')}.")


def _telemetry(state_folder: Path) -> Finding:
    pid = read_processes(state_folder).get("supernode")
    environment = _read(pid, "environ").split(b"\0") if pid else []
    if not environment or environment == [b""]:
        return warning("no telemetry", "Flower's SuperNode is not running, or cannot be looked at.", _START)
    if b"FLWR_TELEMETRY_ENABLED=0" in environment:
        return good("no telemetry", "In force: Flower is told not to phone home.")
    return bad("no telemetry", "Flower's SuperNode runs without FLWR_TELEMETRY_ENABLED=0.", _START)


def _last_contact(state_folder: Path, *, is_running: bool) -> Finding:
    status = read_link_status(state_folder)
    if status is None:
        return warning("last contact", "The site has not been in touch with the coordinator.", _START)
    if status.state == "connected":
        before = "" if is_running else " when the site last ran"
        return good("last contact", f"Connected{before}, since {status.since}.")
    what = f"The link is {status.state} since {status.since}" + (f": {status.what}" if status.what else ".")
    return warning("last contact", what, status.remedy or "Look again in a minute.")


def _status(pid: int) -> dict[str, str]:
    lines = _read(pid, "status").decode(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _mounts(pid: int) -> dict[Path, set[str]] | None:
    text = _read(pid, "mounts").decode(errors="surrogateescape")
    words = [line.split(" ") for line in text.splitlines()]
    # The last of several mounts at a place is the one in sight.
    return {Path(_plain(word[1])): set(word[3].split(",")) for word in words if len(word) > 3} or None


def _options(mounts: dict[Path, set[str]], path: Path) -> set[str]:
    return next((mounts[place] for place in (path, *path.parents) if place in mounts), set())


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _read(pid: int, name: str) -> bytes:
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""
