"""Find neural networks that are accurate and fit a device.

A `Problem` is what is searched: a space of networks, a data set, an evaluator that says how good a network
is, a device that says what it costs, and a strategy that asks for networks and observes both. `compose` makes
a problem from words of the command line, `search` runs one in a folder and returns the `Run`. `train`,
`export`, `prune`, `profile` and `report` are the other commands.

    from hwnas import compose, search

    run = search(compose("experiment=toy", "limits.latency_ms=5"), "runs/first")
    print(run.best, run.front, run.page)

Spaces (`SearchSpace`), evaluators and devices (`Evaluator`) and strategies (`Strategy`) of one's own are
classes with a few methods; docs/tutorial.md writes one of each.
"""

# ruff: noqa: F401 - names for type checkers
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names as in _PUBLIC
    from hwnas.api import read_run, search
    from hwnas.cli.calls import Outcome, compose, export, profile, prune, report, train
    from hwnas.cli.compare import compare
    from hwnas.core import (
        Evaluator,
        Genotype,
        Limit,
        Objective,
        SearchSpace,
        Strategy,
        Trial,
        best,
        costs,
        front,
    )
    from hwnas.data.class_folders import ClassFolders
    from hwnas.data.folder import ImageFolder
    from hwnas.data.images import DataSet, Images, NoImages
    from hwnas.devices.flops import Flops
    from hwnas.devices.profile import Profile, ProfileDevice
    from hwnas.devices.table import CostTable
    from hwnas.evaluators.rmi import RMI
    from hwnas.evaluators.supernet import Supernet
    from hwnas.evaluators.table import Table
    from hwnas.evaluators.train import Train
    from hwnas.evaluators.zero_cost import ZeroCost
    from hwnas.runs.folder import Run
    from hwnas.runs.result import Result
    from hwnas.searches.problem import Problem, WarmStart
    from hwnas.searches.replay import Replay
    from hwnas.spaces.darts import Darts
    from hwnas.spaces.fbnet import FBNet
    from hwnas.spaces.module import ModuleSpace
    from hwnas.spaces.module.words import choice, depth, kernel, optional, width
    from hwnas.spaces.nasbench201 import NasBench201
    from hwnas.spaces.toy import Toy, ToyCost
    from hwnas.strategies.cmanas import CMANAS
    from hwnas.strategies.evnas import EvNAS
    from hwnas.strategies.hw_evrsnas import HWEvRSNAS
    from hwnas.strategies.local_search import LocalSearch
    from hwnas.strategies.mo_hdnas import MOHDNAS
    from hwnas.strategies.nevonas import NEvoNAS
    from hwnas.strategies.pevonas import PEvoNAS
    from hwnas.strategies.random import RandomSearch
    from hwnas.strategies.regularized_evolution import RegularizedEvolution
    from hwnas.training.recipe import Recipe

__version__ = "0.1.0"

_PUBLIC = {
    "hwnas.api": (
        "read_run",
        "search",
    ),
    "hwnas.cli.calls": (
        "Outcome",
        "compose",
        "export",
        "profile",
        "prune",
        "report",
        "train",
    ),
    "hwnas.cli.compare": ("compare",),
    "hwnas.core": (
        "Evaluator",
        "Genotype",
        "Limit",
        "Objective",
        "SearchSpace",
        "Strategy",
        "Trial",
        "best",
        "costs",
        "front",
    ),
    "hwnas.data.class_folders": ("ClassFolders",),
    "hwnas.data.folder": ("ImageFolder",),
    "hwnas.data.images": (
        "DataSet",
        "Images",
        "NoImages",
    ),
    "hwnas.devices.flops": ("Flops",),
    "hwnas.devices.profile": (
        "Profile",
        "ProfileDevice",
    ),
    "hwnas.devices.table": ("CostTable",),
    "hwnas.evaluators.rmi": ("RMI",),
    "hwnas.evaluators.supernet": ("Supernet",),
    "hwnas.evaluators.table": ("Table",),
    "hwnas.evaluators.train": ("Train",),
    "hwnas.evaluators.zero_cost": ("ZeroCost",),
    "hwnas.runs.folder": ("Run",),
    "hwnas.runs.result": ("Result",),
    "hwnas.searches.problem": (
        "Problem",
        "WarmStart",
    ),
    "hwnas.searches.replay": ("Replay",),
    "hwnas.spaces.darts": ("Darts",),
    "hwnas.spaces.fbnet": ("FBNet",),
    "hwnas.spaces.module": ("ModuleSpace",),
    "hwnas.spaces.module.words": (
        "choice",
        "depth",
        "kernel",
        "optional",
        "width",
    ),
    "hwnas.spaces.nasbench201": ("NasBench201",),
    "hwnas.spaces.toy": (
        "Toy",
        "ToyCost",
    ),
    "hwnas.strategies.cmanas": ("CMANAS",),
    "hwnas.strategies.evnas": ("EvNAS",),
    "hwnas.strategies.hw_evrsnas": ("HWEvRSNAS",),
    "hwnas.strategies.local_search": ("LocalSearch",),
    "hwnas.strategies.mo_hdnas": ("MOHDNAS",),
    "hwnas.strategies.nevonas": ("NEvoNAS",),
    "hwnas.strategies.pevonas": ("PEvoNAS",),
    "hwnas.strategies.random": ("RandomSearch",),
    "hwnas.strategies.regularized_evolution": ("RegularizedEvolution",),
    "hwnas.training.recipe": ("Recipe",),
}
"""The public names, by the module that defines them; it is imported when a name is first used."""

_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'hwnas' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
