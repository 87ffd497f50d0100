"""Pruned networks as they are deployed: without removed filters, counted, timed and exported."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.devices.measure import time_modules
from hwnas.devices.onnx_models import PACKAGES, answers, require_onnx, traced, write_program
from hwnas.pruning.beta_vae import Deployed


def smaller(network: Deployed) -> Deployed:
    """The network without the filters whose weights are all zero, and what the next layers do with them.

    It answers the same, as the next layers' weights for those filters are zero, too, where `masks` made them.
    The networks are plain chains, so no dependencies have to be traced.

    Args:
        network: Masks made permanent.

    Raises:
        ValueError: A removed filter's output is still used.
    """
    kept = {
        name: layer.weight.detach().flatten(1).any(1).nonzero().flatten()
        for name, layer in network.layers().items()
        if name not in ("mean", "classifier")
    }
    arguments = network.arguments.copy()
    arguments["channels"] = [len(kept[name]) for name in kept if name != "hidden"]
    arguments["hidden"] = len(kept["hidden"])
    found = Deployed(**arguments)
    inputs = torch.arange(network.arguments["image_shape"][0])
    for (name, source), target in zip(network.layers().items(), found.layers().values(), strict=True):
        if name == "hidden":  # it sees every pixel of every channel
            pixels = source.weight.shape[1] // network.map_shape[0]
            inputs = (inputs[:, None] * pixels + torch.arange(pixels)).flatten()
        outputs = kept.get(name, torch.arange(len(source.weight)))
        weight = source.weight.detach()[outputs]
        if weight[:, inputs].count_nonzero() != weight.count_nonzero():
            raise ValueError(f"layer {name} still uses what a removed filter of the layer before it puts out")
        _copy(target, {"weight": weight[:, inputs]})
        if source.bias is not None:
            _copy(target, {"bias": source.bias.detach()[outputs]})
        inputs = outputs
    for norm, other, name in zip(network.norms, found.norms, kept, strict=False):
        _copy(other, {key: value[kept[name]] for key, value in norm.state_dict().items() if value.dim()})
    return found.eval()


def _copy(module: nn.Module, values: dict[str, Tensor]) -> None:
    own = module.state_dict()
    for name, value in values.items():
        own[name].copy_(value)


class Costs(TypedDict):
    """Costs of a network, as `costs` returns them."""

    params: float
    flops: float
    bytes: float
    bytes_compressed: float


def costs(network: Deployed) -> Costs:
    """Costs of a network without its zeros.

    Returns:
        "params": values other than pruned weights; "flops": multiply-adds of one image with weights that are
        not zero, of convolutions and linear layers; "bytes": all values in 32 bits; "bytes_compressed": the
        same packed by zlib, which is what zeros save in a file.
    """
    state = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    layers = network.layers()
    pruned = sum(int((layer.weight == 0).sum()) for layer in layers.values())
    height, width = network.arguments["image_shape"][1:]
    flops = 0
    for layer in layers.values():
        if isinstance(layer, nn.Conv2d):
            height, width = height // 2, width // 2
        flops += int(layer.weight.count_nonzero()) * (height * width if isinstance(layer, nn.Conv2d) else 1)
    raw = b"".join(np.ascontiguousarray(value.numpy()).tobytes() for value in state.values())
    return {
        "params": float(sum(p.numel() for p in network.parameters()) - pruned),
        "flops": float(flops),
        "bytes": float(len(raw)),
        "bytes_compressed": float(len(zlib.compress(raw, 6))),
    }


def latency_ms(networks: Sequence[Deployed], *, batch_size: int, threads: int, rounds: int) -> list[float]:
    """Median milliseconds of a forward pass on this machine, measured in turns, all in one memory format.

    Args:
        networks: Networks.
        batch_size: Images per pass.
        threads: Processor threads.
        rounds: Figures per network.
    """
    modules = [
        (
            copy.deepcopy(network).to(memory_format=torch.contiguous_format),
            (batch_size, *network.arguments["image_shape"]),
        )
        for network in networks
    ]
    return time_modules(modules, threads=threads, rounds=rounds)


def export_onnx(network: Deployed, path: Path, x_NCHW: Tensor) -> float:
    """Write a network as ONNX, for any number of images, and run it; its largest difference to torch's.

    Args:
        network: In evaluation mode.
        path: Where.
        x_NCHW: Images in 0..1.

    Raises:
        ValueError: The extra "onnx" is not installed.
    """
    require_onnx(*PACKAGES)
    write_program(traced(network, x_NCHW.shape[1:]), path, names=("images", "logits"), metadata={})
    logits = answers(path)(x_NCHW.numpy())
    with torch.inference_mode():
        return float((torch.from_numpy(logits) - network(x_NCHW)).abs().max())
