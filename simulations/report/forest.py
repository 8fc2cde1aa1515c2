"""Forest plots: one row a measurement, with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from echofed.simulations.report.drawing import BLUE, DARK_GREY, FULL_INCHES, VERMILLION, Plot, new_figure, short
from echofed.simulations.report.evidence import label_measures
from echofed.simulations.report.results import Measured, Results
from echofed.simulations.report.wording import measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_INCHES, MANY_ROWS = 0.2, 25


@dataclass(frozen=True)
class Row:
    """One row of a forest plot."""

    name: str
    value: Measured
    summary: bool = False
    note: str | None = None


def _forest(rows: Sequence[Row], axis_title: str, decimals: int, no_effect: float | None, patients: bool) -> "Figure":
    row_inches = ROW_INCHES if len(rows) <= MANY_ROWS else 0.155  # 46 sites still fit a page
    figure = new_figure(FULL_INCHES, 0.75 + row_inches * len(rows))
    axes = figure.subplots()
    for height, row in enumerate(reversed(rows)):
        _row(axes, row, height)
    _reference(axes, rows, no_effect)
    axes.set_yticks(range(len(rows)), [_name(row, patients) for row in reversed(rows)])
    for row, name in zip(reversed(rows), axes.get_yticklabels(), strict=True):
        name.set_fontweight("bold" if row.summary else "normal")
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(axis_title)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(range(len(rows)), [measured(row.value, decimals) for row in reversed(rows)])
    beside.tick_params(axis="y", length=0)
    beside.spines["right"].set_visible(False)
    return figure


def _row(axes: "Axes", row: Row, height: int) -> None:
    if row.value.metric is None:
        words, place = short(row.note or "cannot be computed", 60), axes.get_yaxis_transform()
        axes.text(0.5, height, words, transform=place, va="center", ha="center", color=DARK_GREY)
        return
    colour, marker, size = (VERMILLION, "D", 5.5) if row.summary else (BLUE, "s", 4.0)
    low, high = row.value.interval or (None, None)
    if low is not None and high is not None:
        axes.plot([low, high], [height, height], color=colour, linewidth=1.3, solid_capstyle="butt", zorder=3)
    axes.plot([row.value.metric], [height], color=colour, marker=marker, markersize=size, zorder=4)


def _name(row: Row, patients: bool) -> str:
    return short(row.name, 34) + (f"  (n = {row.value.patients:,})" if patients else "")


def _reference(axes: "Axes", rows: Sequence[Row], no_effect: float | None) -> None:
    summary = next((row.value.metric for row in rows if row.summary), None)
    if summary is not None:
        axes.axvline(summary, color=VERMILLION, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)
    values = [v for row in rows for v in (row.value.metric, *(row.value.interval or ())) if v is not None]
    if no_effect is not None and values and min(values) < no_effect + 0.05:
        axes.axvline(no_effect, color=DARK_GREY, linewidth=0.7, zorder=1)
    if values:
        margin = 0.06 * (max(values) - min(values)) or 0.05
        axes.set_xlim(min(values) - margin, max(values) + margin)


def _axis_title(results: Results) -> str:
    better = "smaller is better" if results.lower_is_better else "larger is better"
    name = results.metric_name
    if results.metric == "mean_absolute_error":
        name = f"{name} of {short(results.labels[0])}"
    return f"{name} on test patients ({better})"


def decimals_of(results: Results) -> int:
    """Return how many decimals the study's metric is given with."""
    value = results.test.pooled.metric
    return 2 if value is None or value < 10 else 1


def test_by_site(results: Results) -> Plot | None:
    """The final model at every site, and over all test patients."""
    if len(results.test.per_site) < 2 or not results.test.pooled.patients:
        return None
    rows = [Row(name, value) for name, value in results.test.per_site.items()]
    rows.append(Row("All sites", results.test.pooled, summary=True))
    no_effect = 0.5 if results.metric == "auc" else None

    def draw() -> "Figure":
        return _forest(rows, _axis_title(results), decimals_of(results), no_effect, patients=True)

    caption = (
        "The same model, tested at each site on patients it never saw. Bars are 95% confidence intervals "
        "(bootstrap over patients); a long bar means few patients, not a bad model."
    )
    return Plot("test-by-site", "result", "Test result at each site", caption, FULL_INCHES, draw)


def comparison(results: Results) -> Plot | None:
    """The federation beside models trained another way."""
    if not results.comparisons:
        return None
    rows = [Row("This federation", results.test.pooled, summary=True)]
    rows += [Row(other.name, other, note=other.note) for other in results.comparisons]

    def draw() -> "Figure":
        return _forest(rows, _axis_title(results), decimals_of(results), None, patients=False)

    caption = (
        "Was it worth working together? The federation (diamond and dashed line) beside the same model trained on "
        "all data in one place or at one site alone, each tested on the same patients of all sites. Bars are 95% "
        "confidence intervals."
    )
    return Plot("comparison", "result", "Federation against the alternatives", caption, FULL_INCHES, draw)


def test_by_label(results: Results) -> Plot | None:
    """AUC of each class or finding over all test patients."""
    values = label_measures(results)
    if not values:
        return None
    rows = [Row(name, value) for name, value in values.items()]
    rows.append(Row("Mean", results.test.pooled, summary=True))
    multiclass = results.study.task.kind == "multiclass"

    def draw() -> "Figure":
        return _forest(rows, "AUC on test patients (larger is better)", 2, 0.5, patients=True)

    what = "Each class against all others" if multiclass else "Each finding by itself"
    caption = (
        f"{what}, over the test patients of all sites; n counts the patients who have it. Bars are 95% confidence "
        "intervals (bootstrap over patients)."
    )
    return Plot(
        "test-by-label", "result", "AUC of each " + ("class" if multiclass else "finding"), caption, FULL_INCHES, draw
    )
