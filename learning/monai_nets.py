"""MONAI's networks as encoders, with group normalisation; MONAI takes seconds to import, so only when one is built."""

from collections import OrderedDict

from torch import nn

NORM = ("group", {"num_groups": 8})
"""Every channel count of these networks is a multiple of 8."""


def densenet121_encoder() -> tuple[nn.Module, int]:
    """Return MONAI's DenseNet121 up to its pooled features, and their number."""
    from monai.networks.nets import DenseNet121

    net = DenseNet121(spatial_dims=2, in_channels=1, out_channels=1, norm=NORM)
    layers = net.class_layers
    dimensions = layers.out.in_features
    pooled = [("features", net.features), ("relu", layers.relu), ("pool", layers.pool), ("flatten", layers.flatten)]
    return _out_of_place(nn.Sequential(OrderedDict(pooled))), dimensions


def efficientnet_b0_encoder() -> tuple[nn.Module, int]:
    """Return MONAI's EfficientNet-B0 up to its pooled features, and their number.

    Dropout and drop-connect are off: they draw from torch's global generator, so a run could not be repeated.
    """
    from monai.networks.nets import EfficientNetBN

    net = EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=1, num_classes=1, norm=NORM)
    dimensions = net._fc.in_features
    net._fc = nn.Identity()
    net._dropout = nn.Identity()
    for stack in net._blocks:
        for block in stack:
            block.drop_connect_rate = 0.0
    return _out_of_place(net), dimensions


def basic_unet_encoder(width: int) -> tuple[nn.Module, int]:
    """Return MONAI's BasicUNet up to its last feature maps, and their number.

    Args:
        width: channels at full resolution, a multiple of 8.
    """
    from monai.networks.nets import BasicUNet

    channels = (width, width, 2 * width, 4 * width, 8 * width, width)
    net = BasicUNet(spatial_dims=2, in_channels=1, out_channels=1, features=channels, norm=_norm(width))
    net.final_conv = nn.Identity()
    return _out_of_place(net), width


def unet_encoder(width: int) -> tuple[nn.Module, int]:
    """Return MONAI's residual UNet up to its last feature maps, and their number.

    Args:
        width: channels at half resolution, a multiple of 8.
    """
    from monai.networks.nets import UNet

    channels = (width, 2 * width, 4 * width, 8 * width, 16 * width)
    net = UNet(2, 1, width, channels, strides=(2, 2, 2, 2), num_res_units=2, norm=_norm(width))
    return _out_of_place(net), width


def _norm(width: int) -> tuple[str, dict[str, int]]:
    return "group", {"num_groups": min(8, width // 4)}


def _out_of_place(net: nn.Module) -> nn.Module:
    """Switch in-place activations off: they overwrite what a gradient hook or a second backward pass still needs."""
    for layer in net.modules():
        if isinstance(getattr(layer, "inplace", None), bool):
            layer.inplace = False  # type: ignore[assignment]
    return net
