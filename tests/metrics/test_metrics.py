"""Scores against scikit-learn over many cases, degenerate ones among them.

Counts that add up, and agreement of numbers.
"""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from raffect.datasets.affwild2.tasks import AU, EXPR, EXPRESSIONS, VA
from raffect.errors import RaffectError
from raffect.heads.counting import count_confusion, count_labels, sum_moments
from raffect.metrics import agreement, f1
from raffect.metrics.f1 import f1_scores, one_against_rest
from raffect.metrics.task_kinds import KINDS, kind_of

CLASSES, LABELS, VALUES = (KINDS[kind] for kind in ("multiclass", "multilabel", "regression"))


def expr_case(seed, frames=300, classes=range(8), videos=6):
    rng = np.random.default_rng(seed)
    true = rng.choice(list(classes), frames)
    is_right, other = rng.random((2, frames)) < 0.6, rng.integers(0, 8, (2, frames))
    predicted = np.where(is_right, true, other)
    return true, predicted, np.sort(rng.integers(0, videos, frames))


def count_expr(true, predicted, video, videos=6):
    arrays = (torch.from_numpy(array) for array in (true, predicted, video))
    return count_confusion(*arrays, videos, 8).numpy()


def count_au(true, predicted, video, videos=1):
    arrays = (torch.from_numpy(array) for array in (true, predicted, video))
    return count_labels(*arrays, videos).numpy()


def count_values(true, predicted, video, videos):
    arrays = (torch.from_numpy(array) for array in (true, predicted, video))
    return sum_moments(*arrays, videos).numpy()


def macro_f1(true, predicted):
    """scikit-learn's, over all eight classes."""
    options = {"labels": range(8), "average": "macro", "zero_division": 0}
    return f1_score(true, predicted, **options)


def f1_where_labelled(true, predicted):
    """scikit-learn's F1 of each column over its labelled rows; 0 without any."""
    out = []
    for own, found in zip(true.T, predicted.T, strict=True):
        known = own >= 0
        is_there = known.any()
        out.append(f1_score(own[known], found[known], zero_division=0) if is_there else 0)
    return out


@pytest.mark.parametrize("classes", [range(8), (0, 7), (3,), (0, 1, 2)])
@pytest.mark.parametrize("seed", range(5))
def test_expr_scores_are_scikit_learns(seed, classes):
    true, predicted, video = expr_case(seed, classes=classes)
    counts = count_expr(true, predicted, video).sum(1)
    for p in range(2):
        found = CLASSES.score(counts[p], EXPR)
        options = {"labels": range(8), "zero_division": 0}
        expected = precision_recall_fscore_support(true, predicted[p], **options)
        for key, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
            ours = [part[key] for part in found.outputs.values()]
            assert ours == pytest.approx(values.tolist()), key
        assert found.metrics["macro_f1"] == pytest.approx(macro_f1(true, predicted[p]))
        assert found.metrics["accuracy"] == pytest.approx(accuracy_score(true, predicted[p]))
        assert np.array_equal(
            found.confusion, confusion_matrix(true, predicted[p], labels=range(8))
        )


def test_an_absent_class_scores_zero_and_is_not_dropped():
    true = np.array([0, 1, 2, 2])
    counts = count_expr(true, true[None], np.zeros(4, int)).sum(1)[0]
    assert CLASSES.headline(counts) == pytest.approx(3 / 8)


@pytest.mark.parametrize("seed", range(5))
def test_au_scores_are_scikit_learns_on_labelled_units(seed):
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(-1, 2, (200, 12)), rng.random((2, 200, 12)) < 0.4
    true[:, 5] = 0  # never active
    true[:, 6] = -1  # never labelled
    predicted[0, :, 5] = False  # and never predicted
    counts = count_au(true, predicted, rng.integers(0, 4, 200), 4).sum(1)
    for p in range(2):
        found = LABELS.score(counts[p], AU)
        expected = f1_where_labelled(true, predicted[p])
        assert [part["f1"] for part in found.outputs.values()] == pytest.approx(expected)
        assert found.metrics["macro_f1"] == pytest.approx(np.mean(expected))
        assert counts[p].sum(1).tolist() == (true >= 0).sum(0).tolist()


