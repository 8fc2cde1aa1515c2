"""`echofed demo`: a private federated study on phantoms, from nothing to its report."""

import os
from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path | None, typer.Option(help="folder of the demo; made anew; default: in runs")] = None,
    sites: Annotated[int, typer.Option(min=2, max=46, help="hospitals to simulate")] = 5,
    patients: Annotated[int, typer.Option(min=10, help="phantom patients of an average hospital")] = 100,
    workers: Annotated[int, typer.Option(min=1, help="worker processes; default: one a core")] = os.cpu_count() or 1,
    seed: Annotated[int, typer.Option(min=0, help="of phantoms, splits, sampling and noise")] = 0,
    real: Annotated[bool, typer.Option("--real", help="real processes, certificates and TLS on loopback")] = False,
    rounds: Annotated[int, typer.Option(min=5, max=40, help="of the study, with --real")] = 12,
) -> None:
    """Draw phantoms for a few hospitals and train one model on them with patient-level privacy."""
    from rich.console import Console

    from echofed.cli.progress import progress_bars
    from echofed.simulations.demo import run_demo

    console = Console(stderr=True)
    console.print(
        f"{sites} hospitals, each with its own ultrasound machine and about {patients} phantom patients, train one model "
        "that tells malignant from benign lesions. No image leaves its hospital; noise hides each patient."
    )
    if real:
        from echofed.cli.real_demo import show_real_demo

        folder = show_real_demo(out or Path("runs/demo-real"), sites, patients, rounds, seed, console)
        typer.echo(f"All processes have ended. The model: {folder / 'model-last.safetensors'}")
        typer.echo(f"What the coordinator did: echofed audit show --state {folder.parents[1]}")
        return
    with progress_bars(console) as show:
        folder = run_demo(out or Path("runs/demo"), sites, patients, workers, seed, show)
    from echofed.simulations.results import headline, read_results

    typer.echo(headline(read_results(folder)))
    typer.echo(f"Report: {folder / 'report.html'}")
    typer.echo("The same with real processes, certificates and TLS: echofed demo --real")
    typer.echo(f"Your own data: echofed simulate {folder / 'study.yaml'} --data FOLDER   (see README.md)")
