"""The training loop: what is kept, what stops, what goes on after a stop, and where rows may come from."""

import numpy as np
import pytest
import torch
from test_learner import CPU, DIM, make_recipe, make_rows

from raffect.data.affwild2 import AU, EXPR
from raffect.errors import RaffectError
from raffect.metrics.kinds import kind_of
from raffect.model.fit import count, fit
from raffect.model.head import build_head, member_state
from raffect.model.kinds import loss_kind
from raffect.model.pack import Layout
from raffect.recipe import with_settings

LAYOUT = Layout(DIM, 16, 2, 8)


def run(recipes, train=None, validation=None, **options):
    train = make_rows() if train is None else train
    prior = loss_kind(EXPR).count_prior(make_rows().y.numpy())
    return fit(recipes, LAYOUT, prior, train, validation or make_rows(seed=9), device=CPU, **options)


def test_training_learns_and_best_is_the_first_highest_epoch():
    recipes = [make_recipe(seed=s, epochs=6, optim__lr=0.01, head__dropout=0.1, loss__alpha=1.0) for s in (0, 1)]
    fitted = run(recipes)
    for p in range(2):
        curve = [entry["val_macro_f1"][p] for entry in fitted.history]
        assert max(curve) > curve[0]
        assert fitted.snapshots["best"].epoch[p] == int(np.argmax(curve)) + 1
        assert fitted.snapshots["last"].epoch[p] == 6
    assert (
        min(fitted.history[-1]["val_macro_f1"])
        > 0.4
        > 4 * kind_of(EXPR).chance(count(loss_kind(EXPR), fitted.snapshots["last"].layers(LAYOUT), make_rows(seed=9)).sum(1)[0], EXPR)["macro_f1"]
    )


def test_snapshots_score_what_the_history_says_and_what_the_head_on_its_own_scores():
    fitted, judged = run([make_recipe(seed=s, epochs=4, optim__lr=0.01) for s in (0, 1)]), make_rows(seed=9)
    for name, kept in fitted.snapshots.items():
        counts = count(loss_kind(EXPR), kept.layers(LAYOUT), judged).sum(1)
        for p in range(2):
            head = build_head(LAYOUT, member_state(LAYOUT, kept.weights[p], kept.running_mean[p], kept.running_var[p]))
            guess = head(judged.x.float()).argmax(1)
            expected = np.zeros((8, 8), int)
            np.add.at(expected, (judged.y.numpy(), guess.numpy()), 1)
            assert np.array_equal(counts[p], expected), name


def test_a_chosen_epoch_is_kept():
    fitted = run([make_recipe(seed=s, epochs=4) for s in (0, 1)], keep_epochs=[2, 3])
    assert fitted.snapshots["chosen"].epoch.tolist() == [2, 3]
    straight = run([make_recipe(seed=0, epochs=4, optim__schedule="constant")], keep_epochs=[2])
    short = run([make_recipe(seed=0, epochs=2, optim__schedule="constant")])
    assert torch.equal(straight.snapshots["chosen"].weights, short.snapshots["last"].weights)


def test_a_member_that_diverges_stops_alone_and_says_where():
    good, bad = make_recipe(seed=1, epochs=3), make_recipe(seed=1, epochs=3, optim__lr=1e30)
    together, alone = run([good, bad]), run([good])
    assert together.diverged[0] is None
    assert "no longer finite at step 2 of epoch 1; nothing is kept" in together.diverged[1]
    assert together.snapshots["last"].epoch.tolist() == [3, 0]
    assert [entry["val_macro_f1"][1] for entry in together.history] == [None] * 3
    assert torch.equal(together.snapshots["last"].weights[0], alone.snapshots["last"].weights[0])


def test_when_all_have_diverged_training_ends():
    fitted = run([make_recipe(epochs=5, optim__lr=1e30)])
    assert len(fitted.history) == 1


class Killed(BaseException):
    pass


def kill_after(epochs):
    def on_epoch(history):
        if len(history) == epochs:
            raise Killed

    return on_epoch


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_going_on_after_a_kill_is_bit_identical_to_never_having_stopped(tmp_path, stop):
    recipes = [make_recipe(seed=s, epochs=5, loss__alpha=a) for s, a in ((0, 0.3), (1, 1.0), (1, 0.1))]
    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        run(recipes, state_path=state, save_every_s=0, keep_epochs=[2, 3, 5], on_epoch=kill_after(stop))
    seen = []
    resumed = run(recipes, state_path=state, save_every_s=0, keep_epochs=[2, 3, 5], on_epoch=lambda history: seen.append(history[-1]["epoch"]))
    straight = run(recipes, keep_epochs=[2, 3, 5])
    assert seen == list(range(stop + 1, 6))
    for name, kept in straight.snapshots.items():
        for field in ("weights", "running_mean", "running_var"):
            assert torch.equal(getattr(kept, field), getattr(resumed.snapshots[name], field)), name
        assert kept.epoch.tolist() == resumed.snapshots[name].epoch.tolist()
    assert [e["train_loss"] for e in straight.history] == [e["train_loss"] for e in resumed.history]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r, o: (with_settings(r, {"loss.alpha": 0.4}), o), "other recipes"),
        (lambda r, o: (r, o | {"fingerprint": "other"}), "other data"),
        (lambda r, o: (r, o | {"dtype": torch.float64}), "other dtype"),
    ],
)
def test_a_state_of_something_else_is_refused(tmp_path, change, match):
    recipe, options = make_recipe(epochs=3), {"state_path": tmp_path / "s", "save_every_s": 0, "fingerprint": "this"}
    with pytest.raises(Killed):
        run([recipe], on_epoch=kill_after(1), **options)
    recipe, options = change(recipe, options)
    with pytest.raises(RaffectError, match=match):
        run([recipe], **options)


def test_a_damaged_state_is_named(tmp_path):
    state = tmp_path / "s.safetensors"
    state.write_bytes(b"no tensors")
    with pytest.raises(RaffectError, match=r"s.safetensors: damaged .*delete it to train from the start"):
        run([make_recipe()], state_path=state)


class Batches:
    """Rows in a source's order; the same order as a resident epoch, so that both can be compared."""

    def __init__(self, rows, seed):
        self.rows, self.seed = rows, seed

    def batches(self, epoch):
        from raffect.model.random import epoch_order

        order = torch.from_numpy(epoch_order(self.seed, epoch, len(self.rows)))
        for start in range(0, len(order) - 15, 16):
            yield self.rows.x[order[start : start + 16]], self.rows.y[order[start : start + 16]]


def test_a_stream_takes_the_same_step():
    recipes = [make_recipe(seed=3, loss__alpha=a) for a in (0.3, 1.0)]
    streamed, resident = run(recipes, train=Batches(make_rows(), 3)), run(recipes)
    assert torch.equal(streamed.snapshots["last"].weights, resident.snapshots["last"].weights)


def test_unlabelled_units_do_not_matter():
    recipe, rows = make_recipe("au"), make_rows("au")
    layout, prior = Layout(DIM, 16, 2, 12), loss_kind(AU).count_prior(rows.y.numpy())
    one = fit([recipe], layout, prior, rows, rows, device=CPU)
    rows.y[rows.y < 0] = -7  # another negative mark
    two = fit([recipe], layout, prior, rows, rows, device=CPU)
    assert torch.equal(one.snapshots["last"].weights, two.snapshots["last"].weights)
