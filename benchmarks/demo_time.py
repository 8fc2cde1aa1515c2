"""How long `echofed demo` takes after installation, beside its limit of three minutes on two cores.

python -m benchmarks.demo_time [--quick]
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_SECONDS = 180


def main() -> None:
    """Run the demo once and print its time."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        command = [str(Path(sys.executable).with_name("echofed")), "demo", "--out", f"{folder}/demo"]
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.monotonic() - start
    print(f"demo: {seconds:.0f} s, {seconds / LIMIT_SECONDS:.2f} of its limit of {LIMIT_SECONDS} s")


if __name__ == "__main__":
    main()
