"""Fingerprints for the telephone: stable, and hard to mishear."""

import hashlib
from itertools import combinations

from echofed.protocol.words import FINGERPRINT_WORDS, WORDS, fingerprint_words, same_words


def test_golden_vectors() -> None:
    # A changed list or derivation would make two versions of EchoFed read out different words.
    listed = "63861518cade903842f884799fd5c35220d67e8d8fdf78e48b9cad74427458f3"
    assert hashlib.sha256(" ".join(WORDS).encode()).hexdigest() == listed
    assert fingerprint_words(b"EchoFed") == "zigzag coupon expert ninja science nougat sushi octave"
    assert fingerprint_words(b"") == "maraca canal geranium prairie liquid hibiscus atoll bravo"


def test_no_two_words_are_alike() -> None:
    assert len(WORDS) == 256
    assert len({word[:3] for word in WORDS}) == 256
    assert all(word.isascii() and word.islower() and 3 <= len(word) <= 9 for word in WORDS)
    assert min(_distance(one, other) for one, other in combinations(WORDS, 2)) >= 3


def test_one_changed_bit_changes_the_words() -> None:
    shown = {fingerprint_words(bytes([0] * 31 + [1 << bit])) for bit in range(8)}
    assert len(shown) == 8
    assert all(len(words.split()) == FINGERPRINT_WORDS for words in shown)


def test_what_people_type_is_compared_generously_but_wholly() -> None:
    words = "zigzag coupon expert ninja science nougat sushi octave"
    for heard in (words, words.upper(), words.replace(" ", ", "), f" {words}\n", words.replace(" ", "-")):
        assert same_words(heard, words)
    swapped = words.replace("zigzag coupon", "coupon zigzag")
    for heard in ("", "zigzag", words[:-1], words + " zoom", words.replace("ninja", "nylon"), swapped):
        assert not same_words(heard, words)


def _distance(one: str, other: str) -> int:
    """Return the Levenshtein distance of two words."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        above, row = row, [number]
        for column, its in enumerate(other, 1):
            row.append(min(above[column] + 1, row[-1] + 1, above[column - 1] + (letter != its)))
    return row[-1]
