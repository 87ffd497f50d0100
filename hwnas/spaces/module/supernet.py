"""One set of weights for all networks of a user's module: a network runs with slices of them.

A parameter is named by where it stands, and by the classes of the modules around it. There is one of each, as
large as the largest of all networks. A smaller network has the leading part of every dimension: the first
channels of a layer, the first blocks of a depth. Of kernels it has the middle. Modules that are options of a
`choice` have weights of their own. Where channels of several widths lie side by side (`torch.cat`), and in
grouped convolutions, the leading part is an approximation: what an input channel means depends on the widths
before.

`functional_call` runs a network that was built without weights with the slices, which are views: it computes
what the network alone computes with these weights. Statistics of normalisation are shared in the same way;
other buffers have the values that the constructor gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from hwnas.core import FloatArray, Genotype
from hwnas.spaces.module.features import CONTAINERS
from hwnas.spaces.module.words import Build, MisfitError
from hwnas.spaces.supernet import Region, Supernet

if TYPE_CHECKING:
    from hwnas.spaces.module import ModuleSpace

NUM_KEPT = 64
"""Networks without weights that are kept for their next run."""

NUM_DRAWN = 20
"""Random networks that are looked at for weights larger than those that were found."""


@dataclass(frozen=True)
class _Part:
    """What a network has of a shared tensor.

    Attributes:
        name: Name of the parameter or statistic in the network.
        key: Name of the shared tensor.
        shape: Shape in the network.
        spatial: Whether all dimensions but the first two are those of a kernel.
        learned: Whether it is a parameter.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    spatial: bool
    learned: bool

    def region(self, shape: Sequence[int]) -> Region:
        """Where it lies in the shared tensor, which has this shape."""
        region = []
        for dim, (whole, size) in enumerate(zip(shape, self.shape, strict=True)):
            start = (whole - size) // 2 if self.spatial and dim > 1 else 0
            region.append(slice(start, start + size))
        return tuple(region)


@dataclass(frozen=True)
class _Skeleton:
    """A network without weights.

    Attributes:
        network: The module.
        parts: What it has of shared tensors, and where.
        own: Buffers that are not shared.
        norms: Normalisations, and whether each keeps running statistics.
    """

    network: nn.Module
    parts: Sequence[tuple[_Part, Region]]
    own: Mapping[str, Tensor]
    norms: Sequence[tuple[_NormBase, bool]]


