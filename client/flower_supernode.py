"""Flower's SuperNode, as it is, but for one thing: it does not open the app bundles it is sent.

    python -m echofed.client.flower_supernode OPTIONS...

SuperNode unzips a bundle's description to read the run's settings from it, before anybody has looked at the bundle's hash: one
that is malformed would end it, and one that unpacks to gigabytes would take the machine with it. EchoFed's runs have no
settings; what the bundle is, the executor checks.
"""

from pathlib import Path

from flwr.supercore.run import Run
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

SEAM = "get_fused_config_from_fab"
"""What SuperNode calls to open a bundle; flwr is pinned with it."""


def _no_settings(bundle: Path | bytes, run: Run) -> dict[str, bool | float | int | str]:
    return {}


def main() -> None:
    """Run a SuperNode until it is stopped; its options are the command line's.

    Raises:
        AttributeError: this Flower opens bundles in another way.
    """
    getattr(start_client_internal, SEAM)
    setattr(start_client_internal, SEAM, _no_settings)
    flower_supernode()


if __name__ == "__main__":
    main()
