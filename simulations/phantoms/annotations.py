"""Annotations: what sonographers leave on the tissue - calipers and distances, words and arrows, at worst a name."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from echofed.client.ingest.geometry import Box
from echofed.simulations.phantoms.vendors import Pixels
from echofed.simulations.phantoms.writing import (
    Colour,
    Typeface,
    Written,
    draw_arrow,
    draw_cross,
    line_height,
    text_width,
    write,
)

WORDS = (
    "LT BREAST",
    "RT BREAST 2:00",
    "MASS",
    "CYST?",
    "N+3",
    "RAD",
    "ANTIRAD",
    "AXILLA LT",
    "LESION 1",
    "NIPPLE",
    "BIOPSY SITE",
)
COLOURS: tuple[Colour, ...] = ((255, 255, 255), (255, 222, 64), (150, 150, 150))
Point = tuple[int, int]


@dataclass(frozen=True)
class Annotation:
    """What is drawn on the tissue; points are (column, row) on the screen.

    `lines` are texts from `at` downwards. `crosses` are calipers, `arrow` is its tip and tail.
    """

    lines: tuple[str, ...]
    at: Point
    typeface: Typeface
    height_px: int
    colour: Colour
    outlined: bool = False
    crosses: tuple[Point, ...] = ()
    arrow: tuple[Point, Point] | None = None


def draw_annotation(screen: Image.Image, annotation: Annotation, moved: Point = (0, 0)) -> list[Written]:
    """Draw the annotation, `moved` by columns and rows, and return its texts."""
    across, down = moved
    for column, row in annotation.crosses:
        draw_cross(screen, (column + across, row + down), max(annotation.height_px // 4, 2), annotation.colour)
    if annotation.arrow:
        tip, tail = ((column + across, row + down) for column, row in annotation.arrow)
        draw_arrow(screen, tip, tail, max(annotation.height_px // 2, 5), annotation.colour)
    step = line_height(annotation.typeface, annotation.height_px)
    return [
        write(
            screen,
            (annotation.at[0] + across, annotation.at[1] + down + number * step),
            line,
            typeface=annotation.typeface,
            height_px=annotation.height_px,
            colour=annotation.colour,
            place="tissue",
            outlined=annotation.outlined,
        )
        for number, line in enumerate(annotation.lines)
    ]


def measure_lesion(
    mask: Pixels,
    tissue: Box,
    pixel_spacing_mm: float,
    typeface: Typeface,
    height_px: int,
    generator: np.random.Generator,
) -> Annotation:
    """Return calipers at the ends of the lesion's width and height with both distances, in a corner of the tissue."""
    rows, columns = np.nonzero(mask)
    ends = [int(index) for line in (columns, rows) for index in (line.argmin(), line.argmax())]
    crosses = tuple((tissue.left + int(columns[end]), tissue.top + int(rows[end])) for end in ends)
    distances = [float(np.hypot(a[0] - b[0], a[1] - b[1])) * pixel_spacing_mm for a, b in (crosses[:2], crosses[2:])]
    lines = tuple(f"D{number} {distance:.1f} mm" for number, distance in enumerate(distances, start=1))
    at = _place(lines, tissue, typeface, height_px, generator)
    return Annotation(lines, at, typeface, height_px, COLOURS[int(generator.integers(2))], crosses=crosses)


def write_words(
    lines: Sequence[str], tissue: Box, typeface: Typeface, height_px: int, generator: np.random.Generator, arrow: bool
) -> Annotation:
    """Return words somewhere on the tissue, with an arrow away from them if asked for."""
    at = _place(lines, tissue, typeface, height_px, generator)
    tip = (int(generator.integers(tissue.left + 8, tissue.right - 8)), (tissue.top + tissue.bottom) // 2)
    tail = (tip[0] + int(generator.integers(-24, 25)), tip[1] + int(generator.integers(14, 28)))
    return Annotation(
        tuple(lines),
        at,
        typeface,
        height_px,
        COLOURS[int(generator.integers(len(COLOURS)))],
        outlined=bool(generator.uniform() < 0.3),
        arrow=(tip, tail) if arrow else None,
    )


def _place(
    lines: Sequence[str], tissue: Box, typeface: Typeface, height_px: int, generator: np.random.Generator
) -> Point:
    """Return where lines fit in the tissue; what is too long starts at its left edge."""
    width = max(text_width(line, typeface, height_px) for line in lines)
    height = len(lines) * line_height(typeface, height_px)
    column = generator.integers(tissue.left + 2, max(tissue.right - width - 2, tissue.left + 3))
    row = generator.integers(tissue.top + 2, max(tissue.bottom - height - 2, tissue.top + 3))
    return int(column), int(row)
