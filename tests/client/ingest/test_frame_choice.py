"""Which frames of a clip are kept."""

import numpy as np
import pytest

from echofed.client.ingest.frame_choice import choose_frames


def test_every_nth_frame() -> None:
    assert choose_frames(25, "every", 10, 99, None) == (0, 10, 20)
    assert choose_frames(1, "every", 10, 99, None) == (0,)
    assert choose_frames(100, "every", 10, 5, None) == (0, 20, 40, 60, 80)


def test_all_frames_up_to_the_most() -> None:
    assert choose_frames(4, "all", 10, 99, None) == (0, 1, 2, 3)
    assert choose_frames(9, "all", 1, 3, None) == (0, 3, 6)


def test_the_most_different_frames() -> None:
    levels = [0, 1, 100, 2, 50, 101]
    chosen = choose_frames(6, "different", 1, 3, lambda frame: np.full((4, 4), levels[frame], np.uint8))
    assert chosen == (0, 4, 5)


def test_a_frozen_clip_has_one_frame() -> None:
    assert choose_frames(500, "different", 1, 25, lambda frame: np.full((4, 4), 7, np.uint8)) == (0,)


def test_of_a_long_clip_only_some_frames_are_compared() -> None:
    asked: list[int] = []

    def thumbnail(frame: int) -> np.ndarray:
        asked.append(frame)
        return np.full((4, 4), frame % 256, np.uint8)

    chosen = choose_frames(60_000, "different", 1, 10, thumbnail)
    assert (len(asked), len(chosen)) == (1024, 10)
    assert list(chosen) == sorted(set(chosen))


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_numbers_are_at_least_one(numbers: tuple[int, int, int]) -> None:
    count, step, most = numbers
    with pytest.raises(ValueError, match="at least 1"):
        choose_frames(count, "every", step, most, None)


def test_different_needs_thumbnails() -> None:
    with pytest.raises(ValueError, match="thumbnails"):
        choose_frames(5, "different", 1, 1, None)
