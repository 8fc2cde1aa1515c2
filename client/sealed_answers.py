"""From a sealed instruction to a sealed reply: what the executor does around the ClientApp.

The only way in is a study the hospital has approved; the only way out is logged in the site's audit log, with size, hash and
what it holds, before a byte of it leaves.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from echofed.client.approvals import approved_folder
from echofed.client.identity import Identity
from echofed.client.instructions import check_order, read_instruction
from echofed.client.ledger_heads import HEAD_FILE, Head
from echofed.client.link import Link
from echofed.client.policy import load_policy
from echofed.client.policy_check import refuse_by_policy
from echofed.protocol.arrays import sha256_of_file
from echofed.protocol.audit_entries import received_head
from echofed.protocol.audit_log import AuditLog, LogHead
from echofed.protocol.errors import AuditLogError
from echofed.protocol.seals import Blob, ErrorReply, InstructionSeal, ReplySeal, SiteHeads, may_follow
from echofed.protocol.signing import Signed, digest, sign
from echofed.protocol.study_file import load_study
from echofed.protocol.study_folder import STUDY_FILE

LOG = logging.getLogger("echofed.client")
BLOB_FOLDER = Path("run", "blobs")
BLOBS_KEPT = 3
"""Global parameters are evaluated in one round and trained from in the next: they are fetched once."""
FORKED = "the one the coordinator saw: two machines use this identity, or the state folder was put back to a copy."
FORKED_REMEDY = "Stop all machines of this site, and ask the coordinator to revoke it and to enrol it anew."

Reply = tuple[str, bytes]
"""A reply's JSON document and its safetensors buffer, empty if it carries none."""


@dataclass(frozen=True)
class Opened:
    """An instruction that may be followed.

    Args:
        seal: what the coordinator signed.
        signed: the signature with it.
        study_folder: of the approved study.
        parameters: the safetensors buffer that goes with it; empty if none does.
    """

    seal: InstructionSeal
    signed: Signed
    study_folder: Path
    parameters: bytes

    @property
    def asks(self) -> tuple[str, int, str, str, str]:
        """What is asked; equal for an instruction that was sent again."""
        parameters = self.seal.parameters.sha256 if self.seal.parameters else ""
        return self.seal.study_hash, self.seal.round_number, self.seal.kind, self.seal.document, parameters


