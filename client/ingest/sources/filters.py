"""Which studies, series and instances are wanted; asked of the PACS, and checked again on what it sends."""

import csv
import datetime
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.outcomes import Why
from echofed.protocol.document import Document

MAX_LISTED_STUDIES = 1_000_000
UID = re.compile(r"[0-9.]{1,64}")
_ACCESSION_NUMBER = re.compile(r"[ -)+->@-\[\]-~]{1,64}")  # ASCII without wildcards
_COLUMNS = ("study_uid", "accession_number")
_WITH_IMAGES_OF_OTHERS = frozenset({"SR", "DOC", "PR", "KO", "OT"})
_NO_ULTRASOUND = {"SR": Why.REPORT, "KO": Why.REPORT, "DOC": Why.DOCUMENT}
_ULTRASOUND = frozenset({"", "US"})

Code = Annotated[str, StringConstraints(pattern=r"^[A-Z0-9_ ]{1,16}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[ -)+->@-\[\]-~]{1,16}$")]


class Filters(Document):
    """Which studies are wanted; what is not written does not limit."""

    since: datetime.date | None = Field(default=None, description="first day of the study, as in 2024-01-31.")
    until: datetime.date | None = Field(default=None, description="last day of the study.")
    modalities: tuple[Code, ...] = Field(default=("US",), min_length=1, max_length=8)
    stations: tuple[Name, ...] = Field(default=(), description="station names of the scanners; empty: all.")
    body_parts: tuple[Code, ...] = Field(default=(), description="as DICOM codes them, as in BREAST; empty: all.")
    studies_file: Path | None = Field(
        default=None, description="CSV with a column study_uid, accession_number or both; None: all studies."
    )


@dataclass(frozen=True)
class Selection:
    """Filters with the list of studies read; `None` lists do not limit."""

    filters: Filters
    study_uids: set[str] | None = None
    accession_numbers: frozenset[str] | None = None

    def study_queries(self) -> list[dict[str, str]]:
        """Return what to ask a PACS for, by DICOM keyword: one query, or one for each study listed and modality."""
        base = {"StudyDate": self._days()} if self._days() else {}
        if self.study_uids is not None and self.accession_numbers is not None:
            named = [{"StudyInstanceUID": uid} for uid in sorted(self.study_uids)]
            return [
                base | one for one in (*named, *({"AccessionNumber": one} for one in sorted(self.accession_numbers)))
            ]
        # Reports beside the images come with their study; alone they would bring in every other modality's studies.
        images = [one for one in self.filters.modalities if one not in _WITH_IMAGES_OF_OTHERS]
        return [base | {"ModalitiesInStudy": modality} for modality in images or self.filters.modalities]

    def add_found(self, study_uid: str) -> None:
        """Have a study that was found count as listed: files may lack the accession number under which the PACS has it."""
        if self.study_uids is not None:
            self.study_uids.add(study_uid)

    def series_query(self) -> dict[str, str]:
        """Return what to ask a PACS for within a study; what takes several values is left to the check of the answer."""
        wanted = self.filters
        several = {"Modality": wanted.modalities, "StationName": wanted.stations, "BodyPartExamined": wanted.body_parts}
        return {keyword: values[0] for keyword, values in several.items() if len(values) == 1}

    def allows(self, value_of: Callable[[str], str], *, is_whole: bool) -> bool:
        """Return whether the filters allow what has these values.

        Args:
            value_of: value by DICOM keyword, empty if there is none.
            is_whole: what is missing is missing in the instance; else the PACS may just not have told it.
        """
        wanted = self.filters
        checks: Mapping[str, Callable[[str], bool]] = {
            "StudyDate": self._allows_day,
            "Modality": lambda value: value in wanted.modalities,
            "StationName": lambda value: not wanted.stations or value.casefold() in _folded(wanted.stations),
            "BodyPartExamined": lambda value: not wanted.body_parts or value in wanted.body_parts,
        }
        for keyword, check in checks.items():
            value = value_of(keyword).strip()
            if (value or is_whole) and not check(value):
                return False
        return self._is_listed(value_of("StudyInstanceUID"), value_of("AccessionNumber").strip(), is_whole)

    def why_not(self, value_of: Callable[[str], str]) -> Why | None:
        """Return why the filters do not allow an instance with these values, None if they do; argument as for `allows`."""
        if self.allows(value_of, is_whole=True):
            return None
        modality = value_of("Modality").strip()
        if modality in self.filters.modalities or modality in _ULTRASOUND:
            return Why.FILTERED
        return _NO_ULTRASOUND.get(modality, Why.OTHER_MODALITY)

    def _is_listed(self, uid: str, accession_number: str, is_whole: bool) -> bool:
        if self.study_uids is None or self.accession_numbers is None:
            return True
        if uid in self.study_uids or accession_number in self.accession_numbers:
            return True
        is_told = bool(uid) and (bool(accession_number) or not self.accession_numbers)
        return not (is_told or is_whole)

    def _allows_day(self, text: str) -> bool:
        if self.filters.since is None and self.filters.until is None:
            return True
        try:
            day = datetime.datetime.strptime(text.replace(".", ""), "%Y%m%d").date()
        except ValueError:
            return False
        return (self.filters.since or day) <= day <= (self.filters.until or day)

    def _days(self) -> str:
        first, last = (f"{day:%Y%m%d}" if day else "" for day in (self.filters.since, self.filters.until))
        return f"{first}-{last}" if first or last else ""


def study_name(query: Mapping[str, str]) -> str:
    """Return what a query of `study_queries` names its study by, empty if it names none."""
    return query.get("StudyInstanceUID") or query.get("AccessionNumber") or ""


def read_selection(filters: Filters) -> Selection:
    """Return the filters with their list of studies.

    Raises:
        IngestError: the list cannot be read, has neither column, or holds what is no study UID or accession number.
    """
    if filters.since and filters.until and filters.since > filters.until:
        raise IngestError("The filters' first day (since) is after their last (until).")
    if filters.studies_file is None:
        return Selection(filters)
    try:
        with filters.studies_file.open(newline="", encoding="utf-8-sig") as stream:
            uids, accession_numbers = _read_rows(csv.DictReader(stream), filters.studies_file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise IngestError(f"The list of studies {filters.studies_file} cannot be read.") from error
    return Selection(filters, uids, frozenset(accession_numbers))


def _read_rows(rows: "csv.DictReader[str]", path: Path) -> tuple[set[str], set[str]]:
    if not set(_COLUMNS) & set(rows.fieldnames or ()):
        raise IngestError(f"{path} has neither a column study_uid nor accession_number.")
    found: tuple[set[str], set[str]] = (set(), set())
    for number, row in enumerate(rows, 2):
        values = [(row.get(column) or "").strip() for column in _COLUMNS]
        if number > MAX_LISTED_STUDIES:
            raise IngestError(f"{path} lists more than {MAX_LISTED_STUDIES} studies.")
        for column, value, pattern, kept in zip(_COLUMNS, values, (UID, _ACCESSION_NUMBER), found, strict=True):
            if value and not pattern.fullmatch(value):
                raise IngestError(f"{path}, line {number}: {column} is not one.")
            # One name suffices; two would find the study twice.
            if value and not any(values[: _COLUMNS.index(column)]):
                kept.add(value)
    return found


def _folded(names: tuple[str, ...]) -> set[str]:
    return {name.casefold() for name in names}
