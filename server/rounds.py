"""The rounds of a study: ask, combine, publish, evaluate, checkpoint.

A round is a function of (checkpoint, replies): whatever is killed in between, the next start goes on from the last
checkpoint with the same study.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from echofed.protocol.arrays import Parameters
from echofed.protocol.errors import SitesError, TooFewRepliesError
from echofed.protocol.study import LOWER_IS_BETTER, Study
from echofed.server.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from echofed.server.history import Round, SiteRound, append_round
from echofed.strategies.study_strategy import Outcome, StudyStrategy

POLL_SECONDS = 0.02
GRACE_SECONDS = 5.0
"""After messages have expired, for the errors that say so to arrive."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its checkpoint and history."""

    path: Path
    resume: bool


def run_study(
    study: Study,
    grid: Grid,
    sites: Mapping[int, str],
    initial: Parameters,
    folder: RunFolder,
    on_round: Callable[[Round], None] = lambda record: None,
    go_on: Callable[[], bool] = lambda: True,
    said_patients: Mapping[str, int] | None = None,
) -> Checkpoint:
    """Run the rounds that are left and return the last checkpoint.

    Memory is at most about three times the model, whatever the number of sites: what is not at work lies in the checkpoint's
    file. That holds for `initial` if it is mapped, and for a grid that has one reply at a time in memory.

    Args:
        study: what was agreed.
        grid: Flower's way to the sites.
        sites: name of each site by node id.
        initial: shared parameters to start from.
        folder: where checkpoint and history live.
        on_round: called after each published round.
        go_on: asked before each round; if not, the checkpoint so far is returned.
        said_patients: training patients of each site as it said before the first round; a private study's sites are held
            to it.

    Raises:
        SitesError: fewer sites than the study requires.
        TooFewRepliesError: a round stayed below the minimum after its retries; the last good model is kept.
        CheckpointError: the checkpoint cannot be written or read.
    """
    if len(sites) < study.federation.minimum_sites:
        raise SitesError(f"The study needs {study.federation.minimum_sites} sites; {len(sites)} can take part.")
    checkpoint = (read_checkpoint(folder.path, study.hash) if folder.resume else None) or Checkpoint(
        study.hash, 0, initial, {}, 0, None, initial
    )
    for round_number in range(checkpoint.round_number + 1, study.federation.rounds + 1):
        if not go_on():
            break
        strategy = StudyStrategy(study, sites, checkpoint.parameters, checkpoint.optimizer_state, said_patients)
        record = _run_round(study, grid, strategy, round_number)
        checkpoint = _advance(study, strategy, checkpoint, record)
        append_round(folder.path, record)
        checkpoint = write_checkpoint(folder.path, checkpoint)
        on_round(record)
    return checkpoint


def exchange(grid: Grid, messages: Iterable[Message], timeout_seconds: float) -> Iterator[Message]:
    """Send messages and yield each reply as it comes, until all are in or the time is up.

    The messages' own time to live is the timeout: a grid answers those that expire with an error. A message is answered once:
    what comes again, or too late from an earlier exchange, is dropped. Flower's own `send_and_receive` returns every reply at
    once; here at most a few are in memory together, and the messages no longer than the grid keeps them.
    """
    deadline = time.monotonic() + timeout_seconds + GRACE_SECONDS
    waiting = set(grid.push_messages(messages))
    del messages
    while waiting and time.monotonic() < deadline:
        arrived = False
        for reply in grid.pull_messages(tuple(waiting)):
            if reply.metadata.reply_to_message_id in waiting:
                waiting.remove(reply.metadata.reply_to_message_id)
                arrived = True
                yield reply
            del reply  # or it would still be in memory while the next one comes
        if waiting and not arrived:
            time.sleep(POLL_SECONDS)


def _run_round(study: Study, grid: Grid, strategy: StudyStrategy, round_number: int) -> Round:
    start, timeout, nothing = time.monotonic(), study.federation.round_timeout_seconds, ConfigRecord()
    attempt = 0
    while True:
        attempt += 1
        # The instructions have no name here, and so go when the grid has passed them on.
        published, _ = strategy.aggregate_train(
            round_number,
            exchange(grid, strategy.configure_train(round_number, strategy.arrays(), nothing, grid), timeout),
        )
        if published is not None:
            break
        if attempt > study.federation.retries:
            raise TooFewRepliesError(_too_few(study, strategy.outcome, round_number, attempt))
    asked = strategy.configure_evaluate(round_number, published, nothing, grid)
    means: Mapping[str, object] = strategy.aggregate_evaluate(round_number, exchange(grid, asked, timeout)) or {}
    outcome = strategy.outcome
    return Round(
        round_number=round_number,
        attempts=attempt,
        seconds=time.monotonic() - start,
        bytes_down=outcome.bytes_down,
        bytes_up=outcome.bytes_up,
        sites={site: _site_round(outcome, site) for site in sorted(outcome.trained.keys() | outcome.evaluated.keys())},
        refused=dict(sorted(outcome.refused.items())),
        validation_loss=_number(means.get("loss")),
        validation_metric=_number(means.get("metric")),
        validation_noise=_number(means.get("noise")),
        figures=outcome.figures,
    )


def _too_few(study: Study, outcome: Outcome, round_number: int, attempts: int) -> str:
    reasons = " ".join(f"{site}: {reason}" for site, reason in sorted(outcome.refused.items()))
    minimum, times = study.federation.minimum_replies, "once" if attempts == 1 else f"{attempts} times"
    return f"Round {round_number} had {len(outcome.trained)} good replies of the {minimum} it needs, {times}. {reasons}"


def _site_round(outcome: Outcome, site: str) -> SiteRound:
    trained, evaluated = outcome.trained.get(site), outcome.evaluated.get(site)
    exact = evaluated.exact if evaluated else None
    return SiteRound(
        trained=trained is not None,
        patients=trained.patients if trained else None,
        training_loss=trained.training_loss if trained else None,
        spent=trained.spent if trained else None,
        training_seconds=trained.seconds if trained else None,
        validation_patients=exact.patients if exact else None,
        validation_loss=exact.loss if exact else None,
        validation_metric=exact.metric if exact else None,
    )


def _advance(study: Study, strategy: StudyStrategy, before: Checkpoint, record: Round) -> Checkpoint:
    metric, best = record.validation_metric, before.best_metric
    sign = -1 if study.metric in LOWER_IS_BETTER else 1
    # The best of many noisy figures is chosen by the noise: a private study keeps the last round.
    improved = study.is_private or (metric is not None and (best is None or sign * metric > sign * best))
    return Checkpoint(
        study_hash=study.hash,
        round_number=record.round_number,
        parameters=strategy.parameters,
        optimizer_state=strategy.optimizer_state,
        best_round=record.round_number if improved else before.best_round,
        best_metric=metric if improved else best,
        best_parameters=strategy.parameters if improved else before.best_parameters,
        replied=tuple(sorted(strategy.outcome.trained)),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