class SealedAnswers:
    """Opens instructions and seals replies for one site.

    Args:
        state_folder: the site's.
        identity: its keys and its coordinator's.
        link: the way to the coordinator's files.
        log: the site's audit log.
    """

    def __init__(self, state_folder: Path, identity: Identity, link: Link, log: AuditLog) -> None:
        self._state_folder, self._identity, self._link, self._log = state_folder, identity, link, log
        self._last: tuple[object, Reply] | None = None

    def read(self, document: str, signed: Signed, kind: str) -> InstructionSeal:
        """Return what the coordinator signed, if it is for this site; see `read_instruction`."""
        me = self._identity
        return read_instruction(
            signed, document, kind, consortium=me.consortium, site=me.site, coordinator=me.coordinator_key
        )

    def open(self, seal: InstructionSeal, signed: Signed) -> Opened:
        """Return the instruction with its parameters, after the approval, the policy and the order of rounds were checked.

        Raises:
            TrustError: the coordinator knows another log or ledger of this site, the study is not approved, the policy forbids
                it now, or the round is an old one.
            LinkError: the parameters cannot be fetched.
        """
        self._refuse_fork(seal.site_heads)
        folder = approved_folder(self._state_folder, seal.study_hash, self._identity)
        refuse_by_policy(
            load_policy(self._state_folder),
            load_study(folder / STUDY_FILE),
            datetime.now().astimezone(),
            seal.parameters.size if seal.parameters else 0,
        )
        if seal.kind != "describe":
            check_order(folder, seal.round_number)
        self._log.append(
            "instruction",
            study=seal.study_hash,
            round=seal.round_number,
            kind=seal.kind,
            digest=digest(signed),
            bytes=seal.parameters.size if seal.parameters else 0,
        )
        coordinator = self._identity.membership.consortium_name  # as its log is called, so that the two can be compared
        self._log.append("head received", **received_head(coordinator, seal.log_head, signed.signature))
        return Opened(seal, signed, folder, self._fetch(seal.parameters) if seal.parameters else b"")

    def answer(self, opened: Opened, make: Callable[[], Reply]) -> tuple[str, Signed]:
        """Return the reply's document and seal; its parameters are with the coordinator's gateway then.

        The same instruction, sent again because the first reply was lost, is answered with the same reply.
        """
        if self._last is None or self._last[0] != opened.asks:
            self._last = (opened.asks, make())
        document, buffer = self._last[1]
        blob = Blob(sha256=hashlib.sha256(buffer).hexdigest(), size=len(buffer)) if buffer else None
        signed = self._seal(opened.seal, opened.signed, opened.seal.kind, document, blob, _holds(document, buffer))
        if blob is not None:
            self._send(buffer, blob)
        return document, signed

    def refuse(self, seal: InstructionSeal, signed: Signed, said: ErrorReply) -> tuple[str, Signed]:
        """Return the reply that says why the site does not answer: a code and a fixed sentence."""
        document = said.model_dump_json()
        return document, self._seal(seal, signed, "error", document, None, [f"error {said.code}"])

    def _refuse_fork(self, known: SiteHeads | None) -> None:
        """Refuse to go on where log and ledger are not those of the site's last reply that counted."""
        if known is None:
            return
        if self._log.head_at(known.log.entries) != known.log:
            raise AuditLogError(f"Entry {known.log.entries} of {self._log.path} is not {FORKED}", FORKED_REMEDY)
        if not may_follow(_ledger_head(self._state_folder), known.ledger):
            raise AuditLogError(f"The ledger of {self._state_folder} is not {FORKED}", FORKED_REMEDY)

    def _seal(
        self, seal: InstructionSeal, asked: Signed, kind: str, document: str, blob: Blob | None, holds: list[str]
    ) -> Signed:
        me, known = self._identity, seal.site_heads
        hashed = hashlib.sha256(document.encode()).hexdigest()
        self._log.append(
            "reply",
            study=seal.study_hash,
            round=seal.round_number,
            kind=kind,
            document=hashed,
            parameters=blob.sha256 if blob else None,
            bytes=len(document.encode()) + (blob.size if blob else 0),
            holds=holds,
        )
        return sign(
            me.signing_key,
            "reply",
            ReplySeal.model_validate(
                {
                    "consortium": me.consortium,
                    "site": me.site,
                    "study_hash": seal.study_hash,
                    "round_number": seal.round_number,
                    "kind": kind,
                    "instruction": digest(asked),
                    "document": hashed,
                    "parameters": blob,
                    "log_head": self._log.head(),
                    "ledger_head": _ledger_head(self._state_folder),
                    "log_head_then": self._log.head_at(known.log.entries) if known else None,
                }
            ),
        )

    def _fetch(self, blob: Blob) -> bytes:
        folder = self._state_folder / BLOB_FOLDER
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / blob.sha256
        if path.exists() and sha256_of_file(path) != blob.sha256:
            path.unlink()
        if not path.exists():
            limit = load_policy(self._state_folder).maximum_message_mb * 2**20
            self._link.get_blob(blob.sha256, path, min(blob.size, int(limit)))
        path.touch()
        for old in sorted(folder.iterdir(), key=lambda one: one.stat().st_mtime)[:-BLOBS_KEPT]:
            old.unlink(missing_ok=True)
        return path.read_bytes()

    def _send(self, buffer: bytes, blob: Blob) -> None:
        path = self._state_folder / BLOB_FOLDER / f"{blob.sha256}.out"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            path.write_bytes(buffer)  # not synced: after a power cut it is made again
            self._link.put_blob(path, blob.sha256)
        finally:
            path.unlink(missing_ok=True)


def _holds(document: str, buffer: bytes) -> list[str]:
    """Return the names of what a reply says, and how much: for people who read the log."""
    said = [name for name, value in json.loads(document).items() if value is not None]
    return [*said, f"update of {len(buffer)} bytes"] if buffer else said


def _ledger_head(state_folder: Path) -> LogHead | None:
    path = state_folder / HEAD_FILE
    if not path.exists():
        return None
    head = Head.model_validate_json(path.read_bytes())
    return LogHead(log_id=head.ledger_id, entries=head.entries, hash=head.hash)
