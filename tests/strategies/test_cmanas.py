from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hwnas.core import Genotype, Objective, SearchSpace, Trial
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy
from hwnas.strategies.cma_es import CMAES
from hwnas.strategies.cmanas import CMANAS

OBJECTIVES = (Objective("val_acc", "max"), Objective("latency_ms", "min"))


def create(space: SearchSpace | None = None, generations: int = 5, **settings: Any) -> CMANAS:
    defaults = {"population_size": None, "sigma": 1.3, "engine": "published"}
    return CMANAS(space or Toy(4, 3), OBJECTIVES, 0, generations, **{**defaults, **settings})


def quality(genotype: Genotype) -> float:
    return sum(genotype) / 8


def step(strategy: CMANAS, generation: int = 0, score: Callable[[Genotype], float] = quality) -> list[Trial]:
    trials = [Trial(g, {"val_acc": score(g), "latency_ms": 1.0}, generation) for g in strategy.ask()]
    strategy.tell(trials)
    return trials


@pytest.mark.parametrize(
    ("space", "num", "settings"),
    [(NasBench201(), 14, {}), (Toy(28, 8), 20, {}), (Toy(28, 8), 7, {"population_size": 7})],
    ids=["n=30", "n=224", "given"],
)
def test_samples_per_generation(space: SearchSpace, num: int, settings: dict[str, int]) -> None:
    strategy = create(space, **settings)
    assert strategy.population_size == num
    assert len(strategy.ask()) == num


def test_the_mean_comes_first_and_the_last_generation_is_the_mean_alone() -> None:
    strategy = create(generations=4)
    sizes, done = [], []
    for generation in range(4):
        mean = strategy._cma_es.mean
        trials = step(strategy, generation)
        if generation > 0:
            assert [trials[0].genotype] == strategy.space.decode(mean.reshape(1, 4, 3))
        sizes.append(len(trials))
        done.append(strategy.done)
    assert sizes == [11, 12, 12, 1]  # lambda = 4 + floor(3 ln 12) = 11
    assert done == [False, False, False, True]


def test_only_the_samples_are_told_to_cma_es_and_it_maximises() -> None:
    """The strategy is CMA-ES on minus the quality, whatever the means score."""
    strategy, plain = create(generations=9), CMAES(np.zeros(12), 1.3, np.random.default_rng(0))
    for generation in range(8):
        population = strategy.ask()
        samples = strategy.space.decode(plain.ask().reshape(-1, 4, 3))
        assert population[-11:] == samples
        plain.tell(np.array([-quality(g) for g in samples]))
        trials = [Trial(g, {"val_acc": quality(g), "latency_ms": 1.0}, generation) for g in population]
        if generation > 0:
            trials[0] = Trial(
                population[0], {"val_acc": 1e6 * (-1) ** generation, "latency_ms": 1.0}, generation
            )
        strategy.tell(trials)
        assert strategy._cma_es.mean.tolist() == plain.mean.tolist()
    assert strategy.result() == [trials[0]]


def test_the_result_is_the_final_mean_not_the_best() -> None:
    strategy = create(generations=4)
    told = step(strategy, 0, lambda genotype: 2.0 + quality(genotype))
    told += [trial for generation in range(1, 4) for trial in step(strategy, generation)]
    assert strategy.result() == [told[-1]]
    assert told[-1].metrics["val_acc"] < max(t.metrics["val_acc"] for t in told)


def test_before_a_mean_was_evaluated_there_is_no_result() -> None:
    strategy = create()
    step(strategy)
    assert strategy.result() == []


@pytest.mark.parametrize("engine", ["published", "pycma"])
def test_finds_the_optimum(engine: str) -> None:
    before = np.random.get_state()[2]  # noqa: NPY002 - the global generator that the package uses by default
    strategy = create(generations=41, engine=engine)
    for generation in range(41):
        step(strategy, generation)
    assert [t.genotype for t in strategy.result()] == [(2, 2, 2, 2)]
    assert np.random.get_state()[2] == before  # noqa: NPY002


@pytest.mark.parametrize("engine", ["published", "pycma"])
def test_unsupported_networks_are_the_worst(engine: str) -> None:
    """Whatever has operation 2 on the first edge is not supported; the mean moves away from it."""
    strategy = create(generations=31, engine=engine)
    for generation in range(31):
        step(strategy, generation, lambda g: math.inf if g[0] == 2 else quality(g))
    assert [t.genotype for t in strategy.result()] == [(1, 2, 2, 2)]


@pytest.mark.parametrize("engine", ["published", "pycma"])
def test_replay_over_the_last_generation(engine: str) -> None:
    whole = create(generations=5, engine=engine)
    trials = [step(whole, generation) for generation in range(5)]
    again = create(generations=5, engine=engine)
    for told in trials:
        assert again.ask() == [t.genotype for t in told]
        again.tell(told)
    assert again.done
    assert again.result() == whole.result()


def test_a_minimised_objective() -> None:
    settings = {"population_size": None, "sigma": 1.3, "engine": "published"}
    strategy = CMANAS(Toy(4, 3), (Objective("loss", "min"),), 0, 41, **settings)  # type: ignore[arg-type]
    for generation in range(41):
        strategy.tell([Trial(g, {"loss": quality(g)}, generation) for g in strategy.ask()])
    assert [t.genotype for t in strategy.result()] == [(0, 0, 0, 0)]


@pytest.mark.parametrize(
    ("generations", "settings", "message"),
    [
        (1, {}, "generations must be at least 2 for CMANAS, the last evaluates the mean, not 1"),
        (5, {"population_size": 3}, "population_size must be a whole number of at least 4 or null, not 3"),
        (5, {"engine": "cmaes"}, "engine must be one of published, pycma, not 'cmaes'"),
        (5, {"sigma": 0}, "sigma must be a number above 0, not 0"),
        (5, {"sigma": math.nan}, "sigma must be a number above 0, not nan"),
    ],
)
def test_settings_are_checked(generations: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        create(generations=generations, **settings)
