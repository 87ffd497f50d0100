"""What every strategy promises, for every yaml in conf/strategy: adding a yaml covers a new strategy."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from hwnas.build import build, conf_folder
from hwnas.core import Genotype, Hints, Limit, Objective, SearchSpace, Strategy, Trial
from hwnas.searches.indicators import Hypervolume
from hwnas.spaces.held import held
from hwnas.spaces.toy import Toy, ToyCost

OBJECTIVES = (Objective("val_acc", "max"), Objective("latency_ms", "min"))
# What cascade observes depends on the rung that it asks: test_cascade has its promises.
YAMLS = sorted(path for path in (conf_folder() / "strategy").glob("*.yaml") if path.stem != "cascade")
GENERATIONS = 6
BUDGET = 30  # generations that a strategy is told the run has; no test below goes as far

Answer = Callable[[Sequence[Genotype]], list[dict[str, float]]]


@pytest.fixture(params=YAMLS, ids=lambda path: path.stem)
def yaml(request: pytest.FixtureRequest) -> Path:
    return request.param


def create(
    yaml: Path, seed: int = 0, space: SearchSpace | None = None, limits: tuple[Limit, ...] = ()
) -> Strategy:
    return build(
        OmegaConf.load(yaml),
        space=space or Toy(),
        objectives=OBJECTIVES,
        limits=limits,
        seed=seed,
        generations=BUDGET,
        device=ToyCost(space or Toy(), metric=OBJECTIVES[1].metric),
    )


def toy_answer(space: SearchSpace) -> Answer:
    quality, latency = (ToyCost(space, metric=o.metric) for o in OBJECTIVES)
    return lambda genotypes: [
        q | c for q, c in zip(quality.evaluate(genotypes), latency.evaluate(genotypes), strict=True)
    ]


def step(strategy: Strategy, generation: int, answer: Answer | None = None) -> list[Trial]:
    population = strategy.ask()
    answer = answer or toy_answer(strategy.space)
    trials = [Trial(g, m, generation) for g, m in zip(population, answer(population), strict=True)]
    strategy.tell(trials)
    return trials


def run(
    strategy: Strategy, generations: int = GENERATIONS, answer: Answer | None = None
) -> list[list[Trial]]:
    answer = answer or toy_answer(strategy.space)
    return [step(strategy, generation, answer) for generation in range(generations)]


def test_there_are_cases() -> None:
    assert {"random", "regularized_evolution", "mo_hdnas"} <= {path.stem for path in YAMLS}


@pytest.mark.parametrize(
    "space",
    [
        Toy(),
        Toy(7, 3),
        Toy(6, 5, choices=[(0,), (1, 3), (4,), (0, 1, 2, 3, 4), (2, 4), (1, 2, 3)]),
        held(Toy(), Toy().sample(np.random.default_rng(0), 60)),
    ],
    ids=["toy", "small", "restricted", "replayed"],
)
def test_asks_are_legal_and_of_stable_length(yaml: Path, space: SearchSpace) -> None:
    strategy = create(yaml, space=space)
    assert strategy.space is space
    assert strategy.objectives == OBJECTIVES
    populations = [[t.genotype for t in trials] for trials in run(strategy)]
    for population in populations:
        assert all(
            isinstance(genotype, tuple) and space.check(genotype) == genotype for genotype in population
        )
        assert all(type(op) is int for genotype in population for op in genotype)
    assert len({len(population) for population in populations[1:]}) == 1  # CMANAS adds its mean from then on
    assert len(populations[0]) > 1


def test_a_space_of_one_architecture(yaml: Path) -> None:
    space = Toy(3, 5, choices=[(1,), (0,), (4,)])
    strategy = create(yaml, space=space)
    assert {t.genotype for trials in run(strategy, 3) for t in trials} == {(1, 0, 4)}
    assert [t.genotype for t in strategy.result()] == [(1, 0, 4)]


def test_same_seed_same_run_other_seed_another(yaml: Path) -> None:
    first, again, other = (create(yaml, seed) for seed in (7, 7, 8))
    assert run(first) == run(again)
    assert first.result() == again.result()
    assert [t.genotype for t in run(create(yaml, 7))[0]] != [t.genotype for t in run(other)[0]]


@pytest.mark.parametrize("told", [1, 3, GENERATIONS])
def test_replay_of_a_part_and_the_rest_equal_the_whole(yaml: Path, told: int) -> None:
    whole = create(yaml)
    trials = run(whole)
    resumed = create(yaml)
    for generation in range(told):  # the journal is told, nothing is evaluated
        assert resumed.ask() == [t.genotype for t in trials[generation]]
        resumed.tell(trials[generation])
    rest = [step(resumed, generation) for generation in range(told, GENERATIONS)]
    assert rest == trials[told:]
    assert resumed.result() == whole.result()
    assert resumed.ask() == whole.ask()


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("generation", [0, 2])
def test_tell_refuses_another_number_of_trials(yaml: Path, generation: int, change: int) -> None:
    strategy = create(yaml)
    run(strategy, generation)
    population = strategy.ask()
    answers = toy_answer(strategy.space)(population)
    trials = [Trial(g, m, generation) for g, m in zip(population, answers, strict=True)]
    wrong = trials[:-1] if change < 0 else [*trials, trials[0]]
    with pytest.raises(ValueError, match=f"{len(trials)} trials of the last ask, not {len(wrong)}"):
        strategy.tell(wrong)
    strategy.tell(trials)  # the right ones are still welcome


def test_tell_before_ask_is_refused(yaml: Path) -> None:
    with pytest.raises(ValueError, match="0 trials of the last ask, not 1"):
        create(yaml).tell([Trial((0,) * 16, {"val_acc": 0.5, "latency_ms": 1.0}, 0)])


def test_missing_metric_is_named(yaml: Path) -> None:
    strategy = create(yaml)
    trials = [Trial(g, {"latency_ms": 1.0}, 0) for g in strategy.ask()]

    def tell_and_look() -> None:
        strategy.tell(trials)
        strategy.result()

    with pytest.raises(ValueError, match="no evaluator reports 'val_acc'"):
        tell_and_look()


def test_result_holds_different_told_trials(yaml: Path) -> None:
    strategy = create(yaml)
    told = [trial for trials in run(strategy) for trial in trials]
    result = strategy.result()
    assert result
    assert all(trial in told for trial in result)
    assert len({trial.genotype for trial in result}) == len(result)


def test_result_before_anything_was_told_is_empty(yaml: Path) -> None:
    strategy = create(yaml)
    assert strategy.result() == []
    strategy.ask()
    assert strategy.result() == []


def test_global_random_state_is_neither_used_nor_touched(yaml: Path) -> None:
    expected = run(create(yaml))
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    before = np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    strategy = create(yaml)
    trials = [step(strategy, 0), step(strategy, 1)]
    after = np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    assert str(before) == str(after)
    for generation in range(2, GENERATIONS):
        np.random.seed(generation)  # noqa: NPY002
        random.seed(generation)
        np.random.rand(generation)  # noqa: NPY002
        trials.append(step(strategy, generation))
        random.random()
    assert trials == expected


def test_strategies_in_one_process_do_not_interfere(yaml: Path) -> None:
    expected = run(create(yaml, 1)), run(create(yaml, 2))
    first, second = create(yaml, 1), create(yaml, 2)
    interleaved = [(step(first, g), step(second, g)) for g in range(GENERATIONS)]
    assert ([a for a, _ in interleaved], [b for _, b in interleaved]) == expected


def test_told_trials_are_not_changed(yaml: Path) -> None:
    strategy = create(yaml)
    population = strategy.ask()
    asked = list(population)
    metrics = toy_answer(strategy.space)(population)
    trials = [Trial(g, dict(m), 0) for g, m in zip(population, metrics, strict=True)]
    strategy.tell(trials)
    strategy.ask()
    assert population == asked
    assert trials == [Trial(g, m, 0) for g, m in zip(asked, metrics, strict=True)]


def test_unsupported_networks_are_survived_and_avoided(yaml: Path) -> None:
    space = Toy()
    plain = toy_answer(space)

    def answer(genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """The device cannot run operation 0 on edge 0, nor 1 on edge 1: 36 % of the space."""
        return [
            {**m, "latency_ms": math.inf} if g[0] == 0 or g[1] == 1 else m
            for g, m in zip(genotypes, plain(genotypes), strict=True)
        ]

    strategy = create(yaml, space=space)
    trials = run(strategy, 8, answer)
    assert any(math.isinf(t.metrics["latency_ms"]) for t in trials[0])
    result = strategy.result()
    assert result
    assert all(math.isfinite(t.metrics["latency_ms"]) for t in result)


def test_nothing_supported_at_all(yaml: Path) -> None:
    strategy = create(yaml)
    run(strategy, 3, lambda genotypes: [{"val_acc": 0.5, "latency_ms": math.inf}] * len(genotypes))
    assert all(math.isinf(t.metrics["latency_ms"]) for t in strategy.result())
    step(strategy, 3)  # the first supported networks turn up


def looks_at_the_cost(yaml: Path) -> bool:
    """Whether the second objective has a say in what is asked for."""
    asked = []
    for sign in (1.0, -1.0):
        strategy = create(yaml)
        plain = toy_answer(strategy.space)

        def answer(
            genotypes: Sequence[Genotype], sign: float = sign, plain: Answer = plain
        ) -> list[dict[str, float]]:
            return [
                {**metrics, "latency_ms": 20 + sign * metrics["latency_ms"]} for metrics in plain(genotypes)
            ]

        asked.append([t.genotype for trials in run(strategy, GENERATIONS, answer) for t in trials])
    return asked[0] != asked[1]


def score(yaml: Path, seed: int, single: bool) -> float:
    """Best val_acc, or hypervolume in units of one fixed box, after 400 evaluations."""
    strategy = create(yaml, seed)
    told: list[Trial] = []
    while len(told) < 400 and not strategy.done:
        told += step(strategy, len(told))
    if single:
        return max(trial.metrics["val_acc"] for trial in told[:400])
    hypervolume = Hypervolume(OBJECTIVES)
    hypervolume.add([Trial((-1,), {"val_acc": 0.0, "latency_ms": 10.0}, 0)])  # the reference point
    return hypervolume.add(told[:400])


def test_beats_random_search(yaml: Path) -> None:
    if yaml.stem == "random":
        pytest.skip("random search is what the others are compared with")
    single = not looks_at_the_cost(yaml)
    own = [score(yaml, seed, single) for seed in range(5)]
    by_chance = [score(yaml.with_name("random.yaml"), seed, single) for seed in range(5)]
    assert np.mean(own) > np.mean(by_chance) + 2 * np.std(by_chance), (own, by_chance)


def test_known_networks_come_first_and_are_spread_over_the_costs(yaml: Path) -> None:
    """Hints name 40 networks; without hints a population is what it was, and has hardly one of these."""
    space = Toy()
    networks = space.sample(np.random.default_rng(5), 40)
    quality, latency = (
        [row[o.metric] for row in ToyCost(space, metric=o.metric).evaluate(networks)] for o in OBJECTIVES
    )
    known = dict(zip(networks, quality, strict=True))
    strategy = create(yaml, space=space)
    strategy.hint(Hints({"before": known}, dict(zip(networks, latency, strict=True))))
    population = strategy.ask()
    if yaml.stem == "cmanas":  # whose first population is drawn around the best one
        best = max(known, key=lambda genotype: known[genotype])
        agree, by_chance = (
            np.mean([np.mean(np.equal(genotype, best)) for genotype in some])
            for some in (population, create(yaml, space=space).ask())
        )
        assert agree > by_chance + 0.1
        return
    hinted = [genotype for genotype in population if genotype in known]
    assert len(hinted) == min(len(population), 40)
    costly = sorted(latency)
    cost = ToyCost(space, metric="latency_ms").evaluate(hinted[: len(population)])
    assert min(row["latency_ms"] for row in cost) <= costly[39 // len(population) + 1]
    assert not set(create(yaml, space=space).ask()) & known.keys()
    trials = [Trial(g, m, 0) for g, m in zip(population, toy_answer(space)(population), strict=True)]
    strategy.tell(trials)
    assert set(strategy.ask()) - known.keys()


def test_survivors_were_told_and_are_as_many_as_the_population(yaml: Path) -> None:
    """Of the strategies whose population is not the one that they asked for last."""
    strategy = create(yaml)
    assert strategy.survivors() == []
    told = {trial for trials in run(strategy) for trial in map(str, trials)}
    survivors = strategy.survivors()
    assert set(map(str, survivors)) <= told
    assert len(survivors) == (20 if yaml.stem in ("mo_hdnas", "nevonas", "regularized_evolution") else 0)
