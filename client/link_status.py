"""How a site's link to its coordinator stands: `run/link.json`, written by the outbound proxy, read by status and doctor."""

import logging
import threading
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from echofed.protocol.document import Document
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import EchoFedError, UnreachableError
from echofed.protocol.publication import utc_now

LOG = logging.getLogger("echofed.proxy")
STATUS_FILE = Path("run", "link.json")
"""Of the site's state folder."""

State = Literal["starting", "connected", "unreachable", "refused"]
_NOTED_OFFSET_SECONDS = 5.0


class LinkStatus(Document):
    """How the link stood when that last changed."""

    port: int = Field(ge=1, le=65535, description="on which the site's outbound proxy listens, on 127.0.0.1.")
    state: State
    code: str | None = Field(default=None, description="of the error, if there is one.")
    what: str | None = None
    remedy: str | None = None
    since: str = Field(description="UTC.")
    clock_offset_seconds: float | None = Field(
        default=None, description="of the coordinator's clock ahead of this one."
    )


def read_link_status(state_folder: Path) -> LinkStatus | None:
    """Return how the link stands; None if the proxy has not run yet or what it wrote is damaged."""
    try:
        return LinkStatus.model_validate_json((state_folder / STATUS_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


class StatusFile:
    """What the proxy writes; changes are logged, repetitions are not. Safe to use from several threads.

    Args:
        state_folder: the site's.
        port: on which the proxy listens.
    """

    def __init__(self, state_folder: Path, port: int) -> None:
        self._path = state_folder / STATUS_FILE
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        self._lock = threading.Lock()
        self._last = LinkStatus(port=port, state="starting", since=utc_now())
        self._write(self._last)

    def connected(self, clock_offset_seconds: float | None) -> None:
        """Note an answer of the gateway."""
        self._note("connected", None, clock_offset_seconds)

    def failed(self, error: EchoFedError, clock_offset_seconds: float | None = None) -> None:
        """Note that the gateway was not reached, or refuses this site."""
        state: State = "unreachable" if isinstance(error, UnreachableError) else "refused"
        self._note(state, error, clock_offset_seconds)

    def _note(self, state: State, error: EchoFedError | None, offset: float | None) -> None:
        code = error.code if error else None
        with self._lock:
            last = self._last
            if offset is None:
                offset = last.clock_offset_seconds
            same = (last.state, last.code) == (state, code)
            if same and abs((offset or 0.0) - (last.clock_offset_seconds or 0.0)) < _NOTED_OFFSET_SECONDS:
                return
            self._last = LinkStatus(
                port=last.port,
                state=state,
                code=code,
                what=error.what if error else None,
                remedy=error.remedy if error else None,
                since=last.since if same else utc_now(),
                clock_offset_seconds=offset,
            )
            self._write(self._last)
        if not same:
            LOG.log(logging.WARNING if error else logging.INFO, "%s%s", state, f": {error}" if error else "")

    def _write(self, status: LinkStatus) -> None:
        try:
            replace_file(self._path, status.model_dump_json(indent=1).encode() + b"\n")
        except OSError as error:
            LOG.error("%s cannot be written: %s", self._path, error.strerror)
