"""A few phantoms with what the model says of them; never used on patients' images."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from echofed.client.participation import Participation
from echofed.learning.examples import Examples
from echofed.learning.images import to_input
from echofed.learning.metrics import dice
from echofed.learning.models import StudyModel
from echofed.learning.tasks import probabilities
from echofed.protocol.errors import NoPatientsError
from echofed.protocol.study import Study

PER_SITE, AT_MOST = 2, 10


def sample_predictions(study: Study, model: StudyModel, parts: Mapping[str, Participation]) -> list[dict[str, Any]]:
    """Return a few test images of each site, PNG in base64, with targets, scores and, for segmentation, outlines.

    Args:
        study: its unit must be the image; else the list is empty.
        model: holding the parameters to show.
        parts: the sites.
    """
    samples: list[dict[str, Any]] = []
    for site, part in parts.items() if study.task.unit == "image" else ():
        try:
            examples = part.examples("test")
        except NoPatientsError:
            continue
        for items in examples.patient_items[:PER_SITE]:
            samples.append({"site": site, **_sample(study, model, examples, int(items[0]))})
    return samples[:AT_MOST]


def _sample(study: Study, model: StudyModel, examples: Examples, item: int) -> dict[str, Any]:
    row = int(examples.item_images[item][0])
    image = np.asarray(examples.images[row])
    with torch.no_grad():
        model.eval()
        logits = model(to_input(image[None], study.preprocessing), torch.zeros(1, dtype=torch.long), 1)
    scores = probabilities(study.task, logits)
    sample: dict[str, Any] = {"image": _png(image), "mask": None, "prediction": None, "target": [], "score": []}
    if study.task.kind == "segmentation" and examples.masks is not None:
        outline = (scores.reshape(image.shape) > 0.5).astype(np.uint8) * 255
        mask = np.asarray(examples.masks[row])
        overlap = float(dice(scores.reshape(1, *mask.shape), mask[None])[0])
        return {**sample, "mask": _png(mask * 255), "prediction": _png(outline), "score": [overlap]}
    low, high = study.task.value_range or (0.0, 1.0)
    target, score = (low + (high - low) * values for values in (examples.targets[item], scores[0]))
    return {**sample, "target": target.tolist(), "score": score.tolist()}


def _png(pixels: NDArray[np.uint8]) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
