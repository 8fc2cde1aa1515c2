"""What stands in an audit log: entries, each hashed with the one before it, and the head that says how far a log has got."""

import hashlib
from typing import Literal

from pydantic import Field

from echofed.protocol.document import Document, canonical_json
from echofed.protocol.models import Sha256

FIRST_PREVIOUS = "0" * 64
MAX_TEXT_LENGTH = 2000
"""A longer text is cut, and then ends in an ellipsis."""

Event = Literal[
    "initialised",
    "invited",
    "enrolled",
    "renewed",
    "revoked",
    "published",
    "study received",
    "approved",
    "refused",
    "withdrawn",
    "withdrawn publication",
    "answer received",
    "wanted state",
    "connected",
    "disconnected",
    "instruction",
    "reply",
    "reply refused",
    "late reply",
    "round published",
    "head received",
    "started",
    "stopped",
    "error",
    "refused request",
    "forgotten",
]
Fact = str | int | float | bool | None | list[str]

_DOMAIN = b"echofed audit entry 1\n"


class Entry(Document):
    """One event, as it stands in a log."""

    log_id: str
    number: int = Field(ge=1)
    previous: Sha256 = Field(description="hash of the entry before; 64 zeros for the first.")
    written_at: str = Field(description="UTC, to inform a reader; the number alone says the order.")
    event: Event
    facts: dict[str, Fact]

    @property
    def text(self) -> str:
        """The entry as it is stored: canonical JSON."""
        return canonical_json(self.model_dump(mode="json")).decode()

    @property
    def hash(self) -> str:
        """SHA-256 of the entry with the one before it, 64 hexadecimal digits."""
        return hash_of(self.text)


class LogHead(Document):
    """How far a log has got; signed, it is what parties exchange."""

    log_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    entries: int = Field(ge=0, le=10**15)
    hash: Sha256 = Field(description="of the last entry; of none, 64 zeros.")

    def may_follow(self, earlier: "LogHead") -> bool:
        """Return whether a log may have got this far after `earlier`: the same log, and longer or unchanged."""
        return self == earlier or (self.log_id == earlier.log_id and self.entries > earlier.entries)


def received_head(peer: str, head: LogHead, signature: str) -> dict[str, Fact]:
    """Return the facts of a `head received` entry: what a peer signed of its own log.

    Args:
        peer: the name its log is under.
        head: what it signed.
        signature: base64, under the purpose `log head` or as part of what carried it.
    """
    return {"peer": peer, **head.model_dump(), "signature": signature}


def storable(fact: Fact) -> Fact:
    """Return a fact as a log holds it: long texts cut, and nothing in them that has no bytes."""
    if isinstance(fact, str):
        # A lone surrogate has no bytes.
        text = fact.encode(errors="replace").decode()
        return text if len(text) <= MAX_TEXT_LENGTH else f"{text[: MAX_TEXT_LENGTH - 1]}…"
    if isinstance(fact, list):
        return [str(storable(text)) for text in fact]
    return fact


def hash_of(text: str) -> str:
    """Return the hash of an entry's text, 64 hexadecimal digits."""
    return hashlib.sha256(_DOMAIN + text.encode()).hexdigest()
