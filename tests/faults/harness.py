"""A consortium of real processes that can be hurt: killed, stopped, cut off, filled up, or told a wrong time.

With `isolated` each party has a network namespace, a state folder on a small disk of its own and a clock of its own; that needs
root and a C compiler. Without, all run on loopback, and only their processes can be hurt. What is started here is ended here.
"""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from echofed.cli.supervisor import free_port
from echofed.client.approvals import approve
from echofed.client.identity import load_identity
from echofed.client.kept_replies import FOLDER
from echofed.client.link import Link
from echofed.client.link_settings import load_link_settings
from echofed.client.settings import SiteSettings
from echofed.client.site import create_site
from echofed.client.studies_sync import fetch_studies, send_answers
from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.errors import EchoFedError, RunError
from echofed.protocol.flower_records import buffer_of, content_from
from echofed.simulations.local_consortium import LocalConsortium
from tests.faults.network import Network
from tests.faults.relay import Relay, answers, listening_port
from tests.small_simulations import COLUMNS, PATIENTS, draw_sites

SITES = tuple(sorted(PATIENTS))
PARTIES = ("coordinator", *SITES)
POLICY = "allow_without_privacy: true\nminimum_patients: 1\nepsilon_per_cohort: 1000\n"
RESTART_SECONDS = 1.0
"""After which a party whose supervisor has ended is started again, as systemd would."""
START_SECONDS = 120.0
DISK_MEBIBYTES = {"coordinator": 400, **dict.fromkeys(SITES, 1200)}
"""The gateway takes nothing that leaves less than 256 MiB free, a site nothing that leaves less than 1 GiB."""
BALLAST = "ballast"


