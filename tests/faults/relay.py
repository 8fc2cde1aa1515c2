"""A man in the middle of the coordinator's processes and SuperLink: loses, doubles, delays and repeats requests.

It stands where SuperLink listens, as those who ask see it: their connections are redirected to it, its own are not. Requests are
whole HTTP messages, so what it does is what a bad network with retries in between would do to messages.
"""

import http.client
import random
import socket
import socketserver
import subprocess
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.faults.network import Network

_OWN_ADDRESS = "127.0.0.2"
_KEPT_REQUESTS = 50
_PASSED_ON = ("content-type", "accept", "authorization")


@dataclass(frozen=True)
class Mischief:
    """What is done to each request, as probabilities; the default is nothing.

    Args:
        request_lost: the connection is closed and SuperLink never hears of it.
        answer_lost: SuperLink does what was asked, and the connection is closed.
        doubled: SuperLink is asked twice at once; the first answer that comes is passed on.
        delayed: held back for up to `delay_seconds`, while others overtake it.
        repeated: an older request is sent again beside this one, its answer dropped.
        delay_seconds: at most.
    """

    request_lost: float = 0.0
    answer_lost: float = 0.0
    doubled: float = 0.0
    delayed: float = 0.0
    repeated: float = 0.0
    delay_seconds: float = 1.0


@dataclass(frozen=True)
class _Request:
    path: str
    headers: dict[str, str]
    body: bytes


class Relay:
    """Stands between SuperLink and those who ask it, in the coordinator's namespace.

    Args:
        network: running.
        party: in whose namespace SuperLink listens on loopback.
        rng: draws what happens to which request.
    """

    def __init__(self, network: Network, party: str, rng: random.Random) -> None:
        self._network, self._party, self._rng = network, party, rng
        self.mischief = Mischief()
        self.times = 0
        """How often anything was done to a request."""
        self._superlink_port = 0
        self._seen: deque[_Request] = deque(maxlen=_KEPT_REQUESTS)
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                relay._relay(self, _Request(self.path, _kept(self.headers.items()), body))

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing of a peer that has gone."""

        with network.inside(party):
            self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def stand_before(self, port: int) -> None:
        """Redirect what is asked of SuperLink at a port of loopback to the relay."""
        self._superlink_port = port
        here = self._server.server_address[1]
        rules = f"""
            table ip echofed_faults
            delete table ip echofed_faults
            table ip echofed_faults {{
                chain out {{
                    type nat hook output priority -100; policy accept;
                    ip daddr 127.0.0.1 ip saddr != {_OWN_ADDRESS} tcp dport {port} redirect to :{here}
                }}
            }}"""
        command = [*self._network.command(self._party), "nft", "-f", "-"]
        subprocess.run(command, input=rules, check=True, capture_output=True, text=True)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _relay(self, asked: BaseHTTPRequestHandler, request: _Request) -> None:
        mischief = self.mischief
        happens = {
            name: self._rng.random() < getattr(mischief, name)
            for name in ("request_lost", "answer_lost", "doubled", "delayed", "repeated")
        }
        self.times += any(happens.values())
        if happens["request_lost"]:
            asked.close_connection = True
            return
        if happens["delayed"]:
            time.sleep(self._rng.uniform(0, mischief.delay_seconds))
        if happens["repeated"] and self._seen:
            threading.Thread(target=self._quietly, args=(self._rng.choice(list(self._seen)),), daemon=True).start()
        if happens["doubled"]:
            threading.Thread(target=self._quietly, args=(request,), daemon=True).start()
        self._seen.append(request)
        answer = None
        with suppress(OSError, http.client.HTTPException):
            answer = self._ask(request)
        if answer is None or happens["answer_lost"]:
            asked.close_connection = True
            return
        status, headers, body = answer
        with suppress(OSError):
            asked.send_response_only(status)
            for name, value in headers.items():
                asked.send_header(name, value)
            asked.send_header("Content-Length", str(len(body)))
            asked.end_headers()
            asked.wfile.write(body)

    def _quietly(self, request: _Request) -> None:
        with suppress(OSError, http.client.HTTPException):
            self._ask(request)

    def _ask(self, request: _Request) -> tuple[int, dict[str, str], bytes]:
        with self._network.inside(self._party):
            connection = http.client.HTTPConnection(
                "127.0.0.1", self._superlink_port, timeout=30, source_address=(_OWN_ADDRESS, 0)
            )
            connection.connect()
        try:
            connection.request("POST", request.path, request.body, request.headers)
            response = connection.getresponse()
            return response.status, _kept(response.getheaders()), response.read()
        finally:
            connection.close()


def _kept(headers: object) -> dict[str, str]:
    return {
        name: value
        for name, value in headers  # type: ignore[attr-defined]
        if name.lower() in _PASSED_ON or name.lower().startswith(("flwr-", "x-flwr"))
    }


def listening_port(pid: int) -> int:
    """Return the port a SuperLink was told to listen at."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return int(words[words.index(b"--port") + 1])


def answers(network: Network, party: str, port: int) -> bool:
    """Return whether something listens at a port of a party's loopback."""
    with network.inside(party), socket.socket() as probe:
        probe.settimeout(0.3)
        return probe.connect_ex(("127.0.0.1", port)) == 0
