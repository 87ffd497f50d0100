"""Off-the-shelf networks as a space of one choice, and the spaces around them: `mobile` and `resnet`.

The networks of these are written with the words of `hwnas.spaces.module`, as a user's module is. All of them
meet all choices, and fit, and their costs have closed forms, so that a space is there at once.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import numpy as np
from annotated_types import Len
from numpy.typing import NDArray

from hwnas.core import Count, FloatArray, Genotype, checked, checked_choices, suggestion
from hwnas.spaces.capabilities import HasForecast, Resizable, examples
from hwnas.spaces.known import forecast
from hwnas.spaces.known.names import known, published
from hwnas.spaces.module import ModuleSpace

if TYPE_CHECKING:
    from torch import nn

    from hwnas.spaces.known.counting import Chain


class KnownNetworks(Resizable):
    """Off-the-shelf networks: a genotype is the number of one among `names`, and its text form the name.

    Widths follow the name: "mobilenet_v3_small_x0.5" has half the channels of torchvision's network,
    "resnet18_w16" begins with 16 channels instead of 64. `known_names` lists them all. For small images they
    give up less of the resolution, as is usual on CIFAR (`networks.build`).

    Args:
        names: The networks.
        image_shape: (channels, height, width) of the images.
        num_classes: Number of classes.
        pretrained: File of a state dict of torchvision for one of the networks: all start with the weights
            of it that have their names and shapes.
        choices: Networks still allowed, as one list of their numbers; None allows all.

    Raises:
        ValueError: An unknown name, or one that is given twice; says which are near. What `KnownSpace` raises
            of weights.
    """

    @checked
    def __init__(
        self,
        names: Annotated[Sequence[str], Len(1)],
        *,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: Count = 10,
        pretrained: str | None = None,
        choices: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._known = tuple(map(known, names))
        if len(set(self._known)) < len(names):
            raise ValueError(f"names must be of different networks, not {', '.join(names)}")
        self.ops = tuple(names)
        self.presets = {name: name for name in names}
        self.name = f"known-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:8]}"
        self.image_shape, self.num_classes = image_shape, num_classes
        self.choices = checked_choices(choices, 1, len(names))
        self._counts: dict[int, tuple[int, int]] = {}
        self._pretrained = None
        if pretrained is not None:
            networks = {name: partial(self.network, (number,)) for number, name in enumerate(names)}
            self._pretrained = _networks().Pretrained(pretrained, networks)
            self.name += f"-{self._pretrained.digest}"

    def resized(self, *, channels: int | None = None, num_cells: int | None = None) -> Self:
        """The same space: a network's size is in its name, the settings mean nothing."""
        return self

    def restrict(self, keep: Sequence[Sequence[int]]) -> Self:
        """The sub-space with only the networks `keep[0]`."""
        smaller = copy.copy(self)
        smaller.choices = checked_choices(keep, 1, len(self.ops))
        return smaller

    def to_str(self, genotype: Genotype) -> str:
        """The network's name."""
        return self.ops[genotype[0]]

    def from_str(self, text: str) -> Genotype:
        """The genotype of a name.

        Raises:
            ValueError: A name that is not among those of the space.
        """
        if text not in self.ops:
            raise ValueError(f"{text!r} is not among these networks{suggestion(text, self.ops)}")
        return self.check((self.ops.index(text),))

    def network(self, genotype: Genotype) -> nn.Module:
        """The network, randomly initialised by torch's generator."""
        (number,) = self.check(genotype)
        network = _networks().build(self._known[number], self.image_shape, self.num_classes)
        return network if self._pretrained is None else self._pretrained.start(network)

    def static_metrics(self, genotypes: Sequence[Genotype]) -> dict[str, FloatArray]:
        """`flops` (multiply-adds) and `params` per genotype, shape (n,), as `blocks.count` counts them."""
        for number in {number for (number,) in genotypes} - self._counts.keys():
            self._counts[number] = _networks().counted(
                self._known[number], self.image_shape, self.num_classes
            )
        figures = np.array([self._counts[number] for (number,) in genotypes], dtype=float).reshape(-1, 2)
        return {"flops": figures[:, 1], "params": figures[:, 0]}


