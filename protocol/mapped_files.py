"""Files as memory: read where they are looked at, given back when no longer needed."""

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def map_file(path: Path) -> memoryview:
    """Return a file's content without reading it: the bytes come into memory where they are looked at.

    The file must not be written in place meanwhile; to replace it by another of the same name is safe.

    Raises:
        OSError: the file cannot be opened.
    """
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:  # cannot be mapped
            return memoryview(b"")
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def release(*arrays: NDArray[Any]) -> None:
    """Give back the memory under arrays that are views of a mapped file; they can be looked at again.

    Without this, whatever was looked at counts as the process's own until the system runs short. Other arrays are left
    alone.
    """
    mapped = {}
    for array in arrays:
        base: object = array
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, memoryview) and base.readonly and isinstance(base.obj, mmap.mmap):
            mapped[id(base.obj)] = base.obj
    for content in mapped.values():
        content.madvise(mmap.MADV_DONTNEED)
