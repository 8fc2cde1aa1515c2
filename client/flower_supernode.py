"""Flower's SuperNode, changed in three places: it opens no app bundle, gives up on lost messages, and does not dawdle.

    python -m echofed.client.flower_supernode OPTIONS...

SuperNode unzips a bundle's description to read the run's settings from it, before anybody has looked at the bundle's hash: one
that is malformed would end it, and one that unpacks to gigabytes would take the machine with it. EchoFed's runs have no
settings; what the bundle is, the executor checks. It also waits two hours for the parts of a message that never come, and
seconds between two looks at what is about to be there.
"""

import os
import time
import traceback
from functools import partial
from pathlib import Path

from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

WHOLE_SECONDS = 10.0
"""For all parts of a message to come; they are small."""
LOOK_SECONDS, PAUSE_SECONDS = 0.05, 0.5


class _Time:
    """What SuperNode knows of time: how to wait; for its own executor briefly, before it asks for the next message longer."""

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(LOOK_SECONDS if seconds < 1 else min(seconds, PAUSE_SECONDS))


def _no_settings(bundle: Path | bytes, run: Run) -> dict[str, bool | float | int | str]:
    return {}


CHANGES = {
    "get_fused_config_from_fab": _no_settings,
    "pull_objects": partial(
        pull_objects, max_time=WHOLE_SECONDS, initial_backoff=LOOK_SECONDS, backoff_cap=10 * LOOK_SECONDS
    ),
    "time": _Time,
}
"""By the names under which SuperNode's module has them; flwr is pinned with these."""


def main() -> None:
    """Run a SuperNode until it is stopped; its options are the command line's.

    Raises:
        AttributeError: this Flower has not what is to be changed.
    """
    for name, change in CHANGES.items():
        getattr(start_client_internal, name)
        setattr(start_client_internal, name, change)
    try:
        flower_supernode()
    except SystemExit:
        raise
    except BaseException:
        # SuperLink forgot the node: two threads notice and interrupt the process twice, the second time while it ends. Its
        # server's thread would keep it alive, deaf; ended for good, it is started anew.
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()
