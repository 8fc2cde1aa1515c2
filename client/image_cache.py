"""A site's images and masks at the size a study asks for, decoded once; of an encrypted store nothing lies there in clear."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echofed.client.cache import KEY_BYTES, hold_rows, keep_rows, read_rows
from echofed.client.images import DECODING_VERSION, Pixels, read_image, read_mask, resize_image, resize_mask
from echofed.client.ingest.encryption import is_encrypted
from echofed.client.ingest.frame_store import pixel_key, store_folder
from echofed.client.reasons import Reason
from echofed.client.registry import Record
from echofed.protocol.errors import RegistrationError
from echofed.protocol.study import Preprocessing

_ROWS_A_BLOCK = 256
_NO_MASK = bytes(KEY_BYTES)


def cached_images(folder: Path, records: Sequence[Record], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return every image at the study's size, uint8 [records, side, side], memory-mapped and read-only.

    Images seen before at this size are copied from the file there is; only new ones are decoded. Those of an encrypted store
    are decoded once a process and held in memory.

    Raises:
        RegistrationError: a file is no longer what was registered.
        CacheError: the cache cannot be written.
    """

    def decode(record: Record) -> Pixels:
        image = read_image(Path(record.path))
        _check_unchanged(record.file, record.key, image if isinstance(image, Reason) else image.pixels)
        assert not isinstance(image, Reason)
        return resize_image(image.pixels, preprocessing.image_size_px, preprocessing.resize)

    path = _path(folder, "images", preprocessing)
    return _cached(path, records, [record.key for record in records], decode, preprocessing.image_size_px)


def cached_masks(folder: Path, records: Sequence[Record], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return every mask as `cached_images` returns its image: 0 or 1; all 0 where there is no usable mask.

    Raises:
        RegistrationError: a file is no longer what was registered.
        CacheError: the cache cannot be written.
    """
    side = preprocessing.image_size_px

    def decode(record: Record) -> Pixels:
        if record.mask_reason is not None:
            return np.zeros((side, side), np.uint8)
        mask = read_mask(Path(record.mask_path))
        _check_unchanged(record.file, record.mask_key, mask)
        assert not isinstance(mask, Reason)
        return resize_mask(mask, side, preprocessing.resize)

    keys = [_NO_MASK if record.mask_reason else record.mask_key for record in records]
    return _cached(_path(folder, "masks", preprocessing), records, keys, decode, side)


def _path(folder: Path, kind: str, preprocessing: Preprocessing) -> Path:
    return folder / f"{kind}-{preprocessing.image_size_px}-{preprocessing.resize}-v{DECODING_VERSION}.rows"


def _check_unchanged(file: str, key: bytes, pixels: Pixels | Reason) -> None:
    if isinstance(pixels, Reason) or pixel_key(pixels) != key:
        raise RegistrationError(
            f"{file}, or its mask, is not what it was when it was registered.", remedy="Register the data again."
        )


def _cached(
    path: Path, records: Sequence[Record], keys: Sequence[bytes], decode: Callable[[Record], Pixels], side: int
) -> NDArray[np.uint8]:
    def blocks() -> Iterator[NDArray[np.uint8]]:
        known = _known_rows(path)
        for start in range(0, len(records), _ROWS_A_BLOCK):
            block = np.empty((len(records[start : start + _ROWS_A_BLOCK]), side, side), np.uint8)
            for place, record in enumerate(records[start : start + _ROWS_A_BLOCK]):
                row = known.get(keys[start + place])
                block[place] = decode(record) if row is None else row
            yield block

    return (hold_rows if any_encrypted(records) else keep_rows)(path, keys, np.uint8, blocks)


def any_encrypted(records: Sequence[Record]) -> bool:
    """Return whether an image lies in an encrypted store: nothing that shows the site's images may then be kept in clear."""
    folders = {record.path.rsplit("/", 1)[0]: record.path for record in records}
    stores = {store_folder(Path(path)) for path in folders.values()}
    return any(store is not None and is_encrypted(store) for store in stores)


def _known_rows(path: Path) -> dict[bytes, NDArray[np.uint8]]:
    found = read_rows(path)
    if found is None:
        return {}
    keys, rows = found
    return {keys[at * KEY_BYTES : (at + 1) * KEY_BYTES]: row for at, row in enumerate(rows)}
