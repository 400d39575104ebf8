"""Runs beside each other: videos are paired by name, each bank with one of its own recipe."""

from dataclasses import replace

import numpy as np
import pytest

from raffect.datasets.affwild2.tasks import EXPR
from raffect.evaluation.comparison import JudgedRun, compare_runs
from raffect.metrics.task_kinds import kind_of
from raffect.runs.spread import Spread
from tests.helpers.runs import draw_confusion


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.01, 0.2), "higher"),
        ((-0.2, -0.01), "lower"),
        ((-0.1, 0.1), "cannot be distinguished"),
        ((0.0, 0.1), "cannot be distinguished"),
        (None, "no interval"),
    ],
)
def test_a_difference_is_higher_or_lower_only_where_its_interval_excludes_0(interval, verdict):
    names = ["v0", "v1"]
    runs = [judged("A", 0.6, names), judged("B", 0.4, names, seed=1)]
    first, second = compare_runs(runs, "first", kind_of(EXPR))
    assert first.verdict() == ""
    difference = replace(second.difference, interval_95=interval)
    assert replace(second, difference=difference).verdict() == verdict


def judged(letter, skill, groups, recipe="erm", seed=0):
    rng = np.random.default_rng(seed)
    truth = draw_confusion(1.0, len(groups)).sum(-1)
    wrong = skill * np.eye(8) + (1 - skill) / 8
    statistics = np.array([rng.multinomial(truth, wrong) for _ in range(2)], float)
    scores = kind_of(EXPR).headline(statistics.sum(1))
    score = Spread(mean=float(scores.mean()), sd=None, interval_95=None, heads=2, epochs=(1, 1))
    return JudgedRun(letter, recipe, "-", score, groups, statistics)


def test_videos_are_paired_by_name_whatever_their_order_in_a_bank():
    names = [f"v{k}" for k in range(7)]
    one, two = judged("A", 0.6, names), judged("B", 0.4, names, seed=1)
    order = [3, 1, 6, 0, 2, 5, 4]
    turned = replace(two, groups=[names[k] for k in order], statistics=two.statistics[:, order])
    kind = kind_of(EXPR)
    straight, mixed = (compare_runs([one, other], "first", kind)[1] for other in (two, turned))
    assert mixed.difference.mean == pytest.approx(straight.difference.mean)
    assert mixed.difference.interval_95 == pytest.approx(straight.difference.interval_95)
    # Without their names other videos would have been paired
    assert not np.allclose(two.statistics, turned.statistics)


def test_every_bank_stands_beside_one_of_its_own_recipe():
    names = [f"v{k}" for k in range(6)]
    runs = [
        judged("A", 0.6, names),
        judged("B", 0.3, names, seed=1),
        judged("A", 0.2, names, "paper", seed=2),
        judged("B", 0.5, names, "paper", seed=3),
    ]
    kind = kind_of(EXPR)
    best, first, named = (compare_runs(runs, word, kind) for word in ("best", "first", "B"))
    assert [found.against for found in best] == ["A", "A", "B", "B"]
    assert [found.against for found in first] == ["A"] * 4
    assert [found.against for found in named] == ["B"] * 4
    assert [found.difference is None for found in best] == [True, False, False, True]
    for found in (best, first, named):
        means = {(score.recipe, score.letter): score.score.mean for score in found}
        for score in found:
            if score.difference is not None:
                own = means[score.recipe, score.letter] - means[score.recipe, score.against]
                assert score.difference.mean == pytest.approx(own)
