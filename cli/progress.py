"""Progress bars with time left, for everything that may take over two seconds."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from echofed.simulations.progress import Report


@contextmanager
def progress_bars(console: Console) -> Iterator[Report]:
    """Yield a function that shows, for each stage named, how much is done and how long the rest will take."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        stages = {}

        def show(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=total, note="")
            bars.update(stages[stage], completed=done, total=total, note=note)

        yield show
