"""The device that computes."""

from __future__ import annotations

import torch


def accelerator() -> torch.device:
    """The first NVIDIA GPU that CUDA_VISIBLE_DEVICES leaves visible; without one the processor.

    Its type is part of the versions of evaluations and of trained weights.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
