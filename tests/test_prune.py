"""`hwnas prune` as a user runs it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.__main__ import main
from hwnas.files import read_torch
from hwnas.pruning.beta_vae import BetaVAESettings, BetaVAETraining, Deployed
from hwnas.pruning.run import area, choose, limits, sparsity_at_loss

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = [
    *("dataset=digits", "logger=csv", "model.channels=[4,8]", "model.hidden=16", "model.latent=4"),
    *("model.gamma=50", "training.epochs=2", "training.batch_size=100", "training.lr=0.01"),
    *("pruning.sparsities=[0,0.5,0.9]", "pruning.ramp_epochs=0.5", "pruning.finetune_epochs=0.5"),
    *("host.rounds=2", "pruning.num_images=100", "training.precision=32"),
]


def run(*arguments: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) if code else contextlib.nullcontext() as exit_of_job:
        given = main(["prune", *arguments])
        if code:
            sys.exit(given)  # what is wrong before the job starts comes back as a value
        assert given == 0
    if exit_of_job is not None:
        assert exit_of_job.value.code == code


def kill_in_step(number: int, *arguments: str) -> None:
    """Run the command in a process that kills itself in the n-th training step, of all runs together."""

    def action() -> None:
        left, step = [number], BetaVAETraining.training_step

        def dying(self: BetaVAETraining, batch: Any, index: int) -> torch.Tensor:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, batch, index)

        BetaVAETraining.training_step = dying
        run(*arguments)

    assert in_a_child(action) == -signal.SIGKILL


def in_a_child(action: Callable[[], object]) -> int:
    """Run something in a forked process; its exit code, or -signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads; ours do nothing
        child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def without_time(result: dict[str, Any]) -> dict[str, Any]:
    """A result but for what a clock says."""
    kept = json.loads(json.dumps(result))
    del kept["seconds"]
    for row in [*kept["curve"], kept["chosen"]]:
        for name in ("latency_ms", "unpruned_latency_ms", "seconds"):
            del row[name]
    return kept


def test_what_a_run_leaves(folder: Path, capsys: pytest.CaptureFixture) -> None:
    filters = ("pruning.structure=filters", "pruning.scope=layer")
    run(*TINY, *filters, "hydra.run.dir=it", "limits.params=500")
    told = capsys.readouterr().out
    result = result_of(folder / "it")
    assert [row["target"] for row in result["curve"]] == [0.0, 0.5, 0.9]
    assert [row["channels"] for row in result["curve"]] == [[4, 8], [2, 4], [1, 1]]
    assert [row["hidden"] for row in result["curve"]] == [16, 8, 2]
    assert result["curve"][2]["kept_one"] == ["conv1"]  # 0.9 of 4 filters is all of them
    assert "sparsity 0.9 would leave nothing of conv1; one filter of each is kept" in told
    for row in result["curve"]:
        assert row["sparsity"] == row["zeros"] / row["weights"]
        assert row["latency_ms"] > 0
    first, second, last = result["curve"]
    assert first["sparsity"] == 0
    assert first["bytes"] > second["bytes"] > last["bytes"]
    assert first["flops"] > second["flops"] > last["flops"]
    assert result["chosen"]["params"] <= 500
    assert result["area"] == area([0, 0.5, 0.9], [row["test_acc"] for row in result["curve"]])
    assert len(result["trained"]["kl_per_dimension"]) == 4
    files = {str(path.relative_to(folder / "it")) for path in (folder / "it").rglob("*") if path.is_file()}
    assert files >= {
        *("result.json", "curve.csv", "metrics.csv", "weights.pt", "report.html", "network/pruned.pt"),
        *("pictures/reconstructions.png", "pictures/traversals.png"),
    }
    assert not files & {"checkpoint.pt", "curve.jsonl"}
    assert not (folder / "it/networks").exists()
    assert len({row["unpruned_latency_ms"] for row in result["curve"]}) == 1  # all were timed together
    assert first["latency_ms"] == first["unpruned_latency_ms"]  # no filter was removed: the same work
    stored = read_torch(folder / "it" / "network" / "pruned.pt")
    network = Deployed(**stored["arguments"])
    network.load_state_dict(stored["network"])
    assert sum(p.numel() for p in network.parameters()) == result["chosen"]["params"]

    # Other weights of the same trained network; its unpruned accuracy is the same
    run(
        *TINY,
        "checkpoint=it/weights.pt",
        "pruning.criterion=snip",
        "hydra.run.dir=other",
        "limits.flops=1",
        code=1,
    )
    told = capsys.readouterr().out
    other = result_of(folder / "other")["trained"]
    assert other.pop("kl_per_dimension") == pytest.approx(result["trained"].pop("kl_per_dimension"))
    assert other == pytest.approx(result["trained"])
    assert result_of(folder / "other")["chosen"] is None
    assert "no sparsity keeps limits flops=1; the closest is 0.9" in told
    assert main(["report", "it", "other"]) == 0
    assert "inconclusive" in capsys.readouterr().out


