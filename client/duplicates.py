"""Finding the same image twice: exact copies by their pixels, near copies by what they look like small."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from echofed.client.images import Pixels

THUMBNAIL_SIDE = 32
# Among 2.3 million pairs of breast images of different patients none comes near both limits (the closest hashes are 10
# bits apart, the highest correlation is 0.92), while re-saved, halved, brightened or noisy copies all pass.
MAX_HASH_DISTANCE = 7
MIN_CORRELATION = 0.93

_HASH_SIDE = 8
_BANDS = 8
_CELLS_A_BLOCK = 2**22
_PAIRS_A_BLOCK = 4096


def _cosines() -> NDArray[np.float64]:
    frequency, position = np.arange(_HASH_SIDE)[:, None], np.arange(THUMBNAIL_SIDE)[None, :]
    return np.cos(np.pi * frequency * (2 * position + 1) / (2 * THUMBNAIL_SIDE))


_COSINES = _cosines()


def thumbnail(pixels: Pixels) -> Pixels:
    """Return an image shrunk to uint8 [32, 32], whatever its aspect ratio."""
    shrunk = Image.fromarray(pixels).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(shrunk)


def perceptual_hash(small: Pixels) -> int:
    """Return 64 bits that barely change when an image is re-saved, rescaled or brightened.

    Each bit says whether one of the 8 x 8 lowest cosine frequencies of the thumbnail is above their median.

    Args:
        small: what `thumbnail` returned.
    """
    frequencies = (_COSINES @ small.astype(np.float64) @ _COSINES.T).ravel()
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs(hashes: Sequence[int], thumbnails: Sequence[bytes]) -> NDArray[np.int64]:
    """Return the pairs of images that look the same, int64 [pairs, 2], each row ascending.

    A pair has hashes at most 7 bits apart and thumbnails that correlate by at least `MIN_CORRELATION`. No such pair is
    missed: of eight bytes at least one is equal when at most seven bits differ.

    Args:
        hashes: `perceptual_hash` of each image.
        thumbnails: the bytes of each image's `thumbnail`.
    """
    codes = np.array(hashes, np.uint64)
    pairs = [pair for group in _groups(codes) for pair in _close_pairs(codes, group)]
    if not pairs:
        return np.zeros((0, 2), np.int64)
    found = np.unique(np.concatenate(pairs), axis=0)
    blocks = range(0, len(found), _PAIRS_A_BLOCK)
    alike = [_correlations(thumbnails, found[start : start + _PAIRS_A_BLOCK]) >= MIN_CORRELATION for start in blocks]
    return found[np.concatenate(alike)]


def _correlations(thumbnails: Sequence[bytes], pairs: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return Pearson's correlation of the thumbnails of each pair; 0 if one of them is flat."""
    first, second = (_standardised([thumbnails[at] for at in side]) for side in pairs.T)
    correlations: NDArray[np.float32] = np.einsum("pi,pi->p", first, second)
    return correlations


def _standardised(thumbnails: Sequence[bytes]) -> NDArray[np.float32]:
    levels = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(len(thumbnails), -1).astype(np.float32)
    levels -= levels.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(levels, axis=1, keepdims=True)
    standardised: NDArray[np.float32] = levels / np.maximum(norms, np.float32(1e-6))
    return standardised


def _groups(codes: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Yield the images that share one of the eight bytes of their hash, byte by byte."""
    for band in range(_BANDS):
        byte = (codes >> np.uint64(8 * band)) & np.uint64(0xFF)
        order = np.argsort(byte, kind="stable")
        ends = np.flatnonzero(np.diff(byte[order])) + 1
        yield from (group for group in np.split(order, ends) if len(group) > 1)


def _close_pairs(codes: NDArray[np.uint64], group: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the pairs within a group that are close, a block of rows at a time to bound memory."""
    block = max(1, _CELLS_A_BLOCK // len(group))
    for start in range(0, len(group), block):
        rows = group[start : start + block]
        distance = np.bitwise_count(codes[rows][:, None] ^ codes[group[start:]][None, :])
        first, second = np.nonzero(distance <= MAX_HASH_DISTANCE)
        later = second > first
        if later.any():
            yield np.sort(np.stack([rows[first[later]], group[start:][second[later]]], axis=1), axis=1)
