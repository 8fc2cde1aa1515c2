"""`echofed server`: the coordinator's processes."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)
State = Annotated[Path, typer.Option(help="the coordinator's folder; `echofed consortium init` makes it")]


@app.command()
def start(
    state: State = Path("consortium"),
    unix_socket: Annotated[
        Path | None,
        typer.Option(help="listen there instead of on the network: nginx stands in front (see server nginx)"),
    ] = None,
) -> None:
    """Run SuperLink, the gateway and the conductor of studies until stopped; for systemd or a terminal."""
    from echofed.cli.server_processes import run_server

    run_server(state, unix_socket)


@app.command()
def nginx(
    state: State = Path("consortium"),
    unix_socket: Annotated[Path, typer.Option(help="where `echofed server start --unix-socket` listens")] = Path(
        "/run/echofed/gateway.sock"
    ),
) -> None:
    """Print an nginx configuration that lets in what the gateway lets in, and nothing else."""
    from echofed.server.nginx import nginx_configuration
    from echofed.server.settings import load_settings

    typer.echo(nginx_configuration(state, load_settings(state), unix_socket), nl=False)


@app.command("install-service")
def install_service(
    state: State = Path("consortium"),
    unix_socket: Annotated[Path | None, typer.Option(help="listen there, behind nginx")] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="holds ECHOFED_PASSPHRASE=...; readable by root alone")
    ] = None,
    memory_max: Annotated[str | None, typer.Option(help='most memory it may use, as in "16G"')] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the unit, install nothing")] = False,
) -> None:
    """Install the coordinator as a hardened systemd service that starts with the machine."""
    from echofed.cli.services import install, server_unit

    unit = server_unit(state, unix_socket, passphrase_file=passphrase_file, memory_max=memory_max)
    install("echofed-server", unit, dry_run=dry_run)
