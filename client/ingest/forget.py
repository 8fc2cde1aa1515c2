"""Removing patients from a site: their frames, what was learned of them, and everything made from their images.

First it is noted that they are forgotten, and from then on nothing of them is registered, trained from or ingested; so a
forgetting that is cut short is finished by asking for it again. What stays: a keyed hash of each (`client/forgotten.py`), a note
beside the ledger, an entry in the audit log, and what models learned before. Blocks that the disk has given up, backups and the
hospital's own files are beyond it.
"""

import csv
import io
import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from echofed.client.erasures import note_erasure
from echofed.client.forgotten import add_forgotten
from echofed.client.ingest.encryption import store_key
from echofed.client.ingest.errors import FrameStoreError, IngestError
from echofed.client.ingest.frame_store import FRAMES_FOLDER, PATIENT, frame_files, read_metadata, remove_parts
from echofed.client.registry import REGISTRY_FILE, locked, open_registry, remove_patients
from echofed.client.settings import Columns
from echofed.protocol import state_folder as folders
from echofed.protocol.audit_log import AUDIT_LOG_PATH, open_existing_log
from echofed.protocol.key_files import write_private_file

INGEST_FOLDER = "ingest"
INDEX_FILE = "index.csv"
LOCK_ROLE = "ingest"
"""Held in the ingest's folder by whoever adds to it or takes from it."""
SEARCHED_LENGTH = 12
"""Shorter ids are found in many files by chance, so no trace of them is looked for."""

Erase = Callable[[frozenset[str]], int]
"""Removes patients from one more place and returns how many things of theirs that were; must bear being called again."""

_CHUNK_BYTES = 2**20
_FRAME_HEAD_BYTES = 2**17


@dataclass(frozen=True)
class Erased:
    """What was removed, in numbers.

    Args:
        patients: asked for.
        frames: files of stored frames.
        index_rows: rows of the ingest's index.
        images: rows of the registry.
        caches: files of resized images and features, of all patients; they are made anew.
        others: what the further places removed.
    """

    patients: int
    frames: int
    index_rows: int
    images: int
    caches: int
    others: int


def _now() -> datetime:
    return datetime.now(UTC)


def forget(
    state_folder: Path, patients: Iterable[str], also: Sequence[Erase] = (), now: Callable[[], datetime] = _now
) -> Erased:
    """Remove patients everywhere in a site's state folder, and see to it that they do not come back.

    Rounds that have begun go on with what they have in memory; later ones are without these patients. A process that runs all
    the while keeps old images mapped until it looks again.

    Args:
        state_folder: of the site; the ingest's folder is `ingest` in it.
        patients: as the index names them: pseudonyms, for what was ingested.
        also: removes them from further places, such as the ingest's journal; called before the frames go.
        now: the clock, UTC.

    Raises:
        IngestError: no patient is named, or something of them is left; what was removed stays removed.
        StateFolderError: an ingest is under way.
        FrameStoreError, RegistrationError, LedgerError, AuditLogError: a part of the state cannot be read or written.
        KeyFileError: the frames are encrypted and the key cannot be had.
    """
    wanted = frozenset(map(_clean, patients))
    if not wanted or "" in wanted:
        raise IngestError("No patient to forget was named.", remedy="Name the patient as the index does.")
    ingest = state_folder / INGEST_FOLDER
    with ExitStack() as held:
        if ingest.is_dir():
            held.enter_context(folders.locked(ingest, LOCK_ROLE))
        tombstones = add_forgotten(state_folder, wanted)
        others = sum(erase(wanted) for erase in also)
        index = _read_index(ingest)
        frames, nobodys = _remove_frames(ingest, wanted, index) if ingest.is_dir() else (0, [])
        rows = index.remove(wanted)
        images = _remove_registered(state_folder, wanted)
        caches = _remove_caches(state_folder)
        _refuse_leftovers(state_folder, wanted, nobodys)
        _note(state_folder, tombstones, now)
    return Erased(len(wanted), frames, rows, images, caches, others)


def traces(folder: Path, texts: Collection[str]) -> Iterator[Path]:
    """Yield the files below a folder that hold one of some texts, in UTF-8 or UTF-16, in their name or their bytes.

    Of stored frames only what is not pixels is read; what is encrypted holds nothing that could be found.
    """
    needles = [needle for text in texts for needle in (text.encode(), text.encode("utf-16-le"))]
    for path in sorted(folder.rglob("*")):
        if any(text in path.name for text in texts):
            yield path
        elif path.is_file() and not path.is_symlink():
            most = _FRAME_HEAD_BYTES if path.parent.parent.name == FRAMES_FOLDER else None
            if _holds(path, needles, most):
                yield path


