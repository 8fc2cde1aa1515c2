"""`echofed audit`: show and check a party's audit log."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from echofed.protocol.audit_log import AuditLog, Entry

app = typer.Typer(no_args_is_help=True)
State = Annotated[Path, typer.Option(help="the state folder of a site or of the coordinator")]
OWN_FOLDERS = (Path("site"), Path("consortium"))


@app.command()
def verify(
    state: State | None = None,
    against: Annotated[
        Path | None,
        typer.Option(help="another party's log, exported with --json: compare what each noted of the other"),
    ] = None,
) -> None:
    """Check that no entry of the log was edited, deleted, inserted or moved, and that none is missing at the end."""
    from echofed.protocol.audit_export import compare, export_of, read_export
    from echofed.protocol.errors import AuditLogError

    with _open(state) as log:
        if against is None:
            head = log.verify()
            typer.echo(f"{log.path}: {head.entries} entries, whole.\nHead {head.hash}")
            return
        mine, theirs = export_of(log), read_export(against)
    found = compare(mine, theirs)
    typer.echo(f"{log.path}: {mine.head.entries} entries, whole.\n{against}: {theirs.head.entries} entries, whole.")
    if found.contradictions:
        raise AuditLogError(
            f"One of the two logs was rewritten. {' '.join(found.contradictions[:10])}",
            "Keep both as they are. The heads are signed by whose log they are of: the one that contradicts them was changed.",
        )
    typer.echo(f"{found.compared} heads that one noted of the other's log, all as they should be.")
    if not found.compared:
        typer.echo("So nothing is proven: the two have not exchanged heads.")


@app.command()
def show(
    state: State | None = None,
    last: Annotated[int, typer.Option(min=0, help="entries to show, the newest; 0: all")] = 50,
    event: Annotated[str | None, typer.Option(help="only entries of this kind, e.g. reply")] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="write the whole log to this file, to hand out; - for standard output")
    ] = None,
) -> None:
    """Show what is in the log, or export all of it as JSON."""
    from collections import deque

    from echofed.protocol.audit_export import export_of
    from echofed.protocol.durable import replace_file

    with _open(state) as log:
        if json is None:
            entries = (entry for entry in log.entries() if event in (None, entry.event))
            for entry in deque(entries, last) if last else entries:
                typer.echo(line_of(entry))
            return
        content = export_of(log).model_dump_json()
    if str(json) == "-":
        typer.echo(content)
    else:
        replace_file(json, content.encode() + b"\n")
        typer.echo(f"Wrote {json}.")


def line_of(entry: "Entry") -> str:
    """Return an entry as one line; nothing in it can steer a terminal."""
    facts = "  ".join(f"{name}={_shown(fact)}" for name, fact in entry.facts.items() if fact is not None)
    return f"{entry.number:6}  {entry.written_at}  {entry.event:21}  {facts}".rstrip()


def _shown(fact: object) -> str:
    text = ",".join(map(str, fact)) if isinstance(fact, list) else str(fact)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]
    text = text if len(text) <= 100 else f"{text[:99]}…"
    return f'"{text}"' if " " in text else text


def _open(state: Path | None) -> "AuditLog":
    from echofed.protocol.audit_log import AUDIT_LOG_PATH, open_existing_log
    from echofed.protocol.errors import StateFolderError

    if state is None:
        found = [folder for folder in OWN_FOLDERS if (folder / AUDIT_LOG_PATH).exists()]
        if len(found) != 1:
            what = "There is no log here." if not found else "Here are a site's log and a coordinator's."
            raise StateFolderError(what, "Name the state folder with --state.")
        (state,) = found
    return open_existing_log(state)
