"""A hospital's processes: the outbound proxy, Flower's SuperNode, and the executor. None listens beyond loopback."""

import logging
import secrets
import sys
from pathlib import Path

from echofed.cli.server_processes import QUIET, opening
from echofed.cli.supervisor import Program, Supervisor, free_port, listens, running_folder
from echofed.client.identity import load_identity
from echofed.client.link_settings import load_link_settings
from echofed.client.registry import open_registry, read_settings
from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.errors import RegistrationError
from echofed.protocol.key_files import write_private_file


def run_site(folder: Path) -> None:
    """Run a site's processes until told to stop.

    Raises:
        StateFolderError: the site has not joined a consortium, or another process runs it.
        KeyFileError: its keys cannot be used.
        RegistrationError: no data are registered, or under another name than the site is enrolled with.
    """
    logging.basicConfig(level=logging.INFO, format="[supervisor] %(message)s")
    identity, settings = load_identity(folder), load_link_settings(folder)
    with open_registry(folder) as registry:
        registered = read_settings(registry).name
    if registered != identity.site:
        raise RegistrationError(
            f"The data are registered as {registered}, the site is enrolled as {identity.site}.",
            "Register them again: `echofed site register`, without --name.",
        )
    with running_folder(folder) as run:
        log = open_audit_log(folder, owner=identity.site)
        log.append("started", what="site")
        proxy, runtime = free_port(settings.proxy_port), free_port(settings.runtime_port)
        secret = run / "secret"
        write_private_file(secret, secrets.token_bytes(32))
        try:
            Supervisor(_programs(folder, run, proxy, runtime, secret, opening(identity.passphrase)), run).run()
        finally:
            log.append("stopped", what="site")


def _programs(folder: Path, run: Path, proxy: int, runtime: int, secret: Path, keys: dict[str, str]) -> list[Program]:
    outbound = [sys.executable, "-m", "echofed.client.outbound_proxy", str(folder), "--port", str(proxy)]
    supernode = [
        sys.executable,
        "-m",
        "echofed.client.flower_supernode",
        "--insecure",
        "--superlink",
        f"127.0.0.1:{proxy}",
    ]
    supernode += ["--isolation", "process", "--host", "127.0.0.1", "--port", str(runtime)]
    supernode += ["--superexec-auth-secret-file", str(secret)]
    executor = [sys.executable, "-m", "echofed.client.flower_executor", str(folder)]
    executor += [f"127.0.0.1:{runtime}", str(secret)]
    flower = {**QUIET, "FLWR_HOME": str(run / "flower")}
    return [
        Program("proxy", outbound, lambda: listens(proxy), environment=QUIET | keys),
        Program("supernode", supernode, environment=flower),
        # SuperNode waits for the reply of a task its executor took with it: it starts anew, and asks for the task again.
        Program("executor", executor, ends_with=("supernode",), environment=flower | keys),
    ]
