"""Networks of NAS-Bench-201 cells: one at a time, and a whole population as one module.

Shapes: B images, K networks, P (network, edge) pairs, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.core import Genotype
from hwnas.spaces.blocks import (
    Addition,
    Blocks,
    BoxMean,
    Population,
    ReLUConvBN,
    ResidualBlock,
    SpatialMean,
    adjacent,
    box_mean,
    rectified,
)
from hwnas.spaces.nasbench201.encoding import (
    AVG_POOL,
    CONV_1X1,
    CONV_3X3,
    EDGES,
    NONE,
    OPS,
    SKIP,
    NasBench201Encoding,
)


def operation(op: int, channels: int) -> nn.Module:
    """The module of an operation other than `none`: keeps (B, C, H, W).

    Raises:
        ValueError: `none`, which has no module.
    """
    if op == SKIP:
        return nn.Identity()
    if op == CONV_1X1:
        return ReLUConvBN(channels, channels, 1)
    if op == CONV_3X3:
        return ReLUConvBN(channels, channels, 3)
    if op == AVG_POOL:
        return BoxMean()
    raise ValueError(f"operation {op} has no module")


class Cell(nn.Module):
    """A cell: every node is the sum of its incoming edges; the last node is the output."""

    def __init__(self, genotype: Genotype, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(
            {str(edge): operation(op, channels) for edge, op in enumerate(genotype) if op != NONE}
        )
        self.wiring = tuple(EDGES[int(edge)] for edge in self.edges)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Keeps (B, C, H, W); zeros where no operation reaches the output."""
        nodes: list[Tensor | None] = [x_BCHW, None, None, None]
        for (source, target), module in zip(self.wiring, self.edges.values(), strict=True):
            start = nodes[source]  # edges are in the order of their targets: complete by now
            if start is None:
                start = nodes[source] = torch.zeros_like(x_BCHW)
            output, node = module(start), nodes[target]
            nodes[target] = output if node is None else node + output
        output = nodes[-1]
        return torch.zeros_like(x_BCHW) if output is None else output


