"""Every benchmark, one after the other: `make bench`, or `python -m benchmarks.run --quick`."""

import argparse
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version

MODULES = (
    "round_overhead",
    "gateway_copy",
    "coordinator_memory",
    "private_step",
    "simulation_speed",
    "demo_time",
    "breast",
    "private_variants",
    "private_figures",
    "privacy_audit",
    "deidentification",
    "burned_in_text",
    "ingest_sources",
    "ingest_throughput",
)


def main() -> None:
    """Run each benchmark in a process of its own and print where and when."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and splits")
    quick = ["--quick"] if parser.parse_args().quick else []
    packages = ", ".join(f"{name} {version(name)}" for name in ("echofed", "torch", "flwr", "opacus", "monai"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.machine()}, {platform.system()}")
    print(f"Python {platform.python_version()}, {packages}")
    for module in MODULES:
        print(f"\n== {module}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *quick], check=True)


if __name__ == "__main__":
    main()
