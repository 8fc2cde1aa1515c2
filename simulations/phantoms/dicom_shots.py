"""What a scanner saves of a picture: the clean still or clip, and beside it copies with everything that goes wrong."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
from PIL import Image

from echofed.client.ingest.geometry import Box
from echofed.client.ingest.outcomes import Verdict
from echofed.simulations.phantoms.annotations import (
    WORDS,
    Annotation,
    Point,
    draw_annotation,
    measure_lesion,
    write_words,
)
from echofed.simulations.phantoms.cines import move_tissue
from echofed.simulations.phantoms.dicom_headers import Exam, RegionTag
from echofed.simulations.phantoms.dicom_truth import Faults
from echofed.simulations.phantoms.patients import Picture, draw_air
from echofed.simulations.phantoms.probes import PROBES, Frame
from echofed.simulations.phantoms.screens import SCREENS, Screen, draw_screen, text_height
from echofed.simulations.phantoms.vendors import Pixels
from echofed.simulations.phantoms.writing import Typeface, Written

FRAMES_PER_SECOND = (12.0, 30.0)
USUAL_REGIONS: dict[str, RegionTag] = {"corvus": "one beyond", "dorado": "missing"}
ACCEPTED, REVIEW, QUARANTINED = Verdict.ACCEPTED, Verdict.REVIEW, Verdict.QUARANTINED
REGION_VERDICTS: dict[RegionTag, tuple[Verdict, ...]] = {
    "right": (ACCEPTED,),
    "one beyond": (ACCEPTED,),
    "missing": (ACCEPTED, REVIEW),
    "beyond": (QUARANTINED,),
    "over the banner": (REVIEW,),
}


@dataclass(frozen=True)
class Clips:
    """How many of the pictures are clips (share in 0 to 1) and how many frames those have, least and most."""

    share: float = 0.25
    frames: tuple[int, int] = (2, 30)


@dataclass(frozen=True)
class Shot:
    """What one instance shows.

    Args:
        frames: whole screens, RGB, uint8 [frames, height, width, 3].
        frames_per_second: of a clip.
        frame: geometry of the tissue.
        tissue, bar: where the tissue and the grey bar lie.
        written: every text in the first frame.
        kind, fault, verdicts: see `Truth`.
        regions: what the header says of them.
        phantom: number of the picture, 0 if it is none.
    """

    frames: Pixels
    frames_per_second: float
    frame: Frame
    tissue: Box
    bar: Box
    written: tuple[Written, ...]
    kind: str
    fault: str
    verdicts: tuple[Verdict, ...]
    regions: RegionTag
    phantom: int


def save_picture(
    exam: Exam, picture: Picture, faults: Faults, clips: Clips, generator: np.random.Generator
) -> Iterator[Shot]:
    """Yield the clean shot of the picture, then its copies with writing on the tissue and its duplicate.

    Args:
        exam: whose banner it gets.
        picture: the tissue.
        faults: gives the shares of the copies.
        clips: whether and how the tissue moves.
        generator: source of both.
    """
    moves, chances = generator.uniform() < clips.share, generator.uniform(size=6)
    count = int(generator.integers(clips.frames[0], clips.frames[1] + 1)) if moves else 1
    speed = float(generator.uniform(*FRAMES_PER_SECOND))
    tissue = move_tissue(picture.image, count, speed, generator)
    screen = _screen_of(exam, picture.frame, picture.number, speed, generator)
    regions = _regions(exam, faults, chances[0])
    kind, fault = "cine" if count > 1 else "still", "" if regions == _usual(exam) else f"regions {regions}"
    verdicts = (ACCEPTED, REVIEW) if moves and regions == "over the banner" else REGION_VERDICTS[regions]
    clean = Shot(
        _compose(screen, tissue, None),
        speed,
        picture.frame,
        screen.tissue,
        screen.bar,
        screen.written,
        kind,
        fault,
        verdicts,
        regions,
        picture.number,
    )
    yield clean
    for annotation, fault in _annotations(exam, picture, screen.tissue, faults, chances[1:4], generator):
        yield _annotated(exam, clean, screen, tissue, annotation, fault)
    if moves and chances[4] < faults.moving_words:
        typeface, height_px = _typeface(exam, picture, generator)
        words = write_words([_word(generator)], screen.tissue, typeface, height_px, generator, arrow=False)
        yield _annotated(exam, clean, screen, tissue, words, "moving words", step=(2, 1))
    if chances[5] < faults.duplicates:
        yield replace(clean, fault=f"{fault}, duplicate" if (fault := clean.fault) else "duplicate")


def save_air(exam: Exam, like: Picture, number: int, generator: np.random.Generator) -> Shot:
    """Return a still of the probe in the air, on the screen that the picture would have."""
    speed = FRAMES_PER_SECOND[0]
    screen = _screen_of(exam, like.frame, number, speed, generator)
    frames = _compose(screen, draw_air(like.frame, generator)[None], None)
    verdicts = (QUARANTINED, REVIEW)
    return Shot(
        frames,
        speed,
        like.frame,
        screen.tissue,
        screen.bar,
        screen.written,
        "no tissue",
        "no tissue",
        verdicts,
        _usual(exam),
        0,
    )


def _usual(exam: Exam) -> RegionTag:
    return USUAL_REGIONS.get(exam.vendor.name, "right")


def _regions(exam: Exam, faults: Faults, chance: float) -> RegionTag:
    wrong: tuple[tuple[RegionTag, float], ...] = (
        ("missing", faults.regions_missing),
        ("beyond", faults.regions_beyond),
        ("over the banner", faults.regions_over_banner),
    )
    for tag, share in wrong:
        if chance < share:
            return tag
        chance -= share
    return _usual(exam)


def _screen_of(exam: Exam, frame: Frame, number: int, speed: float, generator: np.random.Generator) -> Screen:
    person, style, vendor = exam.person, SCREENS[exam.vendor.name], exam.vendor
    moment, probe = exam.moment + timedelta(seconds=41 * number), PROBES[exam.probe]
    values = {
        "name": f"{person.family_shown}, {person.given_shown}",
        "patient_id": person.patient_id,
        "birth": person.birth.strftime(style.date_format),
        "sex": "F",
        "date": moment.strftime(style.date_format),
        "time": moment.strftime("%H:%M:%S"),
        "hospital": exam.hospital[0],
        "accession": exam.accession,
        "probe": f"{'C' if probe.shape == 'convex' else 'L'}{probe.frequency_mhz * 1.3:.0f}-{probe.frequency_mhz / 2:.0f}",
        "frequency": f"{probe.frequency_mhz * vendor.frequency_factor:.1f}",
        "depth": f"{frame.depth_mm / 10:.1f}",
        "gain": f"{50 + generator.integers(-9, 10)}",
        "range_db": f"{vendor.dynamic_range_db:.0f}",
        "frame_rate": f"{speed:.0f}",
        "mi": f"{generator.uniform(0.8, 1.3):.1f}",
        "ti": f"{generator.uniform(0.1, 0.6):.1f}",
    }
    return draw_screen(style, frame, max(frame.shape_px), values)


def _annotations(
    exam: Exam,
    picture: Picture,
    tissue: Box,
    faults: Faults,
    chances: np.ndarray[tuple[int], np.dtype[np.float64]],
    generator: np.random.Generator,
) -> Iterator[tuple[Annotation, str]]:
    if picture.mask.any() and chances[0] < faults.calipers:
        typeface, height_px = _typeface(exam, picture, generator)
        spacing_mm = picture.frame.pixel_spacing_mm
        yield measure_lesion(picture.mask, tissue, spacing_mm, typeface, height_px, generator), "calipers"
    if chances[1] < faults.words:
        typeface, height_px = _typeface(exam, picture, generator)
        words = write_words([_word(generator)], tissue, typeface, height_px, generator, generator.uniform() < 0.5)
        yield words, "words"
    if chances[2] < faults.names:
        typeface, height_px = _typeface(exam, picture, generator)
        lines = (exam.person.family_shown, exam.person.patient_id)
        yield write_words(lines, tissue, typeface, height_px, generator, arrow=False), "name on tissue"


def _typeface(exam: Exam, picture: Picture, generator: np.random.Generator) -> tuple[Typeface, int]:
    """Return a typeface of the vendor and a height between its screens' and twice that, 9 to 30 px."""
    style = SCREENS[exam.vendor.name]
    usual = text_height(max(picture.frame.shape_px), style.typeface)
    return style.typeface, int(np.clip(generator.integers(usual - 1, 2 * usual + 1), 9, 30))


