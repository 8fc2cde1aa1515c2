"""What the conductor knows and keeps of its consortium while studies run: keys, nodes, answers, files of parameters, the log."""

from collections import deque
from datetime import UTC, datetime
from pathlib import Path

from echofed.protocol.audit_entries import received_head
from echofed.protocol.audit_log import LogHead, open_audit_log
from echofed.protocol.errors import CertificateError, EchoFedError, ReplyRefusedError
from echofed.protocol.publication import Publication
from echofed.protocol.seals import Blob, InstructionSeal, ReplySeal, SiteHeads
from echofed.protocol.signing import Signed, digest, sign, verify
from echofed.protocol.study import Study
from echofed.server.authority import load_signing_key, read_consortium
from echofed.server.blobs import BlobStore
from echofed.server.checkpoint import read_facts
from echofed.server.gateway_nodes import Node, read_nodes
from echofed.server.history import Round, read_history
from echofed.server.members import is_revoked, site_signing_key
from echofed.server.site_heads import SiteHeadsBook
from echofed.server.studies import answers, published

NODES_READ_SECONDS = 0.2
SILENT_SECONDS = 60.0
"""A site not heard of for so long is offline; a node says that it lives every 20 s or so."""
GLOBALS_KEPT = 3
"""Global parameters that sites may still be fetching."""


class Coordination:
    """The consortium as it stands on the coordinator's disk; what others change there is noticed within a second.

    Args:
        folder: the coordinator's.

    Raises:
        KeyFileError: the signing key cannot be used.
        AuditLogError: the log cannot be trusted.
        StateFolderError: a file of the folder is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        consortium = read_consortium(folder)
        self._key, self.consortium = load_signing_key(folder), consortium.id
        self.log = open_audit_log(folder, owner=consortium.settings.name)
        self._blobs, self._heads = BlobStore(folder), SiteHeadsBook(folder)
        self._globals: deque[str] = deque(maxlen=GLOBALS_KEPT)
        self._nodes: dict[str, Node] = {}
        self._nodes_at = 0.0
        self._logged_rounds: dict[str, int] = {}

    def approved(self, study: Study) -> list[str]:
        """Return the names of enrolled sites whose last word on a study is that they approve it, sorted."""
        said = answers(self._folder, study.hash)
        return sorted(site for site, answer in said.items() if answer.decision == "approved")

    def is_online(self, site: str) -> bool:
        """Return whether a site has a node that was heard of lately."""
        node, silent = self.node_of(site)
        return bool(node) and not silent

    def node_of(self, site: str) -> tuple[int, bool]:
        """Return the site's Flower node, 0 if it has none, and whether it has been silent too long or was revoked."""
        now = datetime.now(UTC)
        if abs(now.timestamp() - self._nodes_at) > NODES_READ_SECONDS:
            self._nodes, self._nodes_at = read_nodes(self._folder), now.timestamp()
        node = self._nodes.get(site)
        if node is None or is_revoked(self._folder, site):
            return 0, True
        silent = (now - datetime.fromisoformat(node.seen_at)).total_seconds() > SILENT_SECONDS
        return (0, True) if silent else (node.node_id, False)

    def sign_instruction(self, seal: InstructionSeal) -> Signed:
        """Return the signed instruction, after logging it."""
        signed = sign(self._key, "instruction", seal)
        self.log.append(
            "instruction",
            site=seal.site,
            study=seal.study_hash,
            round=seal.round_number,
            kind=seal.kind,
            digest=digest(signed),
        )
        return signed

    def check_reply(self, site: str, seal: Signed) -> ReplySeal:
        """Return what a site signed.

        Raises:
            CertificateError: the site is not enrolled or was revoked.
            SignatureError: the site did not sign it.
        """
        if is_revoked(self._folder, site):
            raise CertificateError(f"The site {site} was revoked.")
        return verify(seal, site_signing_key(self._folder, site), "reply", ReplySeal)

    def publish(self, buffer: bytes) -> Blob:
        """Keep global parameters where sites fetch them; the oldest are removed, those that studies start from are not."""
        name = self._blobs.publish(buffer)
        if name not in self._globals:
            self._globals.append(name)
        self._blobs.keep_published({*self._globals, *self._initial()})
        return Blob(sha256=name, size=len(buffer))

    def take(self, site: str, blob: Blob) -> bytes:
        """Return the parameters a site has sent, and remove their file; asked for them again, the site sends it again.

        Raises:
            ReplyRefusedError: they are not there, or not those the site signed.
        """
        content = self._blobs.take(site, blob.sha256, blob.size)
        if content is None:
            raise ReplyRefusedError(f"The parameters {blob.sha256[:12]} of {site} have not arrived whole.")
        return content

    def log_head(self) -> LogHead:
        """Return how far the coordinator's log has got."""
        return self.log.head()

    def site_heads(self, site: str) -> SiteHeads | None:
        """Return how far a site's own log and ledger had got in its last reply that counted."""
        return self._heads.heads(site)

    def check_heads(self, site: str, told: SiteHeads | None, seal: ReplySeal) -> None:
        """Check that a reply goes on from the site's last one that counted; see `SiteHeadsBook.check`."""
        self._heads.check(site, told, seal)

    def note_reply(self, site: str, seal: ReplySeal, signed: Signed) -> None:
        """Log a reply that counts, with how far the site's own logs have got by its signed word."""
        self.log.append(
            "reply",
            site=site,
            study=seal.study_hash,
            round=seal.round_number,
            kind=seal.kind,
            digest=digest(signed),
            parameters=seal.parameters.sha256 if seal.parameters else None,
            ledger_entries=seal.ledger_head.entries if seal.ledger_head else None,
            ledger_hash=seal.ledger_head.hash if seal.ledger_head else None,
        )
        self.log.append("head received", **received_head(site, seal.log_head, signed.signature))
        self._heads.counted(site, signed.signer, seal)

    def note_refused(self, site: str, error: EchoFedError) -> None:
        """Log a reply that cannot be used."""
        self.log.append("reply refused", site=site, code=error.code, what=error.what)

    def note_late(self, site: str) -> None:
        """Log a reply that came after its round, and was dropped."""
        self.log.append("late reply", site=site)

    def note_round(self, study_hash: str, record: Round) -> None:
        """Log that a round was published, with whom, and why without the others."""
        sites = sorted(site for site, one in record.sites.items() if one.trained)
        refused = [f"{site}: {why}" for site, why in sorted(record.refused.items())]
        self.log.append("round published", study=study_hash, round=record.round_number, sites=sites, refused=refused)
        self._logged_rounds[study_hash] = record.round_number

    def note_unlogged_round(self, study: Study, folder: Path) -> None:
        """Log the last published round if the process was killed between its checkpoint and its entry in the log."""
        facts = read_facts(folder)
        if facts is None or not facts.round_number:
            return
        if study.hash not in self._logged_rounds:
            published = [entry.facts for entry in self.log.entries() if entry.event == "round published"]
            rounds = [int(str(said["round"])) for said in published if said.get("study") == study.hash]
            self._logged_rounds[study.hash] = max(rounds, default=0)
        if self._logged_rounds[study.hash] < facts.round_number:
            self.note_round(study.hash, read_history(folder, facts.round_number)[-1])

    def _initial(self) -> set[str]:
        """Return the names of the files that published studies start from."""
        signed = [one for one in published(self._folder) if one.purpose == "publication"]
        return {Publication.model_validate_json(one.payload).parameters_sha256 for one in signed}
