"""Scores of heads that find their own caption among others: by hand, and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from raffect.datasets.targets import contrastive_task
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.metrics.retrieval import find_candidates
from raffect.metrics.task_kinds import kind_of

TASK = contrastive_task("captions", ("a", "b", "c"))
PLAIN = contrastive_task("captions")
KIND = kind_of(TASK)


def test_candidates_are_all_distinct_vectors():
    vectors = np.array([[1, 0], [0, 1], [1, 0], [0.0, -1], [-0.0, 1]], np.float16)
    targets = np.array([[0, 0], [1, 1], [2, 0], [4, 0]])
    found = find_candidates(vectors, targets)
    assert found.same.tolist() == [0, 1, 0, 3, 1]  # 0 and -0 are equal
    assert found.distinct.tolist() == [0, 1, 3]
    assert found.guess == pytest.approx(1 / 3)
    assert found.frequent.tolist() == [0] * 5  # two rows each: the first
    assert found.owner.tolist() == [0, -1, 0, -1, -1]  # 1 and 4 have rows of two classes


def test_candidates_of_many_vectors_are_blocks_of_1024_numbers():
    vectors = np.random.default_rng(0).normal(size=(2500, 4)).astype(np.float16)
    vectors[2000] = vectors[3]  # equal, in another block
    vectors[2401:2411] = vectors[2400]
    targets = np.array([[7, 0], [7, 0], [1100, 1], [2405, 0], [2400, 0], [2100, 1]])
    found = find_candidates(vectors, targets)
    assert found.distinct is None
    assert found.same[2000] == 3
    sizes = np.repeat([1024, 1024, 2500 - 2048 - 10], [1024, 1024, 2500 - 2048])
    assert 1 / found.guess == pytest.approx(sizes)
    assert set(found.frequent[:1024]) == {7}
    assert set(found.frequent[2048:]) == {2400}


def test_mean_recall_of_one_vector_a_class_is_balanced_accuracy():
    rng = np.random.default_rng(1)
    true, predicted = rng.integers(0, 2, 50), rng.integers(0, 2, 50)
    statistics = np.zeros((3, 4))
    np.add.at(statistics, true, np.stack([true == predicted, *np.ones((3, 50))], 1))
    score = KIND.score(statistics, TASK)
    assert score.headline == pytest.approx(balanced_accuracy_score(true, predicted))
    assert score.metrics["accuracy"] == pytest.approx((true == predicted).mean())
    assert score.absent == ("c",)
    assert score.outputs["a"]["support"] == (true == 0).sum()


def test_chance_is_the_better_of_a_guess_and_the_most_frequent_target():
    # Class a: 8 samples, class b: 2; all of b have the most frequent target, as half of a
    often = np.array([[[5, 8, 2.0, 4], [1, 2, 0.5, 2], [0, 0, 0, 0]]])
    chance = KIND.chance(often[0], TASK)
    assert (chance.answer, chance.level) == ("always the most frequent of 4 candidates", 0.75)
    assert KIND.headline(KIND.statistics_by_chance(often).sum(0)) == pytest.approx(0.75)
    seldom = often.copy()
    seldom[..., 3] = 0
    chance = KIND.chance(seldom[0], TASK)
    assert (chance.answer, chance.level) == ("a guess among 4 candidates", 0.25)
    assert KIND.headline(KIND.statistics_by_chance(seldom).sum(0)) == pytest.approx(0.25)
    assert KIND.count_frames(often).tolist() == [10]


def test_numbers_of_no_class_and_halves_of_a_pair_are_wrong():
    values = np.array([[0, 0], [9, 2], [-1, -1], [np.nan, np.nan], [-2, 0], [0, 3], [0.5, 0]])
    assert not KIND.find_wrong(TASK, values)[:4].any()
    assert KIND.find_wrong(TASK, values)[4:].any(1).all()
    assert KIND.find_wrong(TASK, np.array([[0.0, -1], [-1, 0], [np.nan, 1]])).any(1).all()
    assert KIND.targets(PLAIN, np.array([[3.0], [1]])).tolist() == [[3, 0], [1, 0]]
    assert KIND.shares(TASK, values[:2]) == {"a": 1, "b": 0, "c": 1}


def test_folds_are_alike_in_classes_where_there_are_several():
    assert KIND.strata(np.array([[5, 0], [6, 2]])).tolist() == [0, 2]
    assert KIND.strata(np.array([[5, 0], [6, 0]])) is None


def test_one_target_cannot_be_learnt():
    assert KIND.why_untrainable(TASK, np.array([[1, 0], [2, 0]])) == ""
    why = KIND.why_untrainable(TASK, np.array([[2, 0], [2, 1]]))
    assert why.startswith("one target only (number 2")


@pytest.mark.parametrize("columns", [("target",), ("target", "class", "more")])
def test_columns_that_do_not_go_with_classes_are_refused(columns):
    task = Task(name="x", kind="contrastive", outputs=("a", "b"), columns=columns)
    with pytest.raises(RaffectError, match="label columns for 2 outputs of kind contrastive"):
        kind_of(task)
