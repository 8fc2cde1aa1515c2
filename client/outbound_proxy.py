"""The site's way out: plain HTTP from this machine's own processes, TLS 1.3 with the site's certificate to the gateway.

    python -m echofed.client.outbound_proxy FOLDER [--port PORT]

Stock SuperNode needs nothing new for it. It listens on 127.0.0.1 only and forwards what a site may ask of its coordinator, to no
other place. Any user of this machine can reach it: run the site on a machine whose users are trusted, or in a network namespace
of its own. Web pages cannot use it: what a browser sends, or is addressed by a name, is refused.

While the gateway cannot be reached a request waits, so that SuperNode's growing pauses do not matter.
"""

import argparse
import contextlib
import errno
import logging
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from echofed.client.forwarding import MAX_MESSAGE_BYTES, MESSAGE_BELL, RETRY_SECONDS, Forwarder, is_streamed
from echofed.client.identity import load_identity
from echofed.client.link_settings import LinkSettings, load_link_settings
from echofed.client.link_status import StatusFile
from echofed.client.uplink import Uplink
from echofed.protocol.errors import EchoFedError, GatewayRefusedError, PortInUseError, TooLargeError
from echofed.protocol.http_connection import HttpConnection, Pace
from echofed.protocol.http_head import RefusalError, Request

LOG = logging.getLogger("echofed.proxy")
MAX_CONNECTIONS = 128

_PATHS = re.compile(r"/v1/(fleet/[a-z-]{1,40}|blobs/[0-9a-f]{64}|time|studies|answers|renew)")
_BROWSER = ("origin", "referer", "sec-fetch-site", "sec-fetch-mode")


class OutboundProxy:
    """The proxy of one site.

    Args:
        uplink: the way to the gateway.
        listener: bound to 127.0.0.1.
        settings: of the link.
        retry_seconds: for which a request waits for a gateway that cannot be reached.
    """

    def __init__(
        self, uplink: Uplink, listener: socket.socket, settings: LinkSettings, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        self._uplink, self._listener = uplink, listener
        seconds, bell = settings.read_timeout_seconds, uplink.state_folder / MESSAGE_BELL
        self._forwarder = Forwarder(uplink, seconds, retry_seconds, lambda: self._stopping, bell)
        self._hosts = {f"{name}:{listener.getsockname()[1]}" for name in ("127.0.0.1", "localhost")}
        self._open: set[HttpConnection] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def serve(self) -> None:
        """Take connections until `stop`."""
        threading.Thread(target=self._uplink.watch, daemon=True).start()
        while not self._stopping:
            try:
                stream, _ = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    time.sleep(0.1)
                continue  # a connection that broke before it was taken, or `stop`
            connection = HttpConnection(stream, Pace())
            with self._lock:
                full = len(self._open) >= MAX_CONNECTIONS
                if not full:
                    self._open.add(connection)
            if full:
                stream.close()
            else:
                threading.Thread(target=self._converse, args=(connection,), daemon=True).start()
        self._listener.close()
        with self._lock:
            for connection in self._open:
                connection.abort()
        self._uplink.stop()

    def stop(self) -> None:
        """Stop at once; safe to call from a signal's handler."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def _converse(self, connection: HttpConnection) -> None:
        try:
            while connection.is_open and not self._stopping:
                try:
                    request = connection.read_request()
                    if request is None:
                        return
                    self._check(request)
                    self._forwarder.forward(request, connection)
                except RefusalError as refusal:
                    if connection.is_answered:
                        return
                    connection.refuse(refusal, {"Retry-After": "1"} if refusal.status == 503 else None)
        except OSError:
            pass  # the peer is gone
        except Exception:
            LOG.exception("a request failed")
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _check(self, request: Request) -> None:
        if request.headers["host"] not in self._hosts or any(name in request.headers for name in _BROWSER):
            raise RefusalError(403, GatewayRefusedError("Only this site's own processes may ask here."), closes=True)
        if not _PATHS.fullmatch(request.target):
            raise RefusalError(404, GatewayRefusedError("There is nothing here."))
        if not is_streamed(request) and request.content_length > MAX_MESSAGE_BYTES:
            raise RefusalError(413, TooLargeError("The message is too large."), closes=True)


def listen(port: int) -> socket.socket:
    """Return a socket on 127.0.0.1; port 0 stands for any free one.

    Raises:
        PortInUseError: another program has the port.
    """
    try:
        return socket.create_server(("127.0.0.1", port), backlog=128)
    except OSError as error:
        remedy = "Choose another proxy_port in link.yaml, or stop the other program."
        raise PortInUseError(
            f"The outbound proxy cannot listen at 127.0.0.1:{port}: {error.strerror}.", remedy
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Run the proxy until SIGTERM or SIGINT; return the process' exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m echofed.client.outbound_proxy", description="The site's way to its coordinator."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, help="on 127.0.0.1; else as link.yaml says")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s proxy %(levelname)s %(message)s")
    try:
        settings = load_link_settings(given.folder)
        load_identity(given.folder)
        listener = listen(settings.proxy_port if given.port is None else given.port)
    except EchoFedError as error:
        print(error, file=sys.stderr)
        return 2
    port = listener.getsockname()[1]
    proxy = OutboundProxy(Uplink(given.folder, settings, StatusFile(given.folder, port)), listener, settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: proxy.stop())
    LOG.info("listening at 127.0.0.1:%d", port)
    proxy.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
