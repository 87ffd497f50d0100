"""Many pruned Beta-VAEs together: does disentanglement make a network easier to prune?

The rules of the conclusion are code, `conclude`, and no choice is left to whoever has seen the results. The
primary measure is the retained area, `retained_area`: accuracy relative to the network's own before pruning,
so that a network that is merely better does not count as easier to prune, over the logarithm of the weights
that are left, so that halving them counts alike everywhere. The plain area and the sparsity at a loss of a
point stand beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from hwnas.build import moved
from hwnas.files import consistent, read_json, shaped
from hwnas.searches.statistics import holm

ALPHA = 0.05
"""Level of all tests, two-sided; comparisons of several betas are corrected by Holm's method."""

PROXY = "mean_correlation"
"""The measure of entanglement where no factors are known; where they are, it is 1 - DCI disentanglement."""

_TRAINED = ("test_acc", "val_acc", "active_units", "kl", "total_correlation", PROXY, "weight_norm")
_MEASURED = (
    *("target", "test_acc", "val_acc", "one_shot_test_acc", "params", "flops", "bytes", "bytes_compressed"),
    *("latency_ms", "unpruned_latency_ms"),
)
PRUNED_SHAPE = {
    "status": "finished",
    "kind": ("beta-VAE", "bottleneck", "classifier"),
    "seed": int,
    "dataset": str,
    "num_classes": int,
    "area": float,
    "sparsity_at_1_percent": (float, None),
    "pictures": [str],
    "curve": [dict.fromkeys(_MEASURED, float)],
    "trained": dict.fromkeys(_TRAINED, float),
    "settings": {"model": {"beta": float}, "training": {"weight_decay": float}},
}
"""Shape of the result.json of a finished pruning run, for `files.shaped`."""

IRRELEVANT = ("seed", "checkpoint", "limits", "host", "onnx")
"""Settings that do not tell the networks of a family apart."""


class PrunedSettings(TypedDict):
    """Settings of a run, of its network and of its training, with those of its pruning beside them."""

    model: Mapping[str, object]
    training: Mapping[str, object]


class PrunedResult(TypedDict):
    """The part of a finished run's result.json that a study reads, as `PRUNED_SHAPE` checks it."""

    kind: str
    seed: int
    dataset: str
    num_classes: int
    area: float
    sparsity_at_1_percent: float | None
    pictures: list[str]
    curve: list[dict[str, float]]
    trained: dict[str, float]
    settings: PrunedSettings