def _word(generator: np.random.Generator) -> str:
    return WORDS[int(generator.integers(len(WORDS)))]


def _annotated(
    exam: Exam, clean: Shot, screen: Screen, tissue: Pixels, annotation: Annotation, fault: str, step: Point = (0, 0)
) -> Shot:
    """Return the shot with the annotation over its tissue, moved by `step` from frame to frame; its regions are right."""
    still_or_moving = len(tissue) == 1 or step != (0, 0)
    frames = _compose(screen, tissue, annotation, step)
    written = draw_annotation(Image.fromarray(frames[0]), annotation)
    return replace(
        clean,
        frames=frames,
        written=(*clean.written, *written),
        fault=fault,
        verdicts=(REVIEW,) if still_or_moving else (ACCEPTED, REVIEW),
        regions=_usual(exam),
    )


def _compose(screen: Screen, tissue: Pixels, annotation: Annotation | None, step: Point = (0, 0)) -> Pixels:
    """Return the screen with each frame of the tissue in it and the annotation over it."""
    frames, box = np.repeat(screen.pixels[None], len(tissue), axis=0), screen.tissue
    frames[:, box.top : box.bottom, box.left : box.right] = tissue[..., None]
    if annotation is not None:
        for number, frame in enumerate(frames):
            canvas = Image.fromarray(frame)
            draw_annotation(canvas, annotation, (number * step[0], number * step[1]))
            frames[number] = np.asarray(canvas)
    return frames
