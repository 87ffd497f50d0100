"""Training-free scores of networks: their definitions, and the passes through networks that they need.

All scores are higher for networks that are expected to be better. BatchNorm uses batch statistics. `measure`
computes several scores of several networks together and shares passes among them.

Shapes: B images, K networks, C channels, H height, W width, n units, d numbers of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hwnas.spaces.blocks import Population, rectified

JACOV_K = 1e-5

Weights = Mapping[str, Tensor]


def jacov(gradients_KBd: Tensor) -> Tensor:
    """Jacobian covariance: how little the gradients of different images resemble each other, shape (K,).

    With v the eigenvalues of the Pearson correlations among the rows, the score is -sum(ln(v + k) +
    1 / (v + k)), k = 1e-5. A row that is constant up to rounding has the correlation 1 with every row: it
    tells nothing.

    Args:
        gradients_KBd: Gradient of the sum of all logits with respect to each image.

    Source: Mellor et al., Neural Architecture Search without Training, 2020 (arXiv 2006.04647, version 1).
    """
    J = gradients_KBd.double()
    size = J.norm(dim=2, keepdim=True)
    J = J - J.mean(dim=2, keepdim=True)
    norm = J.norm(dim=2, keepdim=True)
    constant = norm <= size * torch.finfo(gradients_KBd.dtype).eps ** 0.75
    J = J / torch.where(constant, torch.ones_like(norm), norm)
    R = torch.where(constant | constant.transpose(1, 2), torch.ones((), dtype=J.dtype), J @ J.transpose(1, 2))
    v = _eigenvalues(R).clamp_min(0) + JACOV_K
    return -(v.log() + 1 / v).sum(dim=1)


def naswot(agreement_KBB: Tensor) -> Tensor:
    """NASWOT: ln |det| of how often the ReLUs of a network agree on two images, shape (K,).

    Args:
        agreement_KBB: Number of ReLU inputs that are positive for both images, or for neither.

    Source: Mellor et al., Neural Architecture Search without Training, ICML 2021.
    """
    return torch.linalg.slogdet(agreement_KBB.double()).logabsdet


def synflow(products: Sequence[tuple[Tensor, Sequence[int]]], num_networks: int) -> Tensor:
    """Synaptic flow: ln of the sum of |W dR/dW| over all weights, shape (K,).

    R is the sum of the outputs for an image of ones, of the network without BatchNorm and with the absolute
    values of its weights, in float64.

    Args:
        products: W dR/dW of each layer, and whose it is, as `Population.layers` has weights.
        num_networks: K.

    Source: Tanaka et al., Pruning neural networks without any data, NeurIPS 2020.
    """
    total = torch.zeros(num_networks, dtype=torch.float64)
    for product, networks in products:
        _add(total, product.detach().reshape(len(networks), -1).abs().sum(dim=1), networks)
    return total.log()


def agreement(x_BKn: Tensor) -> Tensor:
    """Number of units on whose signs two images agree, shape (K, B, B)."""
    signs = torch.where(x_BKn > 0, 1.0, -1.0).transpose(0, 1)  # whole numbers: exact
    return (signs.shape[2] + torch.bmm(signs, signs.transpose(1, 2)).double()) / 2


@dataclass(frozen=True)
class Data:
    """Inputs of networks.

    Attributes:
        x: Images (B, C, H, W), normalised.
        seed: Seed of random numbers.
    """

    x: Tensor
    seed: int


PASSES: dict[str, str] = {"jacov": "images", "naswot": "images", "synflow": "ones"}
"""The pass that a score needs."""


def measure(
    names: Sequence[str], make: Callable[[Callable[[Tensor], Tensor]], Population], data: Data
) -> dict[str, Tensor]:
    """Scores of K networks, each (K,), float64, on the CPU.

    Args:
        names: Those of `PASSES` that are wanted.
        make: Makes the networks with their initial weights, changed by a function.
        data: Inputs.

    Raises:
        ValueError: NASWOT of networks without ReLUs.
    """
    wanted = {PASSES[name] for name in names}
    found: dict[str, Tensor] = {}
    if "images" in wanted:
        found |= _from_images(names, make(lambda weight: weight), data)
    if "ones" in wanted:
        found |= _from_ones(make(lambda weight: weight.double().abs()), data)
    return {name: found[name].double().cpu() for name in names}


def _from_images(names: Sequence[str], population: Population, data: Data) -> dict[str, Tensor]:
    """Scores from a pass of the images through all networks, each of which has its own copy of the images."""
    K = population.num_networks
    found: dict[str, Tensor] = {}
    agreements: list[Tensor] = []

    def on_relu(x_BKn: Tensor, uses: Tensor | None) -> None:
        with torch.no_grad():
            number = agreement(x_BKn)
            agreements.append(number if uses is None else number * uses[:, None, None])

    x = data.x.to(next(population.parameters()).dtype)
    x_BKCHW = x[:, None].expand(-1, K, *x.shape[1:]).clone().requires_grad_("jacov" in names)
    with torch.set_grad_enabled("jacov" in names), Watch(K, on_relu if "naswot" in names else None):
        _, logits = population.features(x_BKCHW)
    if "jacov" in names:
        # Networks do not mix: the gradient of the sum holds that of each network at its copy of the images.
        (gradient,) = torch.autograd.grad(logits.sum(), x_BKCHW)
        found["jacov"] = jacov(gradient.transpose(0, 1).flatten(2))
    if "naswot" in names:
        if not agreements:
            raise ValueError("naswot counts ReLUs, and the networks have none")
        found["naswot"] = naswot(sum(agreements[1:], start=agreements[0]))
    return found


def _from_ones(population: Population, data: Data) -> dict[str, Tensor]:
    """Scores from a pass of an image of ones through networks of positive weights, without BatchNorm."""
    with Watch(population.num_networks, batch_norm=False):
        _, logits = population.features(torch.ones_like(data.x[:1], dtype=torch.float64))
    layers = list(population.layers())
    gradients = torch.autograd.grad(logits.sum(), [weight for weight, _ in layers], allow_unused=True)
    products = [
        (weight * gradient, networks)
        for (weight, networks), gradient in zip(layers, gradients, strict=True)
        if gradient is not None
    ]
    return {"synflow": synflow(products, population.num_networks)}


class Watch(TorchFunctionMode):
    """Sees what networks compute while it is entered, and leaves BatchNorm out if wanted.

    Torch's own functions are watched, so that networks need not be made for it.

    Args:
        num_networks: K of a population; 1 for a network of its own.
        on_relu: Called with the input of each ReLU, (B, K, n), and how many ReLUs of each network it stands
            for, (K,) or None for one.
        batch_norm: Whether to compute BatchNorm.
    """

    def __init__(
        self,
        num_networks: int,
        on_relu: Callable[[Tensor, Tensor | None], None] | None = None,
        *,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.num_networks, self.on_relu, self.batch_norm = num_networks, on_relu, batch_norm

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call a function, or what it is to be replaced by."""
        if func is F.batch_norm and not self.batch_norm:
            return args[0]
        if self.on_relu is not None and func in RELUS:
            x = args[0]
            uses = args[2] if func is rectified and len(args) > 2 else None
            self.on_relu(x.detach().reshape(len(x), self.num_networks, -1), uses)
        return func(*args, **(kwargs or {}))


