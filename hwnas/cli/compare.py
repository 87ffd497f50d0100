"""`hwnas compare`: which strategy finds more with as many evaluations, with statistics."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Ge

from hwnas.build import conf_folder
from hwnas.cli.calls import Outcome, compose
from hwnas.cli.errors import UsageError, plain
from hwnas.core import Count, Limit, Seed, Strategy, check_setting
from hwnas.files import plain_yaml, read_json
from hwnas.reports.comparison import RESULT, say, write_comparison
from hwnas.runs.display import Display
from hwnas.runs.lock import STORED
from hwnas.runs.log import writing
from hwnas.runs.units import count
from hwnas.searches.compare import Contender, Failed, Setting, check, run_all, setting
from hwnas.searches.exact import check_possible
from hwnas.searches.finished import cases_of, read_finished
from hwnas.searches.judge import Comparison, conclude, judge
from hwnas.searches.problem import Choice, Problem, RunContext, parse_limits, set_up, with_margins
from hwnas.store.workers import cores
from hwnas.training.recipe import Recipe

HELP = """\
usage: hwnas compare [word=value ...]            run strategies on problems of tables and formulas, judge them
       hwnas compare <folder> ... [word=value]   judge the finished runs of sweeps

A word with several values, a,b or [a,b], makes several problems; those of strategy= are compared on each.
Words of hwnas compare, with their defaults (conf/compare.yaml):

  strategy=surrogate,local_search,...  strategies, with settings after colons: local_search:num_candidates=1;
                                       generations is one of them
  seeds=20 seed=0                      runs of each strategy on each problem, and the first seed
  evaluations=25,50,100,150            different architectures at which runs are compared; the last ends them
  workers=auto                         processes that divide the runs
  to=<folder>                          for the page and the figures
  store.dir=multirun/store             as for hwnas search

All other words are those of hwnas search (evaluator=table dataset=cifar10 device=raspi4 generations=100,
unless an experiment= or replay= is chosen). Without limits= a run is judged under the nine deciles of its
cost; with limits.latency_ms=q0.2,q0.5 there is a run for each. --config-dir <folder> has strategies of your
own.

  hwnas compare strategy=surrogate,local_search,random device=raspi4,fpga dataset=cifar10,cifar100
  hwnas compare --config-dir mine experiment=toy strategy=annealing,annealing:temperature=0.3,random
  hwnas compare multirun/sweeps/<sweep>
"""

LOG = "compare.log"
"""File of the messages, and of what strategies raised, in the comparison's folder."""

OWN = ("strategy", "seeds", "seed", "evaluations", "workers", "to", "store.dir")
"""Words of this command."""

GENERATIONS = "generations"
"""A setting of a problem that a strategy may have of its own."""

PATHS = ("to", "store.dir")
"""Those whose commas belong to a path."""

OF_FOLDERS = ("evaluations", "to")
"""Those that go with folders."""


@dataclass(frozen=True)
class Words:
    """What a command says.

    Attributes:
        folders: Folders of finished runs.
        own: Values of the words of this command, by word.
        search: Values of the words of `hwnas search`, by word, without limits; a flag has no value.
        limits: Values of limits, by metric.
    """

    folders: tuple[Path, ...]
    own: Mapping[str, tuple[str, ...]]
    search: Mapping[str, tuple[str, ...]]
    limits: Mapping[str, tuple[str, ...]]


def command(arguments: list[str]) -> int:
    """`hwnas compare`: returns the exit code, 0, 1 for what went wrong, or 2 for wrong usage."""
    if {"-h", "--help", "help"} & set(arguments):
        print(HELP, end="")
        return 0
    failures: list[Failed] = []

    def perform() -> None:
        failures.extend(_compare(arguments, {}, None))

    return plain("compare", perform) or int(bool(failures))


