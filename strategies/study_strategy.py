"""The study's strategy in Flower's terms: who is asked, which replies count, and how they become one model."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from echofed.protocol.arrays import Parameters, decode_parameters
from echofed.protocol.errors import EchoFedError
from echofed.protocol.figures import metric_of
from echofed.protocol.flower_records import buffer_record, content, parameters_record, payload_bytes
from echofed.protocol.messages import EvaluateReply, Instruction, NoisyFigures, TrainReply
from echofed.protocol.study import Study
from echofed.strategies.aggregation import StreamingMean, aggregation_weight
from echofed.strategies.replies import read_evaluate_reply, read_train_reply
from echofed.strategies.server_optimizers import State, apply_update

UNUSABLE = (EchoFedError, ArithmeticError, ValueError)
"""What reading a site's reply can end in; it is that site's affair and not the round's."""


@dataclass
class Outcome:
    """What one exchange with the sites brought: good replies, refused ones, and bytes of parameters each way.

    `figures` are a private study's noisy sums over all sites.
    """

    trained: dict[str, TrainReply] = field(default_factory=dict)
    evaluated: dict[str, EvaluateReply] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    figures: NoisyFigures | None = None
    bytes_down: int = 0
    bytes_up: int = 0


class StudyStrategy(Strategy):
    """Asks an explicit list of sites, refuses bad replies, publishes only with enough good ones.

    Replies are consumed one at a time, so memory grows with the model and not with the number of sites. The global
    parameters and the optimiser's state change only when a round is published.

    Args:
        study: what was agreed.
        sites: name of each site by Flower node id; nobody else is asked or listened to.
        parameters: the shared global parameters, float32 arrays by name.
        optimizer_state: from a checkpoint; empty for a new run.
        said_patients: training patients of each site as it said before the first round; a private study's sites say that
            number once and for all.
    """

    def __init__(
        self,
        study: Study,
        sites: Mapping[int, str],
        parameters: Parameters,
        optimizer_state: State | None = None,
        said_patients: Mapping[str, int] | None = None,
    ) -> None:
        self.study = study
        self.sites = dict(sites)
        self.parameters = parameters
        self.optimizer_state: State = optimizer_state or {}
        self.said_patients = dict(said_patients or {})
        self.outcome = Outcome()
        self._published: ArrayRecord | None = None
        self._size = sum(array.size for array in parameters.values())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one instruction for each site; `arrays` is what `arrays()` gave."""
        self.outcome = Outcome()
        return self._ask("train", server_round, arrays, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one instruction for each site in rounds that are evaluated, else none."""
        due = self.study.evaluation.is_due(server_round, self.study.federation.rounds)
        return self._ask("evaluate", server_round, arrays, grid) if due else []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new global parameters, or None (and nothing changes) with fewer good replies than required."""
        mean = StreamingMean(self.parameters)
        for site, message in self._from_sites(replies, self.outcome.trained):
            self._add(mean, server_round, site, message)
            del message  # or it would still be in memory while the next one comes
        self._count_silent(self.outcome.trained)
        if len(self.outcome.trained) < self.study.federation.minimum_replies:
            return None, None
        buffer, self.optimizer_state = apply_update(
            self.study.strategy.server_optimizer, self.parameters, mean.take(), self.optimizer_state
        )
        self.parameters, self._published = decode_parameters(buffer, len(buffer)), buffer_record(buffer)
        return self.arrays(), MetricRecord({"replies": len(self.outcome.trained)})

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the loss and metric over all sites, or None without any.

        Without privacy they are means weighted by validation patients. In a private study the metric is read from the sum of
        the sites' noisy figures; `noise` is the standard error the noise gives it, and there is no loss.
        """
        for site, message in self._from_sites(replies, self.outcome.evaluated):
            try:
                self.outcome.evaluated[site] = read_evaluate_reply(message, self.study, server_round, site)
            except UNUSABLE as error:
                self.outcome.refused.setdefault(site, _why(error))
        evaluated = self.outcome.evaluated.values()
        exact = [reply.exact for reply in evaluated if reply.exact is not None]
        self.outcome.figures = _summed([reply.noisy for reply in evaluated if reply.noisy is not None])
        means = {
            "loss": _weighted_mean((one.loss, one.patients) for one in exact),
            "metric": _weighted_mean((one.metric, one.patients) for one in exact),
            **_from_sums(self.study, self.outcome.figures),
        }
        known: dict[str, int | float | list[int] | list[float]] = {
            name: value for name, value in means.items() if value is not None and math.isfinite(value)
        }
        return MetricRecord(known) if known else None

    def summary(self) -> None:
        """Say nothing; the caller reports progress."""

    def arrays(self) -> ArrayRecord:
        """Return the global parameters as Flower carries them."""
        return self._published or parameters_record(self.parameters)

    def _add(self, mean: StreamingMean, round_number: int, site: str, message: Message) -> None:
        try:
            said = self.said_patients.get(site)
            reply, update = read_train_reply(message, self.study, round_number, site, self.parameters, said)
            weight = aggregation_weight(self.study, reply, self._size)
        except EchoFedError as error:
            self.outcome.refused[site] = f"[{error.code}] {error.what}"
            return
        except UNUSABLE as error:
            self.outcome.refused[site] = _why(error)
            return
        mean.add(update, weight)
        self.outcome.trained[site] = reply

    def _ask(self, kind: str, round_number: int, arrays: ArrayRecord, grid: Grid) -> list[Message]:
        instruction = Instruction.model_validate(
            {"kind": kind, "study_hash": self.study.hash, "round_number": round_number}
        )
        asked, timeout = content(instruction, arrays), self.study.federation.round_timeout_seconds
        messages = [grid.create_message(asked, kind, node_id, str(round_number), timeout) for node_id in self.sites]
        self.outcome.bytes_down += sum(map(payload_bytes, messages))
        return messages

    def _from_sites(self, replies: Iterable[Message], accepted: Mapping[str, object]) -> Iterable[tuple[str, Message]]:
        """Yield replies with their site's name; strangers and second replies are refused."""
        for message in replies:
            self.outcome.bytes_up += payload_bytes(message)
            site = self.sites.get(message.metadata.src_node_id)
            if site is None:
                self.outcome.refused[f"node {message.metadata.src_node_id}"] = "The node is not a site of this study."
            elif site not in accepted:
                yield site, message
            del message

    def _count_silent(self, accepted: Mapping[str, object]) -> None:
        for site in self.sites.values():
            if site not in accepted and site not in self.outcome.refused:
                self.outcome.refused[site] = "The site did not answer in time."


def _why(error: Exception) -> str:
    return error.what if isinstance(error, EchoFedError) else f"The reply cannot be used: {type(error).__name__}."


def _summed(noisy: Sequence[NoisyFigures]) -> NoisyFigures | None:
    if not noisy:
        return None
    sums = np.sum([one.sums for one in noisy], axis=0)
    return NoisyFigures(sums=tuple(sums.tolist()), noise_stddev=math.hypot(*(one.noise_stddev for one in noisy)))


def _from_sums(study: Study, figures: NoisyFigures | None) -> dict[str, float | None]:
    found = figures and metric_of(study.task, np.array(figures.sums), figures.noise_stddev)
    return dict(zip(("metric", "noise"), found, strict=True)) if found else {}


def _weighted_mean(values: Iterable[tuple[float | None, int]]) -> float | None:
    known = [(value, weight) for value, weight in values if value is not None and weight > 0]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None
