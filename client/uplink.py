"""The outbound proxy's connections to the gateway: with the certificate the site has now, renewed in time."""

import contextlib
import http.client
import logging
import threading
from pathlib import Path

from echofed.client.identity import load_identity, renew_if_due
from echofed.client.identity_files import IDENTITY, MEMBERSHIP
from echofed.client.link import MAX_CLOCK_OFFSET_SECONDS, Link, clock_offset
from echofed.client.link_settings import LinkSettings
from echofed.client.link_status import StatusFile
from echofed.client.tunnel import GatewayConnection, Way, explained
from echofed.protocol.errors import ClockError, EchoFedError, UnreachableError
from echofed.protocol.http_pool import ConnectionPool
from echofed.protocol.signing import Signed

LOG = logging.getLogger("echofed.proxy")
LOOK_SECONDS = 60.0
"""Between two looks at the certificate on disk, at whether it is to be renewed, and at the gateway's clock."""
IDLE_SECONDS = 30.0


class Uplink:
    """The way to the gateway; safe to use from several threads.

    Args:
        state_folder: the site's.
        settings: of the link.
        status: where it is written how the link stands.
    """

    def __init__(self, state_folder: Path, settings: LinkSettings, status: StatusFile) -> None:
        self.state_folder, self._settings, self._status = state_folder, settings, status
        self._pool = ConnectionPool(lambda: GatewayConnection(self._current_way()), IDLE_SECONDS)
        self._lock = threading.Lock()
        self._way: Way | None = None
        self._stamp = 0
        self._stopped = threading.Event()

    def connect(self, *, fresh: bool = False) -> http.client.HTTPConnection:
        """Return a connection, a kept one unless a fresh one is asked for; it is opened.

        Raises:
            EchoFedError: it cannot be opened; the status says so.
        """
        try:
            connection = None if fresh else self._pool.take()
            if connection is None:
                connection = self._pool.open()
                connection.connect()
        except EchoFedError as error:
            self._status.failed(error)
            raise
        return connection

    def keep(self, connection: http.client.HTTPConnection) -> None:
        """Keep a connection whose answer was read to the end."""
        self._pool.keep(connection)

    def failed(self, error: OSError | http.client.HTTPException) -> EchoFedError:
        """Return what a failure on an open connection means; the status says so too."""
        if isinstance(error, OSError):
            meaning = explained(error, self._current_way().membership)
        else:
            meaning = UnreachableError("What answers in the gateway's place does not speak HTTP as it does.")
        self._status.failed(meaning)
        return meaning

    def answered(self, response: http.client.HTTPResponse, refusal: EchoFedError | None) -> None:
        """Note that the gateway answered, or refused this site as such, and how its clock stands to this one's."""
        offset = clock_offset(response)
        if refusal is not None:
            self._status.failed(refusal, offset)
        elif offset is not None and abs(offset) > MAX_CLOCK_OFFSET_SECONDS:
            side = "behind" if offset > 0 else "ahead of"
            what = f"This machine's clock is minutes, hours or days {side} the coordinator's."
            self._status.failed(ClockError(what), offset)
        else:
            self._status.connected(offset)

    def watch(self) -> None:
        """Until `stop`: renew the certificate in time, take up a renewed one, and see how the link stands."""
        while not self._stopped.is_set():
            try:
                self._look()
            except EchoFedError as error:
                self._status.failed(error)
            except Exception:
                LOG.exception("the certificate could not be looked at")
            self._stopped.wait(LOOK_SECONDS)

    def stop(self) -> None:
        """Stop `watch`, and close the connections kept."""
        self._stopped.set()
        self._pool.close()

    def _look(self) -> None:
        way = self._current_way()
        connection = self.connect()
        try:
            connection.request("GET", "/v1/time")
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self.failed(error) from error
        if response.status == http.HTTPStatus.OK:
            self.answered(response, None)
        self.keep(connection)
        if renew_if_due(self.state_folder, self._renew):
            LOG.info("the certificate of %s was renewed", way.membership.site)

    def _renew(self, signed: Signed) -> Signed:
        with contextlib.closing(Link(load_identity(self.state_folder), self._settings)) as link:
            return link.renew(signed)

    def _current_way(self) -> Way:
        with self._lock:
            stamp = _stamp(self.state_folder / IDENTITY / MEMBERSHIP)
            if self._way is None or stamp != self._stamp:
                identity = load_identity(self.state_folder)
                self._way, self._stamp = Way(identity.membership, identity.ssl_context(), self._settings), stamp
                self._pool.clear()
            return self._way


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
