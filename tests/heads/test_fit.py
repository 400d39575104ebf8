"""The training loop: what is kept, what stops, what goes on, and where samples may come from."""

import numpy as np
import pytest
import torch

from raffect.errors import RaffectError
from raffect.heads.checkpoint import save_state
from raffect.heads.fit import count, fit
from raffect.heads.loss_kinds import loss_kind
from raffect.metrics.task_kinds import kind_of
from raffect.recipe import with_settings
from tests.helpers.small_heads import (
    CPU,
    TASKS,
    Batches,
    Killed,
    kill_after,
    make_job,
    make_learner,
    make_recipe,
    make_samples,
    spec_of,
)

EXPR = TASKS["expr"]


def test_training_learns_and_best_is_the_first_highest_epoch():
    settings = {"epochs": 6, "optim__lr": 0.01, "head__dropout": 0.1, "loss__alpha": 1.0}
    fitted = fit(make_job([make_recipe(seed=seed, **settings) for seed in (0, 1)]))
    for p in range(2):
        curve = [entry["val_macro_f1"][p] for entry in fitted.history]
        assert max(curve) > curve[0]
        assert fitted.snapshots["best"].epoch[p] == int(np.argmax(curve)) + 1
        assert fitted.snapshots["last"].epoch[p] == 6
    counts = count(loss_kind(EXPR), fitted.heads("last"), make_samples(seed=9)).sum(1)
    chance = kind_of(EXPR).chance(counts[0], EXPR).majority
    assert min(fitted.history[-1]["val_macro_f1"]) > 0.4 > 4 * chance


@pytest.mark.parametrize("shape", [{}, {"head__depth": 0}, {"head__normalise": "l2"}], ids=str)
def test_snapshots_score_what_the_history_says_and_what_the_head_on_its_own_scores(shape):
    recipes = [make_recipe(seed=seed, epochs=4, optim__lr=0.01, **shape) for seed in (0, 1)]
    fitted, judged = fit(make_job(recipes)), make_samples(seed=9)
    for name, kept in fitted.snapshots.items():
        counts = count(loss_kind(EXPR), fitted.heads(name), judged).sum(1)
        scores = kind_of(EXPR).headline(counts)
        for p in range(2):
            head = fitted.spec.build_module(fitted.heads(name).state(p))
            predicted = head(judged.x.float()).argmax(1)
            expected = np.zeros((8, 8), int)
            np.add.at(expected, (judged.y.numpy(), predicted.numpy()), 1)
            assert np.array_equal(counts[p], expected), name
            assert fitted.history[kept.epoch[p] - 1]["val_macro_f1"][p] == scores[p]


def test_the_cross_validated_epoch_is_kept():
    two = [make_recipe(seed=seed, epochs=4) for seed in (0, 1)]
    assert fit(make_job(two, cv_epochs=[2, 3])).snapshots["cv"].epoch.tolist() == [2, 3]
    long, short = (make_recipe(epochs=n, optim__schedule="constant") for n in (4, 2))
    kept = fit(make_job([long], cv_epochs=[2])).snapshots["cv"]
    assert torch.equal(kept.rows, fit(make_job([short])).snapshots["last"].rows)


def test_a_head_that_diverges_stops_alone_and_says_where():
    good, bad = make_recipe(seed=1, epochs=3), make_recipe(seed=1, epochs=3, optim__lr=1e30)
    together, alone = fit(make_job([good, bad])), fit(make_job([good]))
    assert together.diverged[0] is None
    assert "no longer finite at step 2 of epoch 1; nothing is kept" in together.diverged[1]
    assert together.snapshots["last"].epoch.tolist() == [3, 0]
    assert [entry["val_macro_f1"][1] for entry in together.history] == [None] * 3
    assert torch.equal(together.snapshots["last"].rows[0], alone.snapshots["last"].rows[0])


def test_when_all_have_diverged_training_ends():
    fitted = fit(make_job([make_recipe(epochs=5, optim__lr=1e30)]))
    assert len(fitted.history) == 1


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_going_on_after_a_kill_is_bit_identical_to_never_having_stopped(tmp_path, stop, depth):
    values = ((0, 0.3), (1, 1.0), (1, 0.1))
    settings = {"epochs": 5, "head__depth": depth}
    recipes = [make_recipe(seed=seed, loss__alpha=alpha, **settings) for seed, alpha in values]
    options = {"cv_epochs": [2, 3, 5]}
    saved = {**options, "state_path": tmp_path / "state.safetensors", "save_every_s": 0}
    with pytest.raises(Killed):
        fit(make_job(recipes, **saved), on_epoch=kill_after(stop))
    seen, earlier = [], []
    resumed = fit(
        make_job(recipes, **saved),
        on_epoch=lambda h: seen.append(h[-1]["epoch"]),
        on_resume=earlier.extend,
    )
    assert [entry["epoch"] for entry in earlier] == list(range(1, stop + 1))
    straight = fit(make_job(recipes, **options))
    assert seen == list(range(stop + 1, 6))
    assert straight.snapshots.keys() == resumed.snapshots.keys() == {"last", "best", "cv"}
    for name, kept in straight.snapshots.items():
        found = resumed.snapshots[name]
        for key, tensor in kept.tensors("").items():
            assert torch.equal(tensor, found.tensors("")[key]), (name, key)
        assert kept.epoch.tolist() == found.epoch.tolist()
    losses = [[entry["train_loss"] for entry in one.history] for one in (straight, resumed)]
    assert losses[0] == losses[1]


