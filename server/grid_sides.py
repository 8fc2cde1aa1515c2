"""What the sealed grid needs on its two sides: what carries its messages, and the coordinator in whose name it asks."""

from collections.abc import Iterable
from typing import Protocol

from flwr.app import Message

from echofed.protocol.audit_log import LogHead
from echofed.protocol.errors import EchoFedError
from echofed.protocol.seals import Blob, InstructionSeal, ReplySeal, SiteHeads
from echofed.protocol.signing import Signed


class Transport(Protocol):
    """What carries messages: `FlowerLink`, and what replaces it after a loss."""

    def push(self, message: Message) -> str | None:
        """Return the message's id there; None if it was not taken."""
        ...

    def has_news(self) -> bool:
        """Return whether replies may have come since the last pull."""
        ...

    def pull(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have come."""
        ...


class Coordinator(Protocol):
    """What the grid must know of the coordinator: `server.conductor` provides it."""

    consortium: str

    def node_of(self, site: str) -> tuple[int, bool]:
        """Return the site's Flower node, 0 if it has none, and whether it has been silent too long."""
        ...

    def sign_instruction(self, seal: InstructionSeal) -> Signed:
        """Return the signed instruction."""
        ...

    def check_reply(self, site: str, seal: Signed) -> ReplySeal:
        """Return what a site signed."""
        ...

    def publish(self, buffer: bytes) -> Blob:
        """Keep parameters where sites fetch them."""
        ...

    def take(self, site: str, blob: Blob) -> bytes:
        """Return the parameters a site has sent."""
        ...

    def log_head(self) -> LogHead:
        """Return how far the coordinator's audit log has got."""
        ...

    def site_heads(self, site: str) -> SiteHeads | None:
        """Return how far a site's own log and ledger had got in its last reply that counted."""
        ...

    def check_heads(self, site: str, told: SiteHeads | None, seal: ReplySeal) -> None:
        """Check that a reply goes on from there; raises AuditLogError if it does not."""
        ...

    def note_reply(self, site: str, seal: ReplySeal, signed: Signed) -> None:
        """Log a reply that counts."""
        ...

    def note_refused(self, site: str, error: EchoFedError) -> None:
        """Log a reply that cannot be used."""
        ...

    def note_late(self, site: str) -> None:
        """Log a reply that came too late to count."""
        ...
