"""Figures over rounds: learning curves, the privacy budget, traffic and time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from echofed.simulations.report.drawing import (
    BLACK,
    BLUE,
    DARK_GREY,
    FULL_INCHES,
    GREY,
    HALF_INCHES,
    ORANGE,
    Line,
    Plot,
    legend_below,
    limits,
    lines,
    new_figure,
    short,
    whole_numbers,
)
from echofed.simulations.report.results import Number, Results
from echofed.simulations.report.wording import data_size, data_unit, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = list[tuple[int, float]]
FEW_ROUNDS = 15  # up to here each round gets a dot


def _series(results: Results, values: Sequence[Number]) -> Series:
    """Pair values with their rounds; a round tried again counts once, by its last attempt."""
    found = {r.round_number: v for r, v in zip(results.rounds, values, strict=True) if v is not None}
    return sorted(found.items())


def _curve(axes: "Axes", series: Series, line: Line, label: str | None, front: bool = False) -> None:
    if not series:
        return
    x, y = zip(*series, strict=True)
    axes.plot(
        x,
        y,
        color=line.colour,
        linestyle=line.dashes,
        linewidth=line.width,
        alpha=line.alpha,
        marker="o" if len(series) <= FEW_ROUNDS else None,
        markersize=3 if front else 2.4,
        label=label,
        zorder=4 if front else 3,
    )


def _sites_and_overall(
    axes: "Axes", results: Results, per_site: dict[str, Series], overall: Series, overall_name: str
) -> list[float]:
    drawn = [name for name in per_site if per_site[name]]
    if len(results.active_sites) > 1 or not overall:
        for index, (name, line) in enumerate(zip(drawn, lines(len(drawn)), strict=True)):
            label = short(name) if line.named else ("each site" if index == 0 else None)
            _curve(axes, per_site[name], line, label)
    _curve(axes, overall, Line(BLACK, "-", 1.9, named=True), overall_name, front=True)
    return [value for series in (*per_site.values(), overall) for _, value in series]


def _mark_best(axes: "Axes", results: Results) -> None:
    if results.best_round is not None and results.best_round > 0:
        axes.axvline(results.best_round, color=DARK_GREY, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)


def learning_curves(results: Results) -> Plot | None:
    """Validation metric and loss of each site and overall, round by round."""
    names = [site.name for site in results.active_sites]
    metric = {
        n: _series(results, [r.validation[n].metric if n in r.validation else None for r in results.rounds])
        for n in names
    }
    loss = {
        n: _series(results, [r.validation[n].loss if n in r.validation else None for r in results.rounds])
        for n in names
    }
    overall = _series(results, [r.validation_metric for r in results.rounds])
    overall_loss = _series(results, [r.validation_loss for r in results.rounds])
    if not (overall or overall_loss or any(metric.values()) or any(loss.values())):
        return None

    def draw() -> "Figure":
        figure = new_figure(FULL_INCHES, 2.9 if len(names) <= 6 else 2.7)
        left, right = figure.subplots(1, 2)
        for axes, per_site, mean, title in (
            (left, metric, overall, f"{results.metric_name} on validation patients"),
            (right, loss, overall_loss, "Loss on validation patients"),
        ):
            values = _sites_and_overall(axes, results, per_site, mean, "all sites")
            _mark_best(axes, results)
            axes.set_title(title)
            axes.set_xlabel("round")
            whole_numbers(axes)
            if values:
                axes.set_ylim(limits(values, low=0 if min(values) >= 0 else None))
        legend_below(figure, left if left.lines else right, columns=7)
        return figure

    better = "lower" if results.lower_is_better else "higher"
    best = f" The dotted line marks round {results.best_round}, the model that was kept." if results.best_round else ""
    many = " Thin grey lines are single sites." if len(names) > 6 else ""
    caption = (
        f"How the shared model improved while it was trained, on patients kept apart for choosing it ({better} "
        f"{results.metric_name} is better, lower loss is better).{many}{best}"
    )
    return Plot("learning-curves", "training", "Learning curves", caption, FULL_INCHES, draw)


def privacy_budget(results: Results) -> Plot | None:
    """Epsilon spent by each site, round by round, under the study's limit."""
    names = [site.name for site in results.active_sites]
    spent = {n: _series(results, [r.epsilon.get(n) for r in results.rounds]) for n in names}
    if not results.private or not any(spent.values()):
        return None
    limit = results.study.privacy.epsilon

    def draw() -> "Figure":
        figure = new_figure(HALF_INCHES, 2.8)
        axes = figure.subplots()
        drawn = [name for name in names if spent[name]]
        for index, (name, line) in enumerate(zip(drawn, lines(len(drawn)), strict=True)):
            _curve(axes, spent[name], line, short(name) if line.named else ("each site" if index == 0 else None))
        if limit is not None:
            axes.axhline(limit, color=BLACK, linewidth=1, linestyle=(0, (4, 2)), label="limit of the study", zorder=2)
        highest = max([value for series in spent.values() for _, value in series] + [limit or 0])
        axes.set_ylim(0, highest * 1.08)
        axes.set_xlabel("round")
        axes.set_ylabel("ε spent so far")
        whole_numbers(axes)
        legend_below(figure, axes, columns=3)
        return figure

    stops = f" No site may pass ε {number(limit)}." if limit is not None else ""
    caption = (
        "Privacy budget spent at each site, per patient. A smaller ε means that the model could reveal less about "
        f"any one patient; it only ever grows.{stops}"
    )
    return Plot("privacy-budget", "privacy", "Privacy budget", caption, HALF_INCHES, draw)


def traffic_and_time(results: Results) -> Plot | None:
    """Bytes down, bytes up and seconds of every round."""
    if not results.rounds:
        return None
    # Attempts that failed cost bytes and time too, so a round is the sum of its attempts.
    rounds = sorted({r.round_number for r in results.rounds})
    down, up, seconds = (dict.fromkeys(rounds, 0.0) for _ in range(3))
    for r in results.rounds:
        down[r.round_number] += r.bytes_down
        up[r.round_number] += r.bytes_up
        seconds[r.round_number] += r.seconds or 0.0

    def draw() -> "Figure":
        figure = new_figure(FULL_INCHES, 2.2)
        left, right = figure.subplots(1, 2)
        few = "o" if len(rounds) <= FEW_ROUNDS else None
        unit, name = data_unit(max([*down.values(), *up.values()]))
        for values, colour, label, dashes in (
            (down, BLUE, "to the sites", "-"),
            (up, ORANGE, "from the sites", (0, (4, 1.5))),
        ):
            left.plot(
                rounds,
                [values[r] / unit for r in rounds],
                color=colour,
                label=label,
                linestyle=dashes,
                marker=few,
                markersize=3,
            )
        left.set_title(f"{name} a round, all sites")
        left.legend(loc="lower right", handlelength=2.4)
        right.bar(rounds, [seconds[r] for r in rounds], color=GREY, width=0.8)
        right.set_title("Seconds a round")
        for axes in (left, right):
            axes.set_ylim(bottom=0)
            axes.set_xlabel("round")
            whole_numbers(axes)
        left.set_ylim(0, max([*down.values(), *up.values(), 1]) / unit * 1.15)
        return figure

    total = sum(down.values()) + sum(up.values())
    caption = (
        f"What travelled between the sites and the coordinator ({data_size(total)} in all; model parameters, never "
        "images), and how long each round took on this machine."
    )
    return Plot("traffic-and-time", "run", "Traffic and time", caption, FULL_INCHES, draw)
