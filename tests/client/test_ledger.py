"""The ledger: nothing leaves without an entry on disk, and no entry is lost, changed or forgotten unnoticed."""

import contextlib
import ctypes
import os
import resource
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

import numpy as np
import pytest

from echofed.client.ledger import Ledger, open_ledger, read_ledger
from echofed.client.ledger_chain import LEDGER_PATH
from echofed.client.policy import SitePolicy
from echofed.client.registry import create_registry
from echofed.client.settings import SiteSettings
from echofed.privacy.accounting import Mechanism, _subsampled_epsilon
from echofed.privacy.budget import Limits
from echofed.privacy.spends import composed_epsilon, spend_in
from echofed.protocol.errors import BudgetExceededError, LedgerError, RegistrationError, RepeatedRoundError
from tests.small_simulations import environment
from tests.studies import PRIVATE, make_study

STUDY, OTHER = make_study(privacy=PRIVATE), make_study(privacy=PRIVATE, title="Another study")
WIDE = Limits(epsilon_per_cohort=1000.0, epsilon_per_study=1000.0, delta=1e-4, study_delta=1e-4)
STEP = Mechanism(5.0, 1.0, 1)
DIGEST = "d" * 64
HEAD = "ledger.head"
ROOT = Path(__file__).parents[2]

SPENDER = """
import sys
from pathlib import Path
from tests.client.test_ledger import opened, spend

with opened(Path(sys.argv[1])) as ledger:
    for number in range(len(ledger.entries()) + 1, 10_000):
        spend(ledger, number)
        print(number, flush=True)
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return the state folder of a site whose ledger has three entries."""
    folder = tmp_path / "state"
    folder.mkdir()
    create_registry(folder, SiteSettings(name="a", data_folder=tmp_path))
    with opened(folder) as ledger:
        for number in (1, 2, 3):
            spend(ledger, number)
    return folder


def opened(folder: Path, **policy: object) -> Ledger:
    return open_ledger(folder, SitePolicy.model_validate(policy))


def spend(ledger: Ledger, number: int, limits: Limits = WIDE) -> None:
    ledger.spend(STUDY, number, "training", STEP, DIGEST, limits)


def spend_on(ledger: Ledger, limits: Limits) -> None:
    for number in range(len(ledger.entries()) + 1, 100):
        spend(ledger, number, limits)


def count(folder: Path) -> int:
    chain = read_ledger(folder, SitePolicy())
    assert chain is not None
    return len(chain.entries)


def refused(folder: Path, words: str, **policy: object) -> LedgerError:
    """Check that neither a node nor a reader accepts the ledger."""
    with pytest.raises(LedgerError, match=words) as raised:
        opened(folder, **policy)
    with pytest.raises(LedgerError, match=words):
        read_ledger(folder, SitePolicy.model_validate(policy))
    return raised.value


def test_a_site_without_a_ledger_gets_one_on_first_use(tmp_path: Path) -> None:
    with pytest.raises(RegistrationError):
        read_ledger(tmp_path, SitePolicy())
    create_registry(tmp_path, SiteSettings(name="a", data_folder=tmp_path))
    assert read_ledger(tmp_path, SitePolicy()) is None
    with opened(tmp_path) as ledger:
        assert ledger.entries() == ()
        assert ledger.spends() == []
    assert count(tmp_path) == 0
    assert (tmp_path / "ledger").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / LEDGER_PATH).stat().st_mode & 0o777 == 0o600


def test_an_entry_says_all_and_is_on_disk_when_spend_returns(state: Path) -> None:
    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    with open_ledger(state, SitePolicy(), lambda: moment) as ledger:
        entry = ledger.spend(OTHER, 7, "figures", Mechanism(2.5, 0.25, 30), "e" * 64, WIDE)
        seen = read_ledger(state, SitePolicy())  # another reader, while the ledger is held
        assert seen is not None
        assert seen.entries[-1] == entry == ledger.find(OTHER.hash, 7, "figures")
        assert seen == ledger.chain
    assert entry.previous == seen.hashes[2]
    assert (entry.number, entry.written_at) == (4, "2030-01-02T03:04:05+00:00")
    assert (entry.study_hash, entry.study_title, entry.round_number) == (OTHER.hash, OTHER.title, 7)
    assert (entry.purpose, entry.split, entry.instruction) == ("figures", "validation", "e" * 64)
    assert entry.spend == spend_in(OTHER, "validation", Mechanism(2.5, 0.25, 30))


