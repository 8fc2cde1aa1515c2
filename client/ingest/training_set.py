"""The index a site registers, and the quality report beside it: both made anew from the journal."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from echofed.client.ingest.decisions import remove_frames
from echofed.client.ingest.forget import INDEX_FILE
from echofed.client.ingest.instance import REVIEW_FOLDER, Reading, label_rows
from echofed.client.ingest.journal import Entry, Journal
from echofed.client.ingest.labels import Found, LabelRow, Labels, agreed_labels, count_labels, read_labels
from echofed.client.ingest.outcomes import Verdict, Why
from echofed.client.ingest.quality import FrameFacts, FrameMeasures
from echofed.client.ingest.quality_page import quality_page
from echofed.client.ingest.quality_report import QualityReport, quality_report
from echofed.client.ingest.review.queue import remove_case
from echofed.protocol.document import canonical_json
from echofed.protocol.durable import replace_file

QUALITY_PAGE, QUALITY_JSON = "quality.html", "quality.json"
COLUMNS = (
    "file",
    "patient_id",
    "exam",
    "label",
    "clip",
    "region",
    "frame",
    "exam_day",
    "age_band",
    "vendor",
    "model",
    "transducer",
    "pixel_spacing_mm",
)
_MODE = 0o600


@dataclass(frozen=True)
class TrainingSet:
    """What there is to register.

    Args:
        patients, exams, frames: with at least one accepted frame.
        quality: all the rest.
    """

    patients: int
    exams: int
    frames: int
    quality: QualityReport


def write_training_set(reading: Reading, journal: Journal) -> TrainingSet:
    """Write `index.csv`, `quality.html` and `quality.json` from what the journal holds, each replaced whole, for its owner alone.

    Patients under whose id two people seem to lie are quarantined, with what was accepted of them before.

    Args:
        reading: folder, settings and keys of the ingest.
        journal: of that folder.

    Raises:
        IngestError: a table of labels cannot be read.
    """
    _quarantine_ambiguous(reading.folder, journal)
    accepted = list(journal.entries(Verdict.ACCEPTED))
    labels, found = _labels(reading, journal, accepted)
    of_exam = agreed_labels(found)
    replace_file(reading.folder / INDEX_FILE, _index(accepted, of_exam).encode(), _MODE)
    counts = {why: count for (verdict, why), count in journal.counts().items() if verdict is not Verdict.ACCEPTED}
    frames = [fact for entry in accepted for fact in _facts(entry, of_exam.get(entry.exam, ""))]
    report = quality_report(frames, counts, count_labels(labels, found), reading.folder)
    replace_file(reading.folder / QUALITY_PAGE, quality_page(report).encode(), _MODE)
    replace_file(reading.folder / QUALITY_JSON, canonical_json(report.to_json()) + b"\n", _MODE)
    return TrainingSet(report.patients, report.exams, report.frames, report)


def _quarantine_ambiguous(folder: Path, journal: Journal) -> None:
    ambiguous = journal.ambiguous_patients()
    usable = (Verdict.ACCEPTED, Verdict.REVIEW)
    for entry in [one for one in journal.entries() if one.verdict in usable and one.patient in ambiguous]:
        journal.decide(entry, Verdict.QUARANTINED, Why.TWO_PATIENTS)
        remove_frames(folder, entry)
        remove_case(folder / REVIEW_FOLDER, entry.instance)


def _labels(reading: Reading, journal: Journal, entries: Sequence[Entry]) -> tuple[Labels, list[tuple[str, Found]]]:
    """Return all labels, in pseudonyms, and what they say of each instance."""
    written = read_labels(reading.settings.labels, reading.folder)
    folders = {LabelRow(entry.label, exam=entry.exam) for entry in entries if entry.label}
    rows = (*label_rows(written.rows, reading.pseudonyms), *journal.said(), *sorted(folders, key=_by_text))
    labels = Labels(rows)
    return labels, [(entry.exam, labels.find(entry.exam, entry.accession, entry.patient)) for entry in entries]


def _by_text(row: LabelRow) -> tuple[str, str]:
    return row.exam, row.label


def _index(entries: Iterable[Entry], labels: dict[str, str]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in entries:
        facts = entry.facts
        known = [facts[name] for name in ("exam_day", "age_band", "vendor", "model", "transducer")]
        for frame in entry.frames:
            spacing = frame["spacing_mm"]
            writer.writerow(
                [
                    frame["file"],
                    entry.patient,
                    entry.exam,
                    labels.get(entry.exam, ""),
                    entry.instance,
                    frame["region"],
                    frame["frame"],
                    *("" if value is None else value for value in known),
                    "" if spacing is None else f"{spacing[0]:.5g}",
                ]
            )
    return text.getvalue()


def _facts(entry: Entry, label: str) -> Iterable[FrameFacts]:
    for frame in entry.frames:
        spacing = frame["spacing_mm"]
        yield FrameFacts(
            file=str(frame["file"]),
            device=entry.device,
            label=label,
            patient=entry.patient,
            exam=entry.exam,
            clip=entry.instance,
            spacing_mm=None if spacing is None else (spacing[0], spacing[1]),
            measures=FrameMeasures.from_json(frame),
            is_frozen=bool(entry.facts.get("is_frozen", False)),
        )
