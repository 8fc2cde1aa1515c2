"""Phantom images with the truth and what the model said."""

import base64
import binascii
import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from echofed.protocol.errors import RunError
from echofed.simulations.report.drawing import FULL_INCHES, ORANGE, SKY, Plot, new_figure, short
from echofed.simulations.report.results import Results, Sample
from echofed.simulations.report.wording import fixed, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SAMPLES, COLUMNS = 12, 6
MOST_PIXELS = 1024 * 1024


def samples(results: Results) -> Plot | None:
    """Up to twelve phantoms; never drawn for a run on patients, whatever the file holds."""
    if not results.phantoms or not results.samples:
        return None
    shown = results.samples[:MOST_SAMPLES]
    outlined = any(s.mask or s.prediction for s in shown)

    def draw() -> "Figure":
        rows = -(-len(shown) // COLUMNS)
        figure = new_figure(FULL_INCHES, 1.62 * rows + 0.05)
        grid = figure.subplots(rows, COLUMNS, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, sample in zip(grid.flat, shown, strict=False):
            axes.imshow(_grey(sample.image), cmap="gray", vmin=0, vmax=255, interpolation="none")
            for outline, colour, dashes in ((sample.mask, ORANGE, "solid"), (sample.prediction, SKY, "dashed")):
                if outline is not None and np.ptp(shape := _grey(outline)) > 0:
                    axes.contour(
                        shape, levels=[float(shape.max()) / 2], colors=[colour], linewidths=1.2, linestyles=dashes
                    )
            axes.set_title(_words(results, sample), fontsize=7, fontweight="normal", pad=3)
        return figure

    how = " Solid orange: true outline; dashed blue: the model's." if outlined else ""
    return Plot(
        "samples",
        "samples",
        "Phantoms",
        f"Simulated phantoms, not patients, with what was true and what the model said.{how}",
        FULL_INCHES,
        draw,
    )


def _grey(encoded: str) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)), formats=["PNG"]) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise RunError("A sample image is larger than a megapixel.", "Keep the samples small.")
            return np.asarray(picture.convert("L"))
    except (binascii.Error, ValueError, OSError, UnidentifiedImageError) as error:
        raise RunError("A sample image is not a PNG in base64.", "Run the study again with this version.") from error


def _words(results: Results, sample: Sample) -> str:
    site = short(sample.site, 17)
    kind, labels = results.study.task.kind, results.labels
    if kind == "segmentation":
        return f"{site}\nDice {fixed(sample.score[0])}" if sample.score else site
    if not sample.target or not sample.score:
        return site
    if kind == "regression":
        return f"{site}\n{number(sample.target[0])}, said {number(sample.score[0])}"
    if kind == "multilabel":
        return f"{site}\nhas {_found(labels, sample.target)}\nsaid {_found(labels, sample.score)}"
    probabilities = (1 - sample.score[0], sample.score[0]) if kind == "binary" else sample.score
    said = int(np.argmax(probabilities))
    truth = short(labels[int(sample.target[0])], 14)
    return f"{site}\nis {truth}\nsaid {short(labels[said], 10)} {probabilities[said]:.0%}"


def _found(labels: tuple[str, ...], values: tuple[float, ...]) -> str:
    found = [label for label, value in zip(labels, values, strict=False) if value >= 0.5]
    return short(", ".join(found) or "nothing", 15)
