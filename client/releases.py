"""What leaves a hospital in a study: paid for in the ledger, kept on disk, and only then sent."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from echofed.client.calibration import count_mechanism
from echofed.client.kept_replies import ReplyKind, forget_replies_before, keep_reply, kept_reply
from echofed.client.ledger import Ledger, open_ledger
from echofed.client.ledger_chain import SPLIT_OF_PURPOSE, Purpose
from echofed.client.participation import Participation
from echofed.client.policy import limits_for, load_policy
from echofed.client.public_count import count_path
from echofed.client.registry import count_patients, open_registry
from echofed.client.spending_plan import spends_to_come
from echofed.client.yearly_budget import YearlyBudget
from echofed.privacy.accounting import Mechanism
from echofed.privacy.budget import Limits, delta_for
from echofed.privacy.spends import Spend, spend_in
from echofed.protocol.errors import LedgerError, RepeatedRoundError

Charge = tuple[Purpose, int, Mechanism | None]
"""What is released, in which round, and what protects it."""

_OPEN: dict[Path, Ledger] = {}
_OPENING = Lock()
_RELEASING = Lock()
"""Held from the look into the ledger to the entry: two answers to one round, made at once, would both be new."""


class Releases:
    """The way out of a site for one study.

    Guarantee: the bytes `train` and `figures` return are charged to the ledger, and those of a private study are the only ones
    there will ever be for that round. Each step is on disk before the next: the reply is kept, then charged, then returned. A
    crash before the charge has told nobody anything, and the kept reply is charged and sent when it is asked for again;
    a crash after it counts the charge.

    Args:
        participation: the site in the study, without a seed.
    """

    def __init__(self, participation: Participation) -> None:
        self._participation, self._study = participation, participation.study
        self._state_folder = participation.site.state_folder
        self._year = YearlyBudget()

    def describe(self, instruction: bytes, make: Callable[[], bytes]) -> bytes:
        """Return what the site says of its patients, if the whole study fits into its budget.

        The number of patients in it is drawn once, so making the reply again tells nothing new.

        Args:
            instruction: the whole instruction it answers.
            make: makes the reply.

        Raises:
            BudgetExceededError: the study does not fit; nothing was told.
            LedgerError: the ledger cannot be written or cannot be trusted.
        """
        with _RELEASING:
            ledger = self._ledger()
            patients = self._participation.training_patients
            if patients is not None:
                to_come = spends_to_come(self._study, patients, ledger.entries(), self._state_folder)
                self._refuse(ledger, to_come, patients)
            reply = make()
            if patients is not None:
                self._charge(ledger, [self._count()], _digest(instruction))
            return reply

    def train(self, round_number: int, instruction: bytes, make: Callable[[], bytes]) -> bytes:
        """Return the reply that carries a round's update.

        Args:
            round_number: 1-based.
            instruction: the whole instruction it answers, parameters included.
            make: trains, and makes the reply.

        Raises:
            RepeatedRoundError: the round was answered before, and this instruction is another, or the reply is gone.
            BudgetExceededError: the round does not fit; nothing was told.
            LedgerError: the ledger cannot be written or cannot be trusted.
        """
        with _RELEASING:
            ledger = self._ledger()
            charges = [self._count(), ("training", round_number, self._participation.training_mechanism)]
            reply = self._once(ledger, charges, _digest(instruction), make)
            # Whoever asks for this round has what it needs of those before.
            forget_replies_before(self._state_folder, self._study.hash, round_number)
            return reply

    def figures(self, round_number: int, instruction: bytes, make: Callable[[], bytes]) -> bytes:
        """Return the reply that says how the model does on validation patients; arguments and errors as for `train`.

        A site with too few of them says nothing of them, and is charged nothing.
        """
        if not self._participation.has_figures:
            return make()
        with _RELEASING:
            ledger = self._ledger()
            charges = [self._count(), ("figures", round_number, self._participation.figures_mechanism)]
            return self._once(ledger, charges, _digest(instruction), make)

    def _once(self, ledger: Ledger, charges: Sequence[Charge], digest: str, make: Callable[[], bytes]) -> bytes:
        purpose, round_number, mechanism = charges[-1]
        kind: ReplyKind = "train" if purpose == "training" else "evaluate"
        folder, study = self._state_folder, self._study.hash
        reply = kept_reply(folder, study, round_number, kind, digest) if mechanism else None
        if reply is None:
            if mechanism and ledger.find(study, round_number, purpose):
                raise RepeatedRoundError(f"Round {round_number} was answered before, to another instruction.")
            self._refuse_beyond(ledger, charges)
            reply = make()
            if mechanism:
                keep_reply(folder, study, round_number, kind, digest, reply)
        self._charge(ledger, charges, digest)
        return reply

    def _charge(self, ledger: Ledger, charges: Sequence[Charge], digest: str) -> None:
        limits = self._limits(self._participation.training_patients)
        for purpose, round_number, mechanism in charges:
            if ledger.find(self._study.hash, round_number, purpose) is None:
                ledger.spend(self._study, round_number, purpose, mechanism, digest, limits)

    def _refuse_beyond(self, ledger: Ledger, charges: Sequence[Charge]) -> None:
        to_come = [
            spend_in(self._study, SPLIT_OF_PURPOSE[purpose], mechanism)
            for purpose, round_number, mechanism in charges
            if ledger.find(self._study.hash, round_number, purpose) is None
        ]
        self._refuse(ledger, to_come, self._participation.training_patients)

    def _refuse(self, ledger: Ledger, to_come: Sequence[Spend], patients: int | None) -> None:
        limits, year = self._limits(patients), load_policy(self._state_folder).epsilon_per_year
        ledger.refuse_beyond(to_come, limits)
        if year is not None:
            self._year.refuse_beyond(ledger.entries(), to_come, year, limits.delta, datetime.now(UTC))

    def _count(self) -> Charge:
        return "count", 0, count_mechanism(self._study) if self._study.is_private else None

    def _limits(self, patients: int | None) -> Limits:
        # Read each time: a hospital may lower its budget while a study runs.
        policy = load_policy(self._state_folder)
        with open_registry(self._state_folder) as registry:
            cohort = count_patients(registry)
        privacy = self._study.privacy
        study_delta = delta_for(patients, privacy.delta) if patients and privacy.epsilon else None
        limits = limits_for(policy, cohort, study_delta)
        # The study's own promise holds whatever more the hospital would allow.
        return replace(limits, epsilon_per_study=min(limits.epsilon_per_study, privacy.epsilon or math.inf))

    def _ledger(self) -> Ledger:
        ledger, path = site_ledger(self._state_folder), count_path(self._state_folder, self._study)
        if self._study.is_private and ledger.find(self._study.hash, 0, "count") and not path.exists():
            raise LedgerError(
                f"The number of patients said in this study ({path}) is gone; another would tell more of the true one.",
                "Restore it from the newest copy of the state folder.",
            )
        return ledger


def _digest(instruction: bytes) -> str:
    return hashlib.sha256(instruction).hexdigest()


def site_ledger(state_folder: Path) -> Ledger:
    """Return a site's ledger, opened once in this process and held until it ends or `close_ledgers`.

    Raises:
        LedgerError: another process holds it, or it cannot be trusted.
    """
    with _OPENING:
        key = state_folder.resolve()
        if key not in _OPEN:
            _OPEN[key] = open_ledger(state_folder, load_policy(state_folder))
        return _OPEN[key]


def close_ledgers() -> None:
    """Let other processes open the ledgers this one holds."""
    with _OPENING:
        while _OPEN:
            _OPEN.popitem()[1].close()
