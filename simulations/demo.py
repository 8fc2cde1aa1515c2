"""The demonstration: phantoms for a few hospitals, a private study, its report."""

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from echofed.client.settings import Columns
from echofed.protocol.errors import RunError
from echofed.simulations.phantoms import default_sites, write_phantom_sites
from echofed.simulations.progress import Report, silent
from echofed.simulations.run import RUN_FILE, Simulation, simulate_study
from echofed.simulations.sites import DataSource

STUDY_FILE = "phantom_malignancy.yaml"
IMAGE_SIDE_PX = 160
PHANTOM_COLUMNS = Columns(exam="exam_id")


def run_demo(out: Path, sites: int, patients: int, workers: int, seed: int, report: Report = silent) -> Path:
    """Draw phantoms, train on them with patient-level privacy and return the folder of the run.

    Args:
        out: holds the phantoms and the run; an earlier demo in it is removed.
        sites: number of hospitals.
        patients: patients of an average hospital.
        workers: processes at work at the same time.
        seed: of phantoms, splits, sampling and noise.
        report: told how far the work is.

    Raises:
        RunError: `out` holds something else than an earlier demo.
    """
    run, phantoms = out / "run", out / "phantoms"
    if out.exists() and any(out.iterdir()) and not (phantoms.is_dir() or (run / RUN_FILE).exists()):
        raise RunError(f"{out} holds something else than a demo.", "Use another --out folder; nothing was removed.")
    for folder in (run, phantoms):
        shutil.rmtree(folder, ignore_errors=True)
    write_phantom_sites(
        phantoms,
        default_sites(sites, patients),
        seed,
        (IMAGE_SIDE_PX, IMAGE_SIDE_PX),
        lambda done, total: report("Drawing phantoms", done, total),
    )
    with as_file(files("echofed.simulations.studies") / STUDY_FILE) as study:
        return simulate_study(
            Simulation(
                study=study,
                source=DataSource(phantoms, columns=PHANTOM_COLUMNS),
                out=run,
                seed=seed,
                workers=workers,
                phantoms=True,
            ),
            report,
        )
