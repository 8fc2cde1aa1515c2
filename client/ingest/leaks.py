"""The search for identifying texts in the bytes of everything that is stored.

What is found, and what cannot be:

- Each text is looked for in UTF-8, Latin-1, UTF-16 of both orders, as JSON escapes and, if it is not Latin, in the older code
  pages DICOM knows; in lower, upper and given case; composed, decomposed and without accents. SQLite files are searched as bytes
  and value by value, PNG files in their text chunks, file names too. Texts are found wherever chunks of a file meet.
- Texts of four to eight characters (eleven, if they could be hexadecimal) and numbers of any length are found as words of
  their own only: pseudonyms and checksums hold every short text by chance. A number that continues a decimal fraction is not
  taken for an id.
- Texts below four characters, numbers below six digits and words EchoFed itself writes, such as names of models, are not looked
  for: they are everywhere. `Search.left_out` counts them.
- In pixels, and in other binary numbers, smooth grey levels spell short texts and numbers by chance. There only texts are
  looked for of at least ten bytes, six of them different, or twenty if they are digits and points alone.
- What is encrypted or compressed (but PNG text) cannot be searched: search before it is, with `Search.find`.
"""

import itertools
import mmap
import os
import re
import sqlite3
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echofed.client.ingest.equipment import names_a_model, own_words
from echofed.client.ingest.errors import LeakError
from echofed.client.ingest.header import PHOTOMETRIC, Header
from echofed.client.ingest.leak_places import Place, database_values, inflated_texts, places
from echofed.client.ingest.outcomes import Verdict, Why
from echofed.client.ingest.pseudonyms import clean_id
from echofed.client.ingest.spellings import letter_spellings

SHORTEST_TEXT = 4
SHORTEST_NUMBER = 6
WORD_BELOW = 9
HEXADECIMAL_WORD_BELOW = 12
"""Characters from which a text counts within longer words as well: among a billion pairs of a text and a stored code fewer than
one in a hundred meets by chance."""
PIXEL_BYTES = 10
PIXEL_DIFFERENT_BYTES = 6
MAX_TEXT_CHARACTERS = 64
"""Of each text; longer ones are found by their beginning."""
CHUNK_BYTES = 2**18
"""Small enough that a chunk and what is made of it stay in the processor's cache."""

OWN_WORDS = own_words() | frozenset(
    word
    for text in (
        *Verdict,
        *Why,
        *PHOTOMETRIC,
        *(each.name for each in fields(Header)),
        "pixels uint8 sha256 echofed benign malignant",
    )
    for word in (text.casefold(), *re.split(r"[\s_]+", text.casefold()))
)
"""Words of EchoFed's own, in lower case: what it stores holds them whoever the patients are."""

_GRAM = 4
_TABLE_BITS = (16, 22)
"""Of the table of words that may begin a pattern, the least and the most: one instance's texts need no large one."""
_TEXTS_KEPT = 2**13
"""Whose spellings are remembered: most texts of an instance are those of the one before it."""
_FOREIGN = np.uint32(0x02020202)
_MULTIPLIER = np.uint32(0x9E3779B1)
_ENCODINGS = ("utf-8", "latin-1", "utf-16-le", "utf-16-be")
_OLDER_ENCODINGS = (
    "iso8859_2", "iso8859_3", "iso8859_4", "iso8859_5", "iso8859_6", "iso8859_7", "iso8859_8", "iso8859_9", "iso8859_15",
    "tis_620", "shift_jis", "iso2022_jp", "iso2022_kr", "euc_jp", "euc_kr", "gb18030",
)  # fmt: skip
_LOWER = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"abcdefghijklmnopqrstuvwxyz")
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")
_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789")
_DIGITS = frozenset(b"0123456789")
_LETTERS = (_WORD - _DIGITS) | frozenset(range(0x80, 0x100))
_POINTS = frozenset(b".,")


@dataclass(frozen=True)
class Leak:
    """An identifying text in a stored file.

    Args:
        path: of the file.
        offset: of the first byte; None in a value of a database or in the file's name.
        encoding: in which it was found.
        text: what was found; not shown, since reports are stored too.
    """

    path: Path
    offset: int | None
    encoding: str
    text: str = field(repr=False)


@dataclass(frozen=True)
class _Pattern:
    text: str
    encoding: str
    is_number: bool
    is_word: bool
    stands_out: bool

    @property
    def step(self) -> int:
        """Bytes from one character to the next."""
        return _step(self.encoding)


@dataclass(frozen=True)
class _Index:
    """Patterns by the four bytes they begin with, at each of their first `stride` offsets.

    `foreign` translates a byte to 0 if it is null, 1 if it is in one of these words of four bytes, 2 if in none. `grams` are
    these words in order, and `places`, [grams, 2], their offset and the length of their pattern.
    """

    stride: int
    patterns: dict[bytes, _Pattern]
    foreign: bytes
    table: NDArray[np.bool_]
    grams: NDArray[np.uint32]
    places: NDArray[np.int64]
    longest: int