@dataclass(frozen=True)
class Arm:
    """One finished run.

    Args:
        folder: Its folder.
        result: Contents of its result.json.
    """

    folder: Path
    result: PrunedResult

    @property
    def kind(self) -> str:
        """The kind of network: "beta-VAE", "bottleneck" or "classifier"."""
        return str(self.result["kind"])

    @property
    def beta(self) -> float:
        """Weight of the KL divergence."""
        return cast(float, self.result["settings"]["model"]["beta"])

    @property
    def weight_decay(self) -> float:
        """Of the training."""
        return cast(float, self.result["settings"]["training"]["weight_decay"])

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.result["seed"])

    @property
    def pictures(self) -> list[Path]:
        """Its pictures that are there; a result from elsewhere may name any file, so only those inside."""
        own, paths = self.folder.resolve(), [self.folder / name for name in self.result["pictures"]]
        return [
            path
            for path in paths
            if path.suffix == ".png" and path.is_file() and path.resolve().is_relative_to(own)
        ]

    @property
    def label(self) -> str:
        """Kind, beta and weight decay in words."""
        text = {"beta-VAE": "β", "bottleneck": "no decoder, β"}.get(self.kind)
        parts = ["classifier"] if text is None else [f"{text} {self.beta:g}"]
        return ", ".join([*parts, *([f"weight decay {self.weight_decay:g}"] if self.weight_decay else [])])


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only.

    Args:
        arms: By seed.
    """

    arms: Mapping[int, Arm]

    @property
    def first(self) -> Arm:
        """The run of the lowest seed."""
        return self.arms[min(self.arms)]

    def trained(self, name: str) -> NDArray[np.float64]:
        """A figure of the trained networks, before pruning, per seed."""
        return np.array([arm.result["trained"][name] for _, arm in sorted(self.arms.items())])

    def area(self) -> NDArray[np.float64]:
        """Area under the curve of test accuracy by sparsity per seed, not relative to anything."""
        return np.array([arm.result["area"] for _, arm in sorted(self.arms.items())])

    def retained(self, name: str = "test_acc") -> NDArray[np.float64]:
        """Retained area per seed, the primary measure; of validation images with "val_acc"."""
        return np.array(
            [
                retained_area(*([row[key] for row in arm.result["curve"]] for key in ("target", name)))
                for _, arm in sorted(self.arms.items())
            ]
        )

    def at_1_percent(self) -> NDArray[np.float64]:
        """Sparsity at a loss of a point per seed; the largest sparsity measured, where it is beyond that."""
        return np.array(
            [
                arm.result["curve"][-1]["target"]
                if arm.result["sparsity_at_1_percent"] is None
                else arm.result["sparsity_at_1_percent"]
                for _, arm in sorted(self.arms.items())
            ]
        )

    def curve(self, name: str) -> NDArray[np.float64]:
        """A figure of the curve, (seeds, sparsities)."""
        return np.array([[row[name] for row in arm.result["curve"]] for _, arm in sorted(self.arms.items())])


@dataclass(frozen=True)
class Family:
    """Runs that differ in beta and seed, and their controls.

    Args:
        name: What tells it from the study's other families; empty if there is one.
        dataset: Name of the data set.
        sparsities: What was pruned to.
        betas: Beta-VAEs by beta, rising.
        bottlenecks: Controls without a decoder, by beta.
        classifiers: Controls trained by cross-entropy only, by weight decay.
    """

    name: str
    dataset: str
    sparsities: tuple[float, ...]
    betas: Mapping[float, Group]
    bottlenecks: Mapping[float, Group]
    classifiers: Mapping[float, Group]

    def groups(self) -> list[Group]:
        """All of them, the controls last."""
        return [*self.betas.values(), *self.bottlenecks.values(), *self.classifiers.values()]


@dataclass(frozen=True)
class Comparison:
    """Two groups, paired by seed.

    Args:
        name: Of what, against what.
        difference: Mean difference of the retained areas, or of what the name says.
        low: Lower end of its 95 % confidence interval.
        high: Upper end.
        p: Of a paired t-test, corrected where it says so.
        num: Pairs.
    """

    name: str
    difference: float
    low: float
    high: float
    p: float
    num: int

    @property
    def better(self) -> bool:
        """Significantly better."""
        return self.difference > 0 and self.p < ALPHA

    @property
    def worse(self) -> bool:
        """Significantly worse."""
        return self.difference < 0 and self.p < ALPHA


@dataclass(frozen=True)
class Conclusion:
    """The evidence of a family.

    Args:
        verdict: "supported", "contradicted" or "inconclusive".
        words: The reasons, one sentence each.
        comparisons: Every beta against beta = 0, corrected by Holm's method.
        controls: The best beta: its sparsity at a loss of a point and its plain area against beta = 0's, its
            retained area against the controls'.
        correlation: Spearman's, of retained area and entanglement over betas; None for fewer than four.
        correlation_p: Its p value.
    """

    verdict: str
    words: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    controls: tuple[Comparison, ...]
    correlation: float | None
    correlation_p: float | None


@dataclass(frozen=True)
class Study:
    """All finished runs below a folder.

    Args:
        folder: The folder.
        families: At least one.
        conclusions: One per family.
    """

    folder: Path
    families: tuple[Family, ...]
    conclusions: tuple[Conclusion, ...]

    @property
    def conclusion(self) -> str:
        """In words."""
        return "\n".join(
            f"{family.name or family.dataset}: {told.verdict}. {' '.join(told.words)}"
            for family, told in zip(self.families, self.conclusions, strict=True)
        )


def retained_area(sparsities: Sequence[float], accuracies: Sequence[float]) -> float:
    """Mean over ln(1 / (1 - sparsity)) of the accuracy relative to the first one, between points by lines.

    Args:
        sparsities: Rising, the first one usually 0, all below 1.
        accuracies: Of the network pruned to each, the first above 0.

    Returns:
        1 if nothing is lost at any sparsity; also 1 for a single point, 0 where the first accuracy is 0.
    """
    if accuracies[0] <= 0:
        return 0.0
    if len(sparsities) == 1:
        return 1.0
    x = -np.log1p(-np.asarray(sparsities, dtype=np.float64))
    relative = np.asarray(accuracies, dtype=np.float64) / accuracies[0]
    return float(np.trapezoid(relative, x) / (x[-1] - x[0]))


def trained_enough(accuracy: float, num_classes: int) -> bool:
    """Whether an accuracy is at least half way from chance to 1: below, what pruning costs says little."""
    return accuracy >= (1 + 1 / num_classes) / 2


def read_pruned(path: Path) -> PrunedResult:
    """The result.json of a finished pruning run, with today's names of classes.

    Raises:
        ValueError: It is not that; names the file.
    """
    result = read_json(path, "is not the result of a finished pruning run")
    try:
        shaped(result, PRUNED_SHAPE)
    except ValueError as error:
        raise ValueError(f"{path} is not the result of a finished pruning run ({error})") from None
    return cast(PrunedResult, moved(result))


def result_files(folder: Path) -> list[Path]:
    """The result.json files of pruning runs in a folder and below it; of other runs there may be more."""
    return [path for path in sorted(folder.rglob("result.json")) if b'"curve"' in path.read_bytes()]


def read_study(folder: Path) -> Study:
    """All finished pruning runs in a folder and below it.

    Raises:
        ValueError: There is none, a result is damaged, or two runs have the same settings.
    """
    arms = [Arm(path.parent, read_pruned(path)) for path in result_files(folder)]
    if not arms:
        raise ValueError(f"{folder} holds no finished pruning run")
    with consistent(folder):
        families = _families(arms)
        return Study(folder, tuple(families), tuple(map(conclude, families)))


def _families(arms: Sequence[Arm]) -> list[Family]:
    shared: dict[str, list[Arm]] = {}  # by the settings that a control shares with its Beta-VAEs
    for arm in arms:
        shared.setdefault(json.dumps(_settings(arm, control=True), sort_keys=True), []).append(arm)
    families = []
    for members in shared.values():
        controls = [arm for arm in members if arm.kind != "beta-VAE"]
        own: dict[str, list[Arm]] = {}
        for arm in members:
            if arm.kind == "beta-VAE":
                own.setdefault(json.dumps(_settings(arm, control=False), sort_keys=True), []).append(arm)
        for group in own.values() or [[]]:
            families.append((group or controls, group, controls))
    names = _names([_flat(_settings(first[0], control=False)) for first, _, _ in families])
    return [
        Family(
            name,
            first[0].result["dataset"],
            tuple(row["target"] for row in first[0].result["curve"]),
            _grouped(group, lambda arm: arm.beta),
            _grouped([arm for arm in controls if arm.kind == "bottleneck"], lambda arm: arm.beta),
            _grouped([arm for arm in controls if arm.kind == "classifier"], lambda arm: arm.weight_decay),
        )
        for name, (first, group, controls) in zip(names, families, strict=True)
    ]


def _settings(arm: Arm, *, control: bool) -> dict[str, object]:
    """Settings that an arm has in common with its family, or also with its controls."""
    settings = arm.result["settings"]
    relevant = {key: value for key, value in settings.items() if key not in IRRELEVANT}
    model = {key: value for key, value in settings["model"].items() if key != "beta"}
    training = dict(settings["training"])
    if control:
        for name in ("likelihood", "noise", "capacity", "capacity_epochs"):
            del model[name]
        del training["weight_decay"]
    return {**relevant, "model": model, "training": training}


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = str(value)
    return found


def _names(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Settings in which families differ, as on the command line; empty if there are none."""
    keys = dict.fromkeys(key for one in settings for key in one)
    differing = [key for key in keys if len({one.get(key) for one in settings}) > 1]
    return [" ".join(f"{key}={one.get(key)}" for key in differing) for one in settings]


