"""Scores against scikit-learn over many cases, the hostile ones among them; counts that add up; the bootstrap by hand."""

import doctest

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from raffect.data.labels import ACTION_UNITS, AU, EXPR, EXPRESSIONS
from raffect.model import metrics
from raffect.model.metrics import bootstrap_videos, count_confusion, count_units, f1_scores, hits, macro_f1, score, trivial

UNITS = tuple(ACTION_UNITS)


def expr_case(seed, frames=300, classes=range(8), videos=6):
    rng = np.random.default_rng(seed)
    truth = rng.choice(list(classes), frames)
    guess = np.where(rng.random((2, frames)) < 0.6, truth, rng.integers(0, 8, (2, frames)))
    return truth, guess, np.sort(rng.integers(0, videos, frames))


def count_expr(truth, guess, video, videos=6):
    return count_confusion(torch.from_numpy(truth), torch.from_numpy(guess), torch.from_numpy(video), videos, 8).numpy()


@pytest.mark.parametrize("classes", [range(8), (0, 7), (3,), (0, 1, 2)])
@pytest.mark.parametrize("seed", range(5))
def test_expr_scores_are_scikit_learns(seed, classes):
    truth, guess, video = expr_case(seed, classes=classes)
    counts = count_expr(truth, guess, video).sum(1)
    for p in range(2):
        found = score(counts[p], EXPR, EXPRESSIONS)
        precision, recall, f1, support = precision_recall_fscore_support(truth, guess[p], labels=range(8), zero_division=0)
        assert [part["precision"] for part in found["classes"].values()] == pytest.approx(precision)
        assert [part["recall"] for part in found["classes"].values()] == pytest.approx(recall)
        assert [part["f1"] for part in found["classes"].values()] == pytest.approx(f1)
        assert [part["support"] for part in found["classes"].values()] == support.tolist()
        assert found["macro_f1"] == pytest.approx(f1_score(truth, guess[p], labels=range(8), average="macro", zero_division=0))
        assert found["accuracy"] == pytest.approx(accuracy_score(truth, guess[p]))
        assert found["confusion"] == confusion_matrix(truth, guess[p], labels=range(8)).tolist()


def test_an_absent_class_scores_zero_and_is_not_dropped():
    truth = np.array([0, 1, 2, 2])
    counts = count_expr(truth, truth[None], np.zeros(4, int)).sum(1)[0]
    assert macro_f1(counts, EXPR) == pytest.approx(3 / 8)


@pytest.mark.parametrize("seed", range(5))
def test_au_scores_are_scikit_learns_on_labelled_units(seed):
    rng = np.random.default_rng(seed)
    truth, guess = rng.integers(-1, 2, (200, 12)), rng.random((2, 200, 12)) < 0.4
    truth[:, 5] = 0  # never active
    truth[:, 6] = -1  # never labelled
    guess[0, :, 5] = False  # nor said
    counts = count_units(torch.from_numpy(truth), torch.from_numpy(guess), torch.from_numpy(rng.integers(0, 4, 200)), 4).numpy().sum(1)
    for p in range(2):
        found = score(counts[p], AU, UNITS)
        expected = [f1_score(truth[truth[:, u] >= 0, u], guess[p][truth[:, u] >= 0, u], zero_division=0) if (truth[:, u] >= 0).any() else 0 for u in range(12)]
        assert [part["f1"] for part in found["classes"].values()] == pytest.approx(expected)
        assert found["macro_f1"] == pytest.approx(np.mean(expected))
        assert counts[p].sum(1).tolist() == (truth >= 0).sum(0).tolist()


def test_counts_of_parts_add_up_to_those_of_the_whole():
    truth, guess, video = expr_case(3)
    whole = count_expr(truth, guess, video)
    parts = [count_expr(truth[s], guess[:, s], video[s]) for s in (slice(0, 100), slice(100, 300))]
    assert np.array_equal(whole, parts[0] + parts[1])
    assert whole.sum() == 2 * len(truth)


def test_hits_of_a_confusion_matrix_count_every_frame_once_a_class():
    truth, guess, video = expr_case(1)
    table = hits(count_expr(truth, guess, video).sum(1), EXPR)
    assert (table.sum(-1) == len(truth)).all()
    assert f1_scores(table).shape == (2, 8)