def test_counts_of_parts_add_up_to_those_of_the_whole():
    true, predicted, video = expr_case(3)
    whole = count_expr(true, predicted, video)
    slices = (slice(0, 100), slice(100, 300))
    parts = [count_expr(true[s], predicted[:, s], video[s]) for s in slices]
    assert np.array_equal(whole, parts[0] + parts[1])
    assert whole.sum() == 2 * len(true)


def test_counts_of_a_confusion_matrix_have_every_frame_once_a_class():
    true, predicted, video = expr_case(1)
    table = one_against_rest(count_expr(true, predicted, video).sum(1))
    assert (table.sum(-1) == len(true)).all()
    assert f1_scores(table).shape == (2, 8)


@pytest.mark.parametrize("seed", range(3))
def test_the_majority_predictor_is_the_best_constant(seed):
    true, predicted, video = expr_case(seed)
    found = CLASSES.chance(count_expr(true, predicted, video).sum(1)[0], EXPR)
    constants = [macro_f1(true, np.full(len(true), k)) for k in range(8)]
    assert found.majority == pytest.approx(max(constants))
    assert found.answer == f"always {EXPRESSIONS[int(np.argmax(constants))]}"


def test_no_predictor_that_never_looks_beats_draws_by_the_class_shares():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(8, 0.7))
    true = rng.choice(8, 400_000, p=shares)
    drawn = rng.choice(8, len(true), p=shares)
    counts = count_expr(true, drawn[None], np.zeros(len(true), np.int64)).sum(1)[0]
    prior = CLASSES.chance(counts, EXPR).prior
    assert CLASSES.headline(counts) == pytest.approx(prior, abs=2e-3)
    # F1 that draws by any other shares have on average.
    others = rng.dirichlet(np.ones(8), 2000)
    assert (2 * shares * others / (shares + others)).mean(1).max() <= prior


def test_the_majority_au_predictor_has_all_units_active():
    rng = np.random.default_rng(0)
    true = rng.integers(-1, 2, (100, 12))
    counts = count_au(true, np.zeros((1, 100, 12), bool), np.zeros(100, np.int64))[0, 0]
    expected = np.mean(f1_where_labelled(true, np.ones_like(true)))
    assert LABELS.chance(counts, AU).majority == pytest.approx(expected)


def test_examples_in_docstrings_run():
    assert all(doctest.testmod(module).failed == 0 for module in (f1, agreement))


def moments_case(seed, frames=400, videos=5):
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(frames, 2)) * (1, 30) + (0, 500)
    predicted = true + rng.normal(size=(3, frames, 2)) * (0.5, 20) + (0.1, -3)
    true[rng.random(true.shape) < 0.2] = np.nan
    return true, predicted, rng.integers(0, videos, frames)


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_numpys_and_scipys_over_labelled_frames(seed):
    true, predicted, video = moments_case(seed)
    moments = count_values(true, predicted, video, 5).sum(1)
    for p in range(3):
        found = VALUES.score(moments[p], VA)
        for k, name in enumerate(VA.outputs):
            known = np.isfinite(true[:, k])
            t, g = true[known, k], predicted[p, known, k]
            spread = t.var() + g.var() + (t.mean() - g.mean()) ** 2
            expected = {
                "ccc": 2 * np.cov(t, g, ddof=0)[0, 1] / spread,
                "pcc": stats.pearsonr(t, g).statistic,
                "rmse": np.sqrt(((t - g) ** 2).mean()),
                "frames": len(t),
            }
            assert found.outputs[name] == pytest.approx(expected, rel=1e-8)
        mean = np.mean([part["ccc"] for part in found.outputs.values()])
        assert found.metrics["ccc"] == pytest.approx(mean)


