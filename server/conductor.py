"""Runs the studies that are to run: the coordinator's own executor of Flower's ServerApp task.

    python -m echofed.server.conductor FOLDER SUPERLINK_ADDRESS SECRET_FILE

Every step can be cut short: a round is a function of the checkpoint and the replies, and the next start goes on from there. What
is wanted of a study stands in its `control.json`, how it fares in its `status.json`.
"""

import logging
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from echofed.protocol.arrays import Parameters, encode_parameters
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import (
    EchoFedError,
    InterruptedRunError,
    NoPatientsError,
    SitesError,
    TooFewRepliesError,
    UnexpectedError,
    UnreachableError,
)
from echofed.protocol.shared_layers import shared_parameters
from echofed.protocol.study import Study
from echofed.protocol.study_folder import read_study_folder
from echofed.server.checkpoint import Checkpoint, read_facts
from echofed.server.cohort import describe_sites
from echofed.server.coordination import Coordination
from echofed.server.flower_link import FlowerLink
from echofed.server.history import Round
from echofed.server.rounds import RunFolder, run_study
from echofed.server.sealed_grid import SealedGrid
from echofed.server.studies import published_studies, read_control, study_folder, write_control
from echofed.server.study_status import StudyStatus, Waiting, write_status
from echofed.strategies.replies import HEADER_ALLOWANCE_BYTES

LOG = logging.getLogger("echofed.server")
IDLE_SECONDS = 0.5
DESCRIBE_SECONDS = 120.0
"""At most, for a site to describe itself: one that takes longer is asked again while the others go on."""
ASK_AGAIN_SECONDS = 60.0
"""Before a site that could not describe itself is asked again: its hours may have begun, its data been put right."""
WAIT_SECONDS = (5.0, 10.0, 30.0, 60.0)
"""Before a study that could not go on is tried again: sites come back, disks are freed. None is ever given up."""
CANNOT_TRAIN = f"[{NoPatientsError.code}] It has too few usable patients."
BEST_MODEL_FILE = "model-best.safetensors"
LAST_MODEL_FILE = "model-last.safetensors"


@dataclass
class _Running:
    """What the conductor knows of a running study beside its files."""

    study: Study
    folder: Path
    parameters: Parameters
    metadata: dict[str, str]
    able: dict[str, bool] = field(default_factory=dict)
    patients: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    ask_again: dict[tuple[str, int], float] = field(default_factory=dict)
    waits: int = 0
    next_try: float = 0.0
    nodes: dict[str, int] = field(default_factory=dict)


