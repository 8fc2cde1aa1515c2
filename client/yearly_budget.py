"""What a hospital lets a year cost its patients: `epsilon_per_year` of its policy, beside the bound for all time."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from echofed.client.ledger_chain import Entry
from echofed.privacy.spends import Spend, composed_epsilon, is_within
from echofed.protocol.errors import BudgetExceededError

YEAR = timedelta(days=365)


def spends_of_last_year(entries: Sequence[Entry], now: datetime) -> list[Spend]:
    """Return what was released in the 365 days before a moment.

    The ledger's times only inform: they are what the site's clock said. A clock set forward makes releases look older than
    they are, and frees what they took of this year; the bound for all studies together does not depend on any clock. An entry
    whose time cannot be read, or lies ahead, counts.
    """
    return [entry.spend for entry in entries if _age(entry, now) < YEAR]


class YearlyBudget:
    """Refuses what would exceed the year's epsilon; keep it, what it found to fit is not composed anew."""

    def __init__(self) -> None:
        self._fitting: dict[tuple[float, float], list[Spend]] = {}

    def refuse_beyond(
        self, entries: Sequence[Entry], to_come: Sequence[Spend], epsilon: float, delta: float, now: datetime
    ) -> None:
        """Refuse releases that would exceed what the site allows in 365 days.

        Args:
            entries: of the site's ledger.
            to_come: what is asked for: a round, or all that is left of a study.
            epsilon: allowed in 365 days, > 0.
            delta: the cohort's, in (0, 1).
            now: the time, UTC.

        Raises:
            BudgetExceededError: they would.
        """
        total = [*spends_of_last_year(entries, now), *to_come]
        if is_within(total, self._fitting.get((epsilon, delta), [])):
            return
        reached = composed_epsilon(total, delta)
        if reached > epsilon:
            raise BudgetExceededError(
                f"With this, the releases of 365 days would reach epsilon {reached:.3g}; the site allows {epsilon:g} a year.",
                "Wait until earlier releases are a year old, or run a shorter study or one of smaller epsilon.",
            )
        self._fitting[epsilon, delta] = total


def _age(entry: Entry, now: datetime) -> timedelta:
    try:
        written = datetime.fromisoformat(entry.written_at)
    except ValueError:
        return timedelta(0)
    return now - (written if written.tzinfo else written.replace(tzinfo=UTC))
