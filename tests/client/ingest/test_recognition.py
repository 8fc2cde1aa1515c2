"""Where text recognition finds writing."""

import subprocess
import sys

import numpy as np
import pytest

from echofed.client.ingest import recognition
from echofed.client.ingest.geometry import Box, Pixels
from echofed.client.ingest.recognition import Finds, find_text, is_installed
from echofed.simulations.phantoms import random_phantoms
from tests.client.ingest.planted_text import PLAIN, FontKind, Look, phantom_tissue, plant, recompressed, screen, styles

BACKGROUND = random_phantoms(1, 192, seed=5)[0]


def written(
    font: FontKind, size_px: int, colour: str, look: Look = PLAIN, text: str = "NOVAK, Eva"
) -> tuple[Pixels, Box]:
    frames = np.repeat(BACKGROUND[None, ..., None], 3, 3).copy()
    (planted,) = plant(
        frames, Box(0, 0, 192, 192), [(text, font, size_px, colour, "tissue", "fixed")], np.random.default_rng(2), look
    )
    return frames[0], planted.box


def share_found(boxes: tuple[Box, ...], place: Box) -> float:
    found = np.zeros(BACKGROUND.shape, bool)
    for box in boxes:
        found[box.top : box.bottom, box.left : box.right] = True
    return float(found[place.top + 1 : place.bottom - 1, place.left + 1 : place.right - 1].mean())


@pytest.mark.parametrize(
    ("font", "size_px", "colour"),
    [("bitmap", 11, "white"), ("aliased", 9, "yellow"), ("vector", 16, "grey"), ("outlined", 24, "grey")],
)
def test_a_name_is_found(font: FontKind, size_px: int, colour: str) -> None:
    """At least half of it: a box that covers a part sends the whole still to a person."""
    picture, place = written(font, size_px, colour)
    assert share_found(find_text(recompressed(picture, 85)).lines, place) > 0.5


@pytest.mark.parametrize("turned_deg", [20, 45, 90, 135, 180, 270])
def test_a_soft_name_is_found_however_it_is_turned(turned_deg: int) -> None:
    picture, place = written("vector", 20, "white", Look(turned_deg, 1.0))
    assert share_found(find_text(recompressed(picture, 60)).lines, place) > 0.5


def test_letters_larger_than_a_scanner_writes_may_be_tissue() -> None:
    picture, place = written("vector", 130, "white", Look(0, 2.0), "Li")
    finds = find_text(picture)
    assert share_found(finds.large, place) > 0.5
    assert finds.boxes == finds.lines + finds.large


def test_a_quick_look_finds_lines_too() -> None:
    picture, place = written("vector", 20, "white", Look(90, 1.0))
    assert share_found(find_text(picture, "quick").lines, place) > 0.5


@pytest.mark.parametrize("seed", [24, 36])
def test_small_grey_letters_on_bright_tissue_are_only_seen_sharpened(seed: int) -> None:
    (style,) = (style for style in styles() if style.name == "dorado-240x320")
    generator = np.random.default_rng(seed)
    frames = screen(style, phantom_tissue(style, generator))[None]
    (planted,) = plant(frames, style.box, [("19/09/2023", "vector", 9, "grey", "corner", "fixed")], generator)
    picture, top, left = style.box.of(frames[0]), style.box.top, style.box.left
    assert find_text(picture, "usual").boxes == ()
    (box,) = find_text(picture).lines
    assert box.top + top < planted.box.bottom
    assert planted.box.top < box.bottom + top
    assert box.left + left < planted.box.right
    assert planted.box.left < box.right + left


def test_nothing_is_found_in_tissue() -> None:
    assert find_text(BACKGROUND) == Finds((), ())


def test_boxes_lie_in_the_picture() -> None:
    picture = np.zeros((40, 300, 3), np.uint8)
    plant(
        picture[None],
        Box(0, 0, 40, 300),
        [("ID 123456", "vector", 24, "white", "corner", "fixed")],
        np.random.default_rng(0),
    )
    boxes = find_text(picture).boxes
    assert boxes
    assert all(0 <= box.top < box.bottom <= 40 and 0 <= box.left < box.right <= 300 for box in boxes)


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (200, 3)])
def test_tiny_pictures_are_looked_at(shape: tuple[int, int]) -> None:
    assert find_text(np.zeros(shape, np.uint8)).boxes == ()


def test_tiles_join(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, _ = written("vector", 16, "white")
    whole = find_text(picture).lines
    monkeypatch.setattr(recognition, "_TILE_PX", 320)
    in_tiles = find_text(picture).lines
    assert whole
    assert len(in_tiles) == len(whole)
    assert all(abs(a.top - b.top) <= 6 and abs(a.left - b.left) <= 12 for a, b in zip(whole, in_tiles, strict=True))


def test_importing_it_loads_no_network() -> None:
    code = "import sys, echofed.client.ingest.cleaning; sys.exit(bool({'onnxruntime', 'cv2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_package_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_installed()
    monkeypatch.setattr(recognition, "_PACKAGE", "no_such_package")
    assert not is_installed()
