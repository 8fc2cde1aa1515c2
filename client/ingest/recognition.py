"""Finding text with RapidOCR's detector: where writing stands, whether or not anybody could read it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from echofed.client.ingest.colours import brightest
from echofed.client.ingest.geometry import Box, Pixels

Scales = tuple[float, float]
Look = Literal["quick", "usual", "thorough"]
SCALES, SMALL_SCALES = (1.5, 2.0), (2.0, 3.0)
LARGE_SCALES = ((0.5, 1.0), (0.25, 0.5))
DIAGONAL_SCALES, SMALL_DIAGONAL_SCALES = (1.0, 1.5), (1.5, 2.0)
SHARP_SCALES, SMALL_SHARP_SCALES = (2.0, 3.0), (2.5, 4.0)
"""Writing is found at either scale of two; what is found at one only is mostly tissue, so their probabilities are averaged.
If the first has nothing, the second is not asked. Letters above about 60 px are seen as such in a picture made smaller."""
MIN_PROBABILITY = 0.3
MIN_MEAN_PROBABILITY = 0.5
MIN_MEAN_OF_LONG, _LONG = 0.45, 4.5
"""What is so many times as long as it is high is seldom tissue: nearly sure at one scale is enough."""
_NOTHING = 0.1
_SHARPENED_SIGMA_PX, _SHARPENING = 1.5, 2.0
MAX_LINE_PX = 48
"""What is marked of a line of a scanner's text is less high, however it is turned; what is higher may also be tissue."""
_SMALL_SIDE_PX = 320
_MIN_AREA_PX = 30
_TILE_PX = 1024
_OVERLAP_PX = 128
_MARGIN = 0.6
_PACKAGE, _MODEL = "rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx"


def is_installed() -> bool:
    """Return whether text recognition and its model are on this machine."""
    return find_spec("onnxruntime") is not None and _model() is not None


@dataclass(frozen=True)
class Finds:
    """Boxes around what looks like text, overlapping ones joined: `lines`, and `large`, what may be letters or tissue."""

    lines: tuple[Box, ...]
    large: tuple[Box, ...]

    @property
    def boxes(self) -> tuple[Box, ...]:
        """All of them."""
        return self.lines + self.large


def find_text(picture: Pixels, look: Look = "thorough") -> Finds:
    """Return boxes around whatever looks like text of any direction, with a margin of about half a line's height.

    Looks for letters from 6 to about 200 px high; says nothing about what is written. One thread; a picture of 500 x 500
    without any takes about 4 s, a quick look 0.5 s. Memory does not grow with what the network needs for the whole picture: it
    looks at tiles.

    Args:
        picture: grey uint8 [height, width] or RGB [height, width, 3].
        look: "quick" sees little of what is diagonal or only seen at the finest scale, for a clip's many frames; "usual" little
            of what is small and faint on bright tissue.

    Raises:
        FileNotFoundError: RapidOCR is not installed, see `is_installed`.

    Reference: Liao et al. (2020), "Real-time scene text detection with differentiable binarization", as trained for PP-OCRv4.
    """
    lines, large = np.zeros((2, *picture.shape[:2]), bool)
    sharpened = _sharpened(picture) if look == "thorough" else picture
    for degrees, scales, is_sharpened in _views(max(picture.shape[:2]) < _SMALL_SIDE_PX, look):
        probability = _mean_probability(_turned(sharpened if is_sharpened else picture, degrees), scales)
        if probability is None:
            continue
        scale = max(scales)
        back = _turned(probability, -degrees, (round(picture.shape[0] * scale), round(picture.shape[1] * scale)))
        for box, height_px in _boxes(back, scale):
            found = large if height_px > MAX_LINE_PX else lines
            found[max(box.top, 0) : box.bottom, max(box.left, 0) : box.right] = True
    return Finds(_joined(lines), _joined(large))


def _views(small: bool, look: Look) -> Iterator[tuple[int, Scales, bool]]:
    """Yield by how many degrees the picture is turned, at which scales it is looked at, and whether it is sharpened."""
    finest, diagonal = (SMALL_SCALES, SMALL_DIAGONAL_SCALES) if small else (SCALES, DIAGONAL_SCALES)
    sharp = SMALL_SHARP_SCALES if small else SHARP_SCALES
    for degrees in (0, 90):
        for scales in (finest if look == "quick" else finest[::-1], *LARGE_SCALES):
            yield degrees, scales, False
    for degrees in () if look == "quick" else (45, -45):
        yield degrees, diagonal[::-1], False
    for degrees in (0, 90) if look == "thorough" else ():
        yield degrees, sharp[::-1], True


def _sharpened(picture: Pixels) -> Pixels:
    """Return a picture's brightness with its edges raised: small grey letters on bright tissue are only seen so."""
    brightness = (picture if picture.ndim == 2 else brightest(picture)).astype(np.float32)
    edges = brightness - ndimage.gaussian_filter(brightness, _SHARPENED_SIGMA_PX)
    return np.asarray(np.clip(brightness + _SHARPENING * edges, 0, 255), np.uint8)


