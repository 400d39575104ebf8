"""Epochs and settings chosen on folds, against scikit-learn over all held-out frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from raffect import cli
from raffect.runs.cross_validation import choose_epoch, select_by_cv
from raffect.runs.folder import RunFolder
from raffect.runs.spread import finished, group_by_settings
from tests.helpers.learning import make_data, words

RARE = 7


@pytest.fixture(scope="module")
def cross_validated(tmp_path_factory):
    """A run of two seeds and three folds, of which two have no frame of one class."""

    def one_video_has_it(x, expr, au):
        expr[expr == RARE] = 0
        expr[:20] = RARE
        x[:20, RARE] += 3

    folder = tmp_path_factory.mktemp("cv")
    data = make_data(folder, change=one_video_has_it)
    more = ["--select", "cv", "--folds", "3", "--num-seeds", "2"]
    assert cli.main(words("train", data, folder / "run", *more)) == 0
    return RunFolder(folder / "run")


def folds_of(run):
    return [record for record in run.read_records() if record.fold is not None]


def macro_f1(confusion):
    true, predicted = np.indices(confusion.shape)
    pairs = (np.repeat(part.ravel(), confusion.ravel()) for part in (true, predicted))
    return f1_score(*pairs, labels=range(8), average="macro", zero_division=0)


def test_folds_are_scored_together_so_that_one_without_a_class_does_not_count_it_0(cross_validated):
    folds = folds_of(cross_validated)
    pooled = []
    for epoch in (1, 2, 3):
        by_seed = dict.fromkeys((0, 1), 0)
        for fold in folds:
            counts = cross_validated.statistics_by_epoch(fold)[epoch].sum(0)
            by_seed[fold.recipe.seed] = by_seed[fold.recipe.seed] + counts
        pooled.append(np.mean([macro_f1(confusion) for confusion in by_seed.values()]))

    epoch, score = choose_epoch(cross_validated, folds)
    assert (epoch, score) == (int(np.argmax(pooled)) + 1, pytest.approx(max(pooled)))
    by_fold = np.mean([fold.curve.validation for fold in folds], 0)
    assert score > by_fold.max() + 0.02  # two folds of three count the rare class as 0


def test_the_heads_keep_the_epoch_that_was_chosen(cross_validated):
    epoch, _ = choose_epoch(cross_validated, folds_of(cross_validated))
    heads = finished(cross_validated.read_records())
    assert {head.cv_epoch for head in heads} == {epoch}
    assert {head.scores["cv"].epoch for head in heads} == {epoch}


def test_a_seed_of_which_a_fold_diverged_has_the_lowest_score(cross_validated):
    folds = folds_of(cross_validated)
    _, score = choose_epoch(cross_validated, folds)
    alone = [fold for fold in folds if fold.recipe.seed == 1]
    broken = [
        replace(fold, status="diverged") if fold.recipe.seed == 0 and fold.fold == 1 else fold
        for fold in folds
    ]
    assert choose_epoch(cross_validated, broken)[1] == pytest.approx(
        choose_epoch(cross_validated, alone)[1] / 2
    )
    assert score > choose_epoch(cross_validated, broken)[1]
    assert choose_epoch(cross_validated, []) == (0, 0.0)


def test_folds_whose_epochs_were_not_kept_are_averaged(cross_validated, monkeypatch):
    # As of November 2026, whose records hold no statistics of heads of folds
    monkeypatch.setattr(cross_validated, "statistics_by_epoch", lambda record: {})
    folds = folds_of(cross_validated)
    curve = np.mean([fold.curve.validation for fold in folds], 0)
    expected = int(curve.argmax()) + 1, pytest.approx(curve.max())
    assert choose_epoch(cross_validated, folds) == expected


def test_settings_without_a_fold_come_last(cross_validated):
    records = cross_validated.read_records()
    (group,) = group_by_settings(finished(records))
    other = [replace(head, recipe=replace(head.recipe, batch_size=64)) for head in group]
    assert select_by_cv(cross_validated, [other, group], records) is group
    assert select_by_cv(cross_validated, [group], finished(records)) is None
