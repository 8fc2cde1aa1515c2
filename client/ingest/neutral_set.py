"""What EchoFed writes whoever the patients are: a set of nobody's images, as an ingest stores it, and one without any.

People are called Label, Page or White, and so are columns, tags and colours. A text that is found in a file of this set as well
proves nothing about the file of the same kind in which it was found.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from echofed.client.ingest.equipment import vendor_name
from echofed.client.ingest.geometry import Box, Layout, Region
from echofed.client.ingest.header import Header
from echofed.client.ingest.instance import (
    TEMPLATES_FOLDER,
    Frame,
    Reading,
    case_facts,
    entry_of,
    keep_copy,
    store_frames,
)
from echofed.client.ingest.journal import open_journal
from echofed.client.ingest.leaks import Search, find_leaks
from echofed.client.ingest.outcomes import Verdict, Why
from echofed.client.ingest.picked_frames import Picked
from echofed.client.ingest.pseudonyms import KEY_BYTES, Pseudonyms
from echofed.client.ingest.settings import IngestSettings
from echofed.client.ingest.templates import keep_template
from echofed.client.ingest.training_set import write_training_set

_SIDE_PX = 64
_GREY, _NOISE = 100, 5


def own_texts(search: Search) -> set[tuple[str, str]]:
    """Return which texts are found in which kind of file, by its suffix, of sets that name nobody.

    Args:
        search: for the texts.

    Raises:
        OSError, FrameStoreError, IngestError: the system's temporary folder cannot be written.
    """
    with TemporaryDirectory(prefix="echofed-") as name:
        full, empty = Path(name, "full"), Path(name, "empty")
        full.mkdir()
        empty.mkdir()
        _write(full)
        with open_journal(empty) as journal:
            write_training_set(_reading(empty), journal)
        files = [path for path in Path(name).rglob("*") if path.is_file()]
        return {(leak.path.suffix, leak.text) for leak in find_leaks(files, search)}


def _write(folder: Path) -> None:
    """Store two patients, of whose frames everything is doubtful that can be, and one instance for every reason against it."""
    reading = _reading(folder)
    even = np.random.default_rng(0).normal(_GREY, _NOISE, (_SIDE_PX, _SIDE_PX)).astype(np.uint8)
    nearly = even.copy()
    nearly[0, 0] += 1
    with open_journal(folder) as journal:
        for patient, pixels in (("1", even), ("2", nearly)):
            header, dataset = _header(patient, reading.pseudonyms), Dataset()
            dataset.StudyInstanceUID = dataset.SOPInstanceUID = patient
            frames = [
                Frame(one, 0, number, None)
                for number, one in enumerate((pixels, np.zeros_like(even), np.zeros_like(even)))
            ]
            entry = entry_of(header)
            entry.facts.update(is_frozen=True, **_case_facts(even))
            journal.record(patient, store_frames(folder, entry, frames, None))
            keep_copy(reading, dataset, header, frames)
        for why in Why:
            journal.record_nothing(why, why)
        assert sum(1 for _ in journal.entries(Verdict.ACCEPTED)) == 2
        write_training_set(reading, journal)
    keep_template(folder / TEMPLATES_FOLDER, "0" * 32, np.ones((_SIDE_PX, _SIDE_PX), np.bool_))


def _reading(folder: Path) -> Reading:
    return Reading(folder, IngestSettings(), Pseudonyms(bytes(KEY_BYTES)), None)


def _header(patient: str, pseudonyms: Pseudonyms) -> Header:
    """A header in which hardly anything stands."""
    return Header(
        patient=patient,
        exam=patient,
        instance=patient,
        accession="",
        person="",
        birth="",
        exam_day=None,
        age_band=None,
        vendor=vendor_name("" if patient == "1" else "somebody", pseudonyms),
        model="",
        transducer="",
        transducer_type="",
        rows=_SIDE_PX,
        columns=_SIDE_PX,
        frames=3,
        photometric="",
        lossy=False,
        frame_time_ms=None,
        spacing_mm=None,
    )


def _case_facts(frame: NDArray[np.uint8]) -> dict[str, object]:
    """What the journal holds of an instance that waits for a person."""
    region = Region(Box(0, 0, _SIDE_PX, _SIDE_PX), "tissue")
    return case_facts(Layout((region,), "image"), Picked([frame], [0], (0,)))
