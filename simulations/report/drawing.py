"""How every figure looks, and how one becomes SVG or PDF.

Matplotlib is imported when the first figure is drawn. Only its `Figure` is used, never pyplot, and its settings hold
only while a figure of ours is drawn.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart by every common kind of colour vision.
BLACK, BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = (
    "#000000",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
LINE_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
LINE_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.2)), (0, (1.2, 1)), (0, (6, 1.2, 1.2, 1.2)), (0, (3, 1)), "-")
GREY, DARK_GREY, GRID = "#9AA3AD", "#4A5560", "#E4E8EC"
HALF_INCHES, FULL_INCHES = 3.5, 7.0  # one and two columns of a journal
NAME_LENGTH = 24
OVERALL = "all sites"  # last in a legend

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so a figure is the same on every machine
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": DARK_GREY,
    "axes.labelcolor": "#222222",
    "xtick.color": DARK_GREY,
    "ytick.color": DARK_GREY,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.solid_capstyle": "round",
    "axes.prop_cycle": "cycler('color', ['#0072B2'])",
    "text.parse_math": False,  # a site called $\\alpha$ is called that
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Plot:
    """A figure that can be drawn, with what it shows in plain words."""

    name: str
    section: Literal["result", "training", "privacy", "run", "samples"]
    title: str
    caption: str
    width_inches: float
    draw: Callable[[], "Figure"]


@contextmanager
def _styled(salt: str) -> Iterator[None]:
    from matplotlib import rc_context

    with rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        # Names in scripts the font lacks: a browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(width_inches: float, height_inches: float) -> "Figure":
    """Return an empty figure; sizes are those of the printed page."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def inline_svg(plot: Plot) -> str:
    """Draw a figure as SVG to stand inside an HTML page: no prolog, no address, no identifier used twice."""
    buffer = io.StringIO()
    with _styled(f"echofed {plot.name}"):
        plot.draw().savefig(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawing, flags=re.DOTALL)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', drawing))
    kept = {first or second for first, second in used}
    drawing = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in kept else "", drawing)
    head, body = drawing.split(">", 1)
    view = re.search(r'viewBox="[^"]+"', head)
    label = escape(plot.title, quote=True)
    body = body.replace("xlink:href=", "href=")
    return f'<svg {view[0] if view else ""} role="img" aria-label="{label}">{body.strip()}'


def save(plot: Plot, path: Path) -> None:
    """Write one figure; the ending of the path (.svg, .pdf) says as what."""
    metadata = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None}
    with _styled(f"echofed {plot.name}"):
        plot.draw().savefig(path, metadata={**metadata, "Title": plot.title})


def short(name: str, length: int = NAME_LENGTH) -> str:
    """Return a name on one line, without control characters, cut to `length` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    line = f" {line}" if line.startswith("_") else line  # a legend leaves out names with a leading underscore
    return line if len(line) <= length else line[: length - 1] + "…"


@dataclass(frozen=True)
class Line:
    """How one of several lines is drawn."""

    colour: str
    dashes: Any
    width: float
    named: bool
    alpha: float = 1.0


def lines(names: Sequence[str]) -> dict[str, Line]:
    """Return the look of each line: told apart up to six, thin grey and unnamed beyond."""
    if len(names) > len(LINE_COLOURS):
        return dict.fromkeys(names, Line(GREY, "-", 0.6, named=False, alpha=0.65))
    looks = zip(LINE_COLOURS, LINE_DASHES, strict=True)
    return {name: Line(colour, dashes, 1.1, named=True) for name, (colour, dashes) in zip(names, looks, strict=False)}


def legend_below(figure: "Figure", columns: int) -> None:
    """Put one legend of all axes under them, where it hides nothing, in as many columns (at most `columns`) as fit."""
    entries: dict[tuple[str, str], Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries[label, str(getattr(handle, "get_color", str)())] = handle
    shown = sorted(entries, key=lambda entry: entry[0].startswith(OVERALL))
    labels = [label for label, _ in shown]
    if labels:
        while columns > 1 and _legend_inches(labels, columns) > figure.get_figwidth():
            columns -= 1
        figure.legend(
            [entries[entry] for entry in shown],
            labels,
            loc="outside lower left",
            ncols=columns,
            handlelength=2.4,
            columnspacing=1.4,
            labelspacing=0.35,
            borderpad=0.8,
            borderaxespad=0.2,
        )


def _legend_inches(labels: Sequence[str], columns: int) -> float:
    # Entries fill column after column; a letter of 7 points is 0.054 inches wide, a handle with its space 0.45.
    rows = -(-len(labels) // columns)
    longest = [max(map(len, labels[start : start + rows])) for start in range(0, len(labels), rows)]
    return sum(0.45 + 0.054 * letters for letters in longest)


def whole_numbers(axes: "Axes") -> None:
    """Let the horizontal axis count in whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))


def limits(values: Sequence[float], low: float | None = None, high: float | None = None) -> tuple[float, float]:
    """Return axis limits around values with a margin, never beyond `low` and `high`."""
    bottom, top = min(values), max(values)
    margin = 0.08 * (top - bottom) or 0.05 * abs(top) or 0.05
    bottom, top = bottom - margin, top + margin
    return (bottom if low is None else max(low, bottom)), (top if high is None else min(high, top))
