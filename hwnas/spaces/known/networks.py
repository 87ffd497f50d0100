"""Off-the-shelf networks: torchvision's, and ResNets of other widths and depths, fitted to the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

from hwnas.spaces.blocks import count
from hwnas.spaces.known.names import SMALL_SIDE, Known

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "mobilenet_v3_large": torchvision.models.mobilenet_v3_large,
}
"""torchvision's functions that take a width multiplier."""


class ThinResNet(torchvision.models.ResNet):
    """torchvision's ResNet of basic blocks with another base width than 64.

    Args:
        depths: Blocks of the four stages.
        base: Channels of the first stage.
        num_classes: Number of classes.
    """

    def __init__(self, depths: Sequence[int], base: int, num_classes: int) -> None:
        self._base = base
        super().__init__(BasicBlock, list(depths), num_classes=num_classes)
        self.conv1, self.bn1 = nn.Conv2d(3, base, 7, 2, 3, bias=False), nn.BatchNorm2d(base)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.fc = nn.Linear(8 * base, num_classes)

    def _make_layer(
        self, block: type, planes: int, blocks: int, stride: int = 1, dilate: bool = False
    ) -> nn.Sequential:
        """A stage; torchvision asks for 64, 128, 256 and 512 channels."""
        if planes == 64:
            self.inplanes = self._base
        return super()._make_layer(block, planes * self._base // 64, blocks, stride, dilate)


def build(known: Known, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A network, randomly initialised by torch's generator.

    Its first convolution takes the images' channels. For images below `SMALL_SIDE` pixels a ResNet begins
    with a 3x3 convolution of stride 1 without a pool, and a MobileNet leaves out the first two of its five
    strides of 2: both end at an eighth of the images' side.

    Args:
        known: Which network.
        image_shape: (channels, height, width) of the images.
        num_classes: Number of classes.
    """
    channels, *sides = image_shape
    small = min(sides) < SMALL_SIDE
    network: nn.Module
    if known.depths:
        network = ThinResNet(known.depths, int(known.width), num_classes)
        if small:
            network.conv1 = nn.Conv2d(3, int(known.width), 3, 1, 1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
    else:
        network = MODELS[known.family](num_classes=num_classes, width_mult=known.width)
        strided = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
        for convolution in strided[:2] if small else ():
            convolution.stride = (1, 1)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != channels:
        first.in_channels = channels
        first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, channels, *first.kernel_size))
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
    return network


def counted(known: Known, image_shape: tuple[int, int, int], num_classes: int) -> tuple[int, int]:
    """(parameters, multiply-adds) of a network for one image, counted on `device="meta"`."""
    with torch.device("meta"):
        return count(build(known, image_shape, num_classes), image_shape)
