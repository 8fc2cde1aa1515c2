"""`echofed simulate` and `echofed report`."""

import os
from pathlib import Path
from typing import Annotated

import typer


def simulate(
    study: Annotated[Path, typer.Argument(help="the study document, YAML", metavar="STUDY")],
    data: Annotated[
        Path, typer.Option(help="a CSV index, a folder with index.csv, or a folder of such folders (one a site)")
    ],
    site_column: Annotated[str | None, typer.Option(help="column naming each row's site; default: centre")] = None,
    virtual_sites: Annotated[int | None, typer.Option(min=1, help="spread patients over this many sites")] = None,
    label_skew: Annotated[
        float | None,
        typer.Option(min=0.01, help="with --virtual-sites: Dirichlet concentration, smaller is more uneven"),
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="a column's name in the index, e.g. patient=PID or label=diagnosis; repeat")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the run; default: runs/TITLE-HASH-SEED")] = None,
    initial: Annotated[Path | None, typer.Option(help="initial-parameters file, if the study names one")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of splits, sampling, noise and initial parameters")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="worker processes; default: one a core")] = os.cpu_count() or 1,
    resume: Annotated[bool, typer.Option("--resume", help="go on after the last checkpoint")] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="also train on the pooled data and on each site alone")
    ] = False,
    sites: Annotated[
        Path | None, typer.Option(help="keep registered sites in this folder, to share them between runs")
    ] = None,
    engine: Annotated[str, typer.Option(help="pool, or flower for Flower's own engine (Ray)")] = "pool",
) -> None:
    """Run a study on data split over sites on this machine, and write its report."""
    from rich.console import Console

    from echofed.cli.columns import read_columns
    from echofed.cli.progress import progress_bars
    from echofed.simulations.run import Simulation, simulate_study
    from echofed.simulations.sites import DataSource

    console = Console(stderr=True)
    source = DataSource(data, site_column, virtual_sites, label_skew, read_columns(column or []))
    with progress_bars(console) as show:
        folder = simulate_study(
            Simulation(study, source, out, seed, workers, resume, initial, baselines, engine, sites=sites), show
        )
    _announce(folder)


def report(
    run: Annotated[Path, typer.Argument(help="folder of a finished run", metavar="RUN")],
    figures: Annotated[Path | None, typer.Option(help="also write each plot as PDF and SVG into this folder")] = None,
) -> None:
    """Write a run's report again, and its figures for publication."""
    from echofed.simulations.results import read_results, render

    results = read_results(run)
    render(results, run, figures)
    _announce(run)


def _announce(folder: Path) -> None:
    from echofed.simulations.results import headline, read_results

    typer.echo(headline(read_results(folder)))
    typer.echo(f"Report: {folder / 'report.html'}")
