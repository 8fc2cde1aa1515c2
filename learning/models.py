"""The models a study may name, in one shape: an encoder of images, attention pooling for exams, and a head."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from echofed.learning import monai_nets
from echofed.learning.attention import AttentionPooling
from echofed.learning.centring import CENTRE, Centring
from echofed.learning.images import to_input
from echofed.learning.scattering import ScatteringClassifier, fit_standardisation
from echofed.learning.small_resnet import SmallResNetEncoder
from echofed.protocol.arrays import Parameters, decode_parameters
from echofed.protocol.errors import BatchNormError, ParametersError, StudyInvalidError
from echofed.protocol.models import (
    SEGMENTATION_MODELS,
    BasicUNet,
    DenseNet121,
    EfficientNetB0,
    Scattering,
    SmallResNet,
    UNet,
)
from echofed.protocol.study import Study, Task

TrainableModel = SmallResNet | DenseNet121 | EfficientNetB0 | BasicUNet | UNet
ENCODER = "encoder."
SIDE_MULTIPLE_PX = 16
"""The segmentation networks halve the side four times."""
MINIMUM_SIDE_PX = {"densenet121": 32, "efficientnet_b0": 32}
"""Smaller images shrink to nothing within these networks."""
MAX_FILE_BYTES = 2**31


class StudyModel(nn.Module):
    """A model of the catalogue, as a study asks for it.

    No item's answer depends on another item in the batch, and nothing is drawn at random in training, so a patient's
    gradient is a function of that patient alone.

    Args:
        encoder: images, float [n, 1, side, side], to features [n, dimensions], or to maps [n, channels, side, side].
        head: features to logits.
        pooling: of the images of an exam; None when every item is one image.
        frozen: the encoder does not learn.
        segments: the encoder gives maps, and the answer is a logit for each pixel.
    """

    def __init__(
        self, encoder: nn.Module, head: nn.Module, pooling: AttentionPooling | None, *, frozen: bool, segments: bool
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.head = head
        self.segments = segments
        self.has_fixed_features = frozen and not segments
        """An image's features never change during the study, so they may be computed once while augmentation is off."""
        if frozen:
            encoder.requires_grad_(False)

    def encode(self, images: Tensor) -> Tensor:
        """Return features, float [n, dimensions], of images, float [n, 1, side, side]; maps when segmenting."""
        features: Tensor = self.encoder(images)
        return features

    def answer(self, features: Tensor, item_of_image: Tensor, items: int) -> Tensor:
        """Return logits, float [items, outputs].

        Args:
            features: float [n, dimensions], one row an image.
            item_of_image: each image's item, int64 [n], in [0, items); every item has an image, and exactly one unless
                the study's unit is the exam.
            items: number of items.

        Raises:
            ValueError: an item that should be one image has none or several.
        """
        if self.pooling is not None:
            features = self.pooling(features, item_of_image, items)
        elif len(features) != items:
            raise ValueError(f"{items} items of one image each were given {len(features)} images")
        else:
            features = torch.empty_like(features).index_copy(0, item_of_image, features)
        logits: Tensor = self.head(features)
        return logits

    def forward(self, images: Tensor, item_of_image: Tensor, items: int) -> Tensor:
        """Return logits, float [items, outputs]; when segmenting [n, 1, side, side], in the order of the images."""
        if not self.segments:
            return self.answer(self.encode(images), item_of_image, items)
        height, width = images.shape[-2:]
        padding = (0, -width % SIDE_MULTIPLE_PX, 0, -height % SIDE_MULTIPLE_PX)
        logits: Tensor = self.head(self.encode(F.pad(images, padding, mode="replicate")))
        return logits[..., :height, :width]


def build_model(study: Study) -> StudyModel:
    """Return the model a study names, on the CPU, with arbitrary but always the same parameters.

    The structure and the names of the parameters depend on the study alone; torch's global generator is left as it was.

    Raises:
        BatchNormError: a batch normalisation layer is left.
        StudyInvalidError: the images are too small for the model.
    """
    return _build(study, seed=0)