def _grouped(arms: Sequence[Arm], key: Callable[[Arm], float]) -> dict[float, Group]:
    found: dict[float, dict[int, Arm]] = {}
    for arm in arms:
        group = found.setdefault(key(arm), {})
        if arm.seed in group:
            raise ValueError(
                f"{group[arm.seed].folder} and {arm.folder} have the same settings and seed; move one away"
            )
        group[arm.seed] = arm
    return {value: Group(found[value]) for value in sorted(found)}


def compare(
    name: str, first: Group, second: Group, read: Callable[[Group], NDArray[np.float64]] = Group.retained
) -> Comparison | None:
    """Two groups, paired by seed, by a t-test; None for fewer than two common seeds.

    Args:
        name: Of what, against what.
        first: A group.
        second: Another.
        read: What is compared; the retained area if nothing else is said.
    """
    from scipy.stats import t, ttest_rel

    seeds = sorted(first.arms.keys() & second.arms.keys())
    if len(seeds) < 2:
        return None
    a, b = (read(Group({seed: group.arms[seed] for seed in seeds})) for group in (first, second))
    d = a - b
    mean, error = float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d)))
    if error == 0:
        return Comparison(name, mean, mean, mean, 1.0 if mean == 0 else 0.0, len(d))
    reach = float(t.ppf(0.975, len(d) - 1)) * error
    return Comparison(name, mean, mean - reach, mean + reach, float(ttest_rel(a, b).pvalue), len(d))


