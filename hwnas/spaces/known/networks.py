"""Off-the-shelf networks: torchvision's, and ResNets of other widths and depths, fitted to the images."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision
from torch import nn

from hwnas.spaces.blocks import count
from hwnas.spaces.known import counting
from hwnas.spaces.known.counting import scaled
from hwnas.spaces.known.mobile import MobileNet
from hwnas.spaces.known.names import SMALL_SIDE, Known
from hwnas.spaces.known.pretrained import Pretrained
from hwnas.spaces.known.resnet import STEMS, ResNet
from hwnas.spaces.module.words import building

__all__ = ["SPACES", "Pretrained", "build", "counted", "scaled"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "mobilenet_v3_large": torchvision.models.mobilenet_v3_large,
}
"""torchvision's functions that take a width multiplier; other networks are points of the spaces."""

STEM_STRIDES = {name: float(stride * (2 if pool else 1)) for name, (_, stride, pool) in STEMS.items()}
"""By how much the stems of residual networks divide the side of images."""

SPACES = {"mobile": (MobileNet, counting.mobile), "resnet": (ResNet, counting.resnet)}
"""Per space its networks, and the function that counts them."""


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
    if known.family not in MODELS:
        with building(known.options):
            return (ResNet if known.depths else MobileNet)(image_shape, num_classes)
    network = MODELS[known.family](num_classes=num_classes, width_mult=known.width)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if min(image_shape[1:]) < SMALL_SIDE:
        for convolution in [each for each in convolutions if each.stride == (2, 2)][:2]:
            convolution.stride = (1, 1)
    stem, channels = convolutions[0], image_shape[0]
    if channels != stem.in_channels:
        stem.in_channels = channels
        stem.weight = nn.Parameter(stem.weight.new_empty(stem.out_channels, channels, *stem.kernel_size))
        nn.init.kaiming_normal_(stem.weight, mode="fan_out")
    return network


def counted(known: Known, image_shape: tuple[int, int, int], num_classes: int) -> tuple[int, int]:
    """(parameters, multiply-adds) of a network for one image, counted on `device="meta"`."""
    with torch.device("meta"):
        return count(build(known, image_shape, num_classes), image_shape)