class KnownSpace(ModuleSpace):
    """A module space that ships with this package.

    Args:
        image_shape: (channels, height, width) of the images.
        num_classes: Number of classes.
        pretrained: File of a state dict of torchvision for one of the published networks, relative to the
            working folder or the data folder. The space then has only networks that start with these weights
            in all layers but those that even the published one could not use here, such as a classifier of
            other classes. None: all networks, with random weights.
        announce: Called with a sentence that says which network the weights are of.

    Attributes:
        kind: What the space is called in a configuration.

    Raises:
        ValueError: A file that is missing, is no state dict, or is of another network.
    """

    kind: ClassVar[str]
    num_measured: ClassVar[int] = 64  # which have few kinds of layers

    @checked
    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: Count = 10,
        pretrained: str | None = None,
        announce: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        module, self._closed_form = _networks().SPACES[self.kind]
        super().__init__(module, image_shape=image_shape, num_classes=num_classes)
        self.name = f"{self.kind}-{self._digest()}"
        options_of = published(self.kind)
        self._pretrained = None
        if pretrained is not None:
            networks = {name: partial(self._shapes, options) for name, options in options_of.items()}
            self._pretrained = weights = _networks().Pretrained(pretrained, networks)
            self.name += f"-{weights.digest}"
            base = options_of[weights.name]
            keep = [
                [op for op in ops if weights.covers(self._shapes({**base, name: self.ops[op]}))]
                for name, ops in zip(self._options, self._all, strict=True)
            ]
            self.choices = checked_choices(keep, len(self._all), len(self.ops))
            announce(f"{weights}; {self.size:,} networks start with them")
        presets = {name: self._text(options) for name, options in options_of.items()}
        self.presets = {name: text for name, text in presets.items() if self._has(text)}

    def _has(self, text: str) -> bool:
        """Whether an architecture is among those that are allowed."""
        labels = (word.partition("=")[2] for word in text.split())
        return all(self.ops.index(label) in ops for label, ops in zip(labels, self.choices, strict=True))

    def _shapes(self, options: Mapping[str, str]) -> nn.Module:
        """A network without values, from the labels of options that are not the first ones."""
        return self.tracer.shapes(options)[0]

    def _text(self, options: Mapping[str, str]) -> str:
        """The text form of a network with these options and the first ones elsewhere."""
        return " ".join(f"{name}={options.get(name, labels[0])}" for name, labels in self._options.items())

    def _read(self) -> dict[str, tuple[str, ...]]:
        """Labels of the options of all choices: any network meets them all."""
        return dict(self._fitting({}, {}).met)

    def _explore(self) -> None:
        found = self._chain(np.array(examples(self))).figures
        self._columns = ("flops", "params", *sorted(found.keys() - {"flops", "params"}))

    def _chain(self, G: NDArray[np.intp]) -> Chain:
        labels = np.array(self.ops)[G]
        chosen = dict(zip(self._options, labels.T, strict=True))
        return self._closed_form(chosen, self.image_shape, self.num_classes)

    def _figures(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> FloatArray:
        G = np.asarray(genotypes, dtype=np.intp).reshape(-1, len(self.choices))
        found, nothing = self._chain(G).figures, np.zeros(len(G))
        return np.column_stack([found.get(name, nothing) for name in self._columns])

    def most_alive(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Most numbers of one image that networks hold at once, shape (n,), in closed form."""
        G = np.asarray(genotypes, dtype=np.intp).reshape(-1, len(self.choices))
        return self._chain(G).most_alive.astype(np.float64)

    def _meets(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> NDArray[np.bool_]:
        return np.ones((len(genotypes), len(self.choices)), dtype=bool)

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self._options).encode()).hexdigest()[:8]

    def _takes_small_images(self) -> bool:
        return True

    def network(self, genotype: Genotype) -> nn.Module:
        """The network of one architecture, randomly initialised by torch's generator, or pretrained."""
        network = super().network(genotype)
        return network if self._pretrained is None else self._pretrained.start(network)


class MobileSpace(KnownSpace):
    """Networks of inverted residual blocks, around MobileNetV2 and with the parts of MobileNetV3.

    Per stage a width, an expansion, a kernel, squeeze and excitation, and a depth; for the whole network the
    resolution of its images, a multiplier of all widths, the activation, strides, and the width of the head:
    `mobile.MobileNet` has them all. MobileNetV2 at five widths is among them, exactly; MobileNetV3 is not,
    whose expansions and activations follow no rule: `KnownNetworks` has it.
    """

    kind = "mobile"

    def live(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> NDArray[np.intp]:
        """Genotypes (n, choices) with the first of all widths that the multiplier rounds to the same one."""
        G = super().live(genotypes)
        multiplier = np.array(self.ops)[G[:, list(self._options).index("width")]].astype(float)
        for column, name in enumerate(self._options):
            if name.endswith(".width"):
                ops = np.array([op for op in self._all[column] if op in self.choices[column]])
                numbers = np.array([int(self.ops[op]) for op in ops])
                widths = _networks().scaled(numbers, multiplier[:, None])
                own = widths[ops == G[:, [column]]]
                G[:, column] = ops[(widths == own[:, None]).argmax(axis=1)]
        return G


class ResNetSpace(KnownSpace, HasForecast):
    """Residual networks of basic or of bottleneck blocks, around ResNet-18 at base widths of 8 to 64.

    Per stage a width and a depth; for the whole network the resolution of its images, the base width, the
    stem, and the kind of block: `resnet.ResNet` has them all. ResNet-10, 14, 18 and 34 at six base widths
    and ResNet-50 are among them, exactly.
    """

    kind = "resnet"

    def live(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> NDArray[np.intp]:
        """Genotypes (n, choices) with the first width of a last stage that has no blocks."""
        G = super().live(genotypes)
        wide, deep = (list(self._options).index(f"s4.{name}") for name in ("width", "depth"))
        G[G[:, deep] == self.ops.index("0"), wide] = self.choices[wide][0]
        return G

    def forecast(self, genotypes: Sequence[Genotype], steps: FloatArray, per_pass: float) -> FloatArray:
        """Logits of the accuracies that networks may have after a training, see `HasForecast`.

        A line over the logarithms of steps and size that was fitted to trainings of minutes on CIFAR-10;
        docs/measurements.md has its errors.
        """
        return forecast.line().at(self.terms(genotypes, steps, per_pass))

    def terms(self, genotypes: Sequence[Genotype], steps: FloatArray, per_pass: float) -> FloatArray:
        """What the forecast is a sum of, (n, 10); see `forecast.TERMS`."""
        sizes, work = self.static_metrics(genotypes), self.work(genotypes)
        labels = dict(
            zip(self._options, np.array(self.ops)[np.asarray(genotypes, dtype=np.intp)].T, strict=True)
        )
        counts = [work[name] for name in work if name.startswith("conv") and name.endswith(" layers")]
        shape = forecast.Shape(
            flops=sizes["flops"],
            params=sizes["params"],
            layers=np.sum(counts, axis=0),
            side=labels["resolution"].astype(float) / min(self.image_shape[1:]),
            stem=np.array([_networks().STEM_STRIDES[label] for label in labels["stem"].tolist()]),
            last=(labels["s4.depth"] != "0").astype(float),
            width=labels["width"].astype(float),
        )
        return forecast.terms(forecast.worth(steps, per_pass), shape)


def _networks() -> ModuleType:
    # torch is loaded once networks are built: names and configurations need none.
    from hwnas.spaces.known import networks

    return networks
