from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from hwnas.core import Evaluator, Genotype, Hints, Limit, Objective, SearchSpace, Trial, front, trials_of
from hwnas.devices.flops import Flops
from hwnas.searches.loop import search
from hwnas.spaces.darts import Darts
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.store.archive import Archive
from hwnas.strategies.surrogate import Surrogate

OBJECTIVES = (Objective("share", "max"), Objective("flops", "min"))
CONV = 3
"""Operation of NAS-Bench-201 that the made-up quality counts."""


class Share(Evaluator):
    """The fraction of an operation among the live ones."""

    def __init__(self, space: SearchSpace, metric: str = "share", op: int = CONV) -> None:
        self.name, self.metrics, self.space, self.metric, self.op = metric, {metric: "max"}, space, metric, op

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        return "1"

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        return [{self.metric: x} for x in (self.space.live(genotypes) == self.op).mean(axis=1).tolist()]


class Measured(Flops):
    """Costs that are known of evaluated networks only, as measured ones."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self.exhaustive = False


def create(
    space: SearchSpace | None = None,
    device: type[Flops] = Flops,
    objectives: tuple[Objective, ...] = OBJECTIVES,
    limits: tuple[Limit, ...] = (),
    seed: int = 0,
    population_size: int = 10,
) -> tuple[Surrogate, list[Evaluator]]:
    space = space or NasBench201(image_shape=(3, 8, 8))
    evaluators = [Share(space), device(space)]
    strategy = Surrogate(
        space,
        objectives,
        limits,
        seed,
        evaluators[1],
        population_size=population_size,
        num_candidates=100,
        curiosity=1.0,
    )
    return strategy, evaluators


def run(
    strategy: Surrogate,
    evaluators: Sequence[Evaluator],
    generations: int = 6,
    archive: Archive | None = None,
) -> list[Trial]:
    archive = archive or Archive()
    search(strategy, evaluators, archive, generations)
    return archive.trials


def test_no_form_is_asked_for_twice_and_all_are_connected() -> None:
    strategy, evaluators = create()
    asked = [trial.genotype for trial in run(strategy, evaluators)]
    space = strategy.space
    assert len(asked) == 60
    assert len({tuple(row) for row in space.live(asked).tolist()}) == 60
    assert space.is_connected(asked).all()


def test_few_evaluations_find_the_best_networks() -> None:
    """Six of six operations are the counted one, which 60 random networks hardly ever have."""
    strategy, evaluators = create()
    run(strategy, evaluators)
    assert max(trial.metrics["share"] for trial in strategy.result()) == 1.0
    drawn = strategy.space.sample(np.random.default_rng(0), 60)
    assert (strategy.space.live(drawn) == CONV).mean(axis=1).max() < 1.0
    assert strategy.result() == front(strategy.result(), OBJECTIVES)


def test_limits_on_costs_are_kept_and_aimed_at() -> None:
    bound = 6e6
    strategy, evaluators = create(limits=(Limit("flops", bound),))
    flops = [trial.metrics["flops"] for trial in run(strategy, evaluators)]
    assert max(flops) <= bound
    assert np.quantile(flops, 0.7) > 0.5 * bound


def test_several_qualities() -> None:
    objectives = (OBJECTIVES[0], Objective("ones", "max"), OBJECTIVES[1])
    strategy, evaluators = create(objectives=objectives)
    evaluators.insert(1, Share(strategy.space, "ones", op=2))
    trials = run(strategy, evaluators)
    assert max(trial.metrics["ones"] for trial in trials) > 0.6
    assert max(trial.metrics["share"] for trial in trials) > 0.6


@pytest.mark.parametrize(
    ("space", "device"),
    [
        (NasBench201(image_shape=(3, 8, 8)), Measured),
        (Darts(4, 3, image_shape=(3, 8, 8)), Flops),
        (Darts(4, 3, image_shape=(3, 8, 8)), Measured),
    ],
    ids=["listed, measured", "large", "large, measured"],
)
@pytest.mark.parametrize("population_size", [3, 10])
def test_large_spaces_and_measured_costs(
    space: SearchSpace, device: type[Flops], population_size: int
) -> None:
    strategy, evaluators = create(space, device, population_size=population_size)
    evaluators[0] = Share(space, op=2)
    trials = run(strategy, evaluators, 30 // population_size)
    asked = [trial.genotype for trial in trials]
    assert len({tuple(row) for row in space.live(asked).tolist()}) == len(asked) == 30
    drawn = space.sample(np.random.default_rng(0), 30)
    others = trials_of(drawn, [evaluator.evaluate(drawn) for evaluator in evaluators], 0)
    bounds = np.quantile([trial.metrics["flops"] for trial in others], [0.25, 0.5, 0.75])
    found, random = (
        [max(t.metrics["share"] for t in some if t.metrics["flops"] <= bound) for bound in bounds]
        for some in (trials, others)
    )
    assert sum(found) > sum(random)


def test_a_space_that_is_used_up_repeats() -> None:
    space = NasBench201(image_shape=(3, 8, 8)).restrict([(3,), (0,), (0, 3), (3,), (3,), (3,)])
    strategy, evaluators = create(space)
    trials = run(strategy, evaluators, 3)
    assert [trial.generation for trial in trials] == [0, 0, 1, 2]


def test_the_same_seed_asks_the_same_and_a_replay_too() -> None:
    archive = Archive()
    first = run(*create(seed=3), archive=archive)
    assert run(*create(seed=3)) == first
    search(*create(seed=3), archive, 6)
    assert archive.trials == first
    assert run(*create(seed=4)) != first


def test_it_needs_a_quality_and_a_cost() -> None:
    with pytest.raises(ValueError, match=r"needs a quality and a cost of the device, not \['share'\]"):
        create(objectives=OBJECTIVES[:1])


def test_what_is_known_of_networks_is_a_feature_of_all() -> None:
    """Numbers that tell the quality up to noise, of other networks than those that are asked for."""
    space = NasBench201(image_shape=(3, 8, 8))
    drawn = space.sample(np.random.default_rng(1), 200)
    share = [row["share"] for row in Share(space, op=4).evaluate(drawn)]
    noisy = np.array(share) + 0.05 * np.random.default_rng(2).normal(size=200)
    reached = []
    for hints in (None, Hints({"before": dict(zip(drawn, noisy.tolist(), strict=True))}, {})):
        strategy, evaluators = create(space, population_size=5)
        evaluators[0] = Share(space, op=4)
        if hints is not None:
            strategy.hint(hints)
        trials = run(strategy, evaluators, 3)
        if hints is not None:
            assert [trial.genotype for trial in trials[:5]] == hints.best(5)
        reached.append(sorted(trial.metrics["share"] for trial in trials[5:])[-3:])
    assert sum(reached[1]) > sum(reached[0])
