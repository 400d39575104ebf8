"""Decision rules chosen on predictions for held-out frames, and what each of them gains.

Rules are chosen one after the other, each on what the ones before it leave: ensemble weights, then
biases of classes or thresholds of labels, then the window. Each is *cross-fitted*: for every part
of the frames it is chosen on all other parts and judged on that one, and the counts of all parts
are pooled. A rule whose gain is not above the noise is not kept. In the end the kept ones are
chosen on all frames; the scores that are shown are the cross-fitted ones.

Shape letters: H heads, N frames, C outputs, G groups, K parts of the frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raffect.errors import require
from raffect.metrics.intervals import difference_interval
from raffect.metrics.task_kinds import Kind
from raffect.predictions.counting import Counting
from raffect.predictions.held_out import HeldOut
from raffect.predictions.rules import DecisionRules, RuleName, log_scores, plain_rules
from raffect.predictions.search import (
    BINS,
    Counts,
    best_f1,
    best_threshold,
    by_part,
    search_bias,
    select_greedily,
    thin,
)
from raffect.predictions.smoothing import smooth_all

WINDOWS = (0, 1, 2, 3, 5, 7, 10, 15, 25, 50, 100, 200)
"""Half-widths in frames that are tried."""
_MOST_FOR_WEIGHTS, _MOST_FOR_BIAS, _MOST_FOR_WINDOWS = 50_000_000, 4_000_000, 800_000
"""Numbers that searches take: of all heads; of one mean for biases; and at each window."""


@dataclass(frozen=True)
class Step:
    """One rule, cross-fitted.

    Attributes:
        rule: Which.
        kept: Whether it gains more than noise.
        before: Statistics by group without it, shape (G, A, B).
        after: Statistics by group with it.
    """

    rule: RuleName
    kept: bool
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class Choice:
    """Chosen rules.

    Attributes:
        counts: How often each head is in the ensemble, shape (H,).
        rules: Chosen on all frames; their heads are left to the caller.
        steps: Every rule that was tried, in order.
        before: Statistics by group of the plain mean of the heads, shape (G, A, B).
        after: Cross-fitted statistics by group of all kept rules.
        chosen: Statistics by group of ``rules`` on the frames they were chosen on: optimistic.
        curve: Score of the ensemble by half-width of its window, on all frames.
    """

    counts: Counts
    rules: DecisionRules
    steps: tuple[Step, ...]
    before: np.ndarray
    after: np.ndarray
    chosen: np.ndarray
    curve: dict[int, float]


@dataclass(frozen=True)
class _View:
    """Rules as they are chosen without one part of the frames, or on all frames.

    Views whose rules are equal share the array of scores.
    """

    left_out: int | None
    counts: Counts
    rules: DecisionRules
    scores: np.ndarray


Views = list[_View]
"""One a part that is left out, and last the one of all frames."""


def choose(held: HeldOut, plain: Sequence[int] = (), *, per_output: bool = False) -> Choice:
    """Choose decision rules, and measure what each gains.

    Args:
        held: Predictions, in the order of ``moment``.
        plain: Heads whose mean the rules are compared with, and which are taken if no weights gain;
            all by default.
        per_output: Whether each label or value has a window of its own.

    Raises:
        RaffectError: If classes or clips are to have windows of their own.
    """
    require(
        not (per_output and held.of_clips),
        f"--per-output: the labels of {held.task.name} are of clips, which have no windows; leave "
        "it out",
    )
    require(
        not (per_output and held.task.kind == "multiclass"),
        f"--per-output: the classes of {held.task.name} share one window, since their "
        "probabilities are compared with each other; leave it out",
    )
    # The plain mean
    counts = tuple(int(not plain or head in plain) for head in range(len(held.scores)))
    rules, scores = plain_rules(held.task), held.mean(counts)
    left_out: list[int | None] = [*range(held.num_parts), None]
    views = [_View(part, counts, rules, scores) for part in left_out]
    before = now = count_plain(held, counts)

    # Rule after rule; one that gained nothing is tried again on smoothed scores
    steps: dict[RuleName, Step] = {}
    curve: dict[int, float] = {}
    for rule in _rules_of(held):
        if rule in steps and (steps[rule].kept or not steps["windows"].kept):
            continue
        if rule == "windows":
            found, curve = _with_windows(held, views, per_output)
        elif rule == "weights":
            found = _with_weights(held, views)
        else:
            found = (_with_thresholds if rule == "thresholds" else _with_bias)(held, views)
        after = _cross_fit(held, found)
        # A second try stands where it was made, so that gains add up in their order
        steps.pop(rule, None)
        steps[rule] = Step(rule, _gains(held.kind, now, after), now, after)
        if steps[rule].kept:
            views, now = found, after

    final = views[-1]
    chosen = _count(held, final.rules, final.scores)
    return Choice(final.counts, final.rules, tuple(steps.values()), before, now, chosen, curve)


def count_plain(held: HeldOut, counts: Counts) -> np.ndarray:
    """Statistics by group of heads' mean without any rule, shape (G, A, B)."""
    return _count(held, plain_rules(held.task), held.mean(counts))


