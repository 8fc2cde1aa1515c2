"""`echofed study`: write and check study documents."""

from pathlib import Path
from typing import Annotated

import typer

from echofed.cli import study_publish

app = typer.Typer(no_args_is_help=True)
StudyFile = Annotated[Path, typer.Argument(help="the study document, YAML", metavar="STUDY")]


@app.command()
def new(
    file: Annotated[Path, typer.Argument(help="file to write", metavar="FILE")],
    task: Annotated[str, typer.Option(help="binary, multiclass, multilabel, segmentation or regression")] = "binary",
) -> None:
    """Write a study to start from, with the defaults that measured best and a comment on every choice."""
    from echofed.protocol.errors import RunError
    from echofed.protocol.study_template import study_template

    text = study_template(task)
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise RunError(f"{file} exists.", "Choose another name; nothing was overwritten.") from error
    typer.echo(f"Wrote {file}. Edit it, then run: echofed study check {file}")


@app.command()
def check(file: StudyFile) -> None:
    """Check a study and print, on one page, what it means for a hospital and its patients."""
    from echofed.protocol.study_file import load_study
    from echofed.protocol.study_summary import summary

    typer.echo(summary(load_study(file)))


@app.command()
def init(
    file: StudyFile,
    seed: Annotated[int, typer.Option(min=0, help="of the initial parameters")] = 0,
    start_from: Annotated[
        Path | None, typer.Option("--from", help="take the encoder from this safetensors file")
    ] = None,
) -> None:
    """Write the study's initial-parameters file beside it, and its hash into the study."""
    from rich.console import Console

    from echofed.cli.progress import progress_bars
    from echofed.simulations.initial import initialise_study

    with progress_bars(Console(stderr=True)) as show:
        written = initialise_study(file, seed, start_from, show)
    typer.echo(f"Wrote {written}; its SHA-256 is in {file}.")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a study, for editors."""
    import json

    from echofed.protocol.study_file import study_json_schema

    typer.echo(json.dumps(study_json_schema(), indent=2, ensure_ascii=False))


for command in (
    study_publish.sign,
    study_publish.publish,
    study_publish.withdraw,
    study_publish.run,
    study_publish.pause,
    study_publish.resume,
    study_publish.stop,
    study_publish.extend,
    study_publish.status,
    study_publish.log,
):
    app.command()(command)
