"""The directory of an export (DICOMDIR): which files it announces, and what it says of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.filereader import dcmread

from echofed.client.ingest.sources.arrivals import TAGS
from echofed.client.ingest.sources.find import text_of

NAME = "DICOMDIR"
MAX_BYTES = 2**26
MAX_RECORDS = 1_000_000


@dataclass(frozen=True)
class Announced:
    """A file that a directory announces.

    Args:
        parts: of its path relative to the directory's folder, in lower case, as file systems differ.
        values: by DICOM keyword, of its patient, study, series and image records.
    """

    parts: tuple[str, ...]
    values: Mapping[str, str]


def read_announced(path: Path) -> list[Announced]:
    """Return what a DICOMDIR announces; none if it is damaged or too large: the files are found without it."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return []
        directory = dcmread(path, force=True)
        records = {record.seq_item_tell: record for record in directory.DirectoryRecordSequence}
        first = int(directory.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity)
        return list(_walk(records, first))
    except Exception:  # whatever a damaged directory raises
        return []


def _walk(records: Mapping[int, Dataset], first: int) -> Iterator[Announced]:
    """Follow the links between the records, each once: damaged ones may run in circles."""
    waiting: list[tuple[int, Mapping[str, str]]] = [(first, {})]
    seen: set[int] = set()
    while waiting:
        offset, above = waiting.pop()
        record = records.get(offset)
        if record is None or offset in seen or len(seen) >= MAX_RECORDS:
            continue
        seen.add(offset)
        waiting.append((int(record.OffsetOfTheNextDirectoryRecord), above))
        values = {**above, **{keyword: text for keyword in TAGS if (text := text_of(record, keyword))}}
        waiting.append((int(record.OffsetOfReferencedLowerLevelDirectoryEntity), values))
        if (name := record.get("ReferencedFileID")) is not None:
            parts = [name] if isinstance(name, str) else list(name)
            yield Announced(tuple(str(part).casefold() for part in parts), values)
