"""How names and dates of a header may be spelt elsewhere."""

import itertools
import re
import unicodedata
from collections.abc import Iterator
from datetime import date

from echofed.client.ingest.pseudonyms import clean_id

_DATE_FORMATS = (
    "{y:04}{m:02}{d:02}", "{y:04}-{m:02}-{d:02}", "{y:04}/{m:02}/{d:02}", "{y:04}.{m:02}.{d:02}", "{y:04}-{m}-{d}",
    "{d:02}/{m:02}/{y:04}", "{d:02}.{m:02}.{y:04}", "{d:02}-{m:02}-{y:04}", "{d:02}{m:02}{y:04}", "{d}/{m}/{y}", "{d}.{m}.{y}",
    "{m:02}/{d:02}/{y:04}", "{m:02}-{d:02}-{y:04}", "{m:02}{d:02}{y:04}", "{m}/{d}/{y}",
    "{d:02}/{m:02}/{s:02}", "{d:02}.{m:02}.{s:02}", "{m:02}/{d:02}/{s:02}",
    "{d:02}{m:02}{s:02}", "{s:02}{m:02}{d:02}", "{m:02}{d:02}{s:02}",
    "{d:02} {b} {y}", "{d} {b} {y}", "{d:02}-{b}-{y}", "{d:02}{b}{y}", "{b} {d}, {y}", "{b} {d:02}, {y}",
    "{d} {n} {y}", "{d}. {n} {y}", "{n} {d}, {y}",
)  # fmt: skip
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_DATE = re.compile(r"(\d{4})[.-]?(\d{2})[.-]?(\d{2})", re.ASCII)
_EARLIEST_YEAR, _LATEST_YEAR = 1850, 2150
_GERMAN = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss"})
_PLAIN = str.maketrans(
    {"ß": "ss", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "Ae", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ı": "i"}
)


def parse_date(text: str) -> date | None:
    """Return the day a DICOM date or date-time begins with (also 2024.01.31, as ACR-NEMA wrote it), None if there is none."""
    match = _DATE.match(clean_id(text))
    try:
        found = date(int(match[1]), int(match[2]), int(match[3])) if match else None
    except ValueError:
        return None
    return found if found and _EARLIEST_YEAR <= found.year <= _LATEST_YEAR else None


def date_spellings(day: date) -> frozenset[str]:
    """Return a day as people and programs write it: by year, day or month first, with and without separators, in English."""
    month = _MONTHS[day.month - 1]
    parts = {"y": day.year, "m": day.month, "d": day.day, "s": day.year % 100, "n": month, "b": month[:3]}
    return frozenset(form.format(**parts) for form in _DATE_FORMATS)


def name_parts(name: str) -> tuple[str, ...]:
    """Return the words of a DICOM person name, of all its scripts (`=`) and components (`^`)."""
    return tuple(part for part in re.split(r"[\^=\s,;\\]+", clean_id(name)) if part)


def name_spellings(name: str) -> frozenset[str]:
    """Return a person's name whole, by its parts, and two by two in either order, joined in the usual ways."""
    found = {clean_id(name)}
    for script in clean_id(name).split("="):
        components = [part for part in (clean_id(part) for part in script.split("^")) if part]
        found.update((script.strip("^ "), " ".join(components), *name_parts(script)))
        found.update(components)
        for one, other in itertools.permutations(components[:3], 2):
            found.update(f"{one}{between}{other}" for between in (" ", "^", ", ", ",", "_", "-", ".", ""))
    return frozenset(text for text in found if text)


def without_accents(text: str) -> str:
    """Return a text in plain letters, as typed by who has no accents at hand."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def letter_spellings(text: str) -> Iterator[str]:
    """Yield a text composed, decomposed, without accents and with German umlauts written out."""
    composed = unicodedata.normalize("NFC", text)
    yield from {composed, unicodedata.normalize("NFD", text), without_accents(composed), composed.translate(_GERMAN)}
