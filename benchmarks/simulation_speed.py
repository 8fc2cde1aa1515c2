"""What a simulated round costs: EchoFed against the bare process pool, Flower's engine (Ray) and pfl-research.

100 virtual sites, a small residual network on 28 px. W1 asks ten sites for one pass over 100 images in batches of about ten;
W2 asks every site for one batch of ten. All engines train with the same function on the same patients, use the same number of
cores, and end with the same parameters, which is checked (Flower's own FedAvg draws its cohort by chance and is left out).
Rounds are taken in turn, an engine at rest is halted, and times are medians. On a busy machine trust the CPU time, of all
an engine's processes: waiting for a core then hides what an engine wastes.

    python -m benchmarks.simulation_speed [--quick]
"""

import argparse
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from benchmarks.simulation_engines import ENGINES, ROUNDS, SEED, flat
from echofed.client.settings import SiteSettings
from echofed.client.site import create_site
from echofed.protocol.study import Study
from echofed.protocol.study_folder import PARAMETERS_FILE, STUDY_FILE, read_study_folder
from echofed.simulations.initial import write_initial_parameters
from echofed.simulations.pool import WORKER_ENVIRONMENT

SIDE_PX = 28
SITES = 100
FLOOR, OURS = "bare process pool", "EchoFed"
FLOWER = ("EchoFed on Flower's engine", "Flower, stock FedAvg")
TARGET_TO_FLOOR = 1.1
STOP_SECONDS = 60.0
MINIMUM_ROUNDS = 3
TOLERANCE = 1e-3
"""How far engines may end apart, by rounding alone, as a part of the way from the first parameters."""
MEMORY = {name: value for name, value in WORKER_ENVIRONMENT.items() if name.startswith("MALLOC")}
"""EchoFed gives it to its workers; here every engine has it."""
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Workload:
    """Sites asked each round, what each brings and does, and the speed over Flower that is claimed."""

    name: str
    cohort: int
    patients: int
    sampling_probability: float
    steps: int
    target_to_flower: float


WORKLOADS = (
    Workload("W1: 10 sites, 100 images", 10, 100, 0.1, 10, 2.0),
    Workload("W2: 100 sites, one batch", 100, 10, 1.0, 1, 7.0),
)