class Search:
    """Texts made ready to be searched for.

    Args:
        texts: identifying texts, as from `identifying_texts`.
    """

    def __init__(self, texts: Collection[str]) -> None:
        cleaned = {clean_id(text)[:MAX_TEXT_CHARACTERS] for text in texts} - {""}
        kept = {text for text in cleaned if _can_be_searched(text) and not _is_own(text)}
        self.left_out = len(cleaned) - len(kept)
        patterns = {content: pattern for text in sorted(kept) for content, pattern in _spelt(text)}
        self._anywhere = _index(patterns, stride=1)
        in_pixels = {content: pattern for content, pattern in patterns.items() if pattern.stands_out}
        self._in_pixels = _index(in_pixels, stride=_GRAM)

    def find(
        self, content: bytes | mmap.mmap, place: Place = "text", start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, str, str]]:
        """Yield (offset, encoding, text) of each find, in the order of offsets within a chunk.

        Args:
            content: any bytes.
            place: "text" or "pixels"; in pixels only texts that cannot be there by chance.
            start, stop: the part of it that is searched.
        """
        index = self._anywhere if place == "text" else self._in_pixels
        if not index.patterns:
            return
        end = len(content) if stop is None else stop
        overlap = -(-index.longest // _GRAM) * _GRAM + _GRAM
        for position in range(start, end, CHUNK_BYTES):
            # A find may begin in this chunk and end in the next; the byte or two before it tell whether a word begins.
            before = min(position - start, _GRAM)
            chunk = content[position - before : min(position + CHUNK_BYTES + overlap, end)].translate(_LOWER)
            for offset, encoding, text in _find_in(chunk, index):
                if before <= offset < before + CHUNK_BYTES:
                    yield position - before + offset, encoding, text


def find_leaks(paths: Iterable[Path], texts: Collection[str] | Search) -> list[Leak]:
    """Return each identifying text found in files, in their names, and in all files of folders; one find per text and file.

    Args:
        paths: files and folders; links are not followed.
        texts: what to look for, or a search made of it.

    Raises:
        LeakError: a file cannot be read, so that nothing can be said of it.
    """
    search = texts if isinstance(texts, Search) else Search(texts)
    found: list[Leak] = []
    for path, name in _files(paths):
        seen: dict[str, Leak] = {}
        try:
            for offset, encoding, text in _find_in_file(path, name, search):
                seen.setdefault(text, Leak(path, offset, encoding, text))
        except (OSError, sqlite3.Error) as error:
            raise LeakError(
                f"{path} could not be searched: {error}.", "Make it readable, then search again."
            ) from error
        found += seen.values()
    return found


def _files(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Every file, with its name from where the search began."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            for folder, folders, names in os.walk(path, onerror=_raise):
                folders.sort()
                for name in sorted(names):
                    file = Path(folder, name)
                    yield file, str(file.relative_to(path))
        else:
            yield path, path.name


def _raise(error: OSError) -> None:
    raise LeakError(
        f"{error.filename} could not be searched: {error.strerror}.", "Make it readable, then search again."
    )


def _find_in_file(path: Path, name: str, search: Search) -> Iterator[tuple[int | None, str, str]]:
    for _, _, text in search.find(name.encode("utf-8", "surrogateescape")):
        yield None, "file name", text
    if path.is_symlink() or not stat.S_ISREG((status := path.lstat()).st_mode) or not status.st_size:
        return
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for start, stop, place in places(content):
            yield from search.find(content, place, start, stop)
        inflated = list(inflated_texts(content))
    for value in itertools.chain(inflated, database_values(path)):
        for _, encoding, text in search.find(value):
            yield None, encoding, text


def _is_own(text: str) -> bool:
    return text.casefold() in OWN_WORDS or names_a_model(text)


def _can_be_searched(text: str) -> bool:
    if text.isdigit():
        return len(text) >= SHORTEST_NUMBER
    # A Chinese, Japanese or Korean character says as much as three letters.
    return sum(3 if letter >= "\u2e80" else 1 for letter in text) >= SHORTEST_TEXT


@lru_cache(maxsize=_TEXTS_KEPT)
def _spelt(text: str) -> tuple[tuple[bytes, _Pattern], ...]:
    """The bytes a text can be stored as, ASCII letters in lower case."""
    is_number = text.isdigit()
    is_word = is_number or len(text) < (HEXADECIMAL_WORD_BELOW if _HEXADECIMAL.issuperset(text) else WORD_BELOW)
    spelt = ((content.translate(_LOWER), encoding) for content, encoding in _encoded(text))
    return tuple(
        (content, _Pattern(text, encoding, is_number, is_word, _stands_out(content, encoding)))
        for content, encoding in spelt
        if len(content) >= _GRAM
    )


def _encoded(text: str) -> Iterator[tuple[bytes, str]]:
    if text.isascii():
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
            yield text.encode(encoding), encoding
        return
    spellings = {
        cased for spelt in letter_spellings(text) for cased in (spelt, spelt.lower(), spelt.upper(), spelt.title())
    }
    for spelt in sorted(filter(_can_be_searched, spellings)):
        for encoding in _ENCODINGS if max(spelt) <= "\xff" else (*_ENCODINGS, *_OLDER_ENCODINGS):
            with suppress(UnicodeEncodeError):
                yield spelt.encode(encoding), encoding
        if not spelt.isascii():
            yield spelt.encode("ascii", "backslashreplace").replace(b"\\x", b"\\u00"), "JSON"


def _step(encoding: str) -> int:
    return 2 if encoding.startswith("utf-16") else 1


def _stands_out(content: bytes, encoding: str) -> bool:
    """Whether pixels cannot hold a text by chance."""
    different = set(content)
    shortest = 2 * PIXEL_BYTES if different.isdisjoint(_LETTERS) else PIXEL_BYTES
    return len(content) >= shortest * _step(encoding) and len(different) >= PIXEL_DIFFERENT_BYTES


def _index(patterns: dict[bytes, _Pattern], stride: int) -> _Index:
    """Patterns ready to be looked up.

    With a stride of four only every fourth word of four bytes is looked up: whatever holds a pattern of seven bytes or more
    holds one of the four words that begin at its first four offsets.
    """
    width = stride + _GRAM - 1
    heads = np.frombuffer(b"".join(content[:width] for content in patterns), np.uint8).reshape(-1, width)
    lengths = np.fromiter(map(len, patterns), np.int64, len(patterns))
    words = [np.ascontiguousarray(heads[:, offset : offset + _GRAM]).view("<u4")[:, 0] for offset in range(stride)]
    offsets = np.arange(stride).repeat(len(patterns))
    grams, places = np.concatenate(words), np.stack([offsets, np.tile(lengths, stride)], 1)
    order = np.argsort(grams)
    grams, places = grams[order], places[order]
    used = set(grams.tobytes())
    foreign = bytes(0 if byte == 0 else 1 if byte in used else 2 for byte in range(256))
    table = np.zeros(2 ** int(np.clip(len(grams).bit_length() + 6, *_TABLE_BITS)), np.bool_)
    table[_hash(grams, table)] = True
    return _Index(stride, patterns, foreign, table, grams, places, int(lengths.max(initial=0)))


def _hash(grams: NDArray[np.uint32], table: NDArray[np.bool_]) -> NDArray[np.uint32]:
    return (grams * _MULTIPLIER) >> np.uint32(33 - len(table).bit_length())


def _find_in(chunk: bytes, index: _Index) -> Iterator[tuple[int, str, str]]:
    for position in _candidates(chunk, index):
        gram = np.uint32(int.from_bytes(chunk[position : position + _GRAM], "little"))
        first, behind = np.searchsorted(index.grams, gram, "left"), np.searchsorted(index.grams, gram, "right")
        for offset, length in sorted(set(map(tuple, index.places[first:behind].tolist()))):
            start = position - offset
            if start < 0:
                continue
            pattern = index.patterns.get(chunk[start : start + length])
            if pattern is not None and _counts(chunk, start, start + length, pattern):
                yield start, pattern.encoding, pattern.text


def _candidates(chunk: bytes, index: _Index) -> list[int]:
    """Positions whose four bytes are among those of a pattern, in order."""
    found = []
    kinds = chunk.translate(index.foreign)
    for shift in range(_GRAM if index.stride == 1 else 1):
        count = (len(chunk) - shift) // _GRAM
        if count <= 0:
            continue
        words, kind = (np.frombuffer(content, "<u4", count, shift) for content in (chunk, kinds))
        # Words with a byte no pattern has, or of nulls alone, are most of all pixels and quickly told.
        likely = np.flatnonzero(((kind & _FOREIGN) == 0) & (kind != 0))
        likely = likely[index.table[_hash(words[likely], index.table)]]
        chosen = words[likely]
        nearest = np.searchsorted(index.grams, chosen)
        same = index.grams[np.minimum(nearest, len(index.grams) - 1)] == chosen
        found.append(likely[same] * _GRAM + shift)
    return np.sort(np.concatenate(found)).tolist() if found else []


def _counts(chunk: bytes, start: int, end: int, pattern: _Pattern) -> bool:
    """Whether a find is a word of its own, where it has to be one."""
    if not pattern.is_word:
        return True
    step = pattern.step
    before = chunk[max(start - step, 0) : start]
    after = chunk[end : end + step]
    if any(byte in _WORD for byte in (*before, *after)):
        return False
    earlier = chunk[max(start - 2 * step, 0) : max(start - step, 0)]
    fraction = any(byte in _POINTS for byte in before) and any(byte in _DIGITS for byte in earlier)
    return not (pattern.is_number and fraction)
