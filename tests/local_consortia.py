"""Consortia of real processes on this machine for tests: three hospitals with phantoms, and what can be read of them."""

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from echofed.cli.supervisor import free_port
from echofed.client.ledger import read_ledger
from echofed.client.ledger_chain import Entry as LedgerEntry
from echofed.client.policy import load_policy
from echofed.protocol.audit_log import Entry, open_existing_log
from echofed.protocol.study import Study
from echofed.server.flower_link import FlowerLink
from echofed.server.gateway_nodes import read_nodes
from echofed.simulations.initial import initialise_study
from echofed.simulations.local_consortium import LocalConsortium
from echofed.simulations.sites import make_sites
from tests.small_simulations import source, write_study

NAMES = ("north", "south", "west")
POLICY = "allow_without_privacy: true\nminimum_patients: 1\nepsilon_per_study: 10\nepsilon_per_cohort: 20\n"
READY_SECONDS = 60.0
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def enrolled_consortium(folder: Path, phantoms: Path, names: Sequence[str] = NAMES, seed: int = 0) -> LocalConsortium:
    """Return a consortium whose sites are those a simulation of the same data and seed has, split keys included.

    The simulation's own folders are in `folder`/registered.
    """
    sites = {}
    for state in make_sites(source(phantoms), folder / "registered", seed):
        if state.name in names:
            sites[state.name] = folder / "sites" / state.name
            shutil.copytree(state, sites[state.name])
            (sites[state.name] / "policy.yaml").write_text(POLICY)
    consortium = LocalConsortium(folder, sites, f"127.0.0.1:{free_port()}", ENVIRONMENT)
    consortium.enrol()
    return consortium


def online(consortium: LocalConsortium, sites: Sequence[str] = NAMES) -> bool:
    """Return whether these sites have a node."""
    return read_nodes(consortium.coordinator).keys() >= set(sites)


def wait_for(condition: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.1)


def published(consortium: LocalConsortium, study: Study, name: str = "study") -> str:
    """Write a study with fresh parameters, publish it and return its hash."""
    path = write_study(consortium.folder / f"{name}.yaml", study)
    return consortium.publish(path, initialise_study(path, 0))


def run_to_end(consortium: LocalConsortium, study_hash: str, seconds: float = 120.0) -> Path:
    """Run a study until it is finished and return its folder at the coordinator."""
    consortium.run(study_hash)
    consortium.wait(study_hash, lambda status: status.state == "finished", seconds)
    return consortium.coordinator / "studies" / study_hash


def audit(state: Path, event: str | None = None, after: int = 0) -> list[Entry]:
    """Return the entries of a party's audit log, all or those of an event."""
    with open_existing_log(state) as log:
        return [entry for entry in log.entries(after) if event in (None, entry.event)]


def last_entry(state: Path) -> int:
    """Return how far a party's audit log has got."""
    with open_existing_log(state) as log:
        return log.head().entries


def ledger(state: Path) -> tuple[LedgerEntry, ...]:
    """Return the entries of a site's privacy ledger; it may be in use."""
    chain = read_ledger(state, load_policy(state))
    return chain.entries if chain else ()


def pid_of(state: Path, program: str) -> int:
    """Return the process id of one of a party's programs."""
    for line in (state / "run" / "processes").read_text().splitlines():
        name, _, number = line.partition(" ")
        if name == program:
            return int(number)
    raise AssertionError(f"{program} does not run in {state}")


def superlink_address(coordinator: Path) -> str:
    """Return host:port of a running SuperLink."""
    command = Path(f"/proc/{pid_of(coordinator, 'superlink')}/cmdline").read_bytes().decode().split("\0")
    return f"127.0.0.1:{command[command.index('--port') + 1]}"


class Intruder(FlowerLink):
    """Somebody on the coordinator's machine who reaches SuperLink: starts a run of his own, with any app bundle.

    Args:
        coordinator: the coordinator's folder; its SuperLink runs.
        bundle: the run's.
        task: what Flower makes of the bundle.
    """

    def __init__(self, coordinator: Path, bundle: bytes, task: str = TaskType.SERVER_APP) -> None:
        self._bundle, self._task = bundle, task
        super().__init__(superlink_address(coordinator), (coordinator / "run" / "secret").read_bytes(), coordinator)

    def _start_run(self) -> int:
        interceptor = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
        with ControlHttpClient.from_server_address(self._address, True, None, [interceptor]) as control:
            answer = control.StartRun(StartRunRequest(fab=Fab(content=self._bundle), user_prompt="Run."))
        assert answer.run_id, answer
        return int(answer.run_id)

    def _claim(self, run_id: int) -> str:
        interceptors: list[ProtobufClientInterceptor] = [
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(
                master_secret=self._secret, protected_methods=["/flwr.proto.Runtime/AcquireTask"]
            ),
        ]
        with RuntimeHttpClient.from_server_address(self._address, True, None, interceptors) as runtime:
            claimed: AcquireTaskResponse = runtime.AcquireTask(AcquireTaskRequest(supported_task_types=[self._task]))
        assert claimed.token
        assert claimed.task.run_id == run_id
        return str(claimed.token)


@contextmanager
def intruder(coordinator: Path, bundle: bytes, task: str = TaskType.SERVER_APP) -> Iterator[Intruder]:
    """Give an intruder's run, and end it; arguments as for `Intruder`."""
    link = Intruder(coordinator, bundle, task)
    try:
        yield link
    finally:
        link.close()


def rows(path: Path, query: str) -> list[Any]:
    """Return what an SQL query finds in a file."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()
