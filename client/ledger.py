"""A site's ledger: every release of something about its patients, on the site's own disk before it leaves.

`ledger/ledger.sqlite` holds the entries, `ledger.head` how far they have got, and the registry the ledger's id: the loss of any
and an old copy of the ledger are noticed. A crash between an entry and its note leaves the note behind, which is mended when
the ledger is opened. Whoever owns the machine can rewrite all of it, and an old copy put back together with its note, or with
the whole state folder, goes unnoticed but by a witness on another disk.

The order of entries is their number. Their time is informative: a clock that goes backwards changes nothing.
"""

import contextlib
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

from echofed.client.ledger_chain import (
    LEDGER_PATH,
    SPLIT_OF_PURPOSE,
    Chain,
    Entry,
    Purpose,
    RecordedMechanism,
    append,
    check_writable,
    connect,
    create_file,
    explained,
    read_chain,
)
from echofed.client.ledger_heads import Notes, check_notes, read_notes, write_notes
from echofed.client.policy import SitePolicy
from echofed.client.registry import open_registry, read_ledger_id, write_ledger_id
from echofed.privacy.accounting import Mechanism
from echofed.privacy.budget import Limits
from echofed.privacy.spends import Spend, is_within, refuse_beyond, spend_in
from echofed.protocol.errors import LedgerError, RepeatedRoundError
from echofed.protocol.study import Study

_EARLIER_ROUNDS = "answered"
"""Where sites noted the rounds of private studies before there were ledgers."""


def _now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """A site's ledger, open for writing; made by `open_ledger`, safe to use from several threads.

    Args:
        state_folder: the site's state folder.
        witness: where the ledger's head is noted as well.
        database: the ledger's file.
        chain: what it holds.
        resources: closed with the ledger.
        now: the clock.
    """

    def __init__(
        self,
        state_folder: Path,
        witness: Path | None,
        database: sqlite3.Connection,
        chain: Chain,
        resources: contextlib.ExitStack,
        now: Callable[[], datetime],
    ) -> None:
        self._state_folder, self._witness, self._database = state_folder, witness, database
        self._chain, self._resources, self._now = chain, resources, now
        self._path = state_folder / LEDGER_PATH
        self._file = _identity(self._path)
        self._lock = Lock()
        self._spends = [entry.spend for entry in chain.entries]
        self._fitting: dict[Limits, list[Spend]] = {}

    @property
    def chain(self) -> Chain:
        """All entries, with the ledger's id and their hashes."""
        return self._chain

    def entries(self) -> tuple[Entry, ...]:
        """Return all entries, in order."""
        return self._chain.entries

    def spends(self) -> list[Spend]:
        """Return all releases, as the accountant needs them."""
        return list(self._spends)

    def find(self, study_hash: str, round_number: int, purpose: Purpose) -> Entry | None:
        """Return the entry of a study's round, if there is one."""
        wanted = (study_hash, round_number, purpose)
        found = (one for one in self.entries() if (one.study_hash, one.round_number, one.purpose) == wanted)
        return next(found, None)

    def refuse_beyond(self, to_come: Sequence[Spend], limits: Limits) -> None:
        """Refuse releases that would exceed what the site allows.

        What has been found to fit is remembered: a part of it, or the same asked again, is not composed anew.

        Args:
            to_come: what is asked for: a round, or all that is left of a study.
            limits: what the site allows.

        Raises:
            BudgetExceededError: they would; it says what is left.
        """
        total = [*self.spends(), *to_come]
        if not is_within(total, self._fitting.get(limits, [])):
            refuse_beyond(self.spends(), to_come, limits)
            self._fitting[limits] = total

    def spend(
        self,
        study: Study,
        round_number: int,
        purpose: Purpose,
        mechanism: Mechanism | None,
        instruction: str,
        limits: Limits,
    ) -> Entry:
        """Write one release down; it and the notes of it are on disk on return, and only then may it leave.

        Args:
            study: the study it is released in.
            round_number: 1-based; 0 before the first round.
            purpose: what is released; counts and training touch the training patients, figures the validation patients.
            mechanism: what protects it; None: nothing.
            instruction: digest of the instruction it answers, 64 hexadecimal digits.
            limits: what the site allows.

        Raises:
            RepeatedRoundError: the study's round has an entry of this purpose.
            BudgetExceededError: it would exceed what the site allows; nothing was written.
            LedgerError: it cannot be written, or the file is not the one that was opened. The release may have been
                counted, and must not leave.
        """
        with self._lock:
            if _identity(self._path) != self._file:
                raise LedgerError(f"{self._path} was replaced while in use.")
            if self.find(study.hash, round_number, purpose):
                raise RepeatedRoundError(f"Round {round_number} is in the ledger already ({purpose}).")
            self.refuse_beyond([spend_in(study, SPLIT_OF_PURPOSE[purpose], mechanism)], limits)
            entry = self._entry(study, round_number, purpose, mechanism, instruction)
            with explained(self._path):
                append(self._database, entry)
            self._chain = self._chain.followed_by(entry)
            self._spends.append(entry.spend)
            write_notes(self._state_folder, self._witness, self._chain)
            return entry

    def close(self) -> None:
        """Let another process open the ledger; safe to repeat."""
        self._resources.close()

    def __enter__(self) -> Self:
        """Return the ledger itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Close the ledger."""
        self.close()

    def _entry(
        self, study: Study, round_number: int, purpose: Purpose, mechanism: Mechanism | None, instruction: str
    ) -> Entry:
        number = len(self._chain.entries)
        return Entry(
            ledger_id=self._chain.ledger_id,
            number=number + 1,
            previous=self._chain.hash_at(number),
            written_at=self._now().isoformat(timespec="seconds"),
            study_hash=study.hash,
            study_title=study.title,
            round_number=round_number,
            purpose=purpose,
            split=SPLIT_OF_PURPOSE[purpose],
            validation_fraction=study.evaluation.validation_fraction,
            test_fraction=study.evaluation.test_fraction,
            mechanism=None
            if mechanism is None
            else RecordedMechanism(
                noise_multiplier=float(mechanism.noise_multiplier),
                sampling_probability=float(mechanism.sampling_probability),
                steps=int(mechanism.steps),
            ),
            instruction=instruction,
        )


