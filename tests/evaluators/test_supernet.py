from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from hwnas.build import build, conf_folder
from hwnas.core import Genotype
from hwnas.data.images import Images, NoImages
from hwnas.evaluators.supernet import Supernet
from hwnas.spaces.darts import Darts
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.nasbench201.supernet import NasBench201Supernet
from hwnas.spaces.toy import Toy
from hwnas.store.workers import Unpickler, packed

SPACE = NasBench201(image_shape=(1, 8, 8))
PRUNED = SPACE.restrict([(1, 3), (1, 2, 4), (3, 4), (2, 3), (1, 3, 4), (0, 1)])
POPULATIONS = [SPACE.sample(np.random.default_rng(seed), 4) for seed in range(4)]
SMALL = PRUNED.sample(np.random.default_rng(0), 4)
EVERY_GENERATION = ["warmup_epochs=0", "epochs_per_generation=1", "training.sampling=population"]


class Folders:
    """Two folders, what was said, and evaluators that use them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[str] = []

    def evaluator(
        self, *overrides: str, space: Any = SPACE, dataset: Any = None, run: str = "run"
    ) -> Supernet:
        config = OmegaConf.create({"generations": 4, "dataset": {"name": "cifar10"}})
        config.evaluator = OmegaConf.load(conf_folder() / "evaluator" / "supernet.yaml")
        small = ["channels=2", "warmup_epochs=2", "training.batch_size=256"]
        config.evaluator.merge_with_dotlist([*small, *overrides])
        self.said = []
        return build(
            config.evaluator,
            space=space,
            dataset=dataset or digits(),
            store_dir=self.path / "store",
            folder=self.path / run,
            announce=self.said.append,
        )

    @property
    def trained(self) -> list[str]:
        return [text for text in self.said if text.startswith("training the supernet")]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def digits(**settings: Any) -> Images:
    settings = {"crop": 1, "valid_fraction": 0.5, **settings}
    return Images("digits", source="digits", image_shape=[1, 8, 8], num_classes=10, **settings)


def answers(evaluator: Supernet, population: list[Genotype], space: NasBench201 = SPACE) -> tuple[str, Any]:
    version = evaluator.prepare(space, population)
    rows = evaluator.evaluate(population)
    assert all(0 <= row["val_acc"] <= 1 for row in rows)
    return version, rows


def test_a_supernet_that_is_trained_once_is_shared_by_runs(folders: Folders) -> None:
    first = folders.evaluator()
    version = first.prepare(SPACE, [])
    assert folders.trained == ["training the supernet: 2 epochs"]
    expected = [answers(first, population) for population in POPULATIONS[:2]]
    assert [v for v, _ in expected] == [version, version]
    assert first.stationary
    assert len(folders.trained) == 1
    assert not (folders.path / "run").exists()

    other = folders.evaluator(run="other")
    assert [answers(other, population) for population in POPULATIONS[:2]] == expected
    assert folders.trained == []
    assert len([text for text in folders.said if text.startswith("supernet after 2 epochs from")]) == 1


def test_training_waits_until_an_answer_is_needed(folders: Folders) -> None:
    evaluator = folders.evaluator(*EVERY_GENERATION)
    versions = [evaluator.prepare(SPACE, population) for population in ([], *POPULATIONS)]
    assert len(set(versions)) == 5
    assert not evaluator.stationary
    assert not (folders.path / "run").exists()
    last = evaluator.evaluate(POPULATIONS[3])

    step_by_step = folders.evaluator(*EVERY_GENERATION, run="other")
    rows = [answers(step_by_step, population) for population in POPULATIONS]
    assert [version for version, _ in rows] == versions[1:]
    assert rows[3][1] == last


@pytest.mark.parametrize("lost", ["nothing", "last", "last two", "damaged last", "damaged both"])
def test_a_run_goes_on_from_its_checkpoints(folders: Folders, lost: str) -> None:
    """And like one that was never interrupted, whatever is lost."""
    whole = folders.evaluator(*EVERY_GENERATION, run="whole")
    expected = [answers(whole, population) for population in POPULATIONS]

    killed = folders.evaluator(*EVERY_GENERATION)
    for population in POPULATIONS[:3]:
        answers(killed, population)
    paths = [folders.path / "run" / "supernet" / f"checkpoint{which}.pt" for which in ("", ".previous")]
    assert all(path.is_file() for path in paths)
    for path in paths[: 2 if lost in ("last two", "damaged both") else 0 if lost == "nothing" else 1]:
        path.write_bytes(path.read_bytes()[:-1000]) if "damaged" in lost else path.unlink()

    resumed = folders.evaluator(*EVERY_GENERATION)
    resumed.prepare(SPACE, [])
    versions = [resumed.prepare(SPACE, population) for population in POPULATIONS]
    assert (versions[3], resumed.evaluate(POPULATIONS[3])) == expected[3]
    epochs = {"nothing": 3, "last": 2, "damaged last": 2}.get(lost)
    found = [text.split(" from")[0] for text in folders.said if text.startswith("supernet after")]
    assert found == ([f"supernet after {epochs} epochs"] if epochs else [])
    assert sum("is damaged" in text for text in folders.said) >= ("damaged" in lost)


def test_a_checkpoint_ahead_of_the_journal_is_used(folders: Folders) -> None:
    """Killed after training, before the answers were written down."""
    first = folders.evaluator(*EVERY_GENERATION)
    expected = [answers(first, population) for population in POPULATIONS[:3]]
    resumed = folders.evaluator(*EVERY_GENERATION)
    resumed.prepare(SPACE, [])
    for population in POPULATIONS[:2]:
        resumed.prepare(SPACE, population)
    assert answers(resumed, POPULATIONS[2]) == expected[2]
    assert [text.split(" from")[0] for text in folders.said] == ["supernet after 3 epochs"]


RANKING = ["training.ranking_weight=2", "scores.scores=[params]", "scores.num_networks=6"]


@pytest.mark.parametrize("settings", [[], ["training.importance=both"], RANKING])
def test_an_interrupted_warm_up_goes_on(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    from hwnas.evaluators import supernet as module
    from hwnas.training.shared_weights import SharedWeights

    expected = answers(folders.evaluator("warmup_epochs=3", *settings), POPULATIONS[0])
    shutil.rmtree(folders.path / "store")
    monkeypatch.setattr(module, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    train = SharedWeights.train_epoch

    def interrupted(self: SharedWeights, epoch: int, population: Any = ()) -> dict[str, float]:
        if epoch == 2:
            raise KeyboardInterrupt
        return train(self, epoch, population)

    monkeypatch.setattr(SharedWeights, "train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folders.evaluator("warmup_epochs=3", *settings).prepare(SPACE, [])
    monkeypatch.setattr(SharedWeights, "train_epoch", train)
    assert answers(folders.evaluator("warmup_epochs=3", *settings), POPULATIONS[0]) == expected
    assert folders.trained == ["training the supernet: 1 epochs"]


def states(evaluator: Supernet) -> dict[str, torch.Tensor]:
    assert evaluator._weights is not None
    return evaluator._weights.supernet.state_dict()


TWO = ["training.devices=2", "training.batch_size=128"]


def test_two_devices_are_another_version_and_strategies_are_not(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def version(*overrides: str) -> str:
        return folders.evaluator(*overrides).prepare(SPACE, POPULATIONS[0])

    assert version() == "135cc0d9db1f5fc8"  # that of earlier runs
    assert version("training.devices=2", "training.strategy=ddp_spawn") == version("training.devices=2")
    small = "training.batch_size=200"
    others = version(small), version(small, "training.devices=3")
    assert version(small, "training.devices=2") not in others


def test_a_warm_up_on_two_devices_that_was_killed_goes_on(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process kills itself at the start of the second epoch; the first epoch is kept."""
    from hwnas.evaluators import supernet as module
    from hwnas.training.shared_weights import SharedWeights

    settings = [*TWO, "warmup_epochs=10"]  # processes start for two epochs at a time
    whole = folders.evaluator(*settings)
    expected = answers(whole, POPULATIONS[0])
    assert [text.split("  ")[1] for text in folders.said[1:]] == [f"epoch {n}/10" for n in (2, 4, 6, 8, 10)]
    shutil.rmtree(folders.path / "store")

    start = SharedWeights._start

    def deadly(self: SharedWeights, epoch: int, population: Any) -> None:
        if epoch == 3 and self.global_rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        start(self, epoch, population)

    monkeypatch.setattr(module, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr(SharedWeights, "_start", deadly)
    with pytest.raises(ValueError, match=r"^a process of the training was killed \(out of memory\?\)$"):
        folders.evaluator(*settings).prepare(SPACE, [])
    monkeypatch.setattr(SharedWeights, "_start", start)
    resumed = folders.evaluator(*settings)
    assert answers(resumed, POPULATIONS[0]) == expected
    assert folders.said[0].startswith("supernet after 3 epochs from")
    assert folders.trained == ["training the supernet: 7 epochs"]
    for name, tensor in states(whole).items():
        assert torch.equal(states(resumed)[name], tensor), name


def test_populations_train_on_two_devices_and_a_resumed_run_ends_alike(folders: Folders) -> None:
    settings = [*EVERY_GENERATION, *TWO]
    whole = folders.evaluator(*settings, run="whole")
    expected = [answers(whole, population) for population in POPULATIONS[:3]]
    killed = folders.evaluator(*settings)
    for population in POPULATIONS[:2]:
        answers(killed, population)
    resumed = folders.evaluator(*settings)
    versions = [resumed.prepare(SPACE, population) for population in POPULATIONS[:3]]
    assert (versions[2], resumed.evaluate(POPULATIONS[2])) == expected[2]
    assert [text.split(" from")[0] for text in folders.said] == ["supernet after 2 epochs"]
    for name, tensor in states(whole).items():
        assert torch.equal(states(resumed)[name], tensor), name


@pytest.mark.slow
def test_processes_that_start_anew_train_the_same_weights(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as forked ones have, which sum in the same order then
    forked, anew = (
        folders.evaluator(*EVERY_GENERATION, *TWO, f"training.strategy={strategy}", run=strategy)
        for strategy in ("ddp_fork", "ddp_spawn")
    )
    for population in POPULATIONS[:2]:
        assert answers(forked, population) == answers(anew, population)
    for name, tensor in states(forked).items():
        assert torch.equal(states(anew)[name], tensor), name


def test_what_goes_wrong_on_two_devices_is_one_line(folders: Folders) -> None:
    lr = ["training.lr=1e30", "training.grad_clip=null"]
    message = r"^the supernet's loss became (nan|inf) in step \d of epoch \d at a learning rate of"
    with pytest.raises(ValueError, match=message):
        folders.evaluator(*TWO, *lr).prepare(SPACE, [])
    message = "^evaluator.training.batch_size=360 on each of 2 devices is more .* it can be at most 359$"
    with pytest.raises(ValueError, match=message):
        folders.evaluator("training.devices=2", "training.batch_size=360").prepare(SPACE, [])


@pytest.mark.slow
def test_a_search_on_two_devices(run_hwnas, tmp_path: Path) -> None:
    """Supernet and final network; with threads, which processes that are forked must not wait for."""
    done = run_hwnas(
        *("search", "strategy=evnas", "generations=2", "strategy.population_size=4", "device=flops"),
        "strategy.tournament_size=2",
        *("evaluator=supernet", *(f"evaluator.{setting}" for setting in EVERY_GENERATION)),
        *("evaluator.channels=16", "evaluator.training.devices=2", "trainer.devices=2", "trainer.epochs=1"),
        *("logger=csv", "hydra.run.dir=run"),
        env={"OMP_NUM_THREADS": "2"},
    )
    assert done.stderr == ""
    assert (tmp_path / "run" / "result.json").is_file()
    state = torch.load(tmp_path / "run" / "supernet" / "checkpoint.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["weights"].values())
    lines = (tmp_path / "run" / "network" / "curves.csv").read_text().splitlines()
    assert len(lines) == 2


def parameters(evaluator: Supernet) -> dict[str, torch.Tensor]:
    assert evaluator._weights is not None
    return {name: p.detach().clone() for name, p in evaluator._weights.supernet.named_parameters()}


@pytest.mark.parametrize("inherit", [True, False])
def test_fewer_choices_begin_a_stage(folders: Folders, inherit: bool) -> None:
    settings = ["training.sampling=random_alpha", f"inherit={inherit}", "decoding=soft"]
    evaluator = folders.evaluator(*settings)
    first = [answers(evaluator, population)[0] for population in POPULATIONS[:2]]
    assert evaluator.stationary
    second, rows = answers(evaluator, SMALL, PRUNED)
    assert len({*first, second}) == 2
    assert not evaluator.stationary
    assert folders.trained == [
        "training the supernet: 2 epochs",
        "training the supernet of stage 2: 2 epochs",
    ]
    resumed = folders.evaluator(*settings, run="other")
    resumed.prepare(SPACE, POPULATIONS[0])
    assert answers(resumed, SMALL, PRUNED) == (second, rows)
    assert folders.trained == []


def test_a_stage_starts_with_former_weights_and_a_new_optimiser(folders: Folders) -> None:
    evaluator = folders.evaluator("training.lr=1e-12", "training.lr_min=0", "training.sampling=random_alpha")
    evaluator.prepare(SPACE, [])
    before = parameters(evaluator)
    evaluator.prepare(PRUNED, [])
    after = parameters(evaluator)  # trained on with a learning rate of nothing
    assert set(after) < set(before)
    assert all(torch.allclose(after[name], before[name], rtol=0, atol=1e-9) for name in after)
    anew = folders.evaluator(
        "training.lr=1e-12", "training.lr_min=0", "training.sampling=random_alpha", "inherit=false"
    )
    anew.prepare(SPACE, [])
    anew.prepare(PRUNED, [])
    assert not torch.allclose(parameters(anew)["classifier.weight"], before["classifier.weight"], atol=1e-3)


def test_versions_name_all_that_answers_depend_on(folders: Folders) -> None:
    def version(
        *overrides: str, dataset: Any = None, population: Any = POPULATIONS[0], space: Any = SPACE
    ) -> str:
        return folders.evaluator(*overrides, dataset=dataset, space=space).prepare(space, population)

    changes = [
        *(
            "channels=3",
            "num_cells=2",
            "affine=true",
            "track_running_stats=false",
            "warmup_epochs=3",
            "seed=1",
        ),
        *("training.lr=0.05", "training.batch_size=64", "training.sampling=random_alpha", "cutout=2"),
        *("training.schedule=complexity", "training.importance=images", "training.importance=both"),
        "training.ranking_weight=2",
        *(
            "decoding=soft",
            "num_valid=10",
            "valid_batch_size=100",
            "valid_transform=train",
            "eval_mode=running",
        ),
    ]
    versions = [version(), *map(version, changes), version(dataset=digits(crop=2))]
    versions += [version(dataset=digits(valid_fraction=0.4)), version(space=PRUNED)]
    assert len(set(versions)) == len(versions)
    assert version(population=POPULATIONS[1]) == version() == versions[0]
    assert version("planned_generations=9") == version("inherit=true") == versions[0]
    assert version("training.power=2") == versions[0]  # of a schedule that is off
    assert version("training.power=2", "training.schedule=complexity") not in versions
    assert version("training.ranking_margin=1") == version("scores.seed=1") == versions[0]
    changes = ["training.ranking_margin=1", "scores.seed=1", "scores.num_networks=9", "scores.scores=[flops]"]
    assert len({*versions, *(version("training.ranking_weight=2", change) for change in changes)}) == (
        len(versions) + len(changes)
    )
    every = [version(*EVERY_GENERATION, *more) for more in ([], ["planned_generations=9"], ["decoding=soft"])]
    assert len({*every, version(*EVERY_GENERATION, population=POPULATIONS[1])}) == 4


def test_networks_are_compared_by_their_zero_cost_scores(folders: Folders) -> None:
    """By the parameters of live operations here, of the same different cells in every process."""
    evaluator = folders.evaluator(*RANKING)
    cells, scores = evaluator._scored(SPACE)
    assert len(set(cells)) == 6
    assert SPACE.is_connected(cells).all()
    assert cells == folders.evaluator(*RANKING)._scored(SPACE)[0]
    live = [tuple(row) for row in SPACE.live(cells).tolist()]
    params = SPACE.static_metrics(live)["params"]
    for score, mine in zip(scores, params, strict=True):  # ln of the mean rank of equal ones, of 6
        rank = (params < mine).sum() + ((params == mine).sum() + 1) / 2
        assert score == pytest.approx(np.log(rank / 6))
    pruned = SPACE.restrict([(1, 3), *[(3,)] * 5])
    assert sorted(evaluator._scored(pruned)[0]) == [(1, *[3] * 5), (3,) * 6]
    with pytest.raises(ValueError, match="two networks of nasbench201 that lead from input to output"):
        evaluator._scored(SPACE.restrict([(0,)] * 6))


def test_how_answers_are_judged_does_not_train_again(folders: Folders) -> None:
    folders.evaluator().prepare(SPACE, [])
    for change in ("decoding=soft", "num_valid=50", "valid_transform=train", "eval_mode=running"):
        answers(folders.evaluator(change), POPULATIONS[0])
        assert folders.trained == []


def test_single_architectures_and_running_statistics(folders: Folders) -> None:
    folders.evaluator("eval_mode=running")
    assert "running statistics of a supernet are of little use" in folders.said[0]
    folders.evaluator("eval_mode=running", "training.sampling=random_alpha", "decoding=soft")
    assert folders.said == []


def test_foreign_checkpoints_are_refused(folders: Folders) -> None:
    evaluator = folders.evaluator(*EVERY_GENERATION)
    answers(evaluator, POPULATIONS[0])
    path = folders.path / "run" / "supernet" / "checkpoint.pt"

    def refused(evaluator: Supernet, message: str, space: Any = SPACE) -> None:
        evaluator.prepare(space, POPULATIONS[0])
        with pytest.raises(ValueError, match=message) as error:
            evaluator.evaluate(POPULATIONS[0])
        assert "\n" not in str(error.value)

    refused(
        folders.evaluator(*EVERY_GENERATION, "channels=3"),
        r"checkpoint.pt is the checkpoint of space nasbench201 2x1, images \[1, 8, 8\], classes 10, not of "
        r"space nasbench201 3x1, images \[1, 8, 8\], classes 10",
    )
    wider = NasBench201(image_shape=(1, 8, 8), num_classes=11)
    refused(folders.evaluator(*EVERY_GENERATION, space=wider), "not of .* classes 11", wider)
    refused(
        folders.evaluator(*EVERY_GENERATION, "training.lr=0.01"),
        "checkpoint.pt was trained with other settings or images",
    )
    assert path.is_file()


def test_true_accuracies_are_for_reports(folders: Folders, table_path: Path) -> None:
    evaluator = folders.evaluator("lookup.path=nasbench201.npz")
    best = SPACE.from_str(
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
    )
    (row,) = evaluator.report([best])
    assert row == pytest.approx({"table_val_acc": 0.9161, "test_acc": 0.9437}, abs=0.005)
    assert set(answers(evaluator, [best])[1][0]) == {"val_acc"}
    assert folders.evaluator().report([best]) == [{}]
    with pytest.raises(ValueError, match="has no accuracies of mnist, but of cifar10"):
        folders.evaluator("lookup.path=nasbench201.npz", "lookup.val_column=mnist_valid_200")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["warmup_epochs=0"], "evaluator.warmup_epochs and epochs_per_generation are both 0"),
        (["training.sampling=population"], "sampling=population trains on populations: it needs"),
        ([*EVERY_GENERATION, "warmup_epochs=1"], "sampling=population trains on populations: it needs"),
        (["decoding=medium"], "evaluator.decoding must be one of soft, hard, none, not 'medium'"),
        (["eval_mode=x"], "evaluator.eval_mode must be one of running, batch, not 'x'"),
        (["valid_transform=x"], "valid_transform must be one of test, train, not 'x'"),
        (["affine=1"], "evaluator.affine must be true or false, not 1"),
        (["warmup_epochs=-1"], "warmup_epochs must be a whole number of at least 0, not -1"),
        (["cutout=-1"], "cutout must be a whole number"),
        (["valid_batch_size=1"], "valid_batch_size must be a whole number of at least 2"),
        (["channels=0"], "evaluator.channels must be a whole number of at least 1"),
        (["training.lr=-1"], "evaluator.training.lr must be a number above 0"),
        (["training.devices=0"], "evaluator.training.devices must be a whole number of at least 1, not 0"),
        (["training.strategy=ddp"], "strategy must be one of auto, ddp_fork, ddp_spawn, not 'ddp'"),
        (["training.ranking_weight=1", "scores=null"], "scores must be RankingScores for .*, not None"),
        (
            ["training.ranking_weight=1", "scores.scores=[x]"],
            "evaluator.scores.scores: 'x' is unknown; known",
        ),
        (["scores.num_networks=1"], "num_networks must be a whole number of at least 2, not 1"),
        (["training.sampling=x"], "evaluator.training.sampling must be one of random_alpha"),
    ],
)
def test_settings_are_checked(folders: Folders, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        folders.evaluator(*overrides)


def test_spaces_and_images_are_needed(folders: Folders) -> None:
    with pytest.raises(ValueError, match="the toy space has no supernet"):
        folders.evaluator(space=Toy())
    with pytest.raises(ValueError, match=r"training\.schedule=complexity needs .*: nasbench201, not darts"):
        folders.evaluator("training.schedule=complexity", space=Darts(4, 5))
    with pytest.raises(ValueError, match=r"training\.importance=both needs .*: nasbench201, not darts"):
        folders.evaluator("training.importance=both", space=Darts(2, 3, image_shape=(1, 8, 8))).prepare(
            Darts(2, 3, image_shape=(1, 8, 8)), []
        )
    with pytest.raises(ValueError, match="evaluator=supernet needs images; choose a dataset"):
        folders.evaluator(dataset=NoImages("none"))
    evaluator = folders.evaluator("num_valid=720", "warmup_epochs=1")
    evaluator.prepare(SPACE, [])
    with pytest.raises(ValueError, match=r"evaluator\.num_valid 720 is more than the 719 validation images"):
        evaluator.evaluate(POPULATIONS[0])
    with pytest.raises(ValueError, match=r"training\.batch_size=720 is more than the 719 training images"):
        folders.evaluator("training.batch_size=720").prepare(SPACE, [])


def test_the_widths_of_the_space_where_none_are_given(folders: Folders) -> None:
    evaluator = folders.evaluator("channels=null", "num_cells=null", space=NasBench201(3, 2))
    assert (evaluator.channels, evaluator.num_cells) == (3, 2)
    assert folders.evaluator("num_cells=fewest").num_cells == 1
    assert folders.evaluator("num_cells=fewest", space=Darts(4, 5)).num_cells == 3


def test_too_little_memory_is_one_line(folders: Folders) -> None:
    """A network that no machine has the memory for; torch raises its own kind of error."""
    with pytest.raises(
        ValueError, match=r"ran out of memory in training; a smaller .*evaluator.channels \(900000\)"
    ):
        folders.evaluator("channels=900000").prepare(SPACE, [])


def test_copies_for_workers_evaluate_and_do_no_more(folders: Folders) -> None:
    """No training images, no momenta, no files; the answers are those of the evaluator itself."""
    evaluator = folders.evaluator(*EVERY_GENERATION, "valid_transform=train")
    evaluator.prepare(SPACE, POPULATIONS[0])
    parts = evaluator.for_workers(SPACE.sample(np.random.default_rng(0), 12))
    assert [len(part) for part in parts] == [5, 5, 2]
    files = {path: path.stat().st_mtime_ns for path in folders.path.rglob("*") if path.is_file()}
    folders.said.clear()
    copied = packed(evaluator, {"announce": evaluator._announce})
    weights = sum(tensor.numel() * tensor.element_size() for tensor in states(evaluator).values())
    x, _ = digits().split("valid")
    assert weights + 4 * x.numel() < len(copied) < weights + 4 * x.numel() + 200_000
    other = Unpickler(copied, []).load()
    assert other.evaluate(POPULATIONS[0]) == evaluator.evaluate(POPULATIONS[0])
    assert files == {path: path.stat().st_mtime_ns for path in folders.path.rglob("*") if path.is_file()}
    evaluator.prepare(SPACE, POPULATIONS[1])  # which can still train
    evaluator.evaluate(POPULATIONS[1])


@pytest.mark.parametrize(
    ("settings", "trained", "judged"),
    [
        (["training.sampling=population", "decoding=soft"], "decoded", "decoded"),
        (["training.sampling=population_alpha", "decoding=soft"], "as they are", "decoded"),  # EvNAS-NDT
        (["training.sampling=population", "decoding=none"], "decoded", "as they are"),  # EvNAS-NDF
        (["training.sampling=population_alpha", "decoding=none"], "as they are", "as they are"),  # EvNAS-ND
    ],
    ids=["EvNAS", "NDT", "NDF", "ND"],
)
def test_ablations_of_decoding(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, settings: list[str], trained: str, judged: str
) -> None:
    """Rows that differ by log 4 weigh 4 to 1 as they are, and e to 1 once decoded."""
    seen: dict[str, list[Any]] = {"trained": [], "judged": []}
    forward, compiled = NasBench201Supernet.forward, NasBench201Supernet.compiled

    def watched(self: Any, x: torch.Tensor, weights: Any) -> torch.Tensor:
        seen["trained"].append(weights)
        return forward(self, x, weights)

    def noted(self: Any, weights: Any, **how: Any) -> Any:
        seen["judged"].append(weights)
        return compiled(self, weights, **how)

    monkeypatch.setattr(NasBench201Supernet, "forward", watched)
    monkeypatch.setattr(NasBench201Supernet, "compiled", noted)
    alphas = np.zeros((2, 6, 5))
    alphas[0, :, 3] = alphas[1, :, 1] = np.log(4)
    evaluator = folders.evaluator(*EVERY_GENERATION[:2], *settings)
    population = SPACE.decode(alphas)
    assert population == [(3,) * 6, (1,) * 6]
    evaluator.prepare(SPACE, [])
    evaluator.see(alphas)
    evaluator.prepare(SPACE, population)
    evaluator.evaluate(population)
    weight = {"decoded": np.e / (np.e + 4), "as they are": 4 / (4 + 4)}
    for which, how in (("trained", trained), ("judged", judged)):
        assert seen[which][0][:, 3] == pytest.approx(np.full(6, weight[how]))
        assert seen[which][1][:, 1] == pytest.approx(np.full(6, weight[how]))


def test_undecoded_alphas_are_part_of_the_version(folders: Folders) -> None:
    """The same architectures of other alphas are judged anew, and a resumed run gets the same versions."""
    settings = [*EVERY_GENERATION[:2], "training.sampling=population_alpha", "decoding=none"]
    alphas = np.random.default_rng(0).random((4, 6, 5))
    population = SPACE.decode(alphas)

    def version(scale: float, *more: str) -> str:
        evaluator = folders.evaluator(*settings, *more)
        evaluator.see(scale * alphas)
        return evaluator.prepare(SPACE, population)

    assert version(1) == version(1) != version(2)
    assert version(1, "training.sampling=population") != version(2, "training.sampling=population")
    evaluator = folders.evaluator(*settings)
    evaluator.see(alphas)
    evaluator.prepare(SPACE, population)
    assert not evaluator.stationary
    rows = evaluator.evaluate(population)
    assert [evaluator.evaluate([genotype])[0] for genotype in population] == rows


@pytest.mark.parametrize("setting", ["decoding=none", "training.sampling=population_alpha"])
def test_undecoded_alphas_need_a_strategy_that_has_them(folders: Folders, setting: str) -> None:
    evaluator = folders.evaluator(*EVERY_GENERATION, setting)
    evaluator.see(None)
    with pytest.raises(ValueError, match=f"evaluator.{setting} needs alphas, which only strategy=evnas"):
        evaluator.prepare(SPACE, POPULATIONS[0])
