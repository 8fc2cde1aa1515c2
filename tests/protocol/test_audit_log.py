"""The audit log: what was done stays as it was written, and what was changed is found."""

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from echofed.protocol.audit_entries import MAX_TEXT_LENGTH, hash_of, received_head
from echofed.protocol.audit_export import compare, export_of, read_export
from echofed.protocol.audit_log import (
    AUDIT_LOG_PATH,
    AuditLog,
    Entry,
    LogHead,
    open_audit_log,
    open_existing_log,
)
from echofed.protocol.errors import AuditLogError
from tests.small_simulations import environment

APPENDER = """
import sys
from pathlib import Path
from echofed.protocol.audit_log import open_audit_log

with open_audit_log(Path(sys.argv[1]), owner="north") as log:
    for number in range(int(sys.argv[2])):
        log.append("started", process=sys.argv[3], count=number)
        print(number, flush=True)
"""
NAME = AUDIT_LOG_PATH.name


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a folder whose log has five entries."""
    folder = tmp_path / "state"
    folder.mkdir()
    with opened(folder) as log:
        for number in range(5):
            log.append("reply", round=number, sent=True, holds=["update", "loss"], code=None)
    return folder


def opened(folder: Path, owner: str = "north") -> AuditLog:
    return open_audit_log(folder, owner=owner)


def refused(folder: Path, words: str) -> None:
    """Check that the whole log is not accepted."""
    with pytest.raises(AuditLogError, match=words), opened(folder) as log:
        log.verify()


def edit(folder: Path, *statements: str) -> None:
    """Change the file as someone does who owns the machine: the rules are lifted and put back."""
    with contextlib.closing(sqlite3.connect(folder / AUDIT_LOG_PATH)) as database:
        rules = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in rules:
            database.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            database.execute(statement)
        for _, sql in rules:
            database.execute(sql)
        database.commit()


def rewrite(folder: Path, change: Callable[[list[Entry]], list[Entry]]) -> None:
    """Write a whole new chain with the same id, and its head, as someone does who knows how it is made."""
    with open_existing_log(folder) as log:
        changed, log_id = change(list(log.entries())), log.log_id
    edit(folder, "DELETE FROM entries")
    previous = "0" * 64
    with contextlib.closing(sqlite3.connect(folder / AUDIT_LOG_PATH)) as database:
        for number, entry in enumerate(changed, start=1):
            text = entry.model_copy(update={"number": number, "previous": previous}).text
            previous = hash_of(text)
            database.execute("INSERT INTO entries VALUES (?, ?, ?)", (number, text, previous))
        database.commit()
    head = LogHead(log_id=log_id, entries=len(changed), hash=previous)
    (folder / "log.head").write_text(head.model_dump_json().ljust(511) + "\n")


def test_an_entry_says_all_and_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    with open_audit_log(tmp_path, owner="north", now=lambda: moment) as log:
        assert log.head() == LogHead(log_id=log.log_id, entries=0, hash="0" * 64)
        first = log.append("approved", study="a" * 64, person="Dr A. Martin", reason=None)
        second = log.append("stopped")
        with opened(tmp_path) as other:
            assert list(other.entries()) == [first, second]
            assert other.head() == log.head() == LogHead(log_id=log.log_id, entries=2, hash=second.hash)
            assert list(other.entries(after=1)) == [second]
    assert (first.number, first.previous, second.previous) == (1, "0" * 64, first.hash)
    assert first.written_at == "2030-01-02T03:04:05+00:00"
    assert first.facts == {"study": "a" * 64, "person": "Dr A. Martin", "reason": None}
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "log" / NAME, tmp_path / "log.head"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_hash_of_an_entry_is_as_agreed() -> None:
    entry = Entry(
        log_id="0" * 32,
        number=1,
        previous="0" * 64,
        written_at="2030-01-02T03:04:05+00:00",
        event="started",
        facts={"échographie": 1.5, "a": ["x"]},
    )
    # sha256(b"echofed audit entry 1\n" + canonical JSON), by another program.
    assert entry.hash == "e3977b7a4070d0b93ccd1e34f2cf0e2f13ca8ad4475103da82d74de971c547b0"


def test_a_sound_log_is_whole(state: Path) -> None:
    with opened(state) as log:
        head = log.verify()
        assert head == log.head()
        assert head.entries == 5


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "UPDATE entries SET content = replace(content, 'true', 'false') WHERE number = 3",
            "Entry 3 .* is not the one",
        ),
        ("UPDATE entries SET hash = replace(hash, 'a', 'b') WHERE number = 3", "Entry 3 .* is not the one"),
        ("UPDATE entries SET content = 'x' WHERE number = 5", "Entry 5 .* is not the one"),
        ("DELETE FROM entries WHERE number = 1", "Entry 2 .* is not the one"),
        ("DELETE FROM entries WHERE number = 3", "Entry 4 .* is not the one"),
        ("DELETE FROM entries WHERE number = 5", "holds 4 entries, 5 were written"),
        ("DELETE FROM entries", "holds 0 entries, 5 were written"),
        ("UPDATE entries SET number = number + 10 WHERE number > 3", "is not the one"),
        ("INSERT INTO entries SELECT 6, content, hash FROM entries WHERE number = 5", "Entry 6 .* is not the one"),
        ("DROP TABLE about", "not those of an audit log"),
        ("CREATE TABLE more (x)", "not those of an audit log"),
        ("DELETE FROM about", "does not say whose log"),
        ("PRAGMA user_version = 2", "is of version 2"),
    ],
)
def test_what_was_changed_is_found(state: Path, statement: str, words: str) -> None:
    edit(state, statement)
    refused(state, words)


def test_entries_that_changed_places_are_found(state: Path) -> None:
    edit(
        state,
        "UPDATE entries SET number = 9 WHERE number = 2",
        "UPDATE entries SET number = 2 WHERE number = 3",
        "UPDATE entries SET number = 3 WHERE number = 9",
    )
    refused(state, "Entry 2 .* is not the one")


def test_the_rules_of_the_file_forbid_changes(state: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / AUDIT_LOG_PATH)) as database:
        for statement in (
            "UPDATE entries SET hash = ''",
            "DELETE FROM entries",
            "REPLACE INTO entries VALUES (5, '', '')",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(statement)


def test_a_log_without_its_rules_is_refused(state: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / AUDIT_LOG_PATH)) as database:
        database.execute("DROP TRIGGER entry_deleted")
        database.commit()
    refused(state, "not those of an audit log")


def test_an_old_copy_is_found(state: Path, tmp_path: Path) -> None:
    shutil.copy(state / AUDIT_LOG_PATH, tmp_path / NAME)
    with opened(state) as log:
        log.append("stopped")
    shutil.copy(tmp_path / NAME, state / AUDIT_LOG_PATH)
    refused(state, "holds 5 entries, 6 were written")


def test_a_log_that_is_gone_is_not_begun_anew(state: Path) -> None:
    (state / AUDIT_LOG_PATH).unlink()
    refused(state, "is gone")
    with pytest.raises(AuditLogError, match="is gone"):
        open_existing_log(state)


def test_a_head_that_is_gone_damaged_or_anothers(state: Path, tmp_path: Path) -> None:
    head = state / "log.head"
    kept = head.read_bytes()
    head.unlink()
    refused(state, "log.head is gone")
    for damaged in (b"", b"{}", b"\xff" * 512, kept[:40]):
        head.write_bytes(damaged)
        refused(state, "log.head is damaged")
    (tmp_path / "other").mkdir()
    with opened(tmp_path / "other") as log:
        log.append("started")
    shutil.copy(tmp_path / "other" / "log.head", head)
    refused(state, "belongs to another log")
    head.write_bytes(kept)
    with opened(state) as log:
        assert log.verify().entries == 5


def test_a_log_whose_whole_folder_is_gone_is_missed(state: Path) -> None:
    shutil.rmtree(state / "log")
    refused(state, "is gone")


def test_a_head_left_behind_by_a_crash_is_mended(state: Path) -> None:
    head = state / "log.head"
    old = head.read_bytes()
    with opened(state) as log:
        log.append("started")
    head.write_bytes(old)
    with opened(state) as log:
        assert log.verify().entries == 6
        log.append("stopped")
    assert json.loads(head.read_bytes())["entries"] == 7


def test_a_creation_cut_short_is_finished(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    (tmp_path / "log.head").unlink()  # killed between the two files
    (tmp_path / "log" / "audit.partial").write_bytes(b"half")
    with opened(tmp_path) as log:
        log.append("started")
        assert log.verify().entries == 1


def test_a_log_replaced_or_changed_in_use_is_noticed(state: Path) -> None:
    with opened(state) as log:
        edit(state, "UPDATE entries SET content = 'x', hash = 'y' WHERE number = 5")
        with pytest.raises(AuditLogError, match="changed while the log was in use"):
            log.append("stopped")
    with contextlib.suppress(AuditLogError):
        opened(state).close()
    other = state.parent / "other"
    other.mkdir()
    with opened(other) as log:
        log.append("started")
        (other / AUDIT_LOG_PATH).rename(other / "log" / "moved")
        with pytest.raises(AuditLogError, match="replaced while in use"):
            log.append("stopped")
        with pytest.raises(AuditLogError, match="replaced while in use"):
            log.head()


def test_a_damaged_file_is_refused(state: Path) -> None:
    path = state / AUDIT_LOG_PATH
    path.write_bytes(path.read_bytes()[:5000] + b"\0" * 2000)
    with pytest.raises(AuditLogError):
        opened(state).verify()
    path.write_bytes(b"no database at all, but long enough to be read as one" * 20)
    refused(state, "cannot be used")


def test_a_log_is_its_owners(state: Path) -> None:
    with pytest.raises(AuditLogError, match="is the log of north, not of south"):
        opened(state, "south")
    with open_existing_log(state) as log:
        assert log.owner == "north"
    with pytest.raises(AuditLogError, match="There is no log"):
        open_existing_log(state.parent)


def test_facts_that_cannot_be_kept(state: Path) -> None:
    with opened(state) as log:
        with pytest.raises(AuditLogError, match="cannot be written"):
            log.append("error", epsilon=float("nan"))
        with pytest.raises(AuditLogError, match="cannot be written"):
            log.append("error", what={"a": 1})  # type: ignore[arg-type]
        with pytest.raises(AuditLogError, match="cannot be written"):
            log.append("no such event")  # type: ignore[arg-type]
        entry = log.append("error", what="x" * 5000, odd="\ud800\x1b[2J\n", many=["y" * 3000])
        assert entry.facts["what"] == "x" * (MAX_TEXT_LENGTH - 1) + "…"
        assert entry.facts["odd"] == "?\x1b[2J\n"
        assert log.verify().entries == 6
        assert list(log.entries())[-1] == entry


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(AuditLogError, match="cannot be used"):
        opened(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditLogError, match="cannot be used"):
        opened(tmp_path / "file")


def test_threads_and_processes_append_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", APPENDER, str(tmp_path), "25"]
    running = [
        subprocess.Popen([*command, str(number)], env=environment(), stdout=subprocess.PIPE) for number in range(3)
    ]
    with opened(tmp_path) as log, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: log.append("stopped", count=number), range(40)))
        for process in running:
            process.communicate()
            assert process.returncode == 0
        assert log.verify().entries == 40 + 3 * 25
        for number in range(3):
            own = [entry.facts["count"] for entry in log.entries() if entry.facts.get("process") == str(number)]
            assert own == list(range(25))


def test_kill_9_leaves_a_whole_log_with_all_that_was_acknowledged(tmp_path: Path) -> None:
    acknowledged = 0
    for number in range(4):
        command = [sys.executable, "-c", APPENDER, str(tmp_path), "1000000", str(number)]
        with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(30 + 7 * number):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            acknowledged += 30 + 7 * number + len(process.stdout.readlines())
        with opened(tmp_path) as log:
            assert acknowledged <= log.verify().entries <= acknowledged + number + 1


def test_appending_does_not_read_the_whole_chain(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log._database.execute("PRAGMA synchronous = OFF")
        seconds = []
        for upto in (200, 20_000):
            while log.head().entries < upto:
                for number in range(200):
                    log.append("reply", round=number)
            start = time.process_time()
            for number in range(200):
                log.append("reply", round=number)
            seconds.append((time.process_time() - start) / 200)
    assert seconds[1] < 5e-3
    assert seconds[1] < 5 * seconds[0]


def exchanged(folder: Path) -> tuple[Path, Path]:
    """Return the logs of two parties that received three heads of each other."""
    folders = folder / "north", folder / "coordinator"
    for one in folders:
        one.mkdir()
    with opened(folders[0]) as site, opened(folders[1], "coordinator") as server:
        for number in range(3):
            server.append("instruction", round=number)
            site.append("head received", **received_head("coordinator", server.head(), "signature"))
            site.append("reply", round=number)
            server.append("head received", **received_head("north", site.head(), "signature"))
    return folders


def compared(mine: Path, theirs: Path, tmp_path: Path) -> tuple[int, tuple[str, ...]]:
    with open_existing_log(theirs) as log:
        (tmp_path / "export.json").write_text(export_of(log).model_dump_json())
    with open_existing_log(mine) as log:
        found = compare(export_of(log), read_export(tmp_path / "export.json"))
    return found.compared, found.contradictions


def test_two_logs_that_fit(tmp_path: Path) -> None:
    site, server = exchanged(tmp_path)
    with opened(site) as log:
        log.append("stopped")  # what came since contradicts nothing
    assert compared(site, server, tmp_path) == compared(server, site, tmp_path) == (6, ())


def test_a_history_rewritten_with_its_head_contradicts_the_peers(tmp_path: Path) -> None:
    site, server = exchanged(tmp_path)

    def without_a_reply(entries: list[Entry]) -> list[Entry]:
        changed = entries[1].model_copy(update={"facts": {"round": 99}})
        return [entries[0], changed, *entries[2:]]

    rewrite(site, without_a_reply)
    with opened(site) as log:
        assert log.verify().entries == 6  # alone it looks whole
    for mine, theirs in ((site, server), (server, site)):
        count, sentences = compared(mine, theirs, tmp_path)
        assert count == 6
        assert len(sentences) == 3
        assert all(sentence.startswith("coordinator noted (entry ") for sentence in sentences)
        assert "another entry 2 of the log of north" in sentences[0]


def test_entries_cut_off_with_the_head_contradict_the_peers(tmp_path: Path) -> None:
    site, server = exchanged(tmp_path)
    rewrite(server, lambda entries: entries[:2])
    count, sentences = compared(site, server, tmp_path)
    assert count == 4
    assert sentences == (
        "north noted (entry 3) that the log of coordinator had 3 entries; it holds 2.",
        "north noted (entry 5) that the log of coordinator had 5 entries; it holds 2.",
    )


def test_a_log_begun_anew_contradicts_the_peers(tmp_path: Path) -> None:
    site, server = exchanged(tmp_path)
    shutil.rmtree(site / "log")
    (site / "log.head").unlink()
    with opened(site) as log:
        log.append("started")
    count, sentences = compared(site, server, tmp_path)
    assert count == 3
    assert "head of another log of north than this one: it was begun anew" in sentences[0]


@pytest.mark.parametrize("damage", ["{}", "", "null", '{"format": 2}', "x" * 100])
def test_what_is_no_export(tmp_path: Path, damage: str) -> None:
    (tmp_path / "export.json").write_text(damage)
    with pytest.raises(AuditLogError, match="is not the export"):
        read_export(tmp_path / "export.json")
    with pytest.raises(AuditLogError, match="cannot be read"):
        read_export(tmp_path / "missing.json")


def test_an_export_that_was_changed_is_refused(state: Path, tmp_path: Path) -> None:
    path = tmp_path / "export.json"
    with opened(state) as log:
        content = json.loads(export_of(log).model_dump_json())
    for change in ("edit", "drop", "cut", "swap", "head"):
        changed = json.loads(json.dumps(content))
        if change == "edit":
            changed["entries"][4]["facts"]["round"] = 7
        elif change == "drop":
            del changed["entries"][2]
        elif change == "cut":
            del changed["entries"][4]
        elif change == "swap":
            changed["entries"][1:3] = changed["entries"][2:0:-1]
        else:
            changed["head"]["hash"] = "f" * 64
        path.write_text(json.dumps(changed))
        with pytest.raises(AuditLogError, match="the chain breaks at entry"):
            read_export(path)
    path.write_text(json.dumps(content))
    assert read_export(path).head.entries == 5
