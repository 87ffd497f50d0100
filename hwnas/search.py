"""`hwnas search`: configuration, objects, and the loop that every method runs in."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hwnas.analysis import MOST_REPORTED, spread
from hwnas.config import build, choices, suggestion
from hwnas.core import (
    Evaluator,
    FloatArray,
    Genotype,
    Goal,
    Interrupted,
    Limit,
    Objective,
    SearchSpace,
    Strategy,
    Trial,
    best,
    closest,
    front,
    positive,
    trials_of,
    unique,
    whole_number,
)
from hwnas.devices.energy import Meter
from hwnas.devices.multi import Multi
from hwnas.store import (
    PLAN,
    Archive,
    CachedEvaluator,
    EvaluationStore,
    Hypervolume,
    metrics_from_json,
    read_result,
    write_json,
)
from hwnas.truth import (
    YARDSTICKS,
    Truth,
    best_reported,
    cost_deciles,
    device_limits,
    exact,
    exact_effects,
    extent,
    largest_reported,
    quantile,
    reported,
    separable_sums,
    transfers,
    yardsticks,
)
from hwnas.workers import Workers


def search(
    strategy: Strategy,
    evaluators: Sequence[Evaluator],
    archive: Archive,
    generations: int,
    log: Callable[[int, list[Trial], bool], None] = lambda generation, trials, replayed: None,
) -> None:
    """Run the loop; `archive` holds every trial, in order, when it returns, and on disk if it is killed.

    A generation that the archive already holds is told to the strategy again instead of evaluated: that is
    how a run resumes.

    Args:
        strategy: Asks for populations.
        evaluators: Each answers its own metrics for the whole population.
        archive: Empty, or what an earlier session of the same run left.
        generations: Populations to ask for.
        log: Called after each generation with its number, its trials and whether they were replayed.
    """
    for generation in range(generations):
        population = strategy.ask()
        for evaluator in evaluators:  # also for a replayed one: what they train may be a history
            evaluator.prepare(strategy.space, population)
        trials = archive.recorded(generation, population)
        replayed = trials is not None
        if trials is None:
            answers = [evaluator.evaluate(population) for evaluator in evaluators]
            trials = trials_of(population, answers, generation)
            archive.extend(trials)
        strategy.tell(trials)
        log(generation, trials, replayed)
        if strategy.done:
            break


def parse_limits(
    limits: Mapping[str, Any], space: SearchSpace, evaluators: Sequence[Evaluator]
) -> tuple[Limit, ...]:
    """The limits of a configuration; null means none.

    Args:
        limits: Bound per metric: a number, or "q0.3" for the 0.3 quantile over the space's networks. Where
            several devices report a metric, a bound counts for each of them, or is a mapping by device.
        space: The search space.
        evaluators: Those that report the metrics.

    Raises:
        ValueError: A metric that nobody reports, a bound that is not above 0, a quantile outside 0..1.
    """
    owners = {name: evaluator for evaluator in evaluators for name in evaluator.metrics}
    metrics = {name: evaluator.metrics[name] for name, evaluator in owners.items()}
    parsed = []
    for name, bound in _by_device(limits, metrics):
        if name not in metrics:
            raise ValueError(
                f"limits.{name}: no evaluator or device of this run reports {name}"
                f"{suggestion(name, list(metrics))}"
            )
        share = re.fullmatch(r"q(-?\d*\.?\d+)", bound) if isinstance(bound, str) else None
        if share is not None:
            value = quantile(space, owners[name], name, float(share[1]))
        else:
            if isinstance(bound, str):
                raise ValueError(
                    f"limits.{name} must be a number above 0, or a quantile like q0.3, not {bound!r}"
                )
            value = positive(f"limits.{name}", bound)
        parsed.append(Limit(name, value, metrics[name]))
    return tuple(parsed)


def _by_device(limits: Mapping[str, Any], metrics: Mapping[str, Goal]) -> Iterator[tuple[str, Any]]:
    """The limits that are set, with one of `<metric>@<device>` for each device where several report it."""
    for name, bound in limits.items():
        devices = [metric.partition("@")[2] for metric in metrics if metric.startswith(f"{name}@")]
        if isinstance(bound, Mapping):
            yield from ((f"{name}@{device}", own) for device, own in bound.items() if own is not None)
        elif bound is not None and devices and name not in metrics:
            yield from ((f"{name}@{device}", bound) for device in devices)
        elif bound is not None:
            yield name, bound


Returned = float | list[float]
"""What a sweeper gets of a run: a metric of its best network, or several."""


def main(cfg: DictConfig) -> Returned:
    """The command: build, search, train the answer, write the run's folder.

    Returns:
        The best feasible network's first objective, or the metrics that `returns` names, for sweepers; the
        worst values there can be if no network keeps the limits.
    """
    from hydra.core.hydra_config import HydraConfig

    from hwnas.display import Display
    from hwnas.track import Tracker
    from hwnas.train import check_recipe, train_network

    start, meter = time.perf_counter(), Meter()
    folder = Path(HydraConfig.get().runtime.output_dir)
    display = Display()
    finished = folder / "result.json"
    if finished.is_file():
        result = read_result(finished)
        display.say(f"this run is finished already; see {folder / 'report.html'}")
        reached = metrics_from_json(result["best"]["metrics"]) if result["best"] else {}
        goals = {o["metric"]: o["goal"] for o in result["objectives"]}
        return for_sweeper(
            cfg.get("returns"), {**goals, **dict.fromkeys(reached.keys() - goals, "min")}, reached
        )

    generations = whole_number("generations", cfg.generations)
    seed = whole_number("seed", cfg.seed, least=0)
    if not isinstance(cfg.store, DictConfig) or not isinstance(cfg.store.dir, str):
        raise ValueError(f"store.dir must be a folder; the configuration has store={cfg.store}")
    if cfg.limits is not None and not isinstance(cfg.limits, DictConfig):
        raise ValueError(f"limits takes metrics, e.g. limits.latency_ms=5, not limits={cfg.limits}")
    store_dir = Path(cfg.store.dir).expanduser()
    dataset = build(cfg.dataset)
    offered: dict[str, Any] = {
        "dataset": dataset,
        "store_dir": store_dir,
        "folder": folder,
        "announce": display.say,
        "warn": display.warn,
        "seed": seed,
    }
    space: SearchSpace = build(
        cfg.search_space, SearchSpace, image_shape=dataset.image_shape, num_classes=dataset.num_classes
    )
    offered["space"] = space
    recipe = build(cfg.trainer)
    if recipe.epochs and hasattr(space, "network"):
        check_recipe(space, recipe)
    quality: Evaluator = build(cfg.evaluator, Evaluator, **offered)
    device: Evaluator = build(cfg.device, Evaluator, **offered)
    plain = [quality, device]
    if space.static_metrics([]) and "flops" not in device.metrics:
        from hwnas.devices.flops import Flops

        plain.append(Flops(space))  # every report can tell, and limits.params works on any device

    _check_owners(plain)
    metrics: dict[str, Goal] = {name: goal for evaluator in plain for name, goal in evaluator.metrics.items()}
    limits = parse_limits(cfg.limits or {}, space, plain)
    wanted = (*quality.objectives, *device.objectives)
    objectives = tuple(Objective(name, metrics[name]) for name in wanted)
    goals = {name: metrics[name] for name in (*wanted, *metrics)}  # the first is what a sweeper gets
    for_sweeper(cfg.get("returns"), goals, {})
    strategy: Strategy = build(
        cfg.strategy,
        Strategy,
        space=space,
        objectives=objectives,
        limits=limits,
        seed=seed,
        generations=generations,
    )

    names = choices(folder)
    run_id = _run_id(folder)
    store = EvaluationStore(cfg.store.url, run_id)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    with contextlib.ExitStack() as opened:
        opened.callback(store.close)
        workers = None
        if whole_number("workers", cfg.workers) > 1:
            workers = build(cfg.cluster, Workers, workers=cfg.workers, **offered)
            opened.callback(workers.close)
        # Devices are not divided: what is measured on this machine is measured alone.
        evaluators = [
            CachedEvaluator(evaluator, store, dataset.name, workers if evaluator is quality else None)
            for evaluator in plain
        ]
        archive = Archive(folder / "archive.jsonl")
        opened.callback(archive.close)
        for note in archive.notes:
            display.warn(note)
        plan = {
            "objectives": [{"metric": o.metric, "goal": o.goal} for o in objectives],
            "limits": {limit.metric: limit.bound for limit in limits},
        }
        if not (folder / PLAN).is_file():
            write_json(folder / PLAN, plan)
        # Offline logs of jobs in one process must end up in runs of their own: finish() whatever happens.
        tracker = Tracker(
            folder,
            cfg.logger,
            {str(k): v for k, v in config.items()},
            run_id=run_id,
            job="search",
            warn=display.warn,
        )
        opened.pop_all()  # from here on `finally` closes them, after the tracker
    completed = False
    try:
        display.say(
            f"{names['strategy']} on {names['search_space']} ({space.size:.4g} architectures): "
            f"{' and '.join(o.metric for o in objectives)} of {names['dataset']} on {names['device']}, "
            f"{generations} generations, seed {seed}"
        )
        for (name, bound), limit in zip(_by_device(cfg.limits or {}, metrics), limits, strict=True):
            if isinstance(bound, str):
                display.say(f"limits.{name}={bound} is {limit.bound:.4g}, a quantile over {extent(space)}")
        if archive.trials:
            display.say(f"resuming after {len(archive.trials)} evaluations")
        with display.phase("quality", f"preparing {names['evaluator']}"):
            evaluators[0].prepare(space, [])
        with display.phase("device", f"preparing {names['device']}"):
            for evaluator in evaluators[1:]:
                evaluator.prepare(space, [])

        hypervolume = Hypervolume(objectives)
        curve: list[float] = []
        seen: list[Trial] = []

        version = ""
        charged: set[Genotype] = set()  # architectures that the virtual clock has been charged for
        clock = 0.0  # in seconds

        def log(generation: int, trials: list[Trial], replayed: bool) -> None:
            nonlocal version, clock
            if version != evaluators[0].version:  # other weights: older values cannot be compared
                hypervolume.forget()
                version = evaluators[0].version
            seen.extend(trials)
            curve.append(hypervolume.add(trials))
            leader = best([*hypervolume.front, *trials] if limits else hypervolume.front, objectives, limits)
            values: dict[str, float | None] = {
                "evaluations": float(len(seen)),
                "hypervolume": curve[-1],
                "front_size": float(len(hypervolume.front)),
                "diversity": diversity(space, [trial.genotype for trial in trials]),
            }
            new = list({trial.genotype for trial in trials} - charged)
            charged.update(new)
            spent = quality.seconds(new)
            if spent is not None:
                clock += spent
                values["virtual_hours"] = clock / 3600
            for objective in objectives:
                told = [trial.metrics[objective.metric] for trial in trials]
                values[f"mean_{objective.metric}"] = sum(told) / len(told)
                values[f"best_{objective.metric}"] = (
                    None if leader is None else leader.metrics[objective.metric]
                )
            meter.read()  # its counters start over
            session = {"from_store": float(evaluators[0].saved)}
            tracker.log(generation, values, replayed=replayed, session=session)
            shown = {"evaluations": len(seen), "from store": evaluators[0].saved, "hypervolume": curve[-1]}
            if leader is not None:
                shown |= {f"best {o.metric}": leader.metrics[o.metric] for o in objectives}
            display.generation(generation, shown, replayed)

        with display.generations(generations):
            search(strategy, evaluators, archive, generations, log)

        trials = archive.trials
        asked, paid = len(trials), store.paid(quality.name)
        found = strategy.result()
        comparable = trials if quality.stationary else found
        if not quality.stationary:
            display.say(
                f"{quality.name}: values of different generations are of different weights; "
                "the answer is among what the strategy returns"
            )
        answer = best(comparable, objectives, limits)
        pareto = front(comparable, objectives)
        tests = {
            t.genotype: r for t, r in _reports(quality, [*found, *pareto, *([answer] if answer else [])])
        }

        def described(trial: Trial) -> dict[str, Any]:
            return {
                "arch": space.to_str(trial.genotype),
                "genotype": list(trial.genotype),
                "metrics": {**trial.metrics, **tests.get(trial.genotype, {})},
            }

        network = None
        if answer is not None and recipe.epochs and hasattr(space, "network") and not tests[answer.genotype]:
            with display.phase("final network", "training the final network"):
                network = train_network(
                    space,
                    answer.genotype,
                    dataset,
                    recipe,
                    seed=seed,
                    folder=folder / "network",
                    display=display,
                )

        truth = exact(space, plain, objectives, limits)
        comparison: dict[str, Any] | None = None
        if truth is not None:
            ratios, distances = truth.progress(
                [list(group) for _, group in itertools.groupby(trials, lambda trial: trial.generation)]
            )
            comparison = {
                "best": None if truth.best is None else described(truth.best),
                "best_test_acc": truth.best_test_acc,
                "regret": _regret(truth, answer, tests, objectives),
                "hypervolume_ratio": ratios,
                "igd_plus": distances,
                "front": [[trial.metrics[o.metric] for o in objectives] for trial in truth.front],
            }

        knowing = [evaluator for evaluator in plain if evaluator.exhaustive]
        yardstick = {
            name: described(*trials_of([genotype], [e.evaluate([genotype]) for e in knowing], 0))
            for name, genotype in yardsticks(space, knowing, objectives, limits).items()
        }

        looked_up: dict[str, dict[str, Any]] = {}
        if truth is None and answer is not None:
            known = reported(space, plain, limits)
            highest, largest = best_reported(known), largest_reported(known)
            looked_up = {
                name: {"value": value, "regret": highest[name] - value, "by_flops": largest.get(name)}
                for name, value in tests[answer.genotype].items()
                if name in highest
            }

        transfer = None
        if isinstance(device, Multi):
            pool = comparable if truth is None else truth.trials
            own = device_limits(limits, device.main, device.typical)
            transfer = {
                "limits": {
                    name: {limit.metric: limit.bound for limit in bounds} for name, bounds in own.items()
                },
                "main": device.main,
                "among": "all networks" if truth is not None else "the networks of the run",
                "rows": [
                    {
                        "device": row.device,
                        "network": None if row.network is None else described(row.network),
                        "regret": row.regret,
                        "excess": row.excess,
                    }
                    for row in transfers(pool, objectives, own, device.main)
                ],
            }

        result = {
            "status": "finished",
            **{
                group: names[group]
                for group in ("strategy", "search_space", "dataset", "evaluator", "device")
            },
            "seed": seed,
            **plan,
            "generations": generations,
            "evaluations": {
                "asked": asked,
                "unique": len({trial.genotype for trial in trials}),
                "cached": asked - paid,
            },
            "seconds": {},
            "energy_kwh": None,
            "virtual_seconds": None if quality.seconds([]) is None else clock,
            "result": [described(trial) for trial in found],
            "best": described(answer) if answer else None,
            "network": network,
            "stationary": quality.stationary,
            "hypervolume": curve,
            "truth": comparison,
            "transfer": transfer,
            "yardsticks": yardstick or None,
            "looked_up": looked_up or None,
            "effects": {
                metric: dataclasses.asdict(effects) | {"added": _rows(effects.added)}
                for metric, effects in exact_effects(space, plain, objectives).items()
            },
            "sums": {
                metric: {"base": total.base, "added": _rows(total.added)}
                for metric, total in separable_sums(plain).items()
            },
            "deciles": cost_deciles(space, plain),
            "reports": _columns(quality, unique(trials)),
            "versions": {evaluator.name: evaluator.version for evaluator in evaluators},
        }
        _write_front(folder / "pareto.csv", [described(trial) for trial in pareto])
        from hwnas.report import virtual_clock, write_report

        with display.phase("report", "drawing the report"):
            result["seconds"] = {"total": time.perf_counter() - start, **display.seconds}
            write_report(folder, result)
        result["seconds"] = {"total": time.perf_counter() - start, **display.seconds}
        result["energy_kwh"] = meter.read()

        rows = [described(trial) for trial in pareto]
        tracker.front(
            ["arch", *rows[0]["metrics"]] if rows else ["arch"],
            [[row["arch"], *row["metrics"].values()] for row in rows],
            x=objectives[1].metric,
            y=objectives[0].metric,
        )
        tracker.summary({"best": result["best"], "network": network, "evaluations": result["evaluations"]})
        write_json(finished, result)
        tracker.artifact("result", [finished, *(folder / name for name in ("pareto.csv", "report.html"))])
        if network is not None:
            tracker.artifact(
                "network", [folder / "network" / name for name in ("weights.pt", "architecture.json")]
            )
        completed = True
        metrics_of_answer = {} if answer is None else described(answer)["metrics"]
        _say_answer(display, space, trials, objectives, limits, answer, metrics_of_answer, pareto, network)
        if len(found) == 1 and answer is not None and found[0].genotype != answer.genotype:
            returned = described(found[0])
            values = ", ".join(f"{name} {value:.4g}" for name, value in returned["metrics"].items())
            display.say(f"{names['strategy']} itself returns {returned['arch']}: {values}")
        if comparison is not None:
            points = ", ".join(
                f"{name} {100 * value:.2f} points" for name, value in comparison["regret"].items()
            )
            display.say(
                f"exact: hypervolume {ratios[-1]:.1%} of the true front's"
                + (f"; the best network there is, is better by {points}" if points else "")
            )
        for name, known_network in yardstick.items():
            values = ", ".join(f"{metric} {value:.4g}" for metric, value in known_network["metrics"].items())
            display.say(f"exact: {YARDSTICKS[name]} is {known_network['arch']}: {values}")
        for name, figures in looked_up.items():
            display.say(
                f"looked up: {name} {figures['value']:.4f}; the best that there is, is better by "
                f"{100 * figures['regret']:.2f} points"
                + (
                    ""
                    if figures["by_flops"] is None
                    else f"; the one with the most multiply-adds has {figures['by_flops']:.4f}"
                )
            )
        display.say(
            f"{asked} evaluations, {asked - paid} of them from the store, {time.perf_counter() - start:.0f} s"
        )
        if sentence := virtual_clock(result):
            display.say(sentence)
        if network is not None:
            display.say(f"weights: {folder / network['weights']}")
        display.say(f"report: {folder / 'report.html'}")
        if answer is not None and hasattr(space, "network"):
            display.say(f"next: hwnas {'train' if network is None else 'export'} run={folder}")
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; nothing is lost, go on with: hwnas search resume={folder}") from None
    finally:
        tracker.finish(failed=not completed)
        archive.close()
        store.close()
        if workers is not None:
            workers.close()
    return for_sweeper(cfg.get("returns"), goals, {} if answer is None else answer.metrics)


def for_sweeper(names: Any, goals: Mapping[str, Goal], metrics: Mapping[str, float]) -> Returned:
    """What a sweeper gets: the metrics that `names` names, where missing the worst there can be.

    Args:
        names: A metric or several; None is the first that has a goal.
        goals: Goal per metric that the run knows.
        metrics: Of the best network; empty if there is none.

    Raises:
        ValueError: An unknown metric.
    """
    listed = (
        [str(name) for name in names] if isinstance(names, Sequence) and not isinstance(names, str) else None
    )
    wanted = listed or [next(iter(goals)) if names is None else str(names)]
    for name in wanted:
        if name not in goals:
            raise ValueError(f"returns={name}: this run has no such metric{suggestion(name, list(goals))}")
    values = [metrics.get(name, -math.inf if goals[name] == "max" else math.inf) for name in wanted]
    return values[0] if listed is None else values


def diversity(space: SearchSpace, population: Sequence[Genotype]) -> float:
    """Mean distance between two networks of a population, in 0..1; 0 for a single one."""
    if len(population) < 2:
        return 0.0
    return float(space.distances(population, population).sum() / (len(population) * (len(population) - 1)))


def _check_owners(evaluators: Sequence[Evaluator]) -> None:
    """Raise ValueError if two evaluators share a name or report the same metric."""
    owners: dict[str, str] = {}
    for evaluator in evaluators:
        if evaluator.name in owners.values():
            raise ValueError(
                f"evaluator and device are both {evaluator.name}; choose another for one of them"
            )
        for metric in evaluator.metrics:
            if metric in owners:
                raise ValueError(
                    f"{metric} is reported by {owners[metric]} and by {evaluator.name}; only one of them may"
                )
        owners |= dict.fromkeys(evaluator.metrics, evaluator.name)


def _run_id(folder: Path) -> str:
    """The run's identity, drawn once and kept in its folder.

    Raises:
        ValueError: The file that keeps it is empty.
    """
    path = folder / "run_id"
    if not path.is_file():
        partial = path.with_suffix(".tmp")
        with partial.open("w") as file:
            file.write(uuid.uuid4().hex[:12] + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    run_id = path.read_text().strip()
    if not run_id:
        raise ValueError(f"{path} is empty: without it the run's evaluations cannot be told from others'")
    return run_id


def _reports(evaluator: Evaluator, trials: Sequence[Trial]) -> list[tuple[Trial, dict[str, float]]]:
    """Each trial with the metrics that only reports may show."""
    if not trials:
        return []
    return list(zip(trials, evaluator.report([trial.genotype for trial in trials]), strict=True))


def _columns(evaluator: Evaluator, trials: Sequence[Trial]) -> dict[str, list[float | None]]:
    """What only reports may show of at most `MOST_REPORTED` of the trials, evenly spread, as columns."""
    picked = [trials[row] for row in spread(len(trials), MOST_REPORTED)]
    rows = [report for _, report in _reports(evaluator, picked)]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _rows(added: FloatArray) -> list[list[float | None]]:
    """The table for JSON, with null for what is not finite."""
    return [[value if math.isfinite(value) else None for value in row] for row in added.tolist()]


def _regret(
    truth: Truth,
    answer: Trial | None,
    tests: Mapping[Any, Mapping[str, float]],
    objectives: Sequence[Objective],
) -> dict[str, float]:
    """How much worse the answer is than the best there is, per metric, in the metric's unit."""
    if answer is None or truth.best is None:
        return {}
    name, sign = objectives[0].metric, 1.0 if objectives[0].goal == "max" else -1.0
    regret = {name: sign * (truth.best.metrics[name] - answer.metrics[name])}
    test_acc = tests.get(answer.genotype, {}).get("test_acc")
    if test_acc is not None and truth.best_test_acc is not None:
        regret["test_acc"] = truth.best_test_acc - test_acc
    return regret


