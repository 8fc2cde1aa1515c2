"""What the hospital says of its exams: labels from tables, from structured reports and from folders.

Every source is asked, and where two of them, or two rows, disagree there is no label: nobody here can say which is right. Only
labels that stand in ingest.yaml are ever given: a table's column or a folder may well hold names.
"""

import csv
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from echofed.client.ingest.errors import IngestError
from echofed.protocol.document import Document

MAX_TABLE_BYTES = 512 * 2**20
MAX_LABEL_CHARACTERS = 64
_LABEL_SIGNS = frozenset(" _-+.,()/")
_LABEL_RULE = (
    f"at most {MAX_LABEL_CHARACTERS} letters, digits, spaces and _ - + . , ( ) /, and does not begin with + or -"
)


def is_label(text: str) -> bool:
    """Return whether a text can be a label: no spreadsheet takes it for a formula, no page for markup; also if it is empty."""
    is_plain = all(sign in _LABEL_SIGNS or unicodedata.category(sign)[0] in "LMN" for sign in text)
    return is_plain and len(text) <= MAX_LABEL_CHARACTERS and text.lstrip()[:1] not in ("+", "-")


def _check_label(text: str) -> str:
    if not is_label(text):
        raise ValueError(f"a label has {_LABEL_RULE}")
    return text


Label = Annotated[str, AfterValidator(_check_label)]
Verdict = Literal["labelled", "no label", "contradiction"]


class LabelTable(Document):
    """A CSV with one row an exam, or a patient; its most exact column decides: exam, then accession number, then patient."""

    file: Path = Field(description="CSV in UTF-8; comma, semicolon or tab.")
    label: str = Field(default="label", description="column of the label.")
    exam: str | None = Field(default=None, description="column of the study instance UID.")
    accession: str | None = Field(default=None, description="column of the accession number.")
    patient: str | None = Field(default=None, description="column of the patient id.")
    labels: dict[str, Label] = Field(min_length=1, description="text in the table: label; others say nothing.")


class ReportRule(Document):
    """What one item of a structured report says."""

    concept: str = Field(min_length=1, description="code or meaning of the item's concept name.")
    labels: dict[str, Label] = Field(
        min_length=1, description="code, meaning or whole text of the item's value: label."
    )


class FolderRule(Document):
    """A folder's name says the label of all below it."""

    level: int = Field(default=1, ge=1, le=32, description="1: the folder a file lies in; 2: the one above it.")
    labels: dict[str, Label] = Field(min_length=1, description="folder's name: label; others say nothing.")


class LabelSettings(Document):
    """Where labels come from."""

    tables: tuple[LabelTable, ...] = ()
    reports: tuple[ReportRule, ...] = ()
    folder: FolderRule | None = None


@dataclass(frozen=True)
class LabelRow:
    """One statement of one source; what it does not say is empty.

    Args:
        label: said of the exam or patient; empty if the source names none that counts.
        exam: study instance UID.
        accession: accession number.
        patient: patient id.
    """

    label: str
    exam: str = ""
    accession: str = ""
    patient: str = ""


