"""Processes that read instances: one that hangs or dies costs the instance it was reading, and is replaced."""

import logging
import resource
import traceback
from collections.abc import Iterator
from concurrent.futures import TimeoutError as TimedOutError
from contextlib import contextmanager
from multiprocessing import get_context
from os import environ
from pathlib import Path

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from echofed.client.ingest.instance import Read, Reading, read_instance
from echofed.client.ingest.outcomes import Why
from echofed.protocol.errors import EchoFedError

LOG = logging.getLogger(__name__)

_PAGE_BYTES = resource.getpagesize()
_reading: Reading | None = None


@contextmanager
def reading_processes(reading: Reading) -> Iterator[ProcessPool]:
    """Give processes that read instances, each with one thread and bounded memory; they end with the block.

    Args:
        reading: what is the same for all instances; its settings say how many processes and how much memory.
    """
    # Libraries read this when they are loaded: the processes share the cores already.
    before = environ.get("OMP_NUM_THREADS")
    environ["OMP_NUM_THREADS"] = "1"
    pool = ProcessPool(
        reading.settings.processes, context=get_context("spawn"), initializer=_start, initargs=(reading,)
    )
    try:
        yield pool
    except BaseException:
        pool.stop()  # type: ignore[no-untyped-call]
        raise
    else:
        pool.close()  # type: ignore[no-untyped-call]
    finally:
        pool.join()
        if before is None:
            del environ["OMP_NUM_THREADS"]
        else:
            environ["OMP_NUM_THREADS"] = before


def begin(pool: ProcessPool, path: Path, seconds: float) -> "ProcessFuture[Read]":
    """Have one instance read; see `finished`."""
    return pool.schedule(_read, args=[path], timeout=seconds)


def finished(future: "ProcessFuture[Read]") -> Read:
    """Return what came of an instance, waiting for it.

    Raises:
        FrameStoreError, OSError: the disk is full or cannot be written.
    """
    try:
        return future.result()
    except TimedOutError:
        return Read(None, Why.TIMED_OUT)
    except ProcessExpired:
        return Read(None, Why.WORKER_DIED)
    except MemoryError:
        return Read(None, Why.TOO_LARGE)
    except (EchoFedError, OSError):
        raise
    except Exception as error:
        # Its text may quote the header.
        where = traceback.extract_tb(error.__traceback__)[-1:]
        LOG.error(
            "An instance could not be read: %s at %s", type(error).__name__, [(at.name, at.lineno) for at in where]
        )
        return Read(None, Why.DAMAGED)


def _start(reading: Reading) -> None:
    global _reading
    _reading = reading
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
    most = in_use + reading.settings.memory_mb_per_worker * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _read(path: Path) -> Read:
    assert _reading is not None
    return read_instance(path, _reading)
