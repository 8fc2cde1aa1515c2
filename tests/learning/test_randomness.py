import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from echofed.learning.randomness import NoiseSource, generator, torch_generator

CONTEXTS: list[tuple[str | int, ...]] = [
    (),
    ("a",),
    ("b",),
    ("a", "b"),
    ("ab",),
    (1,),
    ("1",),
    (1, 1),
    (11,),
    ("a|str:1:b",),
]


def test_the_same_seed_and_context_give_the_same_numbers() -> None:
    assert generator(3, "site", 1).random(5).tolist() == generator(3, "site", 1).random(5).tolist()
    one, same = (torch.randn(5, generator=torch_generator(3, "site", 1)) for _ in range(2))
    assert torch.equal(one, same)


def test_no_two_contexts_or_seeds_share_numbers() -> None:
    firsts = [generator(seed, *context).random() for seed in (0, 1, -1, 2**70) for context in CONTEXTS]
    assert len(set(firsts)) == len(firsts)
    firsts = [float(torch.randn(1, generator=torch_generator(0, *context))) for context in CONTEXTS]
    assert len(set(firsts)) == len(firsts)


def test_without_a_seed_numbers_differ_every_time() -> None:
    assert generator(None, "a").random() != generator(None, "a").random()
    assert not torch.equal(
        torch.randn(3, generator=torch_generator(None)), torch.randn(3, generator=torch_generator(None))
    )


@pytest.mark.parametrize("seed", [7, None])
def test_torch_numbers_are_normal_and_uncorrelated(seed: int | None) -> None:
    # 1,500 numbers cross the 624 words of the state more than once; p-values are uniform, so these bounds rarely fail.
    numbers = torch.randn(1500, generator=torch_generator(seed)).numpy()
    assert stats.kstest(numbers, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.12


def test_the_whole_state_comes_from_the_context() -> None:
    # manual_seed keeps 32 bits; two states here share no more words than chance allows.
    states = [torch_generator(1, name).get_state().numpy()[24 : 24 + 8 * 624].view("<u8") for name in ("a", "b")]
    assert np.count_nonzero(states[0] == states[1]) <= 1
    assert all(len(np.unique(state)) > 620 for state in states)


def test_making_a_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    torch.randn(3, generator=torch_generator(5, "a"))
    assert torch.equal(before, torch.get_rng_state())


def test_noise_differs_between_steps_rounds_and_sites() -> None:
    sources = [NoiseSource(1.0, 0, context) for context in (("a", 1), ("a", 2), ("b", 1))]
    drawn = [torch.randn(4, generator=source.at(step)) for source in sources for step in (0, 1)]
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(drawn, 2))
    assert torch.equal(drawn[0], torch.randn(4, generator=NoiseSource(2.0, 0, ("a", 1)).at(0)))
