"""Decision rules: each search against an exhaustive one, and cross-fitting against noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.heads import counting as in_torch
from raffect.predictions.choose import WINDOWS, choose
from raffect.predictions.counting import Counting
from raffect.predictions.held_out import HeldOut
from raffect.predictions.rules import DecisionRules, log_scores, plain_rules
from raffect.predictions.search import (
    BINS,
    best_f1,
    best_threshold,
    search_bias,
    select_greedily,
)
from raffect.predictions.smoothing import smooth, timeline

THREE = Task(name="three", kind="multiclass", outputs=("a", "b", "c"), columns=("class",))
TWO = Task(name="two", kind="multilabel", outputs=("l", "r"), columns=("l", "r"))


def f1_of(true, predicted):
    """F1 of yes and no by definition."""
    hits = (true & predicted).sum()
    return 2 * hits / max(true.sum() + predicted.sum(), 1)


def macro_f1(true, predicted, classes=3):
    """Its mean over classes."""
    return np.mean([f1_of(true == k, predicted == k) for k in range(classes)])


def test_the_f1_of_these_tests_is_that_of_scikit_learn():
    true, predicted = np.random.default_rng(0).integers(0, 4, (2, 50))
    found = f1_score(true, predicted, labels=range(5), average="macro", zero_division=0)
    assert macro_f1(true, predicted, 5) == pytest.approx(found)


# Smoothing


def slow_smooth(scores, video, frame, half_width):
    """The mean over each frame's window, by definition."""
    out = np.empty(scores.shape)
    for k in range(len(scores)):
        near = (video == video[k]) & (np.abs(frame - frame[k]) <= half_width)
        out[k] = scores[near].mean(0)
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([0, 1, 2, 5, 50]))
def test_smoothing_is_the_mean_over_near_frames_of_the_same_video(seed, count, half_width):
    # Frames of a few videos with gaps, in the order of the line that keeps videos apart
    rng = np.random.default_rng(seed)
    places = np.sort(rng.choice(4 * 60, count, replace=False))
    video, frame = places // 60, places % 60 + 1
    scores = rng.random((count, 3)).astype(np.float32)
    moment = timeline(video, frame, 50)
    assert (np.diff(moment) > 0).all()
    expected = slow_smooth(scores, video, frame, half_width)
    assert smooth(scores, moment, half_width) == pytest.approx(expected, abs=1e-6)


def test_each_output_has_its_own_window():
    rng = np.random.default_rng(0)
    scores, frame = rng.random((30, 2)), np.cumsum(rng.integers(1, 4, 30))
    rules = DecisionRules(task=TWO, windows=(0, 7), thresholds=(0.5, 0.5))
    expected = [smooth(scores, frame, width)[:, k] for k, width in enumerate((0, 7))]
    assert np.array_equal(rules.smooth(scores, frame), np.stack(expected, 1))


# Counting


@pytest.mark.parametrize("task", [EXPR, AU, VA], ids=lambda task: task.name)
def test_numpy_counts_as_torch_does(task):
    rng, outputs = np.random.default_rng(1), len(task.outputs)
    group = rng.integers(0, 5, 200)
    scores = rng.random((200, outputs)).astype(np.float32)
    decided = plain_rules(task).decide(scores)
    video, predicted = torch.from_numpy(group), torch.from_numpy(decided)[None]
    if task.kind == "multiclass":
        target = rng.integers(0, outputs, 200)
        expected = in_torch.count_confusion(torch.from_numpy(target), predicted, video, 6, outputs)
    elif task.kind == "multilabel":
        target = rng.integers(-1, 2, (200, outputs)).astype(np.int8)
        expected = in_torch.count_labels(torch.from_numpy(target), predicted > 0, video, 6)
    else:
        target = rng.random((200, outputs)).astype(np.float32)
        target[rng.random(target.shape) < 0.2] = np.nan
        expected = in_torch.sum_moments(torch.from_numpy(target), predicted, video, 6)
    found = Counting(task, target, group, 6).count(decided)
    assert found == pytest.approx(expected[0].numpy(), rel=1e-9)


# Searches


def test_greedy_selection_begins_with_the_best_single_head_and_never_ends_below_it():
    rng = np.random.default_rng(2)
    for _ in range(30):
        heads = rng.random((4, 50, 3))
        true = rng.integers(0, 3, 50)

        def score(counts, heads=heads, true=true):
            return macro_f1(true, np.tensordot(counts, heads, 1).argmax(1))

        def grown(counts):
            return [score(np.array(counts) + np.eye(4)[head]) for head in range(4)]

        counts = select_greedily(grown, 4)
        single = max(score(np.eye(4)[head]) for head in range(4))
        assert sum(counts) >= 1
        assert score(counts) >= single


