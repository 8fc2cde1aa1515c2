"""What is true of each exported instance: what it is, where its writing lies and which verdicts are right."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from echofed.client.ingest.geometry import Box
from echofed.client.ingest.outcomes import Verdict
from echofed.protocol.errors import SitesError
from echofed.simulations.phantoms.writing import Written


@dataclass(frozen=True)
class Faults:
    """What goes wrong at a site; all shares are within 0 to 1, all counts are of the whole site.

    Further copies of pictures, whose clean originals are exported as well: `calipers`, `words`, `names` (on the
    tissue), `moving_words` (clips only), `duplicates` (another instance of the same pixels) and `repeated` (the same
    instance in two files), each a share of the pictures. `regions_missing`, `regions_beyond` (the frame) and
    `regions_over_banner` are shares of the pictures themselves.

    Counts: `no_tissue` (probe in the air), `documents` (PDF), `other_modality` (CT), `damaged` (cut off), `not_dicom`,
    `no_patient` (an instance without patient id), `renamed` (a patient whose last instance bears another's name).
    Exams: `reports` is the share with a structured report, `only_reported` of these the share whose label is not in the
    table, `unlabelled` the share that has a label nowhere; `contradictions` counts exams with two labels.
    """

    calipers: float = 0.0
    words: float = 0.0
    names: float = 0.0
    moving_words: float = 0.0
    duplicates: float = 0.0
    repeated: float = 0.0
    regions_missing: float = 0.0
    regions_beyond: float = 0.0
    regions_over_banner: float = 0.0
    reports: float = 0.0
    only_reported: float = 0.0
    unlabelled: float = 0.0
    contradictions: int = 0
    no_tissue: int = 0
    documents: int = 0
    other_modality: int = 0
    damaged: int = 0
    not_dicom: int = 0
    no_patient: int = 0
    renamed: int = 0

    def __post_init__(self) -> None:
        """Raise SitesError for what is no share or no count."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0 or (field.type is float and value > 1):
                raise SitesError(f"{field.name} {value} is not a {'share' if field.type is float else 'count'}.")
        if self.regions_missing + self.regions_beyond + self.regions_over_banner > 1:
            raise SitesError("More pictures with wrong regions than pictures.")


NO_FAULTS = Faults()
EVERY_FAULT = Faults(
    calipers=0.2,
    words=0.2,
    names=0.1,
    moving_words=0.5,
    duplicates=0.1,
    repeated=0.1,
    regions_missing=0.15,
    regions_beyond=0.1,
    regions_over_banner=0.1,
    reports=0.4,
    only_reported=0.5,
    unlabelled=0.1,
    contradictions=1,
    no_tissue=2,
    documents=1,
    other_modality=1,
    damaged=1,
    not_dicom=1,
    no_patient=1,
    renamed=1,
)


@dataclass(frozen=True)
class Truth:
    """What is true of one exported file.

    Args:
        file: relative to the export.
        instance: SOPInstanceUID; empty if the file is not DICOM.
        kind: "still", "cine", "report", "document", "CT", "no tissue" or "not DICOM".
        fault: what is wrong with it; empty: nothing.
        verdicts: those that are right.
        patient_id, accession: as in the header.
        label: of the exam.
        phantom: the picture's name among those `write_phantom_sites` draws, without suffix; empty: none of them.
        vendor: of the scanner.
        frames: 0 without pixels.
        tissue: where it truly lies, None without.
        spacing_mm: of the tissue's pixels, 0 without.
        written: every text in the first frame.
    """

    file: str
    instance: str
    kind: str
    fault: str
    verdicts: tuple[Verdict, ...]
    patient_id: str
    accession: str
    label: str
    phantom: str = ""
    vendor: str = ""
    frames: int = 0
    tissue: Box | None = None
    spacing_mm: float = 0.0
    written: tuple[Written, ...] = ()


def write_truth(path: Path, rows: Sequence[Truth]) -> None:
    """Write the rows as CSV: boxes as "top left bottom right", texts as JSON."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Truth)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            written = [{**asdict(text), "box": _box(text.box)} for text in row.written]
            values = {field.name: getattr(row, field.name) for field in fields(Truth)}
            values |= {
                "verdicts": "|".join(row.verdicts),
                "tissue": _box(row.tissue) if row.tissue else "",
                "spacing_mm": f"{row.spacing_mm:.5f}",
                "written": json.dumps(written, ensure_ascii=False),
            }
            writer.writerow(values)


def write_labels(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write accession numbers and their labels as CSV."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("accession_number", "label"))
        writer.writerows(rows)


def _box(box: Box) -> str:
    return f"{box.top} {box.left} {box.bottom} {box.right}"