def compare(
    *words: str,
    strategies: Mapping[str, Choice[Strategy]] | None = None,
    folder: str | Path | None = None,
    show: bool = True,
) -> Outcome:
    """`hwnas compare`: which strategy finds more with as many evaluations, with statistics.

    Args:
        words: As on the command line, e.g. "seeds=10", or folders of sweeps.
        strategies: Strategies of your own, by name: classes, or partials that have their settings.
        folder: Of the page and the figures; a new one below multirun/runs/compare by default.
        show: Whether to print what the command prints.

    Returns:
        The folder, the content of comparison.json, and the page. Strategies that raised an error are among
        its `failed`.

    Raises:
        ValueError: What the command would say in one line.
    """
    silence = contextlib.nullcontext() if show else contextlib.redirect_stdout(io.StringIO())
    to = Path(folder).expanduser() if folder is not None else _new_folder()
    with silence:
        _compare(words, strategies or {}, to)
    return Outcome(to.absolute(), read_json(to / RESULT), to / "report.html")


def _compare(
    arguments: Sequence[str], strategies: Mapping[str, Choice[Strategy]], folder: Path | None
) -> list[Failed]:
    """Compare, write the folder, say what was found; returns the runs that failed."""
    words, display = parse(arguments), Display()
    defaults = plain_yaml(conf_folder() / "compare.yaml")
    assert isinstance(defaults, dict)
    given = words.own.get("to")
    folder = folder or (_new_folder() if given is None else Path(given[-1]).expanduser())
    if folder.is_file():
        raise ValueError(f"to={folder} is a file; a folder is needed")
    failed: list[Failed] = []
    with writing(folder / LOG):
        if words.folders:
            if strategies:
                raise ValueError("strategies are run, folders hold runs that are finished; give one of them")
            compared = _of_folders(words)
        else:
            compared, failed = _of_words(words, strategies, defaults, folder, display)
        line = shlex.join(["hwnas", "compare", *arguments])
        written = write_comparison(folder, compared, failed, command=line, doubts=display.doubts)
        say(display, compared)
        display.say(f"report: {written}")
    return failed


