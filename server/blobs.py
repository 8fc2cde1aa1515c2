"""The coordinator's blobs: files of parameters named by their SHA-256, published to all sites or incoming from one.

A blob's name says what is in it, and whoever reads one checks that. So nothing is synced to disk here: what a power cut tears
is found by its hash and written again.
"""

import contextlib
import hashlib
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from echofed.protocol.arrays import sha256_of_file
from echofed.protocol.errors import ArraysError, TooLargeError
from echofed.protocol.parallel_hash import ParallelSha256

PUBLISHED = Path("blobs", "published")
INCOMING = Path("blobs", "incoming")
"""Of the coordinator's folder."""
KEPT_PER_SITE = 2
MAX_REMEMBERED = 1024
SPARE_BYTES = 2**28
"""That incoming blobs leave free on the disk, so that the audit log and the checkpoints can still be written."""

_NAME = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """The blobs in a coordinator's folder; several processes may use it at once.

    Args:
        folder: the coordinator's.
        kept_per_site: incoming blobs of a site; when one more is whole the oldest goes.
    """

    def __init__(self, folder: Path, kept_per_site: int = KEPT_PER_SITE) -> None:
        self._published, self._incoming = folder / PUBLISHED, folder / INCOMING
        self._kept_per_site = kept_per_site
        self._promised = Counter[str]()
        self._lock = threading.Lock()
        self._whole: dict[tuple[str, str], tuple[int, int, int]] = {}
        for made in (self._published.parent, self._published, self._incoming):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)

    def published(self, name: str) -> Path:
        """Return where a published blob is, or would be.

        Raises:
            ArraysError: it is not the name of a blob.
        """
        return self._published / _checked(name)

    def incoming(self, site: str, name: str) -> Path:
        """Return where a site's blob is, or would be; raises as `published`."""
        return self._incoming / site / _checked(name)

    def publish(self, content: bytes) -> str:
        """Make a blob available to all sites and return its name."""
        name = hashlib.sha256(content).hexdigest()
        path = self.published(name)
        if not _is_whole(path, name, len(content)):
            _write(path, [memoryview(content)], name)
        return name

    def keep_published(self, names: Collection[str]) -> None:
        """Remove every published blob but these."""
        for path in self._published.iterdir():
            if _NAME.fullmatch(path.name) and path.name not in names:
                path.unlink(missing_ok=True)

    def has_incoming(self, site: str, name: str, size: int) -> bool:
        """Return whether a site's blob is there and whole; its bytes are read, once while its file stays as it is."""
        path = self.incoming(site, name)
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if status.st_size == size and self._whole.get((site, name)) == stamp:
            return True
        if not _is_whole(path, name, size):
            return False
        if len(self._whole) >= MAX_REMEMBERED:
            self._whole.clear()
        self._whole[site, name] = stamp
        return True

    def take(self, site: str, name: str, size: int) -> bytes | None:
        """Return a site's blob and remove its file; None if it is not there whole, then nothing is removed."""
        try:
            with self.incoming(site, name).open("rb") as stream:
                content = stream.read(size) if os.fstat(stream.fileno()).st_size == size else b""
        except FileNotFoundError:
            return None
        if len(content) != size or hashlib.sha256(content).hexdigest() != name:
            return None
        self.drop_incoming(site, name)
        return content

    def receive(self, site: str, name: str, size: int, pieces: Iterable[memoryview]) -> None:
        """Write a site's blob as it arrives; it is there when all of it is and fits its name, and not before.

        Args:
            site: an enrolled one's name.
            name: SHA-256 of the whole.
            size: bytes that `pieces` have.
            pieces: the content, each piece unchanged until the next but one is asked for; may raise, then nothing stays.

        Raises:
            ArraysError: the content is not what the name says.
            TooLargeError: the disk has no room for it, whatever is on its way counted in, even without the blobs of
                the sites that would hold more than this one.
            OSError: it cannot be written.
        """
        path = self.incoming(site, name)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with self._room(site, size) as written:
            _write(path, _counted(pieces, written), name)
        self._drop_oldest(path.parent)

    def drop_incoming(self, site: str, name: str) -> None:
        """Remove a site's blob, if it is there."""
        self.incoming(site, name).unlink(missing_ok=True)

    def sites(self) -> list[str]:
        """Return the names of sites that have sent blobs, sorted."""
        return sorted(folder.name for folder in self._incoming.iterdir())

    def drop_site(self, site: str) -> None:
        """Remove all that a site has sent; what it is sending stays."""
        for _, path in _blobs_in(self._incoming / site):
            path.unlink(missing_ok=True)

    def remove_parts(self) -> None:
        """Remove what a killed process was receiving; to be called before any is received."""
        for part in self._incoming.glob("*/*.part"):
            part.unlink(missing_ok=True)

    def _drop_oldest(self, folder: Path) -> None:
        for _, path in _blobs_in(folder)[: -self._kept_per_site]:
            path.unlink(missing_ok=True)

    @contextmanager
    def _room(self, site: str, size: int) -> Iterator[Callable[[int], None]]:
        """Promise a site room for a blob, less what is said to be written of it; raises as `receive`."""
        left = size

        def written(count: int) -> None:
            nonlocal left
            with self._lock:
                left -= count
                self._promised[site] -= count

        with self._lock:
            self._make_room(site, size)
            self._promised[site] += size
        try:
            yield written
        finally:
            written(left)

    def _make_room(self, site: str, size: int) -> None:
        """Remove the oldest blobs of the site that holds most until another fits, but of none that holds less than `site`."""
        while shutil.disk_usage(self._incoming).free < self._promised.total() + size + SPARE_BYTES:
            held = self._held() + Counter({site: size})
            most = max(held, key=lambda one: (held[one], one == site))
            whole = _blobs_in(self._incoming / most)
            if not whole:
                raise TooLargeError(
                    "The coordinator's disk is nearly full.", "Ask the coordinator to free some disk space."
                )
            whole[0][1].unlink(missing_ok=True)

    def _held(self) -> Counter[str]:
        """Return the bytes of each site on disk, with those promised to it."""
        held = Counter(self._promised)
        for site in self.sites():
            for path in (self._incoming / site).iterdir():
                with contextlib.suppress(FileNotFoundError):
                    held[site] += path.stat().st_size
        return held


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ArraysError(
            "A blob is named by 64 hexadecimal digits, in lower case.", "Name it by the SHA-256 of its content."
        )
    return name


def _is_whole(path: Path, name: str, size: int) -> bool:
    try:
        return path.stat().st_size == size and sha256_of_file(path) == name
    except FileNotFoundError:
        return False


def _blobs_in(folder: Path) -> list[tuple[int, Path]]:
    """Return a site's whole blobs, each with when it came, the oldest first."""
    whole = []
    for path in folder.iterdir() if folder.exists() else ():
        with contextlib.suppress(FileNotFoundError):
            if _NAME.fullmatch(path.name):
                whole.append((path.stat().st_mtime_ns, path))
    return sorted(whole)


def _counted(pieces: Iterable[memoryview], written: Callable[[int], None]) -> Iterator[memoryview]:
    for piece in pieces:
        yield piece
        written(len(piece))  # the next is asked for when this one is on the disk


def _write(path: Path, pieces: Iterable[memoryview], name: str) -> None:
    part = path.with_name(f"{name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0), ParallelSha256() as digest:
            for piece in pieces:
                digest.update(piece)
                _write_all(descriptor, piece)
            found = digest.hexdigest()
        if found != name:
            raise ArraysError("The content is not what the blob's name says.", "Send the file again.")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_all(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]
