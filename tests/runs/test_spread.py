"""Heads of one setting together, the ERM they are compared with, and how scores are written."""

import pytest

from raffect.recipe import PLAIN_ERM, Recipe, with_settings
from raffect.runs.against_erm import Baselines
from raffect.runs.records import PlannedHead
from raffect.runs.spread import is_erm, short, signed
from raffect.training.space import add_baseline

BASE = Recipe(task="expr")


def test_a_setting_is_compared_with_the_erm_that_differs_from_it_least():
    def group(**settings):
        return [PlannedHead(with_settings(BASE, PLAIN_ERM | settings))]

    slow, fast = group(**{"optim.lr": 1e-4}), group(**{"optim.lr": 1e-2})
    tail = group(**{"optim.lr": 1e-2, "loss.alpha": 0.3})
    other = group(**{"optim.lr": 1e-3, "loss.alpha": 0.3})
    assert Baselines([slow, fast, tail]).beside(tail) is fast
    assert Baselines([slow, fast, other]).beside(other) is None  # which of the two?
    assert Baselines([slow, other]).beside(other) is slow
    assert Baselines([slow, fast]).beside(slow) is None


def test_erm_is_plain_whatever_the_sweep_is_of():
    erm = {"loss.alpha": 1.0, "sam.rho": 0.0}
    classes = {"loss.weighting": "effective", "loss.logit_adjustment": 1.0}
    weighted = with_settings(BASE, erm | classes)
    assert [is_erm(recipe) for recipe in add_baseline([weighted])] == [False, True]


@pytest.mark.parametrize(
    ("value", "text"), [(0.4123, ".412"), (0.0, ".000"), (1.0, "1.000"), (None, "-")]
)
def test_scores_are_written_as_the_field_does(value, text):
    assert short(value) == text


def test_differences_have_a_sign():
    assert [signed(value) for value in (0.0123, -0.4, 0.0)] == ["+.012", "-.400", "+.000"]
