"""The networks of `search_space=mobile`: inverted residual blocks, as in MobileNetV2 and MobileNetV3.

Outside of a search the words return their first options, and these are MobileNetV2's: `MobileNet()` is
torchvision's network.

Sources: Sandler et al., MobileNetV2, CVPR 2018; Howard et al., Searching for MobileNetV3, ICCV 2019.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from hwnas.spaces.known.names import MULTIPLIERS, SMALL_SIDE
from hwnas.spaces.known.resizing import Resize, sides
from hwnas.spaces.module.words import choice, depth, kernel, width


class Stage(NamedTuple):
    """Options of the blocks of one stage; MobileNetV2's come first.

    Attributes:
        widths: Output channels, before the multiplier.
        expansions: Channels of the depthwise convolution, as multiples of the input's.
        depths: Number of blocks.
        stride: Of the first block.
    """

    widths: tuple[int, ...]
    expansions: tuple[int, ...]
    depths: tuple[int, ...]
    stride: int


STAGES = (
    Stage((16, 8, 24), (1, 2, 3), (1, 2), 1),
    Stage((24, 16, 32), (6, 4, 3, 2), (2, 1, 3), 2),
    Stage((32, 24, 48), (6, 4, 3, 2), (3, 1, 2, 4), 2),
    Stage((64, 48, 96), (6, 4, 3, 2), (4, 1, 2, 3), 2),
    Stage((96, 64, 128), (6, 4, 3, 2), (3, 1, 2, 4), 1),
    Stage((160, 96, 128, 240), (6, 4, 3, 2), (3, 1, 2, 4), 2),
    Stage((320, 160, 240), (6, 4, 3, 2), (1, 2), 1),
)
"""The stages of MobileNetV2, and what may be in their place: the options are not published."""

STEM, HEADS = 32, (1280, 640, 320)
"""Channels of the first convolution, before the multiplier, and of the last one."""

ACTIVATIONS = {"relu6": nn.ReLU6, "hswish": nn.Hardswish}
"""MobileNetV2's, and MobileNetV3's."""


class MobileNet(nn.Module):
    """A stem, seven stages of inverted residual blocks, and a classifier.

    Images of fewer than `SMALL_SIDE` pixels keep more of their resolution: the stem and the second stage have
    a stride of 1 or 2, and 2 or 4 (the stem), 2 or 1 (the stage) otherwise.

    Args:
        image_shape: (channels, height, width) of the images.
        num_classes: Number of classes.
    """

    def __init__(self, image_shape: tuple[int, int, int] = (3, 224, 224), num_classes: int = 1000) -> None:
        super().__init__()
        side = min(image_shape[1:])
        small = side < SMALL_SIDE
        self.resize = Resize(side, choice("resolution", sides(side)))
        multiplier = choice("width", MULTIPLIERS[::-1])
        activation = ACTIVATIONS[choice("activation", list(ACTIVATIONS))]
        channels, stride = scaled(STEM, multiplier), choice("stem.stride", [1, 2] if small else [2, 4])
        size = 3 if stride < 3 else 7
        self.stem = Conv2dNormActivation(image_shape[0], channels, size, stride, activation_layer=activation)
        self.stages = nn.Sequential()
        for number, stage in enumerate(STAGES, start=1):
            inputs, channels = channels, scaled(width(f"s{number}.width", stage.widths), multiplier)
            stride = stage.stride
            if number == 2:
                stride = choice("s2.stride", [1, 2] if small else [2, 1])
            self.stages.append(blocks(f"s{number}", stage, inputs, channels, stride, activation))
        head = width("head", HEADS)
        self.head = Conv2dNormActivation(channels, head, 1, activation_layer=activation)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(head, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, classes)."""
        x = self.head(self.stages(self.stem(self.resize(x))))
        return self.classifier(x.mean((2, 3)))


def blocks(
    name: str, stage: Stage, inputs: int, outputs: int, stride: int, activation: type[nn.Module]
) -> nn.Sequential:
    """The blocks of one stage, whose choices are called `name`.something."""
    expansion, k = choice(f"{name}.expand", stage.expansions), kernel(f"{name}.kernel", [3, 5, 7])
    attention = choice(f"{name}.se", ["no", "yes"]) == "yes"

    def block(index: int) -> nn.Module:
        before, step = (inputs, stride) if index == 0 else (outputs, 1)
        return InvertedResidual(before, outputs, expansion, k, step, attention, activation)

    return depth(f"{name}.depth", stage.depths, block)


class InvertedResidual(nn.Module):
    """A block that widens, convolves each channel for itself, and narrows again."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        kernel_size: int,
        stride: int,
        attention: bool,
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.layers = nn.Sequential()
        if expansion > 1:
            expand = Conv2dNormActivation(inputs, hidden, 1, activation_layer=activation)
            self.layers.add_module("expand", expand)
        depthwise = Conv2dNormActivation(
            hidden, hidden, kernel_size, stride, groups=hidden, activation_layer=activation
        )
        self.layers.add_module("depthwise", depthwise)
        if attention:
            gate = SqueezeExcitation(hidden, scaled(hidden, 0.25), scale_activation=nn.Hardsigmoid)
            self.layers.add_module("attention", gate)
        project = Conv2dNormActivation(hidden, outputs, 1, activation_layer=None)
        self.layers.add_module("project", project)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        y = self.layers(x)
        return x + y if self.residual else y


def scaled(channels: int, multiplier: float) -> int:
    """A width times the multiplier, as the nearest multiple of 8 that is not 10 % smaller.

    Source: Sandler et al. (code), as torchvision has it.
    """
    exact = channels * multiplier
    nearest = max(8, int(exact + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * exact else nearest
