"""Worst class and worst videos, from frames by scikit-learn and loops; and what they leave out."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from sklearn.metrics import f1_score

from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.heads.loss_kind import Truth
from raffect.heads.loss_kinds import loss_kind
from raffect.metrics import worst
from raffect.metrics.task_kinds import kind_of
from raffect.metrics.worst import (
    FEWEST_FRAMES,
    find_worst,
    group_scores,
    tail_difference,
    tail_mean,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from populations import POPULATIONS

VIDEOS, HEADS = 9, 3
TASKS = {"expr": EXPR, "au": AU, "va": VA}


def draw_frames(task, seed, frames=400):
    """Labels, outputs of some heads, and videos of unequal length, of which one is short."""
    rng = np.random.default_rng(seed)
    video = np.sort(rng.choice(VIDEOS - 1, frames, p=rng.dirichlet(np.full(VIDEOS - 1, 3.0))))
    video = np.concatenate([video, np.full(FEWEST_FRAMES - 1, VIDEOS - 1)])
    n = len(video)
    outputs = rng.normal(size=(HEADS, n, len(task.outputs)))
    if task is EXPR:
        # Each video shows few classes, and no video shows Fear
        shown = [rng.choice([0, 1, 2, 4, 5, 6, 7], 3, replace=False) for _ in range(VIDEOS)]
        true = np.array([rng.choice(shown[v]) for v in video])
        outputs[:, np.arange(n), true] += 1.0
    elif task is AU:
        active = rng.random((VIDEOS, 12)) < 0.6
        true = (rng.random((n, 12)) < 0.4 * active[video]).astype(np.int8)
        true[rng.random(true.shape) < 0.1] = -1
        true[:, 4] = np.minimum(true[:, 4], 0)  # AU7 is never active
        outputs += true
    else:
        true = rng.normal(0, 0.4, (n, 2)).clip(-1, 1).astype(np.float32)
        true[video == 2, 0] = 0.1  # does not vary there
        true[rng.random(true.shape) < 0.1] = np.nan
        outputs = 0.5 * outputs + np.nan_to_num(true)
    return true, outputs, video


def count(task, true, outputs, video):
    outputs, true, video = (torch.from_numpy(array) for array in (outputs, true, video))
    return loss_kind(task).count(outputs, Truth(true, video, VIDEOS)).numpy()


def score_by_frames(task, true, outputs):
    """Scores of the outputs that occur among some frames, of one head, by other libraries."""
    scores = {}
    for k, name in enumerate(task.outputs):
        if task is EXPR:
            own, found = true == k, outputs.argmax(1) == k
        elif task is AU:
            known = true[:, k] >= 0
            own, found = true[known, k] == 1, outputs[known, k] >= 0
        else:
            known = np.isfinite(true[:, k])
            t, p = true[known, k].astype(float), outputs[known, k].clip(-1, 1)
            if len(t) and np.ptp(t) > 0:
                spread = t.var() + p.var() + (t.mean() - p.mean()) ** 2
                scores[name] = 2 * np.mean((t - t.mean()) * (p - p.mean())) / spread
            continue
        if own.any():
            scores[name] = f1_score(own, found)
    return scores


def tail_by_hand(scores, share=0.3):
    """The mean of the lowest share, whole scores first and the rest of one."""
    size = max(share * len(scores), 1)
    left, total = size, 0.0
    for score in sorted(scores):
        part = min(left, 1.0)
        total, left = total + part * score, left - part
    return total / size


def labelled(task, true):
    """Frames with a label: of the output that has most of them."""
    if task is EXPR:
        return len(true)
    return (true >= 0).sum(0).max() if task is AU else np.isfinite(true).sum(0).max()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", TASKS)
def test_worst_cases_are_those_found_frame_by_frame(name, seed):
    task = TASKS[name]
    true, outputs, video = draw_frames(task, seed)
    found = find_worst(count(task, true, outputs, video), kind_of(task), task.outputs)

    # The worst output of each head
    by_head = [score_by_frames(task, true, head) for head in outputs]
    lowest = [min(scores, key=scores.get) for scores in by_head]
    values = [min(scores.values()) for scores in by_head]
    assert found.output == pytest.approx(np.mean(values))
    assert found.output_sd == pytest.approx(np.std(values, ddof=1))
    assert found.outputs == {one: lowest.count(one) for one in lowest}
    assert list(found.outputs.values()) == sorted(found.outputs.values(), reverse=True)

    # The worst videos of each head, the short one left out
    judged = [v for v in range(VIDEOS) if labelled(task, true[video == v]) >= FEWEST_FRAMES]
    assert VIDEOS - 1 not in judged
    tails = []
    for head in outputs:
        scores = [score_by_frames(task, true[video == v], head[video == v]) for v in judged]
        tails.append(tail_by_hand([np.mean(list(one.values())) for one in scores]))
    assert found.groups == len(judged)
    assert found.tail == pytest.approx(np.mean(tails))
    assert found.tail_sd == pytest.approx(np.std(tails, ddof=1))
    low, high = found.tail_interval_95
    assert low < found.tail < high


@pytest.mark.parametrize("count", [1, 2, 3, 10, 33])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.55, 1.0])
def test_the_tail_mean_is_the_optimum_of_its_linear_program(count, share):
    # The lowest mean of any weights of which none exceeds 1 / (share * count)
    scores = np.random.default_rng(count).normal(size=count)
    most = 1 / max(share * count, 1)
    solution = linprog(scores, A_eq=np.ones((1, count)), b_eq=[1], bounds=(0, most))
    assert tail_mean(scores, share) == pytest.approx(solution.fun)
    assert tail_mean(scores, 1.0) == pytest.approx(scores.mean())
    assert tail_mean(scores, 1e-9) == scores.min()


@pytest.mark.parametrize("videos", [2, 3, 4, 11, 50])
def test_the_interval_is_that_of_leaving_each_video_out(videos):
    scores = np.random.default_rng(videos).random((3, videos)).round(1)  # with ties
    expected = [[tail_mean(np.delete(own, k)) for k in range(videos)] for own in scores]
    np.testing.assert_allclose(worst._without_each(scores), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("population", "videos", "least"),
    [
        (population, videos, least)
        for population in POPULATIONS
        if population.name.endswith("sparse")
        for videos, least in ((13, 0.88), (70, 0.93))
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_95_percent_intervals_hold_the_tail_of_all_videos(population, videos, least):
    kind, rng, names = population.kind, np.random.default_rng(videos), [str(k) for k in range(12)]
    many = population.draw(4000, rng)
    truth = tail_mean(group_scores(many, kind))
    hits, paired = np.zeros(150, bool), np.zeros(150, bool)
    for k in range(len(hits)):
        first, second = population.draw(videos, rng)
        low, high = find_worst(first[None], kind, names).tail_interval_95
        hits[k] = low <= truth[0] <= high
        _, (low, high) = tail_difference(second[None], first[None], kind)
        paired[k] = low <= truth[1] - truth[0] <= high
    for found in (hits.mean(), paired.mean()):
        assert found + 2 * np.sqrt(found * (1 - found) / len(hits)) >= least


@pytest.mark.parametrize("name", TASKS)
def test_what_is_predicted_does_not_change_which_classes_and_videos_count(name):
    task, kind = TASKS[name], kind_of(TASKS[name])
    true, outputs, video = draw_frames(task, 1)
    statistics = count(task, true, np.concatenate([outputs, -outputs, 0 * outputs]), video)
    occurs = kind.occurs(statistics)
    assert (occurs == occurs[:1]).all()
    assert 0 < occurs.mean() < 1
    # Nor does a false alarm of a class that the video lacks cost more than the frame it is in
    if task is EXPR:
        right, v = np.eye(8)[true] * 9, 0
        wrong, row = right.copy(), np.flatnonzero(video == v)[0]
        wrong[row] = np.eye(8)[3] * 9  # Fear, which no video shows
        both = group_scores(count(task, true, np.stack([right, wrong]), video), kind)
        assert both[0] == pytest.approx(1)
        assert 0.9 < both[1, 0] < 1


def test_one_video_blocks_and_pictures_have_no_tail():
    task, kind = EXPR, kind_of(EXPR)
    statistics = count(task, *draw_frames(task, 0))
    one = find_worst(statistics[:, :1], kind, task.outputs)
    blocks = find_worst(statistics, kind, task.outputs, by_group=False)
    pictures = np.tile(np.eye(64, dtype=int).reshape(1, 64, 8, 8), (2, 1, 1, 1))
    for found in (one, blocks, find_worst(pictures, kind, task.outputs)):
        assert found.tail is found.tail_sd is found.tail_interval_95 is None
        assert found.groups == 0
        assert found.output is not None


def test_heads_without_any_label_have_no_worst_case():
    for task in TASKS.values():
        kind = kind_of(task)
        nothing = np.zeros((1, 4, *count(task, *draw_frames(task, 0)).shape[2:]))
        found = find_worst(nothing, kind, task.outputs)
        assert (found.output, found.outputs, found.tail) == (None, {}, None)


@pytest.mark.parametrize("name", TASKS)
def test_the_predictor_of_the_chance_level_scores_it(name):
    task, kind = TASKS[name], kind_of(TASKS[name])
    statistics = count(task, *draw_frames(task, 2))[0]
    by_chance = kind.statistics_by_chance(statistics)
    assert by_chance.shape == statistics.shape
    level = kind.chance(statistics.sum(0), task).level
    assert kind.headline(by_chance.sum(0)) == pytest.approx(level)
    assert (kind.occurs(by_chance) == kind.occurs(statistics)).all()
    assert kind.count_frames(by_chance) == pytest.approx(kind.count_frames(statistics))


def test_the_example_in_the_docstring_runs():
    assert doctest.testmod(worst).failed == 0
