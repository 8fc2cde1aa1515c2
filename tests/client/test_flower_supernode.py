"""The changed SuperNode: it ends when it is to end, so that it can be started anew."""

import subprocess
import sys

INTERRUPTED = """
import threading, time
from echofed.client import flower_supernode
threading.Thread(target=time.sleep, args=(60,)).start()  # as its server's
def interrupted():
    raise KeyboardInterrupt
flower_supernode.flower_supernode = interrupted
flower_supernode.main()
"""


def test_interrupted_while_it_ends_it_ends_nevertheless() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "KeyboardInterrupt" in done.stderr
