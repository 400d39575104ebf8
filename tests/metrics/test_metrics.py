"""Scores against scikit-learn over many cases, the hostile ones among them; counts that add up; the bootstrap by hand."""

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
from raffect.metrics.intervals import bootstrap_videos
from raffect.metrics.kinds import KINDS, kind_of

CLASSES, LABELS = KINDS["multiclass"], KINDS["multilabel"]


def expr_case(seed, frames=300, classes=range(8), videos=6):
    rng = np.random.default_rng(seed)
    truth = rng.choice(list(classes), frames)
    guess = np.where(rng.random((2, frames)) < 0.6, truth, rng.integers(0, 8, (2, frames)))
    return truth, guess, np.sort(rng.integers(0, videos, frames))


def count_expr(truth, guess, video, videos=6):
    return count_confusion(
        torch.from_numpy(truth), torch.from_numpy(guess), torch.from_numpy(video), videos, 8
    ).numpy()


@pytest.mark.parametrize("classes", [range(8), (0, 7), (3,), (0, 1, 2)])
@pytest.mark.parametrize("seed", range(5))
def test_expr_scores_are_scikit_learns(seed, classes):
    truth, guess, video = expr_case(seed, classes=classes)
    counts = count_expr(truth, guess, video).sum(1)
    for p in range(2):
        found = CLASSES.score(counts[p], EXPR)
        precision, recall, f1_each, support = precision_recall_fscore_support(
            truth, guess[p], labels=range(8), zero_division=0
        )
        assert [part["precision"] for part in found.outputs.values()] == pytest.approx(precision)
        assert [part["recall"] for part in found.outputs.values()] == pytest.approx(recall)
        assert [part["f1"] for part in found.outputs.values()] == pytest.approx(f1_each)
        assert [part["support"] for part in found.outputs.values()] == support.tolist()
        assert found.metrics["macro_f1"] == pytest.approx(
            f1_score(truth, guess[p], labels=range(8), average="macro", zero_division=0)
        )
        assert found.metrics["accuracy"] == pytest.approx(accuracy_score(truth, guess[p]))
        assert np.array_equal(found.confusion, confusion_matrix(truth, guess[p], labels=range(8)))


def test_an_absent_class_scores_zero_and_is_not_dropped():
    truth = np.array([0, 1, 2, 2])
    counts = count_expr(truth, truth[None], np.zeros(4, int)).sum(1)[0]
    assert CLASSES.headline(counts) == pytest.approx(3 / 8)


@pytest.mark.parametrize("seed", range(5))
def test_au_scores_are_scikit_learns_on_labelled_units(seed):
    rng = np.random.default_rng(seed)
    truth, guess = rng.integers(-1, 2, (200, 12)), rng.random((2, 200, 12)) < 0.4
    truth[:, 5] = 0  # never active
    truth[:, 6] = -1  # never labelled
    guess[0, :, 5] = False  # nor said
    counts = (
        count_labels(
            torch.from_numpy(truth),
            torch.from_numpy(guess),
            torch.from_numpy(rng.integers(0, 4, 200)),
            4,
        )
        .numpy()
        .sum(1)
    )
    for p in range(2):
        found = LABELS.score(counts[p], AU)
        expected = [
            f1_score(truth[truth[:, u] >= 0, u], guess[p][truth[:, u] >= 0, u], zero_division=0)
            if (truth[:, u] >= 0).any()
            else 0
            for u in range(12)
        ]
        assert [part["f1"] for part in found.outputs.values()] == pytest.approx(expected)
        assert found.metrics["macro_f1"] == pytest.approx(np.mean(expected))
        assert counts[p].sum(1).tolist() == (truth >= 0).sum(0).tolist()


def test_counts_of_parts_add_up_to_those_of_the_whole():
    truth, guess, video = expr_case(3)
    whole = count_expr(truth, guess, video)
    parts = [count_expr(truth[s], guess[:, s], video[s]) for s in (slice(0, 100), slice(100, 300))]
    assert np.array_equal(whole, parts[0] + parts[1])
    assert whole.sum() == 2 * len(truth)


