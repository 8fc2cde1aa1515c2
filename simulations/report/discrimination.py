"""Figures for yes-or-no answers: ROC curves, calibration, confusion matrices."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from echofed.learning.metrics import RocCurve, roc_curve
from echofed.simulations.report.drawing import (
    BLACK,
    BLUE,
    DARK_GREY,
    FULL_INCHES,
    GREY,
    HALF_INCHES,
    ORANGE,
    OVERALL,
    Line,
    Plot,
    legend_below,
    lines,
    new_figure,
    short,
)
from echofed.simulations.report.evidence import (
    BINS,
    binary_scores,
    calibration,
    confusion,
    label_measures,
    label_scores,
)
from echofed.simulations.report.results import Measured, Results
from echofed.simulations.report.wording import fixed, measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ONE_CURVE = {"binary": "site", "multiclass": "class", "multilabel": "finding"}
MOST_WRITTEN_CLASSES, MOST_NAMED_CLASSES = 12, 40  # beyond, the cells are too small for numbers, then names


def roc_curves(results: Results) -> Plot | None:
    """ROC of each site and of all together; of each class or finding when there are several."""
    kind = results.study.task.kind
    whole = None
    if kind == "binary":
        scored = {name: binary_scores(part) for name, part in results.answers.items()}
        whole = roc_curve(*binary_scores(results.pooled)) if scored else None
        scored = scored if len(scored) > 1 else {}
    else:
        scored = label_scores(results)
    curves = {name: curve for name, one in scored.items() if (curve := roc_curve(*one)) is not None}
    if not curves and whole is None:
        return None
    looks = lines(results.site_names if kind == "binary" else list(scored))
    values: dict[str, Measured] = {}
    if curves and looks[next(iter(curves))].named:
        values = results.test.per_site if kind == "binary" else label_measures(results)
    labels = {name: _with_auc(name, values.get(name)) for name in curves if looks[name].named}
    if curves and not labels:
        labels = {next(iter(curves)): f"each {ONE_CURVE[kind]}"}

    def draw() -> "Figure":
        figure = new_figure(HALF_INCHES, 3.4 + 0.15 * (len(labels) + (whole is not None)))
        axes = figure.subplots()
        for name, curve in curves.items():
            _roc_line(axes, curve, looks[name], labels.get(name))
        if whole is not None:
            look = Line(BLACK, "-", 1.9, named=True)
            _roc_line(axes, whole, look, _with_auc(OVERALL, results.test.pooled))
        _roc_axes(axes)
        legend_below(figure, columns=1)
        return figure

    caption = (
        f"ROC curves of each {ONE_CURVE[kind]}{' and of all sites together' if kind == 'binary' else ''}, on test "
        "patients. The closer to the upper left corner the better; on the diagonal the model would be guessing. Area "
        "under the curve (AUC) with its 95% confidence interval in brackets."
    )
    return Plot("roc", "result", "ROC curves", caption, HALF_INCHES, draw)


def _roc_axes(axes: "Axes") -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
    axes.set_aspect("equal")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_xlabel("1 − specificity (false alarms)")
    axes.set_ylabel("sensitivity (found)")


def _with_auc(name: str, value: Measured | None) -> str:
    return short(name) if value is None else f"{short(name)}: {measured(value)}"


def _roc_line(axes: "Axes", curve: RocCurve, look: Line, label: str | None) -> None:
    axes.plot(
        curve.false_positive_rate,
        curve.true_positive_rate,
        color=look.colour,
        linestyle=look.dashes,
        linewidth=look.width,
        alpha=look.alpha,
        label=label,
        zorder=3,
    )


def reliability(results: Results) -> Plot | None:
    """Observed against predicted probability in bins, with the number of patients in each."""
    measure = calibration(results)
    if measure is None:
        return None
    told = results.told.calibration if results.told else ()

    def draw() -> "Figure":
        figure = new_figure(HALF_INCHES, 3.9)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot([0, 1], [0, 1], color=GREY, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
        predicted, observed = zip(*((b.mean_score, b.observed_fraction) for b in measure.bins), strict=True)
        upper.plot(predicted, observed, color=BLUE, marker="o", markersize=4, clip_on=False, zorder=3)
        if told:
            scores_told, rates, _ = zip(*told, strict=True)
            upper.plot(
                scores_told, rates, color=ORANGE, linestyle="", marker="s", markersize=3, clip_on=False, zorder=2
            )
        upper.set_xlim(-0.01, 1.01)
        upper.set_ylim(-0.01, 1.01)
        upper.set_ylabel("how often it was so")
        scores = f"Brier {fixed(measure.brier, 3)}\nECE {fixed(measure.error, 3)}"
        upper.text(0.03, 0.97, scores, transform=upper.transAxes, va="top")
        left_edges = [min(int(b.mean_score * BINS), BINS - 1) / BINS for b in measure.bins]
        counts = [b.items for b in measure.bins]
        lower.bar(left_edges, counts, width=1 / BINS, align="edge", color=GREY, edgecolor="white", linewidth=0.6)
        lower.set_ylabel(measure.unit)
        lower.set_xlabel("probability the model gave")
        figure.align_ylabels([upper, lower])
        return figure

    caption = (
        f"Can the model's probabilities be taken at their word? {measure.what} On the diagonal they can; below it they "
        "are too high. The bars count what each dot stands for. Brier score and expected calibration error (ECE): 0 is "
        "perfect."
        + (" Orange squares: what the coordinator is told of validation patients, with privacy noise." if told else "")
    )
    return Plot("calibration", "result", "Calibration", caption, HALF_INCHES, draw)


def confusion_matrix(results: Results) -> Plot | None:
    """How often each truth got each answer."""
    matrix = confusion(results)
    if matrix is None:
        return None
    names = results.labels
    small = len(names) <= 5

    def draw() -> "Figure":
        figure = new_figure(HALF_INCHES if small else FULL_INCHES, 2.75 if small else 5.2)
        axes = figure.subplots()
        _cells(axes, matrix)
        _class_names(axes, names)
        return figure

    how = (
        f"The model says “{short(names[1])}” from a probability of 0.5 on; that limit was fixed in advance, not fitted "
        "to these patients."
        if len(names) == 2
        else "The model says the class it finds most probable."
    )
    caption = (
        "Test patients of all sites, by what was true (row) and what the model said (column); percentages are of the "
        f"row. {how}"
    )
    return Plot("confusion", "result", "Confusion matrix", caption, HALF_INCHES if small else FULL_INCHES, draw)


def _cells(axes: "Axes", matrix: NDArray[np.int64]) -> None:
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1.05)
    for row, column in np.ndindex(*matrix.shape) if len(matrix) <= MOST_WRITTEN_CLASSES else ():
        percent = f"\n{share[row, column]:.0%}" if len(matrix) <= 8 else ""
        colour = "white" if share[row, column] > 0.5 else "#111111"
        axes.text(column, row, f"{matrix[row, column]:,}{percent}", ha="center", va="center", color=colour)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _class_names(axes: "Axes", names: Sequence[str]) -> None:
    room, steep = (18, False) if len(names) == 2 else (12, len(names) > 3)
    shown = [short(name, room) for name in names] if len(names) <= MOST_NAMED_CLASSES else []
    places = range(len(shown))
    axes.set_xticks(places, shown, rotation=45 if steep else 0, ha="right" if steep else "center")
    axes.set_yticks(places, shown)
    axes.tick_params(length=0)
    axes.set_xlabel("what the model said", color=DARK_GREY)
    axes.set_ylabel("what was true", color=DARK_GREY)
