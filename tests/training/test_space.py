"""Spaces of a sweep as text, and the heads that they name."""

import re

import pytest

from raffect.errors import RaffectError
from raffect.recipe import Recipe, with_settings
from raffect.training.space import add_baseline, list_recipes, read_space

BASE = Recipe(task="expr")


def test_axes_are_lists_and_ranges_with_both_ends():
    found = read_space(["loss.alpha=0.1:1:0.1"])["loss.alpha"]
    assert found == pytest.approx([k / 10 for k in range(1, 11)])
    axes = ["seed=0:4", "optim.name=adam,adamw", "sam.independent_dropout=true,false"]
    assert read_space(axes) == {
        "seed": [0, 1, 2, 3, 4],
        "optim.name": ["adam", "adamw"],
        "sam.independent_dropout": [True, False],
    }


def test_a_grid_has_every_combination_once_and_the_baseline_behind_it():
    recipes = list_recipes(BASE, ["loss.alpha=0.3,1,0.3", "seed=0,1"], 0)
    assert [(r.loss.alpha, r.seed) for r in recipes] == [(0.3, 0), (0.3, 1), (1.0, 0), (1.0, 1)]
    with_erm = add_baseline(recipes)
    erm = [(r.loss.alpha, r.sam.rho, r.seed) for r in with_erm[4:]]
    assert erm == [(1.0, 0.0, 0), (1.0, 0.0, 1)]
    assert add_baseline(with_erm) == with_erm


def test_random_draws_repeat_and_follow_the_seed():
    axes = ["optim.lr=loguniform(1e-4,1e-2)", "sam.rho=uniform(0,0.5)", "seed=0,1"]
    bases = (BASE, BASE, with_settings(BASE, {"seed": 9}))
    one, again, other = (list_recipes(base, axes, 5) for base in bases)
    assert one == again
    assert len(one) == 10
    assert all(1e-4 <= r.optim.lr <= 1e-2 and 0 <= r.sam.rho <= 0.5 for r in one)
    assert one != other


@pytest.mark.parametrize(
    ("axes", "samples", "match"),
    [
        (["loss.alfa=1"], 0, "did you mean loss.alpha"),
        (["loss.alpha"], 0, "expected NAME=V1,V2"),
        (["loss.alpha=0,1"], 0, "loss.alpha 0.0: expected more than 0"),
        (["loss.alpha=x"], 0, "expected a number"),
        (["loss.alpha=1:0.1:0.1"], 0, "FROM <= TO"),
        (["loss.alpha=0.1:1:0"], 0, "STEP > 0"),
        (
            ["loss.alpha=0.1:1"],
            0,
            "FROM:TO without STEP is for whole numbers; expected a step, such as 0.1:1:0.1",
        ),
        (["loss.alpha=1:2.5"], 0, "FROM:TO without STEP is for whole numbers"),
        (["loss.alpha=a:b"], 0, "'a' is not a number"),
        (["seed=0,1", "seed=2"], 0, "seed is there twice"),
        (["task=expr,au"], 0, "a sweep has one task"),
        (["optim.lr=loguniform(0,1)"], 3, "above 0"),
        (["optim.lr=uniform(1e-4,1e-3)"], 0, "how many draws"),
        (["seed=0,1"], 3, "no axis of --space is a distribution"),
    ],
)
def test_a_wrong_space_is_one_line(axes, samples, match):
    with pytest.raises(RaffectError, match=re.escape(match)):
        list_recipes(BASE, axes, samples)
