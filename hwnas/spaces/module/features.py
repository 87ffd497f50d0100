"""Features of a module's networks on the way to the logits, for a comparison with those of a reference.

Shapes: B images, K networks, C channels, H height, W width, d = C * H * W.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.spaces.blocks import Population
from hwnas.spaces.module.words import MisfitError

NUM_STAGES = 3
"""Stages of features, as a reference network has them."""

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules whose parts are looked at one by one."""


class Networks(Population):
    """K networks that run one after another, with features of three stages.

    A network's features are what its parts return, those of lists one by one, in the order in which they
    run; stages are the ends of their thirds. They are flattened, and filled with zeros to the length of the
    longest: zeros change no scalar product.

    Args:
        networks: Take images (B, C, H, W) to logits (B, classes).
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.num_networks = len(networks)
        self.to(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of all networks per stage, each (B, K, d, 1, 1), and logits (K, B, classes).

        Args:
            x: Images (B, C, H, W) for all networks.

        Raises:
            MisfitError: A network none of whose parts returns images.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        taps, logits = zip(*(stages(network, x) for network in self.networks), strict=True)
        return [_together(stage) for stage in zip(*taps, strict=True)], torch.stack(logits)


def stages(network: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Features of a network after each third of its parts, each (B, C, H, W), and its logits (B, classes)."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            found.append(output)

    hooks = [part.register_forward_hook(keep) for part in parts(network)]
    try:
        logits = network(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise MisfitError("has no part that returns images, (B, C, H, W)")
    ends = [-(-len(found) * stage // NUM_STAGES) - 1 for stage in range(1, NUM_STAGES + 1)]
    return [found[max(end, 0)] for end in ends], logits


def parts(network: nn.Module) -> Iterator[nn.Module]:
    """Parts of a network, those of its lists one by one."""
    for part in network.children():
        if isinstance(part, CONTAINERS):
            yield from parts(part)
        else:
            yield part


def _together(stage: Sequence[Tensor]) -> Tensor:
    """Features of K networks as one tensor."""
    flat = [features.flatten(1) for features in stage]
    longest = max(features.shape[1] for features in flat)
    filled = [F.pad(features, (0, longest - features.shape[1])) for features in flat]
    return torch.stack(filled, dim=1)[..., None, None]
