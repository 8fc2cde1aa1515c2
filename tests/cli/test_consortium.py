"""`echofed consortium` and `echofed site init|join`, as people run them."""

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from echofed.cli import consortium, site_membership
from echofed.client.identity import load_identity
from echofed.protocol.errors import EchoFedError, EnrolmentError, KeyFileError, StateFolderError
from echofed.protocol.key_files import PASSPHRASE_VARIABLE
from echofed.protocol.membership import iso_time
from echofed.server.authority import open_authority
from tests.consortia import DAY, NOW, enrolled, make_consortium
from tests.small_simulations import environment

ROOT = Path(__file__).parents[2]
SITE = typer.Typer()
SITE.command()(site_membership.init)
SITE.command()(site_membership.join)
LOADED = "import sys, echofed.cli.consortium, echofed.cli.site_membership; print(sorted(set(sys.modules) & {names!r}))"
HEAVY = {"cryptography", "pydantic", "flwr", "numpy", "torch"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)


def run(app: typer.Typer, *arguments: Any) -> str:
    """Return what a command prints; its errors are raised."""
    result: Result = CliRunner().invoke(app, [str(one) for one in arguments])
    if result.exception:
        raise result.exception
    return result.output


def coordinator(*arguments: Any) -> str:
    return run(consortium.app, *arguments)


def words_after(text: str, sentence: str) -> str:
    return text.split(sentence)[1].split("\n")[1].strip()


