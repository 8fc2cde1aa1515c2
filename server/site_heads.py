"""How far each site's log and ledger had got in its last reply that counted: what gives away two machines with one identity.

A copied state folder cannot be told from its original, but the two cannot both go on: each writes entries of its own. Every
instruction says what the coordinator has seen last, a reply counts only if the site's log and ledger go on from there, and so
replies form one chain. Whichever machine answers first is in it, the other is not. Kept in `heads.json`, which may be behind.
"""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, RootModel, ValidationError

from echofed.protocol.document import Document
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import AuditLogError, CertificateError, ReplayError, StateFolderError
from echofed.protocol.membership import Time
from echofed.protocol.messages import SiteName
from echofed.protocol.models import Sha256
from echofed.protocol.seals import ReplySeal, SiteHeads
from echofed.protocol.signing import key_id
from echofed.server.roster import site_signing_key

HEADS_FILE = "heads.json"
FORKED = "two machines use its identity, or its state folder was put back to a copy"


class KnownSite(Document):
    """What the coordinator has seen of a site's records since it was enrolled."""

    signer: Sha256 = Field(description="the site's signing key; enrolled anew, a site has another and begins anew.")
    heads: SiteHeads
    forked_at: Time | None = Field(default=None, description="when a reply came last that does not go on from there.")


class _KnownSites(RootModel[dict[SiteName, KnownSite]]):
    pass


class SiteHeadsBook:
    """What is known of all sites, on disk; for one process.

    Args:
        folder: the coordinator's.

    Raises:
        StateFolderError: the file is damaged or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._known = folder, _read(folder)

    def heads(self, site: str) -> SiteHeads | None:
        """Return what a member's last reply that counted said, None before the first since it was enrolled."""
        known = self._known.get(site)
        return known.heads if known and known.signer == _signer(self._folder, site) else None

    def check(self, site: str, told: SiteHeads | None, reply: ReplySeal) -> None:
        """Check that a reply goes on from the last one that counted; a fork is noted.

        Args:
            site: who signed the reply.
            told: what the instruction said that it answers.
            reply: what the site signed.

        Raises:
            ReplayError: another reply has counted since the instruction was sent.
            AuditLogError: the site's log or ledger has forked.
        """
        if told != self.heads(site):
            raise ReplayError("Another reply of the site has counted since it was asked.", "It is asked again.")
        if not reply.continues(told):
            self._known[site] = self._known[site].model_copy(update={"forked_at": _now()})
            self._write()
            raise AuditLogError(
                f"{site}: {FORKED}. Its log of {reply.log_head.entries} entries or its ledger is not the one seen before.",
                "Have it stop all its machines; then revoke it and enrol it anew.",
            )

    def counted(self, site: str, signer: str, reply: ReplySeal) -> None:
        """Note a reply that counts, with the id of the key it is signed with; on disk on return."""
        before = self._known.get(site)
        forked_at = before.forked_at if before and before.signer == signer else None
        heads = SiteHeads(log=reply.log_head, ledger=reply.ledger_head)
        self._known[site] = KnownSite(signer=signer, heads=heads, forked_at=forked_at)
        self._write()

    def _write(self) -> None:
        content = _KnownSites(self._known).model_dump_json(indent=1).encode() + b"\n"
        try:
            replace_file(self._folder / HEADS_FILE, content)
        except OSError as error:
            what = f"{self._folder / HEADS_FILE} cannot be written: {error.strerror}."
            raise StateFolderError(what, "Free some disk space.") from error


def forked_sites(folder: Path) -> dict[str, str]:
    """Return, for each member whose log or ledger is known to have forked, a sentence that says so.

    Raises:
        StateFolderError: the file is damaged or cannot be read.
    """
    found = {}
    for site, known in _read(folder).items():
        if known.forked_at and known.signer == _signer(folder, site):
            found[site] = f"{site}: {FORKED}; noticed {known.forked_at}. Revoke it and enrol it anew."
    return found


def _signer(folder: Path, site: str) -> str | None:
    """Return which key a site signs with now; None: it is no member, or revoked."""
    try:
        return key_id(site_signing_key(folder, site))
    except CertificateError:
        return None


def _read(folder: Path) -> dict[str, KnownSite]:
    path = folder / HEADS_FILE
    try:
        return dict(_KnownSites.model_validate_json(path.read_bytes()).root)
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        what = f"{path} is damaged; it says how far the sites' logs had got."
        raise StateFolderError(what, "Restore its newest whole copy; without one remove it.") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
