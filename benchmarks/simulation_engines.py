"""The engines `benchmarks.simulation_speed` compares, one process each; every one takes the same training steps.

An engine runs rounds for as long as it is let: it says on its standard output when a round is over, then waits for a line
on its standard input.
"""

import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from echofed.client.site import open_site
from echofed.learning.engine import train
from echofed.learning.examples import Examples
from echofed.learning.models import StudyModel, build_model, load_parameters
from echofed.learning.randomness import generator
from echofed.protocol.study import Study
from echofed.protocol.study_folder import read_study_folder
from echofed.server.checkpoint import read_checkpoint
from echofed.server.cohort import describe_sites
from echofed.server.rounds import RunFolder, run_study
from echofed.simulations.flower_engine import run_with_flower
from echofed.simulations.grid import InProcessGrid
from echofed.simulations.pool import WorkerPool

SEED = 0
ROUNDS = 10_000
"""More than any engine gets to do."""
BARRIER_SECONDS = 300.0

Floats = NDArray[np.float32]


class FinishedError(Exception):
    """No more rounds are wanted."""


class Turns:
    """Says that a round is over and waits for leave to start the next."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print goes to the log

    def end_round(self) -> None:
        """Return when the next round may start.

        Raises:
            FinishedError: the other end was closed.
        """
        print("round", file=self._replies, flush=True)
        if not sys.stdin.readline():
            raise FinishedError


@dataclass(frozen=True)
class Federation:
    """What an engine simulates.

    Args:
        folder: holds the study, its initial parameters, and a folder for each of the sites under `sites`.
        cohort: how many sites are asked each round: the first by name.
        processes: at work at the same time.
    """

    folder: Path
    cohort: int
    processes: int

    @property
    def sites(self) -> list[Path]:
        """State folders of all sites, by name."""
        return sorted((self.folder / "sites").iterdir())


class Trainer:
    """A study's model and its sites' examples in one process, and the one training every engine calls."""

    def __init__(self, federation: Federation) -> None:
        self.study, self.initial, _ = read_study_folder(federation.folder)
        self.model: StudyModel = build_model(self.study)
        load_parameters(self.model, self.initial)
        self._folders = federation.sites
        self._examples: dict[int, Examples] = {}

    def examples(self, site: int) -> Examples:
        """Return the training patients of one site, by its place."""
        if site not in self._examples:
            self._examples[site] = open_site(self._folders[site]).examples(self.study, "training")
        return self._examples[site]

    def train(self, site: int, round_number: int) -> float:
        """Train the model in place as EchoFed's client does: the same patients are drawn."""
        rng = generator(SEED, "sampling", self.study.hash, self._folders[site].name, round_number)
        loss = train(self.model, self.examples(site), self.study, rng=rng, noise=None)
        return 0.0 if loss is None else loss


def bare_pool(federation: Federation, turns: Turns) -> Floats:
    """Run rounds on bare worker processes that share flat parameters and updates; the floor."""
    trainer = Trainer(federation)
    sizes = [parameter.numel() for parameter in trainer.model.parameters()]
    context = multiprocessing.get_context("spawn")
    shared, updates = context.RawArray("f", sum(sizes)), context.RawArray("f", federation.cohort * sum(sizes))
    round_number, taken = context.Value("i", 0), context.Value("i", 0)
    start, end = (context.Barrier(federation.processes + 1, timeout=BARRIER_SECONDS) for _ in range(2))
    parameters = np.frombuffer(shared, np.float32)
    parameters[:] = np.concatenate([parameter.detach().numpy().ravel() for parameter in trainer.model.parameters()])
    rows = np.frombuffer(updates, np.float32).reshape(federation.cohort, -1)
    arguments = (federation, shared, updates, round_number, taken, start, end)
    workers = [context.Process(target=_bare_worker, args=arguments, daemon=True) for _ in range(federation.processes)]
    for worker in workers:
        worker.start()
    with suppress(FinishedError):
        while True:
            round_number.value += 1
            taken.value = 0
            start.wait()
            end.wait()
            parameters += rows.mean(axis=0)
            turns.end_round()
    round_number.value = 0
    start.wait()
    for worker in workers:
        worker.join()
    return parameters


def _bare_worker(
    federation: Federation,
    shared: Any,
    updates: Any,
    round_number: "Synchronized[int]",
    taken: "Synchronized[int]",
    start: Barrier,
    end: Barrier,
) -> None:
    import torch

    torch.set_num_threads(1)
    trainer = Trainer(federation)
    model = trainer.model
    whole = torch.frombuffer(shared, dtype=torch.float32)
    rows = torch.frombuffer(updates, dtype=torch.float32).reshape(federation.cohort, -1)
    pairs = _pairs(model, whole)
    while True:
        start.wait()
        if round_number.value == 0:
            return
        while (site := _take(taken)) < federation.cohort:
            with torch.no_grad():
                for parameter, part in pairs:
                    parameter.copy_(part)
            trainer.train(site, round_number.value)
            with torch.no_grad():
                for (parameter, part), (_, out) in zip(pairs, _pairs(model, rows[site]), strict=True):
                    torch.sub(parameter, part, out=out)
        end.wait()


def _pairs(model: StudyModel, flat: Any) -> list[tuple[Any, Any]]:
    parameters = list(model.parameters())
    parts = flat.split([parameter.numel() for parameter in parameters])
    return [(parameter, part.view_as(parameter)) for parameter, part in zip(parameters, parts, strict=True)]


def _take(taken: "Synchronized[int]") -> int:
    with taken.get_lock():
        taken.value += 1
        return int(taken.value) - 1


