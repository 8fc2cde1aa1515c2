"""One run of a source, and what came of it."""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from echofed.client.ingest.outcomes import Why
from echofed.client.ingest.sources.fetching import fetch_all
from echofed.client.ingest.sources.filters import Filters
from echofed.client.ingest.sources.item import Fetched, Missed, Progress, Reason
from echofed.client.ingest.sources.politeness import Politeness
from echofed.client.ingest.sources.settings import Source

QUICK = Politeness(per_second=10_000.0, first_delay_seconds=0.05, attempts=3)
UNHURRIED = Politeness(per_second=10_000.0, first_delay_seconds=0.5, attempts=6)


@dataclass
class Came:
    """What came of a run, by key."""

    files: dict[str, bytes] = field(default_factory=dict)
    whys: dict[str, Why | None] = field(default_factory=dict)
    patients: dict[str, str | None] = field(default_factory=dict)
    missed: list[Missed] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)

    @property
    def reasons(self) -> Counter[Reason]:
        """How much was missed for which reason."""
        return Counter(
            {reason: sum(one.count for one in self.missed if one.reason is reason) for reason in self.why_missed}
        )

    @property
    def why_missed(self) -> set[Reason]:
        """All reasons."""
        return {one.reason for one in self.missed}


def fetch(
    source: Source,
    spool: Path,
    filters: Filters | None = None,
    politeness: Politeness = QUICK,
    known: Collection[str] = (),
    at: Callable[[int], None] = lambda count: None,
    came: Came | None = None,
) -> Came:
    """Run a source to its end, or until it raises; `at` is called with the count after each fetched instance."""
    came = Came() if came is None else came

    def report(progress: Progress) -> None:
        came.progress = progress

    for outcome in fetch_all(source, spool, known.__contains__, filters or Filters(), politeness, report):
        if isinstance(outcome, Fetched):
            with outcome:
                assert outcome.key not in came.files, "handed over twice"
                came.files[outcome.key] = outcome.path.read_bytes()
                came.whys[outcome.key], came.patients[outcome.key] = outcome.why, outcome.expected_patient
            assert not outcome.path.exists()
            at(len(came.files))
        else:
            came.missed.append(outcome)
    assert list(spool.iterdir()) == []
    return came
