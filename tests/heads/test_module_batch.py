"""Heads that are any module: alone and in a batch, in training and in use."""

import dataclasses

import pytest
import torch
from torch import nn

from raffect.errors import RaffectError
from raffect.heads import fit as fit_module
from raffect.heads.checkpoint import load_batch, load_head, save_head
from raffect.heads.fit import count, fit
from raffect.heads.head_kinds import HEAD_KINDS
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.sam import perturb
from tests.helpers.small_heads import (
    CPU,
    DIM,
    TASKS,
    Batches,
    Killed,
    kill_after,
    make_card,
    make_job,
    make_learner,
    make_recipe,
    make_samples,
    run,
)
from tests.helpers.small_modules import Attentive, AttentiveSpec, Watched, make_windows, spec_with
from tests.helpers.textbook import plain_step

SPEC = AttentiveSpec()
WIDE = AttentiveSpec(width=64)
OPTIMIZERS = {
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.01}),
}


def make_heads(spec, num_heads=3, dtype=torch.float64):
    return spec.build(torch.stack([spec.initial_row(p, None) for p in range(num_heads)]).to(dtype))


def make_pass(spec, size, num_heads=3, dtype=torch.float64):
    """Windows, noise and a derivative by the outputs."""
    torch.manual_seed(size)
    x = torch.randn(num_heads, size, 5, spec.dim, dtype=dtype)
    x[:, ::2, 4] = float("nan")
    noise = torch.rand(num_heads, size, spec.num_noise + spec.num_uniform, dtype=dtype)
    return x, noise, torch.randn(num_heads, size, spec.outputs + spec.penalties, dtype=dtype)


def one_step(heads, x, noise, upstream, rho):
    """Everything that a step with SAM computes, and what heads predict for samples of all."""
    first = heads.forward(heads.rows, x, noise, update_buffers=True)
    heads.backward(upstream)
    gradient = heads.gradient.clone()
    there = perturb(heads.rows, gradient, rho, "l2", torch.empty_like(gradient))
    second = heads.forward(there, x, noise, update_buffers=False)
    heads.backward(upstream)
    predicted = heads.predict(heads.rows, heads.buffers, torch.ones_like(x[0]) / 3)
    there, last = there.clone(), heads.gradient.clone()
    return {"first": first, "there": there, "second": second, "last": last, "use": predicted}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spec", [SPEC, WIDE], ids=["narrow", "wide"])
