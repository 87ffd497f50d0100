"""Networks of a user's module: built, and counted on `device="meta"` layer by layer.

A layer of torch with given settings costs the same for inputs of the same shape wherever it stands. So its
output shape and its multiply-adds are computed once: a network is counted some twenty times faster than by
running it on `meta` (`tests/spaces/test_module.py` compares the counts).
"""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from hwnas.spaces.blocks import Blocks
from hwnas.spaces.liveness import IMAGES, Schedule, note
from hwnas.spaces.module.features import Networks
from hwnas.spaces.module.words import Build, ChoiceError, MisfitError, building

PLAIN = (bool, int, float, str, type(None), tuple, torch.Size)
"""Types of settings that tell layers apart."""


FILLS = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)
"""Functions that change values only."""


@dataclass(frozen=True)
class Trace:
    """What one network consists of.

    Attributes:
        met: Labels of the options per choice that was met while it was built, in this order.
        parts: Figures of one image per module, by its name, and then by theirs: "flops" (multiply-adds),
            "params", and of each kind of layer their number ("conv3x3 layers"), multiply-adds ("conv3x3
            flops") and elements of input and output ("conv3x3 elements"). What a module computes besides its
            layers is of the kind "functions".
        alive: Most numbers of one image alive at once while each part runs, by the part's name; empty if
            nobody asked.
    """

    met: Mapping[str, tuple[str, ...]]
    parts: Mapping[str, Mapping[str, int]]
    alive: Mapping[str, int]


class _NoInitialValues(TorchFunctionMode):
    """Leaves out the initialisation of weights, which costs most of the time on `meta`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call a function, unless it is one of `torch.nn.init`, or what those call."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


class _Functions(TorchDispatchMode):
    """Counts functions outside of torch's own layers, and floating-point operations by torch's own rules.

    Each is a part of its own, "<module>#<number>": what one costs depends on fewer choices than all of them.

    Args:
        schedule: Where to note what runs; None: nowhere.

    Attributes:
        parts: Figures per part.
    """

    def __init__(self, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.parts: dict[str, Counter[str]] = {}
        self._schedule = schedule
        self._name, self._calls = "", Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Call a function, and count it."""
        result = func(*args, **(kwargs or {}))
        rule = flop_registry.get(func._overloadpacket)
        flops = 0 if rule is None else rule(*args, **(kwargs or {}), out_val=result)
        elements = result.numel() if isinstance(result, Tensor) else 0
        self._calls[self._name] += 1
        part = f"{self._name}#{self._calls[self._name]}"
        self.parts[part] = _figures("functions", 1, flops, elements)
        if self._schedule is not None:
            note(self._schedule, part, func, (args, kwargs), result)
        return result

    def inside(self, forward: Callable[..., Any], name: str, *inputs: Any, **others: Any) -> Any:
        """The output of a module, whose own functions have its name."""
        outer, self._name = self._name, name
        try:
            return forward(*inputs, **others)
        finally:
            self._name = outer


Effect = Literal["has an output", "may overwrite its input", "changes its input", "returns its input"]
"""What a layer does with its input: the last is for those that only give it another shape, or nothing."""


@dataclass(frozen=True)
class Counted:
    """Where a layer of a network is counted.

    Attributes:
        name: Its name.
        part: Its figures.
        schedule: What ran before it, if that is noted.
    """

    name: str
    part: Counter[str]
    schedule: Schedule | None


