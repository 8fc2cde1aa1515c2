"""SHA-256 computed in a thread of its own, while the bytes before and after are received and written."""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self


class ParallelSha256:
    """A SHA-256 that runs one piece behind; to be used in a `with` statement.

    A piece must stay as it is until `update` is called again: two buffers in turn are enough.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def update(self, piece: memoryview) -> None:
        """Wait for the piece before, and begin with this one."""
        self._wait()
        self._running = self._thread.submit(self._digest.update, piece)

    def hexdigest(self) -> str:
        """Return the hash of all pieces, 64 hexadecimal digits."""
        self._wait()
        return self._digest.hexdigest()

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()
            self._running = None

    def __enter__(self) -> Self:
        """Return the hash itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End the thread."""
        self._thread.shutdown()
