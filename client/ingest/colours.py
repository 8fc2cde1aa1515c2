"""From stored samples to grey or RGB of 8 bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset

from echofed.client.ingest.geometry import Pixels
from echofed.client.ingest.outcomes import SetAsideError, Why

Samples = NDArray[np.uint8] | NDArray[np.uint16]

_COLOURS = ("Red", "Green", "Blue")
_MOST_ENTRIES = 2**16


def to_8_bits(samples: Samples, stored: int) -> Pixels:
    """Return samples scaled so that 0 stays 0 and 2**stored - 1 becomes 255, rounded; what is above becomes 255."""
    if stored == 8 and samples.dtype == np.uint8:
        return samples.astype(np.uint8, copy=False)
    top = 2**stored - 1
    table = (np.minimum(np.arange(2 ** (8 * samples.itemsize)), top) * 255 + top // 2) // top
    scaled: Pixels = np.take(table.astype(np.uint8), samples)
    return scaled


def ybr_to_rgb(samples: Pixels) -> Pixels:
    """Convert YBR_FULL (ITU-T T.871) uint8 [h, w, 3] to RGB, as libjpeg does within one level."""
    return np.asarray(Image.frombytes("YCbCr", samples.shape[1::-1], samples.tobytes()).convert("RGB"))


def widen_422(data: bytes, rows: int, columns: int) -> Pixels:
    """Return YBR_FULL_422 (Y Y Cb Cr of two pixels) as YBR_FULL, uint8 [rows, columns, 3]."""
    pairs = np.frombuffer(data, np.uint8).reshape(rows, columns // 2, 4)
    wide = np.empty((rows, columns, 3), np.uint8)
    wide[:, 0::2, 0], wide[:, 1::2, 0] = pairs[..., 0], pairs[..., 1]
    wide[:, :, 1:] = np.repeat(pairs[..., 2:], 2, axis=1)
    return wide


def read_palette(dataset: Dataset, values: int) -> Pixels:
    """Return the palette as RGB for every value a pixel can have, uint8 [values, 3].

    Entries of 16 bits keep their high byte, unless none is above 255. Values before the first entry get the first, those
    behind the last get the last (PS3.3, C.7.6.3.1.5). Segmented palettes are expanded.

    Raises:
        SetAsideError: PIXEL_FORMAT if there is no usable palette.
    """
    return np.stack([_colour_table(dataset, colour, values) for colour in _COLOURS], axis=1)


def _colour_table(dataset: Dataset, colour: str, count: int) -> Pixels:
    descriptor = dataset.get(f"{colour}PaletteColorLookupTableDescriptor")
    try:
        entries, first, bits = (int(value) & 0xFFFF for value in descriptor)
    except (TypeError, ValueError) as error:
        raise SetAsideError(Why.PIXEL_FORMAT) from error
    entries = entries or _MOST_ENTRIES
    whole = dataset.get(f"{colour}PaletteColorLookupTableData")
    segmented = dataset.get(f"Segmented{colour}PaletteColorLookupTableData")
    values: NDArray[Any]
    if isinstance(whole, bytes) and bits in (8, 16):
        values = _words(whole, dataset) if len(whole) >= 2 * entries else np.frombuffer(whole, np.uint8)
    elif isinstance(segmented, bytes) and bits == 16:
        values = _expand(_words(segmented, dataset).tolist(), entries)
    else:
        raise SetAsideError(Why.PIXEL_FORMAT)
    if len(values) < entries:
        raise SetAsideError(Why.PIXEL_FORMAT)
    values = values[:entries]
    if values.max() > 255:
        values = values >> 8
    return values[np.clip(np.arange(count) - first, 0, entries - 1)].astype(np.uint8)


def _words(data: bytes, dataset: Dataset) -> NDArray[np.uint16]:
    little = dataset.original_encoding[1] is not False
    return np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2").astype(np.uint16)


def _expand(words: list[int], entries: int) -> NDArray[np.uint16]:
    """Expand discrete and linear segments (PS3.3, C.7.9.2); indirect ones are not supported."""
    values: list[int] = []
    at = 0
    while at + 2 <= len(words) and len(values) < entries:
        kind, count = words[at], words[at + 1]
        if kind == 0 and at + 2 + count <= len(words):
            values += words[at + 2 : at + 2 + count]
            at += 2 + count
        elif kind == 1 and values and at + 3 <= len(words):
            last, step = values[-1], (words[at + 2] - values[-1]) / max(count, 1)
            values += [round(last + step * number) for number in range(1, count + 1)]
            at += 3
        else:
            raise SetAsideError(Why.PIXEL_FORMAT)
    return np.array(values, np.uint16)


def swap_pairs(data: bytes) -> bytes:
    """Return an even number of bytes swapped pair by pair: 8-bit pixels written as big-endian words."""
    return np.frombuffer(data, ">u2").astype("<u2").tobytes()


def brightest(picture: Pixels) -> Pixels:
    """Return each pixel's brightest channel, uint8 [h, w]."""
    return picture if picture.ndim == 2 else _over_channels(picture, np.maximum)


def darkest(picture: Pixels) -> Pixels:
    """Return each pixel's darkest channel, uint8 [h, w]."""
    return picture if picture.ndim == 2 else _over_channels(picture, np.minimum)


def _over_channels(picture: Pixels, choose: np.ufunc) -> Pixels:
    # All neighbours, then every third of the results: many times as fast as channel by channel.
    flat = picture.ravel()
    found: Pixels = choose(choose(flat[:-2], flat[1:-1]), flat[2:])
    return found[::3].reshape(picture.shape[:2])