def test_a_round_is_spent_once_for_each_purpose(state: Path) -> None:
    with opened(state) as ledger:
        with pytest.raises(RepeatedRoundError):
            spend(ledger, 2)
        ledger.spend(STUDY, 2, "figures", STEP, DIGEST, WIDE)
        ledger.spend(OTHER, 2, "training", STEP, DIGEST, WIDE)
        assert ledger.find(STUDY.hash, 4, "training") is None
    with opened(state) as ledger, pytest.raises(RepeatedRoundError):
        ledger.spend(STUDY, 2, "figures", STEP, DIGEST, WIDE)
    assert count(state) == 5


def test_a_budget_that_runs_out_in_the_middle_of_a_study(state: Path) -> None:
    limits = Limits(epsilon_per_cohort=2.5, epsilon_per_study=8.0, delta=1e-4, study_delta=1e-4)
    with opened(state) as ledger:
        with pytest.raises(BudgetExceededError, match=r"all studies .* the site allows 2.5, of which 0\.\d+ is left"):
            spend_on(ledger, limits)
        spent = len(ledger.entries())
        assert 4 <= spent < 20
        assert composed_epsilon(ledger.spends(), 1e-4) <= 2.5
        assert composed_epsilon([*ledger.spends(), spend_in(STUDY, "training", STEP)], 1e-4) > 2.5
    with opened(state) as ledger:
        with pytest.raises(BudgetExceededError):
            spend(ledger, spent + 1, limits)
        with pytest.raises(BudgetExceededError):  # the patients are the same, whichever study asks
            ledger.spend(OTHER, 1, "training", STEP, DIGEST, limits)
        ledger.spend(OTHER, 1, "training", Mechanism(500.0, 1.0, 1), DIGEST, limits)
    assert count(state) == spent + 1


def test_a_study_has_a_limit_of_its_own(state: Path) -> None:
    limits = Limits(epsilon_per_cohort=100.0, epsilon_per_study=1.5, delta=1e-4, study_delta=1e-2)
    with opened(state) as ledger:
        with pytest.raises(BudgetExceededError, match=f"study {STUDY.hash[:12]} would reach"):
            ledger.refuse_beyond([spend_in(STUDY, "training", Mechanism(5.0, 1.0, 20))], limits)
        ledger.refuse_beyond([spend_in(OTHER, "training", Mechanism(5.0, 1.0, 3))], limits)
    assert count(state) == 3


def test_what_fits_as_a_whole_fits_round_by_round(state: Path) -> None:
    rounds, step = 10, Mechanism(2.0, 0.1, 2)
    whole = [spend_in(OTHER, "training", Mechanism(2.0, 0.1, 2 * rounds))]
    with opened(state) as ledger:
        ledger.refuse_beyond(whole, WIDE)
        composed = _subsampled_epsilon.cache_info().misses
        for number in range(1, rounds + 1):
            ledger.spend(OTHER, number, "training", step, DIGEST, WIDE)
        assert _subsampled_epsilon.cache_info().misses == composed  # a second saved every round
        ledger.spend(OTHER, rounds + 1, "training", step, DIGEST, WIDE)
        assert _subsampled_epsilon.cache_info().misses > composed
        assert len(ledger.entries()) == 4 + rounds


def test_without_privacy_only_where_the_site_allows_it(state: Path) -> None:
    allowing = Limits(10.0, 8.0, 1e-4, 1e-4, allow_without_privacy=True)
    with opened(state) as ledger:
        with pytest.raises(BudgetExceededError, match="no release without privacy"):
            ledger.spend(STUDY, 4, "training", None, DIGEST, WIDE)
        before = composed_epsilon(ledger.spends(), 1e-4)
        entry = ledger.spend(STUDY, 4, "training", None, DIGEST, allowing)
        assert entry.mechanism is None
        assert composed_epsilon(ledger.spends(), 1e-4) == before


