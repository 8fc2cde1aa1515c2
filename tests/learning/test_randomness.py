import numpy as np
import torch

from echofed.learning.randomness import generator

CONTEXTS: list[tuple[str | int, ...]] = [(), ("a",), ("b",), ("a", "b"), ("ab",), (1,), ("1",), (1, 1), (11,)]


def test_the_same_seed_and_context_give_the_same_numbers() -> None:
    assert generator(3, "site", 1).random(5).tolist() == generator(3, "site", 1).random(5).tolist()


def test_no_two_contexts_or_seeds_share_numbers() -> None:
    firsts = [generator(seed, *context).random() for seed in (0, 1, -1, 2**70) for context in CONTEXTS]
    assert len(set(firsts)) == len(firsts)


def test_without_a_seed_numbers_differ_every_time() -> None:
    assert generator(None, "a").random() != generator(None, "a").random()


def test_making_a_generator_leaves_the_global_ones_alone() -> None:
    before, torchs = np.random.get_state(legacy=False), torch.get_rng_state()  # noqa: NPY002
    generator(5, "a").random(3)
    assert torch.equal(torchs, torch.get_rng_state())
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert np.array_equal(before["state"]["key"], after["state"]["key"])
    assert before["state"]["pos"] == after["state"]["pos"]
