"""`hwnas export` as a user runs it, and its files as somebody without hwnas loads them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn

from hwnas import export
from hwnas.__main__ import main
from hwnas.cli.export import predicted
from hwnas.data.images import Images
from hwnas.devices import board
from hwnas.devices.profile import SCHEMA_VERSION, Additive, Profile, network_shape
from hwnas.exports.deployed import Deployed
from hwnas.exports.network import ExportSettings, export_network
from hwnas.spaces.darts import Darts
from hwnas.spaces.darts.encoding import PRESETS
from hwnas.spaces.nasbench201 import NasBench201

ARCH = "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_3x3~2|"
SMALL = ("search_space.channels=4", "search_space.num_cells=1")
SPACE = NasBench201(4, 1, image_shape=(1, 8, 8))

CLASSIFY = """
import sys
import numpy as np
import onnxruntime

images, labels = np.load("images.npy"), np.load("labels.npy")
session = onnxruntime.InferenceSession(sys.argv[1])
(logits,) = session.run(["logits"], {"image": images})
assert not {"torch", "hwnas", "onnx"} & set(sys.modules)
print((logits.argmax(1) == labels).mean())
"""
"""A user's script that needs onnxruntime and numpy only."""


def digits(cls: type[Images] = Images) -> Any:
    return cls("digits", source="digits", image_shape=[1, 8, 8], num_classes=10, crop=1)


def hwnas(*arguments: str) -> int:
    """The command in this process; its exit code."""
    try:
        return main(list(arguments))
    except SystemExit as error:  # what a job finds wrong
        return int(str(error.code))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training's folder, with its export in three formats."""
    run = tmp_path_factory.mktemp("run")
    training = ("search_space=nasbench201", *SMALL, "dataset=digits", "trainer.epochs=5", "logger=csv")
    assert hwnas("train", f"arch={ARCH}", *training, f"hydra.run.dir={run}") == 0
    own = f"hydra.run.dir={tmp_path_factory.mktemp('own')}"
    assert hwnas("export", f"run={run}", "int8=true", "rounds=3", "calibration_images=200", own) == 0
    x, y = digits().split("test")
    np.save(run / "export" / "images.npy", x.numpy())
    np.save(run / "export" / "labels.npy", y.numpy())
    return run


def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "export.json").read_text())


def files(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["file"]: row for row in figures(folder)["files"]}


def answers(run: Path, x: Tensor) -> np.ndarray:
    """Logits by the space's network and the weights of the training, normalised by hand."""
    network = SPACE.network(SPACE.from_str(ARCH)).eval()
    network.load_state_dict(torch.load(run / "network" / "weights.pt", weights_only=True))
    pixels, _ = digits().split("train")
    with torch.inference_mode():
        return network((x - pixels.mean()) / pixels.std()).numpy()


def test_files_compute_what_the_trained_network_does(run: Path) -> None:
    x, y = digits().split("test")
    logits = answers(run, x)
    assert np.abs(logits).max() > 1
    accuracy = float((logits.argmax(1) == y.numpy()).mean())
    assert accuracy > 0.5
    assert accuracy == json.loads((run / "network" / "architecture.json").read_text())["test_acc"]
    session = onnxruntime.InferenceSession(run / "export" / "network.onnx")
    loaded = torch.export.load(run / "export" / "network.pt2").module()
    for rows in (slice(None), slice(1), slice(7)):  # batches of all sizes
        (by_onnx,) = session.run(None, {"image": x[rows].numpy()})
        assert by_onnx == pytest.approx(logits[rows], abs=1e-4)
        assert loaded(x[rows]).detach().numpy() == pytest.approx(logits[rows], abs=1e-4)
    told = files(run / "export")
    for name in ("network.pt2", "network.onnx"):
        assert (told[name]["test_acc"], told[name]["agreement"]) == (accuracy, 1.0)
        assert told[name]["difference"] < 1e-4
        assert 0 < told[name]["quartile_ms"] <= told[name]["median_ms"]
    assert figures(run / "export")["images"] == len(x) == 359
    assert figures(run / "export")["test_acc"] == accuracy


