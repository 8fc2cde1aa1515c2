"""The coordinator's memory: at most four times the model, however many sites and whatever the server optimiser."""

import pytest

from benchmarks.coordinator_memory import LIMIT, measured_apart

MEGABYTES = 40
"""Under 32 MB the C library keeps what was freed, and the peak would be its own."""


@pytest.mark.parametrize(("preset", "sites"), [("FedAvg", 12), ("FedAdam", 4)])
def test_peak_memory_is_bounded_whatever_the_number_of_sites(preset: str, sites: int) -> None:
    peak = measured_apart(sites, MEGABYTES, preset)
    assert 1 < peak <= LIMIT
