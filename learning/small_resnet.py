"""A small residual network with group normalisation, for cohorts too small for the large ones."""

import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS_PER_GROUP = 4
MAX_GROUPS = 8


def group_norm(channels: int) -> nn.GroupNorm:
    """Return group normalisation with at most 8 groups of at least 4 channels, `channels` being a multiple of 8.

    One channel a group would remove each channel's mean, which a pooled feature is.
    """
    return nn.GroupNorm(min(MAX_GROUPS, channels // CHANNELS_PER_GROUP), channels)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut.

    He et al. (2016), fig. 2, with group normalisation (Wu & He (2018)). The last scale starts at one: starting it at zero
    (Goyal et al. (2017)) made breast lesions learn slower in short trainings.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = group_norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = group_norm(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(channels_in, channels_out, 1, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's answer, float [n, channels_out, side / stride, side / stride]."""
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class SmallResNetEncoder(nn.Module):
    """Turn images into feature vectors of `4 * width` numbers.

    A stem at half resolution, then three stages of `width`, `2 * width` and `4 * width` channels, each halving the
    side. The features are the means of the last channels.

    Args:
        width: channels of the first stage, a multiple of 8.
        blocks: residual blocks in each stage.
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.dimensions = 4 * width
        self.stem = nn.Conv2d(1, width, 5, stride=2, padding=2, bias=False)
        # One channel a group: otherwise the brightness of an image, large against its contrast, rules the variance.
        self.norm = nn.GroupNorm(width, width)
        stages = []
        channels = width
        for stage in range(3):
            for block in range(blocks):
                stages.append(ResidualBlock(channels, width * 2**stage, stride=2 if block == 0 else 1))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*stages)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return features, float [n, 4 * width], of images, float [n, 1, side, side]."""
        maps: Tensor = self.blocks(F.relu(self.norm(self.stem(images))))
        return maps.mean(dim=(2, 3))
