"""What a round costs beyond its training: a consortium of real processes against Flower's defaults, in one run.

Both move the same parameters to five nodes on this machine and back, and evaluate once a round. Ours trains a little
beside, so the longest training a site reports is taken off; Flower's client returns at once what it got. Flower runs as
its documentation starts it: SuperLink and SuperNodes that start a process a message, without TLS, certificates,
signatures or logs.

    python -m benchmarks.round_overhead [--quick]
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml
from flwr.cli.build import build_fab_from_disk
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from echofed.client.settings import Columns, SiteSettings
from echofed.client.site import create_site
from echofed.server.history import read_history
from echofed.server.studies import study_folder
from echofed.simulations.initial import initialise_study
from echofed.simulations.local_consortium import LocalConsortium, free_address
from echofed.simulations.phantoms import PhantomSite, write_phantom_sites
from tests.studies import make_study

SITES = 5
MODEL = {"name": "small_resnet", "width": 64, "blocks": 1}
"""1.2 million parameters."""
FLOWER_APP = """\
    import os, time
    import numpy as np
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg

    client, server = ClientApp(), ServerApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    @client.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 0.0})}), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        def note(number: int, arrays: ArrayRecord) -> None:
            with open(os.environ["ROUNDS_FILE"], "a") as file:
                file.write(f"{time.monotonic()}\\n")

        sizes = dict(fraction_train=1.0, fraction_evaluate=1.0, min_train_nodes=NODES, min_evaluate_nodes=NODES)
        strategy = FedAvg(**sizes, min_available_nodes=NODES)
        parameters = ArrayRecord([np.zeros(PARAMETERS, np.float32)])
        strategy.start(grid=grid, initial_arrays=parameters, num_rounds=ROUNDS, evaluate_fn=note)
    """
DESCRIPTION = """\
    [project]
    name = "overhead"
    version = "1.0.0"
    license = "Apache-2.0"
    dependencies = []

    [tool.flwr.app]
    publisher = "benchmark"

    [tool.flwr.app.components]
    serverapp = "overhead.app:server"
    clientapp = "overhead.app:client"
    """


def ours(folder: Path, rounds: int) -> tuple[list[float], int]:
    """Return the seconds of each round beyond its training, and the number of parameters."""
    names = [f"site{number}" for number in range(1, SITES + 1)]
    shares = {"normal": 0.0, "benign": 0.5, "malignant": 0.5}
    write_phantom_sites(
        folder / "data", [PhantomSite(name, "aquila", 12, (1, 2), shares, "linear") for name in names], 0, (48, 48)
    )
    consortium = LocalConsortium(folder / "c", {name: folder / "c" / "sites" / name for name in names}, free_address())
    consortium.folder.mkdir()
    consortium.enrol()
    for name, state in consortium.sites.items():
        settings = SiteSettings(name=name, data_folder=folder / "data" / name, columns=Columns(exam="exam_id"))
        create_site(state, settings).register()
        (state / "policy.yaml").write_text("allow_without_privacy: true\nminimum_patients: 1\ncores: 1\n")
    study = make_study(
        model=MODEL,
        task={"kind": "binary", "labels": ("benign", "malignant"), "excluded_labels": ("normal",)},
        training={"local_steps": 1, "sampling_probability": 1.0},
        federation={"rounds": rounds, "minimum_sites": SITES, "minimum_replies": SITES},
    )
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json", exclude_none=True)))
    parameters = initialise_study(path, 0)
    with consortium.running():
        consortium.await_gateway(120)
        study_hash = consortium.publish(path, parameters)
        consortium.approve(study_hash)
        consortium.run(study_hash)
        consortium.wait(study_hash, lambda status: status.state == "finished", 600)
    history = read_history(study_folder(consortium.coordinator, study_hash), rounds)
    spent = [one.seconds - max(site.training_seconds or 0.0 for site in one.sites.values()) for one in history]
    return spent[1:], parameters.stat().st_size // 4


def flowers(folder: Path, rounds: int, parameters: int) -> list[float]:
    """Return the seconds of each round with Flower's defaults."""
    app = folder / "overhead"
    app.mkdir(parents=True)
    numbers = {"NODES": SITES, "PARAMETERS": parameters, "ROUNDS": rounds}
    code = textwrap.dedent(FLOWER_APP)
    for name, number in numbers.items():
        code = (
            code.replace(name, str(number))
            if name != "ROUNDS"
            else code.replace("num_rounds=ROUNDS", f"num_rounds={number}")
        )
    (app / "__init__.py").write_text("")
    (app / "app.py").write_text(code)
    (folder / "pyproject.toml").write_text(textwrap.dedent(DESCRIPTION))
    times = folder / "rounds"
    with _flower(folder, times) as address:
        bundle = build_fab_from_disk(folder)
        interceptor = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
        with ControlHttpClient.from_server_address(address, True, None, [interceptor]) as control:
            control.StartRun(StartRunRequest(fab=Fab(content=bundle)))
        deadline = time.monotonic() + 600
        while not times.exists() or len(times.read_text().splitlines()) <= rounds:
            if time.monotonic() > deadline:
                raise TimeoutError("Flower did not finish; see its logs in the folder")
            time.sleep(0.2)
    ends = [float(line) for line in times.read_text().splitlines()]
    return [after - before for before, after in itertools.pairwise(ends[1:])]


@contextmanager
def _flower(folder: Path, times: Path) -> Iterator[str]:
    address = free_address()
    environment = {**os.environ, "ROUNDS_FILE": str(times), "FLWR_HOME": str(folder / "home")}
    environment |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    place = Path(sys.executable).parent
    environment["PATH"] = f"{place}:{environment['PATH']}"
    commands = [["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", address.rpartition(":")[2]]]
    for _ in range(SITES):
        port = free_address().rpartition(":")[2]
        commands.append(
            ["flower-supernode", "--insecure", "--superlink", address, "--host", "127.0.0.1", "--port", port]
        )
    processes = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"flower-{number}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                )
            while number == 0 and not _answers(address):
                time.sleep(0.2)
        yield address
    finally:
        for process in processes[::-1]:
            process.terminate()
        for process in processes:
            process.wait(30)


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/health").status_code < 500
    except httpx.HTTPError:
        return False


def main() -> None:
    """Measure both and print seconds a round and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 4 if parser.parse_args().quick else 11
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ours").mkdir()
        mine, parameters = ours(folder / "ours", rounds)
        theirs = flowers(folder / "flower", rounds, parameters)
    print(
        f"{SITES} sites, {parameters:,} parameters, {len(mine)} rounds after the first; median (smallest to largest) seconds"
    )
    for label, values in (("EchoFed, beyond the training", mine), ("Flower's defaults, no training", theirs)):
        print(f"  {label:32} {statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})")
    print(f"  ratio {statistics.median(mine) / statistics.median(theirs):.2f}")


if __name__ == "__main__":
    main()
