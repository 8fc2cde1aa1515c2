"""A whole consortium on one machine: a coordinator and its hospitals as real processes, with real TLS on loopback.

For the demonstration, tests and measurements. Every party has a folder of its own, is enrolled with an invitation as a hospital
would be, and runs the commands a hospital would run.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from echofed.client.approvals import approve
from echofed.client.identity import init_site, join, load_identity
from echofed.client.link import Link
from echofed.client.link_settings import load_link_settings
from echofed.client.studies_sync import fetch_studies, send_answers
from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.errors import RunError
from echofed.server.authority import init_consortium
from echofed.server.members import enrol, invite
from echofed.server.publishing import publish_study
from echofed.server.studies import study_folder, write_control
from echofed.server.study_status import StudyStatus, read_status
from echofed.simulations.progress import Report, silent


@dataclass
class LocalConsortium:
    """A consortium on this machine; its processes run while `running` is entered.

    Args:
        folder: holds `coordinator`, one folder a site under `sites`, and the processes' output under `logs`.
        sites: state folder of each site by name; its data are registered.
        address: host:port of the gateway.
    """

    folder: Path
    sites: Mapping[str, Path]
    address: str
    environment: Mapping[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "coordinator"

    def enrol(self, report: Report = silent) -> None:
        """Make the consortium and enrol every site, as the parties would by exchanging files and reading out words."""
        host, _, port = self.address.rpartition(":")
        init_consortium(self.coordinator, "Local consortium", self.address)
        settings = self.coordinator / "consortium.yaml"
        settings.write_text(f"{settings.read_text()}bind_host: {host}\nbind_port: {port}\n")
        papers = self.folder / "papers"
        papers.mkdir(exist_ok=True)
        for number, (site, state) in enumerate(self.sites.items(), start=1):
            invitation = invite(self.coordinator, site, papers / f"{site}.invitation")
            request = init_site(state, invitation, site, papers / f"{site}.request")
            join(state, enrol(self.coordinator, request.path, request.words))
            report("Enrolling hospitals", number, len(self.sites))

    def start(self, name: str) -> None:
        """Start a party's processes: `coordinator`, or a site by name."""
        command, state = ("server", self.coordinator) if name == "coordinator" else ("site", self.sites[name])
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{name}.log").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "echofed.cli", command, "start", "--state", str(state)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop a party's supervisor, which stops its processes, and wait for its end."""
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait(30)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start all parties; stop them at the end, whatever happens."""
        try:
            for name in ("coordinator", *self.sites):
                self.start(name)
            yield
        finally:
            for name in list(self.processes)[::-1]:
                if self.processes[name].poll() is None:
                    self.processes[name].terminate()
            for name in list(self.processes):
                self.processes.pop(name).wait(30)

    def publish(self, study: Path, parameters: Path) -> str:
        """Publish a study and return its hash."""
        return publish_study(self.coordinator, study, parameters).hash

    def process_ids(self, name: str) -> dict[str, int]:
        """Return the processes a party runs now, with their numbers."""
        state = self.coordinator if name == "coordinator" else self.sites[name]
        path = state / "run" / "processes"
        lines = path.read_text().splitlines() if path.exists() else []
        return {line.split()[0]: int(line.split()[1]) for line in lines}

    def await_gateway(self, timeout_seconds: float) -> None:
        """Wait until the coordinator's gateway listens.

        Raises:
            RunError: it does not in time.
        """
        host, _, port = self.address.rpartition(":")
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    return
            time.sleep(0.1)
        raise RunError("The coordinator's gateway does not start.", f"See {self.folder / 'logs' / 'coordinator.log'}.")

    def approve(
        self,
        study_hash: str,
        sites: Sequence[str] | None = None,
        person: str = "A physician",
        report: Report = silent,
    ) -> None:
        """Have sites fetch what is published, approve one study and tell the coordinator; its gateway must be running."""
        wanted = list(sites or self.sites)
        for number, site in enumerate(wanted, start=1):
            state = self.sites[site]
            identity = load_identity(state)
            link = Link(identity, load_link_settings(state))
            with open_audit_log(state, owner=identity.site) as log:
                fetch_studies(state, identity, log, link)
                approve(state, study_hash, person, member=identity, log=log)
                send_answers(state, link)
            link.close()
            report("Approving the study", number, len(wanted))

    def run(self, study_hash: str) -> None:
        """Have the coordinator run a published study."""
        write_control(self.coordinator, study_hash, "running")

    def status(self, study_hash: str) -> StudyStatus | None:
        """Return how a study fares."""
        return read_status(study_folder(self.coordinator, study_hash))

    def wait(
        self,
        study_hash: str,
        until: Callable[[StudyStatus], bool],
        timeout_seconds: float,
        look: Callable[[StudyStatus | None], None] = lambda status: None,
    ) -> StudyStatus:
        """Wait until a study has got somewhere, and return its status.

        Raises:
            RunError: it has not in time, or a party's supervisor has ended.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            status = self.status(study_hash)
            look(status)
            if status is not None and until(status):
                return status
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RunError(f"{name} has ended.", f"See {self.folder / 'logs' / name}.log.")
            if time.monotonic() > deadline:
                raise RunError(f"The study has not got there in {timeout_seconds:.0f} s: {status}.", "See the logs.")
            time.sleep(0.1)


def free_address() -> str:
    """Return an address on loopback that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
