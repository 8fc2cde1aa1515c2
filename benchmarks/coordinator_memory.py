"""The coordinator's peak memory over two rounds, above what it holds at rest, against the model's size; the limit is four.

Each case is a process of its own. Replies come from a file, one at a time, as between real machines; initial parameters are
mapped, rounds are evaluated, and the best model is kept beside the last.

    python -m benchmarks.coordinator_memory [--quick]
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from echofed.protocol.arrays import BLOCK, decode_parameters, write_parameters
from echofed.protocol.document import Document
from echofed.protocol.flower_records import buffer_of, buffer_record, content, read_document
from echofed.protocol.mapped_files import map_file
from echofed.protocol.messages import EvaluateReply, ExactFigures, Instruction, TrainReply
from echofed.protocol.study import Study
from echofed.server.rounds import RunFolder, run_study
from echofed.simulations.identity import declare_task

LIMIT = 4.0
MEGABYTES = 100
SITES = (5, 20)
PRESETS = ("FedAvg", "FedAvgM", "FedAdam")
ROUNDS = 2
INITIAL, UPDATE = "initial.safetensors", "update.safetensors"


class FileGrid(Grid):
    """A grid that writes the model it is to send into a file, and reads every site's update from another."""

    def __init__(self, sites: int, update: Path, published: Path) -> None:
        declare_task()
        self._sites, self._update, self._published = sites, update, published
        self._waiting: dict[str, Message] = {}
        self._asked = 0
        self._run = Run.create_empty(1)

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of all sites."""
        return range(1, self._sites + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Publish the model and keep the instructions without it."""
        keys = []
        for message in messages:
            if not keys:
                self._published.write_bytes(buffer_of(message.content))
            self._asked += 1
            key = str(self._asked)
            message.metadata.__dict__["_message_id"] = key
            self._waiting[key] = message
            keys.append(key)
        for key in keys:
            instruction = read_document(self._waiting[key].content, Instruction)
            self._waiting[key].content = content(instruction)
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield one reply after the other."""
        for key in sorted(message_ids, key=int):
            yield self._reply(self._waiting.pop(key))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return all replies."""
        return list(self.pull_messages(self.push_messages(messages)))

    def _reply(self, message: Message) -> Message:
        asked, node = read_document(message.content, Instruction), message.metadata.dst_node_id
        addressed = {"site": f"site-{node}", "study_hash": asked.study_hash, "round_number": asked.round_number}
        reply: Document
        if asked.kind == "evaluate":
            figures = ExactFigures(patients=4, loss=1.0, metric=1.0 / asked.round_number)
            reply = EvaluateReply.model_validate({**addressed, "exact": figures})
            return Message(content(reply), reply_to=message)
        told = {"patients": 5 * node, "training_loss": 1.0, "spent": None, "seconds": 1.0}
        reply = TrainReply.model_validate({**addressed, **told})
        return Message(content(reply, buffer_record(self._update.read_bytes())), reply_to=message)


def measure(folder: Path, sites: int, preset: str) -> int:
    """Run rounds in this process and return the peak of its memory above that at rest, in bytes."""
    _rounds(folder / "small", sites, preset)  # what is loaded on first use is no part of a round
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    idle = _status("VmRSS")
    _rounds(folder / "large", sites, preset)
    return _status("VmHWM") - idle


def write_files(folder: Path, megabytes: int) -> int:
    """Write initial parameters and an update, as of a convolutional network with a large last layer; return a file's bytes."""
    folder.mkdir()
    numbers, rng = megabytes * 10**6 // 4, np.random.default_rng(0)
    shapes = {f"layer{index}.weight": (numbers // 16 // 9, 9) for index in range(8)}
    shapes |= {f"layer{index}.bias": (256,) for index in range(8)}
    shapes["head.weight"] = (numbers // 2, 1)
    block = rng.normal(0, 1e-3, BLOCK).astype(np.float32)
    arrays = {name: np.resize(block, shape) for name, shape in shapes.items()}
    for name in (INITIAL, UPDATE):
        with (folder / name).open("wb") as stream:
            write_parameters(stream.write, arrays)
    return (folder / INITIAL).stat().st_size


def _rounds(folder: Path, sites: int, preset: str) -> None:
    study, mapped = _study(preset, sites), map_file(folder / INITIAL)
    initial = decode_parameters(mapped, len(mapped))
    names = {node: f"site-{node}" for node in range(1, sites + 1)}
    grid = FileGrid(sites, folder / UPDATE, folder / "published")
    checkpoint = run_study(study, grid, names, initial, RunFolder(folder, resume=False))
    # The figures get worse, so that the best model is another than the last.
    if (checkpoint.round_number, checkpoint.best_round, len(checkpoint.replied)) != (ROUNDS, 1, sites):
        raise RuntimeError("the rounds did not end as they should")


def _study(preset: str, sites: int) -> Study:
    content: dict[str, Any] = {
        "schema_version": 1,
        "title": "Coordinator's memory",
        "purpose": "To measure.",
        "contact": "nobody",
        "task": {"kind": "binary", "labels": ("benign", "malignant")},
        "preprocessing": {"image_size_px": 32},
        "model": {"name": "small_resnet", "width": 8, "blocks": 1},
        "training": {"learning_rate": 0.1, "local_steps": 1, "sampling_probability": 0.5},
        "privacy": {"unit": "none"},
        "strategy": {"preset": preset, "weighting": "patients"},
        "federation": {"rounds": ROUNDS, "minimum_sites": sites, "minimum_replies": sites},
        "evaluation": {"minimum_patients": 1},
    }
    return Study.model_validate(content)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measured_apart(sites: int, megabytes: int, preset: str) -> float:
    """Return the peak of memory of a process of its own, in sizes of the model."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder, "small"), 1)
        size = write_files(Path(folder, "large"), megabytes)
        code = (
            "import sys; from pathlib import Path; from benchmarks.coordinator_memory import measure; "
            "print(measure(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))"
        )
        command = [sys.executable, "-c", code, folder, str(sites), preset]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout) / size


def main() -> None:
    """Measure every case and print it against the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="FedAvg only")
    presets = PRESETS[:1] if parser.parse_args().quick else PRESETS
    print(f"model of {MEGABYTES} MB; peak above the size at rest, in sizes of the model; limit {LIMIT:g}")
    for preset in presets:
        peaks = {sites: measured_apart(sites, MEGABYTES, preset) for sites in SITES}
        held = "kept" if max(peaks.values()) <= LIMIT else "NOT KEPT"
        print(f"{preset:8}", *(f"{sites:3} sites: {peak:.2f}" for sites, peak in peaks.items()), held, flush=True)


if __name__ == "__main__":
    main()
