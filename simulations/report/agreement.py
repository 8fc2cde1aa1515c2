"""Figures for measured values and outlines: scatter, Bland-Altman, Dice at each site."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from echofed.simulations.report.drawing import (
    BLACK,
    BLUE,
    DARK_GREY,
    FULL_INCHES,
    HALF_INCHES,
    ORANGE,
    VERMILLION,
    Plot,
    limits,
    new_figure,
    short,
)
from echofed.simulations.report.results import Results, Scores
from echofed.simulations.report.wording import fixed, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def dice_by_site(results: Results) -> Plot | None:
    """Dice of every test patient, site by site."""
    if results.study.task.kind != "segmentation" or not results.pooled.patients:
        return None
    dice = {site: answers.score[:, 0] for site, answers in results.answers.items()}

    def draw() -> "Figure":
        figure = new_figure(FULL_INCHES, 0.8 + (0.3 if len(dice) <= 20 else 0.18) * max(len(dice), 2))
        axes = figure.subplots()
        _boxes_and_dots(axes, list(dice.values()))
        heights = range(len(dice))[::-1]
        axes.set_yticks(heights, [f"{short(site)}  (n = {len(values):,})" for site, values in dice.items()])
        axes.set_ylim(-0.6, len(dice) - 0.4)
        axes.set_xlim(-0.01, 1.01)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("Dice, mean of a patient's images (1 = outlines agree exactly)")
        return figure

    middle = fixed(float(np.median(results.pooled.score[:, 0])))
    caption = (
        "How well the model's outline covers the true one. Each dot is a test patient, the box holds the middle half, "
        f"the red line is the median ({middle} over all sites)."
    )
    return Plot("dice-by-site", "result", "Agreement of outlines", caption, FULL_INCHES, draw)


def _boxes_and_dots(axes: "Axes", groups: Sequence[Scores]) -> None:
    thin = {"color": DARK_GREY, "linewidth": 0.8}
    heights = range(len(groups))[::-1]
    axes.boxplot(
        list(groups),
        positions=list(heights),
        orientation="horizontal",
        widths=0.42,
        showfliers=False,
        medianprops={"color": VERMILLION, "linewidth": 1.6},
        boxprops=thin,
        whiskerprops=thin,
        capprops=thin,
        manage_ticks=False,
    )
    rng = np.random.default_rng(0)  # a fixed seed: the dots lie the same every time
    for height, values in zip(heights, groups, strict=True):
        places = height + rng.uniform(-0.14, 0.14, len(values))
        axes.scatter(values, places, s=5, color=BLUE, alpha=0.35, linewidths=0, zorder=2)


def scatter(results: Results) -> Plot | None:
    """Predicted against true value of every test patient."""
    if results.study.task.kind != "regression" or not results.pooled.patients:
        return None
    truth, predicted = results.pooled.target[:, 0], results.pooled.score[:, 0]

    def draw() -> "Figure":
        figure = new_figure(HALF_INCHES, 3.1)
        axes = figure.subplots()
        low, high = limits([*truth, *predicted])
        axes.plot([low, high], [low, high], color=BLACK, linewidth=0.8, zorder=2)
        axes.scatter(truth, predicted, s=9, color=BLUE, alpha=0.45, linewidths=0, zorder=3)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")
        axes.set_xlabel(f"measured {short(results.labels[0])}")
        axes.set_ylabel(f"predicted {short(results.labels[0])}")
        return figure

    error = results.test.pooled.metric
    caption = "Each dot is a test patient; on the line, prediction and measurement agree." + (
        f" On average they differ by {number(error)}." if error is not None else ""
    )
    return Plot("scatter", "result", "Predicted against measured", caption, HALF_INCHES, draw)


def bland_altman(results: Results) -> Plot | None:
    """Difference against mean of prediction and measurement (Bland and Altman (1986))."""
    if results.study.task.kind != "regression" or results.pooled.patients < 2:
        return None
    truth, predicted = results.pooled.target[:, 0], results.pooled.score[:, 0]
    difference = predicted - truth
    bias, spread = float(difference.mean()), 1.96 * float(difference.std(ddof=1))

    def draw() -> "Figure":
        figure = new_figure(HALF_INCHES, 3.1)
        axes = figure.subplots()
        axes.scatter((truth + predicted) / 2, difference, s=9, color=BLUE, alpha=0.45, linewidths=0, zorder=3)
        axes.axhline(0, color=DARK_GREY, linewidth=0.6, zorder=1)
        for value, colour, dashes in (
            (bias, VERMILLION, "-"),
            (bias - spread, ORANGE, (0, (4, 2))),
            (bias + spread, ORANGE, (0, (4, 2))),
        ):
            axes.axhline(value, color=colour, linewidth=1.1, linestyle=dashes, zorder=2)
            axes.annotate(
                number(value),
                (1, value),
                xycoords=axes.get_yaxis_transform(),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_ylim(limits([*difference, bias - spread, bias + spread]))
        axes.set_xlabel("mean of prediction and measurement")
        axes.set_ylabel("prediction − measurement")
        return figure

    caption = (
        f"On average the model differs by {number(bias)} (solid line); for 95 of 100 patients the difference is "
        f"expected between {number(bias - spread)} and {number(bias + spread)} (dashed lines)."
    )
    return Plot("bland-altman", "result", "Agreement with the measurement (Bland–Altman)", caption, HALF_INCHES, draw)
