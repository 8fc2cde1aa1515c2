"""Finding text with RapidOCR's detector: where writing stands, whether or not anybody could read it."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from echofed.client.ingest.geometry import Box, Pixels

SCALES, SMALL_SCALES = (1.5, 2.0), (2.0, 3.0)
"""Writing is found at either scale; what is found at one only is mostly tissue, so their probabilities are averaged."""
MIN_PROBABILITY = 0.3
MIN_MEAN_PROBABILITY = 0.5
MAX_LINE_PX = 48
"""A taller find is a lesion or a fascia, not a line of a scanner's text; as many rows of the picture count at any scale."""
_SMALL_SIDE_PX = 320
_MIN_AREA_PX = 30
_TILE_PX = 1024
_OVERLAP_PX = 128
_MARGIN = 0.6
_PACKAGE, _MODEL = "rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx"


def is_installed() -> bool:
    """Return whether text recognition and its model are on this machine."""
    return find_spec("onnxruntime") is not None and _model() is not None


def find_text(picture: Pixels) -> tuple[Box, ...]:
    """Return boxes around whatever looks like text, overlapping ones joined, with a margin of about half their height.

    Looks for lines of text from 6 to 48 px high; says nothing about what is written. One thread; a picture of 500 x 500 takes
    about 0.6 s. Memory does not grow with what the network needs for the whole picture: it looks at tiles.

    Args:
        picture: grey uint8 [height, width] or RGB [height, width, 3].

    Raises:
        FileNotFoundError: RapidOCR is not installed, see `is_installed`.

    Reference: Liao et al. (2020), "Real-time scene text detection with differentiable binarization", as trained for PP-OCRv4.
    """
    height, width = picture.shape[:2]
    scales = SMALL_SCALES if max(height, width) < _SMALL_SIDE_PX else SCALES
    finest = (round(height * scales[-1]), round(width * scales[-1]))
    probability = np.zeros(finest, np.float32)
    for scale in scales:
        seen = _probability(_scaled(picture, round(height * scale), round(width * scale)))
        resized = Image.fromarray(seen).resize((finest[1], finest[0]), Image.Resampling.BILINEAR)
        probability += np.asarray(resized) / len(scales)
    found = np.zeros((height, width), bool)
    for box in _boxes(probability, scales[-1]):
        found[max(box.top, 0) : box.bottom, max(box.left, 0) : box.right] = True
    labels, _ = ndimage.label(found)
    return tuple(
        Box(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in ndimage.find_objects(labels)
    )


def _boxes(probability: NDArray[np.float32], scale: float) -> list[Box]:
    """Return what is found, in the pixels of the picture that was enlarged by `scale`."""
    labels, count = ndimage.label(probability > MIN_PROBABILITY)
    if not count:
        return []
    numbers = np.arange(1, count + 1)
    means = ndimage.mean(probability, labels, numbers)
    areas = ndimage.sum_labels(labels > 0, labels, numbers)
    boxes = []
    for (rows, columns), mean, area in zip(ndimage.find_objects(labels), means, areas, strict=True):
        height = (rows.stop - rows.start) / scale
        if mean < MIN_MEAN_PROBABILITY or area < _MIN_AREA_PX or height > MAX_LINE_PX:
            continue
        # The network is trained to mark the middle of a line, so the writing is larger.
        margin = 1 + _MARGIN * height
        top, left = int(rows.start / scale - margin), int(columns.start / scale - margin)
        boxes.append(Box(top, left, int(rows.stop / scale + margin) + 1, int(columns.stop / scale + margin) + 1))
    return boxes


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
