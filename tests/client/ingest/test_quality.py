"""The quality report: numbers that are right, and nobody's name in them."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from echofed.client.ingest.encryption import make_store_key
from echofed.client.ingest.frame_store import write_frame
from echofed.client.ingest.labels import LabelCounts
from echofed.client.ingest.quality import FrameFacts, FrameMeasures, is_frozen, measure_frame
from echofed.client.ingest.quality_page import quality_page
from echofed.client.ingest.quality_report import QualityReport, quality_report
from echofed.protocol.key_files import PASSPHRASE_VARIABLE

COUNTS = LabelCounts(4, 2, 1, 1, 9, 3, 2)


def picture(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 220, (8, 8), dtype=np.uint8)).resize((width, height))
    return np.asarray(blobs) + rng.integers(0, 30, (height, width), dtype=np.uint8)


def facts(pixels: np.ndarray, patient: str, **changes: Any) -> FrameFacts:
    given: dict[str, Any] = {
        "file": f"frames/{patient}.safetensors",
        "device": "Maker X1",
        "label": "benign",
        "exam": f"exam-{patient}",
        "clip": f"clip-{patient}",
        "spacing_mm": (0.1, 0.1),
    }
    return FrameFacts(patient=patient, measures=measure_frame(pixels), **(given | changes))


def test_measures_are_what_the_pixels_say() -> None:
    pixels = np.zeros((40, 50), np.uint8)
    pixels[:10], pixels[10:20] = 255, 100
    measures = measure_frame(pixels)
    assert (measures.height, measures.width) == (40, 50)
    assert measures.mean_brightness == pytest.approx((255 + 100) / 4)
    assert measures.clipped_share == 0.25
    assert measures.dark_share == 0.5
    assert measures.looks < 2**64
    assert FrameMeasures.from_json(json.loads(json.dumps({**measures.to_json(), "file": "x"}))) == measures


def test_a_sharp_image_is_sharper() -> None:
    sharp = picture(1)
    blurred = np.asarray(Image.fromarray(sharp).resize((32, 24)).resize((128, 96)))
    assert measure_frame(sharp).sharpness > 5 * measure_frame(blurred).sharpness
    assert measure_frame(np.full((2, 2), 7, np.uint8)).sharpness == 0


def test_empty_and_even_images_are_told_from_tissue() -> None:
    rng = np.random.default_rng(4)
    speckle = np.hypot(*rng.normal(size=(2, 240, 320)))
    even = (60 * speckle * np.linspace(1, 0.5, 240)[:, None]).clip(0, 255).astype(np.uint8)
    black = np.zeros((240, 320), np.uint8)
    black[100, 100:110] = 200
    assert measure_frame(even).look == "uniform"
    assert measure_frame(black).look == "empty"
    assert measure_frame(np.full((240, 320), 90, np.uint8)).look == "empty"
    assert [measure_frame(picture(seed)).look for seed in range(50)] == [""] * 50


def test_real_images_are_not_taken_for_phantoms(shared_data: Path) -> None:
    files = sorted((shared_data / "busbra" / "images").glob("*"))[::25]
    looks = Counter(measure_frame(np.asarray(Image.open(path).convert("L"))).look for path in files)
    assert looks.total() > 50
    assert looks[""] >= 0.98 * looks.total()


def test_a_frozen_clip_shows_one_picture() -> None:
    still = picture(1)
    noise = np.random.default_rng(2).integers(0, 2, (5, *still.shape), np.uint8)
    assert is_frozen(still + noise)
    assert not is_frozen(np.stack([picture(1), picture(1), picture(2)]))
    assert not is_frozen(still[None])


def mixed() -> tuple[list[FrameFacts], dict[str, int]]:
    """Two devices, a missing label and spacing, copies within and between patients, a frozen clip."""
    changed = np.asarray(Image.fromarray(picture(3)).resize((64, 48)))
    return [
        facts(picture(1), "P1"),
        facts(picture(1), "P1", file="frames/P1b.safetensors"),
        facts(picture(2), "P2", label="malignant", is_frozen=True),
        facts(picture(2), "P3", label="", spacing_mm=None),
        facts(picture(3), "P4", device="<b>Other & Co</b>"),
        facts(changed, "P5", device=""),
    ], {"writing on the tissue": 3, "damaged": 1}


def test_the_report_counts_what_is_there() -> None:
    frames, quarantined = mixed()
    report = quality_report(frames, quarantined, COUNTS)
    assert (report.patients, report.exams, report.clips, report.frames) == (5, 5, 5, 6)
    assert [(one.device, one.frames, one.patients) for one in report.devices] == [
        ("Maker X1", 4, 3),
        ("<b>Other & Co</b>", 1, 1),
        ("unknown device", 1, 1),
    ]
    assert {(one.device, one.label): one.frames for one in report.groups}["Maker X1", "benign"] == 2
    assert report.label_patients == {"benign": 3, "malignant": 1, "no label": 1}
    assert report.label_frames == {"benign": 4, "malignant": 1, "no label": 1}
    assert report.devices[0].sizes == {"96 x 128": 4}
    assert sum(report.devices[0].brightness_bins) == 4
    assert report.devices[0].spacing_mm is not None
    assert report.devices[0].spacing_mm.middle == 0.1
    assert (report.same_frames, report.near_frames, report.repeated_frames) == (1, 1, 1)
    assert report.pairs == (
        ("frames/P2.safetensors", "frames/P3.safetensors"),
        ("frames/P4.safetensors", "frames/P5.safetensors"),
    )
    assert report.doubts() == {
        "equal frames under several patients": 1,
        "pairs of nearly equal frames under several patients": 1,
        "frames repeated within a patient": 1,
        "frames of frozen clips": 1,
        "frames without pixel spacing": 1,
        "frames without label": 1,
        "frames of an unknown device": 1,
    }
    assert report.quarantined == quarantined


def test_text_and_json_say_the_same_and_json_names_nobody() -> None:
    report = quality_report(*mixed(), COUNTS)
    text, content = report.text(), json.dumps(report.to_json())
    for said in ("6 frames of 5 clips", "Maker X1: 4 frames of 3 patients", "3  writing on the tissue", "96 x 128 (4)"):
        assert said in text
    assert "frames/P2.safetensors = frames/P3.safetensors" in text
    assert not re.search(r"P\d", content)
    assert json.loads(content)["same_frames"] == 1


class Page(HTMLParser):
    """Checks that tags match, and gathers what would be loaded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.names: Counter[str] = Counter()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names[tag] += 1
        self.outside += [name for name, _ in attributes if name in ("src", "href", "xlink:href", "style", "onload")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_loads_nothing_names_nobody_and_escapes_what_files_say() -> None:
    page = quality_page(quality_report(*mixed(), COUNTS))
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.outside == []
    assert parsed.names["script"] == parsed.names["b"] == parsed.names["img"] == 0
    assert parsed.names["svg"] == 5 + 3
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "&lt;b&gt;Other &amp; Co&lt;/b&gt;" in page
    assert not re.search(r"[^a-z]P\d", page)
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)
    for said in ("writing on the tissue", "exams whose labels disagree", "96 x 128 (4)"):
        assert said in page


