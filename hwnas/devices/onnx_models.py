"""Modules as ONNX files for timing: what is computed is real, the weights are random and shared."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

OPSET = 17
WEIGHTS = "weights.bin"


def write_models(models: Mapping[str, tuple[nn.Module, Sequence[int], str]], folder: Path) -> None:
    """Write modules as ONNX files, and one file of weights that all of them read.

    Latency does not depend on the values of weights, as long as activations neither vanish nor overflow; so
    kernels of the same fan-in share one random draw, and a hundred networks take no more space than one.

    Args:
        models: By name the module, its input shape with the batch, and its file's name.
        folder: Where to write.

    Raises:
        ValueError: No onnx package, or a module that has no ONNX form (named with its shape).
    """
    try:
        import onnx
    except ImportError:
        raise ValueError("ONNX files need the extra onnx: pip install 'hwnas[onnx]'") from None
    protos = {}
    lengths: dict[int, int] = {}
    for name, (module, shape, _) in models.items():
        protos[name] = onnx.load_from_string(_exported(name, module, shape))
        for tensor in _kernels(protos[name]):
            fan_in = int(np.prod(tensor.dims[1:]))
            lengths[fan_in] = max(lengths.get(fan_in, 0), int(np.prod(tensor.dims)))
    starts: dict[int, int] = {}
    rng = np.random.default_rng(0)
    with (folder / WEIGHTS).open("wb") as stream:
        for fan_in, length in sorted(lengths.items()):
            starts[fan_in] = stream.tell()
            stream.write((rng.standard_normal(length) / fan_in**0.5).astype("<f4").tobytes())
    for name, proto in protos.items():
        for tensor in _kernels(proto):
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (
                ("location", WEIGHTS),
                ("offset", starts[int(np.prod(tensor.dims[1:]))]),
                ("length", 4 * int(np.prod(tensor.dims))),
            ):
                tensor.external_data.add(key=key, value=str(value))
        (folder / models[name][2]).write_bytes(proto.SerializeToString())


def _kernels(proto: Any) -> list[Any]:
    """The tensors of a model that are weights of convolutions and linear layers."""
    return [tensor for tensor in proto.graph.initializer if len(tensor.dims) >= 2]


def _channel_shuffle(graph: Any, x: Any, groups: Any) -> Any:
    """`torch.channel_shuffle` in ONNX, for which torch's exporter has no form."""
    import torch

    batch, channels, height, width = x.type().sizes()
    num = int(groups.node().t("value"))

    def constant(*values: int) -> Any:
        return graph.op("Constant", value_t=torch.tensor(values))

    split = graph.op("Reshape", x, constant(batch, num, channels // num, height, width))
    mixed = graph.op("Transpose", split, perm_i=[0, 2, 1, 3, 4])
    return graph.op("Reshape", mixed, constant(batch, channels, height, width))


def _exported(name: str, module: nn.Module, shape: Sequence[int]) -> bytes:
    import torch

    stream = io.BytesIO()
    try:
        # On an error the exporter prints the whole graph.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter's own code
            torch.onnx.register_custom_op_symbolic("aten::channel_shuffle", _channel_shuffle, OPSET)
            torch.onnx.export(
                module.eval(),
                (torch.zeros(*shape),),
                stream,  # type: ignore[arg-type]
                input_names=["x"],
                output_names=["y"],
                opset_version=OPSET,
                dynamo=False,  # a hundred networks in seconds; the newer exporter takes minutes
            )
    except Exception as error:  # the exporter has no common class for its errors
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{name} with input {'x'.join(map(str, shape))} has no ONNX form ({line})") from None
    return stream.getvalue()
