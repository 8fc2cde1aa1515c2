"""Processes that read: whichever hangs or dies is replaced, and costs the instance it was reading, no other."""

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.instance import Reading
from echofed.client.ingest.outcomes import Why
from echofed.client.ingest.pseudonyms import open_pseudonyms
from echofed.client.ingest.sources.filters import Filters, Selection
from echofed.client.ingest.sources.item import Fetched
from echofed.client.ingest.workers import reading_processes
from tests.client.ingest.small_hospital import clean_files, quick_settings, small_hospital

SELECTION = Selection(Filters())


def _fetched(path: Path) -> Fetched:
    return Fetched(path, path.name, 0)


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A file whose reading never ends: a pipe nobody writes to."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_a_process_that_hangs_or_is_killed_costs_its_instance_alone(tmp_path: Path, hanging: Path) -> None:
    hospital = small_hospital(tmp_path / "hospital")
    first, second, third = clean_files(hospital)[:3]
    folder = tmp_path / "ingest"
    folder.mkdir()
    reading = Reading(folder, quick_settings(hospital), open_pseudonyms(folder), None)
    with reading_processes(reading, SELECTION) as processes:
        assert processes.begin(_fetched(first), 120).result().why is None
        for child in multiprocessing.active_children():
            assert resource.prlimit(child.pid or 0, resource.RLIMIT_CORE) == (0, 0)
        hangs = processes.begin(_fetched(hanging), 1.0)
        reads = processes.begin(_fetched(second), 120)
        assert hangs.result().why is Why.TIMED_OUT
        assert reads.result().why is None
        dies = processes.begin(_fetched(hanging), 600)
        time.sleep(0.2)
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)
        assert dies.result().why is Why.WORKER_DIED
        # The others were killed while they had nothing to do.
        assert processes.begin(_fetched(third), 120).result().why is None
        waits = processes.begin(_fetched(hanging), 600)
    assert multiprocessing.active_children() == []
    assert waits.done()


def test_a_process_that_cannot_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital = small_hospital(tmp_path / "hospital")
    reading = Reading(tmp_path, quick_settings(hospital), open_pseudonyms(tmp_path), None)
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/bin/false")
    with reading_processes(reading, SELECTION) as processes, pytest.raises(IngestError, match="could not be started"):
        processes.begin(_fetched(clean_files(hospital)[0]), 60).result()
