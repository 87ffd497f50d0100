from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from hwnas.core import Evaluator, Genotype, Limit, Objective, SearchSpace, Trial, front
from hwnas.devices.flops import Flops
from hwnas.searches.loop import search
from hwnas.spaces.darts import Darts
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.store.archive import Archive
from hwnas.strategies.cascade import Cascade

OBJECTIVES = (Objective("estimate", "max"), Objective("flops", "min"))
CONV = 3
"""Operation of NAS-Bench-201 that the made-up qualities count."""


class Counted(Evaluator):
    """A quality to be worked out by hand: the fraction of an operation among live ones, times a factor."""

    def __init__(self, space: SearchSpace, metric: str, factor: float = 1.0, op: int = CONV) -> None:
        self.name, self.metrics, self.space = metric, {metric: "max"}, space
        self.metric, self.factor, self.op = metric, factor, op
        self.asked: list[Genotype] = []

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        return "1"

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        self.asked += genotypes
        shares = (self.space.live(genotypes) == self.op).mean(axis=1)
        return [{self.metric: self.factor * share} for share in shares.tolist()]


class Rungs(Evaluator):
    name, metrics = "cascade", {"estimate": "max"}

    def __init__(self, *rungs: Evaluator) -> None:
        self.rungs = rungs

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        return "1"

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        raise AssertionError("a rung evaluates")


def create(
    space: SearchSpace | None = None,
    networks: Sequence[int] = (60, 12, 6),
    limits: tuple[Limit, ...] = (),
    seed: int = 0,
    generations: int = 20,
    objectives: tuple[Objective, ...] = OBJECTIVES,
    long: float = 1.0,
) -> tuple[Cascade, list[Evaluator]]:
    space = space or NasBench201(image_shape=(3, 8, 8))
    device = Flops(space)
    evaluator = Rungs(Counted(space, "score", op=2), Counted(space, "short"), Counted(space, "long", long))
    strategy = Cascade(
        space, objectives, limits, seed, generations, evaluator, device, networks=networks, curiosity=1.0
    )
    return strategy, [evaluator, device]


def run(strategy: Cascade, evaluators: Sequence[Evaluator], archive: Archive | None = None) -> list[Trial]:
    archive = archive or Archive()
    search(strategy, evaluators, archive, 20)
    return archive.trials


def test_many_are_scored_some_trained_and_few_trained_longer() -> None:
    strategy, evaluators = create()
    trials = run(strategy, evaluators)
    scored, short, long = (
        [t.genotype for t in trials if name in t.metrics] for name in ("score", "short", "long")
    )
    assert (len(scored), len(short), len(long)) == (60, 12, 6)
    assert strategy.done
    # Four trainings at a time, then the long ones, then the front.
    assert list(Counter(trial.generation for trial in trials).values())[:6] == [60, 4, 4, 4, 3, 3]


def test_live_operations_are_trained_once_and_connected() -> None:
    strategy, evaluators = create(networks=(200, 40, 0))
    run(strategy, evaluators)
    space, asked = strategy.space, evaluators[0].rungs[1].asked  # type: ignore[attr-defined]
    assert space.is_connected(asked).all()
    assert len({tuple(row) for row in space.live(asked).tolist()}) == len(asked) == 40


def test_the_model_learns_what_scores_do_not_know() -> None:
    """All scores are equal, accuracies count 3x3 convolutions: the answer has many of these."""
    strategy, evaluators = create(networks=(60, 48, 0))
    evaluators[0].rungs[0].factor = 0.0  # type: ignore[attr-defined]
    trials = run(strategy, evaluators)
    found = strategy.result()
    best = max(found, key=lambda trial: trial.metrics["estimate"])
    assert best.genotype.count(CONV) >= 5
    assert best.metrics["estimate_std"] >= 0
    assert max(trial.metrics["short"] for trial in trials if trial.generation == 1) <= 0.5
    assert found == front(found, OBJECTIVES)


