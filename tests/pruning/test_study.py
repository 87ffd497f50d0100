from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import t, ttest_rel

from hwnas.cli.report import write_page_of
from hwnas.pruning.report import write_study
from hwnas.pruning.study import Arm, Group, compare, read_study, retained_area, trained_enough

SEEDS = (0, 1, 2)
NOISE = (0.0, 0.001, -0.002)


def result(
    *,
    beta: float,
    seed: int,
    area: float,
    at: float | None = 0.9,
    entanglement: float = 0.1,
    kind: str = "beta-VAE",
    weight_decay: float = 0.0,
    norm: float = 10.0,
    criterion: str = "l1",
    trained: dict[str, float] | None = None,
) -> dict[str, Any]:
    """The result.json of a finished run: two sparsities between which a mean of `area` is retained."""
    row = {"params": 10.0, "flops": 20.0, "bytes": 40.0, "bytes_compressed": 30.0, "latency_ms": 1.0}
    return {
        "status": "finished",
        "kind": kind,
        "seed": seed,
        "dataset": "digits",
        "area": area,
        "sparsity_at_1_percent": at,
        "pictures": [],
        "curve": [
            {"target": s, "sparsity": s, "unpruned_latency_ms": 2.0, **row}
            | dict.fromkeys(("test_acc", "val_acc", "one_shot_test_acc"), accuracy)
            for s, accuracy in ((0.0, 0.99), (0.9, 0.99 * (2 * area - 1)))
        ],
        "num_classes": 10,
        "trained": {
            "test_acc": area,
            "val_acc": area,
            "kl": 1.0,
            "active_units": 2.0,
            "total_correlation": 0.1,
            "mean_correlation": entanglement,
            "weight_norm": norm,
            **(trained or {}),
        },
        "settings": {
            "seed": seed,
            "model": {
                "beta": beta,
                "likelihood": "bernoulli" if kind == "beta-VAE" else "none",
                "noise": kind != "classifier",
                "capacity": None,
                "capacity_epochs": 1,
            },
            "training": {"weight_decay": weight_decay, "epochs": 1},
            "pruning": {"criterion": criterion},
            "host": {"threads": 1},
        },
    }


def write(folder: Path, results: Sequence[dict[str, Any]]) -> Path:
    for number, content in enumerate(results):
        path = folder / str(number) / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    return folder


def betas(
    areas: dict[float, float], ats: dict[float, float] | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Runs of three seeds: noise is the seed's, alike for all betas but for a tenth of it."""
    return [
        result(
            beta=beta,
            seed=seed,
            area=area + noise + 0.1 * noise * (1 + index),
            at=(ats or {}).get(beta, 0.9) + noise / 10 * index,
            entanglement=1 - area,
            **settings,
        )
        for index, (beta, area) in enumerate(areas.items())
        for seed, noise in zip(SEEDS, NOISE, strict=True)
    ]


def controls(area: float) -> list[dict[str, Any]]:
    seeds = list(zip(SEEDS, NOISE, strict=True))
    made = [result(kind="bottleneck", beta=b, seed=s, area=area + n) for b in (0, 1) for s, n in seeds]
    for decay, norm in ((0.0, 12.0), (0.1, 10.5), (1.0, 2.0)):
        made += [
            result(kind="classifier", beta=0, seed=s, area=area + n, weight_decay=decay, norm=norm)
            for s, n in seeds
        ]
    return made


INTERIOR = {0.0: 0.90, 0.5: 0.92, 1.0: 0.95, 4.0: 0.93}
LATER = {0.0: 0.80, 0.5: 0.85, 1.0: 0.90, 4.0: 0.85}


def test_the_retained_area_by_hand() -> None:
    # Sparsities 0, 1/2, 3/4: ln of 1, 2, 4; relative 1, 0.9, 0.5: the mean of 0.95 and 0.7
    assert retained_area([0, 0.5, 0.75], [0.8, 0.72, 0.4]) == pytest.approx(0.825)
    # A network that is merely better retains as much
    assert retained_area([0, 0.5, 0.75], [0.4, 0.36, 0.2]) == pytest.approx(0.825)
    assert retained_area([0.5], [0.7]) == 1
    assert retained_area([0, 0.5], [0.0, 0.1]) == 0
    assert trained_enough(0.55, 10)
    assert not trained_enough(0.5499, 10)


def test_a_comparison_is_a_paired_t_test() -> None:
    def group(areas: Sequence[float]) -> Group:
        return Group({s: Arm(Path(), result(beta=1, seed=s, area=a)) for s, a in enumerate(areas)})

    a, b = (0.91, 0.93, 0.95, 0.97), (0.90, 0.91, 0.94, 0.93, 0.5)
    one = compare("it", group(a), group(b))
    assert one is not None
    difference = np.array(a) - np.array(b[:4])  # the seed that only one of them has does not count
    assert one.num == 4
    assert one.difference == pytest.approx(0.02)
    assert one.p == pytest.approx(ttest_rel(a, b[:4]).pvalue)
    reach = t.ppf(0.975, 3) * difference.std(ddof=1) / 2
    assert (one.low, one.high) == pytest.approx((0.02 - reach, 0.02 + reach))
    assert compare("it", group(a[:1]), group(b)) is None
    equal = compare("it", group(a), group(a))
    assert equal is not None
    assert (equal.p, equal.difference) == (1.0, 0.0)


def test_supported_takes_all_four(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, betas(INTERIOR, LATER) + controls(0.9)))
    (told,) = study.conclusions
    assert told.verdict == "supported"
    assert told.correlation == pytest.approx(-1)
    assert "The best beta above 0 by validation images is 1: +4.99 points" in told.words[0]
    assert [one.name for one in told.controls] == [
        *("β 1 - β 0, sparsity at a loss of 1 point", "β 1 - β 0, plain area"),
        *("β 1 - without a decoder, β 1", "β 1 - without a decoder, β 0 (noise alone)"),
        *("β 1 - cross-entropy only", "β 1 - cross-entropy and matched weight decay 0.1"),
    ]
    assert study.conclusion.startswith("digits: supported. The best beta above 0 by validation images is 1")


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (betas({0.0: 0.90, 0.5: 0.92, 1.0: 0.95}, LATER), "4 of 4 controls at the best beta were not run"),
        (betas(INTERIOR, LATER) + controls(0.96), "cross-entropy only: -1.0"),
        (betas({**INTERIOR, 4.0: 0.97}, {**LATER, 4.0: 0.95}) + controls(0.9), "the largest that was tried"),
        (betas(INTERIOR, {0.0: 0.9}) + controls(0.9), "loses a point of its own accuracy is -0.0"),
        (betas(dict.fromkeys(INTERIOR, 0.9), LATER) + controls(0.8), "which is not significant"),
        (betas(INTERIOR, LATER)[:1] + betas(INTERIOR, LATER)[3:4], "Every beta needs two seeds"),
        (betas({0.5: 0.9, 1.0: 0.95}), "Every beta needs two seeds in common with beta = 0"),
    ],
)  # fmt: skip
def test_anything_less_is_inconclusive(tmp_path: Path, made: list[dict[str, Any]], reason: str) -> None:
    study = read_study(write(tmp_path, made))
    assert study.conclusions[0].verdict == "inconclusive"
    assert reason in study.conclusion