def conclude(family: Family) -> Conclusion:
    """Apply the rules.

    Areas are retained areas of test images. The best beta is the one above 0 whose mean retained area on
    *validation* images is largest, among those trained well enough: all networks before pruning, by
    `trained_enough` on validation images, because a network that knows nothing has nothing to lose.
    "Supported" takes all of: (0) beta = 0 and the best beta are trained well enough; (1) the best beta has a
    significantly larger area than beta = 0, paired by seed, corrected for the number of betas, and is not the
    largest that was tried; (2) it loses a point of its own accuracy at a significantly larger sparsity; (3)
    over betas the area falls with entanglement, Spearman's correlation, at least four betas; (4) the best
    beta has a significantly larger area than a network without a decoder at the same beta, one without a
    decoder at beta = 0 (noise alone), a classifier without weight decay, and one whose weight decay gives the
    nearest weight norm.
    "Contradicted": (0), and every beta above 0 has a significantly smaller area than beta = 0. Anything else
    is "inconclusive".
    """
    words: list[str] = []
    zero = family.betas.get(0.0)
    positive = {beta: group for beta, group in family.betas.items() if beta > 0}
    plain = [] if zero is None else [compare(f"β {b:g} - β 0", g, zero) for b, g in positive.items()]
    known = [comparison for comparison in plain if comparison is not None]
    comparisons = tuple(
        replace(one, p=p) for one, p in zip(known, holm([one.p for one in known]), strict=True)
    )
    if zero is None or not comparisons or len(comparisons) < len(positive):
        _trained_enough(family.groups(), words)
        words.append("Every beta needs two seeds in common with beta = 0 for a test.")
        return Conclusion("inconclusive", tuple(words), comparisons, (), None, None)

    by_beta = dict(zip(positive, comparisons, strict=True))
    able = [beta for beta, group in positive.items() if _trained_enough([group], [])]
    best = max(able or positive, key=lambda beta: positive[beta].retained("val_acc").mean())
    top = by_beta[best]
    enough = _trained_enough((zero, positive[best]), words)
    interior = best != max(positive)
    beyond = ", but it is the largest that was tried, so that no optimum was seen."
    words.append(
        f"The best beta above 0 by validation images is {best:g}: {_points(top)} of the retained area "
        f"against beta = 0 ({top.num} seeds, corrected p {top.p:.2g}), which is "
        f"{'' if top.better else 'not '}significant{beyond if top.better and not interior else '.'}"
    )
    worse = [beta for beta, one in by_beta.items() if one.worse]
    if worse:
        words.append(f"Significantly worse than beta = 0: {', '.join(f'{beta:g}' for beta in worse)}.")
    later, plainly = _beside(best, positive[best], zero, words)
    correlation, correlation_p = _tracking(family, words)
    tracks = _tracks(correlation, correlation_p)
    controls, specific = _controls(family, best, words)
    if enough and top.better and interior and later.better and tracks and specific:
        verdict = "supported"
    elif enough and len(worse) == len(positive):
        verdict = "contradicted"
    else:
        verdict = "inconclusive"
    beside = (later, plainly, *controls)
    return Conclusion(verdict, tuple(words), comparisons, beside, correlation, correlation_p)


def _beside(beta: float, group: Group, zero: Group, words: list[str]) -> tuple[Comparison, Comparison]:
    """The best beta's sparsity at a loss of a point and its plain area against beta = 0's; adds sentences."""
    later = compare(f"β {beta:g} - β 0, sparsity at a loss of 1 point", group, zero, Group.at_1_percent)
    plainly = compare(f"β {beta:g} - β 0, plain area", group, zero, Group.area)
    assert later is not None, "the areas could be compared"
    assert plainly is not None
    gain = group.trained("test_acc").mean() - zero.trained("test_acc").mean()
    words.append(
        f"The sparsity at which it loses a point of its own accuracy is {_points(later)} from that of "
        f"beta = 0 (p {later.p:.2g})."
    )
    words.append(
        f"Its plain area is {_points(plainly)} from that of beta = 0 (p {plainly.p:.2g}), its accuracy "
        f"before pruning {100 * gain:+.2f} points."
    )
    return later, plainly


