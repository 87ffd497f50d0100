"""`hwnas train` as a user runs it."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from hwnas.__main__ import main
from hwnas.cli.overrides import train_arguments
from hwnas.spaces.darts import Darts
from hwnas.spaces.darts.encoding import PRESETS
from hwnas.spaces.fbnet import FBNet
from hwnas.training.classifier import Classifier

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = [
    *("search_space=darts", "search_space.channels=4", "search_space.num_cells=3", "logger=csv"),
    *("trainer=darts", "trainer.epochs=3", "trainer.batch_size=400", "search_space.auxiliary=true"),
]


def run(*arguments: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) if code else contextlib.nullcontext() as exit_of_job:
        given = main(["train", *arguments])
        if code:
            sys.exit(given)  # what is wrong before the job starts comes back as a value
        assert given == 0
    if exit_of_job is not None:
        assert exit_of_job.value.code == code


def in_a_child(action: Callable[[], object]) -> int:
    """Run something in a forked process, which is faster than a new one; its exit code, or -signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads; ours do nothing
        child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_in_step(number: int, *arguments: str) -> None:
    """Run `hwnas train` in a process that kills itself in the n-th training step."""

    def action() -> None:
        left, step = [number], Classifier.training_step

        def dying(self: Classifier, batch: Any, index: int) -> torch.Tensor:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, batch, index)

        Classifier.training_step = dying
        run(*arguments)

    assert in_a_child(action) == -signal.SIGKILL


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_folder / "network" / "weights.pt", weights_only=True)


def test_a_killed_training_resumes_to_the_same_weights(folder: Path, capsys: pytest.CaptureFixture) -> None:
    run(*TINY, "arch=evnas_a", "hydra.run.dir=whole")
    # 3 steps per epoch: in the second step of the second epoch
    kill_in_step(5, *TINY, "arch=evnas_a", "hydra.run.dir=killed")
    assert [path.name for path in (folder / "killed" / "network").iterdir()] == ["checkpoint.pt"]
    run("resume=killed", "search_space.channels=5", code=1)
    assert "search_space.channels=5 contradicts the run in killed, which has" in capsys.readouterr().err
    run("resume=killed")
    assert "resuming after epoch 1" in capsys.readouterr().out

    whole, resumed = weights(folder / "whole"), weights(folder / "killed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for name in ("network/curves.csv", "network/curves.svg", "network/architecture.json", "metrics.csv"):
        assert (folder / "whole" / name).read_text() == (folder / "killed" / name).read_text()
    results = [json.loads((folder / name / "result.json").read_text()) for name in ("whole", "killed")]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}
    assert not (folder / "killed" / "network" / "checkpoint.pt").exists()

    run("resume=killed")
    assert "this run is finished already" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["weights.pt", "curves.svg", "result.json"])
def test_a_finished_training_is_not_thrown_away(
    file: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    """Killed once the last epoch is over, while the figures are written, it is not trained again."""

    def action() -> None:
        replace = os.replace

        def dying(source: Path, target: Path) -> None:
            if Path(target).name == file:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = dying  # type: ignore[assignment]
        run(*TINY, "trainer.epochs=1", "arch=evnas_a", "hydra.run.dir=killed")

    assert in_a_child(action) == -signal.SIGKILL
    before = torch.load(folder / "killed/network/checkpoint.pt", weights_only=True)["network"]
    run("resume=killed")
    said = capsys.readouterr().out
    assert "resuming after epoch 1" in said
    assert "  epoch 1/1" not in said
    after = weights(folder / "killed")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert len((folder / "killed/metrics.csv").read_text().splitlines()) == 2
    assert not (folder / "killed/network/checkpoint.pt").exists()


def test_what_a_training_writes(folder: Path) -> None:
    arch = Darts().to_str(Darts().from_str(PRESETS["evnas_b"]))
    assert "'" in arch
    run(*TINY, f"arch={arch}", "hydra.run.dir=it")
    assert sorted(path.name for path in (folder / "it" / "network").iterdir()) == [
        *("architecture.json", "curves.csv", "curves.svg", "weights.pt")
    ]
    network = json.loads((folder / "it" / "network" / "architecture.json").read_text())
    assert network["arch"] == arch
    assert (network["channels"], network["num_cells"], network["num_classes"]) == (4, 3, 10)
    space = Darts(4, 3, image_shape=(1, 8, 8), auxiliary=True)
    rebuilt = space.network(tuple(network["genotype"]))
    rebuilt.load_state_dict(weights(folder / "it"))
    assert network["params"] == sum(
        parameter.numel()
        for name, parameter in rebuilt.named_parameters()
        if not name.startswith("auxiliary")
    )
    with (folder / "it" / "network" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    # cosine per epoch: the rate after the last step of epochs 1, 2, 3
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.01875, 0.00625, 0.0], abs=1e-9)
    picture = ElementTree.fromstring((folder / "it" / "network" / "curves.svg").read_text())
    lines = [element for element in picture if element.tag.endswith("polyline")]
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 3]