def test_threads_share_a_ledger(state: Path) -> None:
    with opened(state) as ledger, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: spend(ledger, number), range(4, 36)))
    chain = read_ledger(state, SitePolicy())
    assert chain is not None
    assert sorted(entry.round_number for entry in chain.entries) == list(range(1, 36))


def test_a_clock_that_goes_backwards_changes_nothing(state: Path) -> None:
    with open_ledger(state, SitePolicy(), lambda: datetime(1990, 1, 1, tzinfo=UTC)) as ledger:
        spend(ledger, 4)
    with opened(state) as ledger:
        assert [entry.number for entry in ledger.entries()] == [1, 2, 3, 4]
        assert ledger.entries()[3].written_at < ledger.entries()[2].written_at
        spend(ledger, 5)


def test_a_second_node_is_refused(state: Path) -> None:
    with opened(state), pytest.raises(LedgerError, match="in use"):
        opened(state)
    node = spender(state)
    try:
        assert node.stdout is not None
        assert node.stdout.readline()
        with pytest.raises(LedgerError, match="in use"):
            opened(state)
        assert count(state) > 3  # reading needs no lock
    finally:
        stop(node)
    opened(state).close()  # the system took the lock back


def spender(state: Path) -> subprocess.Popen[str]:
    """Start a node that spends a round after another, and prints each once it may leave."""
    command = [sys.executable, "-c", SPENDER, str(state)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(), cwd=Path(__file__).parents[2]
    )


def stop(node: subprocess.Popen[str]) -> list[int]:
    """Kill a node and return the further rounds it had printed."""
    node.send_signal(signal.SIGKILL)
    printed, _ = node.communicate()
    return [int(line) for line in printed.splitlines()]


def test_a_killed_node_has_spent_all_it_let_leave(state: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        node = spender(state)
        assert node.stdout is not None
        first = int(node.stdout.readline())
        time.sleep(rng.uniform(0, 0.1))
        left = [first, *stop(node)]
        held = count(state)
        assert held in (left[-1], left[-1] + 1)
        with opened(state) as ledger:
            assert len(ledger.entries()) == held


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(state: Path, kept: float) -> None:
    path = state / LEDGER_PATH
    os.truncate(path, int(path.stat().st_size * kept))
    error = refused(state, "ledger")
    assert "newest whole copy" in error.remedy
    assert error.code == "EF-405"


def test_a_damaged_byte_is_noticed_or_harmless(state: Path) -> None:
    path = state / LEDGER_PATH
    whole, expected = path.read_bytes(), read_ledger(state, SitePolicy())
    noticed = 0
    for position in np.random.default_rng(1).integers(0, len(whole), 300):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            assert read_ledger(state, SitePolicy()) == expected
        except LedgerError:
            noticed += 1
    assert noticed > 20
    path.write_bytes(whole)
    assert read_ledger(state, SitePolicy()) == expected


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET content = replace(content, '5.0', '9.0')",
        "DELETE FROM entries WHERE number = 3",
        "INSERT OR REPLACE INTO entries SELECT * FROM entries WHERE number = 3",
    ],
)
def test_the_file_refuses_to_be_edited(state: Path, statement: str) -> None:
    with (
        contextlib.closing(sqlite3.connect(state / LEDGER_PATH)) as database,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        database.execute(statement)
    assert count(state) == 3


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE entries SET content = replace(content, '5.0', '9.0') WHERE number = 2", "Entry 2 of .* not the one"),
        ("UPDATE entries SET hash = 'no hash' WHERE number = 3", "Entry 3 of .* not the one"),
        ("UPDATE entries SET content = '{}' WHERE number = 1", "Entry 1 of .* not the one"),
        ("DELETE FROM entries WHERE number = 1", "Entry 2 of .* not the one"),
        ("DELETE FROM entries WHERE number = 3", "holds 2 entries, 3 were written"),
        ("DELETE FROM entries", "holds 0 entries, 3 were written"),
        ("UPDATE about SET content = 'another'", "not the one"),
        ("DELETE FROM about", "not those of a ledger"),
        ("PRAGMA user_version = 2", "of version 2"),
    ],
)
def test_an_edited_file_is_refused(state: Path, statement: str, words: str) -> None:
    with contextlib.closing(sqlite3.connect(state / LEDGER_PATH)) as database:
        triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            database.execute(f"DROP TRIGGER {name}")
        database.execute(statement)
        for _, rule in triggers:
            database.execute(rule)
        database.commit()
    refused(state, words)


