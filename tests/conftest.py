"""What tests of every package share."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes depends on what else the machine does; pytest-timeout bounds the whole.
settings.register_profile("echofed", deadline=None)
settings.load_profile("echofed")

# Who starts the tests in the background has Ctrl-C ignored by them and all they start: the tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real ultrasound images: ECHOFED_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("ECHOFED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "breast_federation.csv").is_file():
        pytest.skip(f"no real images in {folder}; set ECHOFED_DATA")
    return folder
