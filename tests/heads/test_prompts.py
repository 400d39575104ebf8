"""Learnt prompts as heads: any text tower that is a function of tokens, here one of a few lines."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_batch, load_head, save_head
from raffect.heads.fit import fit
from raffect.heads.head_kinds import head_spec, read_spec
from raffect.heads.prompts import SPREAD, PromptSpec
from raffect.recipe import HeadConfig
from tests.helpers.small_heads import (
    CPU,
    DIM,
    Killed,
    kill_after,
    make_card,
    make_job,
    make_learner,
    make_recipe,
    make_samples,
    require_refusal,
)

TOKENS, WIDTH, SHA = 3, 4, "0" * 64
MIX = torch.randn(TOKENS * WIDTH, DIM, generator=torch.manual_seed(3), dtype=torch.float64)


def read(tokens):
    """A text tower: a fixed map of a prompt's tokens, with a bend in it."""
    return torch.tanh(tokens.flatten(2) @ MIX.to(tokens))


def make_spec(**changes):
    shape = {"outputs": 8, "has_rest": False, "descriptors": 2, "tokens": TOKENS, "width": WIDTH}
    values = {"dim": DIM, **shape, "scale": 10.0, "text_sha256": SHA, "prompts_sha256": SHA}
    values["read"] = read
    return PromptSpec(**{**values, **changes})


SPECS = [
    make_spec(),
    make_spec(descriptors=1),
    make_spec(has_rest=True),
]
EACH_SPEC = pytest.mark.parametrize("spec", SPECS, ids=str)


def make_heads(spec, seeds=(0, 1, 2), dtype=torch.float64):
    rows = torch.stack([spec.initial_row(seed, HeadConfig()) for seed in seeds])
    return spec.build((rows * 30).to(dtype))


def by_hand(spec, tokens, x):
    """Logits of one head from its tokens, a cosine at a time."""
    vectors = read(tokens)
    cosines = nn.functional.cosine_similarity(x[:, None, None], vectors[None], dim=-1)
    largest = spec.scale * cosines.max(-1).values
    return largest[:, :-1] - largest[:, -1:] if spec.has_rest else largest


def make_pass(spec, num_heads=3, size=9, dtype=torch.float64):
    torch.manual_seed(5)
    x = torch.randn(num_heads, size, DIM, dtype=dtype)
    return x, torch.randn(num_heads, size, spec.outputs, dtype=dtype)