class ModuleSupernet(Supernet):
    """The shared weights of all networks of a space; runs single architectures, not mixtures.

    Args:
        space: The space; options that it does not allow have weights, too.
        track_running_stats: Whether normalisations keep running statistics, if their layers have some;
            without, they always use the batch's.

    Raises:
        ValueError: A network that cannot be built.
    """

    slices = True

    def __init__(self, space: ModuleSpace, *, track_running_stats: bool) -> None:
        super().__init__()
        self._space, self.tracks = space.unrestricted, track_running_stats
        self._skeletons: dict[Genotype, _Skeleton] = {}
        self._used: dict[str, Region] = {}
        self.weights, self.statistics = nn.ParameterDict(), nn.Module()
        largest = _Largest(self._space)
        for genotype in dict.fromkeys(largest.where.values()):
            parts, network = largest.parts(genotype), self._space.network(genotype)
            tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
            for part in parts:
                if largest.where[part.key] == genotype:
                    values = _repeated(tensors[part.name].detach(), largest.shapes[part.key])
                    if part.learned:
                        wanted = tensors[part.name].requires_grad
                        self.weights[part.key] = nn.Parameter(values, requires_grad=wanted)
                    else:
                        self.statistics.register_buffer(part.key, values)

    def __getstate__(self) -> dict[str, Any]:
        """All but networks, which other processes build themselves."""
        return {**self.__dict__, "_skeletons": {}}

    def used(self) -> dict[nn.Parameter, Region]:
        """As `Supernet.used`; of several networks the smallest region that holds all of theirs."""
        used = {self.weights[key]: region for key, region in self._used.items()}
        self._used = {}
        return used

    def forward(self, x_BCHW: Tensor, weights: FloatArray, numbers: Tensor | None = None) -> Tensor:
        """As `Supernet.forward`, of a single architecture.

        Raises:
            ValueError: A mixture.
        """
        assert self.training, "`compiled` is for evaluation"
        skeleton = self._skeleton(self._single(weights))
        for part, region in skeleton.parts:
            if part.learned:
                self._used[part.key] = _around(region, self._used.get(part.key, region))
        tensors = self._tensors(skeleton)
        return _run(skeleton, tensors, x_BCHW, training=True, batch_statistics=not self.tracks)

    @torch.no_grad()
    def compiled(self, weights: FloatArray, *, batch_statistics: bool = False) -> Callable[[Tensor], Tensor]:
        """As `Supernet.compiled`, of a single architecture.

        Raises:
            ValueError: A mixture.
        """
        skeleton = self._skeleton(self._single(weights))
        tensors = self._tensors(skeleton)
        batch_statistics = batch_statistics or not self.tracks

        @torch.no_grad()
        def logits(x_BCHW: Tensor) -> Tensor:
            return _run(skeleton, tensors, x_BCHW, training=False, batch_statistics=batch_statistics)

        return logits

    def sliced(self, genotype: Genotype) -> dict[str, Tensor]:
        """Shared weights and statistics of an architecture as its network names them; views, not copies."""
        return self._tensors(self._skeleton(genotype))

    def _single(self, weights: FloatArray) -> Genotype:
        """The architecture of one-hot weights."""
        if (
            weights.shape != self._space.alpha_shape
            or ((weights == 1).sum(1) != 1).any()
            or weights.sum() != len(weights)
        ):
            raise ValueError(
                f"the supernet of {self._space.name} runs one architecture at a time: mixing weights must be "
                f"one-hot, of shape {self._space.alpha_shape}"
            )
        return tuple(weights.argmax(axis=1).tolist())

    def _shared(self, part: _Part) -> Tensor:
        tensor = self.weights[part.key] if part.learned else self.statistics.get_buffer(part.key)
        assert isinstance(tensor, Tensor)
        return tensor

    def _tensors(self, skeleton: _Skeleton) -> dict[str, Tensor]:
        """A network's parameters and statistics by name; views."""
        return {part.name: self._shared(part)[region] for part, region in skeleton.parts}

    def _skeleton(self, genotype: Genotype) -> _Skeleton:
        """The network of an architecture, without weights."""
        if genotype in self._skeletons:
            return self._skeletons[genotype]
        network, build = self._space.tracer.skeleton(self._space.numbers(genotype))
        parts = []
        for part in _parts(network, build):
            known = part.key in (self.weights if part.learned else self.statistics._buffers)
            shape = tuple(self._shared(part).shape) if known else (0,) * len(part.shape)
            if any(size > whole for size, whole in zip(part.shape, shape, strict=True)):
                raise ValueError(
                    f"{part.name} has shape {part.shape} in {self._space.to_str(genotype)}, and at most "
                    f"{shape} in the networks that the supernet was made for; let it depend on fewer choices"
                )
            parts.append((part, part.region(shape)))
        norms = [(m, m.track_running_stats) for m in network.modules() if isinstance(m, _NormBase)]
        if len(self._skeletons) >= NUM_KEPT:
            del self._skeletons[next(iter(self._skeletons))]
        shared = {part.name for part, _ in parts}
        own = {name: buffer for name, buffer in network.named_buffers() if name not in shared}
        self._skeletons[genotype] = _Skeleton(network, parts, own, norms)
        return self._skeletons[genotype]