def _write_front(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        if rows:
            writer.writerow(["arch", "genotype", *names])
        for row in rows:
            values = [row["metrics"].get(name, "") for name in names]
            writer.writerow([row["arch"], " ".join(map(str, row["genotype"])), *values])


def _say_answer(
    display: Any,
    space: SearchSpace,
    trials: Sequence[Trial],
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    answer: Trial | None,
    metrics: Mapping[str, float],
    pareto: Sequence[Trial],
    network: Mapping[str, Any] | None,
) -> None:
    """The front as a table, and the best feasible network with all its metrics."""
    from rich.table import Table

    table = Table(title=f"front: {len(pareto)} networks", title_justify="left", box=None)
    for objective in objectives:
        table.add_column(objective.metric, justify="right", no_wrap=True, min_width=len(objective.metric))
    table.add_column("architecture", overflow="fold")
    shown = pareto if len(pareto) <= 12 else [pareto[round(i * (len(pareto) - 1) / 11)] for i in range(12)]
    for trial in shown:
        mark = " <- best" if trial == answer else ""
        table.add_row(
            *(f"{trial.metrics[o.metric]:.4g}" for o in objectives), space.to_str(trial.genotype) + mark
        )
    display.console.print(table)
    if answer is None:
        bounds = " and ".join(f"{limit.metric}={limit.bound:g}" for limit in limits)
        near = closest(trials, limits)
        if near is None:
            display.warn("no network is supported by the device")
        else:
            values = ", ".join(f"{name} {value:.4g}" for name, value in near.metrics.items())
            display.warn(
                f"no network keeps limits {bounds}; the closest is {space.to_str(near.genotype)}: {values}"
            )
        return
    display.say(f"best: {space.to_str(answer.genotype)}")
    display.say("      " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    if network is not None:
        display.say(f"      trained from scratch: test accuracy {network['test_acc']:.2%}")