def test_a_training_of_a_search_resumes_without_the_search(folder: Path) -> None:
    """What `run=` gave, and settings beside it, are in the training's own configuration."""
    search = folder / "search"
    (search / ".hydra").mkdir(parents=True)
    (search / ".hydra" / "config.yaml").write_text(
        "search_space: {_target_: hwnas.spaces.darts.Darts, channels: 4, num_cells: 3}\n"
        "dataset: {_target_: hwnas.data.images.Images, name: digits, source: digits, "
        "image_shape: [1, 8, 8], num_classes: 10}\n"
    )
    (search / ".hydra" / "hydra.yaml").write_text(
        f"hydra: {{runtime: {{cwd: {folder}, choices: {{search_space: darts, dataset: digits}}}}}}\n"
    )
    (search / "result.json").write_text(
        json.dumps(
            {
                "objectives": [],
                "limits": {},
                "evaluations": {"asked": 1, "unique": 1, "cached": 0},
                "seconds": {"total": 1.0},
                "result": [],
                "best": {"arch": PRESETS["evnas_c"], "genotype": [], "metrics": {}},
            }
        )
    )
    settings = ["run=search", "search_space.channels=6", "logger=csv", "trainer.epochs=2"]
    kill_in_step(30, *settings, "hydra.run.dir=it")
    search.rename(folder / "moved")
    run("resume=it")
    network = json.loads((folder / "it" / "network" / "architecture.json").read_text())
    assert (network["channels"], network["num_cells"], network["epochs"]) == (6, 3, 2)
    assert Darts().from_str(network["arch"]) == Darts().from_str(PRESETS["evnas_c"])


def test_the_name_of_a_published_architecture_chooses_its_space() -> None:
    assert train_arguments(["arch=cmanas_c10a"]) == ["search_space=darts", "arch='cmanas_c10a'"]
    assert train_arguments(["arch='fbnet_a'"]) == ["search_space=fbnet", "arch='fbnet_a'"]
    for given in ("search_space=darts", "experiment=train_evnas_a_small", "resume=it"):
        assert train_arguments(["arch=evnas_b", given]) == ["arch='evnas_b'", given]
    assert train_arguments(["arch=|skip_connect~0|"]) == ["arch='|skip_connect~0|'"]


@pytest.mark.parametrize("arch", ["fbnet_c", "-".join(["k3_e1_g2", "skip"] * 11)])
def test_fbnet_by_name_and_by_its_blocks(folder: Path, arch: str) -> None:
    small = ("search_space=fbnet", "search_space.channels=4", "logger=csv", "trainer.epochs=1")
    run(*small, f"arch={arch}", "trainer.batch_size=400", "hydra.run.dir=it")
    network = json.loads((folder / "it" / "network" / "architecture.json").read_text())
    assert (network["channels"], network["variant"], network["image_shape"]) == (4, "cifar100", [1, 8, 8])
    space = FBNet(network["variant"], network["channels"], image_shape=(1, 8, 8), num_classes=10)
    assert space.from_str(network["arch"]) == space.from_str(space.presets.get(arch, arch))
    rebuilt = space.network(tuple(network["genotype"]))
    rebuilt.load_state_dict(weights(folder / "it"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["arch=evnas_d"],
            "arch=evnas_d is no published architecture of the darts space; did you mean evnas_",
        ),
        (
            ["arch=x"],
            "arch=x is no published architecture of the darts space; known: evnas_a, evnas_b, evnas_c",
        ),
        (["arch=x y"], "'x y' is no architecture of the darts space; the form is Genotype"),
        ([], "give one of arch='<architecture>' and run=<folder of a search>"),
        (["arch=evnas_a", "trainer.epochs=0"], "trainer.epochs must be at least 1 to train"),
        (
            ["arch=evnas_a", "trainer.batch_size=1439"],
            "trainer.batch_size=1439 is more than the 1,438 training images; it can be at most 1438",
        ),
        (
            ["arch=evnas_a", "search_space.auxiliary=false"],
            "trainer.auxiliary_weight=0.4 needs a network with",
        ),
        (["arch=evnas_a", "search_space.num_cells=2"], "search_space.num_cells must be a whole number of at"),
        (
            ["arch=evnas_a", "trainer.schedule=linear"],
            "trainer.epochs must be above 5 with schedule=linear, not 3",
        ),
        (
            ["arch=evnas_a", "trainer.precision=8"],
            "trainer.precision must be one of 32, bf16, fp16, auto, not 8",
        ),
        (["arch=evnas_a", "dataset=imagenet"], "dataset=imagenet needs dataset.path=<folder"),
        (["arch=evnas_a", "trainer.lr=1e30"], "the loss became nan in step 1 at a learning rate of 1e+30"),
        (
            ["arch=evnas_a", "trainer.teacher=nowhere"],
            "trainer.teacher=nowhere must be the folder of a trained network, with weights.pt and",
        ),
        (["resume=nowhere"], "resume=nowhere is not a folder"),
    ],
)
def test_wrong_input_gets_one_line(
    folder: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    run(*([] if arguments == ["resume=nowhere"] else TINY), *arguments, code=1)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]


def test_out_of_memory_says_what_to_lower(folder: Path, capfd: pytest.CaptureFixture) -> None:
    """A real allocation fails, under a limit of the process' address space."""

    def action() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
        run(*TINY, "arch=evnas_a", "search_space.channels=128", code=1)

    assert in_a_child(action) == 1
    error = capfd.readouterr().err
    assert "error: out of memory in step 0: lower trainer.batch_size (400), search_space.channels or" in error


def test_training_on_a_folder_of_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part, num in (("train", 12), ("val", 4)):
        for label, name in enumerate(("dark", "light")):
            (folder / "pictures" / part / name).mkdir(parents=True)
            for number in range(num):
                pixels = (rng.random((40, 40, 3)) * 60 + 140 * label).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "pictures" / part / name / f"{number}.jpg")
    run(
        *TINY, "arch=evnas_c", "trainer=imagenet", "trainer.epochs=6", "trainer.batch_size=8",
        "trainer.lr=0.05", "dataset=imagenet", "dataset.path=pictures", "dataset.image_size=128",
        "dataset.resize=140", "dataset.workers=1", "hydra.run.dir=it",
    )  # fmt: skip
    network = json.loads((folder / "it" / "network" / "architecture.json").read_text())
    assert (network["num_classes"], network["image_shape"]) == (2, [3, 128, 128])
    assert network["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert "stem_0.0.weight" in weights(folder / "it")  # the ImageNet stem
