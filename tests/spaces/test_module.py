"""Spaces of plain PyTorch modules: what is derived equals what torch says of each network."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwnas import (
    ModuleSpace,
    Run,
    choice,
    compose,
    depth,
    export,
    kernel,
    optional,
    read_run,
    search,
    width,
)
from hwnas.devices.measure import by_work
from hwnas.devices.profile import agreement
from hwnas.evaluators.rmi import similarities
from hwnas.spaces.blocks import count
from hwnas.spaces.capabilities import drawing
from hwnas.spaces.module import source

PAGE = (Path(__file__).parents[2] / "docs" / "modules.md").read_text()


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(source, "_trusted", set())


class Small(nn.Module):
    """A stem, one to three blocks, and a classifier."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, k = width("stem", [4, 6]), kernel("stem.kernel", [1, 3])
        self.stem = nn.Conv2d(image_shape[0], channels, k, padding=k // 2)

        def block(index: int) -> nn.Module:
            groups = choice(f"block{index}.groups", [1, 2])
            return nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)

        self.blocks = depth("depth", [1, 2, 3], block)
        self.norm = optional("norm", lambda: nn.BatchNorm2d(channels))
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x).relu())).mean((2, 3)))


@pytest.fixture(scope="module")
def small() -> ModuleSpace:
    return ModuleSpace(Small, image_shape=(3, 5, 7), num_classes=10)


def test_choices_in_the_order_in_which_networks_meet_them(small: ModuleSpace) -> None:
    assert small.ops == ("4", "6", "1", "3", "2", "no", "yes")
    assert small.choices == ((0, 1), (2, 3), (2, 3, 4), (2, 4), (2, 4), (2, 4), (5, 6))
    assert small.size == 2 * 2 * 3 * 2 * 2 * 2 * 2
    names = [slot.name for slot in drawing(small).slots]
    blocks = [f"block{index}.groups" for index in range(3)]
    assert names == ["stem", "stem.kernel", "depth", *blocks, "norm"]
    assert small.any_image_size


def test_counts_by_hand(small: ModuleSpace) -> None:
    """35 pixels; a stem of 6 channels by 3x3 with bias, two blocks, the second in 2 groups, BatchNorm."""
    genotype = small.from_str("stem=6 stem.kernel=3 depth=2 block0.groups=1 block1.groups=2 norm=yes")
    assert genotype == (1, 3, 4, 2, 4, 2, 6)
    params = (3 * 6 * 9 + 6) + 6 * 6 * 9 + 6 * 3 * 9 + 12 + (6 + 1) * 10
    flops = 35 * (3 * 6 * 9 + 6 * 6 * 9 + 6 * 3 * 9) + (6 + 1) * 10
    found = small.static_metrics([genotype])
    assert (found["params"].tolist(), found["flops"].tolist()) == ([params], [flops])
    work = small.work([genotype])
    assert work["conv3x3 layers"].tolist() == [2]
    assert work["conv3x3 elements"].tolist() == [35 * (3 + 6 + 6 + 6)]
    assert work["grouped3x3 flops"].tolist() == [35 * 6 * 3 * 9]


def test_all_counts_are_those_of_torch(small: ModuleSpace) -> None:
    drawn = small.all()[::5]
    found = small.static_metrics(drawn)
    for genotype, params, flops in zip(drawn, found["params"], found["flops"], strict=True):
        assert count(small.network(genotype), small.image_shape) == (params, flops)
    assert set(small.static_metrics([])) == {"flops", "params"}


def test_choices_that_a_network_does_not_meet(small: ModuleSpace) -> None:
    """A third block is only there at depth 3: its groups neither count nor are written."""
    one = (0, 2, 2, 2, 4, 4, 5)
    assert small.live([one]).tolist() == [[0, 2, 2, 2, 2, 2, 5]]
    assert small.to_str(one) == "stem=4 stem.kernel=1 depth=1 block0.groups=1 norm=no"
    drawn = small.sample(np.random.default_rng(0), 200)
    assert small.live(drawn).tolist() == [list(genotype) for genotype in drawn]
    assert {small.from_str(small.to_str(genotype)) for genotype in drawn} == set(drawn)
    assert all(small.mutate(drawn[0], np.random.default_rng(seed)) != drawn[0] for seed in range(20))
    near = small.neighbours(small.from_str("stem=4 stem.kernel=1 depth=1 block0.groups=1 norm=no"))
    assert len(near) == len(set(near)) == 6  # stem, kernel, depth 2 and 3, groups, norm; none of other blocks
    assert small.decode(small.onehot([one])) == [(0, 2, 2, 2, 2, 2, 5)]
    assert len(np.unique(small.features(drawn), axis=0)) == len(set(drawn))


