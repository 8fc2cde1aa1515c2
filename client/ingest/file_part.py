"""A part of a file, read when asked for."""

import io
import os
from pathlib import Path


class FilePart(io.BufferedIOBase):
    """Bytes `start` to `start + size` of a file as a stream of their own.

    No file stays open between reads, and nothing is kept in memory; a file that has become shorter reads shorter.
    """

    def __init__(self, path: Path, start: int, size: int) -> None:
        super().__init__()
        self.path = path
        self.start = start
        self.size = size
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position within the part."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position within the part and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = min(max(base + offset, 0), self.size)
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes from here; all that is left if it is negative or None."""
        left = self.size - self._at
        wanted = left if size is None or size < 0 else min(size, left)
        file = os.open(self.path, os.O_RDONLY)
        try:
            data = os.pread(file, wanted, self.start + self._at)
        finally:
            os.close(file)
        self._at += len(data)
        return data