def test_what_is_known_before_is_most_of_the_prior() -> None:
    """Scores favour 1x1 convolutions; what is known beforehand 3x3 convolutions, and so does the answer."""

    def best(known: bool) -> Genotype:
        strategy, evaluators = create(networks=(60, 8, 0))
        if known:
            evaluators[0].expected = lambda genotypes: 6.0 * (np.array(genotypes) == CONV).mean(axis=1)  # type: ignore[method-assign]
        search(strategy, evaluators, Archive(), 1)
        return max(strategy.result(), key=lambda trial: trial.metrics["estimate"]).genotype

    assert best(known=True).count(CONV) == 6
    assert best(known=False).count(2) >= 4


def test_estimates_are_those_of_the_last_model_and_of_equal_networks_equal() -> None:
    strategy, evaluators = create()
    trials = run(strategy, evaluators)
    assert all("estimate" in trial.metrics for trial in trials)
    a, b = (0, 3, 0, 3, 1, 0), (0, 3, 2, 3, 1, 0)  # the edge 1-2 leads to what 2-3, none, does not use
    twins = strategy.judged([Trial(genotype, {}, 0) for genotype in (a, b)])
    assert len({trial.metrics["estimate"] for trial in twins}) == 1


def test_long_trainings_decide_on_a_scale_of_their_own() -> None:
    """Long trainings count 1x1 convolutions, short ones 3x3 convolutions: the estimates are of the long."""
    strategy, evaluators = create(networks=(60, 8, 24))
    evaluators[0].rungs[2].op, evaluators[0].rungs[2].factor = 2, 0.6  # type: ignore[attr-defined]
    trials = run(strategy, evaluators)
    long = [trial for trial in trials if "long" in trial.metrics]
    apart = [abs(trial.metrics["estimate"] - trial.metrics["long"]) for trial in strategy.judged(long)]
    assert np.median(apart) < 0.05
    best = max(strategy.result(), key=lambda trial: trial.metrics["estimate"])
    assert best.genotype.count(2) > best.genotype.count(CONV)


def test_a_few_long_trainings_are_too_few() -> None:
    with pytest.raises(ValueError, match=r"none or at least 6 networks longer, not \[60, 12, 3\]"):
        create(networks=(60, 12, 3))


def test_only_networks_within_the_limits_are_trained() -> None:
    bound = 5e6
    strategy, evaluators = create(limits=(Limit("flops", bound),))
    trials = run(strategy, evaluators)
    assert max(t.metrics["flops"] for t in trials if "short" in t.metrics) <= bound
    assert max(t.metrics["flops"] for t in trials if "score" in t.metrics) > bound


def test_a_limit_that_no_network_keeps_leaves_the_nearest() -> None:
    strategy, evaluators = create(limits=(Limit("flops", 1.0),))
    trials = run(strategy, evaluators)
    assert sum("short" in trial.metrics for trial in trials) >= 1


def test_a_space_of_two_networks() -> None:
    """The edge 1-2 is nothing or a convolution, and both have the score 0: trainings decide."""
    space = NasBench201(image_shape=(3, 8, 8)).restrict([(3,), (0,), (0, 3), (3,), (3,), (3,)])
    strategy, evaluators = create(space)
    run(strategy, evaluators)
    best = max(strategy.result(), key=lambda trial: trial.metrics["estimate"])
    assert best.genotype == (3, 0, 3, 3, 3, 3)


def test_a_device_that_supports_no_network() -> None:
    class Never(Flops):
        def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
            return [dict.fromkeys(row, np.inf) for row in super().evaluate(genotypes)]

    space = NasBench201(image_shape=(3, 8, 8))
    evaluators = [Rungs(*(Counted(space, name) for name in ("score", "short", "long"))), Never(space)]
    strategy = Cascade(
        space, OBJECTIVES, (), 0, 20, evaluators[0], evaluators[1], networks=(60, 12, 6), curiosity=0.5
    )
    run(strategy, evaluators)
    assert strategy.done
    assert strategy.result() == []