def test_nothing_ingested_is_a_report_too() -> None:
    report = quality_report([], {})
    assert report.to_json()["frames"] == 0
    assert report.text() == "0 frames of 0 clips, 0 exams, 0 patients."
    assert Page(quality_page(report)).open == []


def stored(folder: Path, key: bytes | None) -> list[FrameFacts]:
    """Return stored frames: two that look the same, and two whose hashes are equal but whose pictures are not."""
    same = picture(3), np.asarray(Image.fromarray(picture(3)).resize((64, 48)))
    flat = np.full((64, 64), 100, np.uint8)
    flat[:, :1] = 101
    other = np.full((64, 64), 100, np.uint8)
    other[:1] = 101
    found = []
    for place, pixels in enumerate((*same, flat, other)):
        path = write_frame(folder, f"frame-{place}", pixels, {}, key)
        measured = facts(pixels, f"P{place}", file=path.relative_to(folder).as_posix())
        found.append(measured)
    return found


@pytest.mark.parametrize("encrypted", [False, True])
def test_frames_that_may_be_the_same_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "a")
    frames = stored(tmp_path, make_store_key(tmp_path, "passphrase") if encrypted else None)

    def alike(report: QualityReport) -> int:
        return report.near_frames

    assert alike(quality_report(frames, {}, folder=tmp_path)) == 1
    (tmp_path / frames[0].file).write_bytes(b"")
    assert alike(quality_report(frames, {}, folder=tmp_path)) == 0
    assert alike(quality_report(frames, {})) >= 1