@dataclass
class Harness:
    """A consortium under test; `running` starts it, from a template made once.

    Args:
        folder: for everything; short, on the local disk.
        isolated: whether parties have networks, disks and clocks of their own.
        seed: of what the network and the relay do.
    """

    folder: Path
    isolated: bool
    seed: int = 0
    network: Network = field(default_factory=lambda: Network(PARTIES))
    relay: Relay | None = None
    say: Callable[[str], None] = print
    consortium: LocalConsortium = field(init=False)
    _ended: dict[str, float] = field(default_factory=dict)
    _seen: dict[int, str] = field(default_factory=dict)
    _relayed: int = 0
    _kept: dict[Path, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Choose where everything lies."""
        here = self.folder / "run"
        address = f"{self.network.address('coordinator')}:8443" if self.isolated else f"127.0.0.1:{free_port()}"
        self.consortium = LocalConsortium(here, {site: here / "sites" / site for site in SITES}, address)

    def state(self, party: str) -> Path:
        """Return a party's state folder."""
        return self.consortium.coordinator if party == "coordinator" else self.consortium.sites[party]

    @property
    def template(self) -> Path:
        """An enrolled consortium with registered data that has never run."""
        return self.folder / "template"

    def prepare(self) -> None:
        """Make the template: data, sites, enrolment."""
        if self.template.exists():
            return
        draw_sites(self.folder / "data")
        self.consortium.folder.mkdir(parents=True)
        self.consortium.enrol()
        for site, state in self.consortium.sites.items():
            settings = SiteSettings(name=site, data_folder=self.folder / "data" / site, columns=COLUMNS)
            create_site(state, settings).register()
            (state / "policy.yaml").write_text(POLICY)
        self.consortium.folder.rename(self.template)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start all parties from a copy of the template; end and remove everything at the end."""
        with contextlib.ExitStack() as undo:
            if self.isolated:
                undo.enter_context(self.network.running())
                self.relay = Relay(self.network, "coordinator", random.Random(self.seed))
                undo.callback(self.relay.close)
            undo.callback(self._remove)
            self._copy()
            undo.callback(self._end)
            self._start("coordinator")
            if self.isolated and not self.wait(START_SECONDS, lambda: bool(self._relayed)):
                raise RunError("SuperLink does not start.", f"See {self.consortium.folder / 'logs'}.")
            for site in SITES:  # not before: a connection that is there already would not come by the relay
                self._start(site)
            yield

    def tend(self) -> None:
        """Start again what has ended, as systemd would; to be called all the time."""
        for party, process in self.consortium.processes.items():
            if process.poll() is None:
                continue
            ended = self._ended.setdefault(party, time.monotonic())
            if time.monotonic() >= ended + RESTART_SECONDS:
                self._start(party)
                break
        for party in PARTIES:
            for pid in self.consortium.process_ids(party).values():
                self._seen.setdefault(pid, party)
        self._stand_before_superlink()
        self._keep_updates()

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Tend until something is so or the time is up; return whether it is."""
        deadline = time.monotonic() + seconds
        while not until():
            if time.monotonic() > deadline:
                return False
            self.tend()
            time.sleep(0.05)
        return True

    def approve(self, hashes: Sequence[str]) -> None:
        """Have every site approve studies; waits until the gateway answers."""
        for site in SITES:
            failures: list[EchoFedError] = []

            def attempt(site: str = site, failures: list[EchoFedError] = failures) -> bool:
                try:
                    with self.inside(site):
                        self._approve(site, hashes)
                except EchoFedError as error:
                    failures[:] = [error]
                    return False
                return True

            if not self.wait(START_SECONDS, attempt):
                raise RunError(f"{site} cannot approve: {failures[-1].what}", f"See {self.consortium.folder / 'logs'}.")

    def inside(self, party: str) -> contextlib.AbstractContextManager[None]:
        """Have new sockets of this thread be a party's."""
        return self.network.inside(party) if self.isolated else contextlib.nullcontext()

    def process(self, party: str, name: str) -> int | None:
        """Return the number of one of a party's processes, `supervisor` included; None: it does not run now."""
        if name == "supervisor":
            process = self.consortium.processes[party]
            return process.pid if process.poll() is None else None
        pid = self.consortium.process_ids(party).get(name)
        return pid if pid is not None and self._is_ours(pid, party) else None

    def send(self, party: str, name: str, number: signal.Signals) -> bool:
        """Send a signal to one of a party's processes; False if it does not run now."""
        pid = self.process(party, name)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            return True
        return False

    def set_clock(self, party: str, offset_seconds: int) -> None:
        """Set how far a party's clock is off."""
        _write_clock(self._clock(party), offset_seconds)

    def fill_disk(self, party: str) -> None:
        """Leave no byte on a party's disk."""
        with (self.state(party) / BALLAST).open("ab", buffering=0) as ballast:
            with contextlib.suppress(OSError):
                os.posix_fallocate(ballast.fileno(), 0, shutil.disk_usage(self.state(party)).free)
            os.lseek(ballast.fileno(), 0, os.SEEK_END)
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while ballast.write(bytes(size)) == size:
                        pass

    def free_disk(self, party: str) -> None:
        """Take away what filled a party's disk."""
        (self.state(party) / BALLAST).unlink(missing_ok=True)

    def update(self, sha256: str) -> Path:
        """Return where an update lies that a site has made in a private study: the site itself keeps the last one only."""
        return self.consortium.folder / "updates" / sha256

    def _keep_updates(self) -> None:
        for path in (path for site in SITES for path in (self.state(site) / FOLDER).glob("*/*-train")):
            with contextlib.suppress(FileNotFoundError):  # just forgotten by the site
                changed = path.stat().st_mtime_ns
                if self._kept.get(path) == changed:
                    continue
                content = path.read_bytes().split(b"\n", 3)[3]
                update = buffer_of(content_from(content))
                kept = self.update(hashlib.sha256(update).hexdigest())
                kept.parent.mkdir(exist_ok=True)
                kept.write_bytes(update)
                self._kept[path] = changed

    def _clock(self, party: str) -> Path:
        return self.folder / "clocks" / party

    def _approve(self, site: str, hashes: Sequence[str]) -> None:
        state = self.state(site)
        identity = load_identity(state)
        link = Link(identity, load_link_settings(state))
        try:
            with open_audit_log(state, owner=identity.site) as log:
                fetch_studies(state, identity, log, link)
                for study in hashes:
                    approve(state, study, "A physician", member=identity, log=log)
                send_answers(state, link)
        finally:
            link.close()

    def _copy(self) -> None:
        (self.folder / "clocks").mkdir(exist_ok=True)
        for party in PARTIES:
            place = self.state(party)
            place.mkdir(parents=True)
            if self.isolated:
                size = f"size={DISK_MEBIBYTES[party]}m,mode=0700"
                subprocess.run(["mount", "-t", "tmpfs", "-o", size, "echofed-faults", place], check=True)
                self.set_clock(party, 0)
            shutil.copytree(self.template / place.relative_to(self.consortium.folder), place, dirs_exist_ok=True)
        if self.isolated:
            source = Path(__file__).with_name("clock.c")
            subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", self._library, source, "-ldl"], check=True)

    @property
    def _library(self) -> Path:
        return self.folder / "clock.so"

    def _start(self, party: str) -> None:
        """Start a party's supervisor; what it says goes to `logs`."""
        self._ended.pop(party, None)
        kind = "server" if party == "coordinator" else "site"
        command = [sys.executable, "-m", "echofed.cli", kind, "start", "--state", str(self.state(party))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if self.isolated:
            command = [*self.network.command(party), *command]
            environment |= {"LD_PRELOAD": str(self._library), "ECHOFED_TEST_CLOCK": str(self._clock(party))}
        logs = self.consortium.folder / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{party}.log").open("ab") as output:
            self.consortium.processes[party] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def _stand_before_superlink(self) -> None:
        pid = self.process("coordinator", "superlink") if self.relay else None
        if self.relay is None or pid is None or pid == self._relayed:
            return None
        with contextlib.suppress(OSError, ValueError):  # it has just ended, or is not SuperLink yet
            port = listening_port(pid)
            if answers(self.network, "coordinator", port):
                return self._relay_to(port, pid)
        return None

    def _relay_to(self, port: int, pid: int) -> None:
        assert self.relay is not None
        self.relay.stand_before(port)
        self._relayed = pid

    def _is_ours(self, pid: int, party: str) -> bool:
        try:
            return str(self.state(party)).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def _end(self) -> None:
        """End every process that was started here, whatever state it is in."""
        for pid, party in self._seen.items():
            if self._is_ours(pid, party):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        processes = self.consortium.processes
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
        processes.clear()
        for pid, party in self._seen.items():
            if self._is_ours(pid, party):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._seen.clear()
        self._relayed = 0

    def _remove(self) -> None:
        for party in PARTIES if self.isolated else ():
            while os.path.ismount(self.state(party)):
                subprocess.run(["umount", "--lazy", self.state(party)], check=True)
        shutil.rmtree(self.consortium.folder, ignore_errors=True)


def _write_clock(path: Path, offset_seconds: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, offset_seconds.to_bytes(8, sys.byteorder, signed=True), 0)
    finally:
        os.close(descriptor)