def test_a_part_of_a_space(small: ModuleSpace) -> None:
    part = small.restrict([[1], [3], [4], [2, 4], [2], [2], [5]])
    assert part.size == 2
    assert {genotype[0] for genotype in part.sample(np.random.default_rng(0), 9)} == {1}
    with pytest.raises(ValueError, match="choice 'stem' has no option"):
        small.restrict([[2], [3], [4], [2], [2], [2], [5]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stem=5", "unknown option '5' of stem in 'stem=5'; known: 4, 6"),
        ("stm=4", "unknown choice 'stm' in 'stm=4'; did you mean stem?"),
        ("stem=4 stem=6", "stem is given twice"),
        ("stem=4 stem.kernel=1 depth=2 block0.groups=1 norm=no", "has no block1.groups; known: 1, 2"),
    ],
)
def test_texts_that_are_wrong(small: ModuleSpace, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        small.from_str(text)


def test_outside_of_a_search_a_module_is_an_ordinary_one() -> None:
    network = Small((3, 5, 7), 10)
    assert network(torch.zeros(2, 3, 5, 7)).shape == (2, 10)
    assert len(network.blocks) == 1
    assert isinstance(network.norm, nn.Identity)


class Wide(nn.Module):
    """Twenty layers with a width and a kernel each: 12^20 networks."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for index in range(20):
            after, k = (
                width(f"layer{index}.width", [8, 16, 24, 32]),
                kernel(f"layer{index}.kernel", [1, 3, 5]),
            )
            layers += [nn.Conv2d(before, after, 1), nn.ReLU()]
            layers.append(nn.Conv2d(after, after, k, padding=k // 2, groups=after))
            before = after
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


@pytest.mark.slow
def test_a_space_of_ten_to_the_twenty() -> None:
    """Some hundred networks tell the costs of all."""
    space = ModuleSpace(Wide, image_shape=(3, 8, 8))
    assert space.size == 12**20
    drawn = space.sample(np.random.default_rng(0), 5_000)
    found = space.static_metrics(drawn)
    assert space.costs.num_counted < 600
    for row in (0, 17, 4_999):
        assert count(space.network(drawn[row]), space.image_shape) == (
            found["params"][row],
            found["flops"][row],
        )


class Dense(nn.Module):
    """Each of six layers sees all before it: the last depends on six widths, but on the sum of five."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels, self.convs = 3, nn.ModuleList()
        for index in range(6):
            grown = width(f"layer{index}", [4, 8, 12, 16])
            self.convs.append(nn.Conv2d(channels, grown, 3, padding=1))
            channels += grown
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.cat([x, conv(x).relu()], dim=1)
        return self.head(x.mean((2, 3)))


def test_layers_that_depend_on_the_sum_of_many_widths() -> None:
    space = ModuleSpace(Dense, image_shape=(3, 8, 8))
    everything = space.all()
    found = space.static_metrics(everything)
    assert len(everything) == 4**6
    assert space.costs.num_counted < 400
    grown = np.array([[4, 8, 12, 16][op] for genotype in everything for op in genotype]).reshape(-1, 6)
    seen = 3 + np.cumsum(grown, axis=1) - grown
    params = (9 * seen * grown + grown).sum(axis=1) + 10 * (seen[:, -1] + grown[:, -1]) + 10
    flops = 64 * (9 * seen * grown).sum(axis=1) + 10 * (seen[:, -1] + grown[:, -1]) + 10
    assert (found["params"] == params).all()
    assert (found["flops"] == flops).all()


def net(code: str) -> type[nn.Module]:
    """A class whose constructor has this code, and whose networks are `self.layer`."""
    own: dict[str, object] = {}
    lines = "\n        ".join(code.splitlines())
    text = f"class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        {lines}\n"
    text += "    def forward(self, x):\n        return self.layer(x)\n"
    words = {"choice": choice, "width": width, "depth": depth, "kernel": kernel, "nn": nn, "torch": torch}
    exec(text, words | {"__name__": __name__}, own)
    return own["Net"]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "self.layer = nn.Sequential(nn.Flatten(), nn.Linear(105, 10))",
            "Net has no choices; mark what may vary in its __init__",
        ),
        (
            "width('a', [1, 2])\nwidth('a', [1, 2])",
            "two choices are called 'a'; each needs a name of its own",
        ),
        ("width('a', [])", "options of width('a', ...) must be different, and at least one"),
        ("width('a', [0])", "options of width('a', ...) are whole numbers of at least 1, not 0"),
        ("width('a b', [1])", "the name of a width must be letters, digits"),
        ("choice('a', {'x y': 1})", "an option of choice('a', ...) is called 'x y'"),
        ("choice('a', 'xy')", "choice('a', ...) needs a list of options, not 'xy'"),
        (
            "c = width('stem', [8, 12])\ng = choice('groups', [1, 4, 8])\n"
            "self.layer = nn.Sequential(nn.Conv2d(3, c, 1), nn.Conv2d(c, 8, 1, groups=g), nn.Flatten(), "
            "nn.Linear(280, 10))",
            "Net with stem=12 and groups=8 does not fit images of 3x5x7: it cannot be built: in_channels "
            "must be divisible by groups",
        ),
        (
            "k = kernel('k', [1, 3])\n"
            "self.layer = nn.Sequential(nn.Conv2d(3, 8, k), nn.Flatten(), nn.Linear(280, 10))",
            "Net with k=3 does not fit images of 3x5x7: it cannot be run: ",
        ),
        (
            "width('a', [1, 2])\nself.layer = nn.Flatten()",
            "Net does not fit images of 3x5x7: it returns 2x105 numbers for 2 images, not the logits of 10 "
            "classes",
        ),
        (
            "width('a', [1, 2])\nself.layer = lambda x: x if x.sum() > 0 else -x",
            "Net does not fit images of 3x5x7: it cannot be run: ",
        ),
        (
            "few = width('a', [1, 2]) == 1\nwidth('b', [1, 2] if few else [3])\n"
            "self.layer = nn.Sequential(nn.Flatten(), nn.Linear(105, 10))",
            "choice 'b' of Net has the options 1, 2 in one network and 3 in another; give it another name",
        ),
    ],
)
def test_modules_that_are_wrong(code: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ModuleSpace(net(code), image_shape=(3, 5, 7))


FILE = """
from torch import nn
from hwnas import width

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        channels = width("stem", [2, 4])
        self.conv = nn.Conv2d(1, channels, 3)
        self.head = nn.Linear(2, num_classes)
    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))

class Needs(nn.Module):
    def __init__(self, colour):
        super().__init__()
"""
"""Its classifier does not fit a stem of 4 channels."""


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error names the line; a file that nobody has named on a command line does not run."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text("raise SystemExit(7)")
    for path, message in [
        ("none.py:Net", "file 'none.py' not found"),
        ("mine.py", "path must be <file.py>:<class>"),
        ("mine.py:Net", "is code that would be run, and you have never named it"),
    ]:
        with pytest.raises(ValueError, match=message):
            ModuleSpace(path=path)
    file.write_text(FILE)
    source.trust("mine.py:Net")
    monkeypatch.setattr(source, "_trusted", set())  # another process
    with pytest.raises(ValueError, match="with stem=4 does not fit images of 1x8x8: it cannot be run"):
        ModuleSpace(path="mine.py:Net", image_shape=(1, 8, 8))
    with pytest.raises(ValueError, match=re.escape(f"({file}, line 12: return self.head(")):
        ModuleSpace(path="mine.py:Net", image_shape=(1, 8, 8))
    for path, message in [
        ("mine.py:Met", "has no class 'Met'; did you mean Net?"),
        ("mine.py:Needs", "Needs.__init__ needs 'colour', which nobody gives it"),
        ("mine.py:width", "needs a class of nn.Module, not <function width"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            ModuleSpace(path=path)
    file.write_text("\ndef")
    source.trust("mine.py:Net")
    with pytest.raises(ValueError, match=r"mine.py cannot be run: SyntaxError: .* \(line 2\)"):
        ModuleSpace(path="mine.py:Net")


def test_copies_in_other_processes_find_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE.replace("Linear(2", "Linear(channels"))
    source.trust(f"{file}:Net")
    space = ModuleSpace(path=f"{file}:Net", image_shape=(1, 8, 8))
    again = pickle.loads(pickle.dumps(space))
    assert again.name == space.name
    assert again.network((1,))(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_times_are_explained_by_the_work_of_layers(small: ModuleSpace) -> None:
    """A made-up device: 2 ms per network, 1 ms per convolution of 3x3, and 1 ns per multiply-add of it."""
    networks = small.sample(np.random.default_rng(1), 60)
    work = small.work(networks)
    times = 2 + work["conv3x3 layers"] + 1e-6 * work["conv3x3 flops"]
    cost = by_work(small, np.array(networks[:40]), times[:40])
    assert np.allclose(cost.of(small, networks), times, rtol=1e-6)
    assert agreement(cost.of(small, networks[40:]), times[40:])["r2"] > 1 - 1e-9


def test_features_of_networks_of_different_widths(small: ModuleSpace) -> None:
    """Zeros fill what is shorter: similarities are those of each network alone."""
    texts = [
        "stem=4 stem.kernel=1 depth=1 block0.groups=1 norm=no",
        "stem=6 stem.kernel=3 depth=3 block0.groups=1 block1.groups=2 block2.groups=1 norm=yes",
    ]
    networks = small.drawn([small.from_str(text) for text in texts], 3)
    x = torch.rand(8, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    taps, logits = networks.features(x)
    assert [tuple(tap.shape) for tap in taps] == [(8, 2, 6 * 35, 1, 1)] * 3
    assert logits.shape == (2, 8, 10)
    target = [torch.eye(8)] * 3
    together = similarities(taps, target)
    for number, text in enumerate(texts):
        (alone,) = small.drawn([small.from_str(text)], 3).networks
        own = [
            alone.stem(x),
            alone.blocks(alone.stem(x).relu()),
            alone.norm(alone.blocks(alone.stem(x).relu())),
        ]
        ends = own if number == 0 else [alone.blocks[0](own[0].relu()), own[1], own[2]]
        assert torch.allclose(logits[number], alone(x), atol=1e-5)
        assert torch.allclose(
            together[2, number], similarities([ends[2][:, None]], target[:1])[0, 0], atol=1e-4
        )


@pytest.mark.parametrize(
    "words",
    [
        ("evaluator=rmi", "evaluator.reference.epochs=0", "evaluator.steps=1", "evaluator.batch_size=8"),
        ("evaluator=train", "evaluator.training.max_steps=1", "evaluator.training.batch_size=8"),
    ],
    ids=["rmi", "train"],
)
def test_a_class_in_place_of_a_space(words: tuple[str, ...], tmp_path: Path) -> None:
    few = ("strategy=random", "strategy.population_size=3", "generations=1", "device=flops", "trainer=none")
    run = search(compose(*words, *few, space=Small), tmp_path / "run", store=tmp_path / "store", show=False)
    assert len(run.trials) == 3
    assert read_run(tmp_path / "run").trials == run.trials


@pytest.fixture
def page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The module of docs/modules.md, searched by scores; the best is trained for a step."""
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ushaped.py").write_text(code[1])
    words = (
        *(
            "search_space=module",
            "search_space.path=ushaped.py:UShaped",
            "evaluator=zero_cost",
            "device=flops",
        ),
        *("evaluator.num_reference=4", "strategy.population_size=4", "generations=2", "trainer.max_steps=1"),
    )
    return search(compose(*words, limits={"flops": "q0.5"}), "run", show=False)


def test_the_page(page_run: Run) -> None:
    assert page_run.space.size == 3 * 3 * (3 * 3 * 2 * 2) ** 3 * 2 * 2
    assert page_run.best is not None
    assert page_run.result is not None
    assert page_run.result.network is not None
    assert "level0.kernel" in page_run.page.read_text()
    assert read_run("run").trials == page_run.trials


@pytest.mark.slow
def test_the_page_to_a_file(page_run: Run) -> None:
    """The network is exported, and timed in both runtimes."""
    for row in export("run=run", "rounds=3", "check_images=20", show=False).result["files"]:  # type: ignore[attr-defined]
        assert row["agreement"] == 1.0
        assert row["median_ms"] > 0
