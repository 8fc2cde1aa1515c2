"""How long-running work tells its caller how far it is."""

from typing import Protocol


class Report(Protocol):
    """Called with the stage, how much is done, of how much, and a short note."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Take note."""


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Tell nobody."""
