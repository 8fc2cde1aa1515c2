import itertools
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from echofed.privacy.randomness import random_words

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


def test_the_same_seed_and_context_give_the_same_words() -> None:
    one, same = random_words(3, "site", 1), random_words(3, "site", 1)
    # However they are asked for.
    assert np.concatenate([one(2), one(0), one(5)]).tolist() == same(7).tolist()


def test_no_two_contexts_or_seeds_share_words() -> None:
    firsts = [random_words(seed, *context)(1)[0] for seed in (0, 1, -1, 2**70) for context in CONTEXTS]
    assert len(set(firsts)) == len(firsts)


def test_without_a_seed_words_differ_every_time_whatever_the_context() -> None:
    words = random_words(None, "a")
    drawn = [words(4), words(4), random_words(None, "a")(4), random_words(None)(4)]
    assert all(not np.isin(one, other).any() for one, other in itertools.combinations(drawn, 2))


@pytest.mark.parametrize("seed", [7, None])
def test_every_bit_is_even_and_on_its_own(seed: int | None) -> None:
    drawn = random_words(seed, "bits")(20_000)
    assert drawn.dtype == np.uint64
    assert drawn.shape == (20_000,)
    bits = np.unpackbits(drawn.view(np.uint8).reshape(-1, 8), axis=1).astype(np.float64)
    # 64 bits and 2,016 pairs of them: chances of 1 in 10,000 over all.
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 4.9 * 0.5 / 20_000**0.5
    assert np.abs(np.corrcoef(bits.T) - np.eye(64)).max() < 5.6 / 20_000**0.5
    assert stats.kstest(drawn / 2.0**64, "uniform").pvalue > 1e-4


def test_words_of_deployment_come_from_the_operating_system() -> None:
    # A process whose os.urandom is known gives known words: nothing else is mixed in, nothing kept back.
    code = (
        "import os; os.urandom = lambda n: bytes(range(n)); "
        "from echofed.privacy.randomness import random_words; print(random_words(None, 'a')(2).tolist())"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == str([int.from_bytes(bytes(range(k, k + 8)), "little") for k in (0, 8)])