def test_snapshots_and_states_hold_the_buffers_of_their_own_epoch(tmp_path):
    recipe = make_recipe(epochs=3, optim__schedule="constant")
    path = tmp_path / "state.safetensors"
    job = make_job([recipe], cv_epochs=[1], state_path=path, save_every_s=0)
    fitted = fit(job)
    kept, last = fitted.snapshots["cv"], fitted.snapshots["last"]
    first = fit(make_job([make_recipe(epochs=1, optim__schedule="constant")])).snapshots["last"]
    assert kept.buffers.keys() == set(spec_of(recipe).buffers)
    for name, buffer in kept.buffers.items():
        assert torch.equal(buffer, first.buffers[name])
        assert not torch.equal(buffer, last.buffers[name])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r, o: (with_settings(r, {"loss.alpha": 0.4}), o), "other recipes"),
        (lambda r, o: (r, o | {"fingerprint": "other"}), "other data"),
        (lambda r, o: (r, o | {"dtype": torch.float64}), "other dtype"),
        (lambda r, o: (with_settings(r, {"head.depth": 1}), o), "other recipes and heads"),
    ],
)
def test_a_state_of_something_else_is_refused(tmp_path, change, match):
    recipe = make_recipe(epochs=3)
    options = {"state_path": tmp_path / "s", "save_every_s": 0, "fingerprint": "this"}
    with pytest.raises(Killed):
        fit(make_job([recipe], **options), on_epoch=kill_after(1))
    recipe, options = change(recipe, options)
    with pytest.raises(RaffectError, match=match):
        fit(make_job([recipe], **options))


def test_a_state_of_another_version_is_refused_in_one_line(tmp_path):
    path, recipe = tmp_path / "s.safetensors", make_recipe()
    job = make_job([recipe], state_path=path)
    # As it was before heads other than MLPs: no format, tensors by their part of an MLP.
    names = ("weights", "running_mean", "running_var", "counter", "exp_avg", "exp_avg_sq", "step")
    about = {"identity": job.identity, "history": [], "diverged": [None], "epochs": {}}
    save_state(path, {name: torch.zeros(1) for name in names}, about)
    line = r"^[^\n]*s.safetensors: an unfinished run of another version of raffect; delete [^\n]*$"
    with pytest.raises(RaffectError, match=line):
        fit(job)


def test_a_damaged_state_is_named(tmp_path):
    path = tmp_path / "s.safetensors"
    path.write_bytes(b"no tensors")
    line = r"s.safetensors: damaged .*delete it to train from the start"
    with pytest.raises(RaffectError, match=line):
        fit(make_job([make_recipe()], state_path=path))


def test_an_io_fault_of_a_state_is_not_called_damage_and_nobody_is_told_to_delete_it(tmp_path):
    # Where a process's memory begins there is nothing to read: EIO.
    path = tmp_path / "s.safetensors"
    path.symlink_to("/proc/self/mem")
    line = r"s.safetensors: cannot be read \(Input/output error\); check the disk [^\n]*$"
    with pytest.raises(RaffectError, match=line) as found:
        fit(make_job([make_recipe()], state_path=path))
    assert "delete" not in str(found.value)
    assert "damaged" not in str(found.value)


@pytest.mark.parametrize("shape", [{}, {"head__depth": 0}, {"head__normalise": "l2"}], ids=str)
def test_a_stream_takes_the_same_step(shape):
    recipes = [make_recipe(seed=3, loss__alpha=alpha, **shape) for alpha in (0.3, 1.0)]
    streamed = fit(make_job(recipes, train=Batches(make_samples(), 3))).snapshots["last"]
    assert torch.equal(streamed.rows, fit(make_job(recipes)).snapshots["last"].rows)


@pytest.mark.parametrize("task", ["expr", "au", "va"])
def test_a_stream_has_the_bytes_of_steps_on_its_batches(task):
    recipes = [make_recipe(task, loss__alpha=alpha, sam__rho=0.1) for alpha in (0.3, 1.0)]
    samples = make_samples(task)
    streamed, direct = (make_learner(recipes, samples, torch.float32) for _ in range(2))
    places = set()
    for _ in streamed.run(Batches(samples, 3), 0):
        places.add((streamed._feed.x.data_ptr(), streamed._feed.y.data_ptr()))
    with torch.no_grad():
        for x, y in Batches(samples, 3).batches(0):
            own = x.float()
            direct.step(own.expand(2, *own.shape), y.expand(2, *y.shape))
    found = direct.state()
    assert all(torch.equal(tensor, found[name]) for name, tensor in streamed.state().items())
    assert len(places) == 1  # the memory that a graph would read


def test_unlabelled_units_do_not_matter():
    recipe, samples = make_recipe("au"), make_samples("au")
    one = fit(make_job([recipe], train=samples, validation=samples))
    samples.y[samples.y < 0] = -7  # another negative mark
    two = fit(make_job([recipe], train=samples, validation=samples))
    assert torch.equal(one.snapshots["last"].rows, two.snapshots["last"].rows)
    assert one.snapshots["last"].rows.device == CPU