def test_a_file_without_its_rules_is_refused(state: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / LEDGER_PATH)) as database:
        database.execute("DROP TRIGGER entry_deleted")
    refused(state, "not those of a ledger")


def test_yesterdays_copy_is_refused(state: Path, tmp_path: Path) -> None:
    shutil.copy(state / LEDGER_PATH, tmp_path / "yesterday")
    with opened(state) as ledger:
        spend(ledger, 4)
    shutil.copy(state / LEDGER_PATH, tmp_path / "today")
    shutil.copy(tmp_path / "yesterday", state / LEDGER_PATH)
    error = refused(state, "holds 3 entries, 4 were written")
    assert "data protection officer" in error.remedy
    shutil.copy(tmp_path / "today", state / LEDGER_PATH)  # the remedy
    opened(state).close()


def test_another_history_of_the_same_length_is_refused(state: Path, tmp_path: Path) -> None:
    shutil.copy(state / LEDGER_PATH, tmp_path / "copy")
    head = (state / HEAD).read_bytes()
    with opened(state) as ledger:
        spend(ledger, 4)
    written = (state / HEAD).read_bytes()
    shutil.copy(tmp_path / "copy", state / LEDGER_PATH)
    (state / HEAD).write_bytes(head)
    with opened(state) as ledger:
        ledger.spend(OTHER, 1, "training", Mechanism(900.0, 1.0, 1), DIGEST, WIDE)
    (state / HEAD).write_bytes(written)
    refused(state, "Entry 4 of the ledger is not the one")


@pytest.mark.parametrize("lost", [("ledger",), ("ledger", HEAD), (HEAD,)])
def test_a_deleted_file_is_noticed(state: Path, lost: tuple[str, ...]) -> None:
    for name in lost:
        shutil.rmtree(state / name) if name == "ledger" else (state / name).unlink()
    refused(state, "is gone")


def test_a_damaged_head_is_refused_and_an_older_one_restored(state: Path) -> None:
    earlier = (state / HEAD).read_bytes()
    with opened(state) as ledger:
        spend(ledger, 4)
    (state / HEAD).write_bytes(b"{")
    refused(state, "damaged")
    (state / HEAD).write_bytes(earlier)  # the remedy; also what a crash between entry and head leaves
    with opened(state) as ledger:
        assert len(ledger.entries()) == 4
    assert b'"entries":4' in (state / HEAD).read_bytes()