def _new_folder() -> Path:
    return Path("multirun/runs/compare", f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")


def parse(arguments: Sequence[str]) -> Words:
    """The words of a command line, with their values.

    Raises:
        UsageError: A flag that is not known, a word twice, or a value twice.
    """
    folders: list[Path] = []
    own: dict[str, tuple[str, ...]] = {}
    search: dict[str, tuple[str, ...]] = {}
    limits: dict[str, tuple[str, ...]] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("--config-dir", "-cd") and rest:
            argument = f"--config-dir={rest.pop(0)}"
        if argument.startswith("--config-dir="):
            search[argument] = ()
            continue
        if argument.startswith("-"):
            hint = (
                "; a word with several values is a sweep already" if argument in ("-m", "--multirun") else ""
            )
            raise UsageError(f"unknown flag {argument}{hint} (hwnas compare --help)")
        name, equals, value = argument.partition("=")
        if not equals or Path(argument).expanduser().is_dir():  # a job of a sweep has = in its name
            folders.append(Path(argument).expanduser())
            continue
        values = [value] if name in PATHS else _values(name, value)
        place = own if name in OWN else limits if name.lstrip("+").startswith("limits.") else search
        key = name.lstrip("+").removeprefix("limits.") if place is limits else name
        if key in place:
            raise UsageError(f"{name} is given twice; several values are {name}=a,b")
        if doubled := [one for one in values if values.count(one) > 1]:
            raise UsageError(f"{name}={value} has {doubled[0]} twice")
        place[key] = tuple(values)
    if folders and (wrong := [name for name in (*own, *search, *limits) if name not in OF_FOLDERS]):
        raise UsageError(
            f"{wrong[0]} does not go with folders, whose runs are finished; {' and '.join(OF_FOLDERS)} do"
        )
    return Words(tuple(folders), own, search, limits)


def _values(name: str, text: str) -> list[str]:
    """The values of a word: separated by commas outside of brackets and quotes; a list of choices is several.

    `device=[raspi4,fpga]`, to a search one problem for two devices, is two problems here.
    """
    choices = name in OWN or (conf_folder() / name).is_dir() or name.startswith("limits.")
    if choices and text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts, depth, quote, start = [], 0, "", 0
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [part.strip() for part in [*parts, text[start:]]]


def _numbers(name: str, values: Sequence[object], kind: object) -> list[int]:
    return sorted({check_setting(name, kind, _plain(value)) for value in values})


def _plain(value: object) -> object:
    """A value as YAML reads it."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        return value


def _one(name: str, values: Sequence[object]) -> object:
    if len(values) != 1:
        raise ValueError(f"{name} takes one value, not {','.join(map(str, values))}")
    return _plain(values[0])


def _of_folders(words: Words) -> Comparison:
    """Finished runs, at as many architectures as all of them know, if nothing else is said."""
    finished, notes = read_finished(words.folders)
    cases, more = cases_of(finished)
    given = words.own.get("evaluations")
    judged = []
    for case, runs in cases:
        fewest = min(len(run) for run in runs)
        at = [fewest] if given is None else _numbers("evaluations", given, Count)
        judged.append(judge(case, runs, at))
    return conclude(judged, [*notes, *more])


def _of_words(
    words: Words,
    strategies: Mapping[str, Choice[Strategy]],
    defaults: Mapping[str, object],
    folder: Path,
    display: Display,
) -> tuple[Comparison, list[Failed]]:
    """Compose the problems, run every strategy on each, and judge the runs."""

    def own(name: str) -> Sequence[object]:
        default = defaults[name]
        return words.own.get(name) or (default if isinstance(default, list) else [default])

    num_seeds = check_setting("seeds", Annotated[int, Ge(2)], _one("seeds", own("seeds")))
    first = check_setting("seed", Seed, _one("seed", own("seed")))
    at = _numbers("evaluations", own("evaluations"), Count)
    workers = _one("workers", own("workers"))
    num_workers = cores() if workers == "auto" else check_setting("workers", Count, workers)
    names = [] if strategies and "strategy" not in words.own else list(map(str, own("strategy")))
    if len(names) + len(strategies) < 2:
        raise ValueError(f"strategy={','.join([*names, *strategies])} is one strategy; compare at least two")
    if both := [name for name in strategies if name in names]:
        raise ValueError(f"strategy {both[0]} is given twice")
    context = RunContext(folder, folder / STORED, Path(str(_one("store.dir", own("store.dir")))), display)
    with display.phase("problems", "preparing the problems"):
        settings, contenders = _prepared(words, names, strategies, defaults, context)
        for one in settings:
            if at[-1] > one.task.space.size:
                raise ValueError(
                    f"evaluations={at[-1]} is more than the {count(one.task.space.size)} architectures of "
                    f"{one.task.space.name}"
                )
        check(settings, contenders)
    runs = len(contenders) * num_seeds * sum(len(one.limits) for one in settings)
    problems = f"{len(settings)} problem" + "s" * (len(settings) > 1)
    display.say(
        f"{len(contenders)} strategies, {problems}, {num_seeds} seeds: {runs:,} runs of {at[-1]:,} different "
        "architectures"
    )
    folder.mkdir(parents=True, exist_ok=True)
    with display.phase("runs", "searching"):
        found, failed = run_all(
            settings,
            contenders,
            range(first, first + num_seeds),
            at[-1],
            workers=min(num_workers, runs),
            say={"announce": display.say, "warn": display.doubt},
        )
    for lost in failed:
        logging.getLogger("hwnas").error(f"{_told(lost)}\n{lost.traceback}")
    left = dict.fromkeys(run.strategy for run in found[0])
    if len(left) < 2:
        reasons = "; ".join(_told(one) for one in _first_of_each(failed))
        raise ValueError(f"fewer than two strategies are left to compare: {reasons}")
    notes = [f"{_told(one)}; it is left out" for one in _first_of_each(failed)]
    if (warm := settings[0].task.problem.warm_start) is not None:
        notes.append(
            f"every run began with what is known by {', '.join(warm.sources)}, which does not count as "
            "evaluations"
        )
    with display.phase("statistics", "judging"):
        judged = [judge(one.case, runs, at) for one, runs in zip(settings, found, strict=True)]
        return conclude(judged, notes), failed


def _first_of_each(failed: Sequence[Failed]) -> list[Failed]:
    return list({one.strategy: one for one in reversed(failed)}.values())[::-1]


def _told(one: Failed) -> str:
    return f"{one.strategy} failed on {one.case} with seed {one.seed}: {one.reason}"


def _prepared(
    words: Words,
    names: Sequence[str],
    strategies: Mapping[str, Choice[Strategy]],
    defaults: Mapping[str, object],
    context: RunContext,
) -> tuple[list[Setting], list[Contender]]:
    """The problems, with the objects that their runs share, and the strategies."""
    search = dict(words.search)
    usual = defaults["search"]
    assert isinstance(usual, dict)
    if {"experiment", "replay"} & search.keys():  # which choose the problem
        usual = {"generations": usual["generations"]}
    search = {name: (str(value),) for name, value in usual.items()} | search
    lists = [
        [f"{name}={value}" if values else name for value in values or ("",)]
        for name, values in search.items()
    ]
    varied = [name for name, values in search.items() if len(values) > 1]
    places = [list(place) for place in itertools.product(*lists)]
    contenders = [
        *(_contender(name, places[0]) for name in names),
        *(Contender(name, choice) for name, choice in strategies.items()),
    ]
    first = strategy_words(names[0])[0] if names else "strategy=random"
    settings = []
    for place in places:
        problem = compose(*place, first)
        title = ", ".join(_titled(word) for word in place if word.partition("=")[0] in varied)
        settings.append(_setting(title, problem, words.limits, contenders[0], context))
    return settings, contenders


def _titled(word: str) -> str:
    name, _, value = word.partition("=")
    return value if (conf_folder() / name).is_dir() else word


def strategy_words(name: str) -> list[str]:
    """Words of `hwnas search` for "local_search:num_candidates=1:generations=50"."""
    choice, *settings = re.split(r":(?=[\w.]+=)", name)
    words = [one if one.startswith(f"{GENERATIONS}=") else f"strategy.{one}" for one in settings]
    return [f"strategy={choice}", *words]


def _contender(name: str, place: Sequence[str]) -> Contender:
    """A strategy, composed beside the words of a problem."""
    own = strategy_words(name)
    if not any(one.startswith(f"{GENERATIONS}=") for one in own):
        return Contender(name, compose(*place, *own).strategy)
    problem = compose(*(word for word in place if not word.startswith(f"{GENERATIONS}=")), *own)
    return Contender(name, problem.strategy, problem.generations)


def _setting(
    title: str,
    problem: Problem,
    limits: Mapping[str, tuple[str, ...]],
    contender: Contender,
    context: RunContext,
) -> Setting:
    """A problem with its objects made, and its limits as numbers."""
    of_problem = {name: bound for name, bound in problem.limits.items() if bound is not None}
    free = replace(problem, strategy=contender.strategy, limits={}, confidence=None, recipe=Recipe(epochs=0))
    task = set_up(free, context, {*of_problem, *limits})
    task.prepare_device()
    alternatives = itertools.product(*(map(_plain, values) for values in limits.values()))
    parsed: list[tuple[Limit, ...]] = []
    for values in alternatives:
        bounds: dict[str, Any] = {**of_problem, **dict(zip(limits, values, strict=True))}
        if not bounds:
            continue
        plain_bounds = parse_limits(bounds, task.space, task.evaluators)
        own, _ = with_margins(
            plain_bounds, task.space, task.evaluators, problem.confidence, context.display.warn
        )
        check_possible(task.space, task.evaluators, own, "")
        parsed.append(own)
    what = task.names["search_space" if task.names["dataset"] == "none" else "dataset"]
    return setting(title or f"{what}, {task.names['device']}", task, parsed, context.store_dir)
