"""One instance, from its DICOM file to stored frames or a reason against it; runs in a process of its own.

The file may be damaged or hostile and its decoders are C libraries, so whatever happens here costs this instance only.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from echofed.client.forgotten import NOBODY, Forgotten
from echofed.client.ingest.cleaning import Cleaned, clean
from echofed.client.ingest.dataset import check_ultrasound, read_dataset
from echofed.client.ingest.frame_store import PATIENT, SPACING, spacing_text, sync_frames, write_frame
from echofed.client.ingest.geometry import Box, Layout, Region
from echofed.client.ingest.header import Header, identifying_texts, read_header
from echofed.client.ingest.journal import Entry, open_journal
from echofed.client.ingest.kept_dicom import deidentified_copy
from echofed.client.ingest.labels import LabelRow, configured_labels
from echofed.client.ingest.leaks import Search
from echofed.client.ingest.outcomes import OF_THE_FILE, SetAsideError, Verdict, Why, verdict_of
from echofed.client.ingest.picked_frames import Picked, pick_frames
from echofed.client.ingest.pseudonyms import Pseudonyms
from echofed.client.ingest.quality import is_frozen, measure_frame
from echofed.client.ingest.regions import find_layout
from echofed.client.ingest.report_labels import is_report, report_rows
from echofed.client.ingest.review.case import MAX_BOXES, Case
from echofed.client.ingest.review.queue import put_case
from echofed.client.ingest.settings import IngestSettings
from echofed.client.ingest.templates import layout_key, read_template
from echofed.protocol.durable import replace_file
from echofed.protocol.membership import iso_time

REVIEW_FOLDER = "review"
TEMPLATES_FOLDER = "templates"
DICOM_FOLDER = "dicom"
SPOOL_FOLDER = "spool"
RECEIVED_FOLDER = "received"


@dataclass(frozen=True)
class Reading:
    """What is the same for all instances of an ingest.

    Args:
        folder: of the ingest.
        settings: of the ingest.
        pseudonyms: the site's, with its merges.
        store_key: of the frame store, None if it is not encrypted.
        forgotten: patients nothing is kept of.
    """

    folder: Path
    settings: IngestSettings
    pseudonyms: Pseudonyms
    store_key: bytes | None
    forgotten: Forgotten = NOBODY


@dataclass(frozen=True)
class Read:
    """What came of one file.

    Args:
        entry: for the journal, None if the file is no instance that can be named.
        why: the reason against it, None if it is accepted.
        said: what a structured report says of exams, in pseudonyms.
        texts: every identifying text of its header but labels in ingest.yaml, for the search at the end; never stored.
    """

    entry: Entry | None
    why: Why | None
    said: tuple[LabelRow, ...] = ()
    texts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Frame:
    """A frame to be stored: its grey levels, the number of its region, its number in the clip (1-based) and its spacing."""

    pixels: NDArray[np.uint8]
    region: int
    number: int
    spacing_mm: tuple[float, float] | None


def read_instance(path: Path, reading: Reading, check: Callable[[Dataset], None] = lambda dataset: None) -> Read:
    """Read, de-identify and store one instance.

    Frames of an accepted instance are on disk on return, those of one that a person must see are in the review queue; of any
    other nothing is kept. None of its own identifying texts is in what is stored of it. What the journal knows of an instance
    stays, so that a second copy changes no decision, unless only the first copy's file was at fault.

    Args:
        path: of the file as the source sent it.
        reading: what is the same for all.
        check: raises SetAsideError if the source must not have sent it.

    Raises:
        FrameStoreError, OSError: the disk is full or cannot be written; this is not the instance's fault.
    """
    entry, texts = None, frozenset[str]()
    try:
        dataset = read_dataset(path)
        check(dataset)
        own = identifying_texts(dataset)
        # A label the hospital wrote into ingest.yaml may well stand in a header; where it is stored it is no leak.
        labels = configured_labels(reading.settings.labels)
        texts = frozenset(text for text in own if text.casefold() not in labels)
        if is_report(dataset):
            rows = report_rows(dataset, reading.settings.labels.reports)
            said = label_rows(rows, reading.pseudonyms)
            _refuse_forgotten(reading, [row.patient for row in said])
            return Read(None, Why.REPORT, said, texts)
        check_ultrasound(dataset)
        header = read_header(dataset, reading.pseudonyms, reading.settings.ages, own)
        _refuse_forgotten(reading, [header.patient])
        with open_journal(reading.folder) as journal:
            known = journal.find(header.instance)
        if known is not None and known.why not in OF_THE_FILE:
            return Read(known, known.why, (), texts)
        search = Search(own)
        refuse_leaks(search, dataclasses.asdict(header))
        entry = entry_of(header)
        return _read_pixels(path, dataset, entry, header, reading, texts, search)
    except SetAsideError as error:
        if entry is not None:
            entry = dataclasses.replace(entry, verdict=verdict_of(error.why), why=error.why)
        return Read(entry, error.why, (), texts)


def label_rows(rows: Iterable[LabelRow], pseudonyms: Pseudonyms) -> tuple[LabelRow, ...]:
    """Return what tables or reports say with pseudonyms in place of ids, so that it meets what the journal holds."""
    return tuple(
        LabelRow(
            row.label,
            exam=pseudonyms.exam(row.exam) if row.exam else "",
            accession=pseudonyms.accession(row.accession) if row.accession else "",
            patient=pseudonyms.patient(row.patient) if row.patient else "",
        )
        for row in rows
    )


def store_frames(folder: Path, entry: Entry, frames: Iterable[Frame], key: bytes | None) -> Entry:
    """Store an instance's frames and return its entry with them; they are on disk on return.

    Args:
        folder: of the ingest.
        entry: of the instance.
        frames: what is kept of it.
        key: of the store, None if it is not encrypted.

    Raises:
        FrameStoreError: the disk is full or cannot be written.
    """
    paths, facts = [], []
    for frame in frames:
        texts = {PATIENT: entry.patient, "exam": entry.exam, SPACING: spacing_text(frame.spacing_mm)}
        name = f"{entry.instance}-{frame.region}-{frame.number:05d}"
        paths.append(write_frame(folder, name, frame.pixels, texts, key))
        facts.append(
            {
                "file": str(paths[-1].relative_to(folder)),
                "region": frame.region,
                "frame": frame.number,
                "spacing_mm": frame.spacing_mm,
                **measure_frame(frame.pixels).to_json(),
            }
        )
    sync_frames(paths)
    return dataclasses.replace(entry, frames=tuple(facts), verdict=Verdict.ACCEPTED, why=None)


def refuse_leaks(search: Search, facts: Mapping[str, Any], frames: Iterable[Frame] = ()) -> None:
    """Check what is about to be stored of an instance for its own identifying texts, while nothing of it is encrypted.

    Args:
        search: of the instance's texts.
        facts: that are stored as text.
        frames: that are stored as pixels.

    Raises:
        SetAsideError: one is in it (IDENTIFIER_LEFT).
    """
    # Their values alone: what the facts are called, None and True are EchoFed's words, and patients are called so, too.
    values = [str(value) for value in facts.values() if value is not None and not isinstance(value, bool)]
    text = "\n".join(values).encode()
    found = any(True for _ in search.find(text))
    if found or any(True for frame in frames for _ in search.find(frame.pixels.tobytes(), "pixels")):
        raise SetAsideError(Why.IDENTIFIER_LEFT)


def keep_copy(reading: Reading, dataset: Dataset, header: Header, frames: Sequence[Frame]) -> None:
    """Keep a de-identified DICOM copy of an instance's first region beside its frames.

    Args:
        reading: what is the same for all.
        dataset: the instance as it came.
        header: what is kept of its header.
        frames: what is kept of its pixels.

    Raises:
        OSError: it cannot be written.
    """
    folder = reading.folder / DICOM_FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    first = [frame for frame in frames if frame.region == 0]
    pixels, spacing_mm = np.stack([frame.pixels for frame in first]), first[0].spacing_mm
    content = deidentified_copy(dataset, pixels, header, reading.pseudonyms, spacing_mm=spacing_mm)
    replace_file(folder / f"{header.instance}.dcm", content)


def around(regions: Iterable[Region]) -> Box:
    """Return the smallest box that holds all regions: what a person is shown, and what templates are drawn on."""
    boxes = [region.box for region in regions]
    return Box(
        min(box.top for box in boxes),
        min(box.left for box in boxes),
        max(box.bottom for box in boxes),
        max(box.right for box in boxes),
    )


def _refuse_forgotten(reading: Reading, patients: Iterable[str]) -> None:
    """Raise SetAsideError before anything of a forgotten patient is decoded or stored."""
    if any(patient in reading.forgotten for patient in patients):
        raise SetAsideError(Why.FORGOTTEN)


def _read_pixels(
    path: Path,
    dataset: Dataset,
    entry: Entry,
    header: Header,
    reading: Reading,
    texts: frozenset[str],
    search: Search,
) -> Read:
    picked = pick_frames(dataset, reading.settings.frames)
    layout, why = _find_layout(dataset, picked)
    shown, key = around(layout.tissue), layout_key(header, layout)
    template = read_template(reading.folder / TEMPLATES_FOLDER, key)
    cleaned = [_clean(picked, region.box, shown, template, reading.settings) for region in layout.tissue]
    entry.facts["is_frozen"] = is_frozen(cleaned[0].frames)
    why = why or next((one.why for one in cleaned if one.why is not None), None)
    if why is not None:
        entry = dataclasses.replace(
            entry, verdict=verdict_of(why), why=why, facts=entry.facts | case_facts(layout, picked)
        )
        if entry.verdict is Verdict.REVIEW:
            raw = path if reading.settings.keep_dicom else None
            put_case(
                reading.folder / REVIEW_FOLDER,
                _case(entry, layout, key, cleaned),
                _canvas(layout, cleaned, picked),
                raw,
            )
        return Read(entry, why, (), texts)
    frames = [
        Frame(one.frames[place], number, picked.numbers[place] + 1, region.spacing_mm)
        for number, (region, one) in enumerate(zip(layout.tissue, cleaned, strict=True))
        for place in picked.places
    ]
    refuse_leaks(search, {}, frames)
    entry = store_frames(reading.folder, entry, frames, reading.store_key)
    if reading.settings.keep_dicom:
        keep_copy(reading, dataset, header, frames)
    return Read(entry, None, (), texts)


def _find_layout(dataset: Dataset, picked: Picked) -> tuple[Layout, Why | None]:
    """Return how the frame is divided; if nobody can say, all of it, for a person to see."""
    try:
        return find_layout(dataset, picked.frames), None
    except SetAsideError as error:
        if verdict_of(error.why) is not Verdict.REVIEW:
            raise
        height, width = picked.frames[0].shape[:2]
        return Layout((Region(Box(0, 0, height, width), "tissue"),), "image"), error.why


def _clean(
    picked: Picked, box: Box, shown: Box, template: NDArray[np.bool_] | None, settings: IngestSettings
) -> Cleaned:
    mask = None
    if template is not None:
        top, left = box.top - shown.top, box.left - shown.left
        mask = template[top : top + box.height, left : left + box.width]
    crops = np.stack([box.of(frame) for frame in picked.frames])
    return clean(crops, is_cine=len(picked.frames) > 1, check=settings.text_check, template_mask=mask)


def _case(entry: Entry, layout: Layout, key: str, cleaned: list[Cleaned]) -> Case:
    assert entry.why is not None
    shown = around(layout.tissue)
    writing = [
        Box(box.top + top, box.left + left, box.bottom + top, box.right + left)
        for region, one in zip(layout.tissue, cleaned, strict=True)
        for top, left in [(region.box.top - shown.top, region.box.left - shown.left)]
        for box in one.writing
    ]
    return Case(
        instance=entry.instance,
        exam=entry.exam,
        patient=entry.patient,
        why=entry.why,
        writing=tuple(writing[:MAX_BOXES]),
        region=shown,
        frames=len(entry.facts["frame_numbers"]),
        layout_key=key,
        device=entry.device,
        added_at=iso_time(datetime.now(UTC)),
    )


def _canvas(layout: Layout, cleaned: list[Cleaned], picked: Picked) -> NDArray[np.uint8]:
    """Return what a person is shown, uint8 [frames, height, width]: the regions in their places, black between them."""
    shown = around(layout.tissue)
    canvas = np.zeros((len(picked.kept), shown.height, shown.width), np.uint8)
    for region, one in zip(layout.tissue, cleaned, strict=True):
        top, left = region.box.top - shown.top, region.box.left - shown.left
        canvas[:, top : top + region.box.height, left : left + region.box.width] = one.frames[picked.places]
    return canvas


def case_facts(layout: Layout, picked: Picked) -> dict[str, Any]:
    """Return what is needed to store the frames of an instance once a person has accepted it."""
    shown = around(layout.tissue)
    return {
        "frame_numbers": [number + 1 for number in picked.kept],
        "regions": [
            {
                "top": region.box.top - shown.top,
                "left": region.box.left - shown.left,
                "bottom": region.box.bottom - shown.top,
                "right": region.box.right - shown.left,
                "spacing_mm": region.spacing_mm,
            }
            for region in layout.tissue
        ],
    }


def entry_of(header: Header) -> Entry:
    """Return the entry of an instance of which nothing is known but its header."""
    known = ("patient", "exam", "instance", "accession", "person", "birth")
    facts = {name: value for name, value in dataclasses.asdict(header).items() if name not in known}
    return Entry(
        **{name: getattr(header, name) for name in known},
        verdict=Verdict.QUARANTINED,
        why=None,
        label="",
        device=f"{header.vendor} {header.model}".strip(),
        facts=facts,
        frames=(),
    )
