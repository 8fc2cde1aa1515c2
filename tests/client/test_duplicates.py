"""The same image twice: found however it was re-saved, and nothing else taken for it."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from echofed.client.duplicates import MAX_HASH_DISTANCE, near_pairs, perceptual_hash, thumbnail
from echofed.client.images import GreyImage, read_image

Looks = tuple[list[int], list[bytes]]


def looks_of(images: list[np.ndarray]) -> Looks:
    small = [thumbnail(np.ascontiguousarray(image)) for image in images]
    return [perceptual_hash(one) for one in small], [one.tobytes() for one in small]


def real_images(folder: Path, every: int) -> tuple[list[np.ndarray], list[str]]:
    with (folder / "breast_federation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))[::every]
    images = [read_image(folder / row["file"]) for row in rows]
    return [one.pixels for one in images if isinstance(one, GreyImage)], [row["patient_id"] for row in rows]


def as_jpeg(image: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=30)
    return np.asarray(Image.open(stream))


EDITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "jpeg": as_jpeg,
    "half size": lambda image: np.asarray(Image.fromarray(image).resize((image.shape[1] // 2, image.shape[0] // 2))),
    "brighter": lambda image: np.clip(image * 1.2, 0, 255).astype(np.uint8),
    "gamma": lambda image: (255 * (image / 255) ** 0.8).astype(np.uint8),
    "noise": lambda image: np.clip(image + np.random.default_rng(0).normal(0, 8, image.shape), 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_copies_of_real_images_are_found_and_nothing_else(shared_data: Path, edit: str) -> None:
    images, _ = real_images(shared_data, every=40)
    hashes, thumbnails = looks_of([*images, *map(EDITS[edit], images)])
    found = {(int(first), int(second)) for first, second in near_pairs(hashes, thumbnails)}
    assert found == {(at, at + len(images)) for at in range(len(images))}


def test_known_copies_of_a_public_set_are_found(shared_data: Path) -> None:
    folder = shared_data / "breastmnist"
    with (folder / "index.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with np.load(folder / "breastmnist64_derived.npz") as compressed:
        arrays = dict(compressed)
    images = [arrays[f"{row['split']}_images"][int(row["row"])] for row in rows]
    groups = np.array([row["group_id"] for row in rows])
    first, second = near_pairs(*looks_of(images)).T
    known = sum(len(same) * (len(same) - 1) // 2 for same in (np.flatnonzero(groups == g) for g in set(groups)))
    assert known == 163
    assert (groups[first] == groups[second]).sum() >= 0.95 * known


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=6)), max_size=30),
    st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4),
)
def test_no_close_pair_is_missed(members: list[tuple[int, set[int]]], bases: list[int]) -> None:
    codes = [bases[base] ^ sum(1 << bit for bit in flipped) for base, flipped in members]
    same = [np.arange(1024, dtype=np.uint16).astype(np.uint8).tobytes()] * len(codes)
    expected = {
        (first, second)
        for second in range(len(codes))
        for first in range(second)
        if (codes[first] ^ codes[second]).bit_count() <= MAX_HASH_DISTANCE
    }
    assert {(int(first), int(second)) for first, second in near_pairs(codes, same)} == expected


def test_equal_hashes_of_different_looks_are_no_pair() -> None:
    rng = np.random.default_rng(0)
    thumbnails = [rng.integers(0, 256, 1024, dtype=np.uint8).tobytes() for _ in range(3)] + [bytes(1024)] * 2
    assert near_pairs([7] * 5, thumbnails).shape == (0, 2)
