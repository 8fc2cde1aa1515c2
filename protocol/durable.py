"""Files that are whole or not there, and stay after a power cut."""

import os
import threading
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; the bytes are on disk on return.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    # Two processes or threads may write the same file: each has a part of its own.
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        part.unlink(missing_ok=True)
        raise