@dataclass(frozen=True)
class Found:
    """What the sources say of one file.

    Args:
        label: None without one.
        verdict: how it came to that.
        rows: numbers of the rows that speak of it.
    """

    label: str | None
    verdict: Verdict
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Labels:
    """All labels a hospital gives; made by `read_labels` and `with_rows`.

    Args:
        rows: of all tables and reports.
        folder: the rule for folders, if there is one.
    """

    rows: tuple[LabelRow, ...] = ()
    folder: FolderRule | None = None
    _by_key: Mapping[tuple[str, str], Sequence[int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the rows by their most exact key."""
        by_key: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for number, row in enumerate(self.rows):
            if key := next((key for key in _keys(row.exam, row.accession, row.patient) if key[1]), None):
                by_key[key].append(number)
        object.__setattr__(self, "_by_key", dict(by_key))

    def label_of(self, exam_uid: str, accession: str, patient_id: str, source_path: str = "") -> str | None:
        """Return the label of a file; None if nothing is said of it, or not the same by all. Arguments as for `find`."""
        return self.find(exam_uid, accession, patient_id, source_path).label

    def find(self, exam_uid: str, accession: str, patient_id: str, source_path: str = "") -> Found:
        """Return what the sources say of a file.

        A row that names the exam but another accession number or patient contradicts.

        Args:
            exam_uid: study instance UID.
            accession: accession number; empty if there is none.
            patient_id: as in the file.
            source_path: where it was found, folders separated by slashes; empty if it came from a PACS.
        """
        asked = LabelRow("", *(clean(text) for text in (exam_uid, accession, patient_id)))
        keys = [key for key in _keys(asked.exam, asked.accession, asked.patient) if key[1]]
        numbers = tuple(sorted(number for key in keys for number in self._by_key.get(key, ())))
        labels = {self.rows[number].label for number in numbers} - {""}
        if self.folder is not None and (named := _folder_label(source_path, self.folder)):
            labels.add(named)
        if len(labels) > 1 or any(_differ(self.rows[number], asked) for number in numbers):
            return Found(None, "contradiction", numbers)
        return Found(labels.pop(), "labelled", numbers) if labels else Found(None, "no label", numbers)

    def with_rows(self, rows: Iterable[LabelRow]) -> "Labels":
        """Return these labels and more, as from a report that came with the images."""
        return Labels((*self.rows, *rows), self.folder)


@dataclass(frozen=True)
class LabelCounts:
    """How labels and exams met; no label, exam or patient is named.

    Args:
        exams: asked for.
        labelled, unlabelled, contradictory: of them.
        rows: of all sources.
        unused_rows: rows with a label that spoke of no exam.
        rows_without_label: rows whose label is empty or not one that counts.
    """

    exams: int
    labelled: int
    unlabelled: int
    contradictory: int
    rows: int
    unused_rows: int
    rows_without_label: int


def count_labels(labels: Labels, found: Iterable[tuple[str, Found]]) -> LabelCounts:
    """Count how labels and exams met.

    An exam whose files were given different labels, as by different folders, is a contradiction.

    Args:
        labels: what was asked.
        found: for each file its exam, by any name, and what was found.
    """
    of_exam: defaultdict[str, set[str]] = defaultdict(set)
    contradictory: set[str] = set()
    used: set[int] = set()
    for exam, one in found:
        of_exam[exam].update({one.label} if one.label else ())
        used.update(one.rows)
        if one.verdict == "contradiction" or len(of_exam[exam]) > 1:
            contradictory.add(exam)
    labelled = sum(bool(given) and exam not in contradictory for exam, given in of_exam.items())
    spoken = [number for number, row in enumerate(labels.rows) if row.label]
    return LabelCounts(
        exams=len(of_exam),
        labelled=labelled,
        unlabelled=len(of_exam) - labelled - len(contradictory),
        contradictory=len(contradictory),
        rows=len(labels.rows),
        unused_rows=sum(number not in used for number in spoken),
        rows_without_label=len(labels.rows) - len(spoken),
    )


def agreed_labels(found: Iterable[tuple[str, Found]]) -> dict[str, str]:
    """Return the label of each exam that has one and no contradiction among its files; arguments as for `count_labels`."""
    given: defaultdict[str, set[str | None]] = defaultdict(set)
    for exam, one in found:
        if one.verdict != "no label":
            given[exam].add(one.label)
    return {exam: label for exam, (label, *others) in given.items() if label and not others}


def read_labels(settings: LabelSettings, folder: Path) -> Labels:
    """Return the labels of all tables; those of reports come with `with_rows`.

    Args:
        settings: where they come from.
        folder: what relative paths start from.

    Raises:
        IngestError: a table cannot be read, is not UTF-8 or CSV, or lacks a column; nothing that stands in its cells is told.
    """
    rows = [row for table in settings.tables for row in _table_rows(table, folder / table.file)]
    return Labels(tuple(rows), settings.folder)


def configured_labels(settings: LabelSettings) -> frozenset[str]:
    """Return the labels that the settings themselves name, without regard to case."""
    mappings = [table.labels for table in settings.tables] + [rule.labels for rule in settings.reports]
    mappings += [settings.folder.labels] if settings.folder else []
    return frozenset(clean(label).casefold() for labels in mappings for label in labels.values())


def clean(text: object) -> str:
    """Return a text as labels and ids are compared: stripped, in Unicode's composed form, no padding left."""
    return unicodedata.normalize("NFC", str(text if text is not None else "").replace("\0", " ").strip())


def mapped(text: str, labels: Mapping[str, str]) -> str:
    """Return the label a text stands for, whatever its case; empty if it stands for none."""
    wanted = text.casefold()
    return next((label for written, label in labels.items() if clean(written).casefold() == wanted), "")


def _keys(exam: str, accession: str, patient: str) -> Iterator[tuple[str, str]]:
    yield from (("exam", exam), ("accession", accession), ("patient", patient))


def _differ(row: LabelRow, asked: LabelRow) -> bool:
    """Return whether a row and a file name each other's exam, accession number or patient differently."""
    pairs = ((row.exam, asked.exam), (row.accession, asked.accession), (row.patient, asked.patient))
    return any(ours and theirs and ours != theirs for ours, theirs in pairs)


def _folder_label(source_path: str, rule: FolderRule) -> str:
    parts = PurePosixPath(source_path.replace("\\", "/")).parts
    return mapped(clean(parts[-1 - rule.level]), rule.labels) if len(parts) > rule.level else ""


def _table_rows(table: LabelTable, path: Path) -> list[LabelRow]:
    keys = [table.exam, table.accession, table.patient]
    if not any(keys):
        raise IngestError(f"The table {path.name} needs a column for the exam, the accession number or the patient.")
    lines = _lines(path)
    delimiter = max(",;\t", key=lines[0].count)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [clean(text) for text in next(reader)]
        wanted = [table.label, *(key for key in keys if key)]
        if missing := [name for name in wanted if header.count(name) != 1]:
            # If the first line is no header, what stands in it is a patient's.
            raise IngestError(
                f"{path.name} has {len(header)} columns, but not exactly one called {' and one called '.join(missing)}.",
                remedy="Give the table a first line with the names that ingest.yaml gives the columns, or correct those.",
            )
        places = [header.index(key) if key else None for key in keys]
        return [
            _row(texts, header.index(table.label), places, table.labels)
            for texts in reader
            if any(text.strip() for text in texts)
        ]
    except csv.Error as error:
        raise IngestError(f"{path.name}, line {reader.line_num}: {error}.", remedy="Correct that line.") from error


def _row(texts: list[str], label: int, places: list[int | None], labels: Mapping[str, str]) -> LabelRow:
    values = [clean(text) for text in texts]

    def at(place: int | None) -> str:
        return values[place] if place is not None and place < len(values) else ""

    return LabelRow(mapped(at(label), labels), *(at(place) for place in places))


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise IngestError(f"{path.name} is too large to be a table of labels.")
        content = path.read_bytes()
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise IngestError(f"The table {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise IngestError(f"{path.name} is not UTF-8.", remedy="Save it as CSV in UTF-8.") from error
    if not text.strip():
        raise IngestError(f"{path.name} is empty.")
    return text.splitlines(keepends=True)
