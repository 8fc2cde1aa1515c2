"""`echofed site studies|show|approve|refuse|withdraw` and `echofed site policy`: what a hospital lets run."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from echofed.client.identity import Identity
    from echofed.client.link import Link
    from echofed.protocol.audit_log import AuditLog

policy = typer.Typer(no_args_is_help=True, help="The hospital's own limits: policy.yaml in the state folder.")
State = Annotated[Path, typer.Option(help="the site's state folder; holds its registry and keys")]
StudyHash = Annotated[str, typer.Argument(help="the study's hash, its first 8 digits or more", metavar="STUDY")]
Person = Annotated[str, typer.Option("--by", help='who decides, by name, e.g. "Dr A. Martin"')]
ASK_SECONDS = 8.0
"""After which a person is not kept waiting for a server that does not answer."""
Offline = Annotated[bool, typer.Option("--offline", help="do not ask the coordinator's server; use what is held here")]


def studies(state: State = Path("site"), offline: Offline = False) -> None:
    """List the studies the coordinator has published, and what this hospital has said to each."""
    from echofed.client.held_studies import damaged_studies, held_studies

    with _opened(state) as (identity, log), _connected(state, identity, log, offline):
        held, damaged = held_studies(state, identity), damaged_studies(state, identity)
    if not held and not damaged:
        typer.echo("No study has been published.")
    for one in held:
        if one.withdrawal:
            said = f", {one.withdrawal.withdrawn_at}"
        else:
            said = f" by {one.answers[-1].person}, {one.answers[-1].decided_at}" if one.answers else ""
        typer.echo(f"{one.hash[:12]}  {one.state}{said}\n              {one.study.title}")
    for study, error in damaged.items():
        typer.echo(f"{study[:12]}  cannot be trusted: {error}")


def show(study: StudyHash, state: State = Path("site"), offline: Offline = False) -> None:
    """Show a study on one page: what is computed, on which of our exams, what leaves, what it costs our patients."""
    from echofed.client.held_studies import read_held_study
    from echofed.client.study_page import study_page

    with _opened(state) as (identity, log), _connected(state, identity, log, offline):
        typer.echo(study_page(state, read_held_study(state, _found(state, study), identity)))


def approve(
    study: StudyHash,
    by: Person,
    reason: Annotated[str | None, typer.Option(help="kept and sent with the approval")] = None,
    state: State = Path("site"),
    offline: Offline = False,
) -> None:
    """Approve a study: exactly this document with exactly these initial parameters; signed, kept and logged."""
    from echofed.client.approvals import approve

    with _opened(state) as (identity, log), _connected(state, identity, log, offline) as link:
        study_hash = _found(state, study)
        approve(state, study_hash, by, reason, member=identity, log=log)
        typer.echo(f"Approved {study_hash[:12]}. The node takes part as soon as it runs: `echofed site start`.")
        _deliver(state, link)


def refuse(
    study: StudyHash,
    by: Person,
    reason: Annotated[str, typer.Option(help="sent to the coordinator")],
    state: State = Path("site"),
    offline: Offline = False,
) -> None:
    """Refuse a study, with a reason."""
    from echofed.client.approvals import refuse

    with _opened(state) as (identity, log), _connected(state, identity, log, offline) as link:
        study_hash = _found(state, study)
        refuse(state, study_hash, by, reason, member=identity, log=log)
        typer.echo(f"Refused {study_hash[:12]}.")
        _deliver(state, link)


def withdraw(
    study: StudyHash,
    by: Person,
    reason: Annotated[str | None, typer.Option(help="sent to the coordinator")] = None,
    state: State = Path("site"),
    offline: Offline = False,
) -> None:
    """Withdraw from an approved study, at any time; nothing more is computed for it from this moment on."""
    from echofed.client.approvals import withdraw

    with _opened(state) as (identity, log):
        # First of all: a server that does not answer must not delay it.
        study_hash = _found(state, study)
        withdraw(state, study_hash, by, reason, member=identity, log=log)
        typer.echo(f"Withdrawn from {study_hash[:12]}; what has left already cannot be called back.")
        with _connected(state, identity, log, offline) as link:
            _deliver(state, link)


@policy.command()
def check(state: State = Path("site")) -> None:
    """Check the hospital's policy file and say in plain words what it means."""
    from echofed.client.policy import FILE_NAME, load_policy
    from echofed.client.policy_check import policy_text
    from echofed.protocol.errors import StateFolderError

    if not state.is_dir():
        raise StateFolderError(f"There is no folder {state}.", "Name the site's state folder with --state.")
    found = load_policy(state)
    path = state / FILE_NAME
    typer.echo(f"{path}" + ("" if path.exists() else " (not written, these are the defaults)"))
    typer.echo(policy_text(found))


@policy.callback()
def _policy() -> None:
    """The hospital's own limits: policy.yaml in the state folder."""


@contextmanager
def _opened(state: Path) -> Iterator[tuple["Identity", "AuditLog"]]:
    from echofed.client.identity import load_identity
    from echofed.protocol.audit_log import open_audit_log

    identity = load_identity(state)
    with open_audit_log(state, owner=identity.site) as log:
        yield identity, log


@contextmanager
def _connected(state: Path, identity: "Identity", log: "AuditLog", offline: bool) -> Iterator["Link | None"]:
    """Bring what is held up to date with the coordinator and yield the link; None if it cannot be reached."""
    from echofed.client.link import Link
    from echofed.client.link_settings import load_link_settings
    from echofed.protocol.errors import CertificateError, ClockError, LinkError

    if offline:
        yield None
        return
    link = None
    try:
        link = Link(identity, load_link_settings(state))
        _refresh(state, identity, log, link)
        reached = True
    except (LinkError, CertificateError, ClockError) as error:
        sys.stderr.write(f"{error}\nWhat follows is what is held here.\n")
        reached = False
    try:
        yield link if reached else None
    finally:
        if link is not None:
            link.close()


def _refresh(state: Path, identity: "Identity", log: "AuditLog", link: "Link") -> None:
    from echofed.client.studies_sync import fetch_studies

    for error in fetch_studies(state, identity, log, link, ASK_SECONDS):
        sys.stderr.write(f"Not taken from the coordinator's server: {error}\n")


def _deliver(state: Path, link: "Link | None") -> None:
    from echofed.client.approvals import unsent_answers
    from echofed.client.studies_sync import send_answers
    from echofed.protocol.errors import CertificateError, ClockError, LinkError

    try:
        if link is not None:
            send_answers(state, link)
    except (LinkError, CertificateError, ClockError) as error:
        sys.stderr.write(f"{error}\n")
    if left := len(unsent_answers(state)):
        count = "One answer is" if left == 1 else f"{left} answers are"
        typer.echo(f"{count} still to be sent: the node does it once it reaches the coordinator.")


def _found(state: Path, prefix: str) -> str:
    from echofed.client.held_studies import study_hashes
    from echofed.protocol.publication import find_hash

    return find_hash(prefix, study_hashes(state))