def test_the_ledger_of_another_site_is_refused(state: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    create_registry(other, SiteSettings(name="b", data_folder=tmp_path))
    opened(other).close()
    shutil.copy(other / LEDGER_PATH, state / LEDGER_PATH)
    refused(state, "another site")


def test_the_ledger_survives_the_loss_of_the_registry(state: Path, tmp_path: Path) -> None:
    (state / "registry.sqlite").unlink()
    create_registry(state, SiteSettings(name="a", data_folder=tmp_path))
    with opened(state) as ledger:
        assert len(ledger.entries()) == 3
    (state / HEAD).unlink()
    shutil.rmtree(state / "ledger")
    refused(state, "is gone")


def test_the_witness_notices_that_the_whole_state_folder_is_an_old_copy(state: Path, tmp_path: Path) -> None:
    disk = tmp_path / "another disk"
    disk.mkdir()
    witness = disk / "a.head"
    never_opened = tmp_path / "never opened"
    shutil.copytree(state, never_opened)
    for path in (never_opened / "ledger", never_opened / HEAD, never_opened / "registry.sqlite"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    create_registry(never_opened, SiteSettings(name="a", data_folder=tmp_path))

    opened(state, ledger_witness=witness).close()
    shutil.copytree(state, tmp_path / "backup")
    with opened(state, ledger_witness=witness) as ledger:
        spend(ledger, 4)
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "backup", state)
    refused(state, "holds 3 entries, 4 were written", ledger_witness=witness)
    refused(never_opened, "is gone", ledger_witness=witness)


def test_a_lost_witness_is_noticed_and_can_be_replaced(state: Path, tmp_path: Path) -> None:
    disk = tmp_path / "another disk"
    disk.mkdir()
    with opened(state, ledger_witness=disk / "a.head") as ledger:
        shutil.rmtree(disk)
        with pytest.raises(LedgerError, match=r"a\.head cannot be used"):
            spend(ledger, 4)
    refused(state, "witness .* is gone", ledger_witness=disk / "a.head")
    opened(state, ledger_witness=tmp_path / "b.head").close()
    assert count(state) == 4


def test_a_site_that_answered_without_a_ledger_gets_none(tmp_path: Path) -> None:
    create_registry(tmp_path, SiteSettings(name="a", data_folder=tmp_path))
    (tmp_path / "answered").mkdir()
    error = refused(tmp_path, "before it kept a ledger")
    assert "new state folder" in error.remedy


def test_a_making_that_was_cut_short_goes_on(state: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    create_registry(made, SiteSettings(name="a", data_folder=tmp_path))
    shutil.copytree(made, tmp_path / "before")
    opened(made).close()
    shutil.copytree(made / "ledger", tmp_path / "before" / "ledger")  # no head, not in the registry
    with opened(tmp_path / "before") as ledger:
        spend(ledger, 1)
    assert count(tmp_path / "before") == 1


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    create_registry(tmp_path, SiteSettings(name="a", data_folder=tmp_path))
    (tmp_path / "ledger").write_text("")
    with pytest.raises(LedgerError, match="File exists"):
        opened(tmp_path)


def test_nothing_is_spent_on_a_full_disk(state: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(state) as ledger:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as on a full disk, writing fails after some bytes
        try:
            with pytest.raises(LedgerError, match="cannot be used") as raised:
                spend(ledger, 4)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "Free some disk space" in raised.value.remedy
        assert len(ledger.entries()) == 3
        spend(ledger, 4)
    assert count(state) == 4


def test_an_entry_whose_head_cannot_be_written_is_spent_and_does_not_leave(state: Path) -> None:
    head = (state / HEAD).read_bytes()
    with opened(state) as ledger:
        (state / HEAD).unlink()
        (state / HEAD).mkdir()
        with pytest.raises(LedgerError, match=r"ledger\.head cannot be used"):
            spend(ledger, 4)
        with pytest.raises(RepeatedRoundError):
            spend(ledger, 4)
    (state / HEAD).rmdir()
    (state / HEAD).write_bytes(head)
    assert count(state) == 4


def test_a_ledger_replaced_while_in_use_takes_no_entry(state: Path) -> None:
    with opened(state) as ledger:
        (state / LEDGER_PATH).rename(state / "moved")
        shutil.copy(state / "moved", state / LEDGER_PATH)
        with pytest.raises(LedgerError, match="replaced while in use"):
            spend(ledger, 4)
    assert count(state) == 3


def without_the_rights_of_root() -> None:
    """Let permissions hold for this process even if root runs it."""
    if sys.platform == "linux":
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(header, none) == 0


def check_read_only(state: Path) -> None:
    for path in (state / "ledger", state):
        path.chmod(0o500)
        with pytest.raises(LedgerError, match="cannot be used"):
            opened(state)
        assert count(state) == 3
        path.chmod(0o700)
    (state / LEDGER_PATH).chmod(0o400)
    with pytest.raises(LedgerError, match="readonly") as raised:
        opened(state)
    assert "permissions" in raised.value.remedy
    (state / LEDGER_PATH).chmod(0o600)


def check_becoming_read_only(state: Path) -> None:
    with opened(state) as ledger:
        (state / "ledger").chmod(0o500)
        with pytest.raises(LedgerError, match="cannot be used"):
            spend(ledger, 4)
        (state / "ledger").chmod(0o700)
        assert count(state) == 3
        spend(ledger, 4)


@pytest.mark.parametrize("check", [check_read_only, check_becoming_read_only])
def test_nothing_is_spent_where_nothing_can_be_written(state: Path, check: Callable[[Path], None]) -> None:
    program = f"""
import sys
from pathlib import Path
from tests.client import test_ledger
test_ledger.without_the_rights_of_root()
test_ledger.{check.__name__}(Path(sys.argv[1]))
"""
    command = [sys.executable, "-c", program, str(state)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    opened(state).close()