def open_ledger(state_folder: Path, policy: SitePolicy, now: Callable[[], datetime] = _now) -> Ledger:
    """Open a site's ledger for writing, checked from the first entry to the last; make it if the site never had one.

    Only one process at a time holds a ledger. Close it, or use it in a `with` statement.

    Args:
        state_folder: of a site that has been made.
        policy: the site's; names the witness.
        now: the clock, UTC.

    Raises:
        LedgerError: the ledger is in use, gone, damaged, edited or an old copy, cannot be written, or the site answered
            private studies before it kept one.
        RegistrationError: the folder holds no site.
    """
    with contextlib.ExitStack() as resources:
        _hold(state_folder / LEDGER_PATH.parent, resources)
        with open_registry(state_folder) as registry:
            remembered = read_ledger_id(registry)
        notes = read_notes(state_folder, policy.ledger_witness)
        path = state_folder / LEDGER_PATH
        with explained(path):
            if not path.exists():
                _refuse_new(state_folder, notes, remembered)
                create_file(path, secrets.token_hex(16))
            database = resources.enter_context(contextlib.closing(connect(path)))
            chain = _read(database, path, notes, remembered)
            check_writable(database)
        write_notes(state_folder, policy.ledger_witness, chain)
        if remembered is None:
            with open_registry(state_folder) as registry:
                write_ledger_id(registry, chain.ledger_id)
        return Ledger(state_folder, policy.ledger_witness, database, chain, resources.pop_all(), now)


def read_ledger(state_folder: Path, policy: SitePolicy) -> Chain | None:
    """Return what a site's ledger holds, checked as `open_ledger` does; None if the site never had one.

    It needs no lock and changes nothing, save that SQLite undoes a write that a crash cut short.

    Raises:
        LedgerError: the ledger is gone, damaged, edited or an old copy.
        RegistrationError: the folder holds no site.
    """
    with open_registry(state_folder) as registry:
        remembered = read_ledger_id(registry)
    notes = read_notes(state_folder, policy.ledger_witness)
    path = state_folder / LEDGER_PATH
    with explained(path):
        if not path.exists():
            _refuse_new(state_folder, notes, remembered)
            return None
        with contextlib.closing(connect(path)) as database:
            return _read(database, path, notes, remembered)


def _read(database: sqlite3.Connection, path: Path, notes: Notes, remembered: str | None) -> Chain:
    chain = read_chain(database, path)
    if remembered not in (None, chain.ledger_id):
        raise LedgerError(f"{path} is the ledger of another site, or of an earlier one.")
    check_notes(notes, chain, is_new=remembered is None and not chain.entries)
    return chain


def _refuse_new(state_folder: Path, notes: Notes, remembered: str | None) -> None:
    """Refuse to begin a ledger where there was one, or where private studies were answered without."""
    if remembered or notes.head or notes.seen:
        raise LedgerError(f"The ledger {state_folder / LEDGER_PATH} is gone.")
    if (state_folder / _EARLIER_ROUNDS).exists():
        raise LedgerError(
            "This site answered private studies before it kept a ledger; what they have cost is not known.",
            "Ask the data protection officer; if the budget may begin anew, register the patients in a new state folder.",
        )


def _hold(folder: Path, resources: contextlib.ExitStack) -> None:
    """Lock the ledger until the resources are closed or the process ends, however it ends."""
    with explained(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        resources.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LedgerError(
                f"The ledger in {folder} is in use by another process.", "Stop that process, or wait until it is done."
            ) from error


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another of the same name, None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
