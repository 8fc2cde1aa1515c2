"""What is kept of a DICOM header: this list, and nothing else.

Text is kept only where it is on a closed list (`equipment`), numbers only within the range they can honestly have and no more
digits than they need, so that neither carries what somebody typed into the wrong field. Dates are never kept: exams get the day
on a clock of the patient's own.
"""

import math
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from pydicom import Dataset

from echofed.client.ingest.equipment import model_name, probe_name, probe_type, vendor_name
from echofed.client.ingest.identifying import identifying_texts as identifying_texts
from echofed.client.ingest.outcomes import SetAsideError, Why
from echofed.client.ingest.pseudonyms import Pseudonyms, clean_id, patient_identity
from echofed.client.ingest.spellings import name_parts, parse_date, without_accents

PHOTOMETRIC = frozenset(
    {
        "MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422",
        "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT",
    }
)  # fmt: skip
OLDEST_BAND_YEARS = 90
"""Ages from here on share one band: so few reach them that a band of five years would point at people (45 CFR 164.514)."""
_BAND_YEARS = 5
_OLDEST_YEARS = 130
_AGE = re.compile(r"(\d{1,3})([DWMY])", re.ASCII)
_PER_YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}
_LOSSY = frozenset(
    {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91"}
)
Ages = Literal["band", "none"]


@dataclass(frozen=True)
class Header:
    """All that is kept of a header; every field may be stored.

    Args:
        patient, exam, instance: pseudonyms.
        accession: keyed digest of the accession number; empty if there is none.
        person, birth: keyed digests of the patient's name and birth date, to notice two patients with one id; comparable within
            one patient only; empty if not given.
        exam_day: day of the exam on the patient's own clock, see `Pseudonyms.day`; None if there is no date.
        age_band: in years, "45-49", "90+"; None if unknown or not to be kept.
        vendor, model, transducer, transducer_type: as on the lists of `equipment`, or codes; empty if not given.
        rows, columns, frames: as the header announces; 0 if it does not.
        photometric: one of `PHOTOMETRIC`, or empty.
        lossy: whether the pixels were ever compressed with loss, as far as the file says.
        frame_time_ms: between frames, three digits; None if not given.
        spacing_mm: between rows and between columns as PixelSpacing has it, four digits; regions know better.
    """

    patient: str
    exam: str
    instance: str
    accession: str
    person: str
    birth: str
    exam_day: int | None
    age_band: str | None
    vendor: str
    model: str
    transducer: str
    transducer_type: str
    rows: int
    columns: int
    frames: int
    photometric: str
    lossy: bool
    frame_time_ms: float | None
    spacing_mm: tuple[float, float] | None


def read_header(dataset: Dataset, pseudonyms: Pseudonyms, ages: Ages, texts: Collection[str] | None = None) -> Header:
    """Return what is kept of a header.

    Values that are damaged, out of range or not on the lists are left out; nothing of them is kept.

    Args:
        dataset: as read; not changed.
        pseudonyms: the site's, with its merges.
        ages: whether five-year bands of age are kept.
        texts: its identifying texts, if they are known already.

    Raises:
        SetAsideError: there is no patient id (NO_PATIENT), or no instance or study UID (NO_INSTANCE).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydicom, on values that break the standard; they are judged here
        known = identifying_texts(dataset) if texts is None else texts
        return _read_header(dataset, pseudonyms, ages, known)


def _read_header(dataset: Dataset, pseudonyms: Pseudonyms, ages: Ages, texts: Collection[str]) -> Header:
    identity = patient_identity(_text(dataset, "PatientID"), _text(dataset, "IssuerOfPatientID"))
    study_uid, sop_uid = (clean_id(_text(dataset, keyword)) for keyword in ("StudyInstanceUID", "SOPInstanceUID"))
    if not identity:
        raise SetAsideError(Why.NO_PATIENT)
    if not study_uid or not sop_uid:
        raise SetAsideError(Why.NO_INSTANCE)
    exam_date = parse_date(_text(dataset, "StudyDate")) or parse_date(_text(dataset, "AcquisitionDate"))
    born = parse_date(_text(dataset, "PatientBirthDate"))
    name = " ".join(sorted(without_accents(part).casefold() for part in name_parts(_text(dataset, "PatientName"))))
    accession = clean_id(_text(dataset, "AccessionNumber"))
    return Header(
        patient=pseudonyms.patient(identity),
        exam=pseudonyms.exam(study_uid),
        instance=pseudonyms.instance(sop_uid),
        accession=pseudonyms.accession(accession) if accession else "",
        person=pseudonyms.trait(identity, "name", name),
        birth=pseudonyms.trait(identity, "birth date", born.isoformat() if born else ""),
        exam_day=pseudonyms.day(identity, exam_date) if exam_date else None,
        age_band=age_band(_text(dataset, "PatientAge"), born, exam_date) if ages == "band" else None,
        vendor=vendor_name(_text(dataset, "Manufacturer"), pseudonyms),
        model=model_name(_text(dataset, "ManufacturerModelName"), texts, pseudonyms),
        transducer=probe_name(_text(dataset, "TransducerData"), texts),
        transducer_type=probe_type(_text(dataset, "TransducerType")),
        rows=_count(dataset, "Rows", 2**16 - 1),
        columns=_count(dataset, "Columns", 2**16 - 1),
        frames=_count(dataset, "NumberOfFrames", 10**5) or 1,
        photometric=value if (value := clean_id(_text(dataset, "PhotometricInterpretation"))) in PHOTOMETRIC else "",
        lossy=_is_lossy(dataset),
        frame_time_ms=_frame_time_ms(dataset),
        spacing_mm=_spacing_mm(dataset),
    )


def age_band(age: str, born: date | None, at: date | None) -> str | None:
    """Return a five-year band of age, or None if neither source makes sense.

    Args:
        age: PatientAge, such as "045Y" or "018M"; comes first.
        born, at: dates of birth and of the exam.
    """
    years: int | None = None
    if match := _AGE.fullmatch(clean_id(age)):
        years = int(int(match[1]) / _PER_YEAR[match[2]])
    elif born and at and at >= born:
        years = at.year - born.year - ((at.month, at.day) < (born.month, born.day))
    if years is None or not 0 <= years <= _OLDEST_YEARS:
        return None
    if years >= OLDEST_BAND_YEARS:
        return f"{OLDEST_BAND_YEARS}+"
    lowest = years // _BAND_YEARS * _BAND_YEARS
    return f"{lowest}-{lowest + _BAND_YEARS - 1}"


def _values(dataset: Dataset, keyword: str) -> list[Any]:
    """All values of an element; none if it is missing or its bytes cannot be read as what they are said to be."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom raises anything on damaged bytes
        return []
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue" else [value]


def _text(dataset: Dataset, keyword: str) -> str:
    values = _values(dataset, keyword)
    return str(values[0]) if values else ""


def _number(dataset: Dataset, keyword: str, lowest: float, highest: float, digits: int) -> float | None:
    try:
        value = float(_text(dataset, keyword))
    except ValueError:
        return None
    return float(f"{value:.{digits}g}") if math.isfinite(value) and lowest <= value <= highest else None


def _count(dataset: Dataset, keyword: str, most: int) -> int:
    text = _text(dataset, keyword)
    return value if text.isascii() and text.isdigit() and len(text) <= 9 and (value := int(text)) <= most else 0


def _frame_time_ms(dataset: Dataset) -> float | None:
    if (time := _number(dataset, "FrameTime", 0.1, 10_000.0, 3)) is not None:
        return time
    rate = _number(dataset, "CineRate", 0.1, 10_000.0, 3)
    return None if rate is None else float(f"{1000.0 / rate:.3g}")


def _spacing_mm(dataset: Dataset) -> tuple[float, float] | None:
    found = []
    for value in _values(dataset, "PixelSpacing"):
        try:
            found.append(float(f"{float(value):.4g}"))
        except (TypeError, ValueError):
            return None
    if len(found) != 2 or not all(0.001 <= value <= 10.0 for value in found):
        return None
    return found[0], found[1]


def _is_lossy(dataset: Dataset) -> bool:
    syntax = str(getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", ""))
    return clean_id(_text(dataset, "LossyImageCompression")) == "01" or syntax in _LOSSY