def test_hits_of_a_confusion_matrix_count_every_frame_once_a_class():
    truth, guess, video = expr_case(1)
    table = one_against_rest(count_expr(truth, guess, video).sum(1))
    assert (table.sum(-1) == len(truth)).all()
    assert f1_scores(table).shape == (2, 8)


@pytest.mark.parametrize("seed", range(3))
def test_the_trivial_predictor_is_the_best_constant(seed):
    truth, guess, video = expr_case(seed)
    found = CLASSES.chance(count_expr(truth, guess, video).sum(1)[0], EXPR)
    constants = [
        f1_score(truth, np.full(len(truth), k), labels=range(8), average="macro", zero_division=0)
        for k in range(8)
    ]
    assert found.majority == pytest.approx(max(constants))
    assert found.answer == f"always {EXPRESSIONS[int(np.argmax(constants))]}"


def test_no_blind_guess_at_expressions_beats_one_by_the_class_shares():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(8, 0.7))
    truth = rng.choice(8, 400_000, p=shares)
    counts = count_expr(
        truth, rng.choice(8, len(truth), p=shares)[None], np.zeros(len(truth), np.int64)
    ).sum(1)[0]
    assert CLASSES.headline(counts) == pytest.approx(CLASSES.chance(counts, EXPR).prior, abs=2e-3)
    guesses = rng.dirichlet(np.ones(8), 2000)
    assert (2 * shares * guesses / (shares + guesses)).mean(1).max() <= CLASSES.chance(
        counts, EXPR
    ).prior


def test_the_trivial_au_predictor_says_that_all_are_active():
    rng = np.random.default_rng(0)
    truth = rng.integers(-1, 2, (100, 12))
    counts = count_labels(
        torch.from_numpy(truth),
        torch.zeros(1, 100, 12, dtype=torch.bool),
        torch.zeros(100, dtype=torch.int64),
        1,
    ).numpy()[0, 0]
    expected = np.mean(
        [
            f1_score(truth[truth[:, u] >= 0, u], np.ones((truth[:, u] >= 0).sum()), zero_division=0)
            for u in range(12)
        ]
    )
    assert LABELS.chance(counts, AU).majority == pytest.approx(expected)


def test_the_bootstrap_draws_videos_not_frames():
    rng = np.random.default_rng(1)
    video = np.repeat(np.arange(12), 40)
    truth = rng.integers(0, 8, len(video))
    bad = rng.random(12) < 0.5
    guess = np.where(bad[video], (truth + 1) % 8, truth)  # whole videos right or wrong
    low, high = bootstrap_videos(count_expr(truth, guess[None], video, 12)[0], CLASSES, 0)
    by_hand = []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(video == k) for k in rng.integers(0, 12, 12)])
        by_hand.append(f1_score(truth[rows], guess[rows], average="macro"))
    assert (low, high) == pytest.approx(
        np.quantile(by_hand, (0.025, 0.975)), abs=0.09
    )  # one video of twelve
    assert high - low > 0.3


def test_the_interval_lies_around_the_score_where_rare_and_absent_classes_are_lost():
    rng = np.random.default_rng(4)
    video = np.repeat(np.arange(30), 20)
    truth = rng.integers(0, 6, len(video))  # two classes never occur
    truth[video == 7] = 6  # one occurs in a single video, and is missed there
    guess = np.where(
        (rng.random(len(video)) < 0.7) & (truth != 6), truth, rng.integers(0, 6, len(video))
    )
    counts = count_expr(truth, guess[None], video, 30)[0]
    low, high = bootstrap_videos(counts, CLASSES, 0)
    assert low < CLASSES.headline(counts.sum(0)) < high
    assert high - low < 0.2


