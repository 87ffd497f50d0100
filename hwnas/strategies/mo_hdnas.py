"""MO-HDNAS: NSGA-II over quality, hardware cost and hardware-cost diversity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator as PymooEvaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.sampling.rnd import FloatRandomSampling
from pymoo.problems.static import StaticProblem

from hwnas.core import (
    FloatArray,
    Genotype,
    Objective,
    SearchSpace,
    Strategy,
    Trial,
    costs,
    share,
    whole_number,
)
from hwnas.strategies.evolution import check_told, cost_diversity

DIVERSITIES = ("population", "merged", "none")


class MOHDNAS(Strategy):
    """Evolve alphas with NSGA-II; the third objective rewards costs far from those of the population.

    Architectures are encoded as alphas in [0, 1], decoded by the argmax of every edge. Networks that the
    device does not support break NSGA-II's constraint and lose against every supported one.

    Args:
        space: Search space.
        objectives: Quality (phi in the paper) and hardware cost (Psi).
        seed: Seed of NSGA-II.
        population_size: N_pop, even (paper: 20).
        diversity: Where the cost diversity chi is computed: "population", once, among those asked together;
            "merged", anew among parents and children at every selection; "none", two objectives.
        crossover_prob: Probability of simulated binary crossover (eta 15).
        mutation_prob: Probability of polynomial mutation (eta 20), per alpha.

    Raises:
        ValueError: A population that is odd or smaller than 2, an unknown kind of diversity, or not two
            objectives.

    Source: Sinha et al., MO-HDNAS, CVPRW 2024, arXiv 2404.12403, Alg. 1. The operators' settings and where
    chi is computed are not published; these are NEvoNAS' operators, and "population" is the literal reading.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        seed: int,
        *,
        population_size: int,
        diversity: str,
        crossover_prob: float,
        mutation_prob: float,
    ) -> None:
        if len(objectives) != 2:
            raise ValueError(f"mo_hdnas needs a quality and a cost, not {[o.metric for o in objectives]}")
        if diversity not in DIVERSITIES:
            raise ValueError(f"strategy.diversity {diversity!r} is not one of {', '.join(DIVERSITIES)}")
        self.space = space
        self.objectives = objectives
        self.diversity = diversity
        self.population_size = whole_number("strategy.population_size", population_size, least=2)
        if self.population_size % 2:
            raise ValueError(f"strategy.population_size of mo_hdnas must be even, not {population_size}")

        num_alphas = int(np.prod(space.alpha_shape))
        num_objectives = 2 if diversity == "none" else 3
        self._algorithm = NSGA2(
            pop_size=self.population_size,
            sampling=FloatRandomSampling(),
            crossover=SBX(prob=share("strategy.crossover_prob", crossover_prob), eta=15),
            mutation=PM(prob=1.0, prob_var=share("strategy.mutation_prob", mutation_prob), eta=20),
        )
        self._problem = Problem(
            n_var=num_alphas,
            n_obj=num_objectives,
            n_ieq_constr=1,
            xl=np.zeros(num_alphas),
            xu=np.ones(num_alphas),
        )
        self._algorithm.setup(self._problem, termination=("n_gen", 10**9), seed=seed, verbose=False)
        self._asked: Any = None
        self._rng = np.random.default_rng(seed)  # only for populations that NSGA-II cannot fill

    def ask(self) -> list[Genotype]:
        """Random alphas first, then offspring by binary tournament, crossover and mutation, decoded."""
        asked = self._algorithm.ask()  # None or too few when its children repeat their parents
        num_missing = self.population_size - (0 if asked is None else len(asked))
        if num_missing:
            fresh = Population.new("X", self._rng.random((num_missing, self._problem.n_var)))
            asked = fresh if asked is None else Population.merge(asked, fresh)
        self._asked = asked
        return self.space.decode(self._asked.get("X").reshape(-1, *self.space.alpha_shape))

    def tell(self, trials: Sequence[Trial]) -> None:
        """Let NSGA-II select among parents and children."""
        check_told(trials, 0 if self._asked is None else len(self._asked))
        F = costs(trials, self.objectives)
        supported = np.asarray(np.isfinite(F).all(axis=1))
        F[~supported] = 0.0  # never compared: the constraint decides
        G = np.where(supported, 0.0, 1.0)[:, None]
        self._asked.set("trial", np.array(trials, dtype=object))
        if self.diversity == "population":
            F = np.column_stack([F, -_diversity(F[:, 1], supported)])
        elif self.diversity == "merged":
            F = np.column_stack([F, self._merged_diversity(F[:, 1], supported)])
        PymooEvaluator().eval(StaticProblem(self._problem, F=F, G=G), self._asked)
        self._algorithm.tell(infills=self._asked)

    def _merged_diversity(self, cost: FloatArray, supported: np.ndarray) -> FloatArray:
        """-chi of the children in parents + children; the parents get theirs anew."""
        parents = self._algorithm.pop
        if parents is None or len(parents) == 0:
            return -_diversity(cost, supported)
        F = parents.get("F")
        chi = _diversity(
            np.concatenate([F[:, 1], cost]), np.concatenate([parents.get("CV")[:, 0] <= 0, supported])
        )
        parents.set("F", np.column_stack([F[:, :2], -chi[: len(parents)]]))
        return -chi[len(parents) :]

    def result(self) -> list[Trial]:
        """The supported, non-dominated members of the last population, without repeated architectures."""
        if self._algorithm.opt is None:
            return []
        members = [m for m in self._algorithm.opt if m.CV[0] <= 0]
        return list({member.get("trial").genotype: member.get("trial") for member in members}.values())


def _diversity(cost: FloatArray, supported: np.ndarray) -> FloatArray:
    return cost_diversity(np.where(supported, cost, np.inf))
