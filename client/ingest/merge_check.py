"""Merges that come too late: who was ingested under two ids has two pseudonyms, two clocks, and maybe two splits."""

from echofed.client.forgotten import Forgotten
from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.journal import Journal
from echofed.client.ingest.pseudonyms import Pseudonyms


def keep_merges(journal: Journal, pseudonyms: Pseudonyms, forgotten: Forgotten) -> None:
    """Note the merges an ingest begins with, for the next one.

    Args:
        journal: of the ingest.
        pseudonyms: the site's, with the merges.
        forgotten: patients nothing is noted of.

    Raises:
        IngestError: they changed for patients who were ingested before.
    """
    now = {second: first for second, first in _in_pseudonyms(pseudonyms).items() if second not in forgotten}
    before = journal.merges()
    changed = {second for second in {*before, *now} if before.get(second) != now.get(second)}
    late = [second for second in changed if journal.instances_of(before.get(second, second))]
    if late:
        raise IngestError(
            f"The merges changed for {len(late):,} patient ids whose exams were ingested before; those have other pseudonyms.",
            "Write the merges as they were, or move the ingest's folder away and ingest everything again.",
        )
    if changed:
        journal.record_merges(now)


def _in_pseudonyms(pseudonyms: Pseudonyms) -> dict[str, str]:
    own = Pseudonyms(pseudonyms.key)
    return {own.patient(second): own.patient(first) for second, first in pseudonyms.merges.items()}
