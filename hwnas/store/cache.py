"""An evaluator with a cache: it looks into the store first, and gives new evaluations to workers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from hwnas.core import Evaluator, FloatArray, Genotype, SearchSpace, checked_answers
from hwnas.files import gone
from hwnas.store.evaluations import EvaluationStore, Key
from hwnas.store.workers import Answers, Part, Workers
from hwnas.training.progress import progress


class CachedEvaluator(Evaluator):
    """An evaluator that takes known answers from the store and computes only new ones.

    The answers of one part of a population are stored in one transaction, so that a resumed run evaluates an
    interrupted part again as a whole.

    Args:
        inner: Computes new answers.
        store: Keeps answers.
        dataset: Name of the data set, part of the key.
        workers: Evaluate several parts at once; None: this process evaluates one after another.

    Attributes:
        version: Version of the answers, from the last `prepare`.
        saved: Number of answers that were not computed here.
        computed: Number of answers that were.
        spent: Seconds of the clock in which they were, e.g. by several workers at once.
        rungs: Those of the inner evaluator, cached likewise.
    """

    def __init__(
        self, inner: Evaluator, store: EvaluationStore, dataset: str, workers: Workers | None = None
    ) -> None:
        self.inner = inner
        self.name = inner.name
        self.metrics, self.reported = inner.metrics, inner.reported
        self.rungs: tuple[CachedEvaluator, ...] = tuple(
            CachedEvaluator(rung, store, dataset, workers) for rung in inner.rungs
        )
        self.version = ""
        self.saved = 0
        self.computed = 0
        self.spent = 0.0
        self._store = store
        self._dataset = dataset
        self._workers = workers
        self._key: Key | None = None
        self._held = inner.held
        self._known: dict[Genotype, dict[str, float]] = {}

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """Prepare the inner evaluator; after a change of the version, known answers are looked up again."""
        version: object = self.inner.prepare(space, population)
        if not isinstance(version, str):
            raise ValueError(
                f"{type(self.inner).__name__}.prepare() returned {version!r}; it must return a text: "
                "the version of its answers"
            )
        self.version = version
        key = (self.name, space.name, self._dataset, self.version)
        if key != self._key:
            self._key = key
            self._known = {genotype: dict(row) for genotype, row in self._held.items()}
        return self.version

    @property
    def answering(self) -> tuple[CachedEvaluator, ...]:
        """Those that compute: the rungs, or this one."""
        return self.rungs or (self,)

    def see(self, alphas: FloatArray | None) -> None:
        """Pass alphas on to the inner evaluator."""
        self.inner.see(alphas)

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Metrics per genotype, in order.

        Raises:
            ValueError: Answers of the inner evaluator that `checked_answers` refuses.
        """
        assert self._key is not None, "prepare comes first"
        new = [genotype for genotype in dict.fromkeys(genotypes) if genotype not in self._known]
        if new:
            self._known.update(self._store.get(self._key, new))
        missing = [genotype for genotype in new if genotype not in self._known]
        num_new = len(missing) and self._complete(missing)
        self.saved += len(genotypes) - num_new
        return [self._known[genotype] for genotype in genotypes]

    def _complete(self, missing: list[Genotype]) -> int:
        """Compute missing answers, or wait for processes that compute them; returns the number computed."""
        assert self._key is not None
        if self.inner.exhaustive or not self._store.shared:  # costs nothing, or nobody else uses the store
            self._evaluate(missing)
            return len(missing)
        # Claims of other processes (owner, heartbeat), and the time when each was first seen.
        seen: dict[Genotype, tuple[tuple[str, int], float]] = {}
        num_new, pause = 0, 0.02
        while missing:
            ours = self._store.claim(self._key, missing)
            if ours:
                try:
                    self._known.update(self._store.get(self._key, ours))  # stored since the last look-up
                    wanted = [genotype for genotype in ours if genotype not in self._known]
                    if wanted:
                        with self._store.heartbeat():
                            self._evaluate(wanted)
                        num_new += len(wanted)
                finally:
                    self._store.release(self._key)
            self._known.update(self._store.get(self._key, missing))
            missing = [genotype for genotype in missing if genotype not in self._known]
            if missing:
                claims, now = self._store.claims(self._key, missing), time.monotonic()
                seen = {
                    genotype: seen[genotype]
                    if genotype in seen and seen[genotype][0] == claim
                    else (claim, now)
                    for genotype, claim in claims.items()
                }
                stale = {
                    genotype: claim
                    for genotype, (claim, since) in seen.items()
                    if now - since > self._store.lease or gone(claim[0].rpartition(":")[0])
                }
                self._store.take_over(self._key, stale)
                if not stale and len(claims) == len(missing):
                    time.sleep(pause)
                    pause = min(2 * pause, self._store.lease / 4)
        return num_new

    def _evaluate(self, genotypes: list[Genotype]) -> None:
        """Compute answers and store them, all or none of a part."""
        assert self._key is not None
        began = time.perf_counter()
        divide = self.inner.parts if self._workers is None else self.inner.for_workers
        parts = divide(genotypes)
        if self._workers is None or len(parts) == 1:
            done: Iterable[tuple[Part, Answers]] = ((part, self.inner.evaluate(part)) for part in parts)
        else:
            done = self._workers.map(self.inner, parts)
        answered = 0
        for part, rows in done:
            answered += len(part)
            if len(parts) > 1:
                progress("networks", answered, len(genotypes))
            answers = checked_answers(self.inner, part, rows)
            self._store.put(self._key, dict(zip(part, answers, strict=True)))
        self.computed += len(genotypes)
        self.spent += time.perf_counter() - began
        self._known.update(self._store.get(self._key, genotypes))  # another run may have been first

    @property
    def seconds_per_new(self) -> float | None:
        """Seconds that an answer took that was computed here; None if none was."""
        computed = sum(each.computed for each in self.answering)
        return sum(each.spent for each in self.answering) / computed if computed else None

    @property
    def stationary(self) -> bool:
        """As for the inner evaluator."""
        return self.inner.stationary

    def report(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Report-only metrics of the inner evaluator."""
        return self.inner.report(genotypes)

    def seconds(self, genotypes: Sequence[Genotype]) -> float | None:
        """As for the inner evaluator."""
        return self.inner.seconds(genotypes)
