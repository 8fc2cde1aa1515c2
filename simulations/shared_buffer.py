"""Bytes shared between processes: an unlinked file in memory, passed on by file descriptor.

Nothing is left behind when a process is killed, and no name can clash.
"""

import mmap
import os
import tempfile
from pathlib import Path

_MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108 - the file there is unlinked at once; elsewhere a temporary file does


class SharedBuffer:
    """One block of bytes that one process writes and others read; it grows as needed.

    Args:
        descriptor: an inherited file descriptor, or None to make a new block.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            folder = _MEMORY_FOLDER if _MEMORY_FOLDER.is_dir() else None
            with tempfile.TemporaryFile(dir=folder) as file:
                descriptor = os.dup(file.fileno())
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None

    def write(self, content: bytes) -> int:
        """Replace what is in the block and return how many bytes that is."""
        if len(content) > os.fstat(self.descriptor).st_size:
            os.ftruncate(self.descriptor, len(content))
        if content:  # an empty file cannot be mapped
            self._mapped(len(content))[: len(content)] = content
        return len(content)

    def read(self, length: int) -> bytes:
        """Return a copy of the first `length` bytes."""
        return self._mapped(length)[:length] if length else b""

    def close(self) -> None:
        """Let go of the block."""
        if self._map is not None:
            self._map.close()
            self._map = None
        os.close(self.descriptor)

    def _mapped(self, length: int) -> mmap.mmap:
        if self._map is None or len(self._map) < length:
            if self._map is not None:
                self._map.close()
            self._map = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        return self._map