@pytest.mark.parametrize("seed", range(3))
def test_the_trivial_predictor_is_the_best_constant(seed):
    truth, guess, video = expr_case(seed)
    found = trivial(count_expr(truth, guess, video).sum(1)[0], EXPR)
    constants = [f1_score(truth, np.full(len(truth), k), labels=range(8), average="macro", zero_division=0) for k in range(8)]
    assert found["macro_f1"] == pytest.approx(max(constants))
    assert found["answer"] == f"always {EXPRESSIONS[int(np.argmax(constants))]}"


def test_no_blind_guess_at_expressions_beats_one_by_the_class_shares():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(8, 0.7))
    truth = rng.choice(8, 400_000, p=shares)
    counts = count_expr(truth, rng.choice(8, len(truth), p=shares)[None], np.zeros(len(truth), np.int64)).sum(1)[0]
    assert macro_f1(counts, EXPR) == pytest.approx(trivial(counts, EXPR)["guess"], abs=2e-3)
    guesses = rng.dirichlet(np.ones(8), 2000)
    assert (2 * shares * guesses / (shares + guesses)).mean(1).max() <= trivial(counts, EXPR)["guess"]


def test_the_trivial_au_predictor_says_that_all_are_active():
    rng = np.random.default_rng(0)
    truth = rng.integers(-1, 2, (100, 12))
    counts = count_units(torch.from_numpy(truth), torch.zeros(1, 100, 12, dtype=torch.bool), torch.zeros(100, dtype=torch.int64), 1).numpy()[0, 0]
    expected = np.mean([f1_score(truth[truth[:, u] >= 0, u], np.ones((truth[:, u] >= 0).sum()), zero_division=0) for u in range(12)])
    assert trivial(counts, AU)["macro_f1"] == pytest.approx(expected)


def test_the_bootstrap_draws_videos_not_frames():
    rng = np.random.default_rng(1)
    video = np.repeat(np.arange(12), 40)
    truth = rng.integers(0, 8, len(video))
    bad = rng.random(12) < 0.5
    guess = np.where(bad[video], (truth + 1) % 8, truth)  # whole videos right or wrong
    low, high = bootstrap_videos(count_expr(truth, guess[None], video, 12)[0], EXPR, 0)
    by_hand = []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(video == k) for k in rng.integers(0, 12, 12)])
        by_hand.append(f1_score(truth[rows], guess[rows], average="macro"))
    assert (low, high) == pytest.approx(np.quantile(by_hand, (0.025, 0.975)), abs=0.09)  # one video of twelve
    assert high - low > 0.3


def test_the_interval_lies_around_the_score_where_rare_and_absent_classes_are_lost():
    rng = np.random.default_rng(4)
    video = np.repeat(np.arange(30), 20)
    truth = rng.integers(0, 6, len(video))  # two classes never occur
    truth[video == 7] = 6  # one occurs in a single video, and is missed there
    guess = np.where((rng.random(len(video)) < 0.7) & (truth != 6), truth, rng.integers(0, 6, len(video)))
    counts = count_expr(truth, guess[None], video, 30)[0]
    low, high = bootstrap_videos(counts, EXPR, 0)
    assert low < macro_f1(counts.sum(0), EXPR) < high
    assert high - low < 0.2


def test_the_bootstrap_of_several_heads_is_that_of_their_mean():
    truth, guess, video = expr_case(2)
    counts = count_expr(truth, guess, video)
    assert bootstrap_videos(counts[:1], EXPR, 3) == bootstrap_videos(counts[0], EXPR, 3)
    assert bootstrap_videos(np.concatenate([counts[:1]] * 3), EXPR, 3) == pytest.approx(bootstrap_videos(counts[0], EXPR, 3))
    low, high = bootstrap_videos(counts, EXPR, 3)
    ends = np.array([bootstrap_videos(part, EXPR, 3) for part in counts])
    assert ends[:, 0].min() - 0.05 <= low < high <= ends[:, 1].max() + 0.05


def test_examples_in_docstrings_run():
    assert doctest.testmod(metrics).failed == 0
