"""What makes an instruction and a reply binding: each side signs what it sends, to whom, in which round.

Flower carries the messages and its server could be taken over; it can then neither forge a site nor replay a round. The
parameters travel beside the message, as a file named by its SHA-256.
"""

from typing import Literal

from pydantic import Field

from echofed.protocol.audit_log import LogHead
from echofed.protocol.document import Document
from echofed.protocol.errors import EchoFedError
from echofed.protocol.membership import Time
from echofed.protocol.messages import SiteName
from echofed.protocol.models import Sha256
from echofed.protocol.study import PRINTABLE

ReplyKind = Literal["train", "evaluate", "describe", "error"]


class Blob(Document):
    """A file of parameters, by its content."""

    sha256: Sha256
    size: int = Field(ge=1, le=2**40, description="bytes.")


class SiteHeads(Document):
    """How far a site's audit log and privacy ledger had got in its last reply that counted."""

    log: LogHead
    ledger: LogHead | None


class InstructionSeal(Document):
    """What the coordinator signs under the purpose `instruction`."""

    consortium: Sha256
    site: SiteName
    study_hash: Sha256
    round_number: int = Field(ge=0, le=10_000)
    kind: Literal["train", "evaluate", "describe"]
    document: Sha256 = Field(description="of the instruction's JSON document.")
    parameters: Blob | None
    issued_at: Time
    expires_at: Time = Field(description="refused after it.")
    log_head: LogHead = Field(description="how far the coordinator's audit log has got.")
    site_heads: SiteHeads | None = Field(
        default=None, description="of the site's last reply that counted; absent before the first."
    )


class ReplySeal(Document):
    """What a site signs under the purpose `reply`."""

    consortium: Sha256
    site: SiteName
    study_hash: Sha256
    round_number: int = Field(ge=0, le=10_000)
    kind: ReplyKind
    instruction: Sha256 = Field(description="digest of the signed instruction it answers.")
    document: Sha256 = Field(description="of the reply's JSON document.")
    parameters: Blob | None
    log_head: LogHead = Field(description="how far the site's audit log has got, this reply included.")
    ledger_head: LogHead | None = Field(
        description="how far its privacy ledger has got; absent before the first entry."
    )
    log_head_then: LogHead | None = Field(
        default=None,
        description="of the site's audit log at the length of the instruction's `site_heads`, if it has it.",
    )

    def continues(self, before: SiteHeads | None) -> bool:
        """Return whether the site's log and ledger go on from where the coordinator saw them last."""
        return before is None or (
            self.log_head_then == before.log
            and self.log_head.may_follow(before.log)
            and may_follow(self.ledger_head, before.ledger)
        )


class ErrorReply(Document):
    """Why a site could not answer: a code and a fixed sentence, nothing of its data."""

    code: str = Field(pattern=r"^EF-\d{3}$")
    sentence: str = Field(max_length=200, pattern=PRINTABLE)


def may_follow(head: LogHead | None, earlier: LogHead | None) -> bool:
    """Return whether a record may have got as far as `head` after `earlier`; None is one that is not begun."""
    return earlier is None or (head is not None and head.may_follow(earlier))


def error_said(error: EchoFedError) -> ErrorReply:
    """Return what is told of an error: its code and the fixed sentence for it; the details stay where they happened."""
    return ErrorReply(code=error.code, sentence=(type(error).__doc__ or "").splitlines()[0])
