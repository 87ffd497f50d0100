"""Training-free scores of networks: their definitions, and the passes through networks that they need.

All scores are higher for networks that are expected to be better. BatchNorm uses batch statistics. `measure`
computes several scores of several networks together and shares passes among them.

Shapes: B images, K networks, C channels, H height, W width, n units, d numbers of an image, L cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hwnas.core import seed_of
from hwnas.spaces.blocks import Population, rectified

JACOV_K = 1e-5

SWAP_IMAGES, SWAP_DRAWS = 16, 32

MECO_SIDE = 64
"""Height and width of MeCo's image, in pixels."""

ZICO_BATCHES = 2

FROM_IMAGES = ("jacov", "naswot", "swap", "zico", "az_expressivity", "az_progressivity", "az_trainability")
"""Scores of passes of images through the networks."""

PASSES = (*FROM_IMAGES, "synflow", "meco")
"""Scores that networks are computed for; others are counted."""

Layer = tuple[Tensor, Sequence[int]]
"""Numbers of a layer of several networks, one after another, and whose they are: see `Population.layers`."""


def jacov(gradients_KBd: Tensor) -> Tensor:
    """Jacobian covariance: how little the gradients of different images resemble each other, shape (K,).

    With v the eigenvalues of the Pearson correlations among the rows, the score is -sum(ln(v + k) +
    1 / (v + k)), k = 1e-5. A row that is constant up to rounding has the correlation 1 with every row: it
    tells nothing.

    Args:
        gradients_KBd: Gradient of the sum of all logits with respect to each image.

    Source: Mellor et al., Neural Architecture Search without Training, 2020 (arXiv 2006.04647, version 1).
    """
    rows, constant = _standardised(gradients_KBd)
    R = torch.bmm(rows, rows.transpose(1, 2))
    R = torch.where(constant | constant.transpose(1, 2), torch.ones_like(R), R)
    v = _eigenvalues(R).clamp_min(0) + JACOV_K
    return -(v.log() + 1 / v).sum(dim=1)


def naswot(agreement_KBB: Tensor) -> Tensor:
    """NASWOT: ln |det| of how often the ReLUs of a network agree on two images, shape (K,).

    Args:
        agreement_KBB: Number of ReLU inputs that are positive for both images, or for neither.

    Source: Mellor et al., Neural Architecture Search without Training, ICML 2021.
    """
    return torch.linalg.slogdet(agreement_KBB.double()).logabsdet


def swap(patterns_DKn: Tensor) -> Tensor:
    """SWAP: how many different patterns of signs the ReLUs of a network have, mean over draws, shape (K,).

    The pattern of a unit is on which of 16 images its input is positive. Our choice: one batch is computed,
    and the images are 32 draws from it.

    Args:
        patterns_DKn: Pattern of each unit in each of D draws, as a number; -1 does not count.

    Source: Peng et al., SWAP-NAS, ICLR 2024.
    """
    D, K, _ = patterns_DKn.shape
    total = torch.zeros(K, dtype=torch.float64, device=patterns_DKn.device)
    for patterns_Kn in patterns_DKn:
        seen = torch.zeros(K, 1 + 2**SWAP_IMAGES, dtype=torch.bool, device=total.device)
        total += seen.scatter_(1, patterns_Kn + 1, True)[:, 1:].sum(dim=1)
    return total / D


def zico(gradients: Sequence[Sequence[Layer]], num_networks: int) -> Tensor:
    """ZiCo: sum over layers of ln(sum over weights of mean |g| / std g), shape (K,).

    Mean and standard deviation are over batches; squares are divided by the number of batches. As in the
    authors' code, weights with the same gradient in all batches are left out, and so are layers of only such
    weights.

    Args:
        gradients: Gradients of the cross-entropy per batch and layer.
        num_networks: K.

    Source: Li et al., ZiCo, ICLR 2023.
    """
    total = torch.zeros(num_networks, dtype=torch.float64)
    for layers in zip(*gradients, strict=True):
        networks = layers[0][1]
        g = torch.stack([values.double().reshape(len(networks), -1) for values, _ in layers])
        mean, std = g.abs().mean(dim=0), g.std(dim=0, correction=0)
        ratios = torch.where(std == 0, torch.zeros_like(mean), mean / torch.where(std == 0, 1.0, std))
        summed = ratios.sum(dim=1)
        _add(total, torch.where(summed == 0, torch.zeros_like(summed), summed.log()), networks)
    return total