class Tracer:
    """Builds and counts the networks of a module.

    Args:
        module: The user's class.
        image_shape: (channels, height, width) of the images.
        num_classes: Number of classes.
    """

    def __init__(self, module: type[nn.Module], image_shape: tuple[int, int, int], num_classes: int) -> None:
        self.module, self.image_shape, self.num_classes = module, image_shape, num_classes
        known = inspect.signature(module.__init__).parameters
        offered = {"image_shape": image_shape, "num_classes": num_classes}
        self._arguments = {name: value for name, value in offered.items() if name in known}
        self._layers: dict[object, tuple[Any, Counter[str], Effect]] = {}

    def network(self, options: Mapping[str, int | str]) -> nn.Module:
        """A network, randomly initialised by torch's generator.

        Args:
            options: Number or label of the chosen option by name of the choice.
        """
        with building(options):
            return self.module(**self._arguments)

    def shapes(self, options: Mapping[str, int | str]) -> tuple[nn.Module, Build]:
        """A network on `meta`, and how it was built.

        Args:
            options: As for `network`.

        Raises:
            MisfitError: It cannot be built.
        """
        with building(options) as build, self._blaming("cannot be built"):
            return self._on_meta(build), build

    def skeleton(self, options: Mapping[str, int]) -> tuple[nn.Module, Build]:
        """A network whose parameters are on `meta` and whose buffers have values, and how it was built.

        What the constructor draws is the same for the same options.

        Args:
            options: As for `network`.
        """
        with torch.random.fork_rng(devices=[]), building(options) as build:
            torch.default_generator.manual_seed(0)  # which costs less than `torch.manual_seed`
            network = self.module(**self._arguments)
        empty: dict[nn.Parameter, nn.Parameter] = {}  # one that stands at two places stays one
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter not in empty:
                    empty[parameter] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
                module._parameters[name] = empty[parameter]
        return network, build

    def trace(
        self,
        options: Mapping[str, int],
        image_shape: Sequence[int] | None = None,
        *,
        schedule: Schedule | None = None,
    ) -> Trace:
        """Build and count a network.

        Args:
            options: As for `network`.
            image_shape: Shape of the images; None: those that networks are built for.
            schedule: An empty one, to note in which order its parts run, and find what is `alive`.

        Raises:
            MisfitError: It cannot be built, does not take the images, or returns something other than logits.
            ChoiceError: Words that are used wrongly.
        """
        network, build = self.shapes(options)
        parts: dict[str, Counter[str]] = {}
        with self._blaming("cannot be counted"):
            for name, parameter in network.named_parameters():
                parts.setdefault(name.rpartition(".")[0], Counter())["params"] += parameter.numel()
        functions = _Functions(schedule)
        for name, module in network.named_modules():
            module.training = False
            part = parts.setdefault(name, Counter())
            if isinstance(module, nn.Linear) and module.bias is not None:
                part["flops"] += module.bias.numel()
            if not type(module).__module__.startswith("torch.nn.modules"):
                wrapped = partial(functions.inside, module.forward, name)
            elif not module._modules and not isinstance(module, nn.Sequential):
                noted = Counted(name, part, schedule)
                wrapped = partial(self._layer, module, type(module).forward, noted)
            else:
                continue
            module.forward = wrapped
        x = torch.empty(IMAGES, *(image_shape or self.image_shape), device="meta")
        image = None if schedule is None else schedule.add(x)
        with self._blaming("cannot be run"), torch.no_grad(), torch.device("meta"), functions:
            logits = network(x)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != (IMAGES, self.num_classes):
            found = f"a {type(logits).__name__}"
            if isinstance(logits, Tensor):
                found = f"{'x'.join(map(str, logits.shape))} numbers"
            raise MisfitError(
                f"returns {found} for {IMAGES} images, not the logits of {self.num_classes} classes for each"
            )
        parts |= functions.parts
        alive = {} if schedule is None or image is None else schedule.alive(image, schedule.known(logits))
        return Trace(build.met, {name: part for name, part in parts.items() if part}, alive)

    def _on_meta(self, build: Build) -> nn.Module:
        """A network without values; where its code computes with them, they are there at first."""
        try:
            with _NoInitialValues(), torch.device("meta"):
                return self.module(**self._arguments)
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
        build.clear()
        with torch.random.fork_rng(devices=[]):
            return self.module(**self._arguments).to("meta")

    def _layer(
        self, module: nn.Module, forward: Callable[..., Any], counted: Counted, *inputs: Any, **others: Any
    ) -> Any:
        """The output of one of torch's layers, which is counted."""
        if others or len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            return forward(module, *inputs, **others)
        (x,) = inputs
        key = (type(module), *_settings(module), x.shape)
        known = self._layers.get(key)
        if known is None:
            with _disable_current_modes(), torch.no_grad(), _Functions(schedule := Schedule()) as own:
                schedule.add(x)
                y = forward(module, x)
            flops = sum(each["flops"] for each in own.parts.values())
            elements = x.numel() + y.numel() if isinstance(y, Tensor) else x.numel()
            figures = _figures(kind(module), 1, 2 * IMAGES * flops, elements)
            known = self._layers[key] = y, figures, _effect(schedule, x, y)
        y, figures, effect = known
        counted.part.update(figures)
        if counted.schedule is None:
            return y
        if effect == "changes its input":
            y = x
        else:  # a tensor of this call's own
            with _disable_current_modes():
                y = tree_map(lambda of: torch.empty_like(of) if isinstance(of, Tensor) else of, y)
        if effect == "returns its input":
            for number in counted.schedule.known(x):
                counted.schedule.same(y, number)
        else:
            read = [x, *module.parameters()]
            counted.schedule.run(counted.name, key, read, y, in_place=effect != "has an output")
        return y

    @contextlib.contextmanager
    def _blaming(self, what: str) -> Iterator[None]:
        """Say which line of the user's code an error comes from."""
        try:
            yield
        except ChoiceError as error:
            raise ChoiceError(f"{error}{self._line(error)}") from None
        except Exception as error:
            first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            raise MisfitError(f"{what}: {first}{self._line(error)}") from error

    def _line(self, error: BaseException) -> str:
        """Where in the user's file an error arose."""
        try:
            file = inspect.getfile(self.module)
        except (OSError, TypeError):
            return ""
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        if not frames:
            return ""
        return f" ({file}, line {frames[-1].lineno}: {frames[-1].line})"