def _remove_frames(ingest: Path, patients: frozenset[str], index: "_Index") -> tuple[int, list[str]]:
    """Remove frames by the patient written in them or in the index; return how many, and those of which nobody can say whose."""
    remove_parts(ingest)
    key, owners = store_key(ingest), index.owners()
    removed = 0
    nobodys = []
    for path in frame_files(ingest):
        file = path.relative_to(ingest).as_posix()
        listed = owners.get(file)
        try:
            written = read_metadata(path, key).get(PATIENT)
        except FrameStoreError:
            written = listed
        if patients & {listed, written}:
            path.unlink(missing_ok=True)
            removed += 1
        elif written is None:
            nobodys.append(file)
    return removed, nobodys


@dataclass(frozen=True)
class _Index:
    """The ingest's index; empty if there is none yet."""

    path: Path
    header: list[str]
    rows: list[list[str]]

    def owners(self) -> dict[str, str]:
        """Return the patient of each file."""
        file = self.header.index(Columns().file) if self.rows else 0
        return {row[file]: self._patient(row) for row in self.rows if len(row) == len(self.header)}

    def remove(self, patients: Collection[str]) -> int:
        """Remove the rows of patients from the file, and return how many."""
        kept = [row for row in self.rows if self._patient(row) not in patients]
        if len(kept) < len(self.rows):
            content = io.StringIO(newline="")
            csv.writer(content, lineterminator="\n").writerows([self.header, *kept])
            write_private_file(self.path, content.getvalue().encode())
        return len(self.rows) - len(kept)

    def _patient(self, row: list[str]) -> str:
        at = self.header.index(Columns().patient)
        return _clean(row[at]) if at < len(row) else ""


def _read_index(ingest: Path) -> _Index:
    path = ingest / INDEX_FILE
    try:
        header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
    except FileNotFoundError:
        return _Index(path, [], [])
    except (OSError, ValueError, csv.Error) as error:
        raise IngestError(f"{path} cannot be read.", remedy="Ingest again: the index is made anew.") from error
    if missing := {Columns().file, Columns().patient} - set(header):
        raise IngestError(
            f"{path} has no column {', '.join(sorted(missing))}.", remedy="Ingest again: the index is made anew."
        )
    return _Index(path, header, rows)


def _clean(patient: str) -> str:
    return unicodedata.normalize("NFC", patient.strip())


def _remove_registered(state_folder: Path, patients: Collection[str]) -> int:
    if not (state_folder / REGISTRY_FILE).exists():
        return 0
    with locked(state_folder / "registry.lock"), open_registry(state_folder) as database:
        return remove_patients(database, patients)


def _remove_caches(state_folder: Path) -> int:
    caches = [path for path in (state_folder / "cache").glob("*") if path.suffix in (".rows", ".partial")]
    for path in caches:
        path.unlink(missing_ok=True)
    return len(caches)


def _refuse_leftovers(state_folder: Path, patients: Collection[str], nobodys: Sequence[str]) -> None:
    if nobodys:
        raise FrameStoreError(
            f"{len(nobodys)} stored frames cannot be read, and whose they are is not known; the first is {nobodys[0]}.",
            remedy="Remove them, or restore the store's key, then forget again.",
        )
    searched = [patient for patient in patients if len(patient) >= SEARCHED_LENGTH]
    left = [str(path.relative_to(state_folder)) for path in traces(state_folder, searched)] if searched else []
    if left:
        more = ", ..." if len(left) > 5 else ""
        raise IngestError(
            f"Something of the patients is left in {', '.join(left[:5])}{more}.",
            remedy="Take out of those files what they hold of the patients, then forget again.",
        )


def _note(state_folder: Path, tombstones: tuple[str, ...], now: Callable[[], datetime]) -> None:
    erasure = note_erasure(state_folder, len(tombstones), now)
    if (state_folder / AUDIT_LOG_PATH).exists():
        with open_existing_log(state_folder) as log:
            log.append("forgotten", patients=len(tombstones), tombstones=list(tombstones), erasure=erasure.hash)


def _holds(path: Path, needles: Sequence[bytes], most: int | None) -> bool:
    longest = max(map(len, needles))
    read, tail = 0, b""
    try:
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while chunk := stream.read(_CHUNK_BYTES if most is None else min(_CHUNK_BYTES, most - read)):
                read += len(chunk)
                window = tail + chunk
                if any(needle in window for needle in needles):
                    return True
                tail = window[-longest:]
    except FileNotFoundError:  # gone since it was listed
        return False
    except OSError as error:
        raise IngestError(f"{path} cannot be searched: {error.strerror}.") from error
    return False