def threshold_of(scores, true):
    """The best threshold of scores in any order."""
    order = np.argsort(-scores, kind="stable")
    return best_threshold(scores[order], true[order], 0.5)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.booleans())
def test_a_threshold_is_the_best_of_all_cut_points(seed, count, has_ties):
    rng = np.random.default_rng(seed)
    scores = rng.random(count).astype(np.float32)
    scores = np.round(scores, 1) if has_ties else scores
    true = rng.random(count) < 0.3

    def f1(threshold):
        return f1_of(true, scores >= np.float32(threshold))

    threshold = threshold_of(scores, true)
    assert 0 <= threshold <= 1
    assert f1(threshold) == pytest.approx(max(f1(cut) for cut in scores))
    assert true.any() or threshold == 0.5


def test_neighbouring_floats_are_told_apart_by_a_threshold():
    low = np.float32(0.3)
    scores = np.array([np.nextafter(low, np.float32(1)), low], np.float32)
    threshold = best_threshold(scores, np.array([True, False]), 0.5)
    assert (scores >= np.float32(threshold)).tolist() == [True, False]


def test_histograms_find_the_f1_of_the_best_threshold_but_for_a_bin():
    rng = np.random.default_rng(3)
    scores, true = rng.random(4000).astype(np.float32), rng.random(4000) < 0.2
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    found = best_f1(np.stack([np.bincount(bins[true == on], minlength=BINS) for on in (0, 1)]))
    exact = f1_of(true, scores >= np.float32(threshold_of(scores, true)))
    assert exact - 0.002 <= found <= exact + 1e-12


def test_the_search_for_biases_reaches_nearly_what_all_biases_reach():
    # Few frames of rare classes; all pairs of biases of a grid, the third one being 0
    short, rng, grid = [], np.random.default_rng(4), np.arange(-4, 4.01, 0.25)
    for _ in range(4):
        true = rng.choice(3, 60, p=[0.7, 0.2, 0.1])
        outputs = rng.normal(size=(60, 3)) + 1.5 * np.eye(3)[true] + [1, 0, -1]
        scores = torch.from_numpy(outputs).softmax(1).numpy().astype(np.float32)
        logs = log_scores(scores)

        def score(bias, logs=logs, true=true):
            return macro_f1(true, (logs + np.float32(bias)).argmax(1))

        best = max(score([0, *pair]) for pair in itertools.product(grid, grid))
        bias, found = search_bias(logs, true)
        assert found == pytest.approx(score(bias))
        assert bias.mean() == pytest.approx(0, abs=1e-5)
        assert score(bias) >= score([0, 0, 0])
        short.append(best - score(bias))
    assert np.mean(short) < 0.01


# Choosing


def held_out(task, scores, target, videos=20, parts=5):
    """Frames of videos of equal length, dealt to parts in turn."""
    count = len(target)
    video = np.arange(count) * videos // count
    moment = timeline(video, np.arange(count) + 1, max(WINDOWS))
    return HeldOut(task, scores, target, moment, video, videos, video % parts, parts)


def softmax(outputs):
    return torch.from_numpy(outputs).softmax(-1).numpy().astype(np.float16)


