"""Searches among networks that were evaluated before, with the answers that are there."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from hwnas import LocalSearch, NoImages, Problem, RandomSearch, Run, compose, read_run, search
from hwnas.build import build, conf_folder
from hwnas.core import Genotype, Objective, SearchSpace, Strategy, Trial, front
from hwnas.runs.result import Replays
from hwnas.searches.loop import search as loop
from hwnas.searches.replay import Held, Replay, _rung, hold
from hwnas.spaces.darts import Darts
from hwnas.spaces.held import held
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy, ToyCost
from hwnas.store.archive import Archive

YAMLS = sorted(path for path in (conf_folder() / "strategy").glob("*.yaml") if path.stem != "cascade")


class Asks(Strategy):
    """Asks for what it is given, and returns the front."""

    def __init__(self, space: SearchSpace, objectives: Any, *, networks: Sequence[Genotype]) -> None:
        self.space, self.objectives, self._networks = space, objectives, networks
        self.seen: list[Trial] = []

    def ask(self) -> list[Genotype]:
        return list(self._networks)

    def tell(self, trials: Sequence[Trial]) -> None:
        self.seen += trials

    def result(self) -> list[Trial]:
        return front(self.seen, self.objectives)


def test_what_draws_networks_draws_held_ones() -> None:
    space = held(Toy(2, 3), [(2, 2), (0, 1), (0, 0)])
    assert (space.size, space.all(), space.choices) == (3, [(0, 0), (0, 1), (2, 2)], ((0, 2), (0, 1, 2)))
    probable = [
        [[0.1, 0.1, 0.8], [0.5, 0.4, 0.1]],  # (2, 0) is not held; (2, 2) has .08, (0, 0) .05, (0, 1) .04
        [[0.6, 0.1, 0.3], [0.1, 0.4, 0.5]],  # nor is (0, 2); (0, 1) has .24, (2, 2) .15, (0, 0) .06
        [[0.6, 0.1, 0.3], [0.5, 0.4, 0.1]],  # (0, 0) is
    ]
    assert space.decode(np.log(probable)) == [(2, 2), (0, 1), (0, 0)]
    rng = np.random.default_rng(0)
    assert set(space.sample(rng, 30)) == {(0, 0), (0, 1), (2, 2)}
    assert {space.mutate((0, 0), rng) for _ in range(30)} == {(0, 1), (2, 2)}
    assert space.neighbours((0, 0)) == [(0, 1), (2, 2)]
    with pytest.raises(ValueError, match="ac is none of the 3 networks that are replayed; replay_missing="):
        space.check((0, 2))
    assert held(Toy(2, 3), [(2, 2)], others=True).check((0, 2)) == (0, 2)
    assert isinstance(space, Toy)  # and can do what the space can
    assert pickle.loads(pickle.dumps(space)).all() == space.all()


@pytest.mark.parametrize("space", [NasBench201(), Darts()], ids=lambda space: space.name)
def test_near_networks_and_stages(space: SearchSpace) -> None:
    """Being near is mutual, at least five networks are; a smaller space has the networks that fit best."""
    some = held(space, space.sample(np.random.default_rng(0), 80))
    near = {one: set(some.neighbours(one)) for one in some.all()}
    assert all(len(others) >= 5 and one not in others for one, others in near.items())
    assert all(one in near[other] for one, others in near.items() for other in others)
    kept = some.restrict([(0, 1, 3)] * len(space.choices)).all()

    def fit(genotype: Genotype) -> int:
        return sum(op in (1, 3) or (op == 0 and space.name != "darts") for op in genotype)  # 0: no edge

    assert len(kept) >= 5
    assert min(map(fit, kept)) == sorted(map(fit, some.all()))[-5]


def test_with_all_networks_held_the_space_is_as_before() -> None:
    whole = NasBench201()
    space = held(whole, whole.all())
    alphas = np.random.default_rng(0).standard_normal((50, 6, 5))
    assert space.decode(alphas) == whole.decode(alphas)
    for seed, genotype in enumerate(whole.sample(np.random.default_rng(1), 20)):
        one, other = np.random.default_rng(seed), np.random.default_rng(seed)
        assert space.mutate(genotype, one) == whole.mutate(genotype, other)


def stated(space: Toy | None = None, **parts: Any) -> Problem:
    return Problem(
        **{
            "space": space or Toy(6),
            "dataset": NoImages("none"),
            "evaluator": partial(ToyCost, metric="val_acc"),
            "device": partial(ToyCost, metric="latency_ms"),
            "strategy": partial(RandomSearch, population_size=10),
            "generations": 6,
            "names": {"search_space": "toy", "dataset": "none", "evaluator": "toy", "device": "toy"},
            **parts,
        }
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 evaluations over a toy space of 15,625 networks."""
    folder = tmp_path_factory.mktemp("replay")
    return search(stated(), folder / "run", store=folder / "store", show=False).folder


