"""What a sweep shows of its trials while they run."""

import sys
from types import SimpleNamespace

import pytest

from raffect.progress import Progress
from raffect.recipe import Recipe, with_settings
from raffect.runs.records import PlannedHead
from raffect.training.space import add_baseline, list_recipes
from raffect.training.trial import _axis_text
from raffect.training.watch import ended_batches, move_progress, watched

BASE = Recipe(task="expr")


def test_tunes_callback_pickles_while_a_live_line_is_shown(monkeypatch):
    from ray import cloudpickle

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("tune", 10) as progress:
        with pytest.raises(TypeError, match="cannot pickle"):
            cloudpickle.dumps(progress)  # which is why it must not hold one
        with watched(progress, [[PlannedHead(BASE)] * 2]) as watch:
            cloudpickle.dumps(watch)
            move_progress(watch.name, 0, 0, {"epoch": 1, "steps": 3, "note": "epoch 1"})
        assert progress.done == 6
        with watched(progress, [["a"], ["b"]]) as watch:
            watch.on_trial_complete(0, [], SimpleNamespace(config={"batch": 1}))
            assert ended_batches(watch.name) == [["b"]]


def test_a_trial_that_goes_on_or_repeats_epochs_is_counted_once():
    with (
        Progress("tune", 60) as progress,
        watched(progress, [[PlannedHead(BASE)] * 2] * 2) as watch,
    ):
        for epoch in (4, 5, 4, 5, 6):  # three by an earlier run; then it died and repeated two
            move_progress(watch.name, 0, 0, {"epoch": epoch, "steps": 3})
        assert (progress.earlier, progress.counted) == (3 * 6, 3 * 6)
        move_progress(watch.name, 0, 1, {"epoch": 1, "steps": 3})
        move_progress(watch.name, 1, 1, {})
        assert (progress.earlier, progress.counted, progress.done) == (18, 24, 42)


def test_tracked_curves_of_heads_have_names_of_their_own():
    settings = {"loss.alpha": 1.0, "sam.rho": 0.0, "loss.weighting": "inverse"}
    recipes = add_baseline(list_recipes(with_settings(BASE, settings), ["seed=0,1"], 0))
    names = {_axis_text(PlannedHead(recipe), ["seed"]) for recipe in recipes}
    assert len(names) == len(recipes) == 4
