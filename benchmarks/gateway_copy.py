"""100 MB of parameters through outbound proxy and gateway, and straight to the gateway, beside the same bytes in plain TLS 1.3.

    python -m benchmarks.gateway_copy [--quick]

Both ways go from a file to a file, over loopback, between processes, on connections that are open already. The plain copy is
Python's ssl with one process on each side, no HTTP and no hashing; the gateway's way has two hops and checks the SHA-256.
Medians of alternating runs.
"""

import argparse
import multiprocessing
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from echofed.client.identity import init_site, join
from echofed.client.identity_files import Identity
from echofed.client.link import Link
from echofed.client.link_settings import LinkSettings
from echofed.server.authority import init_consortium
from echofed.server.blobs import BlobStore
from echofed.server.gateway_tls import ServerTls
from echofed.server.members import enrol, invite

SIZE_BYTES = 100_000_000
PIECE_BYTES = 2**18
LIMIT = 1.5
RUNS, QUICK_RUNS = 15, 5
HOST = "127.0.0.1"


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    runs = QUICK_RUNS if parser.parse_args().quick else RUNS
    with tempfile.TemporaryDirectory() as folder:
        for way, times in _measure(Path(folder), runs).items():
            ours, plain = (statistics.median(one) for one in zip(*times, strict=True))
            print(
                f"{way}: {ours:.3f} s ({SIZE_BYTES / ours / 1e6:.0f} MB/s), plain TLS {plain:.3f} s, ratio {ours / plain:.2f}"
            )
    print(f"limit of the ratio: {LIMIT}")


def _measure(folder: Path, runs: int) -> dict[str, list[tuple[float, float]]]:
    """Return, for each way, the seconds of every run: ours, and of the plain copy."""
    gateway_port, proxy_port, plain_port = (_free_port() for _ in range(3))
    identity = _enrolled(folder, gateway_port)
    modules = [
        ["echofed.server.gateway", str(folder / "C"), f"{HOST}:1"],
        ["echofed.client.outbound_proxy", str(folder / "site"), "--port", str(proxy_port)],
    ]
    processes = [subprocess.Popen([sys.executable, "-m", *one], stderr=subprocess.DEVNULL) for one in modules]
    peer = multiprocessing.get_context("spawn").Process(target=serve_plain, args=(folder, plain_port), daemon=True)
    peer.start()
    try:
        _connected(gateway_port).close()
        _connected(proxy_port).close()
        plain = identity.ssl_context().wrap_socket(_connected(plain_port), server_hostname=HOST)
        links = {
            "through the proxy": Link(identity, LinkSettings(), base_url=f"http://{HOST}:{proxy_port}"),
            "straight": Link(identity, LinkSettings()),
        }
        with plain:
            return _measured(folder, links, plain, identity.site, runs)
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def _measured(
    folder: Path, links: dict[str, Link], plain: ssl.SSLSocket, site: str, runs: int
) -> dict[str, list[tuple[float, float]]]:
    store = BlobStore(folder / "C")
    original, fetched, copied = folder / "original", folder / "fetched", folder / "copied"
    times: dict[str, list[tuple[float, float]]] = {}
    for run in range(runs + 1):
        content = os.urandom(SIZE_BYTES)
        original.write_bytes(content)
        name = store.publish(content)
        del content
        plain_up, plain_down = _timed(lambda: _copy_up(plain, original)), _timed(lambda: _copy_down(plain, copied))
        for way, link in links.items():
            up = _timed(lambda: link.put_blob(original, name))  # noqa: B023
            down = _timed(lambda: link.get_blob(name, fetched, SIZE_BYTES))  # noqa: B023
            store.drop_incoming(site, name)
            fetched.unlink()
            if run:  # the first opens connections
                times.setdefault(f"upload {way}", []).append((up, plain_up))
                times.setdefault(f"download {way}", []).append((down, plain_down))
        store.keep_published([])
        copied.unlink()
        (folder / "plain").unlink()
    return times


def serve_plain(folder: Path, port: int) -> None:
    """Be the other side of the plain copy."""
    context = ServerTls(folder / "C").context()
    with socket.create_server((HOST, port)) as listener:
        stream = context.wrap_socket(listener.accept()[0], server_side=True)
    with stream:
        while direction := stream.recv(1):
            if direction == b"u":
                _receive(stream, folder / "plain")
                stream.sendall(b"k")
            else:
                _send(stream, folder / "plain")


def _copy_up(stream: ssl.SSLSocket, path: Path) -> None:
    stream.sendall(b"u")
    _send(stream, path)
    stream.recv(1)


def _copy_down(stream: ssl.SSLSocket, path: Path) -> None:
    stream.sendall(b"d")
    _receive(stream, path)


def _send(stream: ssl.SSLSocket, path: Path) -> None:
    buffer = memoryview(bytearray(PIECE_BYTES))
    with path.open("rb", buffering=0) as source:
        while read := source.readinto(buffer):
            stream.sendall(buffer[:read])


def _receive(stream: ssl.SSLSocket, path: Path) -> None:
    buffer = memoryview(bytearray(PIECE_BYTES))
    left = SIZE_BYTES
    with path.open("wb", buffering=0) as target:
        while left:
            read = stream.recv_into(buffer)
            target.write(buffer[:read])
            left -= read


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _enrolled(folder: Path, port: int) -> Identity:
    init_consortium(folder / "C", "Benchmark", f"{HOST}:{port}")
    request = init_site(folder / "site", invite(folder / "C", "site"), path=folder / "request")
    return join(folder / "site", enrol(folder / "C", request.path, request.words))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _connected(port: int) -> socket.socket:
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection((HOST, port))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    main()
