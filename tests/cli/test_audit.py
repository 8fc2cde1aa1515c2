"""`echofed audit`: read by the data protection officer, compared with what the other side holds."""

import contextlib
import json
import sqlite3
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from echofed.cli.audit import app
from echofed.protocol.audit_entries import received_head
from echofed.protocol.audit_log import AUDIT_LOG_PATH, open_audit_log
from echofed.protocol.errors import AuditLogError, EchoFedError, StateFolderError, UnknownNameError


@pytest.fixture
def parties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a site's and a coordinator's log, which exchanged heads twice."""
    monkeypatch.chdir(tmp_path)
    for name in ("site", "consortium"):
        (tmp_path / name).mkdir()
    with (
        open_audit_log(Path("site"), owner="north") as site,
        open_audit_log(Path("consortium"), owner="Ouest") as server,
    ):
        site.append("approved", study="a" * 64, person="Dr A. Martin\x1b[2J\nreply", reason=None)
        for number in range(2):
            server.append("instruction", site="north", round=number)
            site.append("head received", **received_head("coordinator", server.head(), "s"))
            site.append("reply", round=number, holds=["update", "loss"])
            server.append("head received", **received_head("north", site.head(), "s"))
    return tmp_path


def audit(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if isinstance(result.exception, EchoFedError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_show(parties: Path) -> None:
    lines = audit("show", "--state", "site").stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].split()[0] == "1"
    assert f'approved               person="Dr A. Martin?[2J?reply"  study={"a" * 12}' in lines[0]
    assert "holds=update,loss" in lines[2]
    assert "reason" not in lines[0]
    assert audit("show", "--state", "site", "--last", "2").stdout.splitlines() == lines[-2:]
    assert audit("show", "--state", "site", "--last", "0").stdout.splitlines() == lines
    assert audit("show", "--state", "site", "--event", "reply").stdout.splitlines() == [lines[2], lines[4]]


@pytest.fixture
def three_days(tmp_path: Path) -> Path:
    """Return the state folder of a site that answered two studies on three days."""
    for day, study, size in ((1, "a" * 64, 100), (2, "b" * 64, 20), (3, "a" * 64, 3)):
        noon = datetime(2030, 1, day, 12, tzinfo=UTC)
        with open_audit_log(tmp_path, owner="north", now=partial(datetime.fromtimestamp, noon.timestamp(), UTC)) as log:
            log.append("reply", study=study, bytes=size)
    return tmp_path


def numbers(state: Path, *arguments: str) -> list[str]:
    shown = audit("show", "--state", state, *arguments).stdout.splitlines()
    return [line.split()[0] for line in shown if not line.startswith("Bytes")]


def test_show_by_day_and_by_study(three_days: Path) -> None:
    assert numbers(three_days, "--since", "2030-01-02") == ["2", "3"]
    assert numbers(three_days, "--until", "2030-01-02") == ["1", "2"]
    assert numbers(three_days, "--since", "2030-01-01T12:00:01", "--until", "2030-01-02T12:00:00Z") == ["2"]
    assert numbers(three_days, "--study", "a" * 8, "--last", "1") == ["3"]
    assert numbers(three_days, "--study", "A" * 8) == ["1", "3"]
    with pytest.raises(UnknownNameError, match="There is no study cccccccc"):
        audit("show", "--state", three_days, "--study", "c" * 8)
    for wrong in ("yesterday", "9999-12-31"):
        failed = CliRunner().invoke(app, ["show", "--state", str(three_days), "--until", wrong])
        assert (failed.exit_code, "2030-01-31" in failed.output) == (2, True)


def test_show_ends_with_what_left_by_study(three_days: Path) -> None:
    last = audit("show", "--state", three_days).stdout.splitlines()[-1]
    said = f"Bytes that left with these replies, by study: {'a' * 12} 103, {'b' * 12} 20; together 123."
    assert last == said
    assert audit("show", "--state", three_days, "--last", 1).stdout.endswith(f"{'a' * 12} 3; together 3.\n")
    assert "Bytes" not in audit("show", "--state", three_days, "--event", "approved").stdout


def test_verify(parties: Path) -> None:
    assert "5 entries, whole." in audit("verify", "--state", "site").stdout
    with contextlib.closing(sqlite3.connect(parties / "site" / AUDIT_LOG_PATH)) as database:
        database.execute("DROP TRIGGER entry_changed")
        database.commit()
    with pytest.raises(AuditLogError, match="not those of an audit log"):
        audit("verify", "--state", "site")


def test_verify_against_the_other_side(parties: Path) -> None:
    assert "Wrote their.json" in audit("show", "--state", "consortium", "--json", "their.json").stdout
    said = audit("verify", "--state", "site", "--against", "their.json").stdout
    assert "4 heads that one noted of the other's log, all as they should be." in said
    content = json.loads(audit("show", "--state", "site", "--json", "-").stdout)
    assert content["owner"] == "north"
    (parties / "mine.json").write_text(json.dumps(content))
    assert "4 heads" in audit("verify", "--state", "consortium", "--against", "mine.json").stdout
    # The site begins a new log, whole in itself.
    for path in (parties / "site" / "log").iterdir():
        path.unlink()
    (parties / "site" / "log.head").unlink()
    with open_audit_log(parties / "site", owner="north") as log:
        log.append("started")
    assert "whole" in audit("verify", "--state", "site").stdout
    with pytest.raises(AuditLogError, match=r"One of the two logs was rewritten\. Ouest noted .* begun anew"):
        audit("verify", "--state", "site", "--against", "their.json")
    (parties / "stranger").mkdir()
    with open_audit_log(parties / "stranger", owner="south"):
        pass
    assert "nothing is proven" in audit("verify", "--state", "stranger", "--against", "their.json").stdout


def test_which_log(parties: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(StateFolderError, match="Here are a site's log and a coordinator's"):
        audit("verify")
    (parties / "only").mkdir()
    (parties / "site").rename(parties / "only" / "site")
    monkeypatch.chdir(parties / "only")
    assert "5 entries" in audit("verify").stdout
    with pytest.raises(AuditLogError, match="There is no log"):
        audit("show", "--state", "nowhere")
    (parties / "empty").mkdir()
    monkeypatch.chdir(parties / "empty")
    with pytest.raises(StateFolderError, match="There is no log here"):
        audit("show")
