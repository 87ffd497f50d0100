"""SGD that leaves alone what a step's network does not use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from hwnas.spaces.supernet import Region


class PartialSGD(torch.optim.SGD):
    """SGD on regions of parameters: the rest keeps its values and momenta, without decay.

    Args:
        params: The parameters.
        used: Called once per step, for regions of parameters; those that are missing are used whole.
        settings: Of `torch.optim.SGD`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        used: Callable[[], Mapping[nn.Parameter, Region]],
        **settings: Any,
    ) -> None:
        super().__init__(params, **settings)
        self._used = used

    def __getstate__(self) -> dict[str, Any]:
        """All, for other processes."""
        return {**super().__getstate__(), "_used": self._used}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step, after `closure` if there is one; returns what that returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        used = self._used()
        for group in self.param_groups:
            parts: tuple[list[Tensor], list[Tensor], list[Tensor | None]] = ([], [], [])
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                region = used.get(parameter, ())
                parts[0].append(parameter[region])
                parts[1].append(parameter.grad[region])
                momentum = None
                if group["momentum"]:  # from zero, which comes to the same as torch's first step
                    state = self.state[parameter]
                    if state.get("momentum_buffer") is None:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    momentum = state["momentum_buffer"][region]
                parts[2].append(momentum)
            names = ("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize", "foreach")
            sgd(*parts, **{name: group[name] for name in names})
        return loss