class _Largest:
    """The largest shape of each shared tensor over all networks.

    As a rule, shapes grow with numbers: the network with the largest number of every choice has most of them.
    Each option is tried in it alone. Those that show larger tensors, or other ones, are put into it together,
    and the options of the network that this gives are tried, until nothing is new.

    Args:
        space: All networks.

    Attributes:
        shapes: By key.
        where: The network that has most elements of each, by key.

    Raises:
        ValueError: A network that cannot be built.
    """

    def __init__(self, space: ModuleSpace) -> None:
        self._space = space
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.where: dict[str, Genotype] = {}
        self._most: dict[str, int] = {}
        rng, pending = np.random.default_rng(0), [space.largest]
        while pending:
            here = pending.pop()
            self._grows(here)
            larger: dict[int, list[int]] = {}
            for choice, ops in enumerate(space.choices):
                for op in ops:
                    if op != here[choice] and self._grows((*here[:choice], op, *here[choice + 1 :])):
                        larger.setdefault(choice, []).append(op)
            for number in range(max(map(len, larger.values()), default=0)):
                options = [larger.get(choice, [op]) for choice, op in enumerate(here)]
                pending.append(tuple(ops[number % len(ops)] for ops in options))
            if not pending:
                pending = [genotype for genotype in space.sample(rng, NUM_DRAWN) if self._grows(genotype)]

    def parts(self, genotype: Genotype) -> list[_Part]:
        """What a network has."""
        try:
            return list(_parts(*self._space.tracer.shapes(self._space.numbers(genotype))))
        except MisfitError as error:
            raise ValueError(f"{self._space.to_str(genotype)} {error}") from None

    def _grows(self, genotype: Genotype) -> bool:
        """Look at a network; returns whether it has a new tensor, or a larger one."""
        grows = False
        for part in self.parts(genotype):
            before = self.shapes.get(part.key, (0,) * len(part.shape))
            shape = tuple(map(max, before, part.shape))
            size = int(np.prod(part.shape))
            if size > self._most.get(part.key, -1):
                self._most[part.key], self.where[part.key] = size, genotype
            grows |= part.key not in self.shapes or shape != before
            self.shapes[part.key] = shape
        return grows


def _parts(network: nn.Module, build: Build) -> Iterator[_Part]:
    """What a network has of shared tensors.

    A key has the name, and what the layer is in: classes of modules, and options of choices.
    """
    within: dict[str, tuple[str, ...]] = {}
    known: set[Tensor] = set()
    for place, module in network.named_modules():
        outer = within[place.rpartition(".")[0]] if place else ()
        within[place] = (*outer, *reversed(build.options_of.get(module, ())))
        if place and not isinstance(module, CONTAINERS):
            within[place] += (_kind(module),)
        spatial = isinstance(module, _ConvNd)
        for learned, tensors in ((True, module._parameters), (False, module._buffers)):
            if not learned and not isinstance(module, _NormBase):
                continue
            for own, tensor in tensors.items():
                if tensor is None or tensor in known:  # a tensor at two places is one
                    continue
                known.add(tensor)
                name = f"{place}.{own}".removeprefix(".")
                key = " ".join([name, *within[place], f"{tensor.dim()}d"])
                key = key.replace(".", "/")  # names of parameters have no dots
                yield _Part(name, key, tuple(tensor.shape), spatial and own == "weight", learned)


def _kind(module: nn.Module) -> str:
    """The kind of a layer, among which weights are shared."""
    name = type(module).__name__
    groups = module.groups if isinstance(module, _ConvNd) else 1
    if groups == 1:
        return name
    return f"{name} depthwise" if groups == module.in_channels else f"{name} grouped"


def _repeated(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Initial values of a shared tensor from those of a network, repeated where it is larger."""
    for dim, (size, whole) in enumerate(zip(values.shape, shape, strict=True)):
        values = (
            values.repeat_interleave(-(-whole // size), dim).narrow(dim, 0, whole) if size < whole else values
        )
    return values.clone()


def _around(a: Region, b: Region) -> Region:
    """The smallest region that holds both."""
    return tuple(slice(min(i.start, j.start), max(i.stop, j.stop)) for i, j in zip(a, b, strict=True))


def _run(
    skeleton: _Skeleton,
    tensors: Mapping[str, Tensor],
    x_BCHW: Tensor,
    *,
    training: bool,
    batch_statistics: bool,
) -> Tensor:
    """Logits (B, classes) of a network with these parameters and statistics."""
    skeleton.network.train(training)
    for norm, tracks in skeleton.norms:
        norm.training, norm.track_running_stats = (
            training or batch_statistics,
            tracks and not batch_statistics,
        )
    own = {name: buffer.to(x_BCHW.device, copy=True) for name, buffer in skeleton.own.items()}
    logits: Tensor = functional_call(skeleton.network, {**tensors, **own}, (x_BCHW,))
    return logits
