"""Spaces of a user's PyTorch module, in which words mark what may vary."""

from __future__ import annotations

import ast
import copy
import hashlib
import inspect
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hwnas.core import Count, FloatArray, Genotype, checked, checked_choices, suggestion
from hwnas.spaces.capabilities import Drawable, HasCosts, HasFeatures, HasSupernet
from hwnas.spaces.drawing import Drawing
from hwnas.spaces.module import source
from hwnas.spaces.module.drawing import columns
from hwnas.spaces.module.parts import Parts
from hwnas.spaces.module.words import ChoiceError, MisfitError

if TYPE_CHECKING:
    from torch import nn

    from hwnas.spaces.blocks import Blocks, Population
    from hwnas.spaces.module.supernet import ModuleSupernet
    from hwnas.spaces.module.tracing import Trace, Tracer

MOST_OPTIONS = 36
"""Differently named options of a space; pages write one character for each."""

MOST_NAMED = 4
"""Options that a message names, of those that together do not fit."""

NUM_DRAWN = 16
"""Random networks that are looked at for choices that only some networks have."""

SMALL_SIDE = 8
"""Height and width of images that networks must take for evaluators to judge them on smaller images."""


class ModuleSpace(HasFeatures, HasSupernet, HasCosts, Drawable):
    """The networks of a module whose constructor uses `choice`, `width`, `depth`, `kernel` and `optional`.

    A genotype has an option per choice, in the order in which a network meets them. Choices that only some
    networks meet, such as the kernel of a third block, have their first option in all others. An architecture
    is written as "stem=16 stem.kernel=3 stage1=2 ...", without choices that it does not meet.

    When the space is made, each option is built and run on `device="meta"`, and some hundred combinations:
    options that do not fit are found, and what each layer's cost depends on. `Parts` explains how the costs
    of all networks follow from that.

    Args:
        module: The class, a `nn.Module`. Its constructor gets `image_shape` and `num_classes` if it names
            them.
        path: Its file and name: "mine.py:Net"; with a class only for others to find it.
        image_shape: (channels, height, width) of the images.
        num_classes: Number of classes.
        announce: Called with sentences about the counting of networks.

    Attributes:
        num_measured: Networks that a device's profile is fitted to.

    Raises:
        ValueError: No such file or class; a module without choices, with two of one name, with options that
            do not fit, or that cannot be counted; says which line of the file.
    """

    mixes = False

    num_measured: ClassVar[int] = 150

    @checked
    def __init__(
        self,
        module: type[nn.Module] | None = None,
        *,
        path: str | None = None,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: Count = 10,
        announce: Callable[[str], None] | None = None,
    ) -> None:
        began = time.perf_counter()
        if module is None and path is None:
            raise ValueError("path must be <file.py>:<class>, e.g. search_space.path=mine.py:Net")
        self._announce = announce
        self._path = path if module is None else None
        self._class = source.load(str(path)) if module is None else source.checked_class(module)
        self._called = self._class.__name__
        self.image_shape, self.num_classes = image_shape, num_classes
        self._tracer = self._new_tracer()
        self._traces: dict[Genotype, Trace] = {}
        self._work: set[str] = set()
        self._alive: Parts | None = None
        self._seen: list[tuple[Mapping[str, int], Trace]] = []
        self._options = self._read()
        labels = list(dict.fromkeys(label for options in self._options.values() for label in options))
        if len(labels) > MOST_OPTIONS:
            raise ValueError(
                f"the choices of {self._called} have {len(labels)} differently named options; there may be "
                f"{MOST_OPTIONS}"
            )
        self.ops = tuple(labels)
        self._all = tuple(
            tuple(labels.index(label) for label in options) for options in self._options.values()
        )
        self.choices = checked_choices(self._all, len(self._all), len(labels))
        for options, trace in self._seen:
            chosen = zip(self._options, self._all, strict=True)
            self._traces[tuple(ops[options.get(name, 0)] for name, ops in chosen)] = trace
        self._seen.clear()
        self._explore()
        self.name = f"{self._called}-{self._digest()}"
        self.any_image_size = self._takes_small_images()
        self._say(
            f"{self._called} has {len(self.choices)} choices; {len(self._traces)} of its networks were built "
            f"in {time.perf_counter() - began:.1f} s to learn which options fit and what each costs"
        )

    def __getstate__(self) -> dict[str, Any]:
        """All but the class, where a file has it: another process finds it there."""
        state = {**vars(self), "_tracer": None, "_traces": {}, "_announce": None}
        return state if self._path is None else {**state, "_class": None}

    def _amounts(self) -> NDArray[np.intp]:
        """Number that each option stands for, shape (choices, options); -1: none."""
        amounts = np.full((len(self._all), len(self.ops)), -1)
        for row, ops in zip(amounts, self._all, strict=True):
            if all(self.ops[op].isdigit() for op in ops):
                row[list(ops)] = [int(self.ops[op]) for op in ops]
        return amounts

    def _say(self, sentence: str) -> None:
        if self._announce is not None:
            self._announce(sentence)

    def _new_tracer(self) -> Tracer:
        if self._class is None and self._path is not None:  # in another process, which was given this space
            self._class = source.load(self._path, allowed=True)
        return _networks().Tracer(self._class, self.image_shape, self.num_classes)

    @property
    def tracer(self) -> Tracer:
        """Builds and counts networks."""
        if self._tracer is None:
            self._tracer = self._new_tracer()
        return self._tracer

    def _explore(self) -> None:
        """Find out what the parts of networks depend on."""
        self._columns = ("flops", "params", *sorted(self._work))
        self.costs = Parts(self._costs_of, len(self._columns), self._say, self._amounts())
        self.meets = Parts(self._met_by, len(self.choices), self._say, self._amounts())
        for parts in (self.costs, self.meets):
            rng = np.random.default_rng(0)  # the same networks for both
            parts.explore(partial(super().sample, rng))

    def _figures(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> FloatArray:
        """Figures of networks, shape (n, columns), in the order of `_columns`."""
        return self.costs.totals(genotypes)

    def _meets(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether networks meet a choice, shape (n, choices)."""
        return self.meets.totals(genotypes) > 0

    def _read(self) -> dict[str, tuple[str, ...]]:
        """Labels of the options of all choices that networks meet, in their order.

        Raises:
            ValueError: As for the class.
        """
        found: dict[str, tuple[str, ...]] = {}
        where: dict[str, dict[str, int]] = {}  # options of a network that meets each
        visited: set[str] = set()
        rng = np.random.default_rng(0)
        self._look({}, found, where)
        if not found:
            raise ValueError(
                f"{self._called} has no choices; mark what may vary in its __init__, e.g. "
                "width('stem', [16, 32]) from hwnas"
            )
        while len(visited) < len(found):
            for name in [name for name in found if name not in visited]:
                visited.add(name)
                for option in range(1, len(found[name])):
                    self._look({**where[name], name: option}, found, where)
            for _ in range(NUM_DRAWN):
                drawn = {name: int(rng.integers(len(options))) for name, options in found.items()}
                self._look(drawn, found, where)
        return found

    def _look(
        self,
        options: Mapping[str, int],
        found: dict[str, tuple[str, ...]],
        where: dict[str, dict[str, int]],
    ) -> None:
        """Build a network, and note the choices that it meets after those that they follow."""
        trace = self._fitting(options, found)
        self._seen.append((options, trace))
        self._work |= {name for part in trace.parts.values() for name in part} - {"flops", "params"}
        met, order, before = trace.met, list(found), -1
        for name, labels in met.items():
            if name not in found:
                order.insert(before + 1, name)
                where[name] = dict(options)
                found[name] = labels
            elif found[name] != labels:
                raise ValueError(
                    f"choice {name!r} of {self._called} has the options {', '.join(found[name])} in one "
                    f"network and {', '.join(labels)} in another; give it another name there"
                )
            before = order.index(name)
        ordered = {name: found[name] for name in order}
        found.clear()
        found.update(ordered)

    def _fitting(self, options: Mapping[str, int], known: Mapping[str, tuple[str, ...]]) -> Trace:
        """A network, built and counted.

        Raises:
            ValueError: It does not work; names the options that do not fit.
        """

        def wrong(options: Mapping[str, int]) -> MisfitError | None:
            try:
                self.tracer.trace(options)
            except MisfitError as error:
                return error
            return None

        try:
            return self.tracer.trace(options)
        except ChoiceError as error:
            raise ValueError(f"{self._called}: {error}") from None
        except MisfitError as first:
            kept, least = {name: option for name, option in options.items() if option}, first
            for name in list(kept):  # what is not needed for the error goes back to its first option
                fewer = {other: option for other, option in kept.items() if other != name}
                if (same := wrong(fewer)) is not None:
                    kept, least = fewer, same
            needed = [f"{name}={known[name][option]}" for name, option in kept.items() if name in known]
            if len(needed) > MOST_NAMED:
                needed[MOST_NAMED:] = [f"{len(needed) - MOST_NAMED} others"]
            named = " and ".join(needed)
            shape = "x".join(map(str, self.image_shape))
            which = f"{self._called} with {named}" if named else self._called
            raise ValueError(f"{which} does not fit images of {shape}: it {least}") from None

    def _costs_of(self, genotype: Genotype) -> dict[str, tuple[int, ...]]:
        """Figures of each part of a network, in the order of `_columns`."""
        parts = self._trace(genotype).parts
        return {name: tuple(part[column] for column in self._columns) for name, part in parts.items()}

    def _alive_of(self, genotype: Genotype) -> dict[str, tuple[int, ...]]:
        """Most numbers alive while each part of a network runs."""
        trace = self.tracer.trace(self.numbers(genotype), schedule=_networks().Schedule())
        return {name: (number,) for name, number in trace.alive.items()}

    def _met_by(self, genotype: Genotype) -> dict[str, tuple[int, ...]]:
        """Per choice that a network meets 1 in its own column."""
        met = self._trace(genotype).met
        return {name: tuple(int(name == other) for other in self._options) for name in met}

    def _trace(self, genotype: Genotype) -> Trace:
        if genotype not in self._traces:
            trace = self._fitting(self.numbers(genotype), self._options)
            if new := [name for name in trace.met if name not in self._options]:
                raise ValueError(
                    f"{self._called}: choice {new[0]!r} was not met by any of the first networks; only with "
                    f"{self._written(genotype)}"
                )
            self._traces[genotype] = trace
        return self._traces[genotype]

    def _digest(self) -> str:
        """A hash of all that tells this space from others: code without comments, and choices."""
        try:
            code = ast.dump(ast.parse(inspect.getsource(inspect.getmodule(self._class) or self._class)))
        except (OSError, TypeError, SyntaxError):  # of a notebook
            code = ""
        content = json.dumps([self._called, code, self._options])
        return hashlib.sha256(content.encode()).hexdigest()[:8]

    def _takes_small_images(self) -> bool:
        """Whether some networks take images of other sizes."""
        small = (self.image_shape[0], SMALL_SIDE, SMALL_SIDE)
        try:
            for ends in (0, -1):
                genotype = tuple(options[ends] for options in self._all)
                self.tracer.trace(self.numbers(genotype), small)
        except MisfitError:
            return False
        return True

    def numbers(self, genotype: Genotype) -> dict[str, int]:
        """Number of the chosen option by name of the choice."""
        return {
            name: options.index(op)
            for name, options, op in zip(self._options, self._all, genotype, strict=True)
        }

    def resized(self, *, channels: int | None = None, num_cells: int | None = None) -> Self:
        """The same space: its networks have the sizes that their code says, the settings mean nothing."""
        return self

    def restrict(self, keep: Sequence[Sequence[int]]) -> Self:
        """The sub-space with only the options `keep[choice]` of each choice."""
        smaller = copy.copy(self)
        smaller.choices = checked_choices(keep, len(self.choices), len(self.ops))
        for edge, (ops, known) in enumerate(zip(smaller.choices, self._all, strict=True)):
            if not set(ops) <= set(known):
                raise ValueError(
                    f"choice {list(self._options)[edge]!r} has no option {set(ops) - set(known)}"
                )
        return smaller

    @property
    def unrestricted(self) -> Self:
        """The space with all options of its module."""
        return self.restrict(self._all)

    @property
    def largest(self) -> Genotype:
        """The architecture with the largest number of each choice, and the last of options that are none."""

        def size(op: int) -> float:
            return float(self.ops[op]) if re.fullmatch(r"\d+(\.\d+)?", self.ops[op]) else 0.0

        return tuple(max(reversed(ops), key=size) for ops in self.choices)

    def live(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> NDArray[np.intp]:
        """Genotypes (n, choices) with the first option of each choice that a network does not meet."""
        G = np.array(genotypes, dtype=np.intp).reshape(-1, len(self.choices))
        first = np.array([ops[0] for ops in self.choices])
        return np.where(self._meets(G), G, first)

    def _canonical(self, genotypes: Sequence[Genotype]) -> list[Genotype]:
        return [tuple(row) for row in self.live(genotypes).tolist()]

    def sample(self, rng: np.random.Generator, num: int) -> list[Genotype]:
        """`num` architectures, each option uniform over those allowed for its choice."""
        return self._canonical(super().sample(rng, num))

    def decode(self, alphas: FloatArray) -> list[Genotype]:
        """The allowed option with the largest alpha of every choice.

        Args:
            alphas: Shape (n, choices, options).

        Raises:
            ValueError: Another shape.
        """
        return self._canonical(super().decode(alphas))

    def mutate(self, genotype: Genotype, rng: np.random.Generator) -> Genotype:
        """The genotype with another option of one choice that its network meets."""
        same = self._canonical([genotype])[0]
        for _ in range(100):
            changed = self._canonical([super().mutate(same, rng)])[0]
            if changed != same:
                return changed
        return same

    def neighbours(self, genotype: Genotype) -> list[Genotype]:
        """All other networks with another option of one choice, or the options of two choices exchanged."""
        same = self._canonical([genotype])[0]
        near = dict.fromkeys(self._canonical(super().neighbours(same)))
        near.pop(same, None)
        return list(near)

    def static_metrics(self, genotypes: Sequence[Genotype]) -> dict[str, FloatArray]:
        """`flops` (multiply-adds) and `params` per genotype, shape (n,), as `blocks.count` counts them."""
        flops, params = self._figures(genotypes).T[:2]
        return {"flops": flops, "params": params}

    def features(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Structure in numbers, shape (n, features): logarithms of costs, and of options that are numbers.

        Of other options their place among the options; 0 where a choice is not met.
        """
        G = self.live(genotypes)
        values = np.zeros((len(self.choices), len(self.ops)))
        for row, options in zip(values, self._options.values(), strict=True):
            numeric = all(label.isdigit() for label in options)
            for place, label in enumerate(options):
                row[self.ops.index(label)] = math.log2(1 + int(label)) if numeric else place
        met = self._meets(G)
        costs = [np.log1p(column) for column in self.static_metrics(genotypes).values()]
        return np.column_stack([np.where(met, values[np.arange(G.shape[1]), G], 0.0), *costs])

    def most_alive(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Most numbers of one image alive at once per genotype, shape (n,), by the layers of `Parts`."""
        if self._alive is None:
            self._alive = Parts(self._alive_of, 1, self._say, self._amounts(), largest=True)
            self._alive.explore(partial(super().sample, np.random.default_rng(0)))
        return self._alive.totals(genotypes)[:, 0]

    def to_str(self, genotype: Genotype) -> str:
        """Choices that the network meets with their options, e.g. "stem=16 stage1=2"."""
        met = self._meets([genotype])[0]
        return self._written([op if meets else None for op, meets in zip(genotype, met, strict=True)])

    def _written(self, ops: Sequence[int | None]) -> str:
        return " ".join(
            f"{name}={self.ops[op]}" for name, op in zip(self._options, ops, strict=True) if op is not None
        )

    def from_str(self, text: str) -> Genotype:
        """The genotype of a text as `to_str` writes it; choices that it does not meet may be left out.

        Raises:
            ValueError: An unknown choice or option, one that is given twice, or one that is missing.
        """
        given: dict[str, str] = {}
        for word in text.split():
            name, _, label = word.partition("=")
            if name not in self._options:
                raise ValueError(
                    f"unknown choice {name!r} in {text!r}{suggestion(name, list(self._options))}"
                )
            if name in given:
                raise ValueError(f"{name} is given twice in {text!r}")
            if label not in self._options[name]:
                known = ", ".join(self._options[name])
                raise ValueError(f"unknown option {label!r} of {name} in {text!r}; known: {known}")
            given[name] = label
        genotype = self.check(
            [
                self.ops.index(given[name]) if name in given else ops[0]
                for name, ops in zip(self._options, self.choices, strict=True)
            ]
        )
        for name, meets in zip(self._options, self._meets([genotype])[0], strict=True):
            if meets and name not in given:
                raise ValueError(f"{text!r} has no {name}; known: {', '.join(self._options[name])}")
        return self._canonical([genotype])[0]

    def network(self, genotype: Genotype) -> nn.Module:
        """The network of one architecture, randomly initialised by torch's generator."""
        return self.tracer.network(self.numbers(self.check(genotype)))

    def drawn(self, genotypes: Sequence[Genotype], seed: int) -> Population:
        """The networks of K architectures as one module, each with weights drawn with the seed."""
        return _networks().population([(self.tracer, self.numbers(self.check(g))) for g in genotypes], seed)

    def supernet(self, *, affine: bool, track_running_stats: bool) -> ModuleSupernet:
        """All networks with shared weights; single architectures run.

        Args:
            affine: Without effect: BatchNorm has what the module's code says.
            track_running_stats: Whether normalisations keep the running statistics that the code gives them.
        """
        return _supernets().ModuleSupernet(self, track_running_stats=track_running_stats)

    def drawing(self) -> Drawing:
        """A column per part of the module, with a box per choice."""
        return columns(list(self._options), self.ops)

    def blocks(self) -> Blocks:
        """No blocks: what options cost depends on others, so that whole networks are measured."""
        return _networks().measured(*self.alpha_shape, self.num_measured)

    def work(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> dict[str, FloatArray]:
        """Number, multiply-adds and elements of layers of each kind per genotype, each (n,)."""
        return dict(zip(self._columns[2:], self._figures(genotypes).T[2:], strict=True))


def _networks() -> ModuleType:
    # torch is loaded once the space is made: commands that only compose a configuration need none.
    from hwnas.spaces.module import tracing

    return tracing


def _supernets() -> ModuleType:
    # as above
    from hwnas.spaces.module import supernet

    return supernet
