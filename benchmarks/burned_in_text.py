"""What becomes of writing burned into the pixels: masked, sent to a person, or missed; and what it costs in tissue and time.

Invented names, dates and numbers are planted on 30 vendors' screens: phantoms, and real breast images and a real cardiac
clip where they are at hand (ECHOFED_DATA or ../shared/data). A still bears one string, so that no string is found by
another's merit.
A string counts as handled if it was cropped away, is masked, or its image goes to a person.

    python -m benchmarks.burned_in_text [--quick] [--per-style 24] [--seed 0]
"""

import argparse
import csv
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from echofed.client.ingest.cleaning import Cleaned, clean
from echofed.client.ingest.geometry import Box, Pixels
from echofed.client.ingest.recognition import find_text
from echofed.client.ingest.strokes import find_strokes
from tests.client.ingest.planted_text import (
    COLOURS,
    FONTS,
    PLAIN,
    SIZES_PX,
    FontKind,
    Look,
    Motion,
    Place,
    Planted,
    Style,
    fill,
    invented_text,
    moved,
    phantom_tissue,
    plant,
    recompressed,
    screen,
    styles,
    text_mask,
)

Places = NDArray[np.intp]
Text = tuple[str, FontKind, int, str, Place, Motion]
MASKED_SHARE = 0.95
CLIP_FRAMES = 10
MOTIONS, QUALITIES = (0.7, 2.0, 5.0), (80, 88, 95)
"""Of clips: how far tissue moves, in pixels, and how well its JPEG is."""
LOOKS = ("vertical", "diagonal", "soft", "JPEG", "oversized")
"""Turned by 90 or 270 degrees; by another multiple of 15; blurred by 0.5 to 2 px; at quality 40 to 60; of 40 to 110 px."""
SIZE_CLASSES = ((9, 12), (13, 18), (19, 30))


@dataclass(frozen=True)
class Outcome:
    """What became of one string; `left` is the verdict that must not be."""

    planted: Planted
    source: str
    still: bool
    verdict: str  # "cropped", "masked", "review" or "left"
    look: str = "as set"


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Return the 95% score interval of a proportion (Wilson, 1927)."""
    if not total:
        return 0.0, 1.0
    z, share = 1.959964, hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def data_folder() -> Path | None:
    """Return the folder of real images, None where there is none."""
    folder = Path(os.environ.get("ECHOFED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    return folder if (folder / "breast_federation.csv").is_file() else None


def breast_images(folder: Path) -> list[tuple[Pixels, tuple[int, int]]]:
    """Return the images without any writing, as stored, and the size (height, width) their scanner gave them."""
    with (folder / "breast_lesions_usg" / "index.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    return [
        (
            np.asarray(Image.open(folder / "breast_lesions_usg" / row["file"]).convert("L")),
            (int(row["orig_height"]), int(row["orig_width"])),
        )
        for row in rows
    ]


def cardiac_clips(folder: Path) -> list[Pixels]:
    """Return a real clip's tissue region in pieces of `CLIP_FRAMES` frames, RGB."""
    import pydicom
    from pydicom.pixels import pixel_array

    frames = pixel_array(pydicom.dcmread(folder / "dicom_us" / "color3d_jpeg_baseline.dcm"))[:, 60:414, 130:540]
    return [frames[start : start + CLIP_FRAMES] for start in range(0, len(frames) - CLIP_FRAMES + 1, CLIP_FRAMES)]


