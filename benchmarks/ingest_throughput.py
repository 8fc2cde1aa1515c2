"""A whole ingest beside raw transfer and raw decoding of the same files, in turn, in one run.

    python -m benchmarks.ingest_throughput [--quick] [--processes 2]

The files are an export of six vendors' phantoms (stills and clips of 20 to 30 frames, tissue of 480 to 600 px, all their transfer
syntaxes) and, where they are at hand (ECHOFED_DATA or ../shared/data), the real files of `dicom_us`, each several times with ids
of its own; they lie in a folder and, if this is root and Orthanc is installed, in a PACS. Raw transfer: the folder copied to the
same disk; DICOMweb and C-GET as in `ingest_sources`, thrown away. Raw decoding: every frame of every file by `decode_frames`,
kept nowhere, in as many processes as the ingest has. The ingest fetches into its spool, decodes, crops, cleans, stores, writes
its journal and searches all that it stored; the start of its processes counts, as does that of those that only decode. Without
text recognition it looks for strokes.
"""

import argparse
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import pydicom

from benchmarks.ingest_sources import CONCURRENCY, Place, raw_get, raw_web
from echofed.client.ingest.dataset import read_dataset
from echofed.client.ingest.decoding import decode_frames
from echofed.client.ingest.outcomes import SetAsideError
from echofed.client.ingest.pipeline import ingest
from echofed.client.ingest.recognition import is_installed
from echofed.client.ingest.settings import FrameRule, IngestSettings
from echofed.client.ingest.sources.politeness import Politeness
from echofed.client.ingest.sources.settings import DicomWebSource, DimseSource, FolderSource, Source
from echofed.simulations.phantoms import PhantomSite
from echofed.simulations.phantoms.dicom_files import write_dicom_site
from echofed.simulations.phantoms.dicom_shots import Clips
from echofed.simulations.phantoms.lesions import Label
from tests.client.ingest import orthanc
from tests.client.ingest.sources.samples import real_instances

VENDORS = ("aquila", "borealis", "corvus", "dorado", "eridanus", "fornax")
PROBES = ("linear", "convex")
IMAGE_SIZE_PX, CLIPS = (480, 600), Clips(share=0.5, frames=(20, 30))
PATIENTS, QUICK_PATIENTS = 6, 2
REAL_FILES, QUICK_REAL_FILES = 40, 10
REPEATS, QUICK_REPEATS = 5, 1
AIM = 0.8
DECODING, OCR = "raw decoding", "ingest of the folder with OCR"
RAW = {"DICOMweb": "raw DICOMweb", "C-GET": "raw C-GET", "folder": "raw copy"}
"""Part of an ingest's name -> its raw transfer."""
EVERY_TENTH, ALL = FrameRule(), FrameRule(rule="all", most=10_000)


@dataclass(frozen=True)
class Cost:
    """What one run took: seconds on the clock, CPU seconds of all its processes, and frames that were stored or decoded."""

    seconds: float
    cpu_seconds: float
    frames: int


