"""Files in a zip archive, unpacked one at a time with limits; the archive's names never become paths."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from echofed.client.ingest.sources.item import Missed, Reason, SpoolFile, spooling
from echofed.client.ingest.sources.politeness import TransferError
from echofed.client.ingest.sources.settings import FolderSource

PIECE_BYTES = 2**20
FREE_RATIO_BYTES = 2**24
"""A file is not judged by its ratio before it has unpacked to so much: a black frame packs well."""
_DIRECTORY_BYTES_PER_FILE = 512
_ENCRYPTED = 0x1
_END, _END_64, _LOCATOR_64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Archive:
    """An open archive; it is closed when nothing refers to it any more.

    Args:
        content: to read from, in any thread.
        members: files that may be unpacked.
        key: of the archive.
    """

    content: zipfile.ZipFile
    members: tuple[zipfile.ZipInfo, ...]
    key: str

    def key_of(self, member: zipfile.ZipInfo) -> str:
        """Return the key of a file in it; another content has another key."""
        return f"{self.key}!{member.filename}|{member.file_size}|{member.CRC:08x}"


def open_archive(path: Path, source: FolderSource, key: str) -> tuple[Archive | None, list[Missed]]:
    """Return an archive, None if nothing of it may be unpacked, and what may not.

    Args:
        path: of the archive.
        source: the limits.
        key: of the archive.
    """
    try:
        # The list is read into memory, however long it claims to be.
        with path.open("rb") as stream:
            if _directory_bytes(stream) > source.max_archive_files * _DIRECTORY_BYTES_PER_FILE:
                return None, [Missed(key, Reason.ARCHIVE_LIMITS)]
        content = zipfile.ZipFile(path)
    except _DAMAGED:
        return None, [Missed(key, Reason.ARCHIVE_DAMAGED)]
    members = [member for member in content.infolist() if not member.is_dir()]
    if any(member.flag_bits & _ENCRYPTED for member in members):
        return None, [Missed(key, Reason.ARCHIVE_ENCRYPTED, len(members))]
    if len(members) > source.max_archive_files or sum(one.file_size for one in members) > source.max_archive_bytes:
        return None, [Missed(key, Reason.ARCHIVE_LIMITS, len(members))]
    against = [(member, _why_not(member, source)) for member in members]
    archive = Archive(content, tuple(member for member, reason in against if reason is None), key)
    return archive, [Missed(archive.key_of(member), reason) for member, reason in against if reason is not None]


def unpack(archive: Archive, member: zipfile.ZipInfo, source: FolderSource, spool: Path) -> SpoolFile:
    """Return a file of an archive in the spool.

    Raises:
        TransferError: it is damaged or unpacks to more than the limits.
        SourceError: the disk is full.
    """
    with spooling(spool) as file:
        for piece in _pieces(archive.content, member):
            file.write(piece)
            unpacked, packed = file.size_bytes, max(member.compress_size, 1)
            if unpacked > source.max_file_bytes:
                raise TransferError(Reason.TOO_LARGE, may_pass=False)
            if unpacked > FREE_RATIO_BYTES and unpacked > packed * source.max_archive_ratio:
                raise TransferError(Reason.ARCHIVE_LIMITS, may_pass=False)
    return file


def _pieces(content: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    try:
        with content.open(member) as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece
    except _DAMAGED as error:
        raise TransferError(Reason.ARCHIVE_DAMAGED, may_pass=False) from error


def _why_not(member: zipfile.ZipInfo, source: FolderSource) -> Reason | None:
    parts = member.filename.replace("\\", "/").split("/")
    checks: tuple[tuple[Reason, Callable[[], bool]], ...] = (
        (Reason.OUTSIDE, lambda: ".." in parts or not parts[0] or ":" in parts[0]),
        (Reason.OUTSIDE, lambda: stat.S_ISLNK(member.external_attr >> 16)),
        (Reason.ARCHIVE_NESTED, lambda: parts[-1].casefold().endswith((".zip", ".7z", ".rar", ".tar", ".gz"))),
        (Reason.TOO_LARGE, lambda: member.file_size > source.max_file_bytes),
        (Reason.ARCHIVE_LIMITS, lambda: _ratio_exceeded(member, source.max_archive_ratio)),
        (Reason.ARCHIVE_DAMAGED, lambda: member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)),
    )
    return next((reason for reason, applies in checks if applies()), None)


def _ratio_exceeded(member: zipfile.ZipInfo, most: int) -> bool:
    return member.file_size > FREE_RATIO_BYTES and member.file_size > max(member.compress_size, 1) * most


def _directory_bytes(stream: BinaryIO) -> int:
    """Return how long the archive says its list of files is; raises BadZipFile without an end of the list."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - 2**16 - 22 - 20))
    tail = stream.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) < end + 22:
        raise zipfile.BadZipFile
    length = int(struct.unpack_from("<L", tail, end + 12)[0])
    locator = end - 20
    if locator < 0 or tail[locator : locator + 4] != _LOCATOR_64:
        return length
    stream.seek(struct.unpack_from("<Q", tail, locator + 8)[0])
    record = stream.read(56)
    if len(record) < 56 or record[:4] != _END_64:
        raise zipfile.BadZipFile
    return int(struct.unpack_from("<Q", record, 40)[0])