def test_agreement_over_many_random_cases_is_scipys_and_numpys():
    rng = np.random.default_rng(9)
    for _ in range(400):
        # Any length, scale, offset and correlation, and rounded as annotations are
        n, slope, decimals = rng.integers(2, 200), rng.normal(), int(rng.integers(1, 6))
        t = rng.normal(size=n) * 10 ** rng.uniform(-2, 2) + rng.normal() * rng.integers(0, 3)
        t = t.round(decimals)
        g = slope * t + rng.normal(size=n) * 10 ** rng.uniform(-3, 1)
        t[rng.random(n) < rng.choice([0, 0.5])] = np.nan
        known = np.isfinite(t)
        if known.sum() < 2 or np.ptp(t[known]) == 0:
            continue
        moments = count_values(t[:, None], g[None, :, None], np.zeros(n, int), 1)[0, 0]
        own, found = t[known], g[known]
        covariance = np.mean((own - own.mean()) * (found - found.mean()))
        spread = own.var() + found.var() + (own.mean() - found.mean()) ** 2
        assert agreement.ccc(moments)[0] == pytest.approx(2 * covariance / spread, abs=1e-9)
        r = stats.pearsonr(own, found).statistic
        assert agreement.pcc(moments)[0] == pytest.approx(r, abs=1e-7)
        # Lin's bound: concordance is correlation, lowered by any difference of scale or offset
        assert abs(agreement.ccc(moments)[0]) <= abs(agreement.pcc(moments)[0]) + 1e-9


def test_moments_of_parts_add_up_to_those_of_the_whole():
    true, predicted, video = moments_case(1)
    whole = count_values(true, predicted, video, 5)
    slices = (slice(0, 100), slice(100, None))
    parts = [count_values(true[s], predicted[:, s], video[s], 5) for s in slices]
    np.testing.assert_allclose(parts[0] + parts[1], whole, rtol=1e-12, atol=1e-8)
    assert whole[..., 0].sum() == 3 * np.isfinite(true).sum()


def test_a_constant_prediction_agrees_by_chance_which_is_nothing():
    true, _, video = moments_case(2)
    constant = np.full((1, *true.shape), 0.3)
    moments = count_values(true, constant, video, 5)
    assert VALUES.headline(moments.sum(1)) == pytest.approx(0, abs=1e-9)
    assert VALUES.chance(moments.sum((0, 1)), VA).majority == 0
    assert np.isfinite(VALUES.headline(np.zeros((2, 6))))  # nothing labelled at all


def test_a_class_without_frames_is_named_and_the_score_over_the_others_shown():
    confusion = np.zeros((8, 8), int)
    confusion[:7, :7] = 1 + 5 * np.eye(7, dtype=int)
    found = CLASSES.score(confusion, EXPR)
    assert found.absent == ("Other",)
    expected = f1_score(*pairs_of(confusion), average="macro")  # scikit-learn drops the absent one
    assert found.over_present(found.headline) == pytest.approx(expected)
    assert found.headline == pytest.approx(expected * 7 / 8)
    whole = CLASSES.score(confusion + np.eye(8, dtype=int), EXPR)
    assert whole.absent == ()
    assert whole.over_present(whole.headline) == whole.headline


def pairs_of(confusion):
    true, predicted = np.indices(confusion.shape)
    return np.repeat(true.ravel(), confusion.ravel()), np.repeat(
        predicted.ravel(), confusion.ravel()
    )


def test_an_unknown_kind_is_refused_in_one_line():
    line = "kind 'ordinal': expected one of multiclass, multilabel, regression"
    with pytest.raises(RaffectError, match=line):
        kind_of(replace(EXPR, kind="ordinal"))
    line = "1 label columns for 8 outputs of kind multilabel; expected 8"
    with pytest.raises(RaffectError, match=line):
        kind_of(replace(EXPR, kind="multilabel"))
