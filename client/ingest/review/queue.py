"""The instances that wait for a person, what was decided on them, and what is yet to be done about it.

A case is a folder that appears whole and disappears whole: `case.json`, the frames (`frames.npy`), the raw file
(`raw.dcm`), later `decision.json`, and `taken.json` in its place once the pipeline acts on it. All of it may show names:
only its owner can read it.
"""

import contextlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from echofed.client.ingest.errors import FrameStoreError, IngestError
from echofed.client.ingest.geometry import Box
from echofed.client.ingest.review.case import NAME, Case, Decision
from echofed.protocol.key_files import write_private_file
from echofed.protocol.state_folder import locked, read_limited

_ABANDONED_SECONDS = 24 * 3600
_CASE, _FRAMES, _RAW = "case.json", "frames.npy", "raw.dcm"
_DECISION, _TAKEN = "decision.json", "taken.json"
_IS_NAME = re.compile(NAME)


def put_case(folder: Path, case: Case, frames: NDArray[np.uint8], raw: Path | None) -> None:
    """Let an instance wait for a person; all of it is on disk on return, or nothing.

    The same instance again replaces the case that waits, and leaves one that was decided on.

    Args:
        folder: of the queue; made if there is none.
        case: what is known of it.
        frames: picked and cropped to the region, uint8 [frames, rows, columns].
        raw: the file it came from; stays where it is and must not be written to any more.

    Raises:
        IngestError: the frames are not what the case says.
        OSError: the disk is full or the folder cannot be written.
    """
    wanted = (case.frames, case.region.height, case.region.width)
    if frames.dtype != np.uint8 or frames.shape != wanted:
        raise IngestError(f"The frames to review are {frames.dtype} {frames.shape}, not uint8 {wanted}.")
    if not all(_fits(box, case) for box in case.writing):
        raise IngestError("Writing was found outside the region to review.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Two files may hold the same instance, and two processes read them at the same time.
    part = folder / f".{case.instance}.{os.getpid()}-{threading.get_ident()}.part"
    whole = folder / case.instance
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed and had the same number
    part.mkdir(mode=0o700)
    try:
        if raw is not None:
            _keep_raw(raw, part / _RAW)
        _write_frames(part / _FRAMES, frames)
        write_private_file(part / _CASE, case.model_dump_json().encode())
        with locked(folder):
            if not _is_decided(whole):
                _remove(whole)
                part.rename(whole)
                _sync(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def cases(folder: Path) -> list[Case]:
    """Return the cases that wait for a decision: those of one device and layout together, then by exam.

    Raises:
        FrameStoreError: a case is damaged.
    """
    if not folder.is_dir():
        return []
    with locked(folder):
        waiting = [_read_case(path) for path in _folders(folder) if not _is_decided(path)]
    return sorted(waiting, key=lambda case: (case.device, case.layout_key, case.exam, case.instance))


def all_cases(folder: Path) -> list[Case]:
    """Return all cases, decided on or not, by instance.

    Raises:
        FrameStoreError: a case is damaged.
    """
    if not folder.is_dir():
        return []
    with locked(folder):
        return [_read_case(path) for path in _folders(folder)]


def case_of(folder: Path, instance: str) -> Case:
    """Return one case, decided or not.

    Raises:
        IngestError: there is none.
        FrameStoreError: it is damaged.
    """
    return _read_case(_folder_of(folder, instance))


def is_undecided(folder: Path, instance: str) -> bool:
    """Return whether there is a case of an instance, and nobody has decided on it."""
    return (folder / instance).is_dir() and not _is_decided(folder / instance)


def frames_of(folder: Path, instance: str) -> NDArray[np.uint8]:
    """Return a case's frames, uint8 [frames, rows, columns], memory-mapped and read-only.

    Raises:
        IngestError: there is no such case.
        FrameStoreError: they are damaged.
    """
    path = _folder_of(folder, instance) / _FRAMES
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FrameStoreError(f"{path} is damaged.") from error
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 3:
        raise FrameStoreError(f"{path} holds no frames.")
    return frames


def raw_of(folder: Path, instance: str) -> Path | None:
    """Return the file a case came from, if it was kept.

    Raises:
        IngestError: there is no such case.
    """
    path = _folder_of(folder, instance) / _RAW
    return path if path.exists() else None


def decide(folder: Path, decision: Decision) -> None:
    """Keep a decision; it is on disk on return. The same decision again changes nothing.

    Raises:
        IngestError: there is no such case, a box lies outside its region, or something else was decided on it before.
        OSError: it cannot be written.
    """
    with _changing(folder):
        path = _folder_of(folder, decision.instance)
        if not all(_fits(box, _read_case(path)) for box in decision.boxes):
            raise IngestError("A mask reaches beyond the image.", "Draw it inside.")
        if (before := _read_decision(path)) is not None:
            if before.same_as(decision):
                return
            said = f"{before.by} decided otherwise on this image at {before.decided_at}."
            raise IngestError(said, "Undo that decision first.")
        write_private_file(path / _DECISION, decision.model_dump_json().encode())


def undo(folder: Path, instance: str) -> Case:
    """Take a decision back and return the case, which waits again; of one without decision nothing changes.

    Raises:
        IngestError: there is no such case (any more), or the pipeline has begun to act on the decision.
    """
    with _changing(folder):
        path = _folder_of(folder, instance)
        if (path / _TAKEN).exists():
            raise IngestError("This decision is being carried out.", "`echofed site forget` takes a patient out again.")
        (path / _DECISION).unlink(missing_ok=True)
        _sync(path)
        return _read_case(path)


def undoable(folder: Path) -> list[Decision]:
    """Return the decisions that can be taken back, the last one last.

    Raises:
        FrameStoreError: one is damaged.
    """
    if not folder.is_dir():
        return []
    with locked(folder):
        paths = [path for path in _folders(folder) if (path / _DECISION).exists()]
        paths.sort(key=lambda path: (path / _DECISION).stat().st_mtime_ns)
        return [decision for path in paths if (decision := _read_decision(path)) is not None]


def decided(folder: Path) -> list[tuple[Case, Decision]]:
    """Return what is to be acted on, for the pipeline alone; from then on none of it can be taken back.

    What was returned and not removed, as after a crash, is returned again.

    Raises:
        FrameStoreError: a case or a decision is damaged.
    """
    if not folder.is_dir():
        return []
    with locked(folder):
        _sweep(folder)
        paths = list(_folders(folder))
        found = [(_read_case(path), decision) for path in paths if (decision := _read_decision(path)) is not None]
        for case, _ in found:
            path = folder / case.instance
            if (path / _DECISION).exists():
                (path / _DECISION).replace(path / _TAKEN)
                _sync(path)
        return found


def remove_case(folder: Path, instance: str) -> None:
    """Remove a case with its frames and its raw file; one that is not there is no error.

    Raises:
        IngestError: it is not a pseudonym.
        OSError: it cannot be removed.
    """
    if not _IS_NAME.fullmatch(instance):
        raise IngestError("There is no such image in the queue.")
    if folder.is_dir():
        with locked(folder):
            _remove(folder / instance)
            _sync(folder)


def _fits(box: Box, case: Case) -> bool:
    return box.bottom <= case.region.height and box.right <= case.region.width


def _sweep(folder: Path) -> None:
    """Remove what killed processes left of cases that were being put or removed."""
    for gone in folder.glob(".*.gone"):
        shutil.rmtree(gone)
    for part in folder.glob(".*.part"):
        if time.time() - part.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(part)


def _is_decided(path: Path) -> bool:
    return (path / _DECISION).exists() or (path / _TAKEN).exists()


def _folders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if _IS_NAME.fullmatch(entry.name) and entry.is_dir())
        yield from (folder / name for name in names)


def _folder_of(folder: Path, instance: str) -> Path:
    if not _IS_NAME.fullmatch(instance) or not (folder / instance).is_dir():
        raise IngestError("There is no such image in the queue.", "Load the page again.")
    return folder / instance


def _read_case(path: Path) -> Case:
    try:
        case = Case.model_validate_json(read_limited(path / _CASE))
    except (OSError, ValidationError) as error:
        raise FrameStoreError(f"{path / _CASE} is damaged.", "Remove that folder and ingest the exam again.") from error
    if case.instance != path.name:
        raise FrameStoreError(f"{path / _CASE} belongs to another image.")
    return case


def _read_decision(path: Path) -> Decision | None:
    for name in (_TAKEN, _DECISION):
        try:
            decision = Decision.model_validate_json(read_limited(path / name))
        except FileNotFoundError:
            continue
        except (OSError, ValidationError) as error:
            raise FrameStoreError(f"{path / name} is damaged.", "Remove that file and decide again.") from error
        if decision.instance != path.name:
            raise FrameStoreError(f"{path / name} belongs to another image.", "Remove that file and decide again.")
        return decision
    return None


def _changing(folder: Path) -> contextlib.AbstractContextManager[None]:
    if not folder.is_dir():
        raise IngestError(f"There is no queue in {folder}.", "Ingest some exams first.")
    return locked(folder)


def _write_frames(path: Path, frames: NDArray[np.uint8]) -> None:
    with _private_stream(path) as stream:
        np.lib.format.write_array(stream, np.ascontiguousarray(frames), allow_pickle=False)


@contextlib.contextmanager
def _private_stream(path: Path) -> Iterator[BinaryIO]:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def _keep_raw(raw: Path, path: Path) -> None:
    """Keep a file by a second name, else (another disk, or others may read it) by a copy."""
    if not raw.stat().st_mode & 0o077:
        with contextlib.suppress(OSError):
            path.hardlink_to(raw)
    if path.exists():
        _sync(path)
    else:
        with raw.open("rb") as source, _private_stream(path) as stream:
            shutil.copyfileobj(source, stream)


def _remove(path: Path) -> None:
    """Remove a folder, at once under its name."""
    gone = path.with_name(f".{path.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    if path.exists():
        path.rename(gone)
        shutil.rmtree(gone)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
