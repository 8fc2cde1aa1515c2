"""The coordinator's processes: SuperLink on loopback, the gateway, the conductor."""

import logging
import secrets
import sys
import time
from pathlib import Path

from echofed.cli.supervisor import Program, Supervisor, free_port, listens, running_folder
from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.errors import EchoFedError
from echofed.protocol.key_files import PASSPHRASE_VARIABLE, write_private_file
from echofed.server.authority import load_signing_key, passphrase_of, renew_server_if_due
from echofed.server.gateway_tls import ServerTls
from echofed.server.settings import load_settings

LOG = logging.getLogger("echofed.supervisor")
SUPERLINK = "from flwr.superlink.cli import flower_superlink; flower_superlink()"
RENEWAL_SECONDS = 86400.0
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONSAFEPATH": "1",  # nothing is imported from the folder a command happens to be run in
}


def run_server(folder: Path, unix_socket: Path | None) -> None:
    """Run a coordinator's processes until told to stop.

    Raises:
        StateFolderError: there is no consortium in the folder, or another process runs it.
        PortInUseError: another program listens where the gateway is to listen.
        KeyFileError: a key is missing, or cannot be used.
    """
    logging.basicConfig(level=logging.INFO, format="[supervisor] %(message)s")
    settings = load_settings(folder)
    with running_folder(folder) as run:
        if unix_socket is None:
            free_port(settings.bind_port)
        keys = opening(passphrase_of(folder))
        # Keys that cannot be used are said at once, rather than by the processes again and again.
        load_signing_key(folder, keys.get(PASSPHRASE_VARIABLE))
        if unix_socket is None:
            ServerTls(folder, passphrase=keys.get(PASSPHRASE_VARIABLE))
        log = open_audit_log(folder, owner=settings.name)
        log.append("started", what="server")
        port, secret = free_port(), run / "secret"
        write_private_file(secret, secrets.token_bytes(32))
        try:
            programs = _programs(folder, run, port, secret, unix_socket, keys)
            Supervisor(programs, run, _Renewal(folder, keys.get(PASSPHRASE_VARIABLE))).run()
        finally:
            log.append("stopped", what="server")


def opening(passphrase: str | None) -> dict[str, str]:
    """Return the environment in which processes that have no terminal can open encrypted keys."""
    return {PASSPHRASE_VARIABLE: passphrase} if passphrase else {}


class _Renewal:
    """Renews the server's certificate when it is due; looked at once a day. The gateway notices."""

    def __init__(self, folder: Path, passphrase: str | None) -> None:
        self._folder, self._passphrase, self._next = folder, passphrase, 0.0

    def __call__(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + RENEWAL_SECONDS
        try:
            if renew_server_if_due(self._folder, self._passphrase):
                LOG.info("The server's certificate was renewed.")
        except EchoFedError as error:
            LOG.warning("The server's certificate cannot be renewed: %s", error)


def _programs(
    folder: Path, run: Path, port: int, secret: Path, unix_socket: Path | None, keys: dict[str, str]
) -> list[Program]:
    # In memory: what is in flight is sent again and nodes register anew, so nothing in a database would be worth its time on
    # disk; it took three times the processor's, and its file grew for as long as it lived.
    superlink = [sys.executable, "-c", SUPERLINK, "--insecure", "--isolation", "process", "--host", "127.0.0.1"]
    superlink += ["--port", str(port), "--superexec-auth-secret-file", str(secret)]
    superlink += ["--disable-runtime-dependency-installation"]
    address = f"127.0.0.1:{port}"
    gateway = [sys.executable, "-m", "echofed.server.gateway", str(folder), address]
    gateway += ["--unix-socket", str(unix_socket)] if unix_socket else []
    conductor = [sys.executable, "-m", "echofed.server.conductor", str(folder), address, str(secret)]
    flower = {**QUIET, "FLWR_HOME": str(run / "flower")}
    return [
        Program("superlink", superlink, lambda: listens(port), environment=flower),
        Program("gateway", gateway, environment=QUIET | keys),
        Program("conductor", conductor, environment=flower | keys),
    ]
