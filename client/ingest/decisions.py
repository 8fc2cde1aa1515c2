"""What people decided on the review page is carried out: frames are masked and stored, masks remembered, rejections noted."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echofed.client.ingest.dataset import read_dataset
from echofed.client.ingest.geometry import Box
from echofed.client.ingest.header import read_header
from echofed.client.ingest.instance import REVIEW_FOLDER, TEMPLATES_FOLDER, Frame, Reading, keep_copy, store_frames
from echofed.client.ingest.journal import Entry, Journal
from echofed.client.ingest.outcomes import Verdict, Why
from echofed.client.ingest.review.case import Case, Decision, mask_of
from echofed.client.ingest.review.queue import decided, frames_of, raw_of, remove_case
from echofed.client.ingest.templates import keep_template


def apply_decisions(reading: Reading, journal: Journal) -> int:
    """Carry out all decisions and return how many; one that was begun and cut short is carried out again, to the same end.

    Args:
        reading: folder, settings and keys of the ingest.
        journal: of that folder.

    Raises:
        FrameStoreError: a case is damaged, or the disk is full; it stays.
    """
    queue = reading.folder / REVIEW_FOLDER
    if not queue.is_dir():
        return 0
    done = 0
    for case, decision in decided(queue):
        entry = journal.find(case.instance)
        if entry is None and case.patient not in reading.forgotten:
            # An ingest was killed before it noted the instance: it comes again, and then the decision holds.
            continue
        if entry is not None and entry.verdict is Verdict.REVIEW:
            _carry_out(reading, journal, entry, case, decision)
            done += 1
        remove_case(queue, case.instance)
    return done


def _carry_out(reading: Reading, journal: Journal, entry: Entry, case: Case, decision: Decision) -> None:
    if decision.decision == "reject":
        journal.decide(entry, Verdict.QUARANTINED, Why.REJECTED)
        return
    queue, mask = reading.folder / REVIEW_FOLDER, mask_of(case, decision)
    shown = np.where(mask, np.uint8(0), frames_of(queue, case.instance))
    if decision.remember:
        keep_template(reading.folder / TEMPLATES_FOLDER, case.layout_key, mask)
    frames = _cut(entry, shown)
    stored = store_frames(reading.folder, entry, frames, reading.store_key)
    raw = raw_of(queue, case.instance)
    if raw is not None:
        dataset = read_dataset(raw)
        header = read_header(dataset, reading.pseudonyms, reading.settings.ages)
        keep_copy(reading, dataset, header, frames)
    journal.record("", stored)


def _cut(entry: Entry, shown: NDArray[np.uint8]) -> list[Frame]:
    """Return the frames of a case, uint8 [frames, height, width], cut into its regions."""
    return [
        Frame(
            np.ascontiguousarray(box.of(frame)),
            number,
            frame_number,
            spacing and (float(spacing[0]), float(spacing[1])),
        )
        for number, region in enumerate(entry.facts["regions"])
        for box, spacing in [
            (Box(*(region[side] for side in ("top", "left", "bottom", "right"))), region["spacing_mm"])
        ]
        for frame, frame_number in zip(shown, entry.facts["frame_numbers"], strict=True)
    ]


def remove_frames(folder: Path, entry: Entry) -> None:
    """Remove an instance's frames from the store."""
    for frame in entry.frames:
        (folder / str(frame["file"])).unlink(missing_ok=True)