def test_memory_is_told(run: Path) -> None:
    """In torch's file nobody counts. onnxruntime's convolutions have a buffer of at most 64 kB."""
    alive = SPACE.most_alive([SPACE.from_str(ARCH)])[0]
    told, by_file = figures(run / "export")["memory"], files(run / "export")
    assert (told["32"]["ram_kb"], told["8"]["ram_kb"]) == (4 * alive / 1024, alive / 1024)
    assert told["32"]["flash_kb"] == 4 * told["8"]["flash_kb"] > 0
    assert "ram_kb" not in by_file["network.pt2"]
    float32 = by_file["network.onnx"]
    assert told["32"]["ram_kb"] <= float32["sparing_ram_kb"] < 2 * told["32"]["ram_kb"] + 64
    row = f"| `network.onnx` | {float32['ram_kb']:,.0f} kB | {float32['sparing_ram_kb']:,.0f} kB |"
    assert row in (run / "export" / "card.md").read_text()


def test_eight_bits(run: Path) -> None:
    proto = onnx.load(run / "export" / "network_int8.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    users = {node.output[0]: node for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 5
    for node in convolutions:
        weight, scale, _ = (tensors[name] for name in users[node.input[1]].input)
        assert weight.dtype == np.int8
        assert np.abs(weight.astype(int)).max() <= 64  # seven bits
        assert scale.shape == (len(weight),)  # per output channel
    told = files(run / "export")
    assert told["network_int8.onnx"]["bytes"] == (run / "export" / "network_int8.onnx").stat().st_size
    assert told["network_int8.onnx"]["agreement"] > 0.95
    assert told["network_int8.onnx"]["difference"] > 1e-3


@pytest.mark.parametrize("name", ["network.onnx", "network_int8.onnx"])
def test_a_script_without_torch_classifies_with_the_accuracy_that_was_told(run: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLASSIFY, name], cwd=run / "export", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == files(run / "export")[name]["test_acc"]


@pytest.mark.slow
def test_a_bare_environment_classifies_with_the_accuracy_that_was_told(run: Path, tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=True)
    python = tmp_path / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "onnxruntime", "numpy"], check=True)
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, env=bare).stdout
    assert not re.search(r"^(torch|onnx|hwnas) ", listed, re.MULTILINE)
    for name in ("network.onnx", "network_int8.onnx"):
        done = subprocess.run(
            [python, "-c", CLASSIFY, name], cwd=run / "export", capture_output=True, text=True, env=bare
        )
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) == files(run / "export")[name]["test_acc"]


def test_files_describe_themselves(run: Path) -> None:
    for name in ("network.onnx", "network_int8.onnx"):
        session = onnxruntime.InferenceSession(run / "export" / name)
        (image,), (logits,) = session.get_inputs(), session.get_outputs()
        assert (image.name, image.type, image.shape) == ("image", "tensor(float)", ["batch", 1, 8, 8])
        assert (logits.name, logits.shape) == ("logits", ["batch", 10])
        told = session.get_modelmeta().custom_metadata_map
        assert told["architecture"] == ARCH
        assert told["input"] == "image: float32, batch x 1x8x8 (channels x height x width), 0..1"
        assert told["dataset"] == "digits"
    extra = {"metadata.json": ""}
    torch.export.load(run / "export" / "network.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"]) == told
    with zipfile.ZipFile(run / "export" / "network.pt2") as parts:
        contents = [parts.read(name) for name in parts.namelist()]
    contents += [(run / "export" / name).read_bytes() for name in ("network.onnx", "network_int8.onnx")]
    home = str(Path(__file__).parents[1]).encode()
    assert len(contents) > 5
    assert not [content for content in contents if home in content]  # nor where it was made


