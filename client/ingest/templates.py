"""Masks that people drew, remembered for a device and its layout."""

import hashlib
import json
import re
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.geometry import Layout
from echofed.protocol.durable import replace_file

_MAGIC = b"EFMASK1\n"
_MAX_SIDE_PX = 16384
_KEY = re.compile(r"[0-9a-f]{32}")


class Device(Protocol):
    """What of a header names the device and its screen; `header.Header` has it."""

    @property
    def vendor(self) -> str:
        """Maker, empty if unknown."""

    @property
    def model(self) -> str:
        """Model, empty if unknown."""

    @property
    def rows(self) -> int:
        """Height of its frames."""

    @property
    def columns(self) -> int:
        """Width of its frames."""


def layout_key(header: Device, layout: Layout) -> str:
    """Return 32 hexadecimal digits that are the same for the same vendor, model, frame size and regions, and only then.

    Args:
        header: of the instance.
        layout: its regions; those found by image analysis differ a little from exam to exam, and so does their key.
    """
    boxes = [
        [region.kind, region.box.top, region.box.left, region.box.bottom, region.box.right] for region in layout.regions
    ]
    parts = [header.vendor, header.model, header.rows, header.columns, boxes]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def read_template(folder: Path, key: str) -> NDArray[np.bool_] | None:
    """Return the mask kept for a layout, bool [height, width], or None if there is none.

    Raises:
        IngestError: the file is damaged, or the key is none of `layout_key`.
    """
    path = _path(folder, key)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    start = len(_MAGIC) + 40
    digest, body = content[len(_MAGIC) : start], content[start - 8 :]
    if not content.startswith(_MAGIC) or len(content) < start or hashlib.sha256(body).digest() != digest[:32]:
        raise _damaged(path)
    height, width = (int.from_bytes(body[at : at + 4], "big") for at in (0, 4))
    bits = np.frombuffer(body[8:], np.uint8)
    if not (0 < height <= _MAX_SIDE_PX and 0 < width <= _MAX_SIDE_PX) or bits.size != (height * width + 7) // 8:
        raise _damaged(path)
    return np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool)


def keep_template(folder: Path, key: str, mask: NDArray[np.bool_]) -> Path:
    """Keep a mask for a layout, whole or not at all, in place of an older one, and return its file.

    Args:
        folder: made if missing.
        key: of `layout_key`.
        mask: of the whole frame or of its tissue region, as the caller will ask for it; bool [height, width].

    Raises:
        IngestError: the mask is empty of pixels or absurdly large, or the key is none of `layout_key`.
        OSError: the disk is full or the folder cannot be written.
    """
    if mask.ndim != 2 or not mask.size or max(mask.shape) > _MAX_SIDE_PX:
        raise IngestError(
            f"A mask of {mask.shape} pixels cannot be kept.", remedy="Draw the mask on the frame it is meant for."
        )
    path = _path(folder, key)
    body = b"".join(side.to_bytes(4, "big") for side in mask.shape) + np.packbits(mask).tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, _MAGIC + hashlib.sha256(body).digest() + body, mode=0o600)
    return path


def _path(folder: Path, key: str) -> Path:
    if not _KEY.fullmatch(key):
        raise IngestError(f"{key!r} is no key of a layout.")
    return folder / f"{key}.mask"


def _damaged(path: Path) -> IngestError:
    return IngestError(f"The template {path} is damaged.", remedy="Delete it and draw the mask again in a review.")
