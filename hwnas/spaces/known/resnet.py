"""The networks of `search_space=resnet`: residual networks of basic or of bottleneck blocks.

Outside of a search the words return their first options, and these are ResNet-18's: `ResNet()` is
torchvision's network, down to the names of its weights.

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from hwnas.spaces.known.names import BASE_WIDTHS, SMALL_SIDE
from hwnas.spaces.known.resizing import Resize, sides
from hwnas.spaces.module.words import choice, depth, width

STEMS = {"3x3": (3, 1, False), "3x3-stride2": (3, 2, False), "7x7-pool": (7, 2, True)}
"""Kernel and stride of the first convolution, and whether a max-pool of stride 2 follows."""

BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
"""torchvision's blocks."""

STAGES = (
    ((1,), (2, 1, 3, 0)),
    ((2, 1, 3), (2, 1, 3, 4)),
    ((4, 2, 3, 6), (2, 1, 3, 4, 6)),
    ((8, 4, 6), (2, 1, 3, 0)),
)
"""Per stage the options for its channels, in multiples of the base width, and for its number of blocks.

ResNet-18's come first; ResNet-34 and ResNet-50 have 3, 4, 6 and 3 blocks, and the paper's networks for CIFAR
no fourth stage. The options are not published.
"""


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, and a classifier.

    Images of fewer than `SMALL_SIDE` pixels have the usual stem of CIFAR first, 3x3 without a pool; others
    that of ImageNet.

    Args:
        image_shape: (channels, height, width) of the images.
        num_classes: Number of classes.
    """

    def __init__(self, image_shape: tuple[int, int, int] = (3, 224, 224), num_classes: int = 1000) -> None:
        super().__init__()
        side = min(image_shape[1:])
        self.resize = Resize(side, choice("resolution", sides(side)))
        base = width("width", BASE_WIDTHS[::-1])
        stems = list(STEMS)
        size, stride, pool = STEMS[choice("stem", stems if side < SMALL_SIDE else stems[::-1])]
        self.conv1 = nn.Conv2d(image_shape[0], base, size, stride, size // 2, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(base), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if pool else None
        make = BLOCKS[choice("block", list(BLOCKS))]
        channels, stages = base, []
        for number, (multiples, depths) in enumerate(STAGES, start=1):
            planes = base if number == 1 else base * width(f"s{number}.width", multiples)
            count = depth(f"s{number}.depth", depths)
            stages.append(blocks(make, channels, planes, 1 if number == 1 else 2, count))
            channels = planes * make.expansion if count else channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, classes)."""
        x = self.relu(self.bn1(self.conv1(self.resize(x))))
        if self.maxpool is not None:
            x = self.maxpool(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def blocks(
    make: type[BasicBlock | Bottleneck], inputs: int, planes: int, stride: int, count: int
) -> nn.Sequential:
    """The blocks of one stage; the first has the stride, and a convolution beside it where shapes change."""
    if not count:
        return nn.Sequential()
    outputs, shortcut = planes * make.expansion, None
    if stride > 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = make(inputs, planes, stride, shortcut)
    return nn.Sequential(first, *(make(outputs, planes) for _ in range(count - 1)))