def main() -> None:
    """Print seconds, rates and ratios, medians of the repeats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a third of the files, once")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    few, processes = options.quick, options.processes
    repeats = QUICK_REPEATS if few else REPEATS
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        export = folder / "export"
        write_export(export, QUICK_PATIENTS if few else PATIENTS, QUICK_REAL_FILES if few else REAL_FILES)
        files = sorted(path for path in export.rglob("*") if path.is_file())
        with_pacs = os.geteuid() == 0 and Path(orthanc.PROGRAM).is_file()
        if with_pacs:
            pacs = stack.enter_context(orthanc.running(folder))
            stack.enter_context(pacs.inside())
            pacs.upload(path.read_bytes() for path in files)
        costs = in_turn(all_ways(folder, export, files, processes, with_pacs), repeats)
        if is_installed():
            source = FolderSource(path=export)
            costs |= in_turn({OCR: lambda: ingested(folder, source, processes, "ocr", EVERY_TENTH)}, 1)
        megabytes = sum(path.stat().st_size for path in files) / 1e6
    held = costs[DECODING].frames
    print(f"{len(files)} files, {megabytes:.0f} MB, {held} frames, {processes} processes, medians of {repeats}\n")
    print_costs(costs, megabytes, held)


def all_ways(
    folder: Path, export: Path, files: list[Path], processes: int, with_pacs: bool
) -> dict[str, Callable[[], int]]:
    """Return what is measured, by name; each returns the frames it decoded or kept."""
    local = FolderSource(path=export)

    def without_ocr(source: Source, rule: FrameRule) -> Callable[[], int]:
        return lambda: ingested(folder, source, processes, "strokes", rule)

    ways: dict[str, Callable[[], int]] = {
        DECODING: lambda: decode_files(files, processes),
        "raw copy": lambda: copy_files(files, folder / "copy"),
        "ingest of the folder": without_ocr(local, EVERY_TENTH),
        "ingest of the folder, all frames": without_ocr(local, ALL),
    }
    if with_pacs:
        os.environ["ECHOFED_BENCHMARK_PASSWORD"] = orthanc.PASSWORD
        web = DicomWebSource(url=orthanc.URL, user=orthanc.USER, password_env="ECHOFED_BENCHMARK_PASSWORD")
        get = DimseSource(host="127.0.0.1", port=orthanc.DICOM_PORT, ae_title=orthanc.AE_TITLE)
        places = dict(place_of(path) for path in files)
        ways |= {
            "raw DICOMweb": lambda: raw_web(places) and 0,
            "raw C-GET": lambda: raw_get(places) and 0,
            "ingest by DICOMweb": without_ocr(web, EVERY_TENTH),
            "ingest by C-GET": without_ocr(get, EVERY_TENTH),
        }
    return ways


def write_export(export: Path, patients: int, real_files: int) -> None:
    """Write the files that are ingested."""
    shares: dict[Label, float] = {"normal": 0.2, "benign": 0.4, "malignant": 0.4}
    for place, vendor in enumerate(VENDORS):
        site = PhantomSite(vendor, vendor, patients, (2, 3), shares, PROBES[place % 2])
        written = write_dicom_site(
            export.parent / vendor, site, 1, place=place, image_size_px=IMAGE_SIZE_PX, clips=CLIPS
        )
        export.mkdir(exist_ok=True)
        written.export.rename(export / vendor)
    shared = Path(os.environ.get("ECHOFED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if (shared / "dicom_us").is_dir():
        (export / "real").mkdir()
        for uid, content in real_instances(shared, real_files).items():
            (export / "real" / f"{uid}.dcm").write_bytes(content)


def copy_files(files: list[Path], target: Path) -> int:
    """Copy all files and have them on disk."""
    target.mkdir()
    for number, path in enumerate(files):
        with path.open("rb") as source, (target / str(number)).open("wb") as copy:
            shutil.copyfileobj(source, copy, 2**20)
            copy.flush()
            os.fsync(copy.fileno())
    shutil.rmtree(target)
    return 0


def decode_files(files: list[Path], processes: int) -> int:
    """Decode all frames of all files and return how many those are."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return sum(pool.map(_decode, files))


def _decode(path: Path) -> int:
    try:
        return sum(1 for _ in decode_frames(read_dataset(path)))
    except SetAsideError:
        return 0


def place_of(path: Path) -> tuple[str, Place]:
    """Return a file's instance, and its study and series."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    return dataset.SOPInstanceUID, (dataset.StudyInstanceUID, dataset.SeriesInstanceUID)


def ingested(
    folder: Path, source: Source, processes: int, text_check: Literal["ocr", "strokes"], frames: FrameRule
) -> int:
    """Ingest into a fresh folder and return how many frames there are to train on."""
    target = folder / "ingested"
    politeness = Politeness(concurrency=CONCURRENCY, per_second=10_000.0)
    settings = IngestSettings(text_check=text_check, frames=frames, workers=processes, politeness=politeness)
    training_set = ingest(target, source, settings).training_set
    shutil.rmtree(target)
    return training_set.frames


def in_turn(ways: dict[str, Callable[[], int]], repeats: int) -> dict[str, Cost]:
    """Return what each way takes, medians, after going through them so many times."""
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            cpu, start = cpu_seconds(), time.perf_counter()
            frames = way()
            costs[name].append(Cost(time.perf_counter() - start, cpu_seconds() - cpu, frames))
    return {
        name: Cost(
            statistics.median(one.seconds for one in some),
            statistics.median(one.cpu_seconds for one in some),
            some[0].frames,
        )
        for name, some in costs.items()
    }


def cpu_seconds() -> float:
    """Return the CPU time of this process and of all that have ended under it."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def print_costs(costs: dict[str, Cost], megabytes: float, frames: int) -> None:
    """Print a table; each ingest's last cells compare it with the slower of its raw transfer and raw decoding."""
    print(
        "| | seconds | CPU seconds | MB/s | frames of the files a second | frames kept | of the slower | in CPU time |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, cost in costs.items():
        kept, ratio, cpu_ratio = "", "", ""
        if name.startswith("ingest"):
            raw = [costs[DECODING], costs[next(raw for part, raw in RAW.items() if part in name)]]
            kept, ratio = f"{cost.frames}", f"{max(one.seconds for one in raw) / cost.seconds:.2f}"
            cpu_ratio = f"{max(one.cpu_seconds for one in raw) / cost.cpu_seconds:.2f}"
        print(
            f"| {name} | {cost.seconds:.1f} | {cost.cpu_seconds:.1f} | {megabytes / cost.seconds:.1f} "
            f"| {frames / cost.seconds:.1f} | {kept} | {ratio} | {cpu_ratio} |"
        )
    print(f"\nAim: {AIM} of the slower, OCR aside.")


if __name__ == "__main__":
    main()
