"""NSGA-II over alphas with the settings of NEvoNAS; part of NEvoNAS and MO-HDNAS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, MultipleOf
from pymoo.algorithms.moo import nsga2
from pymoo.core.evaluator import Evaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.sampling.rnd import FloatRandomSampling
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding
from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
from pymoo.problems.static import StaticProblem

from hwnas.core import FloatArray, Fraction, Trial, checked
from hwnas.strategies.evolution import check_told

Even = Annotated[int, Ge(2), MultipleOf(2)]
"""Size of a population whose children come in pairs."""

Crowding = Literal["unique", "all"]


class NSGA2:
    """pymoo's NSGA-II in [0, 1]^(edges x ops): uniform start, binary tournament, SBX, polynomial mutation.

    All populations have the same size: where pymoo returns too few children, because it drops those that
    repeat their parents, the others are drawn uniformly. Unsupported networks violate a constraint and lose
    against every supported one.

    Args:
        alpha_shape: (edges, ops).
        num_objectives: Number of costs.
        seed: Seed of the generators.
        population_size: Even, because children come in pairs.
        crossover_prob: Probability of simulated binary crossover (eta 15).
        mutation_prob: Probability of polynomial mutation (eta 20), per alpha.
        crowding: "unique": of members with equal costs, all but the first have a crowding distance of 0, as
            in pymoo 0.5.0, which NEvoNAS requires. "all": they are treated like others, as in pymoo 0.6, so
            that copies of one network can fill the population.

    Attributes:
        asked: pymoo's population of the last `ask`; None before.

    Raises:
        ValueError: A setting out of range.

    Source: Deb et al., NSGA-II, 2002; operators of Sinha & Chen, NEvoNAS, arXiv 2204.00188 (code).
    """

    @checked
    def __init__(
        self,
        alpha_shape: tuple[int, int],
        num_objectives: int,
        seed: int,
        *,
        population_size: Even,
        crossover_prob: Fraction,
        mutation_prob: Fraction,
        crowding: Crowding,
    ) -> None:
        self.population_size = population_size
        self.asked: Population | None = None
        self._alpha_shape = alpha_shape
        num_alphas = int(np.prod(alpha_shape))
        self._algorithm = nsga2.NSGA2(
            pop_size=self.population_size,
            sampling=FloatRandomSampling(),
            crossover=SBX(prob=crossover_prob, eta=15),
            mutation=PM(prob=1.0, prob_var=mutation_prob, eta=20),
            # With a function pymoo ignores members of equal costs, with the function's name it does not.
            survival=RankAndCrowding(crowding_func=calc_crowding_distance if crowding == "unique" else "cd"),
        )
        self._problem = Problem(
            n_var=num_alphas,
            n_obj=num_objectives,
            n_ieq_constr=1,
            xl=np.zeros(num_alphas),
            xu=np.ones(num_alphas),
        )
        self._algorithm.setup(self._problem, termination=("n_gen", 10**9), seed=seed, verbose=False)
        self._first: FloatArray = np.empty((0, num_alphas))
        self._rng = np.random.default_rng(seed)  # only for populations that NSGA-II cannot fill

    def begin(self, alphas: FloatArray) -> None:
        """Have alphas (n, edges, ops) in 0..1 in the first population, at most `population_size`."""
        self._first = alphas[: self.population_size].reshape(-1, self._problem.n_var)

    def ask(self) -> FloatArray:
        """Random alphas at first, later children, shape (population_size, edges, ops)."""
        asked = self._algorithm.ask()  # None, or too few, if children repeat their parents
        num_missing = self.population_size - (0 if asked is None else len(asked))
        if num_missing:
            fresh = Population.new("X", self._rng.random((num_missing, self._problem.n_var)))
            asked = fresh if asked is None else Population.merge(asked, fresh)
        if len(self._first):
            X = asked.get("X")
            X[: len(self._first)] = self._first
            asked.set("X", X)
            self._first = self._first[:0]
        self.asked = asked
        return asked.get("X").reshape(-1, *self._alpha_shape)

    def check_told(self, trials: Sequence[Trial]) -> None:
        """Raise ValueError unless the number of observed trials is the number of architectures asked for."""
        check_told(trials, 0 if self.asked is None else len(self.asked))

    def tell(self, trials: Sequence[Trial], F: FloatArray, supported: np.ndarray) -> None:
        """Select the next parents among parents and children.

        Args:
            trials: Trials of the last `ask`, in order; members of the population hold them as "trial".
            F: Costs, shape (n, num_objectives); rows of unsupported networks are ignored.
            supported: Whether the device supports each of them, shape (n,), bool.
        """
        assert self.asked is not None, "ask comes first"
        self.asked.set("trial", np.array(trials, dtype=object))
        F = np.where(supported[:, None], F, 0.0)  # not compared, because the constraint decides first
        G = np.where(supported, 0.0, 1.0)[:, None]
        Evaluator().eval(StaticProblem(self._problem, F=F, G=G), self.asked)
        self._algorithm.tell(infills=self.asked)

    @property
    def pop(self) -> Population | None:
        """The parents, a population of pymoo; None before the first `tell`."""
        return self._algorithm.pop

    def survivors(self) -> list[Trial]:
        """Trials of the parents; architectures may repeat."""
        return [] if self.pop is None else [member.get("trial") for member in self.pop]

    def front(self) -> list[Trial]:
        """Trials of the supported, non-dominated parents; architectures may repeat."""
        if self._algorithm.opt is None:
            return []
        return [member.get("trial") for member in self._algorithm.opt if member.CV[0] <= 0]
