"""Damaged and hostile files: every one ends in frames or in a reason, within its limits."""

import os
from pathlib import Path

import pytest

from tests.client.ingest.mutations import MUTATIONS, mutate, outcomes, seeds

# Ten thousand take about five minutes on one core.
MUTATIONS_RUN = int(os.environ.get("ECHOFED_MUTATIONS", "200"))


@pytest.mark.timeout(3600)
def test_every_mutation_ends_in_frames_or_a_reason(shared_data: Path, tmp_path: Path) -> None:
    counts, wrong = outcomes(seeds(shared_data), range(MUTATIONS_RUN), tmp_path)
    print(dict(counts.most_common()))
    assert wrong == []
    assert counts.total() == MUTATIONS_RUN
    assert counts["accepted"] > 0
    assert {"DAMAGED", "TOO_DEEP", "TOO_LARGE", "DECODER_DISAGREES"} <= set(counts)


def test_mutations_are_the_same_every_time_and_of_every_kind(shared_data: Path) -> None:
    originals = seeds(shared_data)
    made = [mutate(originals, number) for number in range(100)]
    assert made[:3] == [mutate(originals, number) for number in range(3)]
    assert {part for name, _ in made for part in name.split("+")} == set(MUTATIONS)
