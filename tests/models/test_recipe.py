from __future__ import annotations

import math

import pytest

from hwnas.training.recipe import Recipe


def test_one_cycle_warms_up_over_a_tenth_of_the_steps() -> None:
    recipe = Recipe(epochs=10)
    factors = [recipe.lr_factor(step, 100, 10) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)  # half of the 90 steps after the warm-up
    assert factors[100] == pytest.approx(0.0)


def test_cosine_changes_once_per_epoch() -> None:
    recipe = Recipe(epochs=600, schedule="cosine")
    assert [recipe.lr_factor(step, 4200, 7) for step in (0, 6)] == [1.0, 1.0]
    assert recipe.lr_factor(7, 4200, 7) == pytest.approx((1 + math.cos(math.pi / 600)) / 2)
    assert recipe.lr_factor(300 * 7, 4200, 7) == pytest.approx(0.5)
    assert recipe.lr_factor(4199, 4200, 7) == pytest.approx((1 + math.cos(math.pi * 599 / 600)) / 2)


def test_linear_is_that_of_p_darts() -> None:
    recipe = Recipe(epochs=250, batch_size=256, schedule="linear")
    factors = [recipe.lr_factor(epoch, 250, 1) for epoch in range(250)]
    # lr (E - 5 - e) / (E - 5) while E - e > 5, then lr (E - e) / ((E - 5) 5)
    assert factors[0] == 1.0
    assert factors[1] == pytest.approx(244 / 245)
    assert factors[244] == pytest.approx(1 / 245)
    assert factors[245:] == pytest.approx([n / 1225 for n in (5, 4, 3, 2, 1)])
    large = Recipe(epochs=250, batch_size=257, schedule="linear")
    warm = [large.lr_factor(epoch, 250, 1) / factors[epoch] for epoch in range(6)]
    assert warm == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    two = Recipe(epochs=250, batch_size=256, devices=2, schedule="linear")
    assert two.lr_factor(0, 250, 1) == 0.2


def test_drop_path_grows_from_zero() -> None:
    recipe = Recipe(epochs=600, drop_path=0.2)
    assert [recipe.drop_path_at(epoch) for epoch in (0, 300, 599)] == pytest.approx(
        [0.0, 0.1, 0.2 * 599 / 600]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "epochs must be a whole number of at least 0, not -1"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"devices": 0}, "devices must be a whole number of at least 1, not 0"),
        ({"lr": 0}, "lr must be a number above 0, not 0"),
        ({"drop_path": 1}, "drop_path must be a number of at least 0 and below 1, not 1"),
        ({"auxiliary_weight": -1}, "auxiliary_weight must be a number of at least 0, not -1"),
        ({"schedule": "step"}, "schedule must be one of one_cycle, cosine, linear, not 'step'"),
        ({"epochs": 5, "schedule": "linear"}, "epochs must be above 5 with schedule=linear, not 5"),
        ({"precision": "64"}, "precision must be one of 32, bf16, fp16, auto, not '64'"),
        ({"compile": "yes"}, "compile must be true or false, not 'yes'"),
        ({"strategy": 2}, "strategy must be text, not 2"),
    ],
)
def test_values_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**{"epochs": 10, **settings})  # type: ignore[arg-type]


def test_what_a_network_lacks_is_named() -> None:
    Recipe(epochs=1).check(auxiliary=False, drop_path=False)
    Recipe(epochs=1, auxiliary_weight=0.4, drop_path=0.2).check(auxiliary=True, drop_path=True)
    with pytest.raises(
        ValueError, match=r"trainer.auxiliary_weight=0.4 needs .* search_space.auxiliary=true"
    ):
        Recipe(epochs=1, auxiliary_weight=0.4).check(auxiliary=False, drop_path=True)
    with pytest.raises(ValueError, match=r"trainer.drop_path=0.2 needs .* or trainer.drop_path=0"):
        Recipe(epochs=1, drop_path=0.2).check(auxiliary=True, drop_path=False)