def synflow(products: Sequence[Layer], num_networks: int) -> Tensor:
    """Synaptic flow: ln of the sum of |W dR/dW| over all weights, shape (K,).

    R is the sum of the outputs for an image of ones, of the network without BatchNorm and with the absolute
    values of its weights, in float64.

    Args:
        products: W dR/dW per layer.
        num_networks: K.

    Source: Tanaka et al., Pruning neural networks without any data, NeurIPS 2020.
    """
    total = torch.zeros(num_networks, dtype=torch.float64)
    for product, networks in products:
        _add(total, product.reshape(len(networks), -1).abs().sum(dim=1), networks)
    return total.log()


def az_expressivity(entropies_LK: Tensor) -> Tensor:
    """AZ-NAS' expressivity: the sum of the entropies of all cells, shape (K,).

    Args:
        entropies_LK: `feature_entropy` of each cell; the stem counts as the first, and so do blocks between
            stages.

    Source: Lee & Ham, AZ-NAS, CVPR 2024; as for the other parts. AZ-NAS' complexity is the multiply-adds.
    """
    return entropies_LK.sum(dim=0)


def az_progressivity(entropies_LK: Tensor) -> Tensor:
    """AZ-NAS' progressivity: the smallest increase of the entropy from cell to cell, shape (K,).

    Args:
        entropies_LK: As for `az_expressivity`.
    """
    return entropies_LK.diff(dim=0).amin(dim=0)


def az_trainability(norms_LK: Tensor) -> Tensor:
    """AZ-NAS' trainability: the mean over cells of 2 - s - 1 / s, at most 0, shape (K,).

    Args:
        norms_LK: s, `gradient_norm` of each cell after the stem.
    """
    return (2 - norms_LK - 1 / norms_LK).mean(dim=0)


def feature_entropy(x_BKCHW: Tensor) -> Tensor:
    """Entropy of the normalised eigenvalues of the covariance among channels, in 0..ln C, shape (K,).

    The covariance is over images and pixels. Features that are the same everywhere have the entropy 0.
    """
    channels = x_BKCHW.detach().double().permute(1, 2, 0, 3, 4).flatten(2)
    channels = channels - channels.mean(dim=2, keepdim=True)
    v = _eigenvalues(torch.bmm(channels, channels.transpose(1, 2))).clamp_min(0)
    total = v.sum(dim=1, keepdim=True)
    return torch.special.entr(v / torch.where(total == 0, torch.ones_like(total), total)).sum(dim=1)


