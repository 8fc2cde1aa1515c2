"""The report: one HTML file that needs nothing else."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from echofed.protocol.errors import RunError
from echofed.simulations.report import tables
from echofed.simulations.report.drawing import FULL_INCHES, Plot, inline_svg
from echofed.simulations.report.headline import headline
from echofed.simulations.report.plots import plots
from echofed.simulations.report.results import Results, read_results
from echofed.simulations.report.wording import text

# Nothing may be fetched or run, even if something slipped through the escaping.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_report(results: Mapping[str, Any], path: Path) -> None:
    """Write one self-contained HTML report.

    The same results give the same file. It holds no script and fetches nothing; all text is escaped.

    Args:
        results: the content of results.json.
        path: the file to write, replaced if there.

    Raises:
        RunError: `results` is not in format 1, or a sample is not a PNG.
    """
    path.write_text(render(read_results(results)), encoding="utf-8", newline="\n")


def write_report_of_file(results_file: Path, path: Path) -> None:
    """Write the report of a results.json.

    Raises:
        RunError: the file cannot be read or is not in format 1.
    """
    try:
        content = json.loads(results_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{results_file} cannot be read: {error}.", "Give the results.json of a run.") from error
    write_report(content, path)


def render(results: Results) -> str:
    """Return the report as HTML."""
    figures = dict.fromkeys(("result", "training", "privacy", "run", "samples"), "")
    for plot in plots(results):
        figures[plot.section] += _figure(plot)
    sections = [
        _section("Result", _beside(figures["result"], tables.rates_table(results)), _test(results)),
        _section("Training", _grid(figures["training"])),
        _section("Privacy", _beside(figures["privacy"], tables.privacy_table(results))),
        _section("Data", tables.data_table(results)),
        _section("Sample predictions", _grid(figures["samples"])),
        _section("The run", _grid(figures["run"]), tables.run_table(results)),
        _section("Left out and refused", tables.troubles(results)),
        _section("The study and how to repeat it", tables.provenance(results)),
    ]
    style = files("echofed.simulations.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        ""
        f"<title>{text(results.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{headline(results)}\n"
        + "".join(sections)
        + f"</main>\n<footer>{text(_small_print(results))}</footer>\n</body>\n</html>\n"
    )


def _figure(plot: Plot) -> str:
    width = "full" if plot.width_inches == FULL_INCHES else "half"
    return (
        f'<figure class="{width}" id="{plot.name}"><h3>{text(plot.title)}</h3>\n{inline_svg(plot)}\n'
        f"<figcaption>{text(plot.caption)}</figcaption></figure>\n"
    )


def _grid(figures: str) -> str:
    return f'<div class="figures">\n{figures}</div>\n' if figures else ""


def _beside(figures: str, numbers: str) -> str:
    """Put a table where a figure of half width leaves room, else under the figures."""
    if figures.count('<figure class="half"') % 2 and numbers:
        return f'<div class="figures">\n{figures}<div>{numbers}</div></div>\n'
    return _grid(figures) + numbers


def _section(title: str, *parts: str) -> str:
    body = "".join(parts)
    return f"<section>\n<h2>{text(title)}</h2>\n{body}\n</section>\n" if body.strip() else ""


def _test(results: Results) -> str:
    if not results.pooled.patients:
        return (
            "<p>No patient was kept for testing: there is no final test. See evaluation.test_fraction in the study.</p>"
        )
    return ""


def _small_print(results: Results) -> str:
    return (
        "A patient's images are averaged before anything is measured, so every patient counts once. Confidence "
        "intervals say how much the result depends on which patients were tested; they do not say how much it would "
        "change if the model were trained again. A research result: not a medical device, and not for decisions "
        "about patients."
    )
