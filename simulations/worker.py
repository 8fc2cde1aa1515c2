"""A worker process of the pool: the hospital's ClientApp, one thread, until the other end closes.

Run by `echofed.simulations.pool`, never by hand.
"""

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from echofed.protocol.flower_records import buffer_of, content_of, document_of
from echofed.simulations.identity import RUN_ID, declare_task
from echofed.simulations.shared_buffer import SharedBuffer


def main(arguments: list[str]) -> None:
    """Answer jobs until the pool closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the connection
    descriptor, *shared = map(int, arguments[0].split(","))
    connection, broadcast, *replies = Connection(descriptor), *map(SharedBuffer, shared)
    declare_task()
    app = _client_app(Path(arguments[1]), int(arguments[2]), tuple(map(Path, arguments[3:])))
    content = _content_of(broadcast)
    for reply in cycle(replies):
        try:
            job = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        records = content(job["document"], job["version"], job["length"])
        message = Message(records, job["site"] + 1, job["kind"], group_id=job["group"])
        answer = app(message, _context(job["site"]))
        with suppress(OSError):  # if the pool is gone, waiting for the next job says so
            connection.send_bytes(json.dumps(_line(answer, reply)).encode())


def _client_app(study_folder: Path, seed: int, site_folders: tuple[Path, ...]) -> ClientApp:
    import torch

    from echofed.client.flower import make_client_app

    torch.set_num_threads(1)
    return make_client_app(study_folder, site_folders, seed)


def _content_of(broadcast: SharedBuffer) -> Callable[[str, int, int], RecordDict]:
    @lru_cache(maxsize=1)  # all sites are asked the same in a round
    def content(document: str, version: int, length: int) -> RecordDict:
        return content_of(document, broadcast.read(length))

    return content


@lru_cache(maxsize=4096)
def _context(site: int) -> Context:
    return Context(RUN_ID, site + 1, {"partition-id": site}, RecordDict(), {})


def _line(answer: Message, reply: SharedBuffer) -> dict[str, object]:
    if answer.has_error():
        return {"document": None, "length": 0, "error": [answer.error.code, answer.error.reason]}
    length = reply.write(buffer_of(answer.content))
    return {"document": document_of(answer.content), "length": length, "error": None}


if __name__ == "__main__":
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
