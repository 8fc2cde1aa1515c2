"""Explicit generators, each a function of a seed and what it is for."""

import secrets

import numpy as np

from echofed.privacy.randomness import seeded_bytes


def generator(seed: int | None, *context: str | int) -> np.random.Generator:
    """Return numpy's generator for one purpose that is no secret, such as augmentation.

    Different contexts give independent streams; the same seed and context give the same one. What privacy rests on takes
    `echofed.privacy.randomness.random_words` instead.

    Args:
        seed: any integer, in simulations; None takes 256 bits from the operating system, as a deployment must.
        context: what the numbers are for, such as ("augmentation", "site a", 3).
    """
    seeding = secrets.token_bytes(32) if seed is None else seeded_bytes(seed, context, 32)
    return np.random.Generator(np.random.PCG64(int.from_bytes(seeding, "little")))
