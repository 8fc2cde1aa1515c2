"""Reading a site's index: one CSV row an image."""

import csv
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from echofed.client.settings import Columns, SiteSettings
from echofed.protocol.errors import RegistrationError

_OPTIONAL = ("exam", "mask", "label")


@dataclass(frozen=True)
class IndexRow:
    """One row of the index, its texts stripped and in Unicode's composed form.

    Args:
        file, patient, exam, mask, label: as in the row; empty if the row or the index has none.
        values: every column by name except file and patient, for findings and measured values.
        malformed: whether the row has another number of columns than the header.
    """

    file: str
    patient: str
    exam: str
    mask: str
    label: str
    values: dict[str, str]
    malformed: bool = False


def read_index(settings: SiteSettings) -> list[IndexRow]:
    """Return the rows of a site's index.

    Comma, semicolon and tab are recognised as delimiters, and a byte-order mark is ignored. Empty lines are skipped.

    Raises:
        RegistrationError: the index is missing, not UTF-8, empty or broken CSV, or lacks a column.
    """
    if not settings.data_folder.is_dir():
        raise RegistrationError(f"There is no data folder {settings.data_folder}.")
    lines = _read_text(settings).splitlines(keepends=True)
    name = settings.index_path.name
    if not lines:
        raise RegistrationError(f"{name} is empty.")
    delimiter = max(",;\t", key=lines[0].count)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [_clean(text) for text in next(reader)]
        names = _find_columns(settings.columns, header, name)
        rows = [_row(row, header, names) for row in _filled(reader)]
    except csv.Error as error:
        raise RegistrationError(f"{name}, line {reader.line_num}: {error}.", remedy="Correct that line.") from error
    if not rows:
        raise RegistrationError(f"{name} has a header and no rows.")
    return rows


def _read_text(settings: SiteSettings) -> str:
    path = settings.index_path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RegistrationError(f"The index {path} cannot be read: {error.strerror}.") from error
    try:
        # Excel's "Unicode text" is UTF-16, and says so in its first two bytes.
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RegistrationError(
            f"{path.name}, line {line}: not UTF-8.", remedy="Save the index as CSV in UTF-8."
        ) from error


def _filled(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    return (row for row in reader if any(text.strip() for text in row))


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def _find_columns(columns: Columns, header: list[str], name: str) -> dict[str, str]:
    """Return the index's column for each of our words; a word without a column is left out."""
    if twice := sorted({text for text in header if text and header.count(text) > 1}):
        raise RegistrationError(f"{name} has two columns called {', '.join(twice)}.", remedy="Rename one.")
    wanted = {"file": columns.file, "patient": columns.patient}
    for word in _OPTIONAL:
        column = getattr(columns, word)
        if column is not None and (column in header or word in columns.model_fields_set):
            wanted[word] = column
    missing = [column for column in [*wanted.values(), *columns.findings.values()] if column not in header]
    if missing:
        found = ", ".join(header[:50])
        raise RegistrationError(
            f"{name} has no column {', '.join(missing)}; its columns are: {found}.",
            remedy="Write the columns' names in the site's settings.",
        )
    return wanted


def _row(texts: list[str], header: list[str], names: dict[str, str]) -> IndexRow:
    if len(texts) != len(header):
        return IndexRow("", "", "", "", "", {}, malformed=True)
    values = dict(zip(header, map(_clean, texts), strict=True))
    known = {word: values[column] for word, column in names.items()}
    del values[names["file"]], values[names["patient"]]
    return IndexRow(
        file=known["file"].replace("\\", "/"),
        patient=known["patient"],
        exam=known.get("exam", ""),
        mask=known.get("mask", "").replace("\\", "/"),
        label=known.get("label", ""),
        values=values,
    )
