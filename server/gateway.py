"""The coordinator's only door: what a site may ask, over TLS 1.3 with its certificate, and nothing else.

    python -m echofed.server.gateway FOLDER SUPERLINK_ADDRESS [--unix-socket PATH]

Behind nginx it listens on the unix socket alone and believes what nginx says of the certificate: whoever can open the socket
can be any site, so nobody but nginx's user may.
"""

import argparse
import logging
import signal
import socket
import sys
from pathlib import Path

from echofed.protocol.errors import EchoFedError, PortInUseError
from echofed.protocol.membership import split_address
from echofed.server.gateway_limits import limits_of
from echofed.server.gateway_service import Gateway
from echofed.server.settings import ConsortiumSettings, load_settings

LOG = logging.getLogger("echofed.gateway")


def listen(settings: ConsortiumSettings, unix_socket: Path | None) -> socket.socket:
    """Return the socket the gateway listens on.

    Raises:
        PortInUseError: another program has it, or it may not be had.
    """
    try:
        if unix_socket is None:
            family = socket.AF_INET6 if ":" in settings.bind_host else socket.AF_INET
            return socket.create_server((settings.bind_host, settings.bind_port), family=family, backlog=128)
        unix_socket.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(unix_socket))
        unix_socket.chmod(0o660)
        listener.listen(128)
    except OSError as error:
        where = unix_socket or f"{settings.bind_host}:{settings.bind_port}"
        raise PortInUseError(f"The gateway cannot listen at {where}: {error.strerror}.") from error
    return listener


def main(arguments: list[str] | None = None) -> int:
    """Run the gateway until SIGTERM or SIGINT; return the process' exit code."""
    parser = argparse.ArgumentParser(prog="python -m echofed.server.gateway", description="The coordinator's gateway.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("superlink", help="host:port of SuperLink, on loopback")
    parser.add_argument("--unix-socket", type=Path, help="listen here only, behind nginx")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s gateway %(levelname)s %(message)s")
    try:
        settings = load_settings(given.folder)
        listener = listen(settings, given.unix_socket)
        gateway = Gateway(given.folder, split_address(given.superlink), limits_of(settings), listener)
    except EchoFedError as error:
        print(error, file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: gateway.stop())
    LOG.info("listening")
    gateway.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
