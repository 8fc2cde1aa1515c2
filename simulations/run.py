"""A simulated study from its document to its report, in one folder that survives being killed."""

import fcntl
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flwr.serverapp import Grid
from pydantic import Field, ValidationError

from echofed.client.site import open_site
from echofed.protocol.document import Document
from echofed.protocol.errors import CheckpointError, InterruptedRunError, RunError, SitesError
from echofed.protocol.shared_layers import shared_parameters
from echofed.protocol.study import Study
from echofed.protocol.study_file import load_study
from echofed.protocol.study_folder import PARAMETERS_FILE, STUDY_FILE, read_study_folder
from echofed.server.checkpoint import FILE_NAME as CHECKPOINT_FILE
from echofed.server.checkpoint import Checkpoint, write_atomically
from echofed.server.cohort import describe_sites
from echofed.server.history import Round
from echofed.server.rounds import RunFolder, run_study
from echofed.simulations.flower_engine import run_with_flower
from echofed.simulations.grid import InProcessGrid
from echofed.simulations.initial import provide_initial_parameters
from echofed.simulations.pool import WorkerPool
from echofed.simulations.progress import Report, silent
from echofed.simulations.results import Run, write_results
from echofed.simulations.sites import DataSource, make_sites

RUN_FILE = "run.json"
LOCK_FILE = ".lock"


@dataclass(frozen=True)
class Simulation:
    """What to simulate.

    Args:
        study: path of the study document.
        source: the data and how they are spread over sites.
        out: folder of the run; None makes `runs/TITLE-HASH-SEED`.
        seed: of splits, sampling, noise and initial parameters.
        workers: processes at work at the same time.
        resume: go on after the last checkpoint.
        initial: initial-parameters file, if the study names one and it does not lie beside it.
        baselines: also train on the pooled data and on each site alone.
        engine: "pool", or "flower" for Flower's own engine.
        phantoms: the data are phantoms, so the report may show images.
        sites: folder in which registered sites are kept, to share them between runs; None keeps them in the run's.
    """

    study: Path
    source: DataSource
    out: Path | None = None
    seed: int = 0
    workers: int = 1
    resume: bool = False
    initial: Path | None = None
    baselines: bool = False
    engine: str = "pool"
    phantoms: bool = False
    sites: Path | None = None


class _RunFacts(Document):
    """What must not change between a run and its resumption."""

    study_hash: str
    data: str
    seed: int
    started_at: str = Field(default="")


def simulate_study(simulation: Simulation, report: Report = silent) -> Path:
    """Run a study over simulated sites and return the folder holding its models, results and report.

    The same simulation gives the same models whatever the number of workers, and whether or not it was interrupted.

    Raises:
        EchoFedError: the study, the data or a round is not usable; what was reached stays in the folder.
        InterruptedRunError: the user stopped the run; it can be resumed.
    """
    if simulation.engine not in ("pool", "flower"):
        raise RunError(f"There is no engine '{simulation.engine}'.", "Use pool or flower.")
    study = load_study(simulation.study)
    folder = simulation.out or Path("runs") / f"{_slug(study.title)}-{study.hash[:8]}-{simulation.seed}"
    with _locked(folder):
        facts = _prepare_folder(simulation, study, folder)
        try:
            return _simulate(simulation, folder, facts, report)
        except KeyboardInterrupt as error:
            raise InterruptedRunError(
                "Stopped. What was finished is kept.", f"Go on with the same command and --resume (folder {folder})."
            ) from error


def _simulate(simulation: Simulation, folder: Path, facts: _RunFacts, report: Report) -> Path:
    study = load_study(folder / STUDY_FILE)
    beside = simulation.study.with_suffix(".safetensors")
    given = simulation.initial or (beside if study.model.initial_parameters_sha256 and beside.exists() else None)
    sites = make_sites(simulation.source, simulation.sites or folder / "sites", simulation.seed, report)
    _refuse_unknown_findings(simulation.source, study)
    provide_initial_parameters(study, folder / PARAMETERS_FILE, given, simulation.seed, report)
    _, initial, metadata = read_study_folder(folder)
    shared = shared_parameters(study, initial, metadata)
    ends: list[tuple[Checkpoint, dict[str, str]]] = []

    def federate(grid: Grid) -> None:
        names, left_out = _cohort(study, grid, sites, report)

        def on_round(record: Round) -> None:
            value = record.validation_metric
            note = "" if value is None else f"{study.metric.replace('_', ' ')} {value:.3f}"
            report("Training", record.round_number, study.federation.rounds, note)

        report("Training", 0, study.federation.rounds)
        ends.append((run_study(study, grid, names, shared, RunFolder(folder, simulation.resume), on_round), left_out))

    _with_grid(simulation, folder, sites, federate)
    checkpoint, left_out = ends[0]
    run = Run(
        folder=folder,
        site_folders=tuple(sites),
        left_out=left_out,
        checkpoint=checkpoint,
        seed=simulation.seed,
        workers=simulation.workers,
        started_at=facts.started_at,
        phantoms=simulation.phantoms,
        baselines=simulation.baselines,
    )
    write_results(run, report)
    return folder


