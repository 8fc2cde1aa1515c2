"""Instances from a folder or USB export: loose files, what a DICOMDIR announces, zip archives.

Files are copied into the spool before anything reads them; the export itself is only read. Links are never followed: what
they lead to inside the folder is found anyway.
"""

import functools
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.sources import archive, dicomdir
from echofed.client.ingest.sources.arrivals import judge
from echofed.client.ingest.sources.filters import Selection
from echofed.client.ingest.sources.item import Fetched, Missed, Outcome, Reason, SpoolFile, spooling
from echofed.client.ingest.sources.politeness import TransferError
from echofed.client.ingest.sources.run import Job, Run
from echofed.client.ingest.sources.settings import FolderSource

HEAD_BYTES = 2**14
PIECE_BYTES = 2**20
MAX_FILES = 10_000_000
_ZIP = b"PK\3\4"
_FIRST_GROUPS = (b"\x02\0", b"\x08\0")


@dataclass(frozen=True)
class _File:
    """A plain file; `name` is its path relative to the folder."""

    path: Path
    name: str
    values: Mapping[str, str] | None


def fetch_folder(source: FolderSource, selection: Selection, run: Run) -> Iterator[Outcome]:
    """Yield the instances of a folder in the order of their paths; see `fetching.fetch_all`."""
    try:
        root = source.path.resolve(strict=True)
        is_folder = root.is_dir()
    except OSError as error:
        raise SourceError(f"{source.path} cannot be opened: {error.strerror}.", "Check the path.") from error
    if not is_folder and not root.is_file():
        raise SourceError(f"{source.path} is neither a folder nor a file.", "Check the path.")
    yield from run.outcomes(_jobs(root, is_folder, source, selection, run))


def _jobs(root: Path, is_folder: bool, source: FolderSource, selection: Selection, run: Run) -> Iterator[Job | Missed]:
    files, missed = _find_files(root) if is_folder else ([_File(root, root.name, None)], [])
    run.count(units=len(files))
    yield from missed
    for file in files:
        try:
            yield from _file_jobs(file, source, selection, run)
        except OSError:
            yield Missed(file.name, Reason.UNREADABLE)
        run.count(units_done=1)


def _find_files(root: Path) -> tuple[list[_File], list[Missed]]:
    """Return all plain files below a folder, with what a DICOMDIR says of them, and what is missing or leads outside."""
    files: dict[tuple[str, ...], Path] = {}
    missed: list[Missed] = []
    announced: dict[tuple[str, ...], Mapping[str, str]] = {}
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            missed.append(Missed(str(folder.relative_to(root)), Reason.UNREADABLE))
            continue
        for entry in found:
            path = folder / entry.name
            if entry.is_symlink():
                missed += _if_outside(path, root)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif not entry.is_file(follow_symlinks=False):
                missed.append(Missed(str(path.relative_to(root)), Reason.UNREADABLE))
            elif entry.name.upper() == dicomdir.NAME:
                here = path.parent.relative_to(root).parts
                announced |= {(*here, *one.parts): one.values for one in dicomdir.read_announced(path)}
            else:
                files[path.relative_to(root).parts] = path
            if len(files) > MAX_FILES:
                raise SourceError(f"{root} holds more than {MAX_FILES} files.", "Ingest its folders one by one.")
    by_folded_name = {_folded(parts): values for parts, values in announced.items()}
    there = {_folded(parts) for parts in files}
    missed += [Missed("/".join(parts), Reason.ABSENT) for parts in by_folded_name if parts not in there]
    return [
        _File(path, "/".join(parts), by_folded_name.get(_folded(parts))) for parts, path in sorted(files.items())
    ], missed


def _folded(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.casefold() for part in parts)


def _if_outside(link: Path, root: Path) -> list[Missed]:
    try:
        if link.resolve(strict=True).is_relative_to(root):
            return []
    except (OSError, RuntimeError):
        return [Missed(str(link.relative_to(root)), Reason.ABSENT)]
    return [Missed(str(link.relative_to(root)), Reason.OUTSIDE)]


def _file_jobs(file: _File, source: FolderSource, selection: Selection, run: Run) -> Iterator[Job | Missed]:
    values = file.values
    if values is not None and not selection.allows(lambda keyword: values.get(keyword, ""), is_whole=False):
        return
    with _opened(file.path) as stream:
        head, status = stream.read(HEAD_BYTES), os.fstat(stream.fileno())
    # Scanners number their files alike on every medium, and often their size is the same.
    digest = hashlib.sha256(head).hexdigest()[:32]
    key = f"{file.name}|{status.st_size}|{status.st_mtime_ns}|{digest}"
    if head.startswith(_ZIP):
        yield from _archive_jobs(file, key, source, selection, run)
    elif not _looks_like_dicom(head):
        yield Missed(key, Reason.NOT_DICOM)
    elif status.st_size > source.max_file_bytes:
        yield Missed(key, Reason.TOO_LARGE)
    elif run.is_wanted(key):
        take = functools.partial(_copy, file.path, source, run.spool)
        yield functools.partial(_hand_over, take, key, _text(file.name), selection, run)


def _archive_jobs(
    file: _File, key: str, source: FolderSource, selection: Selection, run: Run
) -> Iterator[Job | Missed]:
    content, missed = archive.open_archive(file.path, source, key)
    yield from missed
    for member in content.members if content is not None else ():
        if content is not None and run.is_wanted(content.key_of(member)):
            take = functools.partial(archive.unpack, content, member, source, run.spool)
            # As if it had been unpacked where it lies.
            where = _text(f"{PurePosixPath(file.name).parent / member.filename}")
            yield functools.partial(_hand_over, take, content.key_of(member), where, selection, run)


def _hand_over(take: Callable[[], SpoolFile], key: str, where: str, selection: Selection, run: Run) -> None:
    try:
        file = take()
    except TransferError as error:
        run.emit(Missed(key, error.reason))
        return
    with file.path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if not _looks_like_dicom(head):
        file.path.unlink()
        run.emit(Missed(key, Reason.ARCHIVE_NESTED if head.startswith(_ZIP) else Reason.NOT_DICOM))
        return
    why = judge(file.path, selection, None)
    run.emit(Fetched(file.path, key, file.size_bytes, None, why, source_path=where))


def _text(name: str) -> str:
    """Return a path as text; what is not UTF-8 in it becomes U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _copy(path: Path, source: FolderSource, spool: Path) -> SpoolFile:
    try:
        with _opened(path) as stream, spooling(spool) as file:
            while piece := stream.read(PIECE_BYTES):
                if file.size_bytes + len(piece) > source.max_file_bytes:
                    raise TransferError(Reason.TOO_LARGE, may_pass=False)
                file.write(piece)
    except OSError as error:
        raise TransferError(Reason.UNREADABLE, may_pass=False) from error
    return file


def _opened(path: Path) -> BinaryIO:
    # Neither a link nor a pipe may have taken the file's place meanwhile.
    stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError("not a plain file")
    return stream


def _looks_like_dicom(head: bytes) -> bool:
    """Return whether a file begins as DICOM files do, with a preamble or, as old devices write them, without."""
    return head[128:132] == b"DICM" or (len(head) >= 8 and head[:2] in _FIRST_GROUPS and head[3] == 0)
