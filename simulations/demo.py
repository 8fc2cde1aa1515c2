"""The demonstration: DICOM exports of a few hospitals, ingested by each, a private study, its report."""

import hmac
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.resources import as_file, files
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

from echofed.client.ingest.labels import LabelSettings, LabelTable
from echofed.client.ingest.pipeline import IngestReport, ingest_folder
from echofed.client.ingest.pseudonyms import KEY_FILE
from echofed.client.ingest.settings import FrameRule, IngestSettings
from echofed.protocol.errors import RunError
from echofed.protocol.key_files import write_private_file
from echofed.simulations.phantoms import PhantomSite, default_sites
from echofed.simulations.phantoms.dicom_files import write_dicom_site
from echofed.simulations.phantoms.dicom_shots import Clips
from echofed.simulations.phantoms.dicom_truth import Faults
from echofed.simulations.phantoms.lesions import Label
from echofed.simulations.progress import Report, silent
from echofed.simulations.run import RUN_FILE, Simulation, simulate_study
from echofed.simulations.sites import DataSource

STUDY_FILE = "phantom_malignancy.yaml"
IMAGE_SIDE_PX = 160
INGESTED = "hospitals"
CLIPS = Clips(share=0.1, frames=(6, 6))
# A little of what real exports hold, so that the demonstration shows what becomes of it; few pictures are lost by it.
FAULTS = Faults(
    calipers=0.04,
    words=0.02,
    names=0.01,
    repeated=0.01,
    regions_missing=0.02,
    regions_beyond=0.01,
    reports=0.05,
    no_tissue=1,
    documents=1,
    other_modality=1,
    damaged=1,
    not_dicom=1,
    no_patient=1,
)


def run_demo(out: Path, sites: int, patients: int, workers: int, seed: int, report: Report = silent) -> Path:
    """Ingest each hospital's phantoms, train on them with patient-level privacy and return the folder of the run.

    Args:
        out: holds the exports, what was ingested and the run; an earlier demo in it is removed.
        sites: number of hospitals.
        patients: patients of an average hospital.
        workers: processes at work at the same time.
        seed: of phantoms, splits, sampling and noise.
        report: told how far the work is.

    Raises:
        RunError: `out` holds something else than an earlier demo.
    """
    run, exports = out / "run", out / "exports"
    if out.exists() and any(out.iterdir()) and not (exports.is_dir() or (run / RUN_FILE).exists()):
        raise RunError(f"{out} holds something else than a demo.", "Use another --out folder; nothing was removed.")
    for folder in (run, exports, out / INGESTED):
        shutil.rmtree(folder, ignore_errors=True)
    ingested = ingest_phantoms(out, default_sites(sites, patients), workers, seed, report)
    with as_file(files("echofed.simulations.studies") / STUDY_FILE) as study:
        return simulate_study(
            Simulation(
                study=study,
                source=DataSource(ingested),
                out=run,
                seed=seed,
                workers=workers,
                phantoms=True,
            ),
            report,
        )


def ingest_phantoms(out: Path, hospitals: list[PhantomSite], workers: int, seed: int, report: Report = silent) -> Path:
    """Write each hospital's DICOM export, have each ingest its own, and return the folder of what they ingested.

    Args:
        out: gets `exports/NAME` and `hospitals/NAME`, the latter with an index to register.
        hospitals: what to draw.
        workers: processes at work at the same time.
        seed: of the phantoms.
        report: told how far the work is.
    """
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        # Big ones first, so that no process is left with one at the end.
        places = sorted(range(len(hospitals)), key=lambda place: -hospitals[place].patients)
        drawn = [pool.submit(_export, out / "exports", hospitals[place], place, seed) for place in places]
        for number, future in enumerate(as_completed(drawn), start=1):
            future.result()
            report("Drawing phantoms", number, len(hospitals))
    for number, hospital in enumerate(hospitals):
        report("Ingesting DICOM", number, len(hospitals))
        folder = out / INGESTED / hospital.name
        _fix_pseudonyms(folder, f"{seed}/{hospital.name}")
        _ingest(folder, out / "exports" / hospital.name, workers)
    report("Ingesting DICOM", len(hospitals), len(hospitals))
    return out / INGESTED


def _export(exports: Path, hospital: PhantomSite, place: int, seed: int) -> None:
    sides = (IMAGE_SIDE_PX, IMAGE_SIDE_PX)
    write_dicom_site(exports / hospital.name, hospital, seed, FAULTS, place=place, image_size_px=sides, clips=CLIPS)


def _ingest(folder: Path, exported: Path, workers: int) -> IngestReport:
    named = {label: label for label in get_args(Label)}
    labels = LabelTable(file=(exported / "labels.csv").absolute(), accession="accession_number", labels=named)
    settings = IngestSettings(
        text_check="strokes",
        frames=FrameRule(rule="every", step=6, most=1),
        labels=LabelSettings(tables=(labels,)),
        workers=workers,
    )
    return ingest_folder(folder, exported / "export", settings)


def _fix_pseudonyms(folder: Path, text: str) -> None:
    """Give an ingest a key that follows from the seed, so that a demonstration splits its patients the same way each time."""
    folder.mkdir(mode=0o700, parents=True)
    key = hmac.digest(b"echofed demo pseudonyms", text.encode(), "sha256")
    write_private_file(folder / KEY_FILE, key.hex().encode() + b"\n")
