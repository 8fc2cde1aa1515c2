"""The same study through Flower's own simulation engine (Ray, an extra): the same ClientApp, strategy and rounds."""

import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from echofed.client.flower import make_client_app
from echofed.protocol.errors import RunError

START_SECONDS = 300.0
POLL_SECONDS = 0.1


def run_with_flower(
    study_folder: Path, site_folders: Sequence[Path], seed: int, workers: int, run: Callable[[Grid], None]
) -> None:
    """Call `run` with a Grid of Flower's simulation engine, one core a worker.

    Args:
        study_folder: the study and its initial parameters.
        site_folders: state folder of each site.
        seed: of the simulation.
        workers: Ray actors at work at the same time.
        run: what the ServerApp does.

    Raises:
        RunError: Ray is not installed, or whatever `run` raised.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise RunError("Flower's engine needs Ray.", "Install echofed[ray], or leave out --engine flower.") from error
    from flwr.simulation import run_simulation

    app = ServerApp()
    raised: list[BaseException] = []

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            _wait_for_nodes(grid, len(site_folders))
            run(grid)
        except BaseException as error:
            raised.append(error)
            raise

    resources: dict[str, dict[str, Any]] = {
        "init_args": {"num_cpus": workers},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run_simulation(
                server_app=app,
                client_app=make_client_app(study_folder, site_folders, seed),
                num_supernodes=len(site_folders),
                backend_config=resources,
            )
        except BaseException as error:
            if not raised:
                raise RunError(f"Flower's engine failed: {error}.", "Run without --engine flower.") from error
    if raised:
        raise raised[0]


def _wait_for_nodes(grid: Grid, number: int) -> None:
    """Flower starts the ServerApp and the nodes side by side; wait until all are there."""
    deadline = time.monotonic() + START_SECONDS
    while len(list(grid.get_node_ids())) < number:
        if time.monotonic() > deadline:
            raise RunError("Flower's engine did not start in time.", "Run without --engine flower.")
        time.sleep(POLL_SECONDS)
