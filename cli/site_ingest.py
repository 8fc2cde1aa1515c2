"""`echofed site ingest|receive|review|forget`: from the ultrasound machine to what a site registers."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from echofed.client.ingest.settings import IngestSettings

State = Annotated[Path, typer.Option(help="the site's state folder; the ingest is kept in ingest/ below it")]
WAIT_SECONDS = 5.0
"""Between two looks at what the receiver was sent."""
RETRY_SECONDS = 60.0
"""After an ingest of it that failed."""


def ingest(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="a folder, USB export or zip archive; default: the PACS in ingest.yaml", metavar="[SOURCE]"
        ),
    ] = None,
    state: State = Path("site"),
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="read anew what was set aside for a reason that may have passed, as after a timeout"
        ),
    ] = False,
) -> None:
    """Fetch ultrasound DICOM, de-identify it and store what can be trained on; what is doubtful waits for a person."""
    _leave_no_core()
    with _interruptible():
        found = _ingest(source, state, again)
    folder = state / "ingest"
    typer.echo(found)
    typer.echo(f"Quality: {folder / 'quality.html'}\nNext: echofed site register {folder} --state {state}")


def receive(state: State = Path("site")) -> None:
    """Take what scanners and PACS send (C-STORE), and ingest it as it comes, until stopped."""
    import time

    from echofed.client.ingest.encryption import store_key
    from echofed.client.ingest.forget import INGEST_FOLDER
    from echofed.client.ingest.instance import RECEIVED_FOLDER
    from echofed.client.ingest.journal import JOURNAL_FILE
    from echofed.client.ingest.settings import read_settings
    from echofed.client.ingest.sources.receiver import receiving, take_up_held

    _leave_no_core()
    folder = state / INGEST_FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    settings, received = read_settings(folder), folder / RECEIVED_FOLDER
    store_key(folder)
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        # Where Python is finalizing an object it swallows what is raised: the loop looks, too.
        stopped.set()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with receiving(settings.receiver, received) as (port, _):
        typer.echo(f"Receiving as {settings.receiver.ae_title} at {settings.receiver.host}:{port}. Ctrl-C stops.")
        if held := take_up_held(received):
            typer.echo(f"{held:,} files that were held are tried again.")
        # An ingest that was stopped may have noted instances that its index does not have yet.
        is_behind = (folder / JOURNAL_FILE).exists()
        with suppress(KeyboardInterrupt):
            while not stopped.is_set():
                seconds = WAIT_SECONDS
                if is_behind or any(received.glob("*.dcm")):
                    is_behind, seconds = _ingest_received(state, settings)
                time.sleep(seconds)
        typer.echo("Stopped; what was received and not ingested is ingested at the next start.")


def review(
    state: State = Path("site"),
    by: Annotated[str | None, typer.Option("--by", help="who decides; else the page asks")] = None,
    port: Annotated[int, typer.Option(help="of 127.0.0.1; 0: any free one")] = 0,
) -> None:
    """Show what waits for a person on a page of this machine alone; decisions are carried out when the page is closed."""
    from echofed.client.ingest.encryption import store_key
    from echofed.client.ingest.forget import INGEST_FOLDER
    from echofed.client.ingest.instance import REVIEW_FOLDER
    from echofed.client.ingest.pipeline import ingest as run
    from echofed.client.ingest.review.queue import all_cases
    from echofed.client.ingest.review.server import serve
    from echofed.client.ingest.settings import read_settings
    from echofed.protocol.errors import StateFolderError

    _leave_no_core()
    folder = state / INGEST_FOLDER
    store_key(folder)  # a passphrase is asked for now, not when the page is closed
    if not all_cases(folder / REVIEW_FOLDER):
        typer.echo("Nothing waits for a person.")
        return

    def announce(url: str) -> None:
        typer.echo(f"Open {url}\nCtrl-C closes the page and carries out what was decided.")

    serve(folder / REVIEW_FOLDER, port, by, announce=announce)
    try:
        with _interruptible():
            typer.echo(run(folder, None, read_settings(folder), state_folder=state).text())
    except StateFolderError:
        typer.echo("Another ingest is under way; the next one carries out what was decided.")


def forget(
    patient: Annotated[
        str,
        typer.Argument(help="patient id as the hospital writes it, or id^^^issuer; -: asked for", metavar="PATIENT"),
    ],
    state: State = Path("site"),
    pseudonym: Annotated[bool, typer.Option("--pseudonym", help="PATIENT is as the index names it")] = False,
) -> None:
    """Remove a patient everywhere in the state folder, and never take the patient in again."""
    from echofed.client.ingest.forget import INGEST_FOLDER
    from echofed.client.ingest.forget import forget as run
    from echofed.client.ingest.forgotten_exams import erase_from_ingest, pseudonyms_of

    _leave_no_core()
    folder = state / INGEST_FOLDER
    shown, patient = ("the patient", _asked_for()) if patient == "-" else (patient, patient)
    named = [patient] if pseudonym or not folder.exists() else sorted(pseudonyms_of(folder, patient))
    erased = run(state, named, [erase_from_ingest(folder)] if folder.exists() else [])
    if not (erased.frames or erased.index_rows or erased.images or erased.others):
        typer.echo(
            f"Nothing of {shown} was here. It is noted, and the patient will not be taken in. If the hospital's files name "
            "who issued the id, write id^^^issuer; upper and lower case differ."
        )
        return
    typer.echo(
        f"Removed: {erased.frames:,} frames, {erased.images:,} registered images, {erased.caches:,} caches "
        f"(made anew when needed), {erased.others:,} other entries. Restart the node."
    )


def _asked_for() -> str:
    """Return the patient from standard input: arguments stand in the list of processes and in the shell's history."""
    if sys.stdin.isatty():
        return str(typer.prompt("Patient", hide_input=True))
    return sys.stdin.readline().strip()


