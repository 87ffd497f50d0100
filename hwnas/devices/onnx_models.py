"""Modules as ONNX files: with random weights for timing, or with their own, also in 8 bits."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.files import replacing, temporary_folder, write_bytes

if TYPE_CHECKING:
    import onnx
    from torch import nn
    from torch.export import ExportedProgram

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""Packages that write and run a traced program."""

OPSET, PROGRAM_OPSET = 17, 18
WEIGHTS = "weights.bin"


def require_onnx(*packages: str) -> None:
    """Raise ValueError unless these packages of the extra `onnx` are installed."""
    try:
        for package in packages:
            importlib.import_module(package)
    except ImportError:
        raise ValueError("ONNX files need the extra onnx: pip install 'hwnas[onnx]'") from None


def write_models(models: Mapping[str, tuple[nn.Module, Sequence[int], str]], folder: Path) -> None:
    """Write modules as ONNX files, and one file of weights that all of them read.

    Latency does not depend on the values of weights, as long as activations neither vanish nor overflow. So
    kernels of the same fan-in use one random draw, and a hundred networks take no more space than one.

    Args:
        models: Module, input shape with the batch, and name of the file, by name of the model.
        folder: Folder of the files.

    Raises:
        ValueError: No onnx package, or a module that has no ONNX form (named with its shape).
    """
    require_onnx("onnx")
    import onnx

    protos = {}
    lengths: dict[int, int] = {}
    for name, (module, shape, _) in models.items():
        protos[name] = onnx.load_from_string(_exported(name, module, shape))
        for tensor in _kernels(protos[name]):
            fan_in = int(np.prod(tensor.dims[1:]))
            lengths[fan_in] = max(lengths.get(fan_in, 0), int(np.prod(tensor.dims)))
    starts: dict[int, int] = {}
    rng = np.random.default_rng(0)
    with replacing(folder / WEIGHTS) as partial, partial.open("wb") as stream:
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
        write_bytes(folder / models[name][2], proto.SerializeToString())


def _kernels(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
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


def traced(module: nn.Module, image_shape: Sequence[int]) -> ExportedProgram:
    """A module as a program for any number of images.

    Args:
        module: In evaluation mode; images (B, C, H, W) in, one tensor out.
        image_shape: (C, H, W).
    """
    import torch

    # Two images: a batch of one would be taken for a constant.
    example, batch = torch.zeros(2, *image_shape), torch.export.Dim("batch", min=1)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # has the paths of this machine's files
    return program


def write_program(
    program: ExportedProgram, path: Path, *, names: tuple[str, str], metadata: Mapping[str, str]
) -> None:
    """Write a traced program as an ONNX file that takes any number of images, with its weights.

    Args:
        program: One tensor in, whose first dimension is dynamic, one tensor out.
        path: The file.
        names: Names of input and output.
        metadata: Kept in the file.
    """
    import onnx
    import torch

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter's own code
        written = torch.onnx.export(
            program,
            dynamo=True,  # the older exporter, above, knows no shapes where the batch is open
            opset_version=PROGRAM_OPSET,
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
    assert written is not None
    proto = written.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # where each came from in our code; long
    onnx.helper.set_model_props(proto, dict(metadata))
    write_bytes(path, proto.SerializeToString())


def answers(path: Path, threads: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """Outputs of an ONNX file with one input and one output, on the CPU; 0 threads: onnxruntime's choice."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


@dataclass(frozen=True)
class Allocated:
    """Most memory that onnxruntime had allocated for one image, weights left out.

    Attributes:
        tensors: Bytes of the tensors alive at once.
        in_all: Bytes of these and of what operations allocate while they run, rounded up as the runtime does.
    """

    tensors: int
    in_all: int


def allocated(path: Path, shape: Sequence[int], *, sparing: bool, int8: bool = False) -> Allocated | None:
    """Memory that onnxruntime allocates for a network's activations, as its own profile tells.

    The image is the caller's and does not count.

    Args:
        path: An ONNX file with at most one input.
        shape: Shape of the input, with a batch of 1.
        sparing: Whether it frees each tensor once it is read, in the order of the file, and leaves layouts as
            they are; else it decides by itself.
        int8: Whether the file is in 8 bits, which only a higher level of optimisation computes in 8 bits.

    Returns:
        None if this version of onnxruntime does not tell, or nothing is computed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.enable_mem_pattern = False  # which allocates everything at once
    if sparing:
        options.enable_mem_reuse = False
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if int8 else levels.ORT_ENABLE_BASIC
    with temporary_folder() as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        session.run(None, {entry.name: np.zeros(shape, np.float32) for entry in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text())
    told = [event.get("args", {}) for event in events]
    used = [event for event in told if "mem_requested_in_use_delta" in event and "mem_in_use_peak" in event]
    if not used:
        return None

    def most(name: str) -> int:
        return max(int(event[name]) for event in used)

    first = used[0]
    weights = int(first["mem_bytes_requested_in_use"]) - int(first["mem_requested_in_use_delta"])
    rounded = int(first["mem_bytes_in_use"]) - int(first["mem_in_use_delta"])
    return Allocated(most("mem_bytes_requested_in_use") - weights, most("mem_in_use_peak") - rounded)


class _Images:
    """Calibration images for onnxruntime, batch by batch."""

    def __init__(self, name: str, batches: Iterable[np.ndarray]) -> None:
        self._feeds = ({name: images} for images in batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None."""
        return next(self._feeds, None)


def quantise(model: Path, target: Path, batches: Iterable[np.ndarray]) -> None:
    """Write an ONNX model with 8-bit weights, scaled per output channel, and 8-bit activations.

    BatchNorm is folded into convolutions first. Ranges of activations are those of the images. Weights use
    only seven bits: processors without instructions for 8-bit dot products add pairs of products in 16 bits,
    which would overflow with eight.

    Args:
        model: An ONNX file with one input.
        target: The file to write.
        batches: Images for the calibration, each batch (B, C, H, W), float32.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    proto = onnx.load(model, load_external_data=False)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # onnxruntime's hints go to the root logger
    try:
        with temporary_folder() as folder:
            folded = Path(folder) / "folded.onnx"
            quant_pre_process(model, folded, skip_symbolic_shape=True)
            eight_bits = Path(folder) / "quantised.onnx"
            quantize_static(
                folded,
                eight_bits,
                _Images(proto.graph.input[0].name, batches),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            quantised = onnx.load(eight_bits)
    finally:
        root.setLevel(level)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(proto.metadata_props)
    write_bytes(target, quantised.SerializeToString())