def test_the_bootstrap_of_several_heads_is_that_of_their_mean():
    truth, guess, video = expr_case(2)
    counts = count_expr(truth, guess, video)
    assert bootstrap_videos(counts[:1], CLASSES, 3) == bootstrap_videos(counts[0], CLASSES, 3)
    assert bootstrap_videos(np.concatenate([counts[:1]] * 3), CLASSES, 3) == pytest.approx(
        bootstrap_videos(counts[0], CLASSES, 3)
    )
    low, high = bootstrap_videos(counts, CLASSES, 3)
    ends = np.array([bootstrap_videos(part, CLASSES, 3) for part in counts])
    assert ends[:, 0].min() - 0.05 <= low < high <= ends[:, 1].max() + 0.05


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
    moments = (
        sum_moments(torch.from_numpy(true), torch.from_numpy(predicted), torch.from_numpy(video), 5)
        .numpy()
        .sum(1)
    )
    for p in range(3):
        found = KINDS["regression"].score(moments[p], VA)
        for k, name in enumerate(VA.outputs):
            t, g = (values[np.isfinite(true[:, k])] for values in (true[:, k], predicted[p][:, k]))
            expected = (
                2 * np.cov(t, g, ddof=0)[0, 1] / (t.var() + g.var() + (t.mean() - g.mean()) ** 2)
            )
            assert found.outputs[name]["ccc"] == pytest.approx(expected, rel=1e-8)
            assert found.outputs[name]["pcc"] == pytest.approx(
                stats.pearsonr(t, g).statistic, rel=1e-8
            )
            assert found.outputs[name]["rmse"] == pytest.approx(
                np.sqrt(((t - g) ** 2).mean()), rel=1e-8
            )
            assert found.outputs[name]["frames"] == len(t)
        assert found.metrics["ccc"] == pytest.approx(
            np.mean([part["ccc"] for part in found.outputs.values()])
        )


def test_moments_of_parts_add_up_to_those_of_the_whole():
    true, predicted, video = (torch.from_numpy(part) for part in moments_case(1))
    whole = sum_moments(true, predicted, video, 5)
    parts = sum_moments(true[:100], predicted[:, :100], video[:100], 5) + sum_moments(
        true[100:], predicted[:, 100:], video[100:], 5
    )
    assert torch.allclose(whole, parts, rtol=1e-12)
    assert whole[..., 0].sum() == 3 * torch.isfinite(true).sum()


def test_a_constant_prediction_agrees_by_chance_which_is_nothing():
    true, _, video = moments_case(2)
    constant = np.full((1, *true.shape), 0.3)
    moments = sum_moments(
        torch.from_numpy(true), torch.from_numpy(constant), torch.from_numpy(video), 5
    ).numpy()
    assert KINDS["regression"].headline(moments.sum(1)) == pytest.approx(0, abs=1e-9)
    assert KINDS["regression"].chance(moments.sum((0, 1)), VA).majority == 0
    assert np.isfinite(KINDS["regression"].headline(np.zeros((2, 6))))  # nothing labelled at all


def test_the_interval_of_agreement_lies_around_it():
    true, predicted, video = moments_case(3, frames=2000, videos=20)
    moments = sum_moments(
        torch.from_numpy(true), torch.from_numpy(predicted), torch.from_numpy(video), 20
    ).numpy()
    low, high = bootstrap_videos(moments, KINDS["regression"], 0)
    assert -1 <= low < KINDS["regression"].headline(moments.sum(1)).mean() < high <= 1


def test_a_kind_that_nobody_knows_is_one_line():
    with pytest.raises(
        RaffectError, match="kind 'ordinal': expected one of multiclass, multilabel, regression"
    ):
        kind_of(replace(EXPR, kind="ordinal"))
    with pytest.raises(
        RaffectError, match="1 label columns for 8 outputs of kind multilabel; expected 8"
    ):
        kind_of(replace(EXPR, kind="multilabel"))