def _turned(values: NDArray[Any], degrees: int, shape: tuple[int, int] | None = None) -> NDArray[Any]:
    """Return a picture turned anticlockwise about its middle, beyond its edge mirrored: a hard edge would look drawn.

    Args:
        values: [height, width] or [height, width, channels].
        degrees: any angle.
        shape: of the part that is returned; None for all of it.
    """
    if degrees % 90 == 0:
        return np.rot90(values, degrees // 90)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width = values.shape[:2]
    if shape is None:
        swept = abs(height * cosine) + abs(width * sine), abs(height * sine) + abs(width * cosine)
        shape = math.ceil(swept[0]), math.ceil(swept[1])
    matrix = np.array([[cosine, sine], [-sine, cosine]])
    offset = (np.array([height, width]) - 1) / 2 - matrix @ ((np.array(shape) - 1) / 2)
    planes = np.moveaxis(np.atleast_3d(values), 2, 0)
    turned = [ndimage.affine_transform(plane, matrix, offset, shape, order=1, mode="mirror") for plane in planes]
    return turned[0] if values.ndim == 2 else np.stack(turned, 2)


def _joined(found: NDArray[np.bool_]) -> tuple[Box, ...]:
    labels, _ = ndimage.label(found)
    return tuple(
        Box(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in ndimage.find_objects(labels)
    )


def _mean_probability(picture: Pixels, scales: Scales) -> NDArray[np.float32] | None:
    """Return each pixel's mean probability over two scales, at the finer; None if there is nothing at the first."""
    rows, columns = picture.shape[:2]
    parts: list[NDArray[np.float32]] = []
    for scale in scales:
        parts.append(_probability(_scaled(picture, round(rows * scale), round(columns * scale))))
        if parts[0].max() < _NOTHING:
            return None
    coarse, fine = sorted(parts, key=lambda part: part.size)
    resized = Image.fromarray(coarse).resize((fine.shape[1], fine.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray((np.asarray(resized) + fine) / 2, np.float32)


def _boxes(probability: NDArray[np.float32], scale: float) -> list[tuple[Box, float]]:
    """Return what is found and how high its line is, in pixels of the picture that was scaled by `scale`."""
    labels, count = ndimage.label(probability > MIN_PROBABILITY)
    if not count:
        return []
    numbers = np.arange(1, count + 1)
    means = ndimage.mean(probability, labels, numbers)
    areas = ndimage.sum_labels(labels > 0, labels, numbers)
    boxes = []
    for number, (place, mean, area) in enumerate(zip(ndimage.find_objects(labels), means, areas, strict=True), 1):
        if mean < MIN_MEAN_OF_LONG or area < _MIN_AREA_PX:
            continue
        height, length = (side / scale for side in _sides(labels[place] == number))
        if mean < MIN_MEAN_PROBABILITY and length < _LONG * height:
            continue
        # The network is trained to mark the middle of a line, so the writing is larger.
        margin = 1 + _MARGIN * min(height, MAX_LINE_PX)
        rows, columns = place
        top, left = int(rows.start / scale - margin), int(columns.start / scale - margin)
        box = Box(top, left, int(rows.stop / scale + margin) + 1, int(columns.stop / scale + margin) + 1)
        boxes.append((box, height))
    return boxes


def _sides(shape: NDArray[np.bool_]) -> tuple[float, float]:
    """Return a shape's extents across and along its main axis: a line's height and length, however it is turned."""
    places = np.argwhere(shape).astype(np.float64)
    places -= places.mean(0)
    _, axes = np.linalg.eigh(places.T @ places)
    across, along = np.ptp(places @ axes, axis=0) + 1
    return float(across), float(along)


def _scaled(picture: Pixels, height: int, width: int) -> Pixels:
    image = Image.fromarray(picture).convert("RGB")
    return np.asarray(image.resize((max(width, 1), max(height, 1)), Image.Resampling.BICUBIC))


def _probability(picture: Pixels) -> NDArray[np.float32]:
    """Return each pixel's probability of text, tile by tile; where tiles overlap the higher counts."""
    height, width = picture.shape[:2]
    whole = np.zeros((height, width), np.float32)
    for top in _starts(height):
        for left in _starts(width):
            tile = picture[top : top + _TILE_PX, left : left + _TILE_PX]
            rows, columns = tile.shape[:2]
            padding = ((0, -rows % 32), (0, -columns % 32), (0, 0))
            values = np.pad(tile, padding, mode="edge").astype(np.float32) / 127.5 - 1
            session, name = _session()
            found = session.run(None, {name: values.transpose(2, 0, 1)[None]})[0][0, 0, :rows, :columns]
            part = whole[top : top + rows, left : left + columns]
            np.maximum(part, found, out=part)
    return whole


def _starts(length: int) -> range:
    return range(0, max(length - _OVERLAP_PX, 1), _TILE_PX - _OVERLAP_PX)


def _model() -> Path | None:
    spec = find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    paths = [Path(folder) / _MODEL for folder in folders or ()]
    return next((path for path in paths if path.is_file()), None)


@lru_cache(maxsize=1)
def _session() -> tuple[Any, str]:
    """Return the detector and its input's name, loaded once a process; reads one file and never the network."""
    import onnxruntime

    path = _model()
    if path is None:
        raise FileNotFoundError(_PACKAGE)
    options = onnxruntime.SessionOptions()
    # The ingest runs a process a core; more threads would only wait for each other.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, session.get_inputs()[0].name
