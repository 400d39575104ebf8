"""Which heads train together, and what a run that goes on keeps of its batches."""

import pytest

from raffect.datasets.affwild2.tasks import EXPR
from raffect.metrics.scores import Chance
from raffect.recipe import Recipe, with_settings
from raffect.runs.folder import RunFolder
from raffect.runs.records import Curve, HeadRecord, PlannedHead
from raffect.training.run_batch import partition, plan_batches
from raffect.training.space import add_baseline, list_recipes

BASE = Recipe(task="expr")


def test_batches_hold_heads_that_can_train_together_and_no_head_is_lost():
    recipes = list_recipes(BASE, ["loss.alpha=0.1:1:0.1", "seed=0:2", "batch_size=16,32"], 0)
    heads = [PlannedHead(recipe) for recipe in recipes]
    heads += [PlannedHead(BASE, fold, 3) for fold in range(3)]
    batches = partition(heads, 8)
    assert sorted(ids(*batches)) == sorted(ids(heads))
    assert max(map(len, batches)) <= 8
    for batch in batches:
        assert len({(head.recipe.batch_size, head.fold) for head in batch}) == 1
    assert partition(heads, 8) == batches


def test_plain_erm_never_shares_a_batch_with_sam_whose_second_pass_it_would_pay():
    recipes = add_baseline(list_recipes(BASE, ["loss.alpha=0.1:1:0.1", "seed=0:4"], 0))
    batches = partition([PlannedHead(recipe) for recipe in recipes], 64)
    assert [{head.recipe.sam.rho > 0 for head in batch} for batch in batches] == [{True}, {False}]
    assert [len(batch) for batch in batches] == [50, 5]
    # Radii of different lengths are one kind of step.
    radii = [with_settings(BASE, {"sam.rho": rho}) for rho in (0.01, 0.05, 0.5)]
    assert len(partition([PlannedHead(recipe) for recipe in radii], 8)) == 1


def test_a_batch_with_and_without_sam_that_was_begun_before_goes_on_as_it_is(tmp_path):
    folder = RunFolder(tmp_path)
    heads = [PlannedHead(r) for r in add_baseline(list_recipes(BASE, ["seed=0,1"], 0))]
    folder.note_batch(dict.fromkeys(ids(heads), 0))
    folder.state_path(ids(heads)).touch()
    assert plan_batches(folder, heads, 8, one_seed=False) == [heads]
    folder.drop_state(ids(heads))
    assert plan_batches(folder, heads, 8, one_seed=False) == [heads[:2], heads[2:]]


def ids(*batches):
    return [head.id for batch in batches for head in batch]


def record_of(head, cv_epoch=None):
    return HeadRecord(
        id=head.id,
        task=EXPR,
        recipe=head.recipe,
        fingerprint="f",
        status="done",
        cv_epoch=cv_epoch,
        curve=Curve(),
        chance=Chance(answer="always Other", majority=0.07),
    )


@pytest.fixture
def killed(tmp_path):
    """A run of twelve heads that was killed, and its batches.

    The first batch was killed between writing its records and deleting its state, the second after
    it had saved its state, the third before.
    """
    folder = RunFolder(tmp_path)
    recipes = list_recipes(BASE, ["loss.alpha=0.1:0.6:0.1", "seed=0,1"], 0)
    batches = plan_batches(folder, [PlannedHead(recipe) for recipe in recipes], 4, one_seed=False)
    assert [len(batch) for batch in batches] == [4, 4, 4]
    for head in batches[0]:
        folder.write_record(record_of(head))
    for batch in batches:
        folder.note_batch(dict.fromkeys(ids(batch), 0))
    for batch in batches[:2]:
        folder.state_path(ids(batch)).touch()
    return folder, batches


def test_a_run_that_goes_on_keeps_batches_under_way_and_repeats_nothing(killed):
    folder, batches = killed
    new = PlannedHead(with_settings(BASE, {"seed": 9}))
    larger = [*(head for batch in batches for head in batch), new]

    # The batch under way goes on as it is; the others are cut anew
    again = plan_batches(folder, larger, 2, one_seed=False)
    assert again[0] == batches[1]
    assert not folder.state_path(ids(batches[0])).exists()
    assert sorted(ids(*again[1:])) == sorted(ids(batches[2], [new]))
    assert all(len(batch) <= 2 for batch in again[1:])
    for batch in plan_batches(folder, larger, 3, one_seed=True)[1:]:
        assert len({head.recipe.seed for head in batch}) == 1

    # A run of fewer heads came in between and was killed too: one of the two batches goes on
    folder.note_batch({batches[1][0].id: 0})
    folder.state_path([batches[1][0].id]).touch()
    planned = ids(*plan_batches(folder, larger, 2, one_seed=False))
    assert len(planned) == len(set(planned)) == len(larger) - len(batches[0])


def test_heads_that_keep_another_epoch_than_cross_validation_chose_are_trained_again(killed):
    folder, (recorded, under_way, _) = killed

    # A batch under way begins again
    cv_epochs = dict.fromkeys(ids(under_way), 7)
    plan_batches(folder, under_way, 4, False, cv_epochs)
    assert not folder.state_path(ids(under_way)).exists()

    # So does every head but the one whose record has the epoch
    folder.write_record(record_of(recorded[0], cv_epoch=5))
    cv_epochs = dict.fromkeys(ids(recorded), 5)
    planned = ids(*plan_batches(folder, recorded, 4, False, cv_epochs))
    assert recorded[1].id in planned
    assert recorded[0].id not in planned