def a_text(number: int, motion: Motion, style: Style, generator: np.random.Generator) -> Text:
    """Return the number-th string: fonts, colours and places take turns, sizes are drawn."""
    place: Place = ("tissue", "corner", "tissue")[number // 12 % 3] if number % 7 != 6 else "banner"
    if motion == "moving":
        place = "tissue"
    largest = 16 if style.frame_px[0] < 300 else 30
    size_px = int(generator.choice([size for size in SIZES_PX if size <= largest]))
    return invented_text(generator), FONTS[number % 4], size_px, list(COLOURS)[number // 4 % 3], place, motion


def looked_at(frames: Pixels, style: Style) -> tuple[Pixels, Box]:
    """Return what the ingest looks at: the tissue region, or the whole frame where the file tells none."""
    box = style.box if style.cropped else Box(0, 0, *style.frame_px)
    return frames[:, box.top : box.bottom, box.left : box.right], box


def is_cropped(planted: Planted, box: Box) -> bool:
    """Return whether nothing of a string lies in the box."""
    ink = planted.box
    return ink.bottom <= box.top or ink.top >= box.bottom or ink.right <= box.left or ink.left >= box.right


def verdict(planted: Planted, cleaned: Cleaned, box: Box) -> str:
    """Return what became of a string; it counts as masked if 95% of its ink is, in every frame."""
    if is_cropped(planted, box):
        return "cropped"
    ink = text_mask(planted.text, planted.font, planted.size_px, planted.look) > 0.25
    rows, columns = np.nonzero(ink)
    rows, columns = rows + planted.box.top + 1 - box.top, columns + planted.box.left + 1 - box.left
    if all(_covered(cleaned, rows + down, columns + aside) for down, aside in planted.path):
        return "masked"
    return "left" if cleaned.why is None else "review"


def _covered(cleaned: Cleaned, rows: Places, columns: Places) -> bool:
    height, width = cleaned.masked.shape
    seen = (rows >= 0) & (columns >= 0) & (rows < height) & (columns < width)
    return not seen.any() or bool(cleaned.masked[rows[seen], columns[seen]].mean() >= MASKED_SHARE)


def planted_stills(seed: int, per_style: int, real: Sequence[tuple[Pixels, tuple[int, int]]]) -> Iterator[Outcome]:
    """Plant one string a still and clean it."""
    for index, style in enumerate(styles()):
        generator = np.random.default_rng([seed, 1, index])
        phantoms = [phantom_tissue(style, generator) for _ in range(3)]
        for number in range(per_style):
            source = "breast" if real and number % 2 else "phantom"
            tissue = phantoms[number % 3]
            if source == "breast":
                tissue = fill(real[int(generator.integers(len(real)))][0], style.box)
            frame = screen(style, tissue)[None]
            for planted in plant(frame, style.box, [a_text(number, "fixed", style, generator)], generator):
                picture, box = looked_at(frame, style)
                if is_cropped(planted, box):
                    yield Outcome(planted, source, True, "cropped")
                else:
                    yield Outcome(planted, source, True, verdict(planted, clean(picture, is_cine=False), box))


def a_look(kind: str, text: Text, style: Style, generator: np.random.Generator) -> tuple[Text, Look]:
    """Return a string of such a kind; what is turned or blurred is at least 12 px high, as else nobody could read it."""
    written, font, size_px, colour, _, motion = text
    size_px = max(size_px, 12)
    if kind == "oversized":
        size_px, written = int(generator.integers(40, min(style.frame_px[0] // 5, 110) + 1)), written.split()[0]
    look = PLAIN
    if kind == "vertical":
        look = Look(int(generator.choice((90, 270))))
    elif kind == "diagonal":
        look = Look(int(generator.choice([angle for angle in range(15, 360, 15) if angle % 90])))
    elif kind == "soft":
        look = Look(0, float(np.clip(size_px / 14 * generator.uniform(0.5, 1.5), 0.5, 2)))
    return (written, font, size_px, colour, "tissue", motion), look


def looking_stills(seed: int, per_look: int, real: Sequence[tuple[Pixels, tuple[int, int]]]) -> Iterator[Outcome]:
    """Plant one turned, soft, recompressed or oversized string a still and clean it."""
    for index, style in enumerate(styles()[:per_look]):
        generator = np.random.default_rng([seed, 7, index])
        for number, kind in enumerate(LOOKS):
            source = "breast" if real and (number + index) % 2 else "phantom"
            tissue = phantom_tissue(style, generator)
            if source == "breast":
                tissue = fill(real[int(generator.integers(len(real)))][0], style.box)
            frame = screen(style, tissue)[None]
            text, look = a_look(kind, a_text(index + number, "fixed", style, generator), style, generator)
            for planted in plant(frame, style.box, [text], generator, look):
                if kind == "JPEG":
                    frame = recompressed(frame[0], int(generator.integers(40, 61)))[None]
                picture, box = looked_at(frame, style)
                yield Outcome(planted, source, True, verdict(planted, clean(picture, is_cine=False), box), kind)


def looking_clips(seed: int, per_look: int) -> Iterator[Outcome]:
    """Plant one such string a clip: fixed, moving, or fixed and in one frame only, in turns."""
    for index, style in enumerate(small_styles()[:per_look]):
        generator = np.random.default_rng([seed, 8, index])
        screens = phantom_clip(seed, index, style, generator)
        for number, kind in enumerate(LOOKS):
            frames, turn = screens.copy(), (index + number) % 3
            shown = frames[4:5] if turn == 2 else frames
            motion: Motion = "moving" if turn == 1 else "fixed"
            text, look = a_look(kind, a_text(index + number, motion, style, generator), style, generator)
            for planted in plant(shown, style.box, [text], generator, look):
                quality = 50 if kind == "JPEG" else QUALITIES[index % 3]
                clip = np.stack([recompressed(frame, quality) for frame in frames])
                picture, box = looked_at(clip, style)
                yield Outcome(planted, "phantom", False, verdict(planted, clean(picture, is_cine=True), box), kind)


def phantom_clip(seed: int, index: int, style: Style, generator: np.random.Generator) -> Pixels:
    """Return a screen without writing whose tissue moves, more on some screens than on others."""
    clip = moved(phantom_tissue(style, generator), CLIP_FRAMES, MOTIONS[(seed + index) % 3], 0.15, generator)
    return np.stack([screen(style, frame) for frame in clip])


def small_styles() -> list[Style]:
    """Return the screens that clips are made of."""
    return [style for style in styles() if style.frame_px[0] <= 480]


def planted_clips(seed: int, per_clip: int, moving: int) -> Iterator[tuple[Outcome, float, float]]:
    """Plant strings on phantoms' clips; yields each with the clip's masked share and the share the strings cover."""
    for index, style in enumerate(small_styles()):
        generator = np.random.default_rng([seed, 2, index])
        screens = phantom_clip(seed, index, style, generator)
        fixed = [a_text(index + 5 * number, "fixed", style, generator) for number in range(per_clip)]
        alone = [[a_text(index + 7 * number, "moving", style, generator)] for number in range(moving)]
        for texts in (fixed, *alone):
            frames = screens.copy()
            planted = plant(frames, style.box, texts, generator)
            frames = np.stack([recompressed(frame, QUALITIES[index % 3]) for frame in frames])
            yield from _clip_outcomes(frames, planted, style, "phantom")


def real_clips(seed: int, clips: Sequence[Pixels], per_clip: int) -> Iterator[tuple[Outcome, float, float]]:
    """Plant strings on pieces of a real clip, fixed in most and moving in every fourth."""
    for index, clip in enumerate(clips):
        generator = np.random.default_rng([seed, 3, index])
        rows, columns = clip.shape[1:3]
        style = Style("cardiac", (rows, columns), (0, 0, 1, 1), "convex", "", 0)
        motion: Motion = "moving" if index % 4 == 3 else "fixed"
        texts = [
            a_text(index + 5 * number, motion, style, generator)
            for number in range(per_clip if motion == "fixed" else 1)
        ]
        frames = clip.copy()
        planted = plant(frames, style.box, [text for text in texts if text[4] != "banner"], generator)
        yield from _clip_outcomes(frames, planted, style, "cardiac")


def _clip_outcomes(
    frames: Pixels, planted: Sequence[Planted], style: Style, source: str
) -> Iterator[tuple[Outcome, float, float]]:
    picture, box = looked_at(frames, style)
    cleaned = clean(picture, is_cine=True)
    area = sum(text.box.height * text.box.width for text in planted) / (box.height * box.width)
    for text in planted:
        yield Outcome(text, source, False, verdict(text, cleaned, box)), cleaned.masked_share, area


def table(outcomes: Sequence[Outcome]) -> None:
    """Print recall per class, stills and clips apart, and every string that was left."""
    print(
        "\n| class | strings | cropped | masked | to a person | left | handled, 95% interval |\n|---|---|---|---|---|---|---|"
    )
    for still in (True, False):
        part = [outcome for outcome in outcomes if outcome.still == still]
        kind = "stills" if still else "clips"
        _row(f"**{kind}**", part)
        for source in sorted({outcome.source for outcome in part}):
            _row(f"{kind}, {source}", [outcome for outcome in part if outcome.source == source])
        for font in FONTS:
            _row(f"{kind}, {font}", [outcome for outcome in part if outcome.planted.font == font])
        for least, most in SIZE_CLASSES:
            _row(f"{kind}, {least}-{most} px", [o for o in part if least <= o.planted.size_px <= most])
        for colour in COLOURS:
            _row(f"{kind}, {colour}", [outcome for outcome in part if outcome.planted.colour == colour])
        for place in ("banner", "corner", "tissue"):
            _row(f"{kind}, {place}", [outcome for outcome in part if outcome.planted.place == place])
        for look in LOOKS:
            _row(f"{kind}, {look}", [outcome for outcome in part if outcome.look == look])
        for motion in ("fixed", "moving") if not still else ():
            _row(f"{kind}, {motion}", [outcome for outcome in part if outcome.planted.motion == motion])
    for outcome in outcomes:
        if outcome.verdict == "left":
            print("left:", outcome, flush=True)


def _row(name: str, outcomes: Sequence[Outcome]) -> None:
    if not outcomes:
        return
    counts = {
        verdict: sum(o.verdict == verdict for o in outcomes) for verdict in ("cropped", "masked", "review", "left")
    }
    handled = len(outcomes) - counts["left"]
    low, high = wilson(handled, len(outcomes))
    cells = " | ".join(str(count) for count in counts.values())
    print(f"| {name} | {len(outcomes)} | {cells} | {handled / len(outcomes):.1%} ({low:.1%}-{high:.1%}) |", flush=True)


def clean_stills(images: Sequence[Pixels], name: str) -> None:
    """Print how many images without writing go to a person all the same, and how fast both detectors are."""
    strokes_s = text_s = 0.0
    drawn = read = either = 0
    for image in images:
        start = time.process_time()
        strokes = bool(find_strokes(image))
        middle = time.process_time()
        text = bool(find_text(image).boxes)
        strokes_s, text_s = strokes_s + middle - start, text_s + time.process_time() - middle
        drawn, read, either = drawn + strokes, read + text, either + (strokes or text)
    count = len(images)
    low, high = wilson(either, count)
    print(
        f"| {name} | {count} | {drawn} | {read} | {either / count:.0%} ({low:.0%}-{high:.0%}) "
        f"| {count / strokes_s:.1f} | {count / (strokes_s + text_s):.1f} |",
        flush=True,
    )


def clean_clips(clips: Iterable[Pixels], name: str) -> None:
    """Print how many clips without writing go to a person all the same, and how much of their tissue is masked."""
    cleaned = [clean(clip, is_cine=True) for clip in clips]
    sent = sum(one.why is not None for one in cleaned)
    low, high = wilson(sent, len(cleaned))
    shares = [one.masked_share for one in cleaned]
    print(
        f"| {name} | {len(cleaned)} | {sent} ({low:.0%}-{high:.0%}) | {np.median(shares):.2%} | {max(shares):.1%} |",
        flush=True,
    )


def needless(seed: int, real: Sequence[tuple[Pixels, tuple[int, int]]], clips: Sequence[Pixels], count: int) -> None:
    """Print what becomes of pictures and clips without writing."""
    print("\n| stills without writing | images | strokes | text | to a person | a second, strokes | a second, both |")
    print("|---|---|---|---|---|---|---|")
    phantoms = [phantom_tissue(style, np.random.default_rng([seed, 4, n])) for n, style in enumerate(styles()[:count])]
    clean_stills(phantoms, "phantoms")
    if real:
        chosen = np.random.default_rng([seed, 5]).choice(len(real), count, replace=False).tolist()
        clean_stills(
            [fill(real[index][0], Box(0, 0, *real[index][1])) for index in chosen], "breast, at the scanner's size"
        )
        clean_stills([real[index][0] for index in chosen], "breast, as stored (224 px)")
    print("\n| clips without writing | clips | to a person | tissue masked, median | most |")
    print("|---|---|---|---|---|")
    moving = (
        looked_at(phantom_clip(seed, index, style, np.random.default_rng([seed, 6, index])), style)[0]
        for index, style in enumerate(small_styles()[:count])
    )
    clean_clips(moving, "phantoms")
    if clips:
        clean_clips(clips, "cardiac")


def main() -> None:
    """Run it all and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twelfth of the strings")
    parser.add_argument("--per-style", type=int, default=24, help="stills a screen")
    parser.add_argument("--seed", type=int, default=0, help="of strings, places, tissue and the choice of images")
    options = parser.parse_args()
    folder, few, seed = data_folder(), options.quick, options.seed
    real = breast_images(folder) if folder else []
    cardiac = cardiac_clips(folder)[: 2 if few else None] if folder else []
    start = time.perf_counter()
    stills = list(planted_stills(seed, 2 if few else options.per_style, real))
    stills += looking_stills(seed, 6 if few else len(styles()), real)
    table(stills)
    clips = list(planted_clips(seed, 1 if few else 10, 0 if few else 2))
    clips += list(real_clips(seed, cardiac, 8))
    looking = list(looking_clips(seed, 2 if few else len(small_styles())))
    table([outcome for outcome, _, _ in clips] + looking)
    print(
        f"\n{len(stills) + len(clips) + len(looking)} strings on {len(styles())} screens, seed {seed}, "
        f"{time.perf_counter() - start:.0f} s.",
        flush=True,
    )
    shares = {(masked, covered) for outcome, masked, covered in clips if outcome.planted.motion == "fixed"}
    area = np.median([masked for masked, _ in shares])
    lost = np.median([masked - covered for masked, covered in shares])
    print(f"\nClips: {area:.1%} of the area masked, {lost:.1%} beyond the strings (medians).")
    needless(seed, real, cardiac, 8 if few else 20)


if __name__ == "__main__":
    main()