def test_onnx_of_the_kept_network(folder: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    run(*TINY, "onnx=true", "hydra.run.dir=it")
    kept = result_of(folder / "it")["network"]
    assert kept["onnx_difference"] < 1e-4
    assert kept["onnx_bytes"] == (folder / "it" / kept["onnx"]).stat().st_size


def test_known_factors_are_scored(folder: Path) -> None:
    run(
        *(argument for argument in TINY if argument != "dataset=digits"),
        *("dataset=shapes", "training.epochs=1", "pruning.sparsities=[0.5]", "hydra.run.dir=it"),
    )
    trained = result_of(folder / "it")["trained"]
    for name in ("mig", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness"):
        assert 0 <= trained[name] <= 1


@pytest.mark.slow
def test_a_killed_study_does_nothing_twice(folder: Path, capsys: pytest.CaptureFixture) -> None:
    study = ["-m", *TINY, "model.beta=0,1", "seed=0,1"]
    run(*study, "hydra.sweep.dir=whole")
    killed = folder / "killed"
    study.append("hydra.sweep.dir=killed")
    # 1150 training images, 11 steps per epoch: 22 of training and 3 times 12 (6 and 6) later, 58 a run.
    kill_in_step(58 + 22 + 12 + 3, *study)  # the second run's second sparsity
    names = sorted(path.name for path in (folder / "whole").iterdir() if path.is_dir())
    assert [name.rpartition("-")[0] for name in names] == [
        f"model.beta={beta},seed={seed}" for beta in (0, 1) for seed in (0, 1)
    ]
    assert [path.parent.name for path in killed.rglob("result.json")] == names[:1]
    assert len((killed / names[1] / "curve.jsonl").read_text().splitlines()) == 1
    stamps = {path: path.stat().st_mtime_ns for path in killed.glob("*/weights.pt")}
    assert len(stamps) == 2
    kill_in_step(2 * 12 + 11 + 5, *study)  # in the third run's second epoch
    assert sorted(path.parent.name for path in killed.rglob("result.json")) == names[:2]
    assert (killed / names[2] / "checkpoint.pt").is_file()
    capsys.readouterr()

    run(*study)
    told = capsys.readouterr().out
    assert "resuming after epoch 1" in told
    assert told.count("trained: test accuracy") == 2
    assert "4 jobs finished, 2 of them before" in told
    assert "report: killed/report.html" in told
    for path, stamp in stamps.items():
        assert path.stat().st_mtime_ns == stamp
    for name in names:
        assert without_time(result_of(killed / name)) == without_time(result_of(folder / "whole" / name))

    run(*study)
    told = capsys.readouterr().out
    assert "4 jobs finished, 4 of them before" in told
    assert "trained" not in told


def test_a_killed_run_goes_on(folder: Path, capsys: pytest.CaptureFixture) -> None:
    run(*TINY, "hydra.run.dir=whole")
    kill_in_step(17, *TINY, "hydra.run.dir=killed")
    kill_in_step(11 + 12 + 5, "resume=killed")  # in the second sparsity
    run(*TINY, "model.beta=3", "hydra.run.dir=killed", code=1)
    assert "killed holds a run with model.beta=1.0, not model.beta=3;" in capsys.readouterr().err
    run(*TINY, "hydra.run.dir=killed")
    run("resume=killed")
    assert "this run is finished already" in capsys.readouterr().out
    whole, killed = result_of(folder / "whole"), result_of(folder / "killed")
    assert without_time(whole) == without_time(killed)
    first, second = (read_torch(folder / name / "weights.pt")["network"] for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_lost_files_are_made_again(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Files that a power cut emptied: the network of a sparsity, then the trained one."""
    run(*TINY, "hydra.run.dir=whole")
    kill_in_step(22 + 12 + 12 + 5, *TINY, "hydra.run.dir=cut")  # in the third sparsity
    (folder / "cut/networks/0.5.pt").write_bytes(b"")
    kill_in_step(12 + 5, "resume=cut")
    assert "the network of sparsity 0.5 is damaged or lost" in (folder / "cut/prune.log").read_text()
    (folder / "cut/weights.pt").write_bytes(b"")
    capsys.readouterr()
    run("resume=cut")
    assert "the network is trained again" in capsys.readouterr().out
    assert without_time(result_of(folder / "cut")) == without_time(result_of(folder / "whole"))


def test_a_damaged_row_of_the_curve_is_made_again(folder: Path) -> None:
    run(*TINY, "hydra.run.dir=whole")
    kill_in_step(22 + 12 + 12 + 5, *TINY, "hydra.run.dir=cut")  # in the third sparsity
    journal = folder / "cut/curve.jsonl"
    first, second = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(first + bytes(len(second) - 1) + b"\n")  # zeros of a power cut
    run("resume=cut")
    assert without_time(result_of(folder / "cut")) == without_time(result_of(folder / "whole"))


def test_two_resumes_at_once(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """One goes on, the other is refused and changes nothing; the curve has every sparsity once."""
    kill_in_step(22 + 12 + 5, *TINY, "hydra.run.dir=it")  # in the second sparsity
    at_work, go_on = os.pipe(), os.pipe()

    def action() -> None:
        step = BetaVAETraining.training_step

        def waiting(self: BetaVAETraining, batch: Any, index: int) -> torch.Tensor:
            BetaVAETraining.training_step = step
            os.write(at_work[1], b".")
            os.read(go_on[0], 1)
            return step(self, batch, index)

        BetaVAETraining.training_step = waiting
        run("resume=it")
        os._exit(0)

    thread = ThreadPoolExecutor(1)
    first = thread.submit(in_a_child, action)
    os.read(at_work[0], 1)
    before = (folder / "it/curve.jsonl").read_bytes()
    capsys.readouterr()
    run("resume=it", code=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "it is in use by process " in line
    assert (folder / "it/curve.jsonl").read_bytes() == before
    os.write(go_on[1], b".")
    assert first.result() == 0
    assert [row["target"] for row in result_of(folder / "it")["curve"]] == [0, 0.5, 0.9]


def test_networks_that_are_hardly_trained_are_kept_with_a_reserve(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    run(*TINY, "training.epochs=1", "training.lr=1e-6", "pruning.sparsities=[0,0.5]", "pruning.lr=1e-6")
    said = capsys.readouterr().out
    assert "classes, nearer to chance than to perfect: what pruning costs it says little; raise" in said
    assert "kept, of a network that is hardly trained: sparsity " in said


def test_a_run_that_was_killed_before_its_page_was_drawn(folder: Path) -> None:
    run(*TINY, "hydra.run.dir=it")
    (folder / "it/report.html").unlink()
    (folder / "it/curve.jsonl").write_text("")
    run("resume=it")
    assert "The cost of pruning" in (folder / "it/report.html").read_text()
    assert not (folder / "it/curve.jsonl").exists()


def test_a_sweep_whose_page_cannot_be_drawn_fails(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "sweep").mkdir()
    (folder / "sweep/report.html").write_text("my own")
    study = ("-m", *TINY, "training.epochs=1", "pruning.sparsities=[0]", "seed=0,1", "hydra.sweep.dir=sweep")
    assert main(["prune", *study]) == 1
    assert "report.html is not a page of hwnas and would be overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pruning.sparsities=[0.5,1.0]"], "each a number of at least 0 and below 1, not [0.5, 1.0]"),
        (["pruning.sparsities=[-0.5]"], "pruning.sparsities must be a list of at least 1, each a number"),
        (["model.beta=-1"], "model.beta must be a number of at least 0, not -1"),
        (["model.channels=[4,4,4,4]"], "has 4 convolutions that halve images of 8x8 to nothing; give fewer"),
        (["training.batch_size=2000"], "training.batch_size=2000 is more than the 1,150 training images"),
        (["dataset=none"], "dataset=none has no labelled images"),
        (["dataset=imagenet"], "does not read them one by one, so not dataset=imagenet; choose cifar10,"),
        (["experiment=beta_vae_mnist_small", "dataset=imagenet"], "does not read them one by one"),
        (["limits.energy_mj=3"], "unknown setting"),
        (["+limits.energy_mj=3"], "unknown setting 'limits.energy_mj'; did you mean limits.latency_ms"),
        (["limits.params=-3"], "limits.params must be a number above 0, not -3"),
        (["host.rounds=null"], "host.rounds must be a whole number of at least 1, not None"),
        (["onnx=2"], "onnx must be true or false, not 2"),
        (["checkpoint=nowhere.pt"], "file 'nowhere.pt' not found"),
        (["resume=nowhere"], "resume=nowhere is not a folder"),
        (["training.lr=1e30"], "the loss became nan in step 1; try a smaller training.lr"),
    ],
)  # fmt: skip
def test_wrong_input_gets_one_line(
    folder: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    run(*([] if arguments == ["resume=nowhere"] else TINY), *arguments, code=1)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]


def test_a_checkpoint_of_another_shape(folder: Path, capsys: pytest.CaptureFixture) -> None:
    settings = BetaVAESettings([4, 8], 16, 3, False, "bernoulli", True, 1.0, 1.0, None, 1)
    torch.save({"network": settings.network((1, 8, 8), 10).state_dict()}, "three.pt")
    run(*TINY, "checkpoint=three.pt", code=1)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "three.pt is of another network: its deployed.mean.weight has shape (3, 16), the model's" in line


def test_images_without_labels(folder: Path, capsys: pytest.CaptureFixture) -> None:
    x = np.zeros((20, 8, 8), np.uint8)
    np.savez("unlabelled.npz", x_train=x, x_test=x)
    arguments = [argument for argument in TINY if argument != "dataset=digits"]
    run(*arguments, "dataset=npz", "dataset.path=unlabelled.npz", code=1)
    assert "unlabelled.npz lacks y_train, y_test" in capsys.readouterr().err
    np.savez("alike.npz", x_train=x, y_train=np.zeros(20, int), x_test=x, y_test=np.zeros(20, int))
    run(*arguments, "dataset=npz", "dataset.path=alike.npz", code=1)
    assert "needs images of at least two classes" in capsys.readouterr().err


def test_read_outs_by_hand() -> None:
    assert area([0, 0.5, 1], [1.0, 0.8, 0.0]) == pytest.approx(0.45 + 0.2)
    assert area([0.5], [0.7]) == 0.7
    assert area([0.5, 0.9], [0.8, 0.6]) == pytest.approx(0.7)
    # 0.98 to 0.90 from 0.5 to 0.9; 0.97 is an eighth of the way
    assert sparsity_at_loss([0, 0.5, 0.9], [0.98, 0.98, 0.90], 0.01) == pytest.approx(0.55)
    assert sparsity_at_loss([0, 0.5], [0.98, 0.975], 0.01) is None


def test_the_choice() -> None:
    rows = [
        {"target": 0.0, "val_acc": 0.950, "params": 100.0, "flops": 9.0},
        {"target": 0.5, "val_acc": 0.945, "params": 50.0, "flops": 5.0},
        {"target": 0.9, "val_acc": 0.941, "params": 10.0, "flops": 2.0},
        {"target": 0.99, "val_acc": 0.900, "params": 1.0, "flops": 1.0},
    ]
    assert choose(rows, {}) is rows[2]
    assert choose(rows, {"params": 60.0}) is rows[1]
    assert choose(rows, {"params": 60.0, "flops": 3.0}) is rows[2]
    assert choose(rows, {"flops": 0.5}) is None
    assert limits(None) == limits({"params": None}) == {}
    assert limits({"params": 5}) == {"params": 5.0}
