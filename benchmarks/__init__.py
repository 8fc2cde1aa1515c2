"""Measured claims: each module prints a ratio against a named peer or limit, in one run."""

import os

# As the `echofed` command does: numpy's products here are small, and more threads only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
