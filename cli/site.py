"""`echofed site`: register and check a site's images."""

from pathlib import Path
from typing import Annotated

import typer

from echofed.cli import site_doctor, site_ingest, site_membership, site_studies

app = typer.Typer(no_args_is_help=True)
for command in (
    site_membership.init,
    site_membership.join,
    site_ingest.ingest,
    site_ingest.receive,
    site_ingest.review,
    site_ingest.forget,
    site_studies.studies,
    site_studies.show,
    site_studies.approve,
    site_studies.refuse,
    site_studies.withdraw,
    site_doctor.doctor,
):
    app.command()(command)
app.add_typer(site_studies.policy, name="policy")
State = Annotated[Path, typer.Option(help="the site's state folder; holds its registry and keys")]


@app.command()
def register(
    data: Annotated[Path, typer.Argument(help="folder with index.csv and images", metavar="FOLDER")],
    state: State = Path("site"),
    name: Annotated[
        str | None, typer.Option(help="the site's name; default: as it is enrolled or registered, else 'site'")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="a column's name in the index, e.g. patient=PID or label=diagnosis; repeat")
    ] = None,
) -> None:
    """Register a folder of images, or bring its registration up to date; bad images are set aside with a reason."""
    from pydantic import ValidationError
    from rich.console import Console

    from echofed.cli.columns import read_columns
    from echofed.cli.progress import progress_bars
    from echofed.client.identity import known_name
    from echofed.client.settings import SiteSettings
    from echofed.client.site import create_site
    from echofed.protocol.errors import RegistrationError

    known = known_name(state)
    if name and known and name != known:
        raise RegistrationError(
            f"The site is enrolled as {known}, not as {name}.", f"Leave out --name, or write {known}."
        )
    name = name or known or "site"
    try:
        settings = SiteSettings(name=name, data_folder=data.absolute(), columns=read_columns(column or []))
    except ValidationError as error:
        remedy = "Use letters, digits, dots, dashes and underscores, at most 64, a letter or digit first."
        raise RegistrationError(f"'{name}' does not make a site's name.", remedy) from error
    with progress_bars(Console(stderr=True)) as show:
        found = create_site(state, settings).register(lambda done, total: show("Reading images", done, total))
    typer.echo(found.text())


@app.command()
def check(
    study: Annotated[Path, typer.Argument(help="the study document, YAML", metavar="STUDY")],
    state: State = Path("site"),
) -> None:
    """Show what the site can bring to a study: patients, images and labels, and what is left out and why."""
    from echofed.client.site import open_site
    from echofed.protocol.study_file import load_study

    typer.echo(open_site(state).check(load_study(study)).text())


@app.command()
def budget(
    state: State = Path("site"),
    study: Annotated[Path | None, typer.Option(help="a study document: show what the whole of it would cost")] = None,
) -> None:
    """Show what the patients' privacy budget is, what studies have spent of it and what is left."""
    from echofed.cli.budget import budget_text

    typer.echo(budget_text(state, study))


@app.command()
def start(state: State = Path("site")) -> None:
    """Run the site's node until stopped: outbound connections only; for systemd or a terminal."""
    from echofed.cli.site_processes import run_site

    run_site(state)


@app.command("install-service")
def install_service(
    state: State = Path("site"),
    passphrase_file: Annotated[
        Path | None, typer.Option(help="holds ECHOFED_PASSPHRASE=...; readable by root alone")
    ] = None,
    memory_max: Annotated[str | None, typer.Option(help='most memory it may use, as in "16G"')] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="let it use NVIDIA devices")] = False,
    group: Annotated[list[str] | None, typer.Option(help="group that may read the images; repeat")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the unit, install nothing")] = False,
) -> None:
    """Install the site as a hardened systemd service that starts with the machine."""
    from echofed.cli.services import install, site_unit

    unit = site_unit(state, passphrase_file=passphrase_file, memory_max=memory_max, gpu=gpu, groups=group or ())
    install("echofed-site", unit, dry_run=dry_run)
