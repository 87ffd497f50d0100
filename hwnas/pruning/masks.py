"""Which weights are pruned: criteria, schedules and masks.

Only the weights of `Deployed.layers()` are pruned; biases and normalisation stay, and the decoder and the
log-variance do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Len
from torch import Tensor, nn
from torch.nn.utils import prune

from hwnas.core import BelowOne, Count, NotNegative, Positive, checked
from hwnas.pruning.beta_vae import Deployed

Layer = nn.Conv2d | nn.Linear


@checked
@dataclass(frozen=True)
class Pruning:
    """Settings of pruning: what is pruned, how far, and how the network is trained meanwhile; no paper says.

    Args:
        sparsities: Shares of weights (or of filters) to remove, each in [0, 1), rising; every one starts from
            the trained network, and 0 is trained on as long as the others.
        structure: "weights": single ones; "filters": output channels of convolutions and units of the hidden
            layer; the code and the classes stay.
        criterion: What is kept: "l1": the largest magnitudes; "snip": the largest |weight * gradient|;
            "taylor": the largest (weight * gradient)^2, summed over a filter before squaring, mean over
            batches; "random".
        scope: "global": the same threshold for all layers, of filters for the mean over their weights;
            "layer": the same fraction of every layer.
        schedule: "one_shot": all at once; "cubic": s (1 - (1 - t/T)^3) for t = 1..T.
        ramp_epochs: Passes over which a cubic schedule rises.
        ramp_updates: T, its number of rises.
        finetune_epochs: Passes after the last rise.
        lr: Learning rate meanwhile.
        num_images: Training images that the gradient of "snip" and "taylor" is taken of.

    Raises:
        ValueError: A value out of range; names the setting.

    Source: cubic: Zhu & Gupta, To prune, or not to prune, 2017; snip: Lee et al., ICLR 2019; taylor:
        Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019; filters by their L1
        norm: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017.
    """

    sparsities: Annotated[Sequence[BelowOne], Len(1)]
    structure: Literal["weights", "filters"]
    criterion: Literal["l1", "random", "snip", "taylor"]
    scope: Literal["global", "layer"]
    schedule: Literal["one_shot", "cubic"]
    ramp_epochs: NotNegative
    ramp_updates: Count
    finetune_epochs: NotNegative
    lr: Positive
    num_images: Annotated[int, Ge(2)]

    def __post_init__(self) -> None:
        if list(self.sparsities) != sorted(set(self.sparsities)):
            raise ValueError(f"sparsities must rise, not {list(self.sparsities)}")

    def plan(self, target: float, steps_per_epoch: int) -> tuple[dict[int, float], int]:
        """When the sparsity rises to what, and how many optimiser steps there are.

        Args:
            target: The sparsity in the end.
            steps_per_epoch: Optimiser steps of a pass.

        Returns:
            Sparsity by the number of the step before which it is reached, and the number of steps. Rises that
            fall on the same step are one.
        """
        finetune = round(self.finetune_epochs * steps_per_epoch)
        if self.schedule == "one_shot":
            return {0: target}, finetune
        ramp, T = round(self.ramp_epochs * steps_per_epoch), self.ramp_updates
        rises = {(t - 1) * ramp // T: target * (1 - (1 - t / T) ** 3) for t in range(1, T + 1)}
        return rises, ramp + finetune


def scores(
    network: Deployed, pruning: Pruning, x_NCHW: Tensor, y_N: Tensor, *, seed: int, batch_size: int = 100
) -> dict[str, Tensor]:
    """How much each weight or filter is worth, by the criterion; what is pruned already is worth nothing.

    Args:
        network: The network, masked or not.
        pruning: Criterion and structure.
        x_NCHW: Images for the gradient of the classifier's cross-entropy.
        y_N: Their labels.
        seed: Of the criterion "random".
        batch_size: Images per gradient.

    Returns:
        Per layer a score for every weight, shaped like them, or for every filter, (filters,); the latter of
        convolutions and the hidden layer only.
    """
    filters = pruning.structure == "filters"
    layers = prunable(network, pruning)
    if pruning.criterion in ("snip", "taylor"):
        values = _gradient_scores(network, layers, pruning, x_NCHW, y_N, batch_size)
    else:
        generator = torch.Generator().manual_seed(seed)
        values = {}
        for name, layer in layers.items():
            weight = _weight(layer)
            if pruning.criterion == "l1":
                values[name] = weight.abs().flatten(1).mean(1) if filters else weight.abs()
            else:
                shape = weight.shape[:1] if filters else weight.shape
                values[name] = torch.rand(shape, generator=generator).to(weight.device)
    for name, layer in layers.items():
        if prune.is_pruned(layer):
            mask = cast(Tensor, layer.weight_mask)
            alive = mask.flatten(1).any(1) if filters else mask.bool()
            values[name] = values[name].masked_fill(~alive, -torch.inf)
    return values


def prunable(network: Deployed, pruning: Pruning) -> dict[str, Layer]:
    """The layers that lose weights, or filters, of their own."""
    layers = network.layers()
    if pruning.structure == "filters":
        return {name: layer for name, layer in layers.items() if name not in ("mean", "classifier")}
    return layers


def _weight(layer: Layer) -> Tensor:
    """The weight with its mask as they are now; `layer.weight` is that of the last pass."""
    if prune.is_pruned(layer):
        return cast(Tensor, layer.weight_orig).detach() * cast(Tensor, layer.weight_mask)
    return layer.weight.detach()


def _gradient_scores(
    network: Deployed,
    layers: Mapping[str, Layer],
    pruning: Pruning,
    x_NCHW: Tensor,
    y_N: Tensor,
    batch_size: int,
) -> dict[str, Tensor]:
    filters, snip = pruning.structure == "filters", pruning.criterion == "snip"
    names = list(layers)
    device = layers[names[0]].weight.device
    totals = [torch.zeros((), device=device)] * len(names)
    products = list(totals)
    batches = list(zip(x_NCHW.split(batch_size), y_N.split(batch_size), strict=True))
    for x, y in batches:
        loss = F.cross_entropy(network(x.to(device)), y.to(device))
        weights = [layers[name].weight for name in names]
        for index, (weight, gradient) in enumerate(
            zip(weights, torch.autograd.grad(loss, weights), strict=True)
        ):
            product = (weight * gradient).detach()
            products[index] = products[index] + product / len(batches)
            if filters:
                product = product.flatten(1).sum(1)
            totals[index] = totals[index] + product.square() / len(batches)
    if snip:  # the gradient is of all images together
        totals = [p.abs().flatten(1).mean(1) if filters else p.abs() for p in products]
    return dict(zip(names, totals, strict=True))


def masks(
    network: Deployed, pruning: Pruning, values: Mapping[str, Tensor], sparsity: float
) -> tuple[dict[str, Tensor], list[str]]:
    """Masks that remove the lowest scores, to the nearest whole number; ties go by position.

    Of every layer at least one weight, or filter, is kept.

    Args:
        network: The network.
        pruning: Structure and scope.
        values: As `scores` gives them.
        sparsity: Share to remove, in [0, 1).

    Returns:
        Per layer of the network a mask of ones and zeros like its weights, and the layers that would have
        lost everything.
    """
    if pruning.scope == "global":
        together = _kept(torch.cat([value.flatten() for value in values.values()]), sparsity)
        parts = together.split([value.numel() for value in values.values()])
        kept = {name: part.view_as(values[name]) for name, part in zip(values, parts, strict=True)}
    else:
        kept = {name: _kept(value.flatten(), sparsity).view_as(value) for name, value in values.items()}
    emptied = [name for name, keep in kept.items() if not keep.any()]
    for name in emptied:
        kept[name].view(-1)[values[name].argmax()] = True
    if pruning.structure == "filters":
        kept = _weights_of_filters(network, kept)
    return {name: keep.float() for name, keep in kept.items()}, emptied


def _kept(values: Tensor, sparsity: float) -> Tensor:
    """Which of some scores, in a row, are not the lowest."""
    keep = torch.ones_like(values, dtype=torch.bool)
    keep[values.argsort(stable=True)[: round(sparsity * len(values))]] = False
    return keep


def _weights_of_filters(network: Deployed, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight masks that remove filters: their own weights, and what the next layer makes of their outputs."""
    every = kept["hidden"].new_ones
    inputs = every(network.arguments["image_shape"][0])
    found = {}
    for name, layer in network.layers().items():
        if name == "hidden":  # it sees every pixel of every channel
            inputs = inputs.repeat_interleave(layer.weight.shape[1] // len(inputs))
        outputs = kept.get(name, every(len(layer.weight)))
        shape = (-1, len(inputs), *([1] * (layer.weight.dim() - 2)))
        found[name] = (outputs[:, None] & inputs[None]).view(shape).expand_as(layer.weight)
        inputs = outputs
    return found


def apply(network: Deployed, found: Mapping[str, Tensor]) -> None:
    """Put masks on the layers, or other masks into those that are there; an optimiser's state stays valid."""
    for name, layer in network.layers().items():
        if prune.is_pruned(layer):
            cast(Tensor, layer.weight_mask).copy_(found[name])
        else:
            prune.custom_from_mask(layer, "weight", found[name])
        # What others see, which else is the old one until a pass.
        layer.weight = _weight(layer)


def make_permanent(network: Deployed) -> None:
    """Take the masks off; what they removed is zero from now on."""
    for layer in network.layers().values():
        if prune.is_pruned(layer):
            prune.remove(layer, "weight")


def zeros(network: Deployed) -> tuple[int, int]:
    """How many of the prunable weights are zero, and how many there are."""
    weights = [layer.weight for layer in network.layers().values()]
    return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
