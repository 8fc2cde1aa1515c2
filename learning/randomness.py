"""Explicit sources of randomness, each a function of a seed and what it is for."""

import hashlib
import secrets
from dataclasses import dataclass

import numpy as np
import torch

STATE_WORDS = 624
"""32-bit words in the state of torch's generator, a Mersenne twister."""
STATE_OFFSET_BYTES = 24
"""Where they start in `torch.Generator.get_state()`: after the seed, the words left and the next word."""


def generator(seed: int | None, *context: str | int) -> np.random.Generator:
    """Return numpy's generator for one purpose.

    Different contexts give independent streams; the same seed and context give the same one.

    Args:
        seed: any integer, in simulations; None takes 256 bits from the operating system, as a deployment must.
        context: what the numbers are for, such as ("sampling", "site a", 3).
    """
    return np.random.Generator(np.random.PCG64(int.from_bytes(_entropy(seed, context, 32), "little")))


def torch_generator(seed: int | None, *context: str | int) -> torch.Generator:
    """Return torch's generator for one purpose, like `generator`.

    The whole state of 19,968 bits is filled. `manual_seed` would keep only 32 bits of its seed, so that whoever sees an update
    could try every noise there is.

    Args:
        seed: any integer, in simulations; None takes the state from the operating system.
        context: what the numbers are for.
    """
    source = torch.Generator()
    state = source.get_state()
    words = np.frombuffer(_entropy(seed, context, 4 * STATE_WORDS), "<u4").astype("<u8")
    end = STATE_OFFSET_BYTES + 8 * STATE_WORDS
    state[STATE_OFFSET_BYTES:end] = torch.from_numpy(words.view(np.uint8).copy())
    source.set_state(state)
    return source


@dataclass(frozen=True)
class NoiseSource:
    """How much privacy noise to add, and where it comes from.

    Args:
        multiplier: standard deviation of the noise over the clipping norm, > 0.
        seed: None in deployment: every step draws its noise from a state fresh from the operating system, and in a way that
            floating-point rounding does not betray (Holohan and Braghin (2021)). An integer in simulations only.
        context: the site and the round, so that no two of them share noise when seeded.
    """

    multiplier: float
    seed: int | None
    context: tuple[str | int, ...] = ()

    def at(self, step: int) -> torch.Generator:
        """Return the generator of one step of this round."""
        return torch_generator(self.seed, "noise", *self.context, step)


def _entropy(seed: int | None, context: tuple[str | int, ...], length: int) -> bytes:
    """Return `length` bytes; every part of the context is written with its type and length, so no two contexts collide."""
    if seed is None:
        return secrets.token_bytes(length)
    parts = [f"{type(part).__name__}:{len(str(part))}:{part}" for part in (seed, *context)]
    return hashlib.shake_256("|".join(parts).encode()).digest(length)
