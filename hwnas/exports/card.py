"""The model card of an exported network: Markdown, from the figures of the export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LOAD = {
    "torch": """\
import torch
network = torch.export.load("{file}").module()
images = torch.zeros(1, {shape})  # yours: pixels / 255
logits = network(images)
print(logits.argmax(1))""",
    "onnxruntime": """\
import numpy as np, onnxruntime
network = onnxruntime.InferenceSession("{file}")
images = np.zeros((1, {shape}), np.float32)  # yours: pixels / 255
(logits,) = network.run(["{output}"], {{"{input}": images}})
print(logits.argmax(1))""",
}
"""How to load a file, by what runs it."""


def card(content: Mapping[str, Any]) -> str:
    """The card's text.

    Args:
        content: What `hwnas export` keeps in export.json.
    """
    shape = " x ".join(map(str, content["image_shape"]))
    title = f"{content['preset'] or 'A network'} ({content['search_space']}) for {content['dataset']}"
    random = content["weights"] == "random"
    parts = [
        f"# {title}",
        f"Classifies images of {shape} (channels x height x width) into {content['num_classes']} classes.",
    ]
    if random:
        parts.append(
            "**The weights are random.** The files have the network's size and speed; answers mean nothing."
        )
    parts += [
        _table(("", ""), _facts(content), align="ll"),
        f"Architecture:\n\n```\n{content['arch']}\n```",
        "## Files",
        _files(content),
        "## Latency",
        *_latency(content),
        "## Input and output",
        *_in_and_out(content),
        "## How to load it",
    ]
    for row in content["files"]:
        runtime = row["runtime"].partition(" ")[0]
        code = LOAD[runtime].format(
            file=row["file"],
            shape=", ".join(map(str, content["image_shape"])),
            input=content["input"],
            output=content["output"],
        )
        if not row["file"].endswith("_int8.onnx"):
            needs = "pip install onnxruntime numpy" if runtime == "onnxruntime" else "pip install torch"
            parts.append(f"`{row['file']}` needs no hwnas, but `{needs}`:\n\n```python\n{code}\n```")
        else:
            parts.append(f"`{row['file']}` is loaded like the ONNX file above.")
    commands = [command for command in (content["made_by"], content["exported_by"]) if command]
    parts += [
        "## How it was made",
        "```\n" + "\n".join(commands) + "\n```",
        f"hwnas {content['hwnas']}, {content['machine']['measured']}. `export.json` has the figures.",
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(content, random)),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, align: str) -> str:
    """A Markdown table; `align` has an l or r per column."""
    rule = ["---:" if side == "r" else "---" for side in align]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def _facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    sizes = ", ".join(
        f"{name} {content[name]}" for name in ("variant", "channels", "num_cells") if name in content
    )
    rows = [("search space", f"{content['search_space']}, {sizes}"), ("data set", content["dataset"])]
    if content["preset"]:
        rows.append(("published as", content["preset"]))
    if content["reported_test_acc"] is not None:
        rows.append(("test accuracy after training", f"{content['reported_test_acc']:.2%}"))
    rows.append(("test accuracy now, in torch", f"{content['test_acc']:.2%} of {content['images']:,} images"))
    if "epochs" in content:
        rows.append(("trained", f"{content['epochs']} epochs, seed {content['seed']}"))
    else:
        rows.append(("weights", f"`{content['weights']}`" if content["weights"] != "random" else "random"))
    rows += [
        (spoken, f"{content[name]:,.0f}")
        for name, spoken in (("params", "parameters"), ("flops", "multiply-adds"))
        if name in content
    ]
    return rows


def _files(content: Mapping[str, Any]) -> str:
    rows = [
        (
            f"`{row['file']}`",
            f"{row['bytes'] / 1e6:.2f} MB",
            f"{row['test_acc']:.2%}",
            f"{row['agreement']:.2%}",
            f"{row['difference']:.1e}",
        )
        for row in content["files"]
    ]
    head = ("file", "size", "test accuracy", "same answers as torch", "largest difference of a logit")
    lines = [_table(head, rows, align="lrrrr")]
    lines.append(
        f"Compared with the network in torch on {content['images']:,} test images, whose largest logit is "
        f"{content['largest']:.3g}."
    )
    if content["calibration_images"]:
        lines.append(
            "8 bits: weights per output channel, activations with the ranges that they reach on up to "
            f"{content['calibration_images']:,} training images."
        )
    sums = "\n".join(f"{row['sha256']}  {row['file']}" for row in content["files"])
    return "\n\n".join([*lines, f"SHA-256:\n\n```\n{sums}\n```"])


def _latency(content: Mapping[str, Any]) -> list[str]:
    rows = [
        (f"`{row['file']}`", row["runtime"], f"{row['median_ms']:.3f} ms", f"{row['quartile_ms']:.3f} ms")
        for row in content["files"]
    ]
    known, machine, torch = content["predicted"], content["machine"], content["torch"]
    rows.insert(
        0,
        ("not exported", torch["runtime"], f"{torch['median_ms']:.3f} ms", f"{torch['quartile_ms']:.3f} ms"),
    )
    if known is not None:
        what = f"profile of {known['device']}, {known['backend']}"
        rows.append(("predicted", what, "", f"{known['latency_ms']:.3f} ms"))
    parts = [
        f"One image, one thread, on {machine['processor']} ({machine['system']}), {machine['measured']}:",
        _table(("", "runs in", "median", "lower quartile"), rows, align="llrr"),
    ]
    if known is None:
        parts.append("There is no profile of this machine for networks of this shape, hence no prediction.")
    else:
        parts.append(
            "Profiles predict the lower quartile of the network without the normalisation of images; median "
            f"error of this one on networks that it has not seen: {known['median_error']:.1%}."
        )
    return parts


def _in_and_out(content: Mapping[str, Any]) -> list[str]:
    size = ", ".join(map(str, content["image_shape"]))
    lines = [
        f"- `{content['input']}`: float32, shape (batch, {size}), values in 0..1 (pixels / 255), any batch "
        f"size. The network normalises them itself: mean {_numbers(content['mean'])}, "
        f"standard deviation {_numbers(content['std'])}.",
        f"- `{content['output']}`: float32, shape (batch, {content['num_classes']}); the largest is the "
        "answer, their softmax the network's probabilities.",
    ]
    if content["classes"] is not None:
        lines.append("- Names of the classes, in their order: `classes` in `export.json` and in each file.")
    return ["\n".join(lines)]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _limits(content: Mapping[str, Any], random: bool) -> list[str]:
    lines = []
    if not random:
        lines += [
            f"The accuracy is that on the test images of {content['dataset']}. Other images (another camera, "
            "other sizes or crops, noise) were not tried.",
            "Whether probabilities are calibrated, and what small changes of an image do, was not measured. "
            "The network always names one of its classes, also for an image of none.",
        ]
    lines.append(
        "Latency is of this machine and these versions; other machines, threads and batches were not tried."
    )
    if content["calibration_images"]:
        lines.append("What 8 bits gain depends on the processor and the network; small ones may be slower.")
    return lines
