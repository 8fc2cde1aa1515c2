"""What is left of secrets planted in DICOM files: EchoFed's header and copy beside dicom-anonymizer, dicognito and deid.

All get the same files and are left at their defaults; whatever they write is searched for the bytes of every secret. A secret
counts as removed if it is in nothing that was written; files a tool refuses are named, since refusing removes everything. The
other tools are run by a Python of their own, since they are no part of EchoFed:

    python3 -m venv peers && peers/bin/pip install dicom-anonymizer dicognito deid
    ECHOFED_DEID_PYTHON=peers/bin/python python -m benchmarks.deidentification
"""

import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from pydicom import dcmread

from echofed.client.ingest.header import read_header
from echofed.client.ingest.kept_dicom import deidentified_copy
from echofed.client.ingest.leak_places import Place
from echofed.client.ingest.leaks import Search
from echofed.client.ingest.pseudonyms import Pseudonyms
from echofed.client.ingest.spellings import date_spellings, name_spellings
from tests.client.ingest.planted_secrets import PlantedFile, left_in, planted_files

PEERS_PYTHON = "ECHOFED_DEID_PYTHON"
_TIMEOUT_SECONDS = 300
_EACH = """
import logging, pathlib, sys, warnings
warnings.simplefilter("ignore")
logging.disable()
source, target = (pathlib.Path(folder) for folder in sys.argv[1:])
for path in sorted(source.iterdir()):
    try:
        one(path, target / path.name)
    except Exception as error:
        (target / path.name).unlink(missing_ok=True)
        print(f"{path.name}: {type(error).__name__}", file=sys.stderr)
"""
PEERS = {
    "dicom-anonymizer": """
from dicomanonymizer import anonymize_dicom_file
def one(source, target):
    anonymize_dicom_file(str(source), str(target))
"""
    + _EACH,
    "dicognito": """
import pydicom
from dicognito.anonymizer import Anonymizer
anonymizer = Anonymizer()
def one(source, target):
    with pydicom.dcmread(source, force=True) as dataset:
        anonymizer.anonymize(dataset)
        dataset.save_as(target)
"""
    + _EACH,
    "deid": """
from deid.config import DeidRecipe
from deid.dicom import replace_identifiers
recipe = DeidRecipe()
def one(source, target):
    cleaned = replace_identifiers(dicom_files=[str(source)], deid=recipe, save=False, force=True)
    cleaned[0].save_as(target)
"""
    + _EACH,
}
"""Name of the package -> the program that runs it over a folder."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What one tool left.

    Args:
        name: of the tool, with its version.
        left: secrets left, by sort of place.
        refused: files it wrote nothing for.
    """

    name: str
    left: Counter[str]
    refused: tuple[str, ...]