def test_the_card_can_be_followed(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    text = (run / "export" / "card.md").read_text()
    assert text.startswith("# A network (nasbench201) for digits\n")
    *snippets, sparing = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert len(snippets) == 2
    monkeypatch.chdir(run / "export")
    names: dict[str, Any] = {}
    exec(sparing, names)
    assert names["network"].get_outputs()[0].name == "logits"
    for snippet in snippets:
        assert len(snippet.splitlines()) == 5
        exec(snippet, {})
        assert re.fullmatch(r"(tensor\()?\[\d\]\)?\n", capsys.readouterr().out)
    sums = re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.MULTILINE)
    assert [name for _, name in sums] == ["network.pt2", "network.onnx", "network_int8.onnx"]
    for digest, name in sums:
        assert digest == hashlib.sha256((run / "export" / name).read_bytes()).hexdigest()
    (training,) = re.findall("^hwnas train .*$", text, re.MULTILINE)
    assert shlex.split(training)[2] == f"arch={ARCH}"
    (accuracy,) = re.findall(r"test accuracy after training \| ([\d.]+)%", text)
    assert float(accuracy) == pytest.approx(100 * figures(run / "export")["test_acc"], abs=0.01)
    assert "There is no profile of this machine for networks of this shape" in text


def test_calibration_sees_training_images_only(tmp_path: Path) -> None:
    class Watched(Images):
        asked: list[str] = []  # noqa: RUF012

        def batches(self, part: str, **settings: Any) -> Any:
            self.asked.append(part)
            return super().batches(part, **settings)

    torch.manual_seed(0)
    dataset = digits(Watched)
    module = Deployed(SPACE.network(SPACE.from_str(ARCH)), *dataset.normalisation())
    told = export_network(
        module, dataset, tmp_path, ExportSettings(["onnx"], True, 30, 10, rounds=3, noise=1e9),
        metadata={}, say=lambda text: None,
    )  # fmt: skip
    assert Watched.asked == ["train", "test", "test"]
    # Test images 0, 40, ... 358, evenly spaced.
    rows = [0, 40, 80, 119, 159, 199, 239, 278, 318, 358]
    x, y = dataset.split("test")
    right = int((module(x[rows]).argmax(1) == y[rows]).sum())
    assert (told["images"], told["test_acc"]) == (10, right / 10)


