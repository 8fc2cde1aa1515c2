"""`echofed site doctor`: looks at a site from all sides and says what to do."""

from pathlib import Path
from typing import Annotated

import typer

_COLOURS = {"good": "green", "warning": "yellow", "bad": "red"}


def doctor(
    state: Annotated[Path, typer.Option(help="the site's state folder")] = Path("site"),
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Look at a site from all sides, from its keys to the coordinator's door; takes less than half a minute."""
    import json
    from dataclasses import asdict

    from echofed.client.doctor import examine, is_well

    findings = examine(state)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False))
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("", "what was looked at", "what was found, and what to do"):
            table.add_column(title, overflow="fold")
        for finding in findings:
            said = Text(finding.what) if not finding.remedy else Text(f"{finding.what}\n-> {finding.remedy}")
            table.add_row(Text(finding.state, style=_COLOURS[finding.state]), Text(finding.name), said)
        Console().print(table)
    if not is_well(findings):
        raise typer.Exit(1)
