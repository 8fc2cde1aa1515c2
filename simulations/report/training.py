"""Figures over rounds: learning curves, the privacy budget, traffic and time."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from echofed.simulations.report.drawing import (
    BLACK,
    BLUE,
    DARK_GREY,
    FULL_INCHES,
    GREY,
    HALF_INCHES,
    LINE_COLOURS,
    ORANGE,
    OVERALL,
    Line,
    Plot,
    legend_below,
    limits,
    lines,
    new_figure,
    short,
    whole_numbers,
)
from echofed.simulations.report.results import Number, Results, Validation
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


def _site_curves(axes: "Axes", results: Results, per_site: dict[str, Series]) -> None:
    # A site keeps its colour in every figure, also where another site has nothing to show.
    looks = lines(results.site_names)
    unnamed = next((name for name, series in per_site.items() if series and not looks[name].named), None)
    for name, series in per_site.items():
        label = short(name) if looks[name].named else "each site" if name == unnamed else None
        _curve(axes, series, looks[name], label)


def _panel(axes: "Axes", results: Results, per_site: dict[str, Series], overall: Series, title: str) -> None:
    if len(per_site) > 1 or not overall:
        _site_curves(axes, results, per_site)
    _curve(axes, overall, Line(BLACK, "-", 1.9, named=True), OVERALL, front=True)
    if results.best_round:
        axes.axvline(results.best_round, color=DARK_GREY, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    values = [value for series in (*per_site.values(), overall) for _, value in series]
    if values:
        axes.set_ylim(limits(values, low=0 if min(values) >= 0 else None))
    axes.set_title(title)
    axes.set_xlabel("round")
    whole_numbers(axes)


def _validation(results: Results, what: Callable[[Validation], Number]) -> dict[str, Series]:
    return {
        site.name: _series(
            results, [what(r.validation[site.name]) if site.name in r.validation else None for r in results.rounds]
        )
        for site in results.active_sites
    }


def learning_curves(results: Results) -> Plot | None:
    """Validation metric and loss of each site and overall, round by round."""
    metric = _validation(results, lambda one: one.metric)
    loss = _validation(results, lambda one: one.loss)
    overall = _series(results, [r.validation_metric for r in results.rounds])
    overall_loss = _series(results, [r.validation_loss for r in results.rounds])
    if not (overall or overall_loss or any(metric.values()) or any(loss.values())):
        return None
    if results.private:
        return _told_curve(results)
    name = results.metric_name

    def draw() -> "Figure":
        figure = new_figure(FULL_INCHES, 2.8)
        left, right = figure.subplots(1, 2)
        _panel(left, results, metric, overall, f"{name[0].upper()}{name[1:]} on validation patients")
        _panel(right, results, loss, overall_loss, "Loss on validation patients")
        legend_below(figure, columns=7)
        return figure

    better = "lower" if results.lower_is_better else "higher"
    best = f" The dotted line marks round {results.best_round}, the model that was kept." if results.best_round else ""
    many = " Thin grey lines are single sites." if len(metric) > len(LINE_COLOURS) else ""
    caption = (
        f"How the shared model improved while it was trained, on patients kept apart for choosing it ({better} "
        f"{name} is better, lower loss is better).{many}{best}"
    )
    return Plot("learning-curves", "training", "Learning curves", caption, FULL_INCHES, draw)


def _told_curve(results: Results) -> Plot:
    """The metric as the coordinator of a private study is told it, with the error that noise gives it."""
    name = results.metric_name
    told = [r for r in results.rounds if r.validation_metric is not None]

    def draw() -> "Figure":
        figure = new_figure(FULL_INCHES, 2.8)
        axes = figure.subplots()
        rounds, values = [r.round_number for r in told], [r.validation_metric or 0.0 for r in told]
        errors = [r.validation_noise or 0.0 for r in told]
        axes.errorbar(rounds, values, errors, color=BLACK, marker="o", markersize=4, linewidth=1.2, capsize=3)
        axes.set_xlabel("round")
        axes.set_ylabel(f"{name[0].upper()}{name[1:]}, with privacy noise")
        return figure

    caption = (
        f"{name[0].upper()}{name[1:]} on validation patients as the coordinator is told it: sums over patients, with noise that "
        "hides each; bars are one standard error of the noise. The last round is published, whatever they say."
    )
    return Plot("learning-curves", "training", "Learning curve", caption, FULL_INCHES, draw)


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
        _site_curves(axes, results, spent)
        if limit is not None:
            axes.axhline(limit, color=BLACK, linewidth=1, linestyle=(0, (4, 2)), label="limit of the study", zorder=2)
        highest = max([value for series in spent.values() for _, value in series] + [limit or 0])
        axes.set_ylim(0, highest * 1.08)
        axes.set_xlabel("round")
        axes.set_ylabel("ε spent so far")
        whole_numbers(axes)
        legend_below(figure, columns=3)
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
        _traffic(left, down, up)
        right.bar(rounds, [seconds[r] for r in rounds], color=GREY, width=0.8)
        right.set_ylim(bottom=0)
        right.set_title("Seconds a round")
        for axes in (left, right):
            axes.set_xlabel("round")
            whole_numbers(axes)
        return figure

    total = sum(down.values()) + sum(up.values())
    caption = (
        f"What travelled between the sites and the coordinator ({data_size(total)} in all; model parameters, never "
        "images), and how long each round took on this machine."
    )
    return Plot("traffic-and-time", "run", "Traffic and time", caption, FULL_INCHES, draw)


def _traffic(axes: "Axes", down: dict[int, float], up: dict[int, float]) -> None:
    most = max(*down.values(), *up.values(), 1)
    unit, name = data_unit(most)
    marker = "o" if len(down) <= FEW_ROUNDS else None
    for values, colour, label, dashes in (
        (down, BLUE, "to the sites", "-"),
        (up, ORANGE, "from the sites", (0, (4, 1.5))),
    ):
        sizes = [value / unit for value in values.values()]
        axes.plot(list(values), sizes, color=colour, label=label, linestyle=dashes, marker=marker, markersize=3)
    axes.set_ylim(0, most / unit * 1.15)
    axes.set_title(f"{name} a round, all sites")
    axes.legend(loc="lower right", handlelength=2.4)