class Liar(nn.Module):
    """Computes something else when it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.flatten(1))
        return y + 0.01 if torch.compiler.is_exporting() else y


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("of an earlier export")
    module = Deployed(Liar(), *digits().normalisation())
    with pytest.raises(
        ValueError, match=r"network\.onnx does not compute what torch does: its logits differ by up"
    ):
        export_network(
            module, digits(), tmp_path, ExportSettings(["onnx"], False, 1, 5, rounds=3, noise=1e9),
            metadata={}, say=lambda text: None,
        )  # fmt: skip
    assert not (tmp_path / "card.md").exists()


@pytest.mark.parametrize(("formats", "name"), [(["torch"], "network.pt2"), (["onnx"], "network.onnx")])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, formats: list[str], name: str) -> None:
    module = Deployed(SPACE.network(SPACE.from_str(ARCH)), *digits().normalisation())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # no file grows beyond 1000 bytes
    try:
        with pytest.raises(OSError, match="File too large") as error:
            export_network(
                module, digits(), tmp_path, ExportSettings(formats, False, 1, 5, rounds=3, noise=1e9),
                metadata={}, say=lambda text: None,
            )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.filename == str(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_darts_with_weights_of_a_training_with_an_auxiliary_classifier(tmp_path: Path) -> None:
    space = Darts(4, 3, image_shape=(1, 8, 8), auxiliary=True)
    torch.manual_seed(0)
    network = space.network(space.from_str(PRESETS["evnas_a"])).eval()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    sizes = ("search_space=darts", "search_space.channels=4", "search_space.num_cells=3")
    code = hwnas(
        *("export", *sizes, "arch=evnas_a", "dataset=digits", f"weights={tmp_path}/mine.pt", "rounds=3"),
        *(f"to={tmp_path}/it", f"hydra.run.dir={tmp_path}/own", "check_images=50", "format=onnx"),
    )
    assert code == 0
    x, _ = digits().split("test")
    mean, std = digits().normalisation()
    with torch.inference_mode():
        logits = network((x - mean) / std).numpy()
    assert np.abs(logits).max() > 0.5
    (found,) = onnxruntime.InferenceSession(tmp_path / "it" / "network.onnx").run(None, {"image": x.numpy()})
    assert found == pytest.approx(logits, abs=1e-4)
    names = {tensor.name for tensor in onnx.load(tmp_path / "it" / "network.onnx").graph.initializer}
    assert not [name for name in names if "auxiliary" in name]
    assert (tmp_path / "it" / "card.md").read_text().startswith("# evnas_a (darts) for digits\n")


@pytest.mark.parametrize(
    ("space", "arch", "int8"),
    [
        ("fbnet", "-".join(["k3_e1_g2", "skip"] * 2 + ["k3_e1_g2", *["skip"] * 17]), True),
        (
            "nasbench201",
            "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
            False,
        ),  # the input reaches no logit
    ],
)
def test_random_weights_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture, space: str, arch: str, int8: bool
) -> None:
    code = hwnas(
        *("export", f"search_space={space}", f"arch={arch}", "search_space.channels=4", "dataset=digits"),
        *("rounds=3", f"int8={int8}", "check_images=150", f"hydra.run.dir={tmp_path}/own"),
    )
    assert code == 0
    assert "warning: the weights are random" in capsys.readouterr().out
    assert "**The weights are random.**" in (tmp_path / "own" / "card.md").read_text()
    told = figures(tmp_path / "own")
    assert told["largest"] > 0.01
    assert max(row["difference"] for row in told["files"][:2]) < 1e-6


def test_a_folder_of_images_keeps_the_names_of_its_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, num in (("train", 5), ("val", 3)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / "pictures" / part / name).mkdir(parents=True)
            for number in range(num):
                pixels = (rng.random((16, 16, 3)) * 60 + 140 * label).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pictures" / part / name / f"{number}.png")
    pictures = ("dataset=imagenet", f"dataset.path={tmp_path}/pictures", "dataset.image_size=16")
    code = hwnas(
        *("export", "format=onnx", *SMALL, *pictures, "dataset.resize=16", "dataset.workers=1"),
        *(f"arch={ARCH}", "rounds=3", "check_images=2", f"hydra.run.dir={tmp_path}/own"),
    )
    assert code == 0
    session = onnxruntime.InferenceSession(tmp_path / "own" / "network.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["dark", "light"]
    assert (figures(tmp_path / "own")["images"], figures(tmp_path / "own")["num_classes"]) == (2, 2)
    assert not (tmp_path / "own" / "network.pt2").exists()


def profile_file(path: Path, **changes: Any) -> Path:
    """A profile by hand: 1 ms, and the operation's number on every edge."""
    profile = Profile(
        schema=SCHEMA_VERSION,
        device="mine",
        space="nasbench201",
        network=network_shape(SPACE, 1),
        origin={"processor": board.processor(), "threads": 1, "backend": "torch", **changes},
        costs={"latency_ms": Additive(1.0, [[0.0, 1.0, 2.0, 3.0, 4.0]] * 6)},
        check={"latency_ms": {"networks": 5, "r2": 1.0, "spearman": 1.0, "median_error": 0.02}},
    )
    profile.save(path)
    return path


def node(**settings: Any) -> DictConfig:
    return OmegaConf.create({"device": settings}).device


def test_predictions_are_of_this_machine_and_shape(tmp_path: Path) -> None:
    genotype = SPACE.from_str(ARCH)
    assert sorted(genotype) == [0, 1, 2, 3, 3, 4]
    target = "hwnas.devices.profile.profile_device"
    mine = node(_target_=target, path=str(profile_file(tmp_path / "mine.json")), metric="latency_ms")
    board_file = profile_file(tmp_path / "board.json", processor="another")
    other = node(_target_=target, path=str(board_file), metric="latency_ms")
    gone = node(_target_=target, path=str(tmp_path / "gone.json"), metric="latency_ms")
    host = node(_target_="hwnas.devices.host.Host", batch_size=1, threads=1, rounds=3)
    said: list[str] = []
    expected = {"latency_ms": 14.0, "device": "mine", "backend": "torch", "median_error": 0.02}
    assert predicted(SPACE, genotype, [gone, other, host, mine], tmp_path, tmp_path, said.append) == expected
    assert len(said) == 1
    assert "gone.json" in said[0]
    assert predicted(SPACE, genotype, [other, host], tmp_path, tmp_path, said.append) is None
    wider = NasBench201(8, 1, image_shape=(1, 8, 8))
    assert predicted(wider, genotype, [mine], tmp_path, tmp_path, said.append) is None