def gradient_norm(back_BKCHW: Tensor, signs_BCHW: Tensor) -> Tensor:
    """Largest singular value of E[g_in g_out^T] over images and pixels, shape (K,).

    Args:
        back_BKCHW: g_in, the gradients with respect to a cell's input. Where the cell reduces the resolution,
            the pixels of the input that fall on one pixel of the output are channels of it.
        signs_BCHW: g_out, random signs as the gradients with respect to the cell's output.
    """
    B, _, H, W = signs_BCHW.shape
    height, width = back_BKCHW.shape[3:]
    side = max(-(-height // H), -(-width // W))
    padded = F.pad(back_BKCHW.double(), (0, side * W - width, 0, side * H - height))
    g_in = F.pixel_unshuffle(padded, side).permute(1, 2, 0, 3, 4).flatten(2)
    g_out = signs_BCHW.double().transpose(0, 1).flatten(1)
    E = g_in @ g_out.T / (B * H * W)
    if E.shape[1] > E.shape[2]:
        E = E.transpose(1, 2)
    return _eigenvalues(torch.bmm(E, E.transpose(1, 2)))[:, -1].clamp_min(0).sqrt()


def meco(outputs: Sequence[Layer], num_networks: int) -> Tensor:
    """MeCo: sum over convolutions of the smallest eigenvalue of the correlations among channels, shape (K,).

    A channel that is the same everywhere has the correlation 0, also with itself. Our choice: only outputs of
    convolutions count; BatchNorm does not change correlations.

    Args:
        outputs: Outputs of each convolution for one random image, as channels of pixels, (networks, C, n).
        num_networks: K.

    Source: Jiang et al., MeCo, NeurIPS 2023.
    """
    total = torch.zeros(num_networks, dtype=torch.float64)
    for channels, networks in outputs:
        rows, constant = _standardised(channels)
        rows = torch.where(constant, torch.zeros_like(rows), rows)
        _add(total, _eigenvalues(torch.bmm(rows, rows.transpose(1, 2)))[:, 0].clamp_min(0), networks)
    return total


def agreement(x_BKn: Tensor) -> Tensor:
    """Number of units on whose signs two images agree, shape (K, B, B)."""
    signs = torch.where(x_BKn > 0, 1.0, -1.0).transpose(0, 1)  # whole numbers: exact
    return (signs.shape[2] + torch.bmm(signs, signs.transpose(1, 2)).double()) / 2


@dataclass(frozen=True)
class Data:
    """Inputs of networks.

    Attributes:
        batches: Images (B, C, H, W), normalised, and labels (B,); ZiCo takes `ZICO_BATCHES`, others the
            first.
        noise: An image of random numbers for MeCo, (1, C, H, W).
        seed: Seed of random signs and draws.
    """

    batches: Sequence[tuple[Tensor, Tensor]]
    noise: Tensor
    seed: int

    def draws(self) -> Tensor:
        """SWAP's draws of images, shape (D, B): 2^i for the i-th image of a draw, 0 for the others."""
        num_images = len(self.batches[0][0])
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.zeros(SWAP_DRAWS, num_images)
        for row in drawn:
            images = torch.randperm(num_images, generator=generator)[:SWAP_IMAGES]
            row[images] = 2.0 ** torch.arange(len(images))
        return drawn

    def signs(self, cell: int, shape: Sequence[int]) -> Tensor:
        """AZ-NAS' random signs at the output of a cell, the same for all networks."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, cell))
        return 2.0 * torch.randint(2, tuple(shape), generator=generator) - 1


def measure(
    names: Sequence[str], make: Callable[[Callable[[Tensor], Tensor]], Population], data: Data
) -> dict[str, Tensor]:
    """Scores of K networks, each (K,), float64, on the CPU.

    Args:
        names: Those of `PASSES` that are wanted.
        make: Makes the networks with their initial weights, changed by a function.
        data: Inputs.

    Raises:
        ValueError: NASWOT or SWAP of networks without ReLUs, or AZ-NAS' scores of networks without cells.
    """
    found: dict[str, Tensor] = {}
    if set(names) & set(FROM_IMAGES):
        found |= _from_images(set(names), make(lambda weight: weight), data)
    if "synflow" in names:
        found["synflow"] = _from_ones(make(lambda weight: weight.double().abs()), data)
    if "meco" in names:
        found["meco"] = _from_noise(make(lambda weight: weight), data)
    return {name: found[name].double().cpu() for name in names}


def _from_images(names: set[str], population: Population, data: Data) -> dict[str, Tensor]:
    """Scores from a pass of images through all networks, and from gradients in it."""
    K = population.num_networks
    dtype = next(population.parameters()).dtype
    batches = [(x.to(dtype), y) for x, y in data.batches]
    x, y = batches[0]
    cells = bool(names & {"az_expressivity", "az_progressivity", "az_trainability"})
    signs = Signs(K, data.draws().to(x.device) if "swap" in names else None, counts="naswot" in names)
    if "jacov" in names:
        x = x[:, None].expand(-1, K, *x.shape[1:]).clone().requires_grad_()
    with (
        torch.set_grad_enabled(bool(names & {"jacov", "zico", "az_trainability"})),
        Watch(K, on_relu=signs.add if names & {"naswot", "swap"} else None),
        outputs(population.cells() if cells else []) as features,
    ):
        _, logits = population.features(x)
    found = signs.scores()
    if "jacov" in names:
        # Networks do not mix: the gradient of the sum holds that of each network at its copy of the images.
        (gradient,) = torch.autograd.grad(logits.sum(), x, retain_graph=True)
        found["jacov"] = jacov(gradient.transpose(0, 1).flatten(2))
    if "zico" in names:
        gradients = [_weight_gradients(population, logits, y)]
        for x, y in batches[1:]:
            gradients.append(_weight_gradients(population, population.features(x)[1], y))
        found["zico"] = zico(gradients, K)
    if cells:
        if len(features) < 2:
            raise ValueError(
                "AZ-NAS compares cells, and the networks have fewer than two parts with features"
            )
        entropies = torch.stack([feature_entropy(_apart(f, K)) for f in features])
        found["az_expressivity"] = az_expressivity(entropies)
        found["az_progressivity"] = az_progressivity(entropies)
    if "az_trainability" in names:
        norms = []
        for cell, (before, after) in enumerate(pairwise(features)):
            shape = _apart(after, K).shape
            g_out = data.signs(cell, (shape[0], *shape[2:])).to(after)
            back = g_out[:, None].expand(shape).reshape(after.shape)
            (g_in,) = torch.autograd.grad(after, before, back, retain_graph=True, materialize_grads=True)
            norms.append(gradient_norm(_apart(g_in, K), g_out))
        found["az_trainability"] = az_trainability(torch.stack(norms))
    return found


def _apart(x: Tensor, num_networks: int) -> Tensor:
    """Features (B, K * C, H, W) or (B, K, C, H, W) as the latter."""
    return x.reshape(len(x), num_networks, -1, *x.shape[-2:])


def _weight_gradients(population: Population, logits_KBc: Tensor, y: Tensor) -> list[Layer]:
    """Gradients of each network's mean cross-entropy, which are those of the sum: networks do not mix."""
    labels = y.repeat(population.num_networks)
    loss = F.cross_entropy(logits_KBc.flatten(0, 1), labels, reduction="sum") / len(y)
    layers = list(population.layers())
    weights = [weight for weight, _ in layers]
    gradients = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
    return [(gradient, networks) for gradient, (_, networks) in zip(gradients, layers, strict=True)]


def _from_ones(population: Population, data: Data) -> Tensor:
    """Synflow: a pass of an image of ones through networks of positive weights, without BatchNorm."""
    with Watch(population.num_networks, batch_norm=False):
        _, logits = population.features(torch.ones_like(data.batches[0][0][:1], dtype=torch.float64))
    layers = list(population.layers())
    weights = [weight for weight, _ in layers]
    gradients = torch.autograd.grad(logits.sum(), weights, materialize_grads=True)
    products = [
        (weight.detach() * gradient, networks)
        for gradient, (weight, networks) in zip(gradients, layers, strict=True)
    ]
    return synflow(products, population.num_networks)


def _from_noise(population: Population, data: Data) -> Tensor:
    """MeCo: a pass of one random image."""
    owners = {id(weight): networks for weight, networks in population.layers()}
    found: list[Layer] = []

    def on_conv(weight: Tensor, output: Tensor) -> None:
        networks = owners[id(weight)]
        found.append((output.reshape(len(networks), -1, output[0, 0].numel()), networks))

    with torch.no_grad(), Watch(population.num_networks, on_conv=on_conv):
        population.features(data.noise.to(next(population.parameters()).dtype))
    return meco(found, population.num_networks)


class Signs:
    """Signs of the inputs of all ReLUs, as NASWOT and SWAP need them.

    Args:
        num_networks: K.
        draws_DB: `Data.draws`; None: without SWAP.
        counts: Whether to count on how many units images agree, for NASWOT.
    """

    def __init__(self, num_networks: int, draws_DB: Tensor | None, *, counts: bool) -> None:
        self.num_networks, self.draws_DB, self.counts = num_networks, draws_DB, counts
        self.agreements: list[Tensor] = []
        self.patterns: list[Tensor] = []

    @torch.no_grad()
    def add(self, x_BKn: Tensor, uses: Tensor | None) -> None:
        """Take the input of a ReLU, for `Watch`."""
        if self.counts:
            number = agreement(x_BKn)
            self.agreements.append(number if uses is None else number * uses[:, None, None])
        if self.draws_DB is not None:
            positive = (x_BKn > 0).flatten(1).to(self.draws_DB)
            patterns = (self.draws_DB @ positive).long().view(len(self.draws_DB), *x_BKn.shape[1:])
            if uses is not None:  # equal patterns of several ReLUs count once
                patterns[:, uses == 0] = -1
            self.patterns.append(patterns)

    def scores(self) -> dict[str, Tensor]:
        """NASWOT and SWAP, if wanted."""
        found = {}
        if (self.counts or self.draws_DB is not None) and not (self.agreements or self.patterns):
            raise ValueError("NASWOT and SWAP are about ReLUs, and the networks have none")
        if self.counts:
            found["naswot"] = naswot(torch.stack(self.agreements).sum(dim=0))
        if self.draws_DB is not None:
            found["swap"] = swap(torch.cat(self.patterns, dim=2))
        return found


@contextmanager
def outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The features that modules return while this is entered, in order; other outputs are left out."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() >= 4:
            found.append(output)

    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class Watch(TorchFunctionMode):
    """Sees what networks compute while it is entered, and leaves BatchNorm out if wanted.

    Torch's own functions are watched, so that networks need not be made for it.

    Args:
        num_networks: K of a population; 1 for a network of its own.
        on_relu: Called with the input of each ReLU, (B, K, n), and how many ReLUs of each network it stands
            for, (K,) or None for one.
        on_conv: Called with the weight and the output of each convolution.
        batch_norm: Whether to compute BatchNorm.
    """

    def __init__(
        self,
        num_networks: int,
        *,
        on_relu: Callable[[Tensor, Tensor | None], None] | None = None,
        on_conv: Callable[[Tensor, Tensor], None] | None = None,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.num_networks, self.on_relu, self.on_conv = num_networks, on_relu, on_conv
        self.batch_norm = batch_norm

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call a function, or what it is to be replaced by."""
        if func is F.batch_norm and not self.batch_norm:
            return args[0]
        if self.on_relu is not None and func in RELUS:
            x = args[0]
            uses = args[2] if func is rectified else None
            self.on_relu(x.detach().reshape(len(x), self.num_networks, -1), uses)
        result = func(*args, **(kwargs or {}))
        if self.on_conv is not None and func is F.conv2d:
            self.on_conv(args[1], result)
        return result


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


def kaiming(weights: Mapping[str, Tensor], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
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


def _standardised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of mean 0 and norm 1, in float64, and which of them are constant up to rounding, (..., 1)."""
    x = rows.double()
    size = x.norm(dim=-1, keepdim=True)
    x = x - x.mean(dim=-1, keepdim=True)
    norm = x.norm(dim=-1, keepdim=True)
    constant = norm <= size * torch.finfo(rows.dtype).eps ** 0.75
    return x / torch.where(constant, torch.ones_like(norm), norm), constant


def _eigenvalues(matrices: Tensor) -> Tensor:
    """Eigenvalues of symmetric matrices (..., m, m), ascending; NaN for those with a NaN."""
    known = matrices.isfinite().all(dim=(-2, -1), keepdim=True)
    values = torch.linalg.eigvalsh(torch.where(known, matrices, torch.zeros_like(matrices)))
    return torch.where(known[..., 0], values, torch.full_like(values, torch.nan))


def _add(total: Tensor, values: Tensor, networks: Sequence[int]) -> None:
    """Add values to the totals of their networks."""
    total.index_add_(0, torch.tensor(list(networks)), values.to(total))
