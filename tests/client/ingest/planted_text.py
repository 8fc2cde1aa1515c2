"""Ultrasound frames with writing planted at known places: invented names and numbers, in vendors' styles, still and moving."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from echofed.client.ingest.geometry import Box, Pixels
from echofed.simulations.phantoms import PROBES, VENDORS, draw_anatomy, draw_lesion, phantom_image
from echofed.simulations.phantoms.probes import fit_frame

FontKind = Literal["bitmap", "aliased", "vector", "outlined"]
Place = Literal["banner", "corner", "tissue"]
Motion = Literal["fixed", "moving"]

FONTS: tuple[FontKind, ...] = ("bitmap", "aliased", "vector", "outlined")
SIZES_PX = (9, 10, 11, 12, 14, 16, 18, 20, 22, 24, 27, 30)
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "yellow": (250, 230, 60),
    "grey": (185, 185, 185),
}
_FACES = tuple(
    Path("/usr/share/fonts/truetype") / name
    for name in ("dejavu/DejaVuSans.ttf", "dejavu/DejaVuSansMono.ttf", "liberation/LiberationSans-Regular.ttf")
)
_SURNAMES = ("Ferreira", "NOVAK", "O'Brien", "Kowalska", "MUELLER", "Santos", "Haddad", "Nguyen", "Rossi", "JENSEN")
_GIVEN = ("Maria", "ANA", "Eva", "Lucia", "Ingrid", "Fatima", "JOANA", "Helen", "Rita", "Olga")


@dataclass(frozen=True)
class Style:
    """A vendor's screen: `frame_px` rows and columns, the tissue's share of them (top, left, bottom, right) and what is around.

    `cropped` says whether the file tells the tissue region; without it the whole frame is looked at.
    """

    name: str
    frame_px: tuple[int, int]
    tissue: tuple[float, float, float, float]
    probe: str
    vendor: str
    banner_level: int
    cropped: bool = True

    @property
    def box(self) -> Box:
        """Where the tissue lies."""
        (rows, columns), (top, left, bottom, right) = self.frame_px, self.tissue
        return Box(round(top * rows), round(left * columns), round(bottom * rows), round(right * columns))


def styles() -> tuple[Style, ...]:
    """Return 30 screens: six vendors' looks on five frame sizes, linear and curved probes, with and without a region."""
    frames = ((240, 320), (480, 640), (434, 636), (600, 800), (576, 720))
    tissues = (
        (0.10, 0.02, 0.98, 0.90),
        (0.16, 0.13, 0.86, 0.93),
        (0.08, 0.18, 0.92, 0.82),
        (0.12, 0.10, 0.80, 0.99),
        (0.20, 0.05, 0.95, 0.75),
        (0.06, 0.15, 0.97, 0.88),
    )
    probes = ("linear", "convex", "linear_wide", "linear_high", "convex")
    return tuple(
        Style(
            f"{vendor}-{rows}x{columns}",
            (rows, columns),
            tissues[(index + number) % len(tissues)],
            probes[(index + 2 * number) % len(probes)],
            vendor,
            (0, 30, 60, 0, 90)[number],
            cropped=(index + number) % 4 != 0,
        )
        for index, vendor in enumerate(VENDORS)
        for number, (rows, columns) in enumerate(frames)
    )


@dataclass(frozen=True)
class Look:
    """What befell a string after it was set: turned anticlockwise, and softened as by a lens or by scaling (Gaussian blur)."""

    turned_deg: int = 0
    blur_px: float = 0.0


PLAIN = Look()


@dataclass(frozen=True)
class Planted:
    """A string and how it was written; `box` encloses its pixels in the first frame it was planted in.

    `path` is how far (down, aside) it has moved from there in each frame.
    """

    text: str
    font: FontKind
    size_px: int
    colour: str
    place: Place
    motion: Motion
    box: Box
    look: Look = PLAIN
    path: tuple[tuple[int, int], ...] = ((0, 0),)


def invented_text(generator: np.random.Generator) -> str:
    """Return a name, a date, an id or a note that nobody bears."""
    kind = int(generator.integers(5))
    surname, given = generator.choice(_SURNAMES), generator.choice(_GIVEN)
    day, month, year = generator.integers(1, 29), generator.integers(1, 13), generator.integers(1930, 2025)
    texts = (
        f"{surname}, {given}",
        f"{day:02d}/{month:02d}/{year}",
        f"ID {generator.integers(10**5, 10**8)}",
        f"{given} {surname} {generator.integers(18, 95)}y",
        f"{surname}^{given}",
    )
    return texts[kind]