def _with_grid(simulation: Simulation, folder: Path, sites: list[Path], federate: Callable[[Grid], None]) -> None:
    if simulation.engine == "flower":
        run_with_flower(folder, sites, simulation.seed, simulation.workers, federate)
        return
    with WorkerPool(folder, sites, simulation.seed, min(simulation.workers, len(sites))) as pool:
        federate(InProcessGrid(pool, len(sites)))


def _cohort(study: Study, grid: Grid, sites: list[Path], report: Report) -> tuple[dict[int, str], dict[str, str]]:
    """Return the names of the sites that can train, by node id, and why the others cannot."""
    report("Preparing images", 0, len(sites))
    described, failed = describe_sites(study, grid, lambda done: report("Preparing images", done, len(sites)))
    folders = {folder.name: folder for folder in sites}
    unusable = [reply.site for reply in described.values() if not reply.can_train]
    left_out = {site: _why_unusable(folders[site], study) for site in unusable}
    # A site that cannot say its name can still be told by its place: nodes of the pool count from 1.
    left_out |= {sites[node - 1].name if node <= len(sites) else f"node {node}": why for node, why in failed.items()}
    names = {node: reply.site for node, reply in described.items() if reply.site not in left_out}
    if len(names) < study.federation.minimum_sites:
        reasons = " ".join(f"{site}: {why}" for site, why in sorted(left_out.items()))
        raise SitesError(
            f"The study needs {study.federation.minimum_sites} sites; {len(names)} can train. {reasons}".rstrip(),
            "Check --data and how the sites are split, or lower federation.minimum_sites and minimum_replies.",
        )
    return names, left_out


def _why_unusable(folder: Path, study: Study) -> str:
    found = open_site(folder).check(study)
    if study.is_private and found.patients["training"]:
        minimum = study.evaluation.minimum_patients
        return f"It has {found.patients['training']} training patients; a private study takes {minimum} or more."
    reasons = sorted(found.quarantined.items(), key=lambda item: -item[1])[:3]
    reasons += [(f"label '{label}'", count) for label, count in found.unknown_labels.items()][:3]
    counts = "; ".join(f"{reason}: {count} images" for reason, count in reasons)
    columns = f"; missing columns: {', '.join(found.missing_columns)}" if found.missing_columns else ""
    return "It has no usable training patient" + (f" ({counts}{columns})." if counts or columns else ".")


def _refuse_unknown_findings(source: DataSource, study: Study) -> None:
    unknown = source.columns.findings.keys() - set(study.task.labels)
    if unknown:
        raise SitesError(
            f"The study has no finding '{min(unknown)}'.",
            f"A column is file, patient, exam, mask, label or one of: {', '.join(study.task.labels)}.",
        )


def _prepare_folder(simulation: Simulation, study: Study, folder: Path) -> _RunFacts:
    path = folder / RUN_FILE
    for part in folder.glob("*.part"):
        part.unlink()  # left by a process that was killed while it wrote
    now = _RunFacts(
        study_hash=study.hash,
        data=simulation.source.fingerprint,
        seed=simulation.seed,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    facts = _facts_before(path, now, simulation.resume) or now
    if facts is now:
        (folder / PARAMETERS_FILE).unlink(missing_ok=True)
        write_atomically(path, now.model_dump_json().encode())
    write_atomically(folder / STUDY_FILE, simulation.study.read_bytes())
    return facts


def _facts_before(path: Path, now: _RunFacts, resume: bool) -> _RunFacts | None:
    """Return the facts of the run to go on with, or None to start anew; a run without a checkpoint may be replaced."""
    folder = path.parent
    if not path.exists():
        if any(one.name not in (LOCK_FILE, f"{RUN_FILE}.part") for one in folder.iterdir()):
            raise RunError(f"{folder} holds something else than a run.", "Use another --out; nothing was changed.")
        return None
    try:
        before = _RunFacts.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{path} is damaged.", "Use another --out folder.") from error
    if not resume and not (folder / CHECKPOINT_FILE).exists():
        return None
    if not resume:
        raise RunError(f"{folder} holds a run.", "Go on with --resume, or use another --out folder.")
    if before.model_copy(update={"started_at": now.started_at}) != now:
        raise RunError(f"{folder} holds another run: another study, data or seed.", "Use another --out folder.")
    return before


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second run out of the folder while this one is at work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise RunError(f"{folder} cannot be used: {error.strerror}.", "Use another --out folder.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"Another process is running in {folder}.", "Wait for it, or use another --out.") from error
        yield


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40] or "study"