def _leave_no_core() -> None:
    from echofed.client.ingest.workers import leave_no_core

    leave_no_core()


def _ingest_received(state: Path, settings: "IngestSettings") -> tuple[bool, float]:
    """Ingest what was received; return whether it has to be tried again, and in how many seconds to look again."""
    from echofed.client.ingest.forget import INGEST_FOLDER
    from echofed.client.ingest.instance import RECEIVED_FOLDER
    from echofed.client.ingest.pipeline import ingest as run
    from echofed.client.ingest.sources.settings import ReceivedSource
    from echofed.protocol.errors import EchoFedError, StateFolderError

    folder = state / INGEST_FOLDER
    source = ReceivedSource(path=folder / RECEIVED_FOLDER)
    try:
        typer.echo(run(folder, source, settings, state_folder=state).text())
    except StateFolderError:
        typer.echo("Another ingest is under way; what was received waits for its end.")
        return True, WAIT_SECONDS
    except EchoFedError as error:
        said = f"error {error.code}: {error.what}\nWhat to do: {error.remedy}"
    except OSError as error:
        said = f"{error.filename or 'A file'}: {error.strerror}."
    else:
        return False, WAIT_SECONDS
    typer.echo(f"{said}\nWhat was received is kept; in {RETRY_SECONDS:.0f} s it is tried again.", err=True)
    return True, RETRY_SECONDS


def _ingest(source: Path | None, state: Path, again: bool) -> str:
    from rich.console import Console

    from echofed.cli.progress import progress_bars
    from echofed.client.ingest.errors import IngestError
    from echofed.client.ingest.forget import INGEST_FOLDER
    from echofed.client.ingest.journal import JOURNAL_FILE
    from echofed.client.ingest.pipeline import ingest as run
    from echofed.client.ingest.settings import read_settings
    from echofed.client.ingest.sources.settings import FolderSource

    folder = state / INGEST_FOLDER
    settings = read_settings(folder)
    given = FolderSource(path=source.absolute()) if source else settings.source
    if given is None and not (folder / JOURNAL_FILE).exists():
        raise IngestError("There is nothing to ingest.", f"Name a folder, or write a source into {folder}/ingest.yaml.")
    with progress_bars(Console(stderr=True)) as show:
        return run(folder, given, settings, show, state, again=again).text()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Say after Ctrl-C or SIGTERM that nothing is lost."""
    from echofed.protocol.errors import InterruptedRunError

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRunError(
            "The ingest was stopped; what was read is kept.", "Run the same command again: it goes on where it stopped."
        ) from error