def test_one_head_alone_is_the_same_head_in_a_batch_bit_by_bit(spec, dtype, size):
    # A row of odd length begins anywhere in memory, which the last bits of a product may show.
    assert spec.num_weights % 2
    together, rho = make_heads(spec, dtype=dtype), torch.tensor([0.5, 0.0, 0.1], dtype=dtype)
    x, noise, upstream = make_pass(spec, size, dtype=dtype)
    found = one_step(together, x, noise, upstream, rho)
    for p in range(3):
        part = slice(p, p + 1)
        alone = spec.build(together.rows[part].clone())
        expected = one_step(alone, x[part], noise[part], upstream[part], rho[part])
        for name, tensor in expected.items():
            assert torch.equal(found[name][part], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_trained_by_fit_too_a_head_has_the_bytes_that_it_has_alone(name, dtype):
    names = ("seed", "loss__alpha", "sam__rho", "optim__lr", "head__dropout")
    values = ((0, 0.3, 0.05, 1e-2, 0.6), (0, 1.0, 0.0, 1e-3, 0.0), (3, 0.1, 0.5, 1e-2, 0.3))
    settings = [dict(zip(names, row, strict=True)) for row in values]
    recipes = [make_recipe(optim__name=name, **own) for own in settings]
    windows = {"train": make_windows(), "validation": make_windows(seed=9)}
    together = fit(make_job(recipes, **windows, spec=SPEC, dtype=dtype))
    for p, recipe in enumerate(recipes):
        alone = fit(make_job([recipe], **windows, spec=SPEC, dtype=dtype))
        for kept, snapshot in alone.snapshots.items():
            assert torch.equal(together.snapshots[kept].rows[p], snapshot.rows[0]), (kept, p)
        for name_of, here in alone.history[-1].items():
            if isinstance(here, list):
                assert together.history[-1][name_of][p] == here[0], name_of


@pytest.mark.parametrize("rho", [0.0, 0.3])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_ten_steps_are_those_of_plain_autograd_and_torch_optim(name, rho):
    kind, options = OPTIMIZERS[name]
    settings = {f"optim__{key}": value for key, value in options.items()}
    settings |= {"optim__name": name, "optim__lr": 0.01, "sam__rho": rho, "loss__alpha": 1.0}
    recipes = [make_recipe(seed=seed, **settings) for seed in (0, 1)]
    samples = make_windows()
    learner = make_learner(recipes, samples, spec=SPEC)
    modules = [SPEC.build_module(learner.heads.state(p)).train() for p in range(2)]
    optimizers = [kind(module.parameters(), lr=0.01, **options) for module in modules]
    starts = [module.logit_scale.item() for module in modules]
    learner.set_epoch(0)
    order = torch.from_numpy(learner._order(len(samples), 0))
    for step, _ in zip(range(10), learner.run(samples, 0), strict=False):
        noise = learner.noise.draw(torch.tensor(step, dtype=torch.int32), second=False)
        for p, (module, optimizer) in enumerate(zip(modules, optimizers, strict=True)):
            x, y = samples.take(order[p, step * 16 : (step + 1) * 16])
            inputs = x.double(), noise[p].clone()

            def loss(module=module, inputs=inputs, y=y):
                return nn.functional.cross_entropy(module(*inputs, training=True), y)

            plain_step(optimizer, loss, rho)
            expected = torch.cat([tensor.flatten() for tensor in module.parameters()])
            assert torch.allclose(learner.heads.rows[p], expected, rtol=0, atol=1e-10), step
    # The temperature is one of the rows, and learnt.
    ends = learner.heads.rows[:, 0].tolist()
    assert all(abs(end - start) > 1e-4 for end, start in zip(ends, starts, strict=True))


def test_all_heads_at_once_as_on_cuda_agree_with_one_after_the_other():
    spec = dataclasses.replace(SPEC, penalties=1)
    x, noise, upstream = make_pass(spec, 9)
    rho, found = torch.tensor([0.5, 0.0, 0.1], dtype=torch.float64), []
    for at_once in (False, True):
        heads = make_heads(spec)
        heads._at_once = at_once
        found.append(one_step(heads, x, noise, upstream, rho))
    for name, expected in found[0].items():
        assert torch.allclose(found[1][name], expected, rtol=0, atol=1e-12), name


def test_losses_of_its_own_come_behind_the_outputs_in_training_alone():
    spec, plain = dataclasses.replace(SPEC, penalties=1), make_heads(SPEC)
    heads, (x, noise, upstream) = make_heads(spec), make_pass(spec, 4)
    outputs = heads.forward(heads.rows, x, noise, update_buffers=True)
    assert outputs.shape == (3, 4, 9)
    expected = plain.forward(plain.rows, x, noise, update_buffers=True)
    assert torch.equal(outputs[..., :8], expected)
    assert heads.predict(heads.rows, {}, x[0]).shape == (3, 4, 8)
    # And they are differentiated like outputs.
    heads.backward(upstream)
    plain.backward(upstream[..., :8].clone())
    assert not torch.allclose(heads.gradient, plain.gradient)


def test_a_tensor_that_training_does_not_use_has_a_gradient_of_zero():
    class Idle(Attentive):
        def forward(self, x, noise=None, *, training=False):
            return self.answer(self.inputs(x))

    heads = make_heads(spec_with(Idle))
    outputs = heads.forward(heads.rows, torch.ones(3, 2, DIM).double(), None, update_buffers=True)
    heads.gradient.fill_(7)
    heads.backward(torch.ones_like(outputs))
    views = SPEC.views(heads.gradient)
    assert (views["qkv.weight"] == 0).all()
    assert (views["answer.bias"] == 2).all()


def test_memory_of_a_pass_is_freed_before_the_next_one():
    recipe = make_recipe(sam__rho=0.1, loss__alpha=1.0)
    samples = make_samples()
    kind = type("Kind", (Watched,), {"alive": [], "counts": []})
    learner = make_learner([recipe], samples, spec=spec_with(kind))
    run(learner, samples, epochs=1)
    assert kind.counts == [0] * 32
    assert not any(reference() is not None for reference in kind.alive)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.Dropout(0.5)], ids=["norm", "dropout"])
