"""Phantoms for the slower tests of whole consortia."""

from pathlib import Path

import pytest

from tests.small_simulations import draw_sites


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small hospitals."""
    return draw_sites(tmp_path_factory.mktemp("phantoms"))
