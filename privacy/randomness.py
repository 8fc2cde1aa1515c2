"""Where random bits come from: the operating system, or a seed in simulations."""

import hashlib
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Words = Callable[[int], NDArray[np.uint64]]
"""Gives as many random 64-bit words as asked, uint64 [n]; never the same ones twice."""


def random_words(seed: int | None, *context: str | int) -> Words:
    """Return a source of random words for one purpose.

    Without a seed every word comes from the operating system's cryptographic generator (`os.urandom`), so that privacy noise
    and the draw of patients can be neither predicted nor repeated. With a seed the same seed and context give the same words:
    whoever knows the seed can take the noise away again, so this is for simulations only.

    Args:
        seed: None in deployment; any integer in simulations.
        context: what the words are for, such as ("site a", 3); different contexts give independent words.
    """
    if seed is None:
        return lambda count: np.frombuffer(os.urandom(8 * count), "<u8").astype(np.uint64, copy=False)
    bits = np.random.PCG64(int.from_bytes(seeded_bytes(seed, context, 32), "little"))
    return lambda count: bits.random_raw(count)


def seeded_bytes(seed: int, context: tuple[str | int, ...], length: int) -> bytes:
    """Return bytes that depend on a seed and what they are for.

    Every part of the context is written with its type and length, so no two contexts collide.

    Args:
        seed: any integer.
        context: what they are for.
        length: number of bytes.
    """
    parts = [f"{type(part).__name__}:{len(str(part))}:{part}" for part in (seed, *context)]
    return hashlib.shake_256("|".join(parts).encode()).digest(length)