def echofed_pool(federation: Federation, turns: Turns) -> Floats:
    """Run rounds as `echofed simulate` does."""
    sites = federation.sites
    with WorkerPool(federation.folder, sites, SEED, federation.processes) as pool:
        return _run_study(federation, turns, InProcessGrid(pool, len(sites)), "pool")


def echofed_on_flower(federation: Federation, turns: Turns) -> Floats:
    """Run rounds with EchoFed's ClientApp and strategy on Flower's engine."""
    ends: list[Floats] = []

    def run(grid: Grid) -> None:
        ends.append(_run_study(federation, turns, grid, "flower"))

    run_with_flower(federation.folder, federation.sites, SEED, federation.processes, run)
    return ends[0]


def _run_study(federation: Federation, turns: Turns, grid: Grid, name: str) -> Floats:
    study, initial, _ = read_study_folder(federation.folder)
    described, failed = describe_sites(study, grid)
    if failed:
        raise RuntimeError(f"{len(failed)} sites cannot take part: {next(iter(failed.values()))}")
    cohort = {node: reply.site for node, reply in list(described.items())[: federation.cohort]}
    folder = federation.folder / f"{name}-{os.getpid()}"
    folder.mkdir()
    with suppress(FinishedError):
        run_study(study, grid, cohort, initial, RunFolder(folder, resume=False), lambda _: turns.end_round())
    checkpoint = read_checkpoint(folder, study.hash)
    assert checkpoint is not None
    return flat(study, checkpoint.parameters)


def flat(study: Study, parameters: dict[str, Floats]) -> Floats:
    """Return parameters as one vector, in the model's order."""
    names = [name for name, _ in build_model(study).named_parameters()]
    return np.concatenate([parameters[name].ravel() for name in names])


def stock_flower(federation: Federation, turns: Turns) -> None:
    """Run rounds with Flower's own FedAvg and the shortest ClientApp there is, on Flower's engine.

    Flower draws the cohort, so a node trains on the data of one of the sites the other engines ask.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    from flwr.simulation import run_simulation

    client = ClientApp()

    @client.train()
    def fit(message: Message, context: Context) -> Message:
        trainer = _trainer(federation)
        trainer.model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        round_number = int(str(message.content.config_records["config"]["server-round"]))
        site = int(context.node_config["partition-id"]) % federation.cohort
        loss = trainer.train(site, round_number)
        metrics = MetricRecord({"num-examples": trainer.examples(site).patients, "loss": loss})
        content = RecordDict({"arrays": ArrayRecord(trainer.model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_train=federation.cohort / len(federation.sites), fraction_evaluate=0.0)
        initial = ArrayRecord(_trainer(federation).model.state_dict())

        def after_round(round_number: int, arrays: ArrayRecord) -> None:
            if round_number:
                turns.end_round()

        with suppress(FinishedError):
            strategy.start(grid, initial, num_rounds=ROUNDS, evaluate_fn=after_round)

    resources = {"num_cpus": federation.processes}
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=len(federation.sites),
        backend_config={"init_args": resources, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


@lru_cache(maxsize=1)
def _trainer(federation: Federation) -> Trainer:
    return Trainer(federation)


def pfl_backend(federation: Federation, turns: Turns) -> Floats:
    """Run rounds with pfl-research's simulated backend: one process, one thread.

    A second thread made it slower, on arrays as small as these.
    """
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import MinimizeReuseUserSampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    torch.set_num_threads(1)

    class Averaging(FederatedAveraging):  # type: ignore[misc]
        def train_one_user(self, initial: Any, model: Any, dataset: Any, context: Any) -> tuple[Any, Metrics]:
            trainer.train(dataset.user_id, context.current_central_iteration + 1)
            return model.get_model_difference(initial), Metrics()

    class EndRound(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, metrics: Any, model: Any, *, central_iteration: int) -> tuple[bool, Metrics]:
            try:
                turns.end_round()
            except FinishedError:
                return True, Metrics()
            return False, Metrics()

    trainer = Trainer(federation)
    module: Any = trainer.model
    module.loss = None  # asked for, and never called: `Averaging` trains
    module.metrics = lambda images: {"images": Weighted(len(images), 1)}  # called in the first round only
    model = PyTorchModel(
        module, local_optimizer_create=torch.optim.SGD, central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0)
    )
    sampler = MinimizeReuseUserSampler(list(range(federation.cohort)))
    data = FederatedDataset(lambda site: Dataset([trainer.examples(site).images], user_id=site), sampler)
    Averaging().run(
        NNAlgorithmParams(
            central_num_iterations=ROUNDS,
            evaluation_frequency=ROUNDS + 1,
            train_cohort_size=federation.cohort,
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=0.1, local_batch_size=None),
        callbacks=[EndRound()],
    )
    return np.concatenate([parameter.detach().numpy().ravel() for parameter in module.parameters()])


ENGINES: dict[str, Callable[[Federation, Turns], Floats | None]] = {
    "bare process pool": bare_pool,
    "EchoFed": echofed_pool,
    "EchoFed on Flower's engine": echofed_on_flower,
    "Flower, stock FedAvg": stock_flower,
    "pfl-research": pfl_backend,
}


def main() -> None:
    """Run one engine, told as JSON in the first argument, and keep the parameters it ends with."""
    told = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    federation = Federation(Path(told["folder"]), told["cohort"], told["processes"])
    parameters = ENGINES[told["engine"]](federation, Turns())
    if parameters is not None:
        np.save(told["result"], parameters)