def test_without_the_extra(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Torch's file can be had; here with a prediction beside its latency."""
    monkeypatch.setitem(sys.modules, "onnx", None)  # importing it fails
    given = (f"run={run}", f"to={tmp_path}/it", f"hydra.run.dir={tmp_path}/own", "check_images=5", "rounds=3")
    assert hwnas("export", *given) == 1
    error = "ONNX files need the extra onnx: pip install 'hwnas[onnx]'"
    assert capsys.readouterr().err == f"hwnas export: error: {error}\n"
    assert not (tmp_path / "it").exists()
    path = profile_file(tmp_path / "mine.json")
    assert hwnas("export", *given, f"device={path}", "format=torch") == 0
    assert "predicted for this machine: 14.000 ms (profile of mine, torch)" in capsys.readouterr().out
    assert (
        "| predicted | profile of mine, torch |  | 14.000 ms |" in (tmp_path / "it" / "card.md").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of run=<folder of a search or a training> and arch='<architecture>'"),
        (["run={run}", "arch=x"], "give one of run="),
        (["run={run}", "weights=mine.pt"], "weights goes with arch; run has weights of its own"),
        (["run={run}", "format=pdf"], "format=pdf is not known; known: torch, onnx, tflite"),
        (["run={run}", "format=[]"], "format=[] names no format; known: torch, onnx, tflite"),
        (["run={run}", "int8=maybe"], "int8 must be true or false, not 'maybe'"),
        (
            ["run={run}", "int8=true", "format=torch"],
            "int8=true is an ONNX file; format=torch leaves them out",
        ),
        (["run={run}", "dataset=mnist"], "trained a network with dataset=digits, not mnist"),
        (["run={run}", "search_space.channels=8"], "trained a network with channels=4, not 8"),
        (["run={run}", "to={run}/result.json"], "result.json is a file; a folder is needed"),
        (["run={run}", "to=3"], "to must be a folder, not 3"),
        (["run={run}", "rounds=2"], "rounds must be a whole number of at least 3, not 2"),
        (["run=nowhere"], "run=nowhere is not the folder of a run"),
        (["run={empty}"], "has no trained network; it is unfinished: hwnas train resume="),
        (["arch=x"], "'x' has 1 nodes, not 3; the form is |nor_conv_3x3~0|"),
        (["search_space=toy", "dataset=none", "arch=x"], "the toy space has no networks to export"),
        ([f"arch={ARCH}", *SMALL, "weights=gone.pt"], "there is no gone.pt"),
        ([f"arch={ARCH}", *SMALL, "weights={run}/result.json"], "result.json is damaged or no checkpoint"),
        (
            [f"arch={ARCH}", "search_space.channels=4", "weights={run}/network/weights.pt"],
            "weights.pt are not of this network",
        ),
    ],
)
def test_wrong_input_gets_one_line(
    run: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    (empty / ".hydra").mkdir(parents=True)
    for name in ("config.yaml", "hydra.yaml"):
        (empty / ".hydra" / name).write_text((run / ".hydra" / name).read_text())
    given = [argument.format(run=run, empty=empty) for argument in arguments]
    assert hwnas("export", *given, "hydra.run.dir=own") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]


def test_from_python(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = (f"run={run}", "format=[onnx]", "rounds=3", "check_images=5")
    outcome = export(*words, "to=mine", show=False)
    assert outcome.folder == tmp_path / "mine"
    assert outcome.result["arch"] == ARCH
    assert sorted(path.name for path in outcome.folder.iterdir()) == [
        "card.md",
        "export.json",
        "network.onnx",
    ]
    with pytest.raises(ValueError, match="format=pdf is not known"):
        export(f"run={run}", "format=pdf", show=False)


def test_a_training_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    settings = (*SMALL, "trainer.epochs=1", "logger=csv", f"hydra.run.dir={tmp_path}/it")
    assert hwnas("train", f"arch={ARCH}", *settings) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: hwnas export run={tmp_path}/it"