def on_a_terminal(arguments: list[str], typed: list[tuple[str, str]]) -> str:
    """Run `echofed consortium` on a terminal of its own, type an answer after each prompt, and return what it shows."""
    near, far = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from echofed.cli.consortium import app; app()", *arguments],
        stdin=far,
        stdout=far,
        stderr=far,
        env={**environment(), "TERM": "dumb", "_TYPER_STANDARD_TRACEBACK": "1"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(far)
    shown, answered = b"", 0
    try:
        for prompt, answer in typed:
            while prompt.encode() not in shown[answered:]:
                part = _read(near)
                assert part, shown.decode()
                shown += part
            answered = len(shown)
            os.write(near, answer.encode() + b"\n")
        while part := _read(near):
            shown += part
    finally:
        process.kill()
        process.wait()
        os.close(near)
    return shown.decode()


def _read(terminal: int) -> bytes:
    """Return what a terminal shows next, nothing once its program has ended."""
    ready, _, _ = select.select([terminal], [], [], 30)
    assert ready, "the command waits for something"
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def test_a_hospital_comes_in_and_goes_out(tmp_path: Path) -> None:
    said = coordinator("init", "Échos", "--address", "fed.example.org:8443")
    fingerprint = words_after(said, "Fingerprint:")
    assert "offline" in said
    said = coordinator("invite", "north")
    assert words_after(said, "read out the consortium's words:") == fingerprint
    assert "invited, until" in coordinator("status")
    said = run(SITE, "init", "north.invitation", "--name", "north")
    assert words_after(said, "The coordinator must read out:") == fingerprint
    words = words_after(said, "read out yours:")
    said = coordinator("enrol", "north.request", "--words", words.upper())
    assert "north.membership" in said
    said = run(SITE, "join", "north.membership")
    assert "north is a member of Échos" in said
    assert load_identity(Path("site")).site == "north"
    (row,) = [line for line in coordinator("status").split("\n") if line.startswith("north")]
    assert row.split()[1] == f"{datetime.now(UTC):%Y-%m-%d}"
    assert row.endswith("never seen")
    assert coordinator("revoke", "north", "--reason", "merged with south") == "north is revoked.\n"
    assert "revoked" in coordinator("status")
    assert "merged with south" in coordinator("status")


def test_init_can_be_repeated_and_the_root_key_moved_away(tmp_path: Path) -> None:
    first = coordinator("init", "Échos", "--address", "fed.example.org:8443")
    Path("consortium/authority/root.key").rename("root.key")
    again = coordinator("init", "Échos", "--address", "fed.example.org:8443")
    assert words_after(first, "Fingerprint:") == words_after(again, "Fingerprint:")
    assert "offline" not in again
    with pytest.raises(StateFolderError):
        coordinator("init", "Other", "--address", "fed.example.org:8443")


def test_status_tells_who_is_online_late_and_out(tmp_path: Path) -> None:
    make_consortium(tmp_path, now=NOW - 80 * DAY)
    for site, days in (("east", 1), ("north", 12), ("south", 20)):
        enrolled(tmp_path, site, now=NOW - days * DAY)
    nodes = {"east": {"seen_at": iso_time(datetime.now(UTC))}, "north": {"seen_at": iso_time(NOW - timedelta(hours=2))}}
    (tmp_path / "C" / "gateway" / "nodes.json").write_text(json.dumps(nodes))
    said = coordinator("status", "--state", "C")
    rows = {line.split()[0]: line for line in said.split("\n") if line}
    assert rows["east"].endswith("online")
    assert rows["north"].endswith(f"last seen {NOW - timedelta(hours=2):%Y-%m-%d %H:%M}")
    assert rows["south"].endswith("never seen")
    warnings = [line for line in said.split("\n") if line.startswith("Warning:")]
    assert len(warnings) == 3
    assert "north should have been renewed" in warnings[0]
    assert "south has expired" in warnings[1]
    assert "The server's certificate expires" in warnings[2]


@pytest.mark.parametrize(("answer", "enrols"), [("y", True), ("n", False), ("", False)])
def test_words_are_compared_on_the_terminal(tmp_path: Path, answer: str, enrols: bool) -> None:
    coordinator("init", "Échos", "--address", "fed.example.org:8443")
    coordinator("invite", "north")
    words = words_after(run(SITE, "init", "north.invitation"), "read out yours:")
    with pytest.raises(EnrolmentError, match="not compared"):
        coordinator("enrol", "north.request")
    shown = on_a_terminal(["enrol", "north.request"], [("[y/N]:", answer)])
    assert words in shown
    assert Path("north.membership").exists() == enrols
    assert ("Enrolled. Send" in shown) == enrols


def test_a_passphrase_is_typed_twice_never_shown_and_needed_after(tmp_path: Path) -> None:
    init = ["init", "Échos", "--address", "fed.example.org:8443", "--encrypt"]
    with pytest.raises(KeyFileError, match="no terminal"):
        coordinator(*init)
    assert not Path("consortium").exists()
    prompts = ("New passphrase", "The same again:")
    shown = on_a_terminal(init, list(zip(prompts, ("one", "other"), strict=True)))
    assert "the two differ" in shown.replace("\r\n", " ")
    assert not Path("consortium").exists()
    shown = on_a_terminal(init, list(zip(prompts, ("sésame", "sésame"), strict=True)))
    assert "Fingerprint" in shown
    assert "sésame" not in shown
    assert open_authority(Path("consortium"), "sésame")
    with pytest.raises(KeyFileError, match="encrypted"):
        coordinator("invite", "north")
    assert "Send north.invitation" in on_a_terminal(["invite", "north"], [("Passphrase of", "sésame")])


def test_a_passphrase_from_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "sésame")
    coordinator("init", "Échos", "--address", "fed.example.org:8443")
    coordinator("invite", "north")
    words = words_after(run(SITE, "init", "north.invitation"), "read out yours:")
    coordinator("enrol", "north.request", "--words", words)
    run(SITE, "join", "north.membership")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "wrong")
    with pytest.raises(KeyFileError, match="passphrase"):
        coordinator("invite", "south")
    with pytest.raises(KeyFileError, match="passphrase"):
        load_identity(Path("site"))


@pytest.mark.parametrize(
    "command", [["invite", "../x"], ["enrol", "no.request"], ["revoke", "nobody", "--reason", "x"], ["status"]]
)
def test_what_cannot_be_done_is_an_error(tmp_path: Path, command: list[str]) -> None:
    with pytest.raises((EchoFedError, OSError)):
        coordinator(*command)
    coordinator("init", "Échos", "--address", "fed.example.org:8443")
    if command != ["status"]:
        with pytest.raises((EchoFedError, OSError)):
            coordinator(*command)


def test_help_imports_nothing_heavy() -> None:
    script = LOADED.replace("{names!r}", repr(HEAVY))
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment())
    assert said.stdout == "[]\n", said.stderr
