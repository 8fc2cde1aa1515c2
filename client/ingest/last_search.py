"""The last search: what an ingest has stored, for every identifying text of every header it has read.

Each instance was searched for its own texts before it was stored (`instance.refuse_leaks`), so that holds whenever an ingest is
killed; here all are searched for those of all others, and so are the index and the reports.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from echofed.client.ingest.decisions import remove_frames
from echofed.client.ingest.errors import LeakError
from echofed.client.ingest.forget import INDEX_FILE
from echofed.client.ingest.instance import DICOM_FOLDER, TEMPLATES_FOLDER
from echofed.client.ingest.journal import JOURNAL_FILE, Entry, Journal
from echofed.client.ingest.leaks import Leak, Search, find_leaks
from echofed.client.ingest.neutral_set import own_texts
from echofed.client.ingest.outcomes import Verdict, Why
from echofed.client.ingest.training_set import QUALITY_JSON, QUALITY_PAGE
from echofed.protocol.durable import replace_file

WITHHELD_FILE = "WITHHELD"
_SHARED = (INDEX_FILE, QUALITY_PAGE, QUALITY_JSON, JOURNAL_FILE, TEMPLATES_FOLDER)
"""What an ingest writes of all instances together. Whatever else lies in its folder is the hospital's own (`ingest.yaml`, tables,
keys), or raw files and images that wait for a person, which may hold names."""
_REMEDY = (
    "Somebody may have written there by hand: take it out. Else report it to whoever maintains EchoFed. Then delete {} and "
    "ingest again."
)


def check_not_withheld(folder: Path) -> None:
    """Raise LeakError if an earlier search found something in the folder that nobody has dealt with."""
    if (folder / WITHHELD_FILE).exists():
        raise LeakError(
            f"An earlier ingest found a text that may identify a patient: see {folder / WITHHELD_FILE}.",
            _REMEDY.format(folder / WITHHELD_FILE),
        )


def search_stored(folder: Path, journal: Journal, stored: Iterable[Entry], texts: set[str]) -> int:
    """Quarantine the instances in whose files one of some texts is found, and return how many that were.

    Args:
        folder: of the ingest.
        journal: of that folder.
        stored: instances whose files are searched.
        texts: to search for.

    Raises:
        LeakError: a file cannot be read.
    """
    owners = {path: entry for entry in stored for path in _files_of(folder, entry) if path.exists()}
    leaky = {owners[leak.path].instance for leak in _leaks(owners, texts)}
    for instance in sorted(leaky):
        entry = journal.find(instance)
        if entry is not None and entry.verdict is Verdict.ACCEPTED:
            remove_frames(folder, entry)
            (folder / DICOM_FOLDER / f"{instance}.dcm").unlink(missing_ok=True)
            journal.decide(entry, Verdict.QUARANTINED, Why.IDENTIFIER_LEFT)
    return len(leaky)


def search_shared(folder: Path, texts: set[str]) -> None:
    """Search what the ingest writes of all instances together: journal, index, reports and masks.

    Args:
        folder: of the ingest.
        texts: to search for.

    Raises:
        LeakError: a text was found, and the index is gone: nothing can be registered until a person has seen to it.
    """
    leaks = _leaks([path for name in _SHARED if (path := folder / name).exists()], texts)
    if not leaks:
        return
    names = ", ".join(sorted({leak.path.name for leak in leaks})[:5])
    said = f"A text that may identify a patient was found in {names}.\n"
    replace_file(folder / WITHHELD_FILE, said.encode(), mode=0o600)
    (folder / INDEX_FILE).unlink(missing_ok=True)
    raise LeakError(
        f"A text that may identify a patient was found in {names}; the index is withheld.",
        _REMEDY.format(folder / WITHHELD_FILE),
    )


def _leaks(paths: Collection[Path], texts: set[str]) -> list[Leak]:
    """Return what is found in files, but for what EchoFed writes into such a file whoever the patients are."""
    if not texts or not paths:
        return []
    search = Search(texts)
    found = find_leaks(paths, search)
    own = own_texts(search) if found else set()
    return [leak for leak in found if (leak.path.suffix, leak.text) not in own]


def _files_of(folder: Path, entry: Entry) -> list[Path]:
    return [folder / str(frame["file"]) for frame in entry.frames] + [folder / DICOM_FOLDER / f"{entry.instance}.dcm"]
