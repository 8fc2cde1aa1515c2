"""`echofed consortium`: the coordinator's members."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from datetime import datetime

    from echofed.server.members import Member

app = typer.Typer(no_args_is_help=True)
State = Annotated[Path, typer.Option(help="the coordinator's folder")]
Encrypt = Annotated[
    bool, typer.Option("--encrypt", help="ask for a passphrase for the keys; ECHOFED_PASSPHRASE, if set, is it")
]


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="the consortium's name", metavar="NAME")],
    address: Annotated[str, typer.Option(help="host:port under which hospitals reach the server")],
    state: State = Path("consortium"),
    encrypt: Encrypt = False,
) -> None:
    """Make a consortium's keys and certificates; run again, finish what was interrupted and renew what expires."""
    from echofed.protocol.key_files import new_passphrase
    from echofed.server.authority import AUTHORITY, init_consortium

    consortium = init_consortium(state, name, address, new_passphrase(ask=encrypt))
    typer.echo(f"{consortium.settings.name} at {consortium.settings.address}, in {state}.")
    typer.echo(f"Fingerprint:\n  {consortium.words}")
    root = state / AUTHORITY / "root.key"
    if root.exists():
        typer.echo(f"Move {root} to offline storage: it is needed again only to renew authority certificates.")


@app.command()
def invite(
    site: Annotated[str, typer.Argument(help="the hospital's name in the consortium", metavar="SITE")],
    state: State = Path("consortium"),
    out: Annotated[Path | None, typer.Option(help="file to write; SITE.invitation if not given")] = None,
    readmit: Annotated[bool, typer.Option("--readmit", help="let in a site that was revoked")] = False,
) -> None:
    """Write a one-time invitation to send to a hospital."""
    from echofed.server.authority import read_consortium
    from echofed.server.enrolments import site_name
    from echofed.server.members import invite

    path = invite(state, site, out or Path(f"{site_name(site)}.invitation"), readmit=readmit)
    consortium = read_consortium(state)
    typer.echo(f"Send {path} to {site}; it can be used once, within {consortium.settings.invitation_days} days.")
    typer.echo(f"When {site} calls, read out the consortium's words:\n  {consortium.words}")


@app.command()
def enrol(
    request: Annotated[Path, typer.Argument(help="what the hospital sent, SITE.request", metavar="REQUEST")],
    state: State = Path("consortium"),
    words: Annotated[str | None, typer.Option(help="the eight words the hospital read out over the telephone")] = None,
    out: Annotated[Path | None, typer.Option(help="file to write; SITE.membership beside the request")] = None,
) -> None:
    """Enrol a hospital after its words were compared over the telephone."""
    from echofed.server.members import enrol, read_request

    if words is None:
        words = _compared(read_request(state, request).words)
    path = enrol(state, request, words, out)
    typer.echo(f"Enrolled. Send {path} to the hospital; nothing in it is secret.")


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(help="the hospital's name", metavar="SITE")],
    reason: Annotated[str, typer.Option(help="why; kept, and shown in the status")],
    state: State = Path("consortium"),
) -> None:
    """Let a hospital in no more, from its next request on."""
    from echofed.server.members import revoke

    revoke(state, site, reason)
    typer.echo(f"{site} is revoked.")


@app.command()
def status(state: State = Path("consortium")) -> None:
    """Show who is enrolled, online, expiring and revoked."""
    from datetime import UTC, datetime

    from echofed.protocol.membership import parse_time
    from echofed.server.authority import expiry_warnings, read_consortium
    from echofed.server.roster import members, open_invitations
    from echofed.server.site_heads import forked_sites

    now = datetime.now(UTC)
    consortium, found, invited = read_consortium(state), members(state, now), open_invitations(state, now)
    typer.echo(f"{consortium.settings.name} at {consortium.settings.address}; {len(found)} sites.")
    rows = [("site", "enrolled", "certificate expires", "state")]
    rows += [(one.site, _day(one.enrolled_at), _minute(one.expires_at), _state(one)) for one in found]
    rows += [(one.site, "", "", f"invited, until {_minute(parse_time(one.expires_at))}") for one in invited]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    late = [warning for one in found if (warning := _lateness(one, now))]
    for warning in [*late, *forked_sites(state).values(), *expiry_warnings(consortium, now)]:
        typer.echo(f"Warning: {warning}")


def _compared(words: str) -> str:
    """Return the words of a request once whoever sits there says that the hospital read out the same."""
    import sys

    from echofed.protocol.errors import EnrolmentError

    if not sys.stdin.isatty():
        raise EnrolmentError(
            "The words were not compared.", 'Call the hospital, and give what it reads out: --words "..."'
        )
    typer.echo(f"Call the hospital on a number you know. It must read out:\n  {words}")
    if not typer.confirm("Did it read out exactly these words?"):
        raise EnrolmentError("The words differ: nobody was enrolled.", "Ask the hospital for its request again.")
    return words


def _state(member: "Member") -> str:
    if member.revocation:
        return f"revoked {member.revocation.revoked_at[:10]}: {member.revocation.reason}"
    if member.seen_at is None:
        return "never seen"
    return "online" if member.online else f"last seen {_minute(member.seen_at)}"


def _lateness(member: "Member", now: "datetime") -> str | None:
    if member.revocation or not member.overdue:
        return None
    if member.expires_at <= now:
        return f"The certificate of {member.site} has expired: it needs a new invitation."
    return f"The certificate of {member.site} should have been renewed by now: is the site running?"


def _day(moment: "datetime") -> str:
    return f"{moment:%Y-%m-%d}"


def _minute(moment: "datetime") -> str:
    return f"{moment:%Y-%m-%d %H:%M}"
