"""The catalogue of models, as data: names and parameters a study may ask for.

`echofed.learning.models` builds what is declared here; a coordinator needs only the declaration. To add a model,
declare it here and build it there.
"""

from typing import Annotated, Literal

from pydantic import Field

from echofed.protocol.document import Document

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(Document):
    initial_parameters_sha256: Sha256 | None = Field(
        default=None, description="SHA-256 of the initial-parameters file; `echofed study init` writes both."
    )


class _Trainable(_Model):
    encoder: Literal["trained", "frozen"] = Field(
        default="trained", description="frozen: only the head learns; the encoder stays as in the initial parameters."
    )


class Scattering(_Model):
    """Fixed wavelet scattering features under a small trained head; fits small private cohorts."""

    name: Literal["scattering"]
    scales: int = Field(default=4, ge=1, le=6, description="J, the largest scale is 2^J pixels.")
    angles: int = Field(default=8, ge=2, le=16)
    grid: int = Field(default=3, ge=1, le=4, description="rows the image is divided into, overlapping by half.")
    head: Literal["linear", "small"] = "linear"
    projection: int | None = Field(
        default=128,
        ge=8,
        le=1000,
        description="principal components kept, of phantoms' features; null keeps all features.",
    )


class SmallResNet(_Trainable):
    """A small residual network with group normalisation, about 0.1 to 3 million parameters."""

    name: Literal["small_resnet"]
    width: int = Field(default=16, ge=8, le=128, multiple_of=8)
    blocks: int = Field(default=2, ge=1, le=5, description="residual blocks in each of three stages.")


class DenseNet121(_Trainable):
    """MONAI's DenseNet121 with group normalisation."""

    name: Literal["densenet121"]


class EfficientNetB0(_Trainable):
    """MONAI's EfficientNet-B0 with group normalisation."""

    name: Literal["efficientnet_b0"]


class BasicUNet(_Trainable):
    """MONAI's BasicUNet with group normalisation, for segmentation."""

    name: Literal["basic_unet"]
    width: int = Field(default=16, ge=8, le=64, multiple_of=8)


class UNet(_Trainable):
    """MONAI's residual UNet with group normalisation, for segmentation."""

    name: Literal["unet"]
    width: int = Field(default=16, ge=8, le=64, multiple_of=8)


Model = Annotated[
    Scattering | SmallResNet | DenseNet121 | EfficientNetB0 | BasicUNet | UNet, Field(discriminator="name")
]
SEGMENTATION_MODELS = frozenset({"basic_unet", "unet"})
