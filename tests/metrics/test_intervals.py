"""Intervals over videos: by hand, at the ends of the range, and by populations of known score."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from raffect.metrics.intervals import difference_interval, score_interval
from raffect.metrics.task_kinds import KINDS

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from populations import POPULATIONS

CLASSES, LABELS, VALUES = KINDS["multiclass"], KINDS["multilabel"], KINDS["regression"]
BY_NAME = {population.name: population for population in POPULATIONS}


def drawn(name, videos, seed=0):
    return BY_NAME[name].draw(videos, np.random.default_rng(seed))


@pytest.mark.parametrize("name", BY_NAME)
def test_the_interval_is_that_of_a_jackknife_by_hand(name):
    kind, statistics = BY_NAME[name].kind, drawn(name, 15)[0]

    # Pseudo-values on the logit of the score's place in its range
    def logit(score):
        place = (score - kind.lowest) / (1 - kind.lowest)
        return np.log(place / (1 - place))

    whole = logit(kind.headline(statistics.sum(0)))
    without = [logit(kind.headline(np.delete(statistics, k, 0).sum(0))) for k in range(15)]
    pseudo = 15 * whole - 14 * np.array(without)
    deviations = pseudo - pseudo.mean()
    effective = (deviations**2).sum() ** 2 / (deviations**4).sum()
    half = stats.t.ppf(0.975, effective + 2) * pseudo.std(ddof=1) / np.sqrt(15)
    ends = np.array([min(whole, pseudo.mean() - half), max(whole, pseudo.mean() + half)])
    expected = kind.lowest + (1 - kind.lowest) / (1 + np.exp(-ends))
    assert score_interval(statistics, kind) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "videos", "least"),
    [(name, 13, 0.92) for name in BY_NAME] + [(name, 70, 0.94) for name in BY_NAME],
)
def test_95_percent_intervals_hold_the_true_score(name, videos, least):
    population, rng, draws = BY_NAME[name], np.random.default_rng(videos), 300
    (truth, other), kind = population.truth, population.kind
    pairs = [population.draw(videos, rng) for _ in range(draws)]
    hits, paired = np.zeros(draws, bool), np.zeros(draws, bool)
    for k, (first, second) in enumerate(pairs):
        low, high = score_interval(first, kind)
        hits[k] = low <= truth <= high
        _, (low, high) = difference_interval(second, first, kind)
        paired[k] = low <= other - truth <= high
    for found in (hits.mean(), paired.mean()):
        assert found + 2 * np.sqrt(found * (1 - found) / draws) >= least


@pytest.mark.parametrize("name", BY_NAME)
def test_the_truth_of_a_population_is_its_score_on_very_many_videos(name):
    population = BY_NAME[name]
    many = drawn(name, 30_000, seed=1).sum(1)
    assert population.kind.headline(many) == pytest.approx(population.truth, abs=0.01)


def test_an_interval_over_videos_is_wider_than_one_over_frames():
    rng = np.random.default_rng(1)
    is_good = rng.random(12) < 0.5
    statistics = np.array([np.eye(8) * 5 if good else 5 / 8 * np.ones((8, 8)) for good in is_good])
    low, high = score_interval(statistics, CLASSES)
    assert high - low > 0.3  # 480 frames alone would say .09
    frames = statistics.sum(0)[None] / 480 * np.ones((480, 1, 1))
    assert score_interval(frames, CLASSES) is None  # frames that are all alike say nothing


def test_the_interval_of_several_heads_is_that_of_their_mean():
    statistics = drawn("EXPR mild", 20)
    assert score_interval(statistics[:1], CLASSES) == score_interval(statistics[0], CLASSES)
    twice = score_interval(np.concatenate([statistics[:1]] * 2), CLASSES)
    assert twice == pytest.approx(score_interval(statistics[0], CLASSES))
    low, high = score_interval(statistics, CLASSES)
    assert low < CLASSES.headline(statistics.sum(1)).mean() < high


def test_one_video_has_no_interval():
    statistics = drawn("EXPR mild", 1)
    assert score_interval(statistics, CLASSES) is None
    assert difference_interval(statistics[0], statistics[1], CLASSES)[1] is None


def test_equal_videos_have_no_interval():
    statistics = np.tile(np.diag([5] * 8), (6, 1, 1))  # always right: other videos may differ
    assert score_interval(statistics, CLASSES) is None
    own_class = np.array([np.diag(row) for row in np.eye(8)])  # each loss costs the same
    assert score_interval(own_class, CLASSES) is None


def test_scores_at_an_end_of_their_range_have_an_interval_inside_it():
    right, wrong = np.diag([5] * 8), np.roll(np.diag([5] * 8), 1, 1)
    low, high = score_interval(np.array([wrong, wrong, wrong, right]), CLASSES)
    assert low == 0 < high <= 1  # without the right one nothing is right
    opposed = np.array([[[9.0, 0, 0, 9, 9, -9]] * 2, [[9.0, 0, 0, 9, 9, 9]] * 2])
    low, high = score_interval(opposed, VALUES)
    assert -1 <= low < VALUES.headline(opposed.sum(0)) < high <= 1


def test_the_score_lies_in_its_interval_where_rare_and_absent_classes_are_lost():
    rng = np.random.default_rng(4)
    true = rng.integers(0, 6, (30, 20))  # two classes never occur
    true[7] = 6  # one occurs in a single video, and is missed there
    predicted = np.where((rng.random(true.shape) < 0.7) & (true != 6), true, (true + 1) % 6)
    statistics = np.zeros((30, 8, 8))
    np.add.at(statistics, (np.arange(30)[:, None], true, predicted), 1)
    low, high = score_interval(statistics, CLASSES)
    assert low < CLASSES.headline(statistics.sum(0)) < high
    assert high - low < 0.3


def test_the_difference_of_equal_heads_is_nothing_and_of_paired_ones_narrower():
    first, second = drawn("EXPR sparse", 40)
    assert difference_interval(first, first, CLASSES) == (0, None)
    difference, (low, high) = difference_interval(second, first, CLASSES)
    scores = CLASSES.headline(np.array([second.sum(0), first.sum(0)]))
    assert difference == pytest.approx(scores[0] - scores[1])
    alone = score_interval(first, CLASSES)
    assert high - low < alone[1] - alone[0]
    opposite, (other_low, other_high) = difference_interval(first, second, CLASSES)
    assert (opposite, other_low, other_high) == pytest.approx((-difference, -high, -low))