def replayed(source: Path, strategy: Any, name: str, **settings: Any) -> Run:
    problem = stated(strategy=strategy, replay=Replay([str(source)], **settings))
    return search(problem, source.parent / name, store=source.parent / "store", show=False)


def test_a_run_is_replayed_and_resumed(source: Path) -> None:
    """Only its networks are asked for, with its answers; files and page say so."""
    known = {trial.genotype: dict(trial.metrics) for trial in read_run(source).trials}
    strategy = partial(LocalSearch, population_size=10, num_candidates=1)
    run = replayed(source, strategy, "local")
    assert {trial.genotype: dict(trial.metrics) for trial in run.trials}.items() <= known.items()
    result = run.result
    assert result is not None
    assert result.replay == Replays((str(source),), len(known), 0)
    assert (result.evaluations.new, result.effects) == (0, {})
    assert result.truth is not None
    assert result.truth.best is not None
    assert result.truth.best.metrics == max(known.values(), key=lambda metrics: metrics["val_acc"])
    assert json.loads((run.folder / "result.json").read_text())["replay"]["networks"] == len(known)
    assert f"the space is the {len(known)} networks that were evaluated in {source}" in run.page.read_text()
    assert read_run(run.folder).trials == run.trials

    (run.folder / "result.json").unlink()
    whole = (run.folder / "archive.jsonl").read_bytes()
    (run.folder / "archive.jsonl").write_bytes(whole[: len(whole) // 2])
    again = replayed(source, strategy, "local")
    assert (run.folder / "archive.jsonl").read_bytes() == whole
    assert again.result is not None
    assert again.result.best == result.best


def test_what_is_missing_is_refused_or_evaluated(source: Path) -> None:
    trials = read_run(source).trials
    there = trials[0].genotype
    other = next(g for g in Toy(6).all() if g not in {trial.genotype for trial in trials})

    def asks(space: SearchSpace, objectives: Any) -> Asks:
        return Asks(space, objectives, networks=[there, other, there])

    arch = Toy(6).to_str(other)
    with pytest.raises(ValueError, match=rf"Asks.ask\(\) returned .*: {arch} is none of the \d+ networks"):
        replayed(source, asks, "refused")
    run = replayed(source, asks, "evaluated", missing="evaluate")
    rows = {trial.genotype: trial.metrics for trial in run.trials}
    true: dict[str, float] = {}
    for metric in ("val_acc", "latency_ms"):
        true |= ToyCost(Toy(6), metric=metric).evaluate([other])[0]  # type: ignore[arg-type]
    assert rows == {there: trials[0].metrics, other: true}
    assert run.result is not None
    assert run.result.replay == Replays((str(source),), len({trial.genotype for trial in trials}), 1)
    assert "; 1 that was asked for was not there and evaluated" in run.page.read_text()


def there(*paths: Path, space: SearchSpace | None = None, warn: Any = None, quality: Any = None) -> Held:
    """What is there for a replay of the toy space."""
    space = space or Toy(6)
    costs = [ToyCost(space, metric=metric) for metric in ("val_acc", "latency_ms")]  # type: ignore[arg-type]
    return hold(Replay(list(map(str, paths))), space, "none", quality or costs[0], costs[1], warn)


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
def test_every_strategy_replays_an_archive(source: Path, yaml: Path) -> None:
    """All but the cascade, whose networks have answers at several rungs."""
    found = there(source)
    strategy = build(
        OmegaConf.load(yaml),
        space=found.space,
        objectives=(Objective("val_acc", "max"), Objective("latency_ms", "min")),
        limits=(),
        seed=0,
        generations=30,
        evaluator=found.quality,
        device=found.device,
    )
    archive = Archive()
    loop(strategy, [found.quality, found.device], archive, 4)
    known = {trial.genotype: trial.metrics for trial in read_run(source).trials}
    assert len(archive.trials) >= 20
    assert all(known[trial.genotype] == trial.metrics for trial in archive.trials)
    assert strategy.result()


def test_what_does_not_fit_is_one_line(source: Path, tmp_path: Path) -> None:
    known = {trial.genotype for trial in read_run(source).trials}
    other = next(genotype for genotype in Toy(6).all() if genotype not in known)
    alone = Toy(6, choices=[(op,) for op in other])
    copied = tmp_path / "copied"
    shutil.copytree(source, copied)
    archive, versions = copied / "archive.jsonl", copied / "versions.json"
    whole = archive.read_text()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no search, and no sweep of searches"):
        there(tmp_path / "empty")
    with pytest.raises(ValueError, match="holds toy networks of another size"):
        there(source, space=Toy(5))
    with pytest.raises(ValueError, match="holds networks of toy, not of nasbench201"):
        there(source, space=NasBench201())
    with pytest.raises(
        ValueError, match=r"no network of .* has judged of judge; they have val_acc, latency_ms"
    ):
        there(source, quality=Judge(Toy(6)))
    with pytest.raises(
        ValueError, match=f"of the {len(known)} networks of .* none is in the search space toy"
    ):
        there(source, space=alone)
    archive.write_text("")
    with pytest.raises(ValueError, match="holds no evaluated network yet"):
        there(copied)
    archive.write_text("nothing\n" + whole)
    with pytest.raises(ValueError, match="is corrupt in line 1"):
        there(copied)
    archive.write_text(whole)
    versions.write_text('{"toy_val_acc": "2", "toy_latency_ms": "1-6x5"}')
    with pytest.raises(ValueError, match=r"another version in .*copied \(2\) than in .*run \(1-6x5\)"):
        there(source, copied)
    with pytest.raises(ValueError, match="missing must be one of refuse, evaluate, not 'maybe'"):
        Replay([str(source)], missing="maybe")  # type: ignore[arg-type]


def test_other_answers_are_named_and_the_first_count(source: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(source, copied)
    (copied / "result.json").unlink()  # an unfinished run
    first, *rest = (source / "archive.jsonl").read_text().splitlines(keepends=True)
    changed = json.loads(first)
    before, changed["metrics"]["val_acc"] = changed["metrics"]["val_acc"], 0.125
    (copied / "archive.jsonl").write_text(json.dumps(changed) + "\n" + "".join(rest))
    said: list[str] = []
    held_there = there(source, copied, warn=said.append)
    arch = Toy(6).to_str(tuple(changed["genotype"]))
    assert len(said) == 1
    assert said[0].startswith(f"1 answers of toy_val_acc differ, and the first one counts, e.g. {arch} has ")
    assert held_there.quality.evaluate([tuple(changed["genotype"])]) == [{"val_acc": before}]


def test_words_take_the_run_as_it_was(source: Path, tmp_path: Path) -> None:
    problem = compose(f"replay={source}", "device=flops", "search_space.num_edges=6")
    assert problem.space.num_edges == 6  # type: ignore[union-attr]
    assert problem.evaluator == {"_target_": "hwnas.spaces.toy.ToyCost", "metric": "val_acc"}
    assert problem.device._target_ == "hwnas.devices.flops.Flops"  # type: ignore[union-attr]
    assert problem.recipe.epochs == 0  # type: ignore[union-attr]
    assert problem.replay == Replay([str(source)], costs="device")
    assert compose(f"replay={source}", "device=toy").replay == Replay([str(source)])
    for word, message in (
        ("search_space.num_edges=5", r"search_space.num_edges=5 is search_space.num_edges=6 in .*run, which"),
        ("evaluator=table", r"evaluator=table is evaluator=toy in .*run, which is replayed; leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            compose(f"replay={source}", word)
    copied = tmp_path / "copied"
    shutil.copytree(source, copied)
    content = json.loads((copied / "problem.json").read_text())
    for wrong, message in (
        ({**content, "evaluator": "toy"}, "problem.json is corrupt: evaluator is 'toy'"),
        ({name: value for name, value in content.items() if name != "device"}, "corrupt: it has no device"),
        ({**content, "names": {}}, "its search_space, unknown, is no choice of search_space="),
    ):
        (copied / "problem.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            compose(f"replay={copied}")
    with pytest.raises(ValueError, match="replay=nowhere: nowhere is not a folder"):
        compose("replay=nowhere")


def test_a_store_is_replayed(source: Path, tmp_path: Path) -> None:
    """All that it has of the evaluators as they answer now."""
    store = source.parent / "store" / "evaluations.sqlite"
    known = {trial.genotype: trial.metrics["val_acc"] for trial in read_run(source).trials}
    found = there(store)
    assert known.keys() <= set(found.space.all())
    assert [row["val_acc"] for row in found.quality.evaluate(list(known))] == list(known.values())
    own = ToyCost(Toy(6), metric="latency_ms")  # and not what is there
    quality, replay = ToyCost(Toy(6), metric="val_acc"), Replay([str(source)], costs="device")
    assert hold(replay, Toy(6), "none", quality, own, pytest.fail).device is own
    with pytest.raises(ValueError, match=r"no network of .* has val_acc of toy_val_acc; they have none"):
        there(store, space=Toy(4))


class Judge(ToyCost):
    """A quality that the run does not have."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space, metric="val_acc")
        self.name, self.metrics, self._metric = "judge", {"judged": "max"}, "judged"


def test_trainings_of_a_cascade_are_replayed() -> None:
    """Of an evaluator with rungs the metric is named; its networks are those that have it."""
    space = Toy(2, 3)
    short = Judge(space)
    cascade = ToyCost(space, metric="val_acc")
    cascade.name, cascade.rungs = "cascade", (ToyCost(space, metric="val_acc"), short)
    with pytest.raises(
        ValueError, match=r"replay_metric must name the quality, as .* several: val_acc, judged"
    ):
        _rung(cascade, None)
    with pytest.raises(
        ValueError, match="replay_metric=judge is no metric of evaluator cascade; did you mean"
    ):
        _rung(cascade, "judge")
    assert _rung(cascade, "judged") is short
