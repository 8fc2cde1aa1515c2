"""Every text of a header that may point at a person: what must be found nowhere in what is stored.

Taken are, at any depth, in private groups and in the file meta information too: person names, dates, ids, addresses and
institutions as PS3.15 lists them, UIDs that the standard does not define, and whatever other text is long and particular enough
to be one. Names and dates come in several spellings. Times of day and plain numbers are not taken: alone they point at nobody,
and they would be found everywhere.
"""

import re
import warnings
from collections.abc import Iterator
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.datadict import keyword_for_tag
from pydicom.tag import BaseTag

from echofed.client.ingest.outcomes import SetAsideError, Why
from echofed.client.ingest.pseudonyms import clean_id
from echofed.client.ingest.spellings import date_spellings, name_spellings, parse_date

STANDARD_UIDS = "1.2.840.10008."
MAX_BINARY_BYTES = 2**20
"""Of one binary element that are looked through for text; pixels never are."""
MAX_TEXT_CHARACTERS = 64
"""Of a line that are searched for: what copies a text copies its beginning."""
MAX_TEXTS = 5000
"""Of one header; an ordinary one has about fifty."""
_MAX_LINES = 1000
_SHORTEST_TEXT = 6
_LONGEST_NUMBER = 8
"""Longer counts are ids somebody put there, and times that long hold parts of a second."""

_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_EQUIPMENT = frozenset(
    """Manufacturer ManufacturerModelName TransducerData TransducerType Modality PhotometricInterpretation SpecificCharacterSet
    ImageType ConversionType BurnedInAnnotation LossyImageCompression LossyImageCompressionMethod
    PatientIdentityRemoved DeidentificationMethod TimezoneOffsetFromUTC BodyPartExamined""".split()  # noqa: SIM905 (as words it can be read)
)
"""Judged where they are kept, or the same in thousands of files; taken only if they cannot be what they should."""
_IDS = frozenset(
    """AccessionNumber AdmissionID CountryOfResidence CurrentPatientLocation DetectorID DeviceSerialNumber
    FillerOrderNumberImagingServiceRequest GantryID InstitutionAddress InstitutionName InstitutionalDepartmentName
    InsurancePlanIdentification IssuerOfAdmissionID
    IssuerOfPatientID MedicalRecordLocator OtherPatientIDs PatientAddress PatientID PatientInstitutionResidence
    PatientTelephoneNumbers PerformedLocation PerformedProcedureStepID PersonAddress PersonTelephoneNumbers
    PlacerOrderNumberImagingServiceRequest PlateID ReferringPhysicianAddress ReferringPhysicianTelephoneNumbers RegionOfResidence
    RequestedProcedureID ResponsibleOrganization ScheduledProcedureStepID ServiceEpisodeID StationName StudyID
    ClinicalTrialSubjectID ClinicalTrialSubjectReadingID ClinicalTrialSiteID PatientTelecomInformation""".split()  # noqa: SIM905 (as words it can be read)
)
_TEXTS = frozenset({"AE", "LO", "LT", "SH", "ST", "UC", "UR", "UT"})
_BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_CODE = re.compile(r"[A-Z][A-Z0-9_ ]{0,15}", re.ASCII)
_DIGITS = re.compile(r"(?<!\d)\d{6,}(?!\d)", re.ASCII)
_DATE_IN_TEXT = re.compile(r"(?<!\d)(?:19|20)\d{2}([-./]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?!\d)", re.ASCII)
_AGE = re.compile(r"\d{3}[DWMY]?", re.ASCII)
_ID_IN_TEXT = re.compile(r"\b(?=\w*\d\w*\d\w*\d)(?=\w*[^\W\d])\w{7,64}\b")
_NAME_IN_TEXT = re.compile(r"[^\W\d_]+(?:\^[^\W\d_]*)+")
_PRINTABLE = re.compile(rb"[\x20-\x7e\x80-\xff]{6,}")
_WORD = re.compile(r"[^\W_]{4,}")
_WIDE = re.compile(rb"(?:[\x20-\x7e]\x00){6,}")


def identifying_texts(dataset: Dataset) -> frozenset[str]:
    """Return every text of a dataset and its file meta information that may identify somebody; elements that cannot be read
    are searched for text as bytes.

    Args:
        dataset: as read; not changed.

    Raises:
        SetAsideError: there are more than 5000 (TOO_LARGE).
    """
    found: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydicom, on values that break the standard
        for part in (getattr(dataset, "file_meta", None), dataset):
            if part is not None:
                for tag, element in _elements(part):
                    for text in _of_bytes(element) if isinstance(element, bytes) else _of_element(tag, element):
                        found.add(text)
                        if len(found) > MAX_TEXTS:
                            raise SetAsideError(Why.TOO_LARGE)
        if (station := _station_named_after_model(dataset)) is not None:
            found.discard(station)
        found.update(_of_bytes(getattr(dataset, "preamble", None) or b""))
    return frozenset(cleaned for text in found if (cleaned := clean_id(text)))