def test_spaces_too_large_to_list_are_scored_in_rounds() -> None:
    strategy, evaluators = create(Darts(4, 3, image_shape=(3, 8, 8)), networks=(40, 8, 0))
    trials = run(strategy, evaluators)
    sizes = Counter(trial.generation for trial in trials if "score" in trial.metrics)
    assert list(sizes.values()) == [10, 10, 10, 10]
    assert sum("short" in trial.metrics for trial in trials) == 8
    assert {trial.genotype for trial in strategy.result()} <= {trial.genotype for trial in trials}


def test_the_same_seed_asks_the_same_and_a_replay_too() -> None:
    archive, again = Archive(), Archive()
    first = run(*create(seed=3), archive)
    assert run(*create(seed=3), again) == first
    strategy, evaluators = create(seed=3)
    search(strategy, evaluators, archive, 20)  # replayed as a whole
    assert archive.trials == first
    assert evaluators[0].rungs[1].asked == []  # type: ignore[attr-defined]
    assert run(*create(seed=4)) != first


def test_a_budget_plans_the_networks() -> None:
    strategy, _ = create()
    strategy.plan(600, [0.01, 5.0, 20.0])
    scored, short, long = strategy.networks
    assert scored * 0.01 + short * 5 + long * 20 <= 600
    assert min(scored / 100, short / 6) >= 1
    assert long > 0
    strategy.plan(100, [0.01, 5.0, 20.0])
    assert 6 <= strategy.networks[1] < short


def test_a_budget_without_time_for_trainings_is_for_scores() -> None:
    strategy, evaluators = create()
    strategy.plan(10, [0.01, 5.0, 20.0])
    assert strategy.networks == (500, 0, 0)
    run(strategy, evaluators)
    assert evaluators[0].rungs[1].asked == []  # type: ignore[attr-defined]
    best = max(strategy.result(), key=lambda trial: trial.metrics["estimate"])
    assert best.genotype.count(2) >= 4, "scores count these"


def test_limits_on_sizes_that_are_no_objectives() -> None:
    """A limit on parameters: the front of multiply-adds alone may have no network within it."""
    space = NasBench201(image_shape=(3, 8, 8))
    bound = float(np.quantile(space.static_metrics(space.all())["params"], 0.3))
    strategy, evaluators = create(space, limits=(Limit("params", bound),))
    trials = run(strategy, evaluators)
    trained = [trial.genotype for trial in trials if "short" in trial.metrics]
    assert (space.static_metrics(trained)["params"] <= bound).all()
    found = strategy.result()
    within = [trial for trial in found if trial.metrics["params"] <= bound]
    allowed = [trial for trial in strategy.judged(strategy._answer) if trial.metrics["params"] <= bound]
    assert {t.genotype for t in front(allowed, OBJECTIVES)} <= {t.genotype for t in within}


def test_a_budget_that_is_too_small_says_what_is_needed() -> None:
    strategy, _ = create()
    with pytest.raises(
        ValueError, match=r"at least 4s here, not 1s: getting ready took 2\.0 s, scores of 100 networks"
    ):
        strategy.plan(1, [0.01, 5.0, 20.0], spent=2.0)
    strategy.plan(4, [0.01, 5.0, 20.0], spent=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"networks": (60, 12)}, "networks must be a list of 3, each a whole number of at least 0"),
        ({"networks": (60, 0, 3)}, r"networks must score and train at least one network, not \[60, 0, 3\]"),
        ({"objectives": OBJECTIVES[:1]}, "needs a device with a cost"),
        ({"objectives": (Objective("rmi", "max"), OBJECTIVES[1])}, "needs evaluator=cascade"),
        ({"generations": 3}, "generations must be at least 8 for strategy=cascade, not 3"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(**settings)  # type: ignore[arg-type]