def echofed_header(file: PlantedFile) -> bytes:
    """Return all that EchoFed keeps of a header, as JSON."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = read_header(dcmread(io.BytesIO(file.content), force=True), Pseudonyms(bytes(32)), "band")
    return json.dumps(dataclasses.asdict(header), ensure_ascii=False).encode()


def echofed_copy(file: PlantedFile) -> bytes:
    """Return EchoFed's de-identified copy."""
    pseudonyms = Pseudonyms(bytes(32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = dcmread(io.BytesIO(file.content), force=True)
        header = read_header(source, pseudonyms, "band")
        return deidentified_copy(source, np.zeros((1, 16, 16), np.uint8), header, pseudonyms)


def measure_own(name: str, keep: Callable[[PlantedFile], bytes], files: tuple[PlantedFile, ...]) -> Result:
    """Return what is left by a part of EchoFed; reports and documents too, though an ingest refuses them before."""
    left = Counter(secret.place for file in files for secret in left_in(keep(file), file.secrets))
    return Result(name, left, ())


def measure_peer(name: str, python: str, files: tuple[PlantedFile, ...], folder: Path) -> Result | str:
    """Return what another tool left, or why it could not be run."""
    source, target = folder / "planted", folder / name
    source.mkdir(exist_ok=True)
    target.mkdir()
    for file in files:
        (source / file.name).write_bytes(file.content)
    version = f"import importlib.metadata as m; print(m.version({name!r}))"
    try:
        asked = subprocess.run([python, "-c", version], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{name} is left out: {python} cannot be run ({error.strerror})."
    if asked.returncode:
        return f"{name} is not installed there; run: {python} -m pip install {name}"
    command = [python, "-c", PEERS[name], str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS)
    if done.returncode:
        return f"{name} failed: {done.stderr.strip().splitlines()[-1]}"
    written = {path.name: path.read_bytes() for path in target.iterdir()}
    left = Counter(secret.place for file in files for secret in left_in(written.get(file.name, b""), file.secrets))
    return Result(
        f"{name} {asked.stdout.strip()}", left, tuple(file.name for file in files if file.name not in written)
    )


def print_results(results: list[Result], files: tuple[PlantedFile, ...]) -> None:
    """Print removed of total for each tool, over all and by sort of place."""
    total = Counter(secret.place for file in files for secret in file.secrets)
    rows = {place: ([each for each in total if _sort_of(each) == place]) for place in map(_sort_of, total)}
    rows["all"] = list(total)
    print(f"{total.total()} secrets in {len(files)} files; removed of total\n")
    width = max(map(len, rows)) + 2
    print(" " * width + "".join(f"{result.name:>24}" for result in results))
    for row, places in rows.items():
        planted = sum(total[place] for place in places)
        removed = [planted - sum(result.left[place] for place in places) for result in results]
        print(f"{row:<{width}}" + "".join(f"{f'{number}/{planted}':>24}" for number in removed))
    for result in results:
        if result.refused:
            print(f"{result.name} wrote nothing for: {', '.join(result.refused)}")


def _sort_of(place: str) -> str:
    """Value representations in one row, character sets in another."""
    return "character sets" if place.startswith("character set") else place.removesuffix(", implicit VR").split(", ")[0]


def print_search() -> None:
    """Print how fast ten thousand texts are searched for in random pixels and in index rows, and how many are found there."""
    generator = np.random.default_rng(1)
    texts: set[str] = set()
    while len(texts) < 10_000:
        name, day = generator.bytes(8).hex(), date(1930, 1, 1) + timedelta(days=int(generator.integers(30_000)))
        texts |= (
            name_spellings(f"A{name[:7]}^B{name[7:]}") | date_spellings(day) | {str(generator.integers(10**6, 10**9))}
        )
    search = Search(texts)
    row = '{"exam": "%s", "mean": %.6f}\n'
    rows = "".join(row % (generator.bytes(10).hex(), generator.random()) for _ in range(100_000)).encode()
    places: tuple[tuple[str, bytes, Place], ...] = (
        ("random pixels", generator.bytes(2**28), "pixels"),
        ("index rows", rows, "text"),
    )
    for name, content, place in places:
        began = time.process_time()
        found = len(list(search.find(content, place)))
        speed = len(content) / 1e6 / (time.process_time() - began)
        print(
            f"{len(texts)} texts in {len(content) / 1e6:.0f} MB of {name}: {speed:.0f} MB per CPU second, {found} found by chance"
        )


def main() -> None:
    """Run all that can be run; fails if EchoFed leaves anything."""
    files = planted_files()
    results = [measure_own("EchoFed header", echofed_header, files), measure_own("EchoFed copy", echofed_copy, files)]
    python = os.environ.get(PEERS_PYTHON)
    if python is None:
        print(f"The other tools are left out: {PEERS_PYTHON} names no Python that has them, see `{__spec__.name}`.\n")
    else:
        with tempfile.TemporaryDirectory() as folder:
            for name in PEERS:
                measured = measure_peer(name, python, files, Path(folder))
                if isinstance(measured, str):
                    print(measured)
                else:
                    results.append(measured)
    print_results(results, files)
    print()
    print_search()
    if any(result.left for result in results[:2]):
        sys.exit("EchoFed left a secret.")


if __name__ == "__main__":
    main()
