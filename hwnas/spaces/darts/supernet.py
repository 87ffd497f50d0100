"""One network that holds every DARTS architecture; `hwnas.spaces.supernet` says how it is executed.

Mixing weights of the normal cell come first. Operations of one kind that leave one source are stacked; 1x1
convolutions are products of rows of pixels (`hwnas.spaces.darts.algebra`).

Source: Liu et al., DARTS, ICLR 2019 (code); Sinha & Chen, EvNAS, arXiv 2012.12540 (code).

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.core import FloatArray
from hwnas.spaces.blocks import Norm, ReLUConvBN, box_max, box_mean
from hwnas.spaces.darts.algebra import (
    AddPointwiseNorm,
    AddTerms,
    PointwiseNorm,
    add_products,
    depthwise,
    factorized_matrix,
    folded,
    images,
    linear,
    matrix,
    parts,
    quarters,
    rows,
    scale_of,
    shifted,
    side_by_side,
    stacked,
    trained_depthwise,
    whole,
)
from hwnas.spaces.darts.encoding import (
    AVG_POOL,
    CELL_EDGES,
    CONVOLUTIONS,
    MAX_POOL,
    NONE,
    NUM_NODES,
    OPS,
    SKIP,
    DartsEncoding,
)
from hwnas.spaces.darts.network import FactorizedReduce, operation
from hwnas.spaces.supernet import Body, CellSupernet, Number, leaving, mixing, runs

IN_CACHE = 1 << 18
"""Numbers of a stack of operations that stay in a core's cache: so few images a folded cell takes at once."""

End = tuple[Tensor, nn.BatchNorm2d]
"""Matrix (C_in, C_out) and BatchNorm of the last 1x1 convolution of an operation."""