def _effect(own: Schedule, x: Tensor, y: object) -> Effect:
    """What a layer has done with its input, by the functions that it called."""
    if y is x and own.steps:
        return "changes its input"
    if own.known(y) == own.known(x):
        return "returns its input"
    return "may overwrite its input" if all(step.in_place for step in own.steps) else "has an output"


def population(built: Sequence[tuple[Tracer, Mapping[str, int]]], seed: int) -> Networks:
    """Networks as one module, each with weights drawn with the seed; torch's generator stays as it is."""
    networks = []
    for tracer, options in built:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks.append(tracer.network(options))
    return Networks(networks)


def measured(num_choices: int, num_ops: int, num_networks: int) -> Blocks:
    """No blocks: what an option costs depends on others, so that whole networks are measured."""
    return Blocks(
        {}, {}, [[{} for _ in range(num_ops)] for _ in range(num_choices)], num_networks=num_networks
    )


def kind(layer: nn.Module) -> str:
    """The kind of a layer, among which times are in proportion to work, e.g. "conv3x3" or "depthwise5x5"."""
    name = type(layer).__name__
    size = getattr(layer, "kernel_size", None)
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return name
    assert size is not None
    what = "conv" if layer.groups == 1 else "depthwise" if layer.groups == layer.in_channels else "grouped"
    return what + "x".join(map(str, size))


def _figures(kind: str, layers: int, operations: int, elements: int) -> Counter[str]:
    """Figures of layers of a kind for one image, from those for `IMAGES`."""
    flops = operations // (2 * IMAGES)
    figures = {f"{kind} layers": layers, f"{kind} flops": flops, f"{kind} elements": elements // IMAGES}
    return Counter({name: value for name, value in {"flops": flops, **figures}.items() if value})


def _settings(module: nn.Module) -> Iterator[object]:
    """All that tells a layer from others of its type."""
    for name, value in vars(module).items():
        if isinstance(value, PLAIN):
            yield name, value
    for name, parameter in module._parameters.items():
        yield name, None if parameter is None else tuple(parameter.shape)
