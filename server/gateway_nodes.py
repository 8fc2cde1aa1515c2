"""Which Flower node is which site's: what the gateway checks each message against, and what the conductor reads."""

import base64
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, RootModel, ValidationError

from echofed.protocol.document import Document
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import GatewayRefusedError, StateFolderError
from echofed.protocol.http_head import RefusalError
from echofed.protocol.messages import SiteName

NODES_FILE = Path("gateway", "nodes.json")
"""Of the coordinator's folder."""
SEEN_SECONDS = 5.0
"""How often the time at which sites were seen is written."""


class Node(Document):
    """A site's node, as SuperLink knows it."""

    node_id: int = Field(ge=0, lt=2**64)
    public_key: str = Field(description="base64.")
    activated_at: str
    seen_at: str = Field(description="of the last request, to about five seconds.")


class _Nodes(RootModel[dict[SiteName, Node]]):
    pass


def read_nodes(folder: Path) -> dict[str, Node]:
    """Return the node of each site that has one.

    Raises:
        StateFolderError: the file is damaged.
    """
    path = folder / NODES_FILE
    try:
        return dict(_Nodes.model_validate_json(path.read_bytes()).root)
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise StateFolderError(f"{path} is damaged.", "Remove it and restart the gateway; sites come back.") from error


class NodeBook:
    """The nodes of all sites, on disk; safe to use from several threads of one process.

    Args:
        folder: the coordinator's.
        clock: monotonic, seconds.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = folder / NODES_FILE, clock
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        self._nodes = read_nodes(folder)
        self._lock = threading.Lock()
        self._written_at = clock()

    def check_key(self, site: str, public_key: bytes) -> None:
        """Check that a public key is not another site's.

        Raises:
            RefusalError: 403, it is.
        """
        key = base64.b64encode(public_key).decode()
        with self._lock:
            if any(other != site and node.public_key == key for other, node in self._nodes.items()):
                raise RefusalError(403, GatewayRefusedError("The public key is another site's."))

    def check_node(self, site: str, node_id: int, public_key: str | None) -> None:
        """Check that a node is this site's, and the key it signs with is the node's.

        Args:
            site: who asks.
            node_id: in the message.
            public_key: in the header, base64.

        Raises:
            RefusalError: 401, the site has no node, upon which SuperNode ends and starts anew; 403, the node is not this
                site's, or not any more.
        """
        with self._lock:
            node = self._nodes.get(site)
        if node is None:
            raise RefusalError(401, GatewayRefusedError("The site has no node yet.", "A node that starts registers."))
        if node.node_id != node_id:
            remedy = "If this site runs on two machines, stop one of them, and start the other anew."
            raise RefusalError(403, GatewayRefusedError("The node is not this site's.", remedy))
        if public_key != node.public_key:
            raise RefusalError(403, GatewayRefusedError("The public key is not this site's."))

    def activated(self, site: str, node_id: int, public_key: bytes) -> None:
        """Note a site's node; the one it had before is its no longer.

        Raises:
            RefusalError: 403, the node is another site's.
            OSError: it cannot be written.
        """
        with self._lock:
            if any(other != site and node.node_id == node_id for other, node in self._nodes.items()):
                raise RefusalError(403, GatewayRefusedError("The node is another site's."))
            now = _now()
            key = base64.b64encode(public_key).decode()
            self._nodes[site] = Node(node_id=node_id, public_key=key, activated_at=now, seen_at=now)
            self._write()

    def unregistered(self, site: str) -> None:
        """Forget a site's node. Raises OSError if that cannot be written."""
        with self._lock:
            self._nodes.pop(site, None)
            self._write()

    def seen(self, site: str) -> None:
        """Note that a site is there; written every `SEEN_SECONDS` at most. Raises OSError if it cannot be."""
        with self._lock:
            node = self._nodes.get(site)
            if node is None:
                return
            self._nodes[site] = node.model_copy(update={"seen_at": _now()})
            if self._clock() - self._written_at >= SEEN_SECONDS:
                self._write()

    def _write(self) -> None:
        self._written_at = self._clock()
        replace_file(self._path, _Nodes(self._nodes).model_dump_json(indent=1).encode() + b"\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