def episodes(rng, count, length, classes):
    """Classes that last for a while."""
    return np.repeat(rng.integers(0, classes, -(-count // length)), length)[:count]


def test_choosing_on_noise_keeps_plain_rules():
    # Of rules that gain nothing about one in eight is kept by chance, and it is worth little
    kept, gains = 0, []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        true, scores = rng.integers(0, 3, 2000), softmax(rng.normal(size=(2, 2000, 3)))
        choice = choose(held_out(THREE, scores, true))
        kept += sum(step.kept for step in choice.steps)
        kind = held_out(THREE, scores, true).kind
        gains.append(kind.headline(choice.after.sum(0)) - kind.headline(choice.before.sum(0)))
    assert kept <= 8
    assert np.mean(gains) < 0.01


def test_a_window_is_found_where_frames_are_alike_and_only_there():
    rng = np.random.default_rng(5)
    true = episodes(rng, 4000, 40, 3)
    scores = softmax(np.eye(3)[true] + rng.normal(size=(1, 4000, 3)) * 1.5)
    choice = choose(held_out(THREE, scores, true))
    assert {step.rule: step.kept for step in choice.steps}["windows"]
    assert 3 <= choice.rules.windows[0] <= 25
    assert choice.curve[choice.rules.windows[0]] == max(choice.curve.values())

    order = rng.permutation(4000)
    choice = choose(held_out(THREE, scores[:, order], true[order]))
    assert choice.rules.windows == (0, 0, 0)


def test_windows_of_labels_are_judged_with_thresholds_of_their_own():
    # Rare labels whose smoothed probabilities stay below 0.5
    rng = np.random.default_rng(6)
    true = (np.repeat(rng.random((200, 2)), 20, 0) < 0.15).astype(np.int8)
    outputs = 1.5 * true - 2 + rng.normal(size=(1, 4000, 2)) * 1.5
    scores = torch.from_numpy(outputs).sigmoid().numpy().astype(np.float16)
    choice = choose(held_out(TWO, scores, true))
    assert [step.kept for step in choice.steps] == [True, True]
    assert max(choice.rules.thresholds) < 0.5
    assert min(choice.rules.windows) >= 2

    # One slow label and one that changes with every frame
    true[:, 1] = rng.random(4000) < 0.3
    outputs = 1.5 * true - 2 + rng.normal(size=(1, 4000, 2))
    scores = torch.from_numpy(outputs).sigmoid().numpy().astype(np.float16)
    windows = choose(held_out(TWO, scores, true), per_output=True).rules.windows
    assert windows[0] >= 2 > windows[1]


def test_a_useless_head_has_no_weight():
    rng = np.random.default_rng(7)
    true = rng.integers(0, 3, 3000)
    good, bad = np.eye(3)[true] * 2, np.zeros((3000, 3))
    noise = rng.normal(size=(2, 3000, 3)) * np.array([1.0, 4.0])[:, None, None]
    choice = choose(held_out(THREE, softmax(np.array([good, bad]) + noise), true))
    assert choice.steps[0].kept
    assert choice.counts[0] > 2 * choice.counts[1]


@pytest.mark.parametrize("task", [THREE, TWO], ids=lambda task: task.name)
def test_each_part_is_judged_by_rules_that_were_chosen_without_it(task):
    # Labels of some frames of one part are turned round: what is predicted there stays
    rng = np.random.default_rng(8)
    true = episodes(rng, 4000, 20, 3)
    outputs = np.eye(3)[true] + rng.normal(size=(1, 4000, 3)) + [1.5, 0, 0]
    scores, turned = softmax(outputs), true.copy()
    if task is TWO:
        true = (true[:, None] == [0, 1]).astype(np.int8)
        scores, turned = scores[..., :2] * np.float16(0.7), true.copy()
    part = held_out(task, scores, true).part
    rows = np.flatnonzero(part == 0)[::3]
    turned[rows] = (turned[rows] + 1) % (2 if task is TWO else 3)

    first, second = (choose(held_out(task, scores, labels)) for labels in (true, turned))
    assert [step.kept for step in first.steps] == [True, True]
    assert [step.kept for step in second.steps] == [True, True]
    groups = np.unique(held_out(task, scores, true).group[part == 0])
    for step, changed in zip(first.steps, second.steps, strict=True):
        counts, others = step.after[groups], changed.after[groups]
        assert not np.array_equal(counts, others)
        # Classes that are predicted, or labels (hits and false alarms), whatever is true
        predicted = [
            found.sum(1) if task is THREE else found[..., 0] + found[..., 1]
            for found in (counts, others)
        ]
        assert np.array_equal(*predicted)


def test_values_have_windows_and_nothing_else():
    rng = np.random.default_rng(9)
    true = np.cumsum(rng.normal(size=(3000, 2)), 0).astype(np.float32) / 30
    true = np.clip(true, -1, 1)
    scores = (true + rng.normal(size=(1, 3000, 2))).astype(np.float32)
    choice = choose(held_out(VA, scores, true), per_output=True)
    assert [step.rule for step in choice.steps] == ["windows"]
    assert choice.steps[0].kept
    assert min(choice.rules.windows) >= 3


def test_classes_do_not_have_windows_of_their_own():
    held = held_out(THREE, np.full((1, 20, 3), 0.3), np.arange(20) % 3)
    with pytest.raises(RaffectError, match="--per-output: the classes of three share one window"):
        choose(held, per_output=True)


def test_biases_are_zero_where_nothing_is_better():
    # Perfectly separated classes: no bias can gain
    true = np.arange(90) % 3
    logs = log_scores((0.7 * np.eye(3)[true] + 0.1).astype(np.float32))
    bias, score = search_bias(logs, true)
    assert bias.tolist() == [0, 0, 0]
    assert score == 1


def test_gains_chain_in_the_order_in_which_rules_were_tried():
    # Biases that gain nothing on single frames, and much on their means over windows
    rng = np.random.default_rng(3)
    true = episodes(rng, 3000, 60, 3)
    noise = rng.normal(size=(1, 3000, 3)) * 4
    second_tries = 0
    for shift in (0.0, 0.1, 0.2, 0.3):
        scores = softmax(np.eye(3)[true] + noise + [shift, 0, 0])
        steps = choose(held_out(THREE, scores, true)).steps
        now = steps[0].before
        for step in steps:
            assert np.array_equal(step.before, now)
            now = step.after if step.kept else now
        second_tries += steps[-1].rule == "bias"
    assert second_tries