def test_modules_that_keep_or_draw_something_of_their_own_are_refused(layer):
    class Bad(Attentive):
        def __init__(self, spec):
            super().__init__(spec)
            self.layer = layer

    with pytest.raises(TypeError, match=f"kind attentive has a {type(layer).__name__}"):
        make_heads(spec_with(Bad))


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_going_on_after_a_kill_is_bit_identical_to_never_having_stopped(tmp_path, name):
    settings = {"epochs": 3, "optim__name": name, "optim__lr": 0.01, "sam__rho": 0.1}
    recipes = [make_recipe(seed=seed, **settings) for seed in (0, 1)]
    options = {"spec": SPEC, "train": make_windows(), "validation": make_windows(seed=9)}
    saved = options | {"state_path": tmp_path / "state", "save_every_s": 0}
    with pytest.raises(Killed):
        fit(make_job(recipes, **saved), on_epoch=kill_after(2))
    resumed, straight = fit(make_job(recipes, **saved)), fit(make_job(recipes, **options))
    for kept, snapshot in straight.snapshots.items():
        assert torch.equal(resumed.snapshots[kept].rows, snapshot.rows), kept
    losses = [[entry["train_loss"] for entry in one.history] for one in (straight, resumed)]
    assert losses[0] == losses[1]
    # A state of another optimiser is of other recipes.
    other = [make_recipe(**settings | {"optim__name": "adamw"}) for _ in recipes]
    with pytest.raises(RaffectError, match="other recipes"):
        fit(make_job(other, **saved))


def test_a_stream_takes_the_same_step():
    recipes = [make_recipe(seed=3, loss__alpha=alpha, sam__rho=0.1) for alpha in (0.3, 1.0)]
    streamed = fit(make_job(recipes, spec=SPEC, train=Batches(make_samples(), 3)))
    resident = fit(make_job(recipes, spec=SPEC))
    assert torch.equal(streamed.snapshots["last"].rows, resident.snapshots["last"].rows)


def test_training_learns_from_the_windows():
    settings = {"epochs": 8, "optim__lr": 0.02, "head__dropout": 0.1, "loss__alpha": 1.0}
    windows = {"train": make_windows(), "validation": make_windows(seed=9)}
    fitted = fit(make_job([make_recipe(**settings)], spec=SPEC, **windows))
    curve = [entry["val_macro_f1"][0] for entry in fitted.history]
    assert curve[-1] > max(0.25, curve[0])  # chance is below 0.04


@pytest.mark.parametrize("features", [1, 40, 700, 10**6])
def test_judging_in_parts_of_any_size_gives_the_same_statistics(monkeypatch, features):
    heads, windows = make_heads(SPEC), make_windows()
    kind = loss_kind(TASKS["expr"])
    expected = count(kind, heads, windows)
    monkeypatch.setattr(fit_module, "_PREDICTIONS", features)
    assert (count(kind, heads, windows) == expected).all()
    # And the same numbers within rounding.
    x = windows.samples().double()
    whole, use = heads.predict(heads.rows, {}, x), heads.predictor(heads.rows, {})
    parts = torch.cat([use(part) for part in x.split(features)], 1)
    assert torch.allclose(parts, whole, rtol=0, atol=1e-13)


def test_a_head_in_use_is_an_ordinary_module(tmp_path, monkeypatch):
    monkeypatch.setitem(HEAD_KINDS, "attentive", AttentiveSpec)
    heads, x = make_heads(SPEC, dtype=torch.float32), make_windows().samples().float()
    save_head(tmp_path, make_card(SPEC), heads.state(1))
    batch, module = load_batch(tmp_path, CPU)[0], load_head(tmp_path)[0]
    predicted = heads.predict(heads.rows, {}, x)
    assert torch.equal(batch.predict(batch.rows, batch.buffers, x)[0], predicted[1])
    assert torch.allclose(module(x), predicted[1], atol=1e-6)