def text_mask(text: str, font: FontKind, size_px: int, look: Look = PLAIN) -> NDArray[np.float32]:
    """Return the text's coverage, 0..1 [rows, columns], cut to its ink.

    Args:
        text: ASCII.
        font: "bitmap" is Pillow's own at the whole multiple nearest to `size_px`, "aliased" a vector font without grey edges.
        size_px: the font's size, not the height of its capitals.
        look: what befalls it afterwards.
    """
    face: ImageFont.ImageFont | ImageFont.FreeTypeFont
    face = ImageFont.load_default_imagefont() if font == "bitmap" else _face(len(text) % len(_FACES), size_px)
    left, top, right, bottom = (int(edge) for edge in face.getbbox(text))
    image = Image.new("L", (right - min(left, 0) + 2, bottom - min(top, 0) + 2))
    pen = ImageDraw.Draw(image)
    pen.fontmode = "1" if font == "aliased" else "L"
    pen.text((0, 0), text, fill=255, font=face)
    ink = _cut(np.asarray(np.asarray(image, np.float32) / 255, np.float32))
    times = max(1, round(size_px / 11)) if font == "bitmap" else 1
    return _looking(np.kron(ink, np.ones((times, times), np.float32)), look)


def _looking(ink: NDArray[np.float32], look: Look) -> NDArray[np.float32]:
    if look == PLAIN:
        return ink
    soft = ndimage.gaussian_filter(np.pad(ink, round(4 * look.blur_px)), look.blur_px)
    turned = Image.fromarray(soft).rotate(look.turned_deg, Image.Resampling.BILINEAR, expand=True)
    return _cut(np.asarray(turned, np.float32), 0.01)


def _cut(ink: NDArray[np.float32], ground: float = 0.0) -> NDArray[np.float32]:
    rows, columns = np.flatnonzero(ink.max(1) > ground), np.flatnonzero(ink.max(0) > ground)
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@lru_cache(maxsize=64)
def _face(number: int, size_px: int) -> ImageFont.FreeTypeFont:
    path = _FACES[number]
    if path.is_file():
        return ImageFont.truetype(str(path), size_px)
    built_in = ImageFont.load_default(size_px)
    assert isinstance(built_in, ImageFont.FreeTypeFont)
    return built_in


def draw_text(frame: Pixels, ink: NDArray[np.float32], colour: str, outlined: bool, row: int, column: int) -> Box:
    """Draw the text's coverage onto an RGB frame, in place, and return the box of what lies in the frame."""
    padded = np.pad(ink, 1)
    top, left = max(row - 1, 0), max(column - 1, 0)
    bottom, right = min(row - 1 + padded.shape[0], frame.shape[0]), min(column - 1 + padded.shape[1], frame.shape[1])
    padded = padded[top - row + 1 : bottom - row + 1, left - column + 1 : right - column + 1]
    part = frame[top:bottom, left:right].astype(np.float32)
    if outlined:
        part *= 1 - ndimage.grey_dilation(padded, (3, 3))[..., None]
    part = part * (1 - padded[..., None]) + np.asarray(COLOURS[colour], np.float32) * padded[..., None]
    frame[top:bottom, left:right] = part.round().astype(np.uint8)
    return Box(top, left, bottom, right)


def phantom_tissue(style: Style, generator: np.random.Generator) -> Pixels:
    """Return a phantom as large as the style's tissue, uint8 [height, width]; a curved probe leaves dark corners."""
    probe, box = PROBES[style.probe], style.box
    lesion = draw_lesion(("benign", "malignant", "normal")[int(generator.integers(3))], generator)
    frame = fit_frame(probe, float(np.mean(probe.depth_mm)), max(box.height, box.width))
    image, _ = phantom_image(frame, draw_anatomy(generator), lesion, VENDORS[style.vendor], generator)
    return fill(image, box)


def fill(image: Pixels, box: Box) -> Pixels:
    """Return the image scaled smoothly to the box's size."""
    return np.asarray(Image.fromarray(image).resize((box.width, box.height), Image.Resampling.BICUBIC))


def screen(style: Style, tissue: Pixels) -> Pixels:
    """Return the vendor's frame around the tissue, RGB, without any writing."""
    frame = np.zeros((*style.frame_px, 3), np.uint8)
    frame[: max(style.box.top - 2, 0)] = style.banner_level
    style.box.of(frame)[:] = tissue[..., None] if tissue.ndim == 2 else tissue
    return frame


