"""The supernet evaluator on the DARTS space."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_supernet import Folders, folders

from hwnas.spaces.darts import Darts
from hwnas.spaces.darts.encoding import DIL_3X3, NONE, SEP_3X3, SKIP

__all__ = ["folders"]  # a fixture here, too
SPACE = Darts(image_shape=(1, 8, 8))
SMALL = ["num_cells=3", "warmup_epochs=1"]


def test_stages_of_fewer_operations(folders: Folders) -> None:
    """pEvoNAS: every stage is a new supernet with the former weights of the operations that are left."""
    settings = ["training.sampling=random_alpha", "training.alpha_scale=1e-3", "decoding=soft"]
    evaluator = folders.evaluator(*SMALL, *settings, "training.lr=1e-12", "training.lr_min=0", space=SPACE)
    names, weights = [], []
    for space in (
        SPACE,
        SPACE.restrict([(NONE, SKIP, SEP_3X3, DIL_3X3)] * 28),
        SPACE.restrict([(NONE, SEP_3X3), (SKIP, DIL_3X3)] * 14),
    ):
        population = space.sample(np.random.default_rng(0), 2)
        evaluator.prepare(space, population)
        rows = evaluator.evaluate(population)
        assert all(0 <= row["val_acc"] <= 1 for row in rows)
        assert evaluator._weights is not None
        parameters = dict(evaluator._weights.supernet.named_parameters())
        names.append(set(parameters))
        weights.append({name: parameter.detach().clone() for name, parameter in parameters.items()})
    assert names[0] > names[1] > names[2]
    assert {"cells.0.edges.0.sep_conv_3x3.1.weight", "cells.2.preprocess_1.1.weight"} < names[2]
    for name in names[2]:
        assert torch.allclose(weights[2][name], weights[0][name], rtol=0, atol=1e-9), name
    assert len(folders.trained) == 3


def test_too_few_cells_are_one_line(folders: Folders) -> None:
    with pytest.raises(ValueError, match=r"num_cells must be a whole number of at least 3, not 1"):
        folders.evaluator("num_cells=1", space=SPACE)


@pytest.mark.slow
def test_a_search_on_digits(run_hwnas: Callable[..., object], tmp_path: Path) -> None:
    """EvNAS' way of training and judging, in small: every generation trains the supernet, soft decoding."""
    run_hwnas(
        *("search", "search_space=darts", "search_space.channels=4", "search_space.num_cells=3"),
        *("evaluator=supernet", "evaluator.channels=2", "evaluator.num_cells=3", "evaluator.warmup_epochs=0"),
        *("evaluator.training.batch_size=256", "evaluator.num_valid=100"),
        *("evaluator.epochs_per_generation=1", "evaluator.training.sampling=population"),
        *("evaluator.decoding=soft", "evaluator.eval_mode=running", "dataset=digits", "device=flops"),
        *("strategy=mo_hdnas", "strategy.population_size=4", "generations=2", "trainer=none"),
        "hydra.run.dir=run",
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["search_space"]) == ("finished", "darts")
    assert result["evaluations"]["asked"] == 8
    trials = [json.loads(line) for line in (tmp_path / "run" / "archive.jsonl").read_text().splitlines()]
    assert len(trials) == 8
    assert all(len(trial["genotype"]) == 28 and 0 <= trial["metrics"]["val_acc"] <= 1 for trial in trials)
    assert (tmp_path / "run" / "supernet" / "checkpoint.pt").is_file()
