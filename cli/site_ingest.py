"""`echofed site ingest|receive|review|forget`: from the ultrasound machine to what a site registers."""

from pathlib import Path
from typing import Annotated

import typer

State = Annotated[Path, typer.Option(help="the site's state folder; the ingest is kept in ingest/ below it")]
RECEIVED_FOLDER = "received"
WAIT_SECONDS = 5.0
"""Between two looks at what the receiver was sent."""


def ingest(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="a folder, USB export or zip archive; default: the PACS in ingest.yaml", metavar="[SOURCE]"
        ),
    ] = None,
    state: State = Path("site"),
) -> None:
    """Fetch ultrasound DICOM, de-identify it and store what can be trained on; what is doubtful waits for a person."""
    from rich.console import Console

    from echofed.cli.progress import progress_bars
    from echofed.client.ingest.forget import INGEST_FOLDER
    from echofed.client.ingest.pipeline import ingest as run
    from echofed.client.ingest.settings import read_settings
    from echofed.client.ingest.sources.item import Progress
    from echofed.client.ingest.sources.settings import FolderSource

    folder = state / INGEST_FOLDER
    settings = read_settings(folder)
    given = FolderSource(path=source.absolute()) if source else settings.source
    with progress_bars(Console(stderr=True)) as show:

        def report(progress: Progress, read: int) -> None:
            show("Looking", progress.units_done, progress.units or 0)
            show("Reading", read, progress.found - progress.skipped)

        found = run(folder, given, settings, report, state)
    typer.echo(found.text())
    typer.echo(f"Quality: {folder / 'quality.html'}\nNext: echofed site register {folder} --state {state}")


def receive(state: State = Path("site")) -> None:
    """Take what scanners and PACS send (C-STORE), and ingest it as it comes, until stopped."""
    import time

    from echofed.client.ingest.forget import INGEST_FOLDER
    from echofed.client.ingest.pipeline import ingest as run
    from echofed.client.ingest.settings import read_settings
    from echofed.client.ingest.sources.receiver import receiving
    from echofed.client.ingest.sources.settings import ReceivedSource

    folder = state / INGEST_FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings, received = read_settings(folder), folder / RECEIVED_FOLDER
    with receiving(settings.receiver, received) as (port, _):
        typer.echo(f"Receiving as {settings.receiver.ae_title} at {settings.receiver.host}:{port}. Ctrl-C stops.")
        try:
            while True:
                if any(received.glob("*.dcm")):
                    typer.echo(run(folder, ReceivedSource(path=received), settings, state_folder=state).text())
                time.sleep(WAIT_SECONDS)
        except KeyboardInterrupt:
            typer.echo("Stopped; what was received and not ingested is ingested at the next start.")


def review(
    state: State = Path("site"),
    by: Annotated[str | None, typer.Option("--by", help="who decides; else the page asks")] = None,
    port: Annotated[int, typer.Option(help="of 127.0.0.1; 0: any free one")] = 0,
) -> None:
    """Show what waits for a person on a page of this machine alone; decisions are carried out when the page is closed."""
    from echofed.client.ingest.forget import INGEST_FOLDER
    from echofed.client.ingest.instance import REVIEW_FOLDER
    from echofed.client.ingest.pipeline import ingest as run
    from echofed.client.ingest.review.server import serve
    from echofed.client.ingest.settings import read_settings

    folder = state / INGEST_FOLDER

    def announce(url: str) -> None:
        typer.echo(f"Open {url}\nCtrl-C closes the page and carries out what was decided.")

    serve(folder / REVIEW_FOLDER, port, by, announce=announce)
    typer.echo(run(folder, None, read_settings(folder), state_folder=state).text())


def forget(
    patient: Annotated[
        str, typer.Argument(help="patient id as the hospital writes it, or id^^^issuer", metavar="PATIENT")
    ],
    state: State = Path("site"),
    pseudonym: Annotated[bool, typer.Option("--pseudonym", help="PATIENT is as the index names it")] = False,
) -> None:
    """Remove a patient everywhere in the state folder, and never take the patient in again."""
    from echofed.client.ingest.forget import INGEST_FOLDER
    from echofed.client.ingest.forget import forget as run
    from echofed.client.ingest.forgotten_exams import erase_from_ingest, pseudonym_of

    folder = state / INGEST_FOLDER
    named = patient if pseudonym or not folder.exists() else pseudonym_of(folder, patient)
    erased = run(state, [named], [erase_from_ingest(folder)] if folder.exists() else [])
    typer.echo(
        f"Removed: {erased.frames:,} frames, {erased.images:,} registered images, {erased.caches:,} caches "
        f"(made anew when needed), {erased.others:,} other entries. Restart the node."
    )