def _count(held: HeldOut, rules: DecisionRules, scores: np.ndarray) -> np.ndarray:
    """Statistics by group of what rules decide on smoothed scores."""
    counting = Counting(held.task, held.target, held.group, held.num_groups)
    return counting.count(rules.decide(scores))


def _rules_of(held: HeldOut) -> list[RuleName]:
    """Rules that a task can have, in the order in which they are chosen."""
    names: list[RuleName] = ["weights"] if len(held.scores) > 1 else []
    others: dict[str, list[RuleName]] = {
        "multiclass": ["bias", "windows", "bias"],
        "multilabel": ["thresholds", "windows", "thresholds"],
        "regression": ["windows"],
    }
    found = others[held.task.kind]
    if held.of_clips:
        found = list(dict.fromkeys(name for name in found if name != "windows"))
    return [*names, *found]


def _cross_fit(held: HeldOut, views: Views) -> np.ndarray:
    """Statistics by group, each part judged by the rules that were chosen without it."""
    return np.sum(
        [
            counting.count(view.rules.decide(view.scores[rows]))
            for (rows, counting), view in zip(held.parts, views[:-1], strict=True)
        ],
        axis=0,
    )


def _gains(kind: Kind, before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a difference is above about one standard error over groups."""
    gain, interval = difference_interval(after, before, kind)
    return interval is not None and bool(gain > (interval[1] - interval[0]) / 4)


def _with_weights(held: HeldOut, views: Views) -> Views:
    """Views whose heads were chosen greedily."""
    # Counts by part of every ensemble on the way, which views share as long as they go one way
    heads = len(held.scores)
    rows = thin(held.scores.shape[1], heads * held.scores.shape[2], _MOST_FOR_WEIGHTS)
    scores = held.scores[:, rows].astype(np.float32)
    counting = Counting(held.task, held.target[rows], held.part[rows], held.num_parts)
    rules = plain_rules(held.task)
    known: dict[Counts, list[np.ndarray]] = {}

    def grow(counts: Counts) -> list[np.ndarray]:
        if counts not in known:
            total = np.zeros(scores.shape[1:], np.float32)
            for head in np.flatnonzero(counts):
                total += counts[head] * scores[head]
            size = np.float32(sum(counts) + 1)
            known[counts] = [
                counting.count(rules.decide((total + scores[head]) / size)) for head in range(heads)
            ]
        return known[counts]

    # The choice of each view
    means, found = {views[-1].counts: views[-1].scores}, []
    for view in views:

        def scores_of(counts: Counts, left_out: int | None = view.left_out) -> list[float]:
            return [float(held.kind.headline(by_part(found, left_out))) for found in grow(counts)]

        counts = select_greedily(scores_of, heads)
        if counts not in means:
            means[counts] = held.mean(counts)
        found.append(replace(view, counts=counts, scores=means[counts]))
    return found


def _with_windows(held: HeldOut, views: Views, per_output: bool) -> tuple[Views, dict[int, float]]:
    """Views with their windows, and the score of all frames by window.

    Where labels have thresholds or classes biases, each window is judged with its own best ones: a
    mean over frames is rarely as high as its highest frame, so that others decide best for it.
    """
    # How a window is judged, and what is searched for again once it is chosen
    again = _decider_of(held, views)
    judge = _judge_decided
    if again is not None:
        judge = _judge_by_histograms if again is _with_thresholds else _judge_biased
    arrays = {id(view.scores): view.scores for view in views}
    judges = {
        name: judge(held, smooth_all(scores, held.moment, WINDOWS))
        for name, scores in arrays.items()
    }

    # The window of each view, or of each of its outputs
    outputs, smoothed, found, judged = len(held.task.outputs), {}, [], np.zeros(0)
    for view in views:
        by_output = judges[id(view.scores)](view)
        judged = by_output.mean(1, keepdims=True)
        best = (by_output if per_output else judged).argmax(0)
        windows = tuple(WINDOWS[place] for place in np.resize(best, outputs))
        rules = replace(view.rules, windows=windows)
        key = (id(view.scores), windows)
        if key not in smoothed:
            smoothed[key] = rules.smooth(view.scores, held.moment)
        found.append(replace(view, rules=rules, scores=smoothed[key]))
    curve = dict(zip(WINDOWS, judged[:, 0].tolist(), strict=True))
    return (again(held, found) if again else found), curve


def _decider_of(held: HeldOut, views: Views) -> Callable[[HeldOut, Views], Views] | None:
    """What has chosen thresholds or biases of views; None if they have plain ones."""
    rules, plain = views[-1].rules, plain_rules(held.task)
    if rules.thresholds != plain.thresholds:
        return _with_thresholds
    return _with_bias if rules.bias != plain.bias else None


Judge = Callable[[_View], np.ndarray]
"""From a view to the score of each output by window, shape (W, C), or of all classes, (W, 1)."""


def _judge_decided(held: HeldOut, smoothed: Iterator[np.ndarray]) -> Judge:
    """By what plain rules decide."""
    counting = Counting(held.task, held.target, held.part, held.num_parts)
    rules = plain_rules(held.task)
    table = [counting.count(rules.decide(scores)) for scores in smoothed]
    output_scores = held.kind.output_scores
    return lambda view: output_scores(np.array([by_part(found, view.left_out) for found in table]))


def _judge_by_histograms(held: HeldOut, smoothed: Iterator[np.ndarray]) -> Judge:
    """By the best threshold of each label, from histograms by part and truth."""
    # Unlabelled ones are in a part beyond the last one, which is dropped
    parts, labels = held.num_parts, len(held.task.outputs)
    part = np.where(held.target >= 0, held.part[:, None], parts)
    cell = ((part * labels + np.arange(labels)) * 2 + (held.target > 0)) * BINS
    size = (parts + 1, labels, 2, BINS)

    def count(scores: np.ndarray) -> np.ndarray:
        bins = np.minimum((scores * np.float32(BINS)).astype(np.int64), BINS - 1)
        return np.bincount((cell + bins).ravel(), minlength=math.prod(size)).reshape(size)[:parts]

    table = [count(scores) for scores in smoothed]
    return lambda view: best_f1(np.array([by_part(found, view.left_out) for found in table]))


def _judge_biased(held: HeldOut, smoothed: Iterator[np.ndarray]) -> Judge:
    """By the best biases that are found from those that the view has."""
    rows = thin(len(held.target), len(held.task.outputs), _MOST_FOR_WINDOWS)
    true, part = held.target[rows], held.part[rows]
    logs = [log_scores(scores[rows]) for scores in smoothed]

    def judge(view: _View) -> np.ndarray:
        keep, start = _kept(part, view), [np.array(view.rules.bias)]
        return np.array([[search_bias(found[keep], true[keep], start)[1]] for found in logs])

    return judge


def _kept(part: np.ndarray, view: _View) -> np.ndarray | slice:
    """Frames that a view chooses on."""
    return slice(None) if view.left_out is None else part != view.left_out


def _with_thresholds(held: HeldOut, views: Views) -> Views:
    """Views with a threshold of each label."""
    thresholds = [list(view.rules.thresholds) for view in views]
    for label in range(len(held.task.outputs)):
        known = np.flatnonzero(held.target[:, label] >= 0)
        true, part = held.target[known, label] > 0, held.part[known]

        # Views that share their scores share the sorting
        for array in {id(view.scores): view.scores for view in views}.values():
            scores = array[known, label]
            order = np.argsort(-scores, kind="stable")
            in_order = scores[order], true[order], part[order]
            for place, view in enumerate(views):
                if view.scores is array:
                    thresholds[place][label] = _threshold(*in_order, view, label)
    return [
        replace(view, rules=replace(view.rules, thresholds=tuple(found)))
        for view, found in zip(views, thresholds, strict=True)
    ]


def _threshold(
    scores: np.ndarray, true: np.ndarray, part: np.ndarray, view: _View, label: int
) -> float:
    """The best threshold of one label from its scores in descending order."""
    otherwise = view.rules.thresholds[label]
    keep = _kept(part, view)
    scores, true = scores[keep], true[keep]
    return best_threshold(scores, true, otherwise) if len(scores) else otherwise


def _with_bias(held: HeldOut, views: Views) -> Views:
    """Views with a bias of each class."""
    found = []
    rows = thin(len(held.target), len(held.task.outputs), _MOST_FOR_BIAS)
    true, part = held.target[rows], held.part[rows]
    for view in views:
        scores, keep = log_scores(view.scores[rows]), _kept(part, view)
        bias, _ = search_bias(scores[keep], true[keep])
        found.append(replace(view, rules=replace(view.rules, bias=tuple(bias.tolist()))))
    return found