def moved(tissue: Pixels, frames: int, amplitude_px: float, noise: float, generator: np.random.Generator) -> Pixels:
    """Return a clip of the tissue as it is pressed and slides, uint8 [frames, height, width]: smooth motion, changing speckle.

    Args:
        tissue: one picture, grey.
        frames: >= 1.
        amplitude_px: how far it moves either way over the clip.
        noise: standard deviation of what changes from frame to frame, as a share of the brightness.
        generator: of motion and speckle.
    """
    rows, columns = np.mgrid[: tissue.shape[0], : tissue.shape[1]].astype(np.float32)
    phase = generator.uniform(0, 2 * np.pi)
    clip = np.empty((frames, *tissue.shape), np.uint8)
    bright = tissue.astype(np.float32)
    seen = ndimage.binary_opening(tissue > 0, np.ones((3, 3))) | (tissue > 0)
    for index in range(frames):
        swing = amplitude_px * np.sin(phase + 2 * np.pi * index / max(frames, 12))
        shifts = (rows + swing * (0.4 + rows / tissue.shape[0]), columns + 0.7 * swing)
        picture = ndimage.map_coordinates(bright, shifts, order=1, mode="nearest")
        speckle = ndimage.gaussian_filter(generator.normal(0, 1, tissue.shape).astype(np.float32), 1.2)
        clip[index] = np.clip(picture * (1 + noise * speckle / speckle.std()) * seen, 0, 255)
    return clip


def recompressed(frame: Pixels, quality: int) -> Pixels:
    """Return an RGB frame after JPEG baseline at this quality, as most scanners store clips."""
    packed = BytesIO()
    Image.fromarray(frame).save(packed, "JPEG", quality=quality)
    with Image.open(packed) as image:
        return np.asarray(image.convert("RGB"))


def plant(
    frames: Pixels,
    box: Box,
    texts: Sequence[tuple[str, FontKind, int, str, Place, Motion]],
    generator: np.random.Generator,
    look: Look = PLAIN,
) -> tuple[Planted, ...]:
    """Write texts onto all frames of a clip, in place, where they overlap no other; one that finds no room is left out.

    Args:
        frames: uint8 [count, rows, columns, 3].
        box: where the tissue lies.
        texts: what to write and how; "moving" wanders by 1 to 3 pixels a frame.
        generator: of the places.
        look: what befalls all of them.
    """
    taken = np.zeros(frames.shape[1:3], bool)
    planted = []
    for text, font, size_px, colour, place, motion in texts:
        ink = text_mask(text, font, size_px, look)
        steps = _path(len(frames), motion, generator)
        reach = (int(np.abs(steps).max(0)[0]) + 2, int(np.abs(steps).max(0)[1]) + 2)
        for _ in range(40):
            row, column = _spot(ink.shape, frames.shape[1:3], box, place, generator)
            bottom, right = row + ink.shape[0] + reach[0], column + ink.shape[1] + reach[1]
            zone = np.s_[max(row - reach[0], 0) : bottom, max(column - reach[1], 0) : right]
            if row >= 0 and column >= 0 and not taken[zone].any():
                break
        else:
            continue
        taken[zone] = True
        boxes = [
            draw_text(frame, ink, colour, font == "outlined", row + int(down), column + int(aside))
            for frame, (down, aside) in zip(frames, steps, strict=True)
        ]
        path = tuple((int(down), int(aside)) for down, aside in steps - steps[0])
        planted.append(Planted(text, font, size_px, colour, place, motion, boxes[0], look, path))
    return tuple(planted)


def _path(frames: int, motion: Motion, generator: np.random.Generator) -> NDArray[np.int64]:
    if motion == "fixed":
        return np.zeros((frames, 2), np.int64)
    speed = generator.integers(1, 4, 2) * generator.choice((-1, 1), 2)
    ramp = np.arange(frames)[:, None] * speed
    return np.asarray(40 - np.abs(ramp % 80 - 40), np.int64)


def _spot(
    ink: tuple[int, ...], frame: tuple[int, ...], box: Box, place: Place, generator: np.random.Generator
) -> tuple[int, int]:
    """Return where the text's first row and column go; negative where it does not fit."""
    rows, columns = ink
    if place == "banner":
        room = (box.top - rows - 2, frame[1] - columns - 2)
        return (int(generator.integers(1, room[0])), int(generator.integers(1, room[1]))) if min(room) > 1 else (-1, -1)
    if place == "tissue":
        room = (round(0.8 * box.height) - rows, round(0.9 * box.width) - columns)
        if min(room) < 1:
            return -1, -1
        down, aside = int(generator.integers(room[0])), int(generator.integers(room[1]))
        return box.top + round(0.1 * box.height) + down, box.left + round(0.05 * box.width) + aside
    inset = generator.integers(2, 12, 2)
    row = (box.top + inset[0], box.bottom - rows - inset[0])[int(generator.integers(2))]
    column = (box.left + inset[1], box.right - columns - inset[1])[int(generator.integers(2))]
    return (int(row), int(column)) if columns + 4 < box.width else (-1, -1)