class NasBench201Network(nn.Module):
    """One architecture's network, the plain way; the reference that faster executions are compared with."""

    def __init__(self, space: NasBench201Encoding, genotype: Genotype) -> None:
        super().__init__()
        C, N = space.channels, space.num_cells
        self.stem = nn.Sequential(
            nn.Conv2d(space.image_shape[0], C, 3, padding=1, bias=False), nn.BatchNorm2d(C)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Cell(genotype, C << stage) for _ in range(N))) for stage in range(3)
        )
        self.reductions = nn.ModuleList(ResidualBlock(C << stage) for stage in range(2))
        self.last_norm = nn.BatchNorm2d(4 * C)
        self.classifier = nn.Linear(4 * C, space.num_classes)

    def features(self, x_BCHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """Outputs at the end of the three stages, and the logits (B, classes).

        The stage outputs are (B, C, H, W), (B, 2C, H/2, W/2) and, after the last BatchNorm and ReLU,
        (B, 4C, H/4, W/4). Source of the taps: RMI-NAS (Zheng et al., CVPR 2022), reference code.
        """
        x = self.stem(x_BCHW)
        taps = []
        for stage, cells in enumerate(self.stages):
            if stage > 0:
                x = self.reductions[stage - 1](x)
            x = cells(x)
            taps.append(x)
        taps[-1] = F.relu(self.last_norm(x))
        return taps, self.classifier(taps[-1].mean(dim=(2, 3)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits, shape (B, classes)."""
        return self.features(x_BCHW)[1]

    def load(self, weights: dict[str, Tensor]) -> None:
        """Copy this architecture's share of `initial_weights` into the network."""
        modules = list(self.modules())
        cells = [module for module in modules if isinstance(module, Cell)]
        blocks = [module for module in modules if isinstance(module, ResidualBlock)]
        with torch.no_grad():
            _copy(self.stem, weights["stem"])
            for name, cell in enumerate(cells):
                for edge, module in cell.edges.items():
                    if isinstance(module, ReLUConvBN):
                        _copy(module, weights[f"cell{name}.{module.kernel}x{module.kernel}"][int(edge)])
            for name, block in enumerate(blocks):
                _copy(block.conv_a, weights[f"reduction{name}.a"])
                _copy(block.conv_b, weights[f"reduction{name}.b"])
                _copy(block.downsample, weights[f"reduction{name}.skip"])
            self.classifier.weight.copy_(weights["classifier.weight"])
            self.classifier.bias.copy_(weights["classifier.bias"])


def _copy(block: nn.Sequential, weight: Tensor) -> None:
    """Copy a weight into the block's only convolution."""
    (convolution,) = (module for module in block if isinstance(module, nn.Conv2d))
    convolution.weight.copy_(weight)


def initial_weights(
    space: NasBench201Encoding, seed: int, *, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Random weights for every operation on every edge of every cell, by torch's default rule.

    Architectures share the draw of an operation that they share, so that they are compared with common
    random numbers. BatchNorm starts at 1 and 0 and is not included.

    Args:
        space: Width, depth, image and class count.
        seed: Seed of the draw.
        dtype: Type of the weights; the values are the same up to its precision.

    Returns:
        "stem" (C, in, 3, 3); per cell t "cell<t>.1x1" and ".3x3" (edges, c, c, k, k); per reduction r
        "reduction<r>.a", ".b", ".skip"; "classifier.weight", "classifier.bias".
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, fan_in: int) -> Tensor:
        bound = 1.0 / math.sqrt(fan_in)
        values = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return (values * 2 * bound - bound).to(dtype)

    C, N, in_channels = space.channels, space.num_cells, space.image_shape[0]
    weights = {"stem": draw(C, in_channels, 3, 3, fan_in=9 * in_channels)}
    for cell in range(3 * N):
        c = C << (cell // N)
        for k in (1, 3):
            weights[f"cell{cell}.{k}x{k}"] = draw(len(EDGES), c, c, k, k, fan_in=c * k * k)
    for stage in range(2):
        c = C << stage
        weights[f"reduction{stage}.a"] = draw(2 * c, c, 3, 3, fan_in=9 * c)
        weights[f"reduction{stage}.b"] = draw(2 * c, 2 * c, 3, 3, fan_in=18 * c)
        weights[f"reduction{stage}.skip"] = draw(2 * c, c, 1, 1, fan_in=c)
    weights["classifier.weight"] = draw(space.num_classes, 4 * C, fan_in=4 * C)
    weights["classifier.bias"] = draw(space.num_classes, fan_in=4 * C)
    return weights


class _Norm(nn.Module):
    """BatchNorm with batch statistics over the channels of all networks at once."""

    def __init__(self, channels: int, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, dtype=like.dtype, device=like.device))
        self.bias = nn.Parameter(torch.zeros(channels, dtype=like.dtype, device=like.device))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True)


class _Plan:
    """Which (network, edge) pairs leave one source node, and where a target finds its inputs.

    `convs` lists (kernel size, network per pair, edge per pair); `num_convs` has their number per network.

    The outputs of a source node are laid side by side: its 3x3 convolutions, its 1x1 convolutions, its
    pools, the node itself, and one slot of zeros. `gather[target]` holds the slot of each network.
    """

    def __init__(self, genotypes: Sequence[Genotype], source: int, device: torch.device) -> None:
        K = len(genotypes)
        edges = [edge for edge, (start, _) in enumerate(EDGES) if start == source]
        convs = [sum(genotype[e] in (CONV_1X1, CONV_3X3) for e in edges) for genotype in genotypes]
        self.num_convs = torch.tensor(convs, device=device)
        pairs = {op: [(k, e) for e in edges for k in range(K) if genotypes[k][e] == op] for op in range(5)}
        self.convs = [
            (kernel, torch.tensor([k for k, _ in pairs[op]], device=device), [e for _, e in pairs[op]])
            for kernel, op in ((3, CONV_3X3), (1, CONV_1X1))
            if pairs[op]
        ]
        pooled = sorted({k for k, _ in pairs[AVG_POOL]})
        self.pooled = torch.tensor(pooled, dtype=torch.long, device=device)

        slots: dict[tuple[int, int], int] = {}
        for pair in pairs[CONV_3X3] + pairs[CONV_1X1]:
            slots[pair] = len(slots)
        start = len(slots)
        for k, e in pairs[AVG_POOL]:
            slots[k, e] = start + pooled.index(k)
        start += len(pooled)
        self.skips = bool(pairs[SKIP])
        for k, e in pairs[SKIP]:
            slots[k, e] = start + k
        start += K if self.skips else 0
        self.nothing = bool(pairs[NONE])
        for k, e in pairs[NONE]:
            slots[k, e] = start
        self.gather = {
            EDGES[e][1]: torch.tensor([slots[k, e] for k in range(K)], device=device) for e in edges
        }


class _Convolutions(nn.Module):
    """All convolutions that leave one source node, of all networks: grouped by kernel, normalised at once."""

    def __init__(self, plan: _Plan, weights: dict[str, Tensor], cell: int, channels: int) -> None:
        super().__init__()
        self.plan = plan
        self.kernels = nn.ParameterList(
            weights[f"cell{cell}.{k}x{k}"][edges].flatten(0, 1) for k, _, edges in plan.convs
        )
        num_pairs = sum(len(edges) for _, _, edges in plan.convs)
        self.norm = _Norm(num_pairs * channels, weights["stem"])

    def forward(self, x_BKCHW: Tensor) -> Tensor:
        """(B, K, C, H, W) to (B, P, C, H, W), one slot per (network, edge) pair."""
        B, _, C, H, W = x_BKCHW.shape
        positive = rectified(x_BKCHW, x_BKCHW.shape[1], self.plan.num_convs)
        stacks = []
        for (kernel, networks, edges), weight in zip(self.plan.convs, self.kernels, strict=True):
            inputs = positive.index_select(1, networks).view(B, -1, H, W)
            stacks.append(F.conv2d(inputs, weight, padding=kernel // 2, groups=len(edges)))
        return self.norm(torch.cat(stacks, dim=1) if len(stacks) > 1 else stacks[0]).view(B, -1, C, H, W)


class _CellPopulation(nn.Module):
    """K cells side by side."""

    def __init__(self, plans: Sequence[_Plan], weights: dict[str, Tensor], cell: int, channels: int) -> None:
        super().__init__()
        self.plans = plans
        self.convolutions = nn.ModuleList(
            _Convolutions(plan, weights, cell, channels) if plan.convs else nn.Identity() for plan in plans
        )

    def forward(self, x_BKCHW: Tensor) -> Tensor:
        """Keeps (B, K, C, H, W)."""
        B, _, C, H, W = x_BKCHW.shape
        nodes = [x_BKCHW]
        shares: list[list[Tensor]] = [[], [], [], []]
        for source, (plan, convolutions) in enumerate(zip(self.plans, self.convolutions, strict=True)):
            node = nodes[source]
            outputs = [convolutions(node)] if plan.convs else []
            if len(plan.pooled):
                outputs.append(box_mean(node.index_select(1, plan.pooled)))
            if plan.skips:
                outputs.append(node)
            if plan.nothing:
                outputs.append(node.new_zeros(B, 1, C, H, W))
            bank = torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
            for target, slots in plan.gather.items():
                shares[target].append(bank.index_select(1, slots))
            total = shares[source + 1][0]
            for share in shares[source + 1][1:]:
                total = total + share
            nodes.append(total)
        return nodes[-1]


class _ReductionPopulation(nn.Module):
    """K residual blocks side by side."""

    def __init__(self, weights: dict[str, Tensor], stage: int, num_networks: int) -> None:
        super().__init__()
        self.num_networks = num_networks
        self.a, self.b, self.skip = (
            _repeat(weights[f"reduction{stage}.{part}"], num_networks) for part in ("a", "b", "skip")
        )
        self.norm_a = _Norm(len(self.a), weights["stem"])
        self.norm_b = _Norm(len(self.b), weights["stem"])

    def forward(self, x_BKCHW: Tensor) -> Tensor:
        """(B, K, C, H, W) to (B, K, 2C, ceil(H / 2), ceil(W / 2))."""
        B, K, C, H, W = x_BKCHW.shape
        x = x_BKCHW.reshape(B, K * C, H, W)
        main = self.norm_a(F.conv2d(rectified(x, K), self.a, stride=2, padding=1, groups=K))
        main = self.norm_b(F.conv2d(rectified(main, K), self.b, padding=1, groups=K))
        skip = F.conv2d(F.avg_pool2d(x, 2, 2, ceil_mode=True), self.skip, groups=K)
        return (main + skip).view(B, K, 2 * C, *main.shape[2:])


def _repeat(weight: Tensor, num_networks: int) -> nn.Parameter:
    """One copy of a convolution's weight per network, stacked along the output channels."""
    return nn.Parameter(weight.repeat(num_networks, 1, 1, 1))


class NasBench201Population(Population):
    """K architectures' networks as one module, each with weights of its own.

    Equal operations run as one grouped convolution across networks and edges, which is what makes many
    small networks fast: their kernels are too short to fill a processor one by one. BatchNorm always uses
    batch statistics; meant for short training, not for deployment.

    Args:
        space: Width, depth, image and class count.
        genotypes: K architectures.
        weights: `initial_weights` of the space.
    """

    def __init__(
        self, space: NasBench201Encoding, genotypes: Sequence[Genotype], weights: dict[str, Tensor]
    ) -> None:
        super().__init__()
        K, C, N = len(genotypes), space.channels, space.num_cells
        self.num_networks = K
        plans = [_Plan(genotypes, source, weights["stem"].device) for source in range(3)]
        self.stem = _repeat(weights["stem"], K)
        self.stem_norm = _Norm(K * C, weights["stem"])
        self.stages = nn.ModuleList(
            nn.Sequential(
                *([_ReductionPopulation(weights, stage - 1, K)] if stage else []),
                *(_CellPopulation(plans, weights, stage * N + cell, C << stage) for cell in range(N)),
            )
            for stage in range(3)
        )
        self.last_norm = _Norm(4 * K * C, weights["stem"])
        self.classifier_weight = nn.Parameter(weights["classifier.weight"].T.repeat(K, 1, 1))
        self.classifier_bias = nn.Parameter(weights["classifier.bias"].repeat(K, 1, 1))

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Stage outputs (B, K, C, H, W) at the taps of `NasBench201Network`, and logits (K, B, classes).

        Args:
            x: Images (B, C, H, W) for all networks, or (B, K, C, H, W), some for each.
        """
        B, K = len(x), self.num_networks
        x, groups = (x.flatten(1, 2), K) if x.dim() == 5 else (x, 1)
        x = self.stem_norm(F.conv2d(x, self.stem, padding=1, groups=groups))
        x = x.view(B, K, -1, *x.shape[2:])
        taps = []
        for stage in self.stages:
            x = stage(x)
            taps.append(x)
        taps[-1] = rectified(self.last_norm(x.reshape(B, -1, *x.shape[3:])), K).view(x.shape)
        pooled_KBC = taps[-1].mean(dim=(3, 4)).transpose(0, 1)
        return taps, torch.baddbmm(self.classifier_bias, pooled_KBC, self.classifier_weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (K, B, classes)."""
        return self.features(x)[1]

    def layers(self) -> Iterator[tuple[Tensor, Sequence[int]]]:
        """Weights of convolutions and of the classifier, and whose they are."""
        everyone = range(self.num_networks)
        yield self.stem, everyone
        for module in self.modules():
            if isinstance(module, _Convolutions):
                for (_, networks, _), weight in zip(module.plan.convs, module.kernels, strict=True):
                    yield weight, networks.tolist()
            elif isinstance(module, _ReductionPopulation):
                for weight in (module.a, module.b, module.skip):
                    yield weight, everyone
        yield self.classifier_weight, everyone

    def cells(self) -> list[nn.Module]:
        """The stem, then cells and residual blocks in order."""
        return [self.stem_norm, *(module for stage in self.stages for module in stage.children())]


def measurable_blocks(space: NasBench201Encoding) -> Blocks:
    """Each operation at each stage, the addition at a node, and what is the same in every network.

    A node of k inputs takes k - 1 additions: every edge but the first is charged with one, and every network
    with two fewer. That is exact unless a node has no input at all.
    """
    C, N = space.channels, space.num_cells
    network = NasBench201Network(space, (NONE,) * len(EDGES))
    _, height, width = space.image_shape
    shapes = [(C << stage, -(-height // 2**stage), -(-width // 2**stage)) for stage in range(3)]
    head = nn.Sequential(network.last_norm, nn.ReLU(), SpatialMean(), network.classifier)
    modules: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "stem": (network.stem, space.image_shape),
        "head": (head, shapes[2]),
    }
    always = {"stem": 1, "head": 1}
    for stage, shape in enumerate(shapes):
        modules[f"add@stage{stage + 1}"] = Addition(), shape
        always[f"add@stage{stage + 1}"] = -2 * N
        for op in (CONV_1X1, CONV_3X3, AVG_POOL):
            modules[f"{OPS[op]}@stage{stage + 1}"] = operation(op, shape[0]), shape
        if stage > 0:
            modules[f"reduction@stage{stage + 1}"] = network.reductions[stage - 1], shapes[stage - 1]
            always[f"reduction@stage{stage + 1}"] = 1

    def counts(op: int, edge: int) -> dict[str, int]:
        if op == NONE:
            return {}
        names = [OPS[op]] * (op != SKIP) + ["add"] * (edge > 0)
        return {f"{name}@stage{stage + 1}": N for name in names for stage in range(3)}

    edges = [[counts(op, edge) for op in range(len(OPS))] for edge in range(len(EDGES))]
    return Blocks(modules, always, edges, adjacent(EDGES))