def _build(study: Study, seed: int) -> StudyModel:
    # Layers draw their first values from the global generator and take no other: it is set, used and put back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        encoder, head, dimensions = _encoder_and_head(study)
        pooling = AttentionPooling(dimensions) if study.task.unit == "exam" else None
    frozen = isinstance(study.model, Scattering) or study.model.encoder == "frozen"
    model = StudyModel(encoder, head, pooling, frozen=frozen, segments=study.task.kind == "segmentation")
    refuse_batch_norm(model)
    return model


def _encoder_and_head(study: Study) -> tuple[nn.Module, nn.Module, int]:
    outputs = output_count(study.task)
    if isinstance(study.model, Scattering):
        centred = study.training.centring_rounds > 0
        return _scattering(study.model, study.preprocessing.image_size_px, outputs, centred)
    encoder, dimensions = _trainable_encoder(study.model, study.preprocessing.image_size_px)
    segments = study.model.name in SEGMENTATION_MODELS
    head = nn.Conv2d(dimensions, outputs, 1) if segments else nn.Linear(dimensions, outputs)
    # From zero, the first answers are even, and the head's first gradient does not depend on a random draw.
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return encoder, head, dimensions


def _scattering(
    model: Scattering, side_px: int, outputs: int, centred: bool
) -> tuple[ScatteringClassifier, nn.Module, int]:
    encoder = ScatteringClassifier(
        side_px, outputs, model.scales, model.angles, model.grid, model.head, model.projection
    )
    # Attention pooling comes between its features and its head.
    head, encoder.head = encoder.head, nn.Identity()
    return encoder, nn.Sequential(Centring(encoder.dimensions), head) if centred else head, encoder.dimensions


def _trainable_encoder(model: TrainableModel, side_px: int) -> tuple[nn.Module, int]:
    minimum = MINIMUM_SIDE_PX.get(model.name, 0)
    if side_px < minimum:
        raise StudyInvalidError(
            f"{model.name} cannot see images of {side_px} px.",
            f"Write image_size_px: {minimum} or more, or choose small_resnet.",
        )
    match model:
        case SmallResNet(width=width, blocks=blocks):
            small = SmallResNetEncoder(width, blocks)
            return small, small.dimensions
        case DenseNet121():
            return monai_nets.densenet121_encoder()
        case EfficientNetB0():
            return monai_nets.efficientnet_b0_encoder()
        case BasicUNet(width=width):
            return monai_nets.basic_unet_encoder(width)
        case UNet(width=width):
            return monai_nets.unet_encoder(width)


def output_count(task: Task) -> int:
    """Return the number of logits of an item (of a pixel, when segmenting)."""
    return len(task.labels) if task.kind in ("multiclass", "multilabel") else 1


def refuse_batch_norm(model: nn.Module) -> None:
    """Refuse a model that has a batch normalisation layer.

    Raises:
        BatchNormError: naming the layers.
    """
    names = [name for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)]
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise BatchNormError(f"The model has batch normalisation in: {shown}.")


def trainable_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters that learn, and so travel each round, in the model's order."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad or name == CENTRE]


def normalisation_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters of normalisation layers that learn, in the model's order."""
    layers = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
    owners = {name for name, layer in model.named_modules() if isinstance(layer, layers)}
    return [name for name in trainable_names(model) if name.rpartition(".")[0] in owners]


def read_parameters(model: nn.Module, names: Iterable[str] | None = None) -> Parameters:
    """Return copies of a model's parameters and persistent buffers, in the order of the names.

    Args:
        model: whose parameters are read.
        names: which; all, in the model's order, if None.

    Raises:
        ParametersError: the model has no parameter of a name, or it is not float32.
    """
    state: dict[str, Tensor] = model.state_dict()
    parameters: Parameters = {}
    for name in state if names is None else names:
        if name not in state:
            raise ParametersError(f"The model has no parameter '{name}'.")
        if state[name].dtype != torch.float32:
            raise ParametersError(f"Parameter '{name}' is {state[name].dtype}, not float32.")
        parameters[name] = state[name].detach().numpy().copy()
    return parameters


