"""From an image file to grey levels, and to the square the model sees. This is the only place that decodes registered images."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from echofed.client.ingest.errors import FrameStoreError
from echofed.client.ingest.frame_store import SUFFIX, key_of, read_frame
from echofed.client.reasons import Reason

DECODING_VERSION = 2
"""Raised when the same file would give other pixels; facts and caches of another version are made anew."""

_FORMATS = ("PNG", "JPEG")
_ORIENTATION = 0x0112
_SIXTEEN_BIT = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_COLOUR = frozenset({"RGB", "P", "YCbCr", "CMYK"})
_WITH_ALPHA = frozenset({"RGBA", "LA", "PA"})

Resize = Literal["pad", "stretch"]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class GreyImage:
    """A decoded image.

    Args:
        pixels: grey levels, uint8 [height, width].
        converted: what it was made from: "colour", "16-bit" or, if it was 8-bit grey, "".
    """

    pixels: Pixels
    converted: Literal["", "colour", "16-bit"]


def read_image(path: Path) -> GreyImage | Reason:
    """Return the grey levels of a stored frame or of a PNG or JPEG file, or why it has none.

    A frame (`client/ingest/frame_store.py`) is mapped or, in an encrypted store, opened with the store's key.

    Colour is turned into luma (ITU-R 601), transparency laid over black, an EXIF orientation applied. A 16-bit image is
    scaled linearly from the smallest of 8, 10, 12, 14 and 16 bits that holds its largest value, since files rarely say
    how many bits the scanner used. Never raises on a bad file.

    Raises:
        KeyFileError: the file lies in an encrypted store whose key cannot be had; no frame of it could be judged.
    """
    if path.suffix == SUFFIX:
        return _stored_frame(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=_FORMATS) as image:
                return _to_grey(image)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return Reason.TOO_MANY_PIXELS
        except Exception:
            # A damaged file can raise almost anything inside a decoder, and must only cost its own row.
            return Reason.UNREADABLE


def read_mask(path: Path) -> Pixels | Reason:
    """Return a mask file as 0 and 1, uint8 [height, width], or why there is none.

    The structure is what is brighter than half the mask's brightest value, so 0/1, 0/255 and JPEG masks all work.
    """
    grey = read_image(path)
    if isinstance(grey, Reason):
        return grey
    mask: Pixels = (grey.pixels > grey.pixels.max() / 2).astype(np.uint8)
    return mask


def _stored_frame(path: Path) -> GreyImage | Reason:
    key = key_of(path)
    try:
        return GreyImage(read_frame(path, key)[0], "")
    except FrameStoreError:
        return Reason.FRAME_DAMAGED


def _to_grey(image: Image.Image) -> GreyImage | Reason:
    if getattr(image, "n_frames", 1) > 1:
        return Reason.SEVERAL_FRAMES
    transparent = image.mode in _WITH_ALPHA or "transparency" in image.info
    upright = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
    if image.mode in _SIXTEEN_BIT:
        return _from_sixteen_bit(np.asarray(upright))
    if transparent:
        rgba = upright.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
        return GreyImage(np.asarray(flat.convert("L")), "" if image.mode in ("L", "LA") else "colour")
    if image.mode in ("1", "L"):
        return GreyImage(np.asarray(upright.convert("L")), "")
    if image.mode in _COLOUR:
        return GreyImage(np.asarray(upright.convert("L")), "colour")
    return Reason.PIXEL_FORMAT


def _from_sixteen_bit(levels: NDArray[np.generic]) -> GreyImage | Reason:
    wide = levels.astype(np.int64)
    if wide.min() < 0 or wide.max() >= 2**16:
        return Reason.PIXEL_FORMAT
    full_scale = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if wide.max() < 2**bits)
    return GreyImage(np.rint(wide * (255 / full_scale)).astype(np.uint8), "16-bit")


def resize_image(pixels: Pixels, side: int, how: Resize) -> Pixels:
    """Return an image as a square, uint8 [side, side].

    Args:
        pixels: grey levels, uint8 [height, width].
        side: in pixels.
        how: "pad" keeps the aspect ratio and centres the image on black; "stretch" fills the square.
    """
    return _resize(pixels, side, how, Image.Resampling.BILINEAR)


def resize_mask(mask: Pixels, side: int, how: Resize) -> Pixels:
    """Return a mask of 0 and 1 as a square, uint8 [side, side], placed as `resize_image` places its image."""
    return _resize(mask, side, how, Image.Resampling.NEAREST)


def _resize(pixels: Pixels, side: int, how: Resize, resampling: Image.Resampling) -> Pixels:
    height, width = pixels.shape
    longest = max(height, width)
    size = (side, side)
    if how == "pad":
        size = (max(1, round(width * side / longest)), max(1, round(height * side / longest)))
    square = np.zeros((side, side), np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    # Pillow widens its filter when it shrinks an image, so nothing aliases.
    square[top : top + size[1], left : left + size[0]] = np.asarray(Image.fromarray(pixels).resize(size, resampling))
    return square
