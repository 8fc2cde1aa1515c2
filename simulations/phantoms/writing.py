"""Writing on screens: text in Pillow's own fonts, arrows and crosses, and where they were put."""

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from echofed.client.ingest.geometry import Box

Colour = tuple[int, int, int]
Typeface = Literal["bitmap", "vector"]
Place = Literal["banner", "side", "tissue"]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

BITMAP_HEIGHT_PX = 11
_UNDECOMPOSED = str.maketrans(
    {"ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ı": "i", "ø": "o", "Ø": "O", "ß": "ss", "æ": "ae"}
)


@dataclass(frozen=True)
class Written:
    """A text on a screen: what, where, how tall its typeface is and in which part of the screen."""

    text: str
    box: Box
    height_px: int
    colour: Colour
    place: Place


def drawable(text: str, typeface: Typeface) -> str:
    """Return the text in characters the typeface has: Latin 1 (bitmap) or ASCII (vector), other accents left out."""
    last = "\xff" if typeface == "bitmap" else "\x7e"
    letters = (letter if letter <= last else _bare(letter) for letter in text)
    return "".join(letters)


def _bare(letter: str) -> str:
    parts = unicodedata.normalize("NFKD", letter.translate(_UNDECOMPOSED))
    return "".join(part for part in parts if part.isascii())


def line_height(typeface: Typeface, height_px: int) -> int:
    """Return the distance between two lines of text, px."""
    return BITMAP_HEIGHT_PX + 1 if typeface == "bitmap" else round(1.25 * height_px)


def text_width(text: str, typeface: Typeface, height_px: int) -> int:
    """Return how wide the text will be, px."""
    return round(_font(typeface, height_px).getlength(drawable(text, typeface)))


def write(
    screen: Image.Image,
    at: tuple[int, int],
    text: str,
    *,
    typeface: Typeface,
    height_px: int,
    colour: Colour,
    place: Place,
    outlined: bool = False,
) -> Written:
    """Write one line, its top left corner `at` (column, row); what does not fit is cut off at the screen's edge.

    Args:
        screen: RGB, drawn on.
        at: column and row.
        text: what; see `drawable`.
        typeface: "bitmap" is always 11 px tall.
        height_px: of a vector typeface.
        colour: of the letters.
        place: noted in the result.
        outlined: with a black edge around each letter; vector only.
    """
    text, font = drawable(text, typeface), _font(typeface, height_px)
    edge = 1 if outlined and typeface == "vector" else 0
    ImageDraw.Draw(screen).text(at, text, fill=colour, font=font, stroke_width=edge, stroke_fill=(0, 0, 0))
    left, top, right, bottom = font.getbbox(text)
    box = Box(
        max(at[1] + int(top) - edge, 0),
        max(at[0] + int(left) - edge, 0),
        min(at[1] + int(bottom) + edge, screen.height),
        min(at[0] + round(right) + edge, screen.width),
    )
    return Written(text, box, BITMAP_HEIGHT_PX if typeface == "bitmap" else height_px, colour, place)


def draw_arrow(screen: Image.Image, tip: tuple[int, int], tail: tuple[int, int], size_px: int, colour: Colour) -> None:
    """Draw an arrow from `tail` to `tip`, both (column, row); its head is `size_px` wide."""
    draw = ImageDraw.Draw(screen)
    draw.line((tail, tip), fill=colour, width=max(size_px // 5, 1))
    across, down = tail[0] - tip[0], tail[1] - tip[1]
    length = max((across**2 + down**2) ** 0.5, 1.0)
    along_x, along_y = across / length * size_px, down / length * size_px
    draw.polygon(
        (
            tip,
            (tip[0] + along_x - along_y / 2, tip[1] + along_y + along_x / 2),
            (tip[0] + along_x + along_y / 2, tip[1] + along_y - along_x / 2),
        ),
        fill=colour,
    )


def draw_cross(screen: Image.Image, centre: tuple[int, int], arm_px: int, colour: Colour) -> None:
    """Draw a caliper's cross around `centre` (column, row)."""
    draw, (column, row) = ImageDraw.Draw(screen), centre
    draw.line((column - arm_px, row, column + arm_px, row), fill=colour)
    draw.line((column, row - arm_px, column, row + arm_px), fill=colour)


@lru_cache(maxsize=64)
def _font(typeface: Typeface, height_px: int) -> Font:
    return ImageFont.load_default_imagefont() if typeface == "bitmap" else ImageFont.load_default(height_px)
