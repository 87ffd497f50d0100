"""Which tensors of a network are alive while each of its operations runs, found by running it on `meta`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

IMAGES = 2
"""Images of a forward pass: with one alone a module could confuse the batch with something else."""

CONSTANTS = frozenset(
    f"{name}_{kind}" if kind == "like" else f"new_{name}"
    for name in ("zeros", "ones", "full", "empty")
    for kind in ("like", "new")
)
"""Functions that only take a tensor's shape."""

IN_PLACE = frozenset(
    (
        *("native_batch_norm", "_native_batch_norm_legit_no_training"),
        *("cudnn_batch_norm", "_batch_norm_no_update"),
        *("hardswish", "gelu", "mish", "prelu", "_prelu_kernel"),
    )
)
"""BatchNorm, which is part of the convolution before it or in place, and functions of one tensor, number by
number, that torch does not mark as such."""


@dataclass(frozen=True)
class Step:
    """An operation.

    Attributes:
        name: What it is called.
        what: All that its output depends on besides `reads`; None if it has weights.
        reads: Tensors that it needs, by number.
        writes: The tensor that it makes, by number.
        in_place: Whether it may overwrite its input.
    """

    name: str
    what: object
    reads: tuple[int, ...]
    writes: int
    in_place: bool


class Schedule:
    """Operations in the order in which they run, with their tensors.

    Weights, and what follows from weights alone, are no tensors here.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.sizes: list[int] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []  # an identity means one tensor only as long as this is alive

    def add(self, tensor: Tensor) -> int:
        """A new tensor; returns its number."""
        self.sizes.append(tensor.numel() // IMAGES)
        self.same(tensor, len(self.sizes) - 1)
        return len(self.sizes) - 1

    def same(self, tensor: Tensor, number: int) -> None:
        """Another form of a tensor."""
        self._kept.append(tensor)
        self._numbers[id(tensor)] = number

    def known(self, values: object) -> list[int]:
        """Numbers of the tensors in a structure, each once; what follows from weights alone has none."""
        found = (self._numbers.get(id(leaf)) for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
        return list(dict.fromkeys(number for number in found if number is not None))

    def run(self, name: str, what: object, inputs: object, outputs: object, *, in_place: bool) -> None:
        """Note an operation that has run.

        Args:
            name: For `alive`.
            what: What it does, hashable.
            inputs: Structure of its tensors and settings.
            outputs: Structure of its outputs, of which the first one counts. An input that it changed is
                another tensor afterwards, as in the files of other runtimes.
            in_place: Whether it may overwrite its input, if it has one only.
        """
        reads = self.known(inputs)
        made = next((leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)), None)
        if not reads or made is None:
            return
        key = self._key(what, inputs)
        self.steps.append(Step(name, key, tuple(reads), self.add(made), in_place and len(reads) == 1))

    def _key(self, what: object, inputs: object) -> object:
        """All that an operation's output depends on; None if it has weights."""
        key = [what]
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor):
                if id(leaf) not in self._numbers:
                    return None
                key.append(tuple(leaf.shape))
            else:
                key.append(str(leaf))
        return tuple(key)

    def alive(self, image: int, answer: Sequence[int]) -> dict[str, int]:
        """Most numbers alive during operations of each name that the answer needs, and for the image alone.

        Args:
            image: Number of the network's input.
            answer: Numbers of its outputs.
        """
        wanted, needed = set(answer), list[Step]()
        for step in reversed(self.steps):
            if step.writes in wanted:
                needed.append(step)
                wanted |= set(step.reads)
        same: dict[int, int] = {}
        first: dict[object, int] = {}
        steps = []
        for step in reversed(needed):
            reads = tuple(same.get(number, number) for number in step.reads)
            what = None if step.what is None else (step.what, reads)
            if what in first:  # a compiler computes it once
                same[step.writes] = first[what]
                continue
            if what is not None:
                first[what] = step.writes
            steps.append(replace(step, reads=reads, writes=same.get(step.writes, step.writes)))
        last = {number: place for place, step in enumerate(steps) for number in step.reads}
        last |= dict.fromkeys((same.get(number, number) for number in answer), len(steps))
        there, most = {image: self.sizes[image]}, {"": self.sizes[image]}
        for place, step in enumerate(steps):
            gone = {number for number in step.reads if last[number] == place}
            size = self.sizes[step.writes]
            if step.in_place and gone and there[step.reads[0]] == size:
                there.pop(step.reads[0])
            there[step.writes] = size
            most[step.name] = max(most.get(step.name, 0), sum(there.values()))
            there = {number: size for number, size in there.items() if number not in gone}
        return most


def overwrites(func: Any) -> bool:
    """Whether a function of torch may overwrite its input: one that works number by number, or BatchNorm."""
    return torch.Tag.pointwise in func.tags or func._overloadpacket.__name__.removesuffix("_") in IN_PLACE


class Recorder(TorchDispatchMode):
    """Notes every function that runs.

    Attributes:
        schedule: What ran.
    """

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Call a function, and note it."""
        result = func(*args, **(kwargs or {}))
        note(self.schedule, str(func), func, (args, kwargs), result)
        return result


def note(schedule: Schedule, name: str, func: Any, inputs: Any, result: Any) -> None:
    """Note a function of torch that has run.

    Args:
        schedule: Where.
        name: For `Schedule.alive`.
        func: The function, as a `TorchDispatchMode` sees it.
        inputs: Its arguments.
        result: What it returned.
    """
    if func._overloadpacket.__name__ in CONSTANTS:
        return
    if func.is_view and isinstance(result, Tensor):
        known = schedule.known(inputs)
        if known and result.is_contiguous() and result.numel() // IMAGES == schedule.sizes[known[0]]:
            schedule.same(result, known[0])
            return
    schedule.run(name, func, inputs, result, in_place=overwrites(func))


def most_alive(network: nn.Module, image_shape: Sequence[int]) -> int:
    """Most numbers of one image that a network holds at once.

    Args:
        network: Takes images (B, C, H, W) to logits; it is moved to `device="meta"`.
        image_shape: (C, H, W).
    """
    network = network.to("meta").eval()
    x = torch.empty(IMAGES, *image_shape, device="meta")
    with torch.no_grad(), Recorder() as recorder:
        image = recorder.schedule.add(x)
        logits = network(x)
    return max(recorder.schedule.alive(image, recorder.schedule.known(logits)).values())
