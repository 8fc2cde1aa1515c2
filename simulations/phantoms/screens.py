"""Screens: what each invented vendor shows around the tissue - banner, parameters, ruler and grey bar."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from echofed.client.ingest.geometry import Box
from echofed.simulations.phantoms.probes import Frame
from echofed.simulations.phantoms.writing import (
    BITMAP_HEIGHT_PX,
    Colour,
    Typeface,
    Written,
    draw_arrow,
    line_height,
    text_width,
    write,
)

Side = Literal["left", "right"]


@dataclass(frozen=True)
class ScreenStyle:
    """How a vendor's screen looks.

    `banner` names the edge with who and when, whose `lines` are pairs of a left and a right text (beside the tissue
    one text a line); `parameters` are listed on `parameters_side` of a screen with a banner on top, below the rest
    of one on the left. Texts are formats over what `draw_screen` is told. `flush` lets the picture touch the
    screen's right edge. `body_mark` draws a breast with the probe's place.
    """

    banner: Literal["top", "left"]
    lines: tuple[tuple[str, str], ...]
    parameters: tuple[str, ...]
    parameters_side: Side
    ruler_side: Side
    bar_side: Side
    typeface: Typeface
    background: Colour
    banner_colour: Colour
    banner_text: Colour
    text: Colour
    accent: Colour
    date_format: str
    upper_case: bool = False
    flush: bool = False
    body_mark: bool = False
    footer: str = ""


BLACK, WHITE, GREY, YELLOW = (0, 0, 0), (255, 255, 255), (176, 176, 176), (255, 222, 64)

SCREENS: dict[str, ScreenStyle] = {
    "aquila": ScreenStyle(
        banner="top",
        lines=(("{name}", "{hospital}"), ("{patient_id}  {birth}", "{date} {time}")),
        parameters=("{probe}", "FR {frame_rate}Hz", "DR {range_db}", "G {gain}%", "D {depth}cm", "MI {mi}"),
        parameters_side="right",
        ruler_side="right",
        bar_side="left",
        typeface="vector",
        background=(8, 8, 12),
        banner_colour=(22, 34, 62),
        banner_text=WHITE,
        text=(198, 208, 224),
        accent=(88, 170, 255),
        date_format="%d/%m/%Y",
        body_mark=True,
    ),
    "borealis": ScreenStyle(
        banner="top",
        lines=(("{hospital}", "{probe}"), ("{name} {sex}", "{time}"), ("ID {patient_id}", "{date}")),
        parameters=("B", "F {frequency}MHz", "G {gain}", "D {depth}cm", "DR {range_db}", "FR {frame_rate}", "TIs {ti}"),
        parameters_side="left",
        ruler_side="left",
        bar_side="right",
        typeface="bitmap",
        background=BLACK,
        banner_colour=BLACK,
        banner_text=GREY,
        text=GREY,
        accent=YELLOW,
        date_format="%Y-%m-%d",
        upper_case=True,
    ),
    "corvus": ScreenStyle(
        banner="left",
        lines=(
            ("{name}", ""),
            ("{patient_id}", ""),
            ("{birth}", ""),
            ("{date}", ""),
            ("{time}", ""),
            ("{hospital}", ""),
        ),
        parameters=("{probe}", "{frequency} MHz", "{depth} cm", "{gain} dB", "MI {mi}"),
        parameters_side="left",
        ruler_side="left",
        bar_side="left",
        typeface="vector",
        background=(0, 0, 0),
        banner_colour=(30, 30, 34),
        banner_text=(240, 236, 214),
        text=(200, 200, 190),
        accent=(255, 160, 48),
        date_format="%d.%m.%Y",
        flush=True,
    ),
    "dorado": ScreenStyle(
        banner="top",
        lines=(("{name}", "{patient_id}"), ("{hospital}", "{date}")),
        parameters=("{frequency}M", "R{depth}", "G{gain}", "C{range_db}"),
        parameters_side="left",
        ruler_side="right",
        bar_side="left",
        typeface="bitmap",
        background=BLACK,
        banner_colour=(150, 150, 150),
        banner_text=BLACK,
        text=(205, 205, 205),
        accent=WHITE,
        date_format="%d-%b-%Y",
        upper_case=True,
        body_mark=True,
        footer="{time}   {accession}",
    ),
    "eridanus": ScreenStyle(
        banner="left",
        lines=(
            ("{hospital}", ""),
            ("{date}", ""),
            ("{time}", ""),
            ("{name}", ""),
            ("{sex} {birth}", ""),
            ("{patient_id}", ""),
        ),
        parameters=("{probe}", "Gn {gain}", "DR {range_db}", "MI {mi}", "TIb {ti}"),
        parameters_side="left",
        ruler_side="right",
        bar_side="right",
        typeface="bitmap",
        background=(0, 0, 0),
        banner_colour=(0, 0, 0),
        banner_text=(220, 220, 220),
        text=(190, 190, 190),
        accent=(225, 225, 225),
        date_format="%m/%d/%Y",
        footer="Breast   {frame_rate}fps  {depth}cm",
    ),
    "fornax": ScreenStyle(
        banner="top",
        lines=(
            ("{name}  {birth}", "MI {mi}  TIs {ti}"),
            ("{patient_id}", "{date} {time}"),
            ("{hospital}", "{accession}"),
        ),
        parameters=("{probe}", "{frequency}MHz", "{depth}cm", "{range_db}dB", "{gain}", "{frame_rate}Hz"),
        parameters_side="right",
        ruler_side="right",
        bar_side="left",
        typeface="vector",
        background=(18, 18, 18),
        banner_colour=(52, 52, 56),
        banner_text=(250, 250, 250),
        text=(150, 220, 150),
        accent=(120, 255, 140),
        date_format="%b %d %Y",
        body_mark=True,
    ),
}


@dataclass(frozen=True)
class Screen:
    """A screen without its tissue.

    Args:
        pixels: uint8 [height, width, 3]; black where the tissue goes.
        tissue: where the tissue goes.
        bar: where the grey bar is.
        written: every text on it.
    """

    pixels: NDArray[np.uint8]
    tissue: Box
    bar: Box
    written: tuple[Written, ...]


@dataclass(frozen=True)
class _Plan:
    """Where things go, px."""

    width: int
    height: int
    text_px: int
    line_px: int
    side_left: int
    area: Box
    tissue: Box


def draw_screen(style: ScreenStyle, frame: Frame, longest_side_px: int, values: Mapping[str, str]) -> Screen:
    """Return the screen around a picture; its size depends on the style and `longest_side_px` only.

    Args:
        style: the vendor's.
        frame: geometry of the picture.
        longest_side_px: of the site's pictures.
        values: what the style's texts are filled with.
    """
    plan = _plan(style, frame, longest_side_px)
    canvas = Image.new("RGB", (plan.width, plan.height), style.background)
    draw = ImageDraw.Draw(canvas)
    edge = (plan.width, plan.area.top - 8) if style.banner == "top" else (plan.area.left - 34, plan.height)
    draw.rectangle((0, 0, edge[0] - 1, edge[1] - 1), fill=style.banner_colour)
    draw.rectangle((plan.tissue.left, plan.tissue.top, plan.tissue.right - 1, plan.tissue.bottom - 1), fill=BLACK)
    written = _banner(canvas, style, plan, values) + _parameters(canvas, style, plan, values)
    bar = _grey_bar(style, plan)
    pixels = np.array(canvas)
    _draw_ruler(pixels, style, plan, frame)
    pixels[bar.top : bar.bottom, bar.left : bar.right] = np.linspace(255, 0, bar.height).astype(np.uint8)[:, None, None]
    return Screen(pixels, plan.tissue, bar, tuple(written))


def text_height(longest_side_px: int, typeface: Typeface) -> int:
    """Return how tall a screen's texts are: as on real screens about a fortieth of the picture, never unreadable."""
    return BITMAP_HEIGHT_PX if typeface == "bitmap" else max(10, round(longest_side_px / 36))


