"""What a process of a training raises reaches its parent as what it was."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from hwnas.training.lightning import Devices, fit_by_lightning


class Failing(pl.LightningModule):
    """Raises an error in the first step."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.layer, self.error = nn.Linear(1, 1), error

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        raise self.error

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a file"), OSError, "a file"),
        (ValueError("the loss became nan"), ValueError, "^the loss became nan$"),
        (RuntimeError("out of memory"), RuntimeError, "out of memory"),
    ],
    ids=["disk", "value", "other"],
)
def test_errors_are_raised_as_what_they_were(
    tmp_path: Path, devices: int, error: Exception, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as raised:
        fit_by_lightning(
            Failing(error), [torch.zeros(1, 1)], folder=tmp_path, devices=Devices(devices), max_steps=1
        )
    if isinstance(error, OSError):
        assert raised.value.errno == errno.ENOSPC
        assert raised.value.strerror == "No space left on device"
