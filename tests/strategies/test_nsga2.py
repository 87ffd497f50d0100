from __future__ import annotations

import numpy as np
import pytest
from omegaconf import OmegaConf

from hwnas.build import conf_folder
from hwnas.core import Trial
from hwnas.strategies.nsga2 import NSGA2

SETTINGS = {"population_size": 4, "crossover_prob": 0.7, "mutation_prob": 0.2}


@pytest.mark.parametrize(
    ("crowding", "survivors"),
    [
        # Distances among the different costs: infinite at both ends, (1 + 2) / 4 for [2, 2], (1 + 1) / 4 for
        # [1, 3]; copies have 0.
        ("unique", [[0, 4], [1, 3], [2, 2], [4, 0]]),
        # Of two copies of an end one is first in one objective, the other last in the other: both infinite.
        ("all", [[0, 4], [0, 4], [4, 0], [4, 0]]),
    ],
)
def test_copies_survive_only_where_all_are_crowded(crowding: str, survivors: list[list[int]]) -> None:
    algorithm = NSGA2((5, 3), 2, 0, crowding=crowding, **SETTINGS)
    for costs in ([[0, 4], [4, 0], [0, 4], [4, 0]], [[2, 2], [1, 3], [1, 3], [2, 2]]):
        asked = algorithm.ask()
        trials = [Trial(tuple(row), {}, 0) for row in asked.argmax(axis=2).tolist()]
        algorithm.tell(trials, np.array(costs, dtype=float), np.full(4, True))
    assert sorted(algorithm.pop.get("F").tolist()) == survivors


@pytest.mark.parametrize("name", ["nevonas", "mo_hdnas"])
def test_the_published_rule_is_the_default(name: str) -> None:
    """NEvoNAS' code requires pymoo 0.5.0, whose `calc_crowding_distance` gives copies a distance of 0."""
    assert OmegaConf.load(conf_folder() / "strategy" / f"{name}.yaml").crowding == "unique"


def test_an_unknown_crowding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"crowding must be one of unique, all, not 'some'"):
        NSGA2((5, 3), 2, 0, crowding="some", **SETTINGS)
