"""A bell between two processes of one machine: a file whose time of change says that there is something to look at.

Looking costs a few microseconds, so nobody has to ask SuperLink a hundred times a second. A bell that cannot be rung only
makes things slower: who waits looks by itself now and then.
"""

import contextlib
import os
import time
from pathlib import Path

SHARED = 97


def ring(path: Path) -> None:
    """Ring a bell; its folder must exist."""
    now = time.time_ns()  # the file system's own clock stands still for milliseconds
    with contextlib.suppress(OSError):
        path.touch(mode=0o600)
        os.utime(path, ns=(now, now))


def last_ring(path: Path) -> int:
    """Return when a bell was last rung, in nanoseconds of no particular clock; 0 if never."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def bell_of(folder: Path, number: int) -> Path:
    """Return the bell of one of many nodes, in a folder of bells; a few share one, and are then woken together."""
    return folder / str(number % SHARED)
