"""`echofed audit`: show and check a party's audit log."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from echofed.protocol.audit_log import AuditLog, Entry

app = typer.Typer(no_args_is_help=True)
State = Annotated[Path, typer.Option(help="the state folder of a site or of the coordinator")]
_SPACES = "\u00a0\u202f"  # as French writes them before a colon
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
    study: Annotated[str | None, typer.Option(help="only entries about this study: its hash's first 8 digits")] = None,
    since: Annotated[str | None, typer.Option(help="only entries from then on: a date, or a time, UTC")] = None,
    until: Annotated[str | None, typer.Option(help="only entries up to then; a date is counted in")] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="write the whole log to this file, to hand out; - for standard output")
    ] = None,
) -> None:
    """Show what is in the log and what left by it, or export all of it as JSON."""
    from collections import Counter, deque

    from echofed.protocol.audit_export import export_of
    from echofed.protocol.durable import replace_file

    with _open(state) as log:
        if json is None:
            wanted = _filter(log, event, study, since, until)
            entries = (entry for entry in log.entries() if wanted(entry))
            left: Counter[str] = Counter()
            for entry in deque(entries, last) if last else entries:
                typer.echo(line_of(entry))
                if entry.event == "reply" and isinstance(size := entry.facts.get("bytes"), int):
                    left[str(entry.facts.get("study"))] += size
            if left:
                sums = ", ".join(f"{_shown(one)} {size}" for one, size in sorted(left.items()))
                typer.echo(f"Bytes that left with these replies, by study: {sums}; together {left.total()}.")
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


def escaped(text: str) -> str:
    """Return text of others as it may be printed: what a terminal would obey, or not show, is a question mark."""
    return "".join(letter if letter.isprintable() or letter in _SPACES else "?" for letter in text)


def _filter(
    log: "AuditLog", event: str | None, study: str | None, since: str | None, until: str | None
) -> "Callable[[Entry], bool]":
    from echofed.protocol.publication import find_hash

    begin, end = _moment(since, "--since"), _moment(until, "--until", ends=True)
    whose = None
    if study is not None:
        whose = find_hash(study, {str(entry.facts["study"]) for entry in log.entries() if entry.facts.get("study")})

    def is_wanted(entry: "Entry") -> bool:
        written = datetime.fromisoformat(entry.written_at)
        return (
            event in (None, entry.event)
            and whose in (None, entry.facts.get("study"))
            and (begin is None or begin <= written)
            and (end is None or written < end)
        )

    return is_wanted


def _moment(text: str | None, option: str, *, ends: bool = False) -> datetime | None:
    """Return a time; for the end of a span, the first moment after it."""
    if text is None:
        return None
    whole_day = len(text) <= len("2030-01-31")
    span = timedelta(days=1) if whole_day else timedelta(seconds=1)
    try:
        found = datetime.fromisoformat(text)
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
        return found + span if ends else found
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter("write 2030-01-31 or 2030-01-31T13:00:00, UTC", param_hint=option) from error


def _shown(fact: object) -> str:
    text = ",".join(map(str, fact)) if isinstance(fact, list) else str(fact)
    text = escaped(text)
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
