"""Which frames of a clip are kept."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FrameRule = Literal["every", "different", "all"]

# Frames nearer to a chosen one than this, in grey levels on average, show nothing new.
_LEAST_DIFFERENCE = 1.0
_MOST_COMPARED = 1024


def choose_frames(
    count: int,
    rule: FrameRule,
    step: int,
    most: int,
    thumbnails: Callable[[int], NDArray[np.uint8]] | None,
) -> tuple[int, ...]:
    """Return the frames to keep, 0 based, ascending, at least one and at most `most`.

    "every" takes frames 0, step, 2 step and so on, "all" takes all; of more than `most` those are kept that are spread
    evenly over the clip. "different" starts with the first frame and adds, again and again, the one that differs most
    from all chosen before (Gonzalez, 1985), until none differs by a grey level; of clips above 1,024 frames it compares
    1,024 spread evenly.

    Args:
        count: frames of the clip, at least 1.
        rule: "every", "different" or "all".
        step: of "every", at least 1.
        most: at least 1.
        thumbnails: returns a frame made small, all of one shape; needed for "different" only.

    Raises:
        ValueError: if a number is below 1, or "different" has no thumbnails.
    """
    if min(count, step, most) < 1:
        raise ValueError("count, step and most are at least 1")
    if rule == "different":
        if thumbnails is None:
            raise ValueError("the rule different compares thumbnails")
        return _most_different(_spread(range(count), _MOST_COMPARED), most, thumbnails)
    return _spread(range(0, count, step if rule == "every" else 1), most)


def _spread(frames: range, most: int) -> tuple[int, ...]:
    if len(frames) <= most:
        return tuple(frames)
    return tuple(frames[place * len(frames) // most] for place in range(most))


def _most_different(
    frames: tuple[int, ...], most: int, thumbnails: Callable[[int], NDArray[np.uint8]]
) -> tuple[int, ...]:
    small = np.stack([thumbnails(frame).ravel() for frame in frames]).astype(np.int16)
    chosen, nearest = [0], np.full(len(frames), np.inf)
    while len(chosen) < most:
        nearest = np.minimum(nearest, np.abs(small - small[chosen[-1]]).mean(axis=1))
        farthest = int(nearest.argmax())
        if nearest[farthest] < _LEAST_DIFFERENCE:
            break
        chosen.append(farthest)
    return tuple(frames[place] for place in sorted(chosen))