def _tracking(family: Family, words: list[str]) -> tuple[float | None, float | None]:
    """Spearman's correlation of retained area and entanglement over betas, and its p; adds a sentence."""
    from scipy.stats import spearmanr

    if len(family.betas) < 4:
        return None, None
    values, name = entanglement(family)
    if np.ptp(values) == 0:
        return None, None
    area = np.array([group.retained().mean() for group in family.betas.values()])
    answer = spearmanr(values, area)
    correlation, p = float(answer.statistic), float(answer.pvalue)
    words.append(
        f"Over betas, retained area and {name} have a rank correlation of {correlation:.2f} (p {p:.2g}): "
        f"what prunes better is {'' if _tracks(correlation, p) else 'not significantly '}less entangled."
    )
    return correlation, p


def _tracks(correlation: float | None, p: float | None) -> bool:
    """Whether the area falls significantly with entanglement."""
    return correlation is not None and p is not None and correlation < 0 and p < ALPHA


def _trained_enough(groups: Sequence[Group], words: list[str]) -> bool:
    """Whether all networks are trained well enough; adds a sentence on the first group that is not."""
    for group in groups:
        classes = group.first.result.get("num_classes")  # older runs do not say
        accuracy = float(group.trained("val_acc").min())
        if classes is not None and not trained_enough(accuracy, int(classes)):
            words.append(
                f"A network of {group.first.label} has a validation accuracy of {accuracy:.1%} before it is "
                f"pruned, nearer to chance than to perfect on {classes} classes: too little for a verdict."
            )
            return False
    return True


def _points(comparison: Comparison) -> str:
    low, high = 100 * comparison.low, 100 * comparison.high
    return f"{100 * comparison.difference:+.2f} points [{low:+.2f}, {high:+.2f}]"


def entanglement(family: Family) -> tuple[NDArray[np.float64], str]:
    """Mean entanglement of the trained networks per beta, and what it is."""
    groups = family.betas.values()
    if all("dci_disentanglement" in group.first.result["trained"] for group in groups):
        values = [1 - group.trained("dci_disentanglement").mean() for group in groups]
        return np.array(values), "1 - DCI disentanglement"
    return np.array(
        [group.trained(PROXY).mean() for group in groups]
    ), "the mean absolute correlation of codes"


def matched(family: Family, beta: float) -> float | None:
    """The weight decay above 0 of the classifier whose weights' norm is nearest to that of the Beta-VAE."""
    norm = family.betas[beta].trained("weight_norm").mean()
    decays = [decay for decay in family.classifiers if decay > 0]
    return min(
        decays,
        key=lambda decay: abs(family.classifiers[decay].trained("weight_norm").mean() - norm),
        default=None,
    )


def _controls(family: Family, best: float, words: list[str]) -> tuple[tuple[Comparison, ...], bool]:
    """The best beta against its controls, and whether it beats all of them; adds sentences."""
    decay = matched(family, best)
    wanted = {
        f"without a decoder, β {best:g}": family.bottlenecks.get(best),
        "without a decoder, β 0 (noise alone)": family.bottlenecks.get(0.0),
        "cross-entropy only": family.classifiers.get(0.0),
        f"cross-entropy and matched weight decay {decay if decay is None else f'{decay:g}'}": (
            None if decay is None else family.classifiers[decay]
        ),
    }
    found = []
    for name, group in wanted.items():
        comparison = None if group is None else compare(f"β {best:g} - {name}", family.betas[best], group)
        if comparison is not None:
            found.append(comparison)
    if len(found) < len(wanted):
        words.append(f"{len(wanted) - len(found)} of {len(wanted)} controls at the best beta were not run.")
    for one in found:
        outcome = "better" if one.better else "worse" if one.worse else "not different"
        words.append(f"{one.name}: {_points(one)}, p {one.p:.2g}, {outcome}.")
    return tuple(found), len(found) == len(wanted) and all(one.better for one in found)
