"""The demonstration with real processes: a coordinator and its hospitals, each in a folder of its own, over TLS on loopback."""

import os
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from echofed.client.settings import SiteSettings
from echofed.client.site import create_site
from echofed.protocol.errors import RunError
from echofed.protocol.study_file import load_study
from echofed.server.studies import study_folder
from echofed.server.study_status import StudyStatus
from echofed.simulations.demo import STUDY_FILE, ingest_phantoms
from echofed.simulations.initial import initialise_study
from echofed.simulations.local_consortium import LocalConsortium, free_address
from echofed.simulations.phantoms import default_sites
from echofed.simulations.progress import Report

MARKER = "consortium"
READY_SECONDS = 120.0
STUDY_SECONDS = 1800.0
ENDED = ("finished", "failed", "stopped")
View = Callable[[LocalConsortium, str, StudyStatus | None], None]


def run_real_demo(out: Path, sites: int, patients: int, rounds: int, seed: int, report: Report, view: View) -> Path:
    """Run the demonstration's study over real processes, all of which end with it, and return the study's folder.

    Args:
        out: holds the phantoms and every party's folder; an earlier demonstration in it is removed.
        sites: number of hospitals.
        patients: patients of an average hospital.
        rounds: of the study.
        seed: of phantoms and initial parameters; the noise is the operating system's.
        report: told how far the preparation is.
        view: told again and again how the study fares.

    Raises:
        RunError: `out` holds something else, or the study does not get to its end.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_dir():
        raise RunError(f"{out} holds something else than a demo.", "Use another --out folder; nothing was removed.")
    shutil.rmtree(out, ignore_errors=True)
    (out / MARKER).mkdir(parents=True)
    consortium = _prepare(out, sites, patients, seed, report)
    study = out / "study.yaml"
    text = (files("echofed.simulations.studies") / STUDY_FILE).read_text(encoding="utf-8")
    study.write_text(text.replace("rounds: 40", f"rounds: {rounds}"), encoding="utf-8")
    parameters = initialise_study(study, seed, None, report)
    with consortium.running():
        consortium.await_gateway(READY_SECONDS)
        study_hash = consortium.publish(study, parameters)
        consortium.approve(study_hash, person="Dr Example", report=report)
        consortium.run(study_hash)
        consortium.wait(
            study_hash,
            lambda status: status.state in ENDED,
            STUDY_SECONDS,
            lambda status: view(consortium, study_hash, status),
        )
    return study_folder(consortium.coordinator, load_study(study).hash)


def _prepare(out: Path, sites: int, patients: int, seed: int, report: Report) -> LocalConsortium:
    ingested = ingest_phantoms(out, default_sites(sites, patients), os.cpu_count() or 1, seed, report)
    names = sorted(path.name for path in ingested.iterdir() if path.is_dir())
    states = {name: out / MARKER / "sites" / name for name in names}
    consortium = LocalConsortium(out / MARKER, states, free_address())
    consortium.enrol(report)
    for number, name in enumerate(names, start=1):
        settings = SiteSettings(name=name, data_folder=(ingested / name).absolute())
        create_site(states[name], settings).register()
        report("Registering images", number, len(names))
    return consortium
