"""`echofed site init` and `join`: how a hospital comes into a consortium."""

from pathlib import Path
from typing import Annotated

import typer

State = Annotated[Path, typer.Option(help="the site's state folder; holds its registry and keys")]


def init(
    invitation: Annotated[
        Path, typer.Argument(help="what the coordinator sent, SITE.invitation", metavar="INVITATION")
    ],
    state: State = Path("site"),
    name: Annotated[
        str | None, typer.Option(help="the site's name, if it is to be compared with the invitation")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="file to write; SITE.request if not given")] = None,
    encrypt: Annotated[
        bool, typer.Option("--encrypt", help="ask for a passphrase for the keys; ECHOFED_PASSPHRASE, if set, is it")
    ] = False,
) -> None:
    """Make the site's keys, which never leave it, and the request to send to the coordinator."""
    from echofed.client.identity import init_site
    from echofed.protocol.key_files import new_passphrase

    request = init_site(state, invitation, name, out, passphrase=new_passphrase(ask=encrypt))
    invited = request.invitation
    typer.echo(f"Invitation of {invited.site} to {invited.name} at {invited.address}.")
    typer.echo(f"Send {request.path} to the coordinator, then call on a number you know.")
    typer.echo(f"The coordinator must read out:\n  {request.consortium_words}")
    typer.echo(f"If these are the words, read out yours:\n  {request.words}")
    typer.echo("If they are not, stop: the invitation is not the coordinator's.")


def join(
    membership: Annotated[
        Path, typer.Argument(help="what the coordinator sent, SITE.membership", metavar="MEMBERSHIP")
    ],
    state: State = Path("site"),
) -> None:
    """Install the membership the coordinator sent."""
    from echofed.client.identity import join

    identity = join(state, membership)
    typer.echo(f"{identity.site} is a member of {identity.membership.consortium_name}.")
    typer.echo(f"Its certificate is valid until {identity.membership.expires_at}, and renewed by `echofed site start`.")