def _station_named_after_model(dataset: Dataset) -> str | None:
    """The station's name if it is that of its model: it points at nobody, and is kept as the model."""
    try:
        station, model = str(dataset.get("StationName", "")), str(dataset.get("ManufacturerModelName", ""))
        identity = clean_id(str(dataset.get("PatientID", "")))
    except Exception:  # pydicom raises anything on damaged bytes
        return None
    return station if clean_id(station) == clean_id(model) != identity else None


def _elements(dataset: Dataset) -> Iterator[tuple[BaseTag, DataElement | bytes]]:
    """All elements at any depth but the pixels; the bytes of those whose value cannot be read."""
    for tag in dataset.keys():  # noqa: SIM118 (a dataset iterates over elements)
        if tag in _PIXELS:
            continue
        try:
            element = dataset[tag]
            element_items = list(element.value) if element.VR == "SQ" else []
        except Exception:  # pydicom raises anything on damaged bytes
            value = getattr(dataset.get_item(tag, keep_deferred=True), "value", None)
            yield tag, value if isinstance(value, bytes) else b""
            continue
        yield tag, element
        for item in element_items:
            yield from _elements(item)


def _of_element(tag: BaseTag, element: DataElement) -> Iterator[str]:
    keyword, vr = keyword_for_tag(tag), element.VR
    if isinstance(element.value, (bytes, bytearray)):
        if vr in _BINARY or tag.is_private:
            yield from _of_bytes(bytes(element.value))
        return
    for value in _values(element.value):
        text = str(value)
        if vr == "PN":
            yield from name_spellings(text)
        elif vr in ("DA", "DT"):
            yield from _of_date(text)
        elif vr == "UI":
            if not text.startswith(STANDARD_UIDS):
                yield text
        elif vr == "CS" or keyword in _EQUIPMENT:
            if not _is_ordinary(text, vr):
                yield from _of_text(text)
        elif keyword in _IDS:
            yield text
            yield from _of_text(text)
        elif vr in _TEXTS or tag.is_private:
            yield from _of_text(text)
        elif (vr in ("IS", "TM") and len(text) > _LONGEST_NUMBER) or (vr == "AS" and not _AGE.fullmatch(text)):
            yield text


def _values(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue" else [value]


def _of_date(text: str) -> Iterator[str]:
    if day := parse_date(text):
        yield from date_spellings(day)
    if len(clean_id(text)) >= _SHORTEST_TEXT:
        yield text


def _of_text(text: str) -> Iterator[str]:
    """Of a text each line, and the names, dates and numbers in it."""
    for line in text.splitlines()[:_MAX_LINES]:
        if len(clean_id(line)) >= _SHORTEST_TEXT:
            yield clean_id(line)[:MAX_TEXT_CHARACTERS]
    head = text[:MAX_BINARY_BYTES]
    for match in _DATE_IN_TEXT.finditer(head):
        yield from _of_date(match[0].replace("/", "-"))
    for match in _NAME_IN_TEXT.finditer(head):
        yield from name_spellings(match[0])
    yield from _DIGITS.findall(head)
    yield from _ID_IN_TEXT.findall(head)


def _of_bytes(content: bytes) -> Iterator[str]:
    """The readable runs of a binary value, as ASCII or UTF-8, Latin-1, and UTF-16."""
    content = content[:MAX_BINARY_BYTES]
    runs = [match[0] for match in _PRINTABLE.finditer(content)][:_MAX_LINES]
    for run in runs:
        try:
            text = run.decode("utf-8")
        except UnicodeDecodeError:
            text = run.decode("latin-1")
        # Numbers look like letters of Latin-1 now and then, hardly like words in plain letters.
        if _WORD.search(text) and 2 * sum(letter > "\x7f" for letter in text) <= len(run):
            yield from _of_text(text)
    for match in list(_WIDE.finditer(content))[:_MAX_LINES]:
        yield from _of_text(match[0].decode("utf-16-le"))


def _is_ordinary(text: str, vr: str) -> bool:
    """Whether a text can be a defined term, or the name of a machine rather than of a person."""
    if _DIGITS.search(text):
        return False
    return bool(_CODE.fullmatch(text)) if vr == "CS" else "^" not in text
