"""Epochs and settings chosen on folds, against scikit-learn over all held-out frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold

from raffect.datasets.affwild2.tasks import EXPR
from raffect.metrics.scores import Chance, JudgedScore
from raffect.metrics.task_kinds import kind_of
from raffect.recipe import Recipe
from raffect.runs.cross_validation import choose_epoch, select_by_cv
from raffect.runs.folder import RunFolder
from raffect.runs.group_statistics import Statistics
from raffect.runs.records import Curve, HeadRecord, PlannedHead
from raffect.runs.spread import group_by_settings

EPOCHS, FOLDS, SEEDS = 3, 3, 2


@pytest.fixture
def run(tmp_path):
    """A run of two seeds and three folds, of which one alone has frames of the last class.

    Epoch 1 is the best without that class, epoch 3 finds it.
    """
    folder, rng = RunFolder(tmp_path), np.random.default_rng(0)
    confusions = {}
    for seed in range(SEEDS):
        for fold in range(FOLDS):
            for epoch in range(1, EPOCHS + 1):
                confusion = rng.integers(0, 4, (2, 8, 8)) + (40 - 7 * epoch) * np.eye(8, dtype=int)
                confusion[:, 7] = confusion[:, :, 7] = 0
                if fold == 0 and epoch == 3:
                    confusion[:, 7, 7] = 30
                elif fold == 0:
                    confusion[:, 7, 0] = 30
                confusions[seed, fold, epoch] = confusion

    heads = {}
    for seed in range(SEEDS):
        for fold in range(FOLDS):
            planned = PlannedHead(Recipe(task="expr", epochs=EPOCHS, seed=seed), fold, FOLDS)
            heads[planned] = {e: confusions[seed, fold, e] for e in range(1, EPOCHS + 1)}
    names = {planned.id: by_epoch for planned, by_epoch in heads.items()}
    file = folder.write_statistics(Statistics(["x", "y"], names))
    for planned, by_epoch in heads.items():
        curve = [float(kind_of(EXPR).headline(found.sum(0))) for found in by_epoch.values()]
        folder.write_record(record_of(planned, curve, statistics=file))
    return folder, confusions


def record_of(planned, curve, **more):
    lr = (0.1,) * EPOCHS
    return HeadRecord(
        id=planned.id,
        task=EXPR,
        recipe=planned.recipe,
        fold=planned.fold,
        num_folds=planned.num_folds,
        fingerprint="f",
        status="done",
        curve=Curve(lr=lr, train_loss=lr, validation=tuple(curve)),
        chance=Chance(answer="always Other", majority=0.07),
        **more,
    )


def macro_f1(confusion):
    true, predicted = np.indices(confusion.shape)
    pairs = (np.repeat(part.ravel(), confusion.ravel()) for part in (true, predicted))
    return f1_score(*pairs, labels=range(8), average="macro", zero_division=0)


def test_folds_are_scored_together_so_that_one_without_a_class_does_not_count_it_0(run):
    folder, confusions = run
    pooled = [
        np.mean(
            [
                macro_f1(sum(confusions[seed, fold, epoch].sum(0) for fold in range(FOLDS)))
                for seed in range(SEEDS)
            ]
        )
        for epoch in range(1, EPOCHS + 1)
    ]
    records = folder.read_records()
    assert choose_epoch(folder, records) == (3, pytest.approx(pooled[2]))
    assert int(np.argmax(pooled)) == 2
    # The mean over folds counts the class 0 in two folds of three, and prefers epoch 1
    by_fold = np.mean([record.curve.validation for record in records], 0)
    assert int(by_fold.argmax()) == 0
    assert pooled[2] > by_fold.max() + 0.04


def test_a_seed_of_which_a_fold_diverged_has_the_lowest_score(run):
    folder, _ = run
    records = folder.read_records()
    alone = [record for record in records if record.recipe.seed == 1]
    broken = [
        replace(record, status="diverged")
        if record.recipe.seed == 0 and record.fold == 1
        else record
        for record in records
    ]
    half = choose_epoch(folder, alone)[1] / 2
    assert choose_epoch(folder, broken) == (3, pytest.approx(half))
    assert choose_epoch(folder, []) == (0, 0.0)


def test_folds_whose_epochs_were_not_kept_are_averaged(run):
    folder, _ = run  # records of November 2026 hold no statistics of heads of folds
    records = [replace(record, statistics=None) for record in folder.read_records()]
    curve = np.mean([record.curve.validation for record in records], 0)
    assert choose_epoch(folder, records) == (1, pytest.approx(curve.max()))


def test_settings_without_a_fold_come_last(run):
    folder, _ = run
    folds = folder.read_records()
    score = JudgedScore(**vars(kind_of(EXPR).score(np.eye(8, dtype=int), EXPR)), epoch=3)
    head = record_of(PlannedHead(folds[0].recipe), [0.1] * EPOCHS, scores={"cv": score})
    (group,) = group_by_settings([head])
    other = [replace(head, recipe=replace(head.recipe, batch_size=64)) for head in group]
    assert select_by_cv(folder, [other, group], [*folds, *group, *other]) is group
    assert select_by_cv(folder, [group], group) is None
    unfinished = [[replace(head, scores={})]]  # no fold was trained to the end
    assert select_by_cv(folder, unfinished, folds) is None


def test_groups_are_dealt_as_scikit_learn_has_dealt_them_since_1_8():
    """Before, shuffled groups had the classes of others, and so other folds."""
    rng, group = np.random.default_rng(0), np.repeat(np.arange(12), 80)
    classes = np.repeat(rng.integers(0, 8, 48), 20)
    splitter = StratifiedGroupKFold(2, shuffle=True, random_state=0)
    (_, second), _ = splitter.split(group, classes, group)
    assert np.unique(group[second]).tolist() == [2, 3, 5, 6, 8, 10, 11]