def test_entanglement_must_fall_with_the_area(tmp_path: Path) -> None:
    made = betas(INTERIOR, LATER) + controls(0.9)
    for content in made:
        content["trained"]["mean_correlation"] = content["area"]
    study = read_study(write(tmp_path, made))
    assert study.conclusions[0].verdict == "inconclusive"
    assert "have a rank correlation of 1.00" in study.conclusion
    # Where factors are known, their score decides.
    for content in made:
        content["trained"]["dci_disentanglement"] = content["area"]
    known = read_study(write(tmp_path / "known", made))
    assert known.conclusions[0].verdict == "supported"
    assert "1 - DCI disentanglement" in known.conclusion


def test_validation_images_choose_the_beta(tmp_path: Path) -> None:
    made = betas(INTERIOR, LATER)
    for content in made:
        if content["settings"]["model"]["beta"] == 0.5:
            content["curve"][1]["val_acc"] = 0.99
    (told,) = read_study(write(tmp_path, made)).conclusions
    assert told.words[0].startswith("The best beta above 0 by validation images is 0.5: +2.00 points")


def test_networks_that_are_hardly_trained_get_no_verdict(tmp_path: Path) -> None:
    made = betas(INTERIOR, LATER) + controls(0.9)
    for content in made:
        content["trained"]["val_acc"] = 0.34
    (told,) = read_study(write(tmp_path, made)).conclusions
    assert told.verdict == "inconclusive"
    assert "A network of β 0 has a validation accuracy of 34.0% before it is pruned" in " ".join(told.words)


def test_a_network_that_knows_nothing_does_not_win(tmp_path: Path) -> None:
    """It has nothing to lose: one such seed keeps its beta from being chosen."""
    made = betas({**INTERIOR, 0.5: 0.999}, LATER) + controls(0.9)
    (told,) = read_study(write(tmp_path / "able", made)).conclusions
    assert told.words[0].startswith("The best beta above 0 by validation images is 0.5")
    for content in made:
        if content["settings"]["model"]["beta"] == 0.5 and content["seed"] == 2:
            content["trained"]["val_acc"] = 0.1
    (told,) = read_study(write(tmp_path / "ignorant", made)).conclusions
    assert told.words[0].startswith("The best beta above 0 by validation images is 1")


def test_contradicted_is_worse_everywhere(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, betas({0.0: 0.95, 0.5: 0.93, 1.0: 0.92, 4.0: 0.9})))
    assert study.conclusions[0].verdict == "contradicted"
    assert "Significantly worse than beta = 0: 0.5, 1, 4." in study.conclusion
    some = read_study(write(tmp_path / "some", betas({0.0: 0.95, 0.5: 0.95, 4.0: 0.9})))
    assert some.conclusions[0].verdict == "inconclusive"


