"""The last search: what an ingest has stored, for every identifying text of every header it has read.

Each instance was searched for its own texts before it was stored (`instance.refuse_leaks`), so that holds whenever an ingest is
killed; here all are searched for those of all others, and so are the index and the reports.
"""

from collections.abc import Iterable
from pathlib import Path

from echofed.client.ingest.decisions import remove_frames
from echofed.client.ingest.errors import LeakError
from echofed.client.ingest.forget import INDEX_FILE
from echofed.client.ingest.frame_store import FRAMES_FOLDER
from echofed.client.ingest.instance import DICOM_FOLDER, RECEIVED_FOLDER, REVIEW_FOLDER, SPOOL_FOLDER
from echofed.client.ingest.journal import Entry, Journal
from echofed.client.ingest.leaks import Search, find_leaks
from echofed.client.ingest.outcomes import Verdict, Why
from echofed.client.ingest.pseudonyms import KEY_FILE
from echofed.client.ingest.settings import FILE_NAME

WITHHELD_FILE = "WITHHELD"
_UNSEARCHED = (FRAMES_FOLDER, DICOM_FOLDER, SPOOL_FOLDER, RECEIVED_FOLDER, REVIEW_FOLDER, KEY_FILE, FILE_NAME)
"""Raw files, and images that wait for a person, may hold names: nobody but that person is to see them. `ingest.yaml` is the
hospital's own. Of frames and copies only what this ingest stored is searched."""


def check_not_withheld(folder: Path) -> None:
    """Raise LeakError if an earlier search found something in the folder that nobody has dealt with."""
    if (folder / WITHHELD_FILE).exists():
        raise LeakError(
            f"An earlier ingest found a text that may identify a patient: see {folder / WITHHELD_FILE}.",
            f"Correct what it names, delete {folder / WITHHELD_FILE}, then ingest again.",
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
    leaky = {owners[leak.path].instance for leak in find_leaks(owners, Search(texts))} if owners and texts else set()
    for instance in sorted(leaky):
        entry = journal.find(instance)
        if entry is not None and entry.verdict is Verdict.ACCEPTED:
            remove_frames(folder, entry)
            (folder / DICOM_FOLDER / f"{instance}.dcm").unlink(missing_ok=True)
            journal.decide(entry, Verdict.QUARANTINED, Why.IDENTIFIER_LEFT)
    return len(leaky)


def search_shared(folder: Path, texts: set[str]) -> None:
    """Search the journal, the index, the reports and whatever else lies in the ingest's folder.

    Args:
        folder: of the ingest.
        texts: to search for.

    Raises:
        LeakError: a text was found, and the index is gone: nothing can be registered until a person has seen to it.
    """
    paths = [path for path in folder.iterdir() if path.name not in _UNSEARCHED and not path.name.startswith(".")]
    leaks = find_leaks(paths, Search(texts)) if texts else []
    if not leaks:
        return
    names = ", ".join(sorted({leak.path.name for leak in leaks})[:5])
    (folder / WITHHELD_FILE).write_text(f"A text that may identify a patient was found in {names}.\n")
    (folder / INDEX_FILE).unlink(missing_ok=True)
    raise LeakError(
        f"A text that may identify a patient was found in {names}; the index is withheld.",
        f"Correct what puts it there (such as a table of labels), delete {folder / WITHHELD_FILE}, then ingest again;"
        " or report it to whoever maintains EchoFed.",
    )


def _files_of(folder: Path, entry: Entry) -> list[Path]:
    return [folder / str(frame["file"]) for frame in entry.frames] + [folder / DICOM_FOLDER / f"{entry.instance}.dcm"]
