"""A whole coordinator's door for tests: consortium, SuperLink, gateway with or without nginx in front, and sites' connections."""

import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from echofed.client.identity import init_site, join
from echofed.client.identity_files import Identity, load_identity
from echofed.protocol.audit_log import open_audit_log
from echofed.server.authority import init_consortium
from echofed.server.gateway_limits import Limits, limits_of
from echofed.server.gateway_service import Gateway
from echofed.server.members import enrol, invite
from echofed.server.nginx import nginx_configuration
from echofed.server.settings import load_settings

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
SUPERLINK = "from flwr.superlink.cli import flower_superlink; flower_superlink()"
SUPERNODE = "from flwr.supernode.cli import flower_supernode; flower_supernode()"
SLOW_SECONDS = 1.0
"""What the tests' gateways call too slow."""


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Return whether something listens on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def make_consortium(folder: Path, *sites: str, port: int | None = None, **limits: Any) -> Path:
    """Return the folder of a new consortium at a free port of loopback; each site's folder lies beside it."""
    coordinator = folder / "C"
    init_consortium(coordinator, "Test", f"127.0.0.1:{port or free_port()}")
    settings = yaml.safe_load((coordinator / "consortium.yaml").read_text())
    (coordinator / "consortium.yaml").write_text(json.dumps({**settings, "bind_host": "127.0.0.1", "limits": limits}))
    for site in sites:
        add_site(folder, site)
    return coordinator


def add_site(folder: Path, site: str) -> Identity:
    """Enrol a site."""
    request = init_site(folder / site, invite(folder / "C", site), path=folder / f"{site}.request")
    return join(folder / site, enrol(folder / "C", request.path, request.words))


@contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process, and end it."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **QUIET, **environment})
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def superlink(folder: Path, coordinator: Path) -> Iterator[int]:
    """Run a real SuperLink; yields its port."""
    port = free_port()
    database = coordinator / "superlink" / "superlink.sqlite"
    database.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-c", SUPERLINK, "--insecure", "--isolation", "process", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--database", str(database), "--disable-runtime-dependency-installation"]
    with running(command, folder / "superlink.log", FLWR_HOME=str(folder / "flower")) as process:
        wait_for(lambda: process.poll() is not None or listens(port), 60)
        assert process.poll() is None, (folder / "superlink.log").read_text()
        yield port


@dataclass(frozen=True)
class Door:
    """A running gateway.

    Args:
        folder: of coordinator and sites.
        port: on which it listens.
    """

    folder: Path
    port: int

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "C"

    def identity(self, site: str = "north") -> Identity:
        """Return a site's identity."""
        return load_identity(self.folder / site)

    def connect(self, context: ssl.SSLContext | None = None, seconds: float = 10.0) -> ssl.SSLSocket:
        """Return a connection with TLS, by default with the certificate of the site north."""
        stream = socket.create_connection(("127.0.0.1", self.port), seconds)
        return (context or self.identity().ssl_context()).wrap_socket(stream, server_hostname="127.0.0.1")

    def say(self, data: bytes, context: ssl.SSLContext | None = None, seconds: float = 10.0) -> "Said":
        """Send bytes and return the answer."""
        with self.connect(context, seconds) as tls:
            with contextlib.suppress(ConnectionError):
                tls.sendall(data)
            return read_answer(tls)

    def ask(self, method: str, target: str, body: bytes = b"", site: str = "north", **headers: str) -> "Said":
        """Send a sound request and return the answer."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if method != "GET":
            lines.append(f"Content-Length: {len(body)}")
        return self.say("\r\n".join([*lines, "\r\n"]).encode() + body, self.identity(site).ssl_context())

    def noted(self, event: str = "refused request") -> list[dict[str, Any]]:
        """Return the facts of the events in the coordinator's audit log."""
        with open_audit_log(self.coordinator, owner="Test") as log:
            return [entry.facts for entry in log.entries() if entry.event == event]


@dataclass(frozen=True)
class Said:
    """An answer of the gateway; status 0: the connection was closed or reset without one."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """EchoFed's code in it."""
        return str(json.loads(self.body)["code"])


def read_answer(stream: socket.socket) -> Said:
    """Return the answer that can be read from a connection; raises TimeoutError if there is none in time."""
    response = http.client.HTTPResponse(stream)
    try:
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Said(response.status, headers, response.read())
    except TimeoutError:
        raise
    except (OSError, http.client.HTTPException):
        return Said(0, {}, b"")
    finally:
        response.close()


def short_limits(coordinator: Path) -> Limits:
    """Return the coordinator's limits, with waits that suit a test."""
    limits = limits_of(load_settings(coordinator))
    pace = replace(limits.pace, idle_seconds=20.0)
    return replace(limits, strangers=24, strangers_per_address=12, poll_seconds=1.0, pace=pace)


@contextmanager
def gateway(coordinator: Path, superlink_port: int, listener: socket.socket, limits: Limits) -> Iterator[Gateway]:
    """Run a gateway in a thread."""
    served = Gateway(coordinator, ("127.0.0.1", superlink_port), limits, listener)
    thread = threading.Thread(target=served.serve)
    thread.start()
    try:
        yield served
    finally:
        served.stop()
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def embedded_door(folder: Path, superlink_port: int, limits: Limits | None = None) -> Iterator[Door]:
    """Run the gateway that does TLS itself."""
    coordinator = folder / "C"
    port = load_settings(coordinator).bind_port
    listener = socket.create_server(("127.0.0.1", port))
    with gateway(coordinator, superlink_port, listener, limits or short_limits(coordinator)):
        yield Door(folder, port)


@contextmanager
def nginx_door(folder: Path, superlink_port: int) -> Iterator[Door]:
    """Run the gateway behind nginx."""
    coordinator = folder / "C"
    settings = load_settings(coordinator)
    path = folder / "gateway.sock"
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(128)
    place = folder / "nginx"
    place.mkdir(exist_ok=True)
    (place / "site.conf").write_text(nginx_configuration(coordinator, settings, path))
    temporary = "\n".join(
        f"{kind}_temp_path {place}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (place / "nginx.conf").write_text(
        f"daemon off;\npid {place}/pid;\nuser root;\nworker_processes 1;\nerror_log {place}/error.log;\n"
        f"events {{}}\nhttp {{\n{temporary}\ninclude {place}/site.conf;\n}}\n"
    )
    command = ["nginx", "-p", str(place), "-c", str(place / "nginx.conf"), "-e", str(place / "error.log")]
    with (
        gateway(coordinator, superlink_port, listener, short_limits(coordinator)),
        running(command, place / "output.log") as process,
    ):
        wait_for(lambda: process.poll() is not None or listens(settings.bind_port))
        assert process.poll() is None, (place / "output.log").read_text()
        yield Door(folder, settings.bind_port)