def test_runs_of_other_settings_are_families_of_their_own(tmp_path: Path) -> None:
    made = betas(INTERIOR) + betas(INTERIOR, criterion="random") + controls(0.9)
    study = read_study(write(tmp_path, made))
    assert [family.name for family in study.families] == ["pruning.criterion=l1", "pruning.criterion=random"]
    first, second = study.families
    assert list(first.betas) == list(second.betas) == [0.0, 0.5, 1.0, 4.0]
    assert list(first.bottlenecks) == [0.0, 1.0]
    assert list(first.classifiers) == [0.0, 0.1, 1.0]
    assert not second.classifiers  # these have the other criterion


def test_the_same_run_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="have the same settings and seed; move one away"):
        read_study(write(tmp_path, [result(beta=1, seed=0, area=0.9)] * 2))


def test_folders_without_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished pruning run"):
        read_study(tmp_path)
    (tmp_path / "result.json").write_text('{"curve": [], "status": "finished"}')
    with pytest.raises(ValueError, match=r"result\.json is not the result of a finished pruning run"):
        read_study(tmp_path)


def test_the_page(tmp_path: Path) -> None:
    write(tmp_path, betas(INTERIOR, LATER) + controls(0.9))
    path, study = write_study(tmp_path)
    page = path.read_text()
    assert page.count("<svg") == 2
    assert "Supported." in page
    assert "27 runs below" in page
    for label in ("β 0.5", "no decoder, β 1", "classifier, weight decay 0.1"):
        assert f"<td>{label}</td>" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://matplotlib.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")
    with (tmp_path / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 27 * 2
    assert rows[0]["kind"] == "beta-VAE"
    told = json.loads((tmp_path / "study.json").read_text())
    assert told[0]["verdict"] == "supported"
    assert tuple(told[0]["words"]) == study.conclusions[0].words
    for name in ("overview.png", "proxies.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    before = page
    assert write_study(tmp_path)[0].read_text() == before  # the same page again


def test_the_page_of_one_run_and_of_controls_only(tmp_path: Path) -> None:
    path, study = write_study(write(tmp_path / "one", [result(beta=1, seed=0, area=0.9)]))
    assert "<h1>The cost of pruning</h1>" in path.read_text()
    assert "Inconclusive." not in path.read_text()  # no question was asked
    assert "nearer to chance" not in path.read_text()
    doubtful = result(beta=1, seed=0, area=0.9) | {"num_classes": 3}
    doubtful["trained"]["val_acc"] = 0.64  # the bar is half way from 1/3 to 1
    page = write_study(write(tmp_path / "doubtful", [doubtful]))[0].read_text()
    assert (
        "A network of β 1 has a validation accuracy of 64.0% before it is pruned, nearer to chance than to"
        in page
    )
    bottlenecks = [result(kind="bottleneck", beta=b, seed=0, area=0.9) for b in (1, 4)]
    for number, made in enumerate((controls(0.9), bottlenecks)):
        path, study = write_study(write(tmp_path / str(number), made))
        assert "Inconclusive." in path.read_text()
        assert len(study.families) == 1


def test_a_page_of_somebody_else_stays(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", [result(beta=1, seed=0, area=0.9)])
    (folder / "report.html").write_text("<h1>my own</h1>")
    with pytest.raises(ValueError, match=r"report\.html is not a page of hwnas and would be overwritten"):
        write_study(folder)
    assert (folder / "report.html").read_text() == "<h1>my own</h1>"


def test_a_folder_of_searches_and_pruning_runs_has_no_page(tmp_path: Path) -> None:
    folder = write(tmp_path / "both", [result(beta=1, seed=0, area=0.9)])
    search = folder / "runs/search/one"
    search.mkdir(parents=True)
    (search / "archive.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds searches and pruning runs"):
        write_page_of(folder)


def test_weights_and_biases_gets_figures_and_pictures(tmp_path: Path) -> None:
    made = betas(INTERIOR, LATER)
    write(tmp_path, made)
    for number, content in enumerate(made):
        content["pictures"] = ["reconstructions.png"]
        folder = tmp_path / str(number)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "reconstructions.png")
        (folder / "result.json").write_text(json.dumps(content))
    path, study = write_study(tmp_path, logger={"wandb": True, "project": "hwnas", "mode": "offline"})
    names = [picture.name.partition("_0_")[0] for picture in (tmp_path / "wandb").rglob("*.png")]
    assert sorted(names) == [
        *("overview", "proxies"),
        *(f"reconstructions_β {beta:g}" for beta in study.families[0].betas),
    ]
    assert path.read_text().count("data:image/png;base64,") == 4


def test_runs_of_earlier_versions_are_of_the_same_family(tmp_path: Path) -> None:
    """Classes had other names then."""
    now = [result(beta=beta, seed=seed, area=0.5) for beta in (0.0, 1.0) for seed in SEEDS]
    for one in now:
        one["settings"]["training"]["_target_"] = "hwnas.pruning.beta_vae.BetaVAERecipe"
    for one, name in zip(
        now, ("hwnas.models.beta_vae.Training", "hwnas.pruning.beta_vae.Training"), strict=False
    ):
        one["settings"]["training"]["_target_"] = name
    assert len(read_study(write(tmp_path, now)).families) == 1
