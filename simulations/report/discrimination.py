"""Figures for yes-or-no answers: ROC curves, calibration, confusion matrices."""

from typing import TYPE_CHECKING

import numpy as np

from echofed.learning.metrics import RocCurve, roc_curve
from echofed.simulations.report.drawing import (
    BLACK,
    BLUE,
    DARK_GREY,
    FULL_INCHES,
    GREY,
    HALF_INCHES,
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
MOST_WRITTEN_CLASSES = 12  # beyond, the cells of a confusion matrix are too small for numbers


def roc_curves(results: Results) -> Plot | None:
    """ROC of each site and of all together; of each class or finding when there are several."""
    kind = results.study.task.kind
    if kind == "binary":
        scored = (
            {name: binary_scores(part) for name, part in results.answers.items()} if len(results.answers) > 1 else {}
        )
        whole = roc_curve(*binary_scores(results.pooled)) if results.pooled.patients else None
    else:
        scored, whole = label_scores(results), None
    curves = {name: curve for name, one in scored.items() if (curve := roc_curve(*one)) is not None}
    if not curves and whole is None:
        return None
    looks = lines(len(curves))
    named = sum(look.named for look in looks)
    values = {} if not named else results.test.per_site if kind == "binary" else label_measures(results)

    def draw() -> "Figure":
        figure = new_figure(HALF_INCHES, 3.4 + 0.15 * ((named or bool(curves)) + (whole is not None)))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
        for index, ((name, curve), look) in enumerate(zip(curves.items(), looks, strict=True)):
            label = (
                _with_auc(name, values.get(name)) if look.named else (f"each {ONE_CURVE[kind]}" if index == 0 else None)
            )
            _roc_line(axes, curve, look, label)
        if whole is not None:
            _roc_line(axes, whole, Line(BLACK, "-", 1.9, named=True), _with_auc("All sites", results.test.pooled))
        axes.set_aspect("equal")
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.set_xlabel("1 − specificity (false alarms)")
        axes.set_ylabel("sensitivity (found)")
        legend_below(figure, axes, columns=1)
        return figure

    several = f"each {ONE_CURVE[kind]}" + (" and of all sites together" if kind == "binary" else "")
    caption = (
        f"ROC curves of {several}, on test patients. The closer to the upper left corner the better; on the diagonal "
        "the model would be guessing. Area under the curve (AUC) with its 95% confidence interval in brackets."
    )
    return Plot("roc", "result", "ROC curves", caption, HALF_INCHES, draw)


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

    def draw() -> "Figure":
        figure = new_figure(HALF_INCHES, 3.9)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot([0, 1], [0, 1], color=GREY, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
        upper.plot(
            [b.mean_score for b in measure.bins],
            [b.observed_fraction for b in measure.bins],
            color=BLUE,
            marker="o",
            markersize=4,
            clip_on=False,
            zorder=3,
        )

        upper.set_xlim(-0.01, 1.01)
        upper.set_ylim(-0.01, 1.01)
        upper.set_ylabel("how often it was so")
        upper.text(
            0.03,
            0.97,
            f"Brier {fixed(measure.brier, 3)}\nECE {fixed(measure.error, 3)}",
            transform=upper.transAxes,
            va="top",
        )
        left_edges = [min(int(b.mean_score * BINS), BINS - 1) / BINS for b in measure.bins]
        counts = [b.items for b in measure.bins]
        lower.bar(left_edges, counts, width=1 / BINS, align="edge", color=GREY, edgecolor="white", linewidth=0.6)
        lower.set_ylabel(measure.unit)
        lower.set_xlabel("probability the model gave")
        figure.align_ylabels([upper, lower])
        return figure

    caption = (
        f"Can the model's probabilities be taken at their word? {measure.what} On the diagonal they can; below it "
        "they are too high. The bars count what each dot stands for. Brier score and expected calibration error "
        "(ECE): 0 is perfect."
    )
    return Plot("calibration", "result", "Calibration", caption, HALF_INCHES, draw)


def confusion_matrix(results: Results) -> Plot | None:
    """How often each truth got each answer."""
    matrix = confusion(results)
    if matrix is None:
        return None
    names = results.labels[: len(matrix)]
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    written = len(names) <= MOST_WRITTEN_CLASSES
    width = HALF_INCHES if len(names) <= 5 else FULL_INCHES

    def draw() -> "Figure":
        figure = new_figure(width, 2.75 if len(names) <= 5 else 5.2)
        axes = figure.subplots()
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1.05)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for row, column in np.ndindex(*matrix.shape) if written else ():
            dark = share[row, column] > 0.5
            percent = f"\n{share[row, column]:.0%}" if len(names) <= 8 else ""
            axes.text(
                column,
                row,
                f"{matrix[row, column]:,}{percent}",
                ha="center",
                va="center",
                color="white" if dark else "#111111",
            )
        room = 12 if len(names) > 2 else 18
        steep = len(names) > 3
        axes.set_xticks(
            range(len(names)),
            [short(n, room) for n in names],
            rotation=45 if steep else 0,
            ha="right" if steep else "center",
        )
        axes.set_yticks(range(len(names)), [short(n, room) for n in names])
        if len(names) > 40:
            axes.set_xticks([])
            axes.set_yticks([])
        axes.tick_params(length=0)
        axes.set_xlabel("what the model said", color=DARK_GREY)
        axes.set_ylabel("what was true", color=DARK_GREY)
        return figure

    how = (
        f"The model says “{short(names[1])}” from a probability of 0.5 on; that limit was fixed in advance, not fitted to "
        "these patients."
        if len(names) == 2
        else "The model says the class it finds most probable."
    )
    caption = (
        "Test patients of all sites, by what was true (row) and what the model said (column); percentages are of the row. "
        f"{how}"
    )
    return Plot("confusion", "result", "Confusion matrix", caption, width, draw)
