"""Files that are whole or not there, and stay after a power cut."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def replace_file(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; the bytes are on disk on return.

    Args:
        path: of the file.
        content: all of it.
        mode: its permissions, less what the process masks; it has no others at any instant.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    with replacing(path, mode) as stream:
        stream.write(content)


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Give a stream to write a file's new content to; as for `replace_file`, at the end it is whole and on disk.

    Raises:
        OSError: the disk is full or the folder cannot be written; then, and if the block raises, the old file is untouched.
    """
    # Two processes or threads may write the same file: each has a part of its own.
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    part.unlink(missing_ok=True)  # of an earlier process of the same number
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
