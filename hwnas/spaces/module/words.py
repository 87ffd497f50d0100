"""Words that mark what may vary in a PyTorch module: `choice`, `width`, `depth`, `kernel`, `optional`.

Each is called while a network is being built, with a name of its own, and returns what the architecture says.
Outside of a search it returns the first option, so that the module is an ordinary one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

NAME = re.compile(r"[A-Za-z_][\w.-]*")
"""Names of choices."""

LABEL = re.compile(r"[\w.+-]+")
"""Names of options."""


class ChoiceError(ValueError):
    """Words that are used wrongly; the message says all."""


class MisfitError(Exception):
    """A network that cannot be built or run; the message says why, and the line of the user's file."""


@dataclass
class Build:
    """One building of a network.

    Attributes:
        options: Number or label of the chosen option by name of the choice; those that are not here take
            their first.
        met: Labels of the options per choice that was met, in this order.
        options_of: Options that a module is, e.g. "conv=plain", from the innermost choice to the outermost.
    """

    options: Mapping[str, int | str]
    met: dict[str, tuple[str, ...]] = field(default_factory=dict)
    options_of: dict[nn.Module, tuple[str, ...]] = field(default_factory=dict)

    def clear(self) -> None:
        """Begin again."""
        self.met.clear()
        self.options_of.clear()


_build: ContextVar[Build | None] = ContextVar("build", default=None)


@contextmanager
def building(options: Mapping[str, int | str]) -> Iterator[Build]:
    """Let the words return these options while a network is built."""
    build = Build(options)
    token = _build.set(build)
    try:
        yield build
    finally:
        _build.reset(token)


def choice(name: str, options: Mapping[str, Any] | Sequence[Any]) -> Any:
    """One of several options, e.g. of {"plain": lambda: ..., "separable": lambda: ...}.

    Args:
        name: Name of the choice; each is used once in a network.
        options: Options by label, or a list of numbers and words. A function or class is called without
            arguments, and only if it is chosen; all else is returned as it is.

    Raises:
        ValueError: A name that is used twice, or a name or options of another form.
    """
    if not isinstance(options, Mapping):
        options = {str(option): option for option in _listed("choice", name, options)}
    number = _chosen("choice", name, [str(label) for label in options])
    label, option = list(options.items())[number]
    if callable(option) and not _is_module(option):
        option = option()
    if (build := _build.get()) is not None and _is_module(option):
        build.options_of[option] = (*build.options_of.get(option, ()), f"{name}={label}")
    return option


def width(name: str, options: Sequence[int]) -> int:
    """A number of channels, e.g. one of [16, 24, 32].

    Args:
        name: As for `choice`.
        options: Whole numbers of at least 1.

    Raises:
        ValueError: As for `choice`.
    """
    return _number("width", name, options, 1)


def kernel(name: str, options: Sequence[int]) -> int:
    """The size of a kernel, e.g. one of [3, 5]; the padding that keeps the size of images is half of it.

    Args:
        name: As for `choice`.
        options: Whole numbers of at least 1.

    Raises:
        ValueError: As for `choice`.
    """
    return _number("kernel", name, options, 1)


def depth(name: str, options: Sequence[int], block: Callable[[int], Any] | None = None) -> Any:
    """A number of blocks, e.g. one of [1, 2, 3], or that many blocks.

    Args:
        name: As for `choice`.
        options: Whole numbers of at least 0.
        block: Makes block number 0, 1, ...; None: the number itself is returned.

    Returns:
        The blocks as an `nn.Sequential`, or their number.

    Raises:
        ValueError: As for `choice`.
    """
    number = _number("depth", name, options, 0)
    if block is None:
        return number
    from torch import nn  # the file is read without torch where spaces are only named

    return nn.Sequential(*(block(index) for index in range(number)))


def optional(name: str, option: Any, otherwise: Any = None) -> Any:
    """A part that may be left out, e.g. `lambda: Attention(channels)`.

    Args:
        name: As for `choice`; the options are "no" and "yes".
        option: The part, as for `choice`.
        otherwise: What is there without it, as for `choice`; None: an `nn.Identity`.

    Raises:
        ValueError: As for `choice`.
    """
    if otherwise is None:
        from torch import nn  # as above

        otherwise = nn.Identity
    return choice(name, {"no": otherwise, "yes": option})


def _is_module(option: Any) -> bool:
    from torch import nn

    return isinstance(option, nn.Module)


def _listed(word: str, name: object, options: object) -> Sequence[Any]:
    if isinstance(options, str) or not isinstance(options, Sequence | range):
        raise ChoiceError(f"{word}({name!r}, ...) needs a list of options, not {options!r}")
    return list(options)


def _number(word: str, name: str, options: Sequence[int], least: int) -> int:
    numbers = _listed(word, name, options)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ChoiceError(
                f"options of {word}({name!r}, ...) are whole numbers of at least {least}, not {number!r}"
            )
    return numbers[_chosen(word, name, list(map(str, numbers)))]


def _chosen(word: str, name: str, labels: Sequence[str]) -> int:
    """Number of the option that the network under construction has."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ChoiceError(f"the name of a {word} must be letters, digits, '.', '_' and '-', not {name!r}")
    for label in labels:
        if not LABEL.fullmatch(label):
            raise ChoiceError(
                f"an option of {word}({name!r}, ...) is called {label!r}; use letters, digits and ._+-, for "
                "other values a dict with such names"
            )
    if not labels or len(set(labels)) < len(labels):
        raise ChoiceError(f"options of {word}({name!r}, ...) must be different, and at least one: {labels}")
    build = _build.get()
    if build is None:
        return 0
    if name in build.met:
        raise ChoiceError(f"two choices are called {name!r}; each needs a name of its own")
    build.met[name] = tuple(labels)
    chosen = build.options.get(name, 0)
    return labels.index(chosen) if isinstance(chosen, str) else chosen