class Engine:
    """One engine in a process of its own, its rounds started from here; use it as a context."""

    def __init__(self, name: str, workload: Workload, folder: Path, processes: int) -> None:
        self.name, self.seconds, self.cpu_seconds = name, list[float](), list[float]()
        self.result, self._log = folder / f"{name}.npy", folder / f"{name}.log"
        told = {"engine": name, "folder": str(folder), "cohort": workload.cohort, "processes": processes}
        code = "from benchmarks.simulation_engines import main; main()"
        root = str(Path(__file__).parents[1])
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps({**told, "result": str(self.result)})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            env={**os.environ, **QUIET, **MEMORY, "PYTHONPATH": root},
            cwd=root,
        )
        self._wait_and_halt()
        self.start_seconds = time.perf_counter() - begin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run_round(self) -> None:
        """Time one more round."""
        assert self._process.stdin is not None
        before = _cpu_seconds(self._process.pid)
        self._process.send_signal(signal.SIGCONT)
        begin = time.perf_counter()
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()
        self._wait_and_halt()
        self.seconds.append(time.perf_counter() - begin)
        self.cpu_seconds.append(_cpu_seconds(self._process.pid) - before)

    def _wait_and_halt(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self._process.wait()
            raise RuntimeError(f"{self.name} ended: {self._log.read_text()[-2000:]}")
        # Flower looks for messages ten times a second even when there are none.
        self._process.send_signal(signal.SIGSTOP)


def _cpu_seconds(root: int) -> float:
    """Return the CPU time of a process and all that descend from it."""
    parents, seconds = dict[int, int](), dict[int, float]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        process = int(path.parent.name)
        parents[process] = int(fields[1])
        seconds[process] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descends(process: int) -> bool:
        return process == root or (process in parents and descends(parents[process]))

    return sum(seconds[process] for process in parents if descends(process))


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Time both workloads and return one row for each engine: workload, engine, round, CPU and start seconds, ratios.

    Args:
        quick: rounds for 12 seconds a workload in place of 70; three rounds at least.
    """
    processes = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        return [
            row
            for number, workload in enumerate(WORKLOADS)
            for row in _time_workload(workload, Path(folder) / str(number), processes, 12.0 if quick else 70.0)
        ]


def _time_workload(workload: Workload, folder: Path, processes: int, seconds: float) -> list[dict[str, Any]]:
    parameters = _prepare(workload, folder)
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine(name, workload, folder, processes)) for name in ENGINES]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or len(engines[0].seconds) <= MINIMUM_ROUNDS:
            for engine in engines:
                engine.run_round()
    _check_equal(engines, folder)
    # The second round still fills caches: the sites of the first may have been trained by the other process.
    medians = {engine.name: statistics.median(engine.seconds[1:]) for engine in engines}
    means = {engine.name: statistics.mean(engine.cpu_seconds[1:]) for engine in engines}
    return [
        {
            "workload": workload.name,
            "parameters": parameters,
            "engine": engine.name,
            "processes": processes,
            "seconds": medians[engine.name],
            "ratio": medians[engine.name] / medians[FLOOR],
            "speed_of_echofed": medians[engine.name] / medians[OURS],
            "cpu_seconds": means[engine.name],
            "cpu_ratio": means[engine.name] / means[FLOOR],
            "rounds": len(engine.seconds) - 1,
            "start_seconds": engine.start_seconds,
            "targets": {"to_floor": TARGET_TO_FLOOR, "to_flower": workload.target_to_flower},
        }
        for engine in engines
    ]


def _check_equal(engines: list[Engine], folder: Path) -> None:
    study, initial, _ = read_study_folder(folder)
    start = flat(study, initial)
    ends = {engine.name: np.load(engine.result) for engine in engines if engine.result.exists()}
    way = np.linalg.norm(ends[FLOOR] - start)
    for name, parameters in ends.items():
        apart = np.linalg.norm(parameters - ends[FLOOR]) / way
        if not apart < TOLERANCE:
            raise RuntimeError(f"{name} does other work than the bare pool: it ends {apart:.2%} of the way apart.")


def _prepare(workload: Workload, folder: Path) -> int:
    """Write the study, its initial parameters and the sites; return the number of parameters."""
    study = _study(workload)
    (folder / "sites").mkdir(parents=True)
    (folder / STUDY_FILE).write_text(study.model_dump_json(exclude_none=True), encoding="utf-8")
    write_initial_parameters(study, folder / PARAMETERS_FILE, SEED)
    rng = np.random.default_rng(SEED)
    for number in range(SITES):
        name = f"site-{number:03d}"
        # Sites that are never asked bring little, so that registering them is quick.
        data = _write_images(folder / "data" / name, workload.patients if number < workload.cohort else 2, rng)
        settings = SiteSettings(name=name, data_folder=data, minimum_image_side_px=SIDE_PX)
        site = create_site(folder / "sites" / name, settings, split_key=bytes(32))
        site.register()
        site.examples(study, "training")  # decodes the images, once for all engines
    with (folder / PARAMETERS_FILE).open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(int(np.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")


def _write_images(folder: Path, patients: int, rng: np.random.Generator) -> Path:
    """Write one image of noise for each patient, and their index."""
    folder.mkdir(parents=True)
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "patient_id", "label"])
        for patient in range(patients):
            pixels = rng.integers(256, size=(SIDE_PX, SIDE_PX), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{patient}.png")
            writer.writerow([f"{patient}.png", patient, "malignant" if patient % 2 else "benign"])
    return folder


def _study(workload: Workload) -> Study:
    return Study.model_validate(
        {
            "schema_version": 1,
            "title": "Speed of a simulated round",
            "purpose": "benchmark",
            "contact": "benchmark",
            "task": {"kind": "binary", "labels": ("benign", "malignant")},
            "preprocessing": {"image_size_px": SIDE_PX},
            "model": {"name": "small_resnet", "width": 16, "blocks": 1},
            "training": {
                "learning_rate": 0.01,
                "local_steps": workload.steps,
                "sampling_probability": workload.sampling_probability,
            },
            "privacy": {"unit": "none"},
            "federation": {
                "rounds": ROUNDS,
                "minimum_sites": workload.cohort,
                "minimum_replies": workload.cohort,
                "retries": 0,
            },
            "evaluation": {"validation_fraction": 0.0, "test_fraction": 0.0, "every_rounds": ROUNDS},
        }
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    rows = run(parser.parse_args().quick)
    print(f"{'':58}{'ms a round':>12}{'to bare':>9}{'to EchoFed':>12}{'CPU ms':>9}{'to bare':>9}{'start s':>9}")
    for row in rows:
        print(
            f"{row['workload']:28}{row['engine']:30}{1e3 * row['seconds']:12.0f}{row['ratio']:9.2f}"
            f"{row['speed_of_echofed']:12.2f}{1e3 * row['cpu_seconds']:9.0f}{row['cpu_ratio']:9.2f}"
            f"{row['start_seconds']:9.1f}"
        )
    rounds = ", ".join(str(count) for count in dict.fromkeys(row["rounds"] for row in rows))
    print(f"{rows[0]['parameters']} parameters, {rows[0]['processes']} processes, {rounds} rounds timed.")
    print("Start: from nothing to the end of the first round, with the sites registered.")
    print(
        f"Targets: EchoFed at most {TARGET_TO_FLOOR} times the bare pool; Flower's engine at least 2 (W1) and 7 (W2)."
    )


if __name__ == "__main__":
    main()