class _MixedCell(nn.Module):
    """A cell whose edges are mixtures of all operations that the space allows there.

    Args:
        choices: Allowed operations per edge of this kind of cell.
        channels_before: Channels of the output of the cell before the last.
        channels_last: Channels of the output of the last cell.
        channels: C, channels per node.
        reduction: Whether the cell halves the resolution.
        after_reduction: Whether the last cell did.
        norm: Makes the BatchNorm of so many channels.
        tracks: Whether these keep running statistics.
    """

    def __init__(
        self,
        choices: tuple[tuple[int, ...], ...],
        channels_before: int,
        channels_last: int,
        channels: int,
        *,
        reduction: bool,
        after_reduction: bool,
        norm: Norm,
        tracks: bool,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.reduction = reduction
        self.tracks = tracks
        self.preprocess_0 = (
            FactorizedReduce(channels_before, channels, norm)
            if after_reduction
            else ReLUConvBN(channels_before, channels, 1, norm=norm)
        )
        self.preprocess_1 = ReLUConvBN(channels_last, channels, 1, norm=norm)
        self.edges = nn.ModuleList()
        for (source, _), ops in zip(CELL_EDGES, choices, strict=True):
            modules: dict[str, nn.Module] = {}
            for op in ops:
                if op != NONE:
                    module = operation(op, channels, self.stride(source), norm)
                    pool = op in (MAX_POOL, AVG_POOL)
                    modules[OPS[op]] = nn.Sequential(module, norm(channels)) if pool else module
            self.edges.append(nn.ModuleDict(modules))

    def stride(self, source: int) -> int:
        """Stride of the edges that leave a source."""
        return 2 if self.reduction and source < 2 else 1

    def operation(self, edge: int, op: int) -> nn.Module:
        """The module of an operation on an edge."""
        return cast(nn.ModuleDict, self.edges[edge])[OPS[op]]

    def shape(self, x_BCHW: Tensor) -> tuple[int, int, int]:
        """(B, H, W) of the nodes for a preprocessed input."""
        B, _, H, W = x_BCHW.shape
        return (B, -(-H // 2), -(-W // 2)) if self.reduction else (B, H, W)

    def plain(self, before_BCHW: Tensor, last_BCHW: Tensor, weights: FloatArray) -> Tensor:
        """The cell, operation by operation: (B, 4C, H, W), or half the resolution in a reduction cell."""
        states = [self.preprocess_0(before_BCHW), self.preprocess_1(last_BCHW)]
        B, H, W = self.shape(states[1])
        for node in range(2, 2 + NUM_NODES):
            total = states[1].new_zeros(B, self.channels, H, W)
            for edge, (source, target) in enumerate(CELL_EDGES):
                if target == node:
                    for op, module in cast(nn.ModuleDict, self.edges[edge]).items():
                        weight = float(weights[edge, OPS.index(op)])
                        if weight != 0:
                            total = total + weight * module(states[source])
            states.append(total)
        return torch.cat(states[2:], dim=1)

    def forward(
        self,
        before_BCHW: Tensor,
        last_BCHW: Tensor,
        weights: FloatArray,
        update: bool,
        numbers: Tensor | None = None,
    ) -> Tensor:
        """The cell with batch statistics, equal operations of a source's outgoing edges stacked.

        Args:
            before_BCHW: Output of the cell before the last, after ReLU, in channels_last.
            last_BCHW: Output of the last cell, the same.
            weights: Mixing weights of this kind of cell.
            update: Whether to update running statistics, as training does.
            numbers: The weights on the device, if they are used from there.
        """
        given = _Stacked(self, weights, numbers)
        inputs = [
            given.normalised(_pixels(self.preprocess_0, before_BCHW), [_end(self.preprocess_0)]),
            given.normalised(last_BCHW, [_end(self.preprocess_1)]),
        ]
        B, H, W = self.shape(inputs[1])
        given.nodes = [inputs[1].new_zeros(B * H * W, self.channels) for _ in range(NUM_NODES)]
        for source in range(1 + NUM_NODES):
            given.give(source, inputs[source] if source < 2 else images(given.nodes[source - 2], B, H, W))
        if update and self.tracks:
            given.update()
        return images(torch.cat(given.nodes, dim=1), B, H, W)

    def folded(self, weights: FloatArray) -> Callable[[Tensor, Tensor], Tensor]:
        """The cell under running statistics for one architecture, as a function of its inputs after ReLU.

        Depthwise convolutions of a kernel that leave one source are one convolution, 1x1 convolutions one
        product of stacked matrices that adds to the nodes in place; pools and ReLU run once per source. Nodes
        begin as the sum of all constants: those of BatchNorm.
        """
        C = self.channels
        preprocess_0, preprocess_1 = (folded(*_end(m)) for m in (self.preprocess_0, self.preprocess_1))
        constants = preprocess_1[1].new_zeros(NUM_NODES, 1, C)
        sources = [_FoldedSource(self, source, weights, constants) for source in range(1 + NUM_NODES)]
        num = max((weights[_leaving(source)] != 0).sum(axis=0).max() for source in range(1 + NUM_NODES))
        width = max(1, int(num)) * C

        def output(before: Tensor, last: Tensor) -> Tensor:
            inputs = [
                linear(_pixels(self.preprocess_0, before), *preprocess_0),
                linear(last, *preprocess_1),
            ]
            B, H, W = self.shape(inputs[1])
            nodes = constants.expand(NUM_NODES, B * H * W, C).clone()
            for number, source in enumerate(sources):
                source.give(inputs[number] if number < 2 else images(nodes[number - 2], B, H, W), nodes)
            return images(torch.cat(list(nodes), dim=1), B, H, W)

        def run(before: Tensor, last: Tensor) -> Tensor:
            size = max(1, IN_CACHE // (width * last[0, 0].numel()))
            if len(last) <= size or last.device.type != "cpu":
                return output(before, last)
            pairs = zip(before.split(size), last.split(size), strict=True)
            return torch.cat([output(*pair) for pair in pairs])

        return run


class _Stacked:
    """A pass through a cell with the batch's statistics.

    Args:
        cell: The cell.
        weights: Mixing weights of its kind.
        numbers: The same on the device, if they are used from there.

    Attributes:
        nodes: What the nodes sum up to so far, each (B * H * W, C).
        statistics: Each BatchNorm with the mean and unbiased variance (C,) of what it normalised.
    """

    def __init__(self, cell: _MixedCell, weights: FloatArray, numbers: Tensor | None) -> None:
        self.cell, self.weights, self.numbers = cell, weights, numbers
        self.nodes: list[Tensor] = []
        self.statistics: list[tuple[nn.BatchNorm2d, Tensor, Tensor]] = []

    def normalised(self, x_BCHW: Tensor, ends: Sequence[End], *, relu: bool = False) -> Tensor:
        """Stacks of 1x1 convolutions with BatchNorm."""
        products, norms = zip(*ends, strict=True)
        y, means, variances = PointwiseNorm.apply(x_BCHW, torch.stack(products), norms[0].eps, relu)
        self.statistics += zip(norms, means, variances, strict=True)
        return y

    def give(self, source: int, x_BCHW: Tensor) -> None:
        """Add what a source gives to the nodes, in place."""
        stride = self.cell.stride(source)
        positive = F.relu(x_BCHW)
        wide: dict[tuple[int, int], Tensor] = {}
        for op in CONVOLUTIONS:
            edges = _running(self.weights, source, op)
            if edges:
                self._add(edges, op, self._convolved(positive, edges, op, stride, wide))
        if stride == 2:
            edges = _running(self.weights, source, SKIP)
            if edges:
                self._add(edges, SKIP, shifted(positive))
        self._add_linear(source, x_BCHW, stride)

    def _convolved(
        self, positive: Tensor, edges: list[int], op: int, stride: int, wide: dict[tuple[int, int], Tensor]
    ) -> Tensor:
        """An operation up to its last 1x1 convolution; `wide` has the source as stacks, by their number."""
        modules = [cast(nn.Sequential, self.cell.operation(edge, op)) for edge in edges]
        n, (_, times) = len(modules), CONVOLUTIONS[op]
        dilation = 3 - times
        if (n, dilation) not in wide:
            y = positive
            if dilation == 2:
                y = positive[:, :, ::2, ::2] if stride == 2 else quarters(positive)
            wide[n, dilation] = side_by_side(y, n)
        # Dilated convolutions are plain ones of every other row and column: their gradients are slow.
        y = trained_depthwise(wide[n, dilation], _kernels(modules, 1), stride if dilation == 1 else 1)
        if dilation == 2 and stride == 1:
            y = whole(y, *positive.shape[2:])
        if times == 2:
            y = self.normalised(y, [_end(module, 3) for module in modules], relu=True)
            y = trained_depthwise(y, _kernels(modules, 5), 1)
        return y

    def _add(self, edges: list[int], op: int, y_BCHW: Tensor) -> None:
        """Last 1x1 convolutions of an operation, their BatchNorm and mixing weights."""
        products, norms = zip(*(_end(self.cell.operation(edge, op)) for edge in edges), strict=True)
        targets, mix = _targets(edges), self._mix(edges, op)
        *mine, means, variances = AddPointwiseNorm.apply(
            y_BCHW, torch.stack(products), norms[0].eps, mix, *(self.nodes[target] for target in targets)
        )
        self._set(targets, mine)
        self.statistics += zip(norms, means, variances, strict=True)

    def _add_linear(self, source: int, x_BCHW: Tensor, stride: int) -> None:
        """The source itself and its pools, times their mixing weights."""
        edges = _leaving(source)
        terms: list[Tensor] = []
        mix: list[list[Number]] = []
        if stride == 1:
            terms.append(rows(x_BCHW))
            mix.append(self._mix(edges, SKIP))
        for op in (MAX_POOL, AVG_POOL):
            norms = [_norm(self.cell.operation(e, op)) for e in _running(self.weights, source, op)]
            if norms:
                pooled = F.max_pool2d(x_BCHW, 3, stride, 1) if op == MAX_POOL else _mean(x_BCHW, stride)
                y = rows(pooled)
                mean, var = y.new_zeros(2, y.shape[1])
                # A momentum of 1 gives this batch's statistics; the edges differ in their buffers only.
                terms.append(F.batch_norm(y, mean, var, training=True, momentum=1.0, eps=norms[0].eps))
                mix.append(self._mix(edges, op))
                self.statistics += [(norm, mean, var) for norm in norms]
        if any(runs(weight) for row in mix for weight in row):
            targets = _targets(edges)
            mine = (self.nodes[target] for target in targets)
            self._set(targets, AddTerms.apply(mix, len(terms), *terms, *mine))

    def _mix(self, edges: list[int], op: int) -> list[Number]:
        return mixing(self.weights, self.numbers, edges, op)

    def _set(self, targets: Sequence[int], nodes: Sequence[Tensor]) -> None:
        for target, node in zip(targets, nodes, strict=True):
            self.nodes[target] = node

    def update(self) -> None:
        """Update running statistics."""
        for norm, mean, var in self.statistics:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.num_batches_tracked is not None
            assert norm.momentum is not None
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(var, norm.momentum)
            norm.num_batches_tracked += 1


class _FoldedSource:
    """Contributions of a source to the nodes, under running statistics.

    Args:
        cell: Its cell.
        source: Its number.
        weights: Mixing weights of this kind of cell.
        constants: Shape (nodes, 1, C); what does not depend on the images is added to it.
    """

    def __init__(self, cell: _MixedCell, source: int, weights: FloatArray, constants: Tensor) -> None:
        self.cell, self.weights, self.constants = cell, weights, constants
        self.stride = cell.stride(source)
        self.convolutions = []
        for op, (kernel, times) in CONVOLUTIONS.items():
            edges = _running(weights, source, op)
            if edges:
                modules = [cast(nn.Sequential, cell.operation(edge, op)) for edge in edges]
                middle = None
                if times == 2:
                    products, shifts = zip(*(folded(*_end(module, 3)) for module in modules), strict=True)
                    middle = torch.stack(products), torch.cat(shifts), _kernels(modules, 5)
                how = kernel, 3 - times, _kernels(modules, 1)
                self.convolutions.append((*how, middle, self._ends(edges, op), _targets(edges)))
        self.reductions, self.skips = None, []
        edges = _running(weights, source, SKIP)
        if self.stride == 2 and edges:
            self.reductions = self._ends(edges, SKIP), _targets(edges)
        elif self.stride == 1:
            self.skips = [(CELL_EDGES[edge][1] - 2, float(weights[edge, SKIP])) for edge in edges]
        self.pools = []
        for op, pool in ((MAX_POOL, _max), (AVG_POOL, _mean)):
            scales = []
            for edge in _running(weights, source, op):
                scale, constant = scale_of(_norm(cell.operation(edge, op)), float(weights[edge, op]))
                constants[CELL_EDGES[edge][1] - 2, 0] += constant
                scales.append((CELL_EDGES[edge][1] - 2, scale))
            if scales:
                self.pools.append((pool, scales))

    def _ends(self, edges: list[int], op: int) -> Tensor:
        """Matrices (edges, C_in, C) of the last 1x1 convolutions, with BatchNorm and mixing weights."""
        products = []
        for edge in edges:
            product, constant = folded(*_end(self.cell.operation(edge, op)), float(self.weights[edge, op]))
            self.constants[CELL_EDGES[edge][1] - 2, 0] += constant
            products.append(product)
        return torch.stack(products)

    def give(self, x_BCHW: Tensor, nodes: Tensor) -> None:
        """Add to the nodes (nodes, B * H * W, C), in place."""
        if self.convolutions or self.reductions:
            positive = F.relu(x_BCHW)
            self._convolve(positive, nodes)
            if self.reductions:
                products, targets = self.reductions
                y = rows(shifted(positive))
                add_products(nodes, targets, y.expand(len(products), *y.shape), products)
        for target, mix in self.skips:
            nodes[target].add_(rows(x_BCHW), alpha=mix)
        for pool, scales in self.pools:
            y = rows(pool(x_BCHW, self.stride))
            for target, scale in scales:
                nodes[target].addcmul_(y, scale)

    def _convolve(self, positive: Tensor, nodes: Tensor) -> None:
        C, stride = self.cell.channels, self.stride
        wide: dict[tuple[int, bool], Tensor] = {}
        for kernel, dilation, kernels, middle, products, targets in self.convolutions:
            n = len(kernels) // C
            thin = stride == 2 and dilation == 2  # only every other row and column is looked at
            if (n, thin) not in wide:
                wide[n, thin] = side_by_side(positive[:, :, ::2, ::2] if thin else positive, n)
            y = depthwise(wide[n, thin], kernels, kernel, *((1, 1) if thin else (stride, dilation)))
            if middle is not None:
                matrices, constant, second = middle
                inner = torch.empty(len(rows(y)), n * C, dtype=y.dtype, device=y.device)
                torch.bmm(parts(y, n), matrices, out=inner.view(-1, n, C).transpose(0, 1))
                inner = images(inner.add_(constant).relu_(), len(y), *y.shape[2:])
                y = depthwise(inner, second, kernel, 1, 1)
            add_products(nodes, targets, parts(y, n), products)


class DartsSupernet(CellSupernet):
    """Every architecture of a DARTS space in one network with shared weights.

    Pools are followed by BatchNorm, and BatchNorm in the cells has neither weight nor bias, as in the papers'
    code.

    Args:
        space: Width, depth, image and class count; its `choices` say which operations exist.
        track_running_stats: Whether BatchNorm in the cells keeps running statistics; without, it always uses
            the batch's.

    Raises:
        ValueError: A space with the stem for large images.
    """

    def __init__(self, space: DartsEncoding, *, track_running_stats: bool) -> None:
        if space.stem != "cifar":
            raise ValueError(f"a supernet needs search_space.stem=cifar, not {space.stem!r}")
        C = space.channels
        super().__init__(space.allowed, space.image_shape[0], 3 * C, track_running_stats=track_running_stats)
        norm = partial(nn.BatchNorm2d, affine=False, track_running_stats=track_running_stats)
        num = len(CELL_EDGES)
        self.cells = nn.ModuleList()
        before = last = 3 * C
        channels, after_reduction = C, False
        for index in range(space.num_cells):
            reduction = index in space.reductions()
            channels *= 2 if reduction else 1
            self.cells.append(
                _MixedCell(
                    space.choices[num:] if reduction else space.choices[:num],
                    before,
                    last,
                    channels,
                    reduction=reduction,
                    after_reduction=after_reduction,
                    norm=norm,
                    tracks=track_running_stats,
                )
            )
            before, last, after_reduction = last, NUM_NODES * channels, reduction
        self.classifier = nn.Linear(last, space.num_classes)

    def _cells(self, weights: FloatArray) -> list[tuple[_MixedCell, FloatArray]]:
        """The cells in order, each with the weights of its kind."""
        cells = cast(Sequence[_MixedCell], self.cells)
        return [(cell, weights[_edges(cell)]) for cell in cells]

    def _plain(self, x_BCHW: Tensor, weights: FloatArray) -> Tensor:
        before = last = x_BCHW
        for cell, own in self._cells(weights):
            before, last = last, cell.plain(before, last, own)
        return self.classifier(last.mean(dim=(2, 3)))

    def _trained(self, x_BCHW: Tensor, weights: FloatArray, numbers: Tensor | None) -> Tensor:
        # Statistics are differences of large sums: not for bfloat16.
        with torch.autocast(x_BCHW.device.type, enabled=False):
            x = self.stem(x_BCHW.float() if x_BCHW.dtype == torch.bfloat16 else x_BCHW)
            return self._through(x, weights, update=True, numbers=numbers)

    def _through(
        self, x_BCHW: Tensor, weights: FloatArray, *, update: bool, numbers: Tensor | None = None
    ) -> Tensor:
        """Logits from the stem's output, with batch statistics in the cells."""
        before = last = F.relu(x_BCHW).contiguous(memory_format=torch.channels_last)
        for index, (cell, own) in enumerate(self._cells(weights)):
            here = None if numbers is None else numbers[_edges(cell)]
            output = cell(before, last, own, update, here)
            before, last = last, output if index == len(self.cells) - 1 else F.relu(output)
        return self.classifier(last.mean(dim=(2, 3)))

    def _batchwise(self, weights: FloatArray, batch_statistics: bool) -> Body:
        return partial(self._through, weights=weights, update=False)

    def _folded(self, weights: FloatArray) -> Body:
        cells = [cell.folded(own) for cell, own in self._cells(weights)]

        def body(x_BCHW: Tensor) -> Tensor:
            before = last = x_BCHW.relu_()
            for index, cell in enumerate(cells):
                output = cell(before, last)
                before, last = last, output if index == len(cells) - 1 else output.relu_()
            return self.classifier(last.mean(dim=(2, 3)))

        return body


def _edges(cell: _MixedCell) -> slice:
    """Rows of the mixing weights of a cell's kind."""
    return slice(len(CELL_EDGES), None) if cell.reduction else slice(len(CELL_EDGES))


def _end(module: nn.Module, last: int = -1) -> End:
    """Matrix and BatchNorm of an operation's 1x1 convolution that ends with layer `last`."""
    if isinstance(module, FactorizedReduce):
        return factorized_matrix(module), cast(nn.BatchNorm2d, module.norm)
    layers = cast(nn.Sequential, module)
    return matrix(cast(nn.Conv2d, layers[last - 1])), cast(nn.BatchNorm2d, layers[last])


def _norm(module: nn.Module) -> nn.BatchNorm2d:
    """The last BatchNorm of an operation."""
    return cast(nn.BatchNorm2d, cast(nn.Sequential, module)[-1])


def _pixels(module: nn.Module, x_BCHW: Tensor) -> Tensor:
    """The input that the matrix of a module multiplies."""
    return shifted(x_BCHW) if isinstance(module, FactorizedReduce) else x_BCHW


def _kernels(modules: Sequence[nn.Sequential], layer: int) -> Tensor:
    return stacked([cast(nn.Conv2d, module[layer]).weight for module in modules])


def _running(weights: FloatArray, source: int, op: int) -> list[int]:
    """The edges that leave a source with a mixing weight of an operation."""
    return [edge for edge in _leaving(source) if weights[edge, op] != 0]


def _targets(edges: list[int]) -> list[int]:
    return [CELL_EDGES[edge][1] - 2 for edge in edges]


def _max(x_BCHW: Tensor, stride: int) -> Tensor:
    return box_max(x_BCHW) if stride == 1 else F.max_pool2d(x_BCHW, 3, 2, 1)


def _mean(x_BCHW: Tensor, stride: int) -> Tensor:
    return box_mean(x_BCHW) if stride == 1 else F.avg_pool2d(x_BCHW, 3, 2, 1, count_include_pad=False)


_leaving = partial(leaving, CELL_EDGES)