RELUS = (rectified, F.relu, F.relu6, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)


class OneNetwork(Population):
    """A network as a population of one.

    Args:
        network: Takes images (B, C, H, W) to logits (B, classes).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.train()

    num_networks = 1

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """No features, and logits (1, B, classes)."""
        return [], self.network(x[:, 0] if x.dim() == 5 else x)[None]

    def layers(self) -> Iterator[tuple[Tensor, Sequence[int]]]:
        """Weights of all convolutions and linear layers."""
        for module in self.network.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                yield module.weight, (0,)

    def cells(self) -> list[nn.Module]:
        """The network's parts, those of its lists one by one."""
        parts = []
        for part in self.network.children():
            parts += list(part) if isinstance(part, nn.ModuleList) else [part]
        return parts


def kaiming(weights: Weights, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights of the same names and shapes, drawn anew: normal, with the variance 2 / fan-in; biases 0.

    Those of one dimension, BatchNorm's, stay. Weights of five dimensions are several convolutions.

    Source: He et al., Delving deep into rectifiers, ICCV 2015.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, old in weights.items():
        new = old.detach().cpu().double().clone()
        for part in new if new.dim() == 5 else [new]:
            if part.dim() > 1:
                nn.init.kaiming_normal_(part, generator=generator)
            elif name.endswith("bias"):
                part.zero_()
        drawn[name] = new.to(dtype)
    return drawn


def _eigenvalues(matrices: Tensor) -> Tensor:
    """Eigenvalues of symmetric matrices (..., m, m), ascending; NaN for those with a NaN."""
    known = matrices.isfinite().all(dim=(-2, -1), keepdim=True)
    values = torch.linalg.eigvalsh(torch.where(known, matrices, torch.zeros_like(matrices)))
    return torch.where(known[..., 0], values, torch.full_like(values, torch.nan))


def _add(total: Tensor, values: Tensor, networks: Sequence[int]) -> None:
    """Add values to the totals of their networks."""
    total.index_add_(0, torch.tensor(list(networks)), values.to(total))