class Conductor:
    """Runs studies over SuperLink, one round of each at a time when several run.

    Args:
        folder: the coordinator's.
        superlink_address: host:port on loopback.
        secret: shared with SuperLink; only who holds it can claim its tasks.
    """

    def __init__(self, folder: Path, superlink_address: str, secret: bytes) -> None:
        self._folder, self._address, self._secret = folder, superlink_address, secret
        self._coordination = Coordination(folder)
        self._link: FlowerLink | None = None
        self._running: dict[str, _Running] = {}
        self._damaged: dict[str, str] = {}

    def run(self) -> None:
        """Conduct until the process is told to stop."""
        while True:
            due = self._due()
            for key in due:
                self._conduct(key, alone=len(due) == 1)
            if not due:
                time.sleep(IDLE_SECONDS)

    def close(self) -> None:
        """End the Flower run."""
        if self._link is not None:
            self._link.close()

    def _wanted(self, key: str) -> str:
        return read_control(self._folder, key).state

    def _due(self) -> list[str]:
        """Return the studies whose turn it is, and let go of those that are not to run; a damaged one holds up no other."""
        due: list[str] = []
        published = published_studies(self._folder)
        for key in sorted({*published, *self._running}):
            try:
                wanted = self._wanted(key) if key in published else "stopped"
                if wanted == "running" and self._is_due(key):
                    due.append(key)
                elif wanted != "running" and key in self._running:
                    self._say(self._running.pop(key), wanted)
                self._damaged.pop(key, None)
            except Exception as raised:
                error = _explained(raised)
                if self._damaged.get(key) != error.what:
                    self._damaged[key] = error.what
                    LOG.error("Study %s: %s", key[:12], error, exc_info=raised if error is not raised else None)
                    self._coordination.log.append("error", study=key, code=error.code, what=error.what)
        return due

    def _is_due(self, key: str) -> bool:
        running = self._study(key)
        if time.monotonic() >= running.next_try:
            return True
        # A site that has come back since may be the one that was missing.
        return any(node and node != running.nodes.get(site) for site, node in self._nodes(running).items())

    def _rounds(self, running: _Running) -> int:
        wanted, agreed = read_control(self._folder, running.study.hash).rounds, running.study.federation.rounds
        return min(wanted or agreed, agreed)

    def _study(self, key: str) -> _Running:
        if key not in self._running:
            folder = study_folder(self._folder, key)
            study, initial, metadata = read_study_folder(folder)
            self._running[key] = _Running(study, folder, initial, metadata)
        return self._running[key]

    def _conduct(self, key: str, *, alone: bool) -> None:
        running = self._study(key)
        try:
            self._leg(running, alone=alone)
            running.waits = 0
        except InterruptedRunError:
            LOG.info("Study %s: %s", key[:12], "stopped in the middle of a round; the round is dropped")
        except (SitesError, TooFewRepliesError, UnreachableError) as error:
            LOG.warning("Study %s waits %d s: %s", key[:12], self._wait(running), error.what)
            self._say(running, "waiting", error)
        except Exception as raised:
            said = _explained(raised)
            if said is raised:
                LOG.error("Study %s waits %d s: %s", key[:12], self._wait(running), said)
            else:
                LOG.exception("Study %s waits %d s: %s", key[:12], self._wait(running), said)
            self._coordination.log.append("error", study=key, code=said.code, what=said.what)
            self._say(running, "failed", said)

    def _wait(self, running: _Running) -> float:
        """Have a study tried again later, or when a site comes back; return the seconds until then."""
        delay = WAIT_SECONDS[min(running.waits, len(WAIT_SECONDS) - 1)]
        running.waits += 1
        running.next_try = time.monotonic() + delay
        running.nodes = self._nodes(running)
        return delay

    def _leg(self, running: _Running, *, alone: bool) -> None:
        """Run rounds until the study ends, is to pause or stop, another study's turn comes, or its sites change."""
        study = running.study
        self._transport()  # Flower's messages name their run
        sites = self._present(running)
        self._say(running, "running")
        cohort = self._cohort(running, sites)
        grid = self._grid(running, cohort)
        shared = shared_parameters(study, running.parameters, running.metadata)
        turns = {"left": study.federation.rounds if alone else 1}

        def go_on() -> bool:
            turns["left"] -= 1
            if (
                turns["left"] < 0
                or self._wanted(study.hash) != "running"
                or _round_of(running) >= self._rounds(running)
            ):
                return False
            return not self._unknown(running, self._present(running))

        def on_round(record: Round) -> None:
            self._coordination.note_round(study.hash, record)
            running.waits = 0
            self._say(running, "running", record=record)

        names = dict(enumerate(cohort, start=1))
        self._coordination.note_unlogged_round(study, running.folder)
        folder = RunFolder(running.folder, resume=True)
        end = run_study(study, grid, names, shared, folder, on_round, go_on, running.patients)
        if end.round_number >= self._rounds(running):
            self._finish(running, end)

    def _present(self, running: _Running) -> list[str]:
        """Return the sites that have approved the study, are enrolled and have a node that was heard of lately."""
        approved = self._coordination.approved(running.study)
        return [site for site in approved if self._coordination.is_online(site)]

    def _offline(self, running: _Running) -> list[str]:
        approved = self._coordination.approved(running.study)
        return [site for site in approved if not self._coordination.is_online(site)]

    def _cohort(self, running: _Running, present: list[str]) -> list[str]:
        """Return the sites that can train: those not yet known are asked to describe themselves first."""
        minimum = running.study.federation.minimum_sites
        if len(present) < minimum:
            raise SitesError(
                f"The study needs {minimum} sites; {len(present)} have approved it and are online.",
                "It goes on by itself when enough are.",
            )
        if unknown := self._unknown(running, present):
            seconds = min(running.study.federation.round_timeout_seconds, DESCRIBE_SECONDS)
            grid = self._grid(running, unknown)
            described, failed = describe_sites(running.study, grid, timeout_seconds=seconds)
            # By the name of who was asked: what a reply says of its site is not to be trusted.
            said = {unknown[number - 1]: reply for number, reply in described.items()}
            running.able |= {site: True for site, reply in said.items() if reply.can_train}
            running.patients |= {site: one.training_patients for site, one in said.items() if one.training_patients}
            unable = {site: CANNOT_TRAIN for site, reply in said.items() if not reply.can_train}
            running.reasons = {unknown[number - 1]: why for number, why in failed.items()} | unable
            nodes, later = self._nodes(running), time.monotonic() + ASK_AGAIN_SECONDS
            running.ask_again = {(site, nodes[site]): later for site in running.reasons}
        approved = self._coordination.approved(running.study)
        cohort = [site for site in approved if running.able.get(site)]
        if len(cohort) < minimum:
            # A site that says why cannot take part for now; one that did not answer is asked again at the next try.
            explained = {site for site, why in running.reasons.items() if why.startswith("[")}
            running.ask_again = {place: at for place, at in running.ask_again.items() if place[0] in explained}
            reasons = " ".join(f"{site}: {why}" for site, why in sorted(running.reasons.items()))
            raise SitesError(f"The study needs {minimum} sites; {len(cohort)} can train. {reasons}".rstrip())
        return cohort

    def _unknown(self, running: _Running, present: list[str]) -> list[str]:
        """Return the sites that have not described themselves, and whose node was not asked in vain a moment ago."""
        now, nodes = time.monotonic(), self._nodes(running)
        unknown = [site for site in present if site not in running.able]
        return [site for site in unknown if now >= running.ask_again.get((site, nodes.get(site, 0)), 0.0)]

    def _nodes(self, running: _Running) -> dict[str, int]:
        """Return the Flower node of each site that has approved the study, 0 if it has none."""
        return {site: self._coordination.node_of(site)[0] for site in self._coordination.approved(running.study)}

    def _grid(self, running: _Running, sites: list[str]) -> SealedGrid:
        def stopped() -> None:
            if self._wanted(running.study.hash) == "stopped":
                raise InterruptedRunError("The study was stopped.")

        shared = shared_parameters(running.study, running.parameters, running.metadata)
        largest = sum(array.nbytes for array in shared.values()) + HEADER_ALLOWANCE_BYTES
        return SealedGrid(
            self._coordination,
            self._transport,
            sites,
            stopped,
            lambda waiting: self._say(running, "running", waiting=waiting),
            largest_update_bytes=largest,
        )

    def _transport(self) -> FlowerLink:
        if self._link is not None and self._link.lost.is_set():
            self._link.close()
            self._link = None
        if self._link is None:
            self._link = FlowerLink(self._address, self._secret, self._folder)
        return self._link

    def _finish(self, running: _Running, end: Checkpoint) -> None:
        for name, shared in ((BEST_MODEL_FILE, end.best_parameters), (LAST_MODEL_FILE, end.parameters)):
            facts = {**running.metadata, "study_hash": running.study.hash, "round": str(end.round_number)}
            replace_file(running.folder / name, encode_parameters({**running.parameters, **shared}, facts))
        write_control(self._folder, running.study.hash, "finished")
        self._say(running, "finished")

    def _say(
        self,
        running: _Running,
        state: str,
        error: EchoFedError | None = None,
        *,
        waiting: Waiting | None = None,
        record: Round | None = None,
    ) -> None:
        try:
            status = StudyStatus(
                state=state,
                round_number=record.round_number if record else _round_of(running),
                rounds=self._rounds(running),
                offline=tuple(self._offline(running)),
                waiting=waiting,
                error=str(error) if error else None,
                updated_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            write_status(running.folder, status)
        except (OSError, EchoFedError) as problem:  # informs people only: what is wrong is said where it matters
            LOG.warning("The status cannot be written: %s", problem)


def _explained(raised: Exception) -> EchoFedError:
    """Return an error as people are told of it; what else went wrong than EchoFed expects is given by its kind and text."""
    if isinstance(raised, EchoFedError):
        return raised
    return UnexpectedError(f"{type(raised).__name__}: {str(raised)[:200]}", "Look at the coordinator's log.")


def _round_of(running: _Running) -> int:
    facts = read_facts(running.folder)
    return facts.round_number if facts else 0


def main(folder: Path, superlink_address: str, secret_file: Path) -> None:
    """Conduct the studies of a coordinator until stopped."""
    conductor = Conductor(folder, superlink_address, secret_file.read_bytes())

    def stop(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    try:
        conductor.run()
    finally:
        conductor.close()


if __name__ == "__main__":
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
