"""Every figure of a report, in order, and their export for publication."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from echofed.simulations.report import agreement, discrimination, forest, samples, training
from echofed.simulations.report.drawing import Plot, save
from echofed.simulations.report.results import Results, read_results

ORDER: tuple[Callable[[Results], Plot | None], ...] = (
    forest.test_by_site,
    forest.comparison,
    forest.test_by_label,
    discrimination.roc_curves,
    discrimination.reliability,
    discrimination.confusion_matrix,
    agreement.dice_by_site,
    agreement.scatter,
    agreement.bland_altman,
    training.learning_curves,
    training.privacy_budget,
    training.traffic_and_time,
    samples.samples,
)


def plots(results: Results) -> list[Plot]:
    """Return the figures these results have something to show for."""
    return [plot for make in ORDER if (plot := make(results)) is not None]


def write_figures(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every figure as PDF and SVG, 3.5 or 7 inches wide, letters of 7 points or more.

    The same results give the same files. The folder is made; files of the same name are replaced.

    Args:
        results: the content of results.json.
        folder: where to write.

    Returns:
        The files written.

    Raises:
        RunError: `results` is not in format 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in plots(read_results(results)):
        for ending in (".pdf", ".svg"):
            written.append(folder / f"{plot.name}{ending}")
            save(plot, written[-1])
    return written