def _plan(style: ScreenStyle, frame: Frame, side: int) -> _Plan:
    text_px = text_height(side, style.typeface)
    line_px = line_height(style.typeface, text_px)
    column = round(6.4 * text_px) if style.banner == "top" else round(12 * text_px)
    gutter, footer = 34, (line_px + 4 if style.footer else 8)
    if style.banner == "top":
        left_column = column if style.parameters_side == "left" else 6
        right_column = 6 if style.parameters_side == "left" else column
        top = len(style.lines) * line_px + 14
    else:
        left_column, right_column, top = column, 2, 12
    right_gutter = 0 if style.flush else gutter + right_column
    left = left_column + gutter
    width, height = left + side + right_gutter, top + side + footer
    rows, columns = frame.shape_px
    shift = side - columns if style.flush else (side - columns) // 2
    tissue = Box(top, left + shift, top + rows, left + shift + columns)
    side_left = 3 if left_column > 6 else left + side + gutter
    return _Plan(width, height, text_px, line_px, side_left, Box(top, left, top + side, left + side), tissue)


def _banner(canvas: Image.Image, style: ScreenStyle, plan: _Plan, values: Mapping[str, str]) -> list[Written]:
    written = []
    for number, pair in enumerate(style.lines):
        for text, right in zip(pair, (False, True), strict=True):
            if not text:
                continue
            text = _fill(text, style, values)
            width = text_width(text, style.typeface, plan.text_px)
            at = (max(plan.width - width - 4, plan.width // 2) if right else 4, 3 + number * plan.line_px)
            written.append(
                write(
                    canvas,
                    at,
                    text,
                    typeface=style.typeface,
                    height_px=plan.text_px,
                    colour=style.banner_text,
                    place="banner",
                )
            )
    return written


def _parameters(canvas: Image.Image, style: ScreenStyle, plan: _Plan, values: Mapping[str, str]) -> list[Written]:
    first = plan.area.top if style.banner == "top" else 3 + (len(style.lines) + 1) * plan.line_px
    lines = [(plan.side_left, first + number * plan.line_px, text) for number, text in enumerate(style.parameters)]
    if style.footer:
        lines.append((plan.area.left, plan.area.bottom + 2, style.footer))
    if style.body_mark:
        _draw_body_mark(canvas, style, (plan.side_left + 2, plan.area.bottom - 3 * plan.text_px), 3 * plan.text_px)
    arrow = (plan.tissue.left + 4, plan.tissue.top - 3)
    draw_arrow(canvas, (arrow[0], arrow[1] + 1), (arrow[0], arrow[1] - 4), 4, style.accent)
    return [
        write(
            canvas,
            (column, row),
            _fill(text, style, values),
            typeface=style.typeface,
            height_px=plan.text_px,
            colour=style.text,
            place="side",
        )
        for column, row, text in lines
        if row + plan.line_px <= plan.height
    ]


def _fill(text: str, style: ScreenStyle, values: Mapping[str, str]) -> str:
    filled = text.format_map(values)
    return filled.upper() if style.upper_case else filled


def _grey_bar(style: ScreenStyle, plan: _Plan) -> Box:
    left = plan.area.left - 30 if style.bar_side == "left" else plan.area.right + 20
    top = plan.area.top + plan.area.height // 16
    return Box(top, left, top + plan.area.height // 3, left + 7)


def _draw_ruler(pixels: NDArray[np.uint8], style: ScreenStyle, plan: _Plan, frame: Frame) -> None:
    """Draw a tick each 5 mm, longer each 10, and the focus beside them, clear of the picture."""
    ticks = int(frame.shape_px[0] * frame.pixel_spacing_mm / 5)
    edge = plan.tissue.left - 5 if style.ruler_side == "left" else plan.tissue.right + 5
    direction = -1 if style.ruler_side == "left" else 1
    for tick in range(ticks + 1):
        row = plan.tissue.top + min(round(tick * 5 / frame.pixel_spacing_mm), frame.shape_px[0] - 1)
        end = edge + direction * (6 if tick % 2 == 0 else 3)
        pixels[row, min(edge, end) : max(edge, end)] = style.text
    focus = plan.tissue.top + round(0.4 * frame.shape_px[0])
    for offset in range(-3, 4):
        end = edge + direction * (4 - abs(offset))
        pixels[focus + offset, min(edge, end) : max(edge, end)] = style.accent


def _draw_body_mark(canvas: Image.Image, style: ScreenStyle, at: tuple[int, int], size_px: int) -> None:
    draw, (left, top) = ImageDraw.Draw(canvas), at
    draw.ellipse((left, top, left + size_px, top + size_px), outline=style.text)
    middle = (left + size_px // 2, top + size_px // 2)
    draw.ellipse((middle[0] - 2, middle[1] - 2, middle[0] + 2, middle[1] + 2), outline=style.text)
    draw.line((middle[0] + 4, middle[1] - 4, left + size_px - 4, top + 5), fill=style.accent, width=2)