@EACH_SPEC
def test_logits_are_the_largest_cosines_of_a_class_and_derivatives_autograds(spec):
    heads = make_heads(spec)
    x, upstream = make_pass(spec)
    outputs = heads.forward(heads.rows, x, None, update_buffers=True)
    heads.backward(upstream)
    for p in range(3):
        tokens = heads.rows[p].view(spec.weights["tokens"]).clone().requires_grad_()
        expected = by_hand(spec, tokens, x[p])
        expected.backward(upstream[p])
        torch.testing.assert_close(outputs[p], expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(heads.gradient[p], tokens.grad.flatten(), atol=1e-10, rtol=0)


@EACH_SPEC
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_head_alone_is_the_same_head_in_a_batch_bit_by_bit(spec, dtype):
    together = make_heads(spec, dtype=dtype)
    x, upstream = make_pass(spec, dtype=dtype)

    def found_of(heads, part):
        first = heads.forward(heads.rows, x[part], None, update_buffers=True)
        heads.backward(upstream[part])
        predicted = heads.predict(heads.rows, heads.buffers, x[0])
        return first, heads.gradient, predicted, heads.state(len(heads) - 1)["vectors"][None]

    *found, _ = found_of(together, slice(3))
    for p in range(3):
        part = slice(p, p + 1)
        *expected, vectors = found_of(spec.build(together.rows[part].clone()), part)
        assert all(torch.equal(a[part], b) for a, b in zip(found, expected, strict=True))
        assert torch.equal(together.state(p)["vectors"], vectors[0])


@EACH_SPEC
def test_at_once_as_on_cuda_heads_are_those_one_after_the_other(spec):
    one, other = make_heads(spec), make_heads(spec)
    other._at_once = True
    x, upstream = make_pass(spec)
    found = []
    for heads in (one, other):
        outputs = heads.forward(heads.rows, x, None, update_buffers=True)
        heads.backward(upstream)
        predicted = heads.predict(heads.rows, heads.buffers, x[0])
        found.append([outputs, heads.gradient, predicted, heads.state(1)["vectors"]])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@EACH_SPEC
def test_a_saved_head_needs_no_text_tower_and_has_the_vectors_of_its_own_tokens(tmp_path, spec):
    heads = make_heads(spec, dtype=torch.float32)
    heads.rows += 0.1  # as an update moves them, after the last pass
    x, _ = make_pass(spec, dtype=torch.float32)
    expected = heads.predict(heads.rows, heads.buffers, x[0])
    save_head(tmp_path, make_card(spec), heads.state(1))
    state = heads.state(1)
    assert torch.equal(state["vectors"], read(state["tokens"]))
    # The file says all, but for the tower.
    batch, card = load_batch(tmp_path, CPU)
    assert card.head == spec.to_json()
    assert batch.spec == spec
    assert batch.spec.read is None
    assert torch.equal(batch.predict(batch.rows, batch.buffers, x[0])[0], expected[1])
    assert torch.equal(batch.state(0)["vectors"], state["vectors"])
    module = load_head(tmp_path)[0]
    torch.testing.assert_close(module(x[0]), expected[1], atol=1e-5, rtol=0)


def test_tokens_start_from_given_ones_and_others_are_drawn_as_in_coop():
    start = torch.full((8, 2, TOKENS, WIDTH), float("nan"))
    start[2, 1] = 7.0
    spec = make_spec(start=start)
    first, again, other = (
        spec.initial_row(seed, HeadConfig()).view(spec.weights["tokens"]) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first[2, 1] == 7).all()
    drawn = make_spec(tokens=500).initial_row(0, HeadConfig())
    assert drawn.std().item() == pytest.approx(SPREAD, rel=0.02)
    assert abs(drawn.mean().item()) < 1e-3


def test_heads_train_as_torch_would():
    spec = make_spec()
    recipe = make_recipe(sam__rho=0.2, loss__alpha=1.0, optim__lr=0.01)
    samples = make_samples()
    learner = make_learner([recipe], samples, spec=spec)
    tokens = learner.heads.rows[0].view(spec.weights["tokens"]).clone().requires_grad_()
    adam = torch.optim.Adam([tokens], lr=0.01)
    learner.set_epoch(0)
    order = torch.from_numpy(learner._order(len(samples), 0)[0])
    for step, _ in enumerate(learner.run(samples, 0)):
        index = order[step * 16 : (step + 1) * 16]
        x, y = samples.x[index].double(), samples.y[index]
        (first,) = torch.autograd.grad(loss_of(spec, tokens, x, y), tokens)
        move = 0.2 * first / first.norm()
        (tokens.grad,) = torch.autograd.grad(loss_of(spec, tokens + move, x, y), tokens)
        adam.step()
    torch.testing.assert_close(learner.heads.rows[0], tokens.detach().flatten(), atol=1e-8, rtol=0)


def loss_of(spec, tokens, x, y):
    return nn.functional.cross_entropy(by_hand(spec, tokens, x), y)


def test_training_goes_on_byte_for_byte_after_a_stop_and_refuses_another_tower(tmp_path):
    spec = make_spec()
    recipes = [make_recipe(seed=seed, epochs=4, optim__lr=0.01) for seed in (0, 1)]
    saved = {"spec": spec, "state_path": tmp_path / "state", "save_every_s": 0}
    with pytest.raises(Killed):
        fit(make_job(recipes, **saved), on_epoch=kill_after(2))
    resumed, straight = fit(make_job(recipes, **saved)), fit(make_job(recipes, spec=spec))
    assert straight.history[-1]["val_macro_f1"][0] > straight.history[0]["val_macro_f1"][0]
    for name in straight.snapshots:
        for p in range(2):
            one, other = (fitted.heads(name).state(p) for fitted in (straight, resumed))
            assert all(torch.equal(one[key], other[key]) for key in one)
            assert torch.equal(one["vectors"], read(one["tokens"]))
    # Seeds are trained side by side as each would be alone.
    alone = fit(make_job(recipes[1:], spec=spec)).snapshots["last"]
    assert torch.equal(alone.rows[0], straight.snapshots["last"].rows[1])
    with pytest.raises(RaffectError, match="other heads"):
        fit(make_job(recipes, **saved | {"spec": make_spec(text_sha256="1" * 64)}))


def test_a_recipe_alone_does_not_make_them():
    with pytest.raises(RaffectError, match=r"^head.kind prompts: .* use `raffect learn-prompts`"):
        head_spec(HeadConfig(kind="prompts"), DIM, 8)


GOOD = make_spec().to_json()


def test_a_spec_comes_back_from_its_json():
    for spec in SPECS:
        assert read_spec(json.loads(json.dumps(spec.to_json())), Path("x")) == spec
    assert GOOD.keys() & {"read", "start"} == set()
    assert dataclasses.replace(SPECS[0], read=None) == SPECS[0]


@pytest.mark.parametrize(
    "content",
    [
        {name: value for name, value in GOOD.items() if name != "width"},
        GOOD | {"read": "os.system"},
        GOOD | {"tokens": 0},
        GOOD | {"tokens": 10**9},
        GOOD | {"descriptors": True},
        GOOD | {"outputs": "8"},
        GOOD | {"has_rest": 1},
        GOOD | {"scale": 0},
        GOOD | {"scale": float("nan")},
        GOOD | {"scale": float("inf")},
        GOOD | {"scale": "1"},
        GOOD | {"text_sha256": "x" * 10_000},
        GOOD | {"text_sha256": None},
        GOOD | {"prompts_sha256": "1"},
    ],
    ids=lambda content: str(content)[-60:],
)
def test_a_hostile_spec_is_refused_in_one_line(content):
    require_refusal(content, most=250)