def load_parameters(model: nn.Module, parameters: Mapping[str, NDArray[np.float32]]) -> None:
    """Copy parameters and persistent buffers into a model; those not named stay as they are.

    Everything is checked before anything is written, so a refused load leaves the model as it was.

    Args:
        model: changed in place.
        parameters: float32 arrays by name, in the model's shapes.

    Raises:
        ParametersError: a name is unknown, or a shape or dtype differs.
    """
    state: dict[str, Tensor] = model.state_dict()
    for name, array in parameters.items():
        if name not in state:
            raise ParametersError(f"The model has no parameter '{name}'.")
        if array.shape != tuple(state[name].shape):
            raise ParametersError(f"Parameter '{name}' has shape {array.shape}, not {tuple(state[name].shape)}.")
        if array.dtype != np.float32:
            raise ParametersError(f"Parameter '{name}' is {array.dtype}, not float32.")
    for name, array in parameters.items():
        np.copyto(state[name].numpy(), array)


def initial_parameters(
    study: Study, seed: int, public_images: NDArray[np.uint8] | None = None
) -> tuple[Parameters, dict[str, str]]:
    """Return the parameters a study starts from, and the texts kept beside them.

    The same study, seed and images give the same parameters. The last layer of the head and the attention's scoring
    vector start at zero.

    Args:
        study: names the model.
        seed: of the random first values, in [0, 2**63).
        public_images: grey levels, uint8 [n, side, side], of no patient of the study, on which scattering features are
            standardised; unused by other models.

    Returns:
        all parameters and buffers, float32; and `model` (its name), `trainable` and `normalisation` (JSON lists of
        names of parameters).

    Raises:
        ParametersError: scattering has no public images, or too few.
    """
    model = _build(study, seed)
    if isinstance(model.encoder, ScatteringClassifier):
        if public_images is None:
            raise ParametersError(
                "Scattering features are standardised on public images, and none were given.",
                "Give public images or phantoms, none of a patient of the study.",
            )
        fit_standardisation(model.encoder, to_input(public_images, study.preprocessing))
    return read_parameters(model), _metadata(study, model)


def _metadata(study: Study, model: StudyModel) -> dict[str, str]:
    return {
        "model": study.model.name,
        "trainable": json.dumps(trainable_names(model)),
        "normalisation": json.dumps(normalisation_names(model)),
    }


def initial_parameters_from(study: Study, path: Path, seed: int) -> tuple[Parameters, dict[str, str], list[str]]:
    """Return the parameters a study starts from, with the encoder of a safetensors file and a fresh head.

    Args:
        study: names the model.
        path: a file of parameters: another study's model, or an encoder alone (names with or without `encoder.`).
        seed: of the random first values of all else, in [0, 2**63).

    Returns:
        as `initial_parameters`, and the names of the encoder's parameters the file lacks, which start at random.

    Raises:
        ParametersError: the file cannot be read, has no parameter of this encoder, or has one in another shape.
        ArraysError: the file is not a sound float32 safetensors file.
    """
    try:
        found = decode_parameters(path.read_bytes(), MAX_FILE_BYTES)
    except OSError as error:
        raise ParametersError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    model = _build(study, seed)
    wanted = [name for name in model.state_dict() if name.startswith(ENCODER)]
    sources = {name: name if name in found else name.removeprefix(ENCODER) for name in wanted}
    taken = {name: found[source] for name, source in sources.items() if source in found}
    if not taken:
        raise ParametersError(
            f"{path.name} has no parameter of the encoder of {study.model.name}.",
            f"Choose a file written for {study.model.name} with the same settings.",
        )
    load_parameters(model, taken)
    return read_parameters(model), _metadata(study, model), [name for name in wanted if name not in taken]
