"""A site process killed at random instants: no byte of an update is ever out without its spend on disk.

`make soak` kills 500 times; ECHOFED_KILLS says how often here.
"""

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.special  # noqa: F401 (once here, not in each of the site's processes)
from flwr.app import Context, Message, RecordDict

from echofed.client.flower import make_client_app
from echofed.client.ledger import read_ledger
from echofed.client.policy import load_policy
from echofed.protocol.flower_records import content, content_bytes, parameters_record
from echofed.protocol.messages import Instruction
from echofed.protocol.shared_layers import shared_parameters
from echofed.protocol.study import Study
from echofed.protocol.study_folder import PARAMETERS_FILE, STUDY_FILE, read_study_folder
from echofed.simulations.identity import declare_task
from echofed.simulations.initial import write_initial_parameters
from tests.client.conftest import Hospital
from tests.small_simulations import write_study
from tests.studies import PRIVATE, make_study

KILLS = int(os.environ.get("ECHOFED_KILLS", "12"))
SECONDS_AT_MOST = 60.0 + 6.0 * KILLS


@dataclass
class Site:
    """A hospital's node, run in a new process for each instruction."""

    folder: Path
    state: Path
    study: Study

    def instruction(self, round_number: int) -> RecordDict:
        shared = shared_parameters(*read_study_folder(self.folder))
        moved = {name: np.asarray(array + round_number / 100, np.float32) for name, array in shared.items()}
        document = Instruction(kind="train", study_hash=self.study.hash, round_number=round_number)
        return content(document, parameters_record(moved))

    def kept(self, round_number: int) -> Path:
        """Where the site keeps the reply of a round; written just before its spend."""
        return self.state / "replies" / self.study.hash / f"{round_number:05d}-train"

    def answer(self, round_number: int, kill: tuple[Path | None, float] | None) -> tuple[bytes, float]:
        """Return what came out before the process ended or was killed, and how long that took.

        It is killed so many seconds after its start, or after a file is there.
        """
        asked = self.instruction(round_number)
        source, sink = os.pipe()
        start = time.monotonic()
        process = os.fork()
        if process == 0:
            self._run(asked, sink)
        os.close(sink)
        received = bytearray()
        try:
            if kill is not None:
                file, delay = kill
                while file is not None and not file.exists() and time.monotonic() < start + 30:
                    time.sleep(0.0002)
                received += _read(source, time.monotonic() + delay)
                os.kill(process, signal.SIGKILL)
            received += _read(source, start + 60)
        finally:
            os.waitpid(process, 0)
            os.close(source)
        return bytes(received), time.monotonic() - start

    def spent(self) -> Counter[int]:
        """Return how often each round of training stands in the ledger on disk."""
        chain = read_ledger(self.state, load_policy(self.state))
        entries = chain.entries if chain else ()
        return Counter(entry.round_number for entry in entries if entry.purpose == "training")

    def _run(self, asked: RecordDict, sink: int) -> None:
        """Be the hospital's process: a ClientApp without a seed, whose reply goes out byte by byte."""
        try:
            app = make_client_app(self.folder, [self.state], None)
            reply = app(Message(asked, 1, "train", group_id="1"), Context(1, 1, {"partition-id": 0}, RecordDict(), {}))
            if reply.has_content():
                raw = content_bytes(reply.content)
                for start in range(0, len(raw), 4096):
                    os.write(sink, raw[start : start + 4096])
        finally:
            os._exit(0)


def _read(source: int, until: float) -> bytes:
    """Read until the other end closes or the time is up."""
    received = bytearray()
    os.set_blocking(source, False)
    while time.monotonic() < until:
        try:
            part = os.read(source, 1 << 16)
        except BlockingIOError:
            time.sleep(0.0005)
            continue
        if not part:
            break
        received += part
    return bytes(received)


@pytest.fixture
def site(hospital: Hospital, tmp_path: Path) -> Site:
    hospital.fill(30)
    hospital.registered()
    folder = tmp_path / "study"
    folder.mkdir()
    study = make_study(
        privacy=PRIVATE,
        training={"local_steps": 1, "sampling_probability": 1.0},
        federation={"rounds": 2 * KILLS + 10},
        evaluation={"minimum_patients": 10, "figures": "none"},
    )
    declare_task()
    write_study(folder / STUDY_FILE, study)
    write_initial_parameters(study, folder / PARAMETERS_FILE, 0)
    return Site(folder, hospital.state, study)


@pytest.mark.timeout(SECONDS_AT_MOST)
@pytest.mark.filterwarnings(
    "ignore:This process:DeprecationWarning"
)  # of forking beside other threads, from Python 3.12
def test_no_update_is_out_without_its_spend_on_disk(site: Site) -> None:
    rng, round_number = random.Random(0), 1
    whole, seconds = site.answer(round_number, None)
    assert whole
    instants = Counter[str]()
    for _ in range(KILLS):
        round_number += 1
        anywhere, near = (None, rng.uniform(0, 1.2) * seconds), (site.kept(round_number), rng.uniform(0, 0.06))
        received, _ = site.answer(round_number, rng.choice([anywhere, near, near]))
        spent = site.spent()
        assert max(spent.values()) == 1
        if received:
            assert spent[round_number] == 1, "an update is out, and its spend is not on disk"
        instants["out" if received else "spent" if spent[round_number] else "not spent"] += 1
        # Asked again, the site sends the very same bytes, or makes the reply it never finished; once in the ledger either way.
        again, took = site.answer(round_number, None)
        seconds = 0.8 * seconds + 0.2 * took
        assert again.startswith(received)
        assert abs(len(again) - len(whole)) < 10
        assert site.spent()[round_number] == 1
    print(f"Killed {KILLS} times: {dict(instants)}.")
    if KILLS >= 100:
        assert min(instants["out"], instants["spent"], instants["not spent"]) > 0
