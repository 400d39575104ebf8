"""Temporal heads: transformers over windows of features, and the order of snippets."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from raffect.errors import RaffectError
from raffect.heads.head_batch import normalise
from raffect.heads.head_kinds import head_spec, read_spec
from raffect.heads.samples import Samples
from raffect.heads.snippets import MOST_ORDERS, mean_of, orders_of
from raffect.heads.temporal import TemporalSpec
from raffect.recipe import HeadConfig, Recipe, with_settings
from tests.helpers.small_heads import make_learner, make_recipe, require_refusal, run

DIM, WINDOW = 12, 6
WHERE = Path("config.json")


def make_spec(**changes):
    values = {"width": 8, "layers": 2, "attention_heads": 2, "window": WINDOW, "outputs": DIM}
    return TemporalSpec(**{"dim": DIM, "compares": True, **values, **changes})


SPECS = [
    make_spec(),
    make_spec(pool="centre"),
    make_spec(window=1),
    make_spec(compares=False, outputs=8),
    make_spec(snippets=3),
    make_spec(snippets=3, order=True),
    make_spec(snippets=2, order=True, compares=False, outputs=5),
]
EACH_SPEC = pytest.mark.parametrize("spec", SPECS, ids=str)


def make_row(spec, seed=0, moved=0.1, dtype=torch.float64):
    """A head moved from its start, so that no weight is 0 or 1."""
    noise = torch.randn(spec.num_weights, generator=torch.manual_seed(seed))
    return (spec.initial_row(seed, HeadConfig()) + moved * noise).to(dtype)


def make_module(spec, **options):
    row = make_row(spec, **options)
    return spec.build_module(spec.build(row[None]).state(0))


def make_windows(spec, size=9, seed=5, dtype=torch.float64):
    """Windows of which some rows are not there, and one of which none is."""
    torch.manual_seed(seed)
    x = torch.randn(size, spec.window, spec.dim, dtype=dtype)
    if spec.window == 1:
        return x[:, 0]
    x[1, spec.window // 2] = math.nan
    x[2, 1:] = math.nan
    x[3] = math.nan
    x[4, 0] = 0  # a feature that has no direction
    return x


def make_noise(spec, size=9, seed=7, dtype=torch.float64):
    torch.manual_seed(seed)
    factors = (torch.rand(size, spec.num_noise) > 0.4).to(dtype) / 0.6
    return torch.cat([factors, torch.rand(size, spec.num_uniform, dtype=dtype)], 1)


# The start


@pytest.mark.parametrize("snippets", [0, 3])
def test_at_the_start_a_head_is_mean_pooled_clip(snippets):
    spec = make_spec(snippets=snippets)
    x = make_windows(spec)
    found = make_module(spec, moved=0)(x)
    for window, output in zip(x, found, strict=True):
        there = window[~window.isnan().any(1)]
        units = there / there.norm(dim=1, keepdim=True).clamp(min=1e-12)
        mean = units.sum(0) / max(len(there), 1)
        expected = 100 * mean / mean.norm().clamp(min=1e-12)
        assert torch.allclose(output, expected, atol=1e-6)
    # Rows of another length are the same directions.
    assert torch.allclose(found, make_module(spec, moved=0)(x * 7), atol=1e-9)


def test_at_the_start_a_head_of_the_centre_is_the_frame_itself():
    spec = make_spec(pool="centre")
    x = make_windows(spec)
    found = make_module(spec, moved=0)(x)
    centres = x[:, WINDOW // 2].clone()
    centres[1] = normalise(x[1], "l2").nanmean(0)  # it is not there
    centres[2] = x[2, 0]
    expected = 100 * normalise(centres, "l2")
    expected[3] = 0
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_recipes_head_has_about_1200000_weights_at_768():
    config = HeadConfig(kind="temporal", width=192, layers=2, attention_heads=8, window=16)
    assert head_spec(config, 768, 768, compares=True).num_weights == 1_188_865


# What it is


@EACH_SPEC
def test_a_spec_names_the_weights_of_its_module(spec):
    module = spec.module()
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert spec.weights == shapes
    assert spec.num_weights == sum(tensor.numel() for tensor in module.parameters())


@EACH_SPEC
def test_weights_start_small_and_norms_as_the_identity(spec):
    views = spec.views(spec.initial_row(3, HeadConfig())[None])
    for name, view in views.items():
        if name == "logit_scale":
            assert view.item() == pytest.approx(math.log(100))
        elif "norm" in name:
            assert (view == (1 if name.endswith("weight") else 0)).all()
        elif name.endswith("bias") or name.startswith("residual"):
            assert (view == 0).all()
        else:
            expected = view.shape[-1] ** -0.5 if name.endswith("weight") else 0.02
            assert view.std().item() == pytest.approx(expected, rel=0.5), name


def by_hand(spec, state, window, noise):
    """The vector of one window by torch's own transformer parts, from the rows that are there."""
    rows = window[~window.isnan().any(1)]
    units = nn.functional.normalize(rows, dim=1)
    tokens = units @ state["inputs.weight"].mT + state["inputs.bias"]
    places = (~window.isnan().any(1)).nonzero()[:, 0]
    x = torch.cat([state["encoder.cls"][None], tokens + state["encoder.position"][places]])
    for number in range(spec.layers):
        part = {
            name.removeprefix(f"encoder.blocks.{number}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"encoder.blocks.{number}.")
        }
        attention = nn.MultiheadAttention(spec.width, spec.attention_heads, batch_first=True)
        attention = attention.double()
        of_queries, of_values = part["bias"].chunk(2)
        attention.load_state_dict(
            {
                "in_proj_weight": part["qkv.weight"],
                "in_proj_bias": torch.cat([of_queries, 0 * of_queries, of_values]),
                "out_proj.weight": part["out.weight"],
                "out_proj.bias": part["out.bias"],
            }
        )
        first, second = noise[2 * number * spec.width :][: 2 * spec.width].view(2, -1)
        size = (spec.width,)
        hidden = nn.functional.layer_norm(x, size, part["norm1.weight"], part["norm1.bias"])
        x = x + first * attention(hidden, hidden, hidden)[0]
        hidden = nn.functional.layer_norm(x, size, part["norm2.weight"], part["norm2.bias"])
        hidden = nn.GELU("tanh")(hidden @ part["up.weight"].mT + part["up.bias"])
        x = x + second * (hidden @ part["down.weight"].mT + part["down.bias"])
    norm = state["encoder.norm.weight"], state["encoder.norm.bias"]
    summary = nn.functional.layer_norm(x[0], (spec.width,), *norm)
    residual = state["residual.weight"] @ summary + state["residual.bias"]
    return units.mean(0) + residual


@pytest.mark.parametrize("compares", [True, False])
def test_a_head_is_the_transformer_that_torch_has(compares):
    spec = make_spec(compares=compares, outputs=DIM if compares else 5)
    state = spec.build(make_row(spec)[None]).state(0)
    x, noise = make_windows(spec), make_noise(spec)
    found = spec.build_module(state)(x, noise)
    for number in (0, 1, 2, 4):
        unit = nn.functional.normalize(by_hand(spec, state, x[number], noise[number]), dim=0)
        if compares:
            expected = state["logit_scale"].exp() * unit
        else:
            scaled = unit * math.sqrt(DIM)
            expected = state["classify.weight"] @ scaled + state["classify.bias"]
        assert torch.allclose(found[number], expected, atol=1e-9)


# Padding


@pytest.mark.parametrize("compares", [True, False])
def test_padding_changes_nothing(compares):
    changes = {"compares": compares, "outputs": DIM if compares else 5}
    short, long = make_spec(window=4, **changes), make_spec(**changes)
    # The same head with two more places at the end of its window.
    row = make_row(long)
    state = {name: view[0].clone() for name, view in long.views(row[None]).items()}
    state["encoder.position"] = state["encoder.position"][:4]
    head = short.build_module(state)
    x = torch.randn(9, 4, DIM, dtype=torch.float64)
    padded = torch.cat([x, torch.full((9, 2, DIM), math.nan, dtype=torch.float64)], 1)
    found = make_module(long)(padded)
    assert torch.allclose(found, head(x), atol=1e-12)
    single = make_module(long, dtype=torch.float32)(padded.float())
    assert torch.allclose(
        nn.functional.normalize(single), nn.functional.normalize(found.float()), atol=1e-6
    )


def test_a_snippet_without_a_row_changes_nothing():
    spec = make_spec(snippets=3)
    x = make_windows(spec)
    x[0, 2:4] = math.nan
    state = spec.build(make_row(spec)[None]).state(0)
    found = spec.build_module(state)(x)[0]
    # Whatever its place says.
    state["encoder.position"] = state["encoder.position"].clone()
    state["encoder.position"][1] = 1e6
    assert torch.equal(spec.build_module(state)(x)[0], found)


@EACH_SPEC
def test_a_window_without_a_row_gives_finite_outputs_and_gradients(spec):
    heads = spec.build(make_row(spec, moved=0)[None])
    x = torch.full_like(make_windows(spec), math.nan)
    outputs = heads.forward(heads.rows, x[None], make_noise(spec)[None], update_buffers=False)
    heads.backward(torch.ones_like(outputs))
    assert outputs.isfinite().all()
    assert heads.gradient.isfinite().all()
    assert heads.gradient.abs().max() < 1e3
    assert heads.predict(heads.rows, {}, x).isfinite().all()


def test_samples_of_another_shape_are_refused():
    head = make_module(make_spec())
    for shape in ((3, DIM), (3, 1, DIM), (3, WINDOW + 1, DIM), (3, WINDOW, 1)):
        with pytest.raises(ValueError, match="expected windows of 6 features of length 12"):
            head(torch.zeros(shape, dtype=torch.float64))


# Side by side


def one_step(heads, x, noise, upstream, judged):
    outputs = heads.forward(heads.rows, x, noise, update_buffers=True)
    heads.backward(upstream)
    predicted = heads.predict(heads.rows, heads.buffers, judged)
    return {"outputs": outputs, "gradient": heads.gradient.clone(), "predicted": predicted}


@EACH_SPEC
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_head_alone_is_the_same_head_in_a_batch_bit_by_bit(spec, dtype):
    rows = torch.stack([make_row(spec, seed, dtype=dtype) for seed in range(3)])
    x = torch.stack([make_windows(spec, seed=seed, dtype=dtype) for seed in range(3)])
    noise = torch.stack([make_noise(spec, seed=seed, dtype=dtype) for seed in range(3)])
    outputs = spec.outputs + spec.num_penalties
    upstream = torch.randn(3, x.shape[1], outputs, dtype=dtype)
    found = one_step(spec.build(rows.clone()), x, noise, upstream, x[0])
    for p in range(3):
        part = slice(p, p + 1)
        alone = spec.build(rows[part].clone())
        expected = one_step(alone, x[part], noise[part], upstream[part], x[0])
        for name, tensor in expected.items():
            assert torch.equal(found[name][part], tensor), name


@EACH_SPEC
def test_backward_agrees_with_autograd_through_the_module(spec):
    rows = torch.stack([make_row(spec, seed) for seed in range(2)])
    heads, x, noise = spec.build(rows), make_windows(spec), make_noise(spec)
    upstream = torch.randn(2, len(x), spec.outputs + spec.num_penalties, dtype=torch.float64)
    found = heads.forward(
        rows, x.expand(2, *x.shape), noise.expand(2, *noise.shape), update_buffers=False
    )
    heads.backward(upstream)
    for p in range(2):
        head = spec.build_module(heads.state(p))
        expected = head(x, noise, training=True)
        expected.backward(upstream[p])
        named = dict(head.named_parameters())
        gradient = torch.cat([named[name].grad.flatten() for name in spec.weights])
        assert torch.allclose(found[p], expected, atol=1e-12)
        assert torch.allclose(heads.gradient[p], gradient, atol=1e-10)
        assert torch.allclose(heads.predict(rows, {}, x)[p], head(x), atol=1e-12)


@EACH_SPEC
def test_heads_at_once_as_on_cuda_are_those_one_by_one(spec):
    rows = torch.stack([make_row(spec, seed) for seed in range(3)])
    x = torch.stack([make_windows(spec, seed=seed) for seed in range(3)])
    noise = torch.stack([make_noise(spec, seed=seed) for seed in range(3)])
    upstream = torch.randn(3, x.shape[1], spec.outputs + spec.num_penalties, dtype=rows.dtype)
    one_by_one, at_once = spec.build(rows), spec.build(rows)
    at_once._at_once = True  # by vmap
    expected = one_step(one_by_one, x, noise, upstream, x[0])
    for name, found in one_step(at_once, x, noise, upstream, x[0]).items():
        assert torch.allclose(found, expected[name], atol=1e-10), name


@EACH_SPEC
def test_no_gradient_is_rounding_noise_alone(spec):
    """As of a bias of keys: Adam would make full steps of it, others with other workers."""
    row = make_row(spec)[None]
    heads, x, noise = spec.build(row), make_windows(spec, 30)[None], make_noise(spec, 30)[None]
    outputs = heads.forward(heads.rows, x, noise, update_buffers=False)
    heads.backward(torch.randn(outputs.shape, dtype=outputs.dtype))
    for name, gradient in spec.views(heads.gradient).items():
        assert (gradient.abs() > 1e-12).all(), name


# Learning


def test_a_head_learns_what_the_mean_of_a_window_cannot_say():
    """Whether a window goes up or down: both have the same features, and so the same mean."""
    recipe = make_recipe(
        head__kind="temporal",
        head__window=WINDOW,
        head__attention_heads=2,
        head__dropout=0.1,
        batch_size=32,
        loss__alpha=1.0,
        optim__lr=5e-3,
        epochs=12,
        sam__rho=0.0,
    )
    generator = torch.Generator().manual_seed(0)
    trend = torch.arange(WINDOW)[:, None] * torch.randn(DIM, generator=generator) / 3
    x = trend + torch.randn(480, WINDOW, DIM, generator=generator)
    x[::5, 3] = math.nan
    y = torch.arange(480) % 2
    x[y == 1] = x[y == 1].flip(1)
    samples = Samples(x.half(), y, torch.arange(480), 480)
    learner = run(
        make_learner([recipe], samples.part(slice(0, 320))), samples.part(slice(0, 320)), 12
    )
    heads, rest = learner.heads, samples.part(slice(320, 480))
    predicted = heads.predict(heads.rows, heads.buffers, rest.x.double())[0].argmax(1)
    assert (predicted == rest.y).double().mean() > 0.9  # chance is 1/2


# Snippets


def test_orders_are_permutations_that_differ():
    for size in (2, 3, 4, 5, 7, 16, 100):
        orders = orders_of(size)
        assert len(set(orders)) == len(orders) == min(MOST_ORDERS, math.factorial(size))
        assert all(sorted(order) == list(range(size)) for order in orders)
        # The order of the window itself is one of them, and the others are far from it.
        assert orders[0] == tuple(range(size))
    moved = [sum(a != b for a, b in enumerate(order)) for order in orders_of(8)[1:]]
    assert sum(moved) / len(moved) > 5


def test_order_does_not_reach_the_outputs():
    spec = make_spec(snippets=3, order=True)
    head, x, noise = make_module(spec), make_windows(spec), make_noise(spec)
    found = head(x, noise, training=True)
    noise[:, -1] = 0.99
    again = head(x, noise, training=True)
    assert found.shape == (9, DIM + 1)
    assert torch.equal(found[:, :-1], again[:, :-1])
    assert not torch.equal(found[:, -1], again[:, -1])
    assert torch.equal(found[:, :-1], head(x, noise))
    # Of two windows one has a row in its first snippet alone, the other nowhere.
    assert (found[2:4, -1] == 0).all()
    assert (found[[0, 1, *range(4, 9)], -1] > 0).all()


def test_a_head_learns_in_which_order_snippets_stand():
    spec = make_spec(snippets=3, order=True, width=16)
    rows = spec.initial_row(0, HeadConfig())[None].clone()
    heads = spec.build(rows)
    generator = torch.Generator().manual_seed(0)
    trend = torch.arange(WINDOW)[:, None] * torch.randn(DIM, generator=generator) / 3

    def draw(size):
        x = trend + torch.randn(size, WINDOW, DIM, generator=generator)
        x[: size // 4, 1] = math.nan
        noise = torch.ones(size, spec.num_noise + 1)
        noise[:, -1] = torch.rand(size, generator=generator)
        return x, noise

    adam = torch.optim.Adam([rows], lr=5e-3)
    for _ in range(200):
        x, noise = draw(64)
        noise[:, :-1] = (torch.rand(64, spec.num_noise, generator=generator) > 0.1) / 0.9
        upstream = torch.zeros(1, 64, DIM + 1)
        upstream[:, :, -1] = 1 / 64
        heads.forward(rows, x[None], noise[None], update_buffers=False)
        heads.backward(upstream)
        rows.grad = heads.gradient
        adam.step()
    head = spec.build_module(heads.state(0))
    x, noise = draw(600)
    loss = head(x, noise, training=True)[:, -1]
    share_right = (loss < math.log(2)).float().mean()  # then its order has most of the chance
    assert loss.mean() < math.log(6) / 3
    assert share_right > 0.85  # chance is 1/6


def test_mean_of_rows_is_over_those_that_are_there():
    values = torch.tensor([[1.0, 9.0, 3.0], [5.0, 5.0, 5.0]])[..., None]
    is_there = torch.tensor([[True, False, True], [False, False, False]])
    assert mean_of(values, is_there)[:, 0].tolist() == [2.0, 0.0]


# Settings and files


@pytest.mark.parametrize(
    ("changes", "outputs", "options", "message"),
    [
        ({"attention_heads": 5}, 12, {}, "head.attention-heads 5: does not divide"),
        ({}, 7, {"compares": True}, "vectors are as long as the features"),
        ({"kind": "mlp", "window": 1}, 12, {"compares": True}, "head.kind mlp: does not compare"),
    ],
)
def test_heads_that_cannot_be_are_refused_in_one_line(changes, outputs, options, message):
    values = {"kind": "temporal", "attention_heads": 4, "window": 6, **changes}
    with pytest.raises(RaffectError, match=message) as caught:
        head_spec(HeadConfig(**values), DIM, outputs, **options)
    assert "\n" not in str(caught.value)


def test_a_recipe_decides_the_shape():
    config = HeadConfig(kind="temporal", attention_heads=4, window=6, snippets=3, pool="centre")
    spec = head_spec(config, DIM, 8, order=True)
    assert spec == TemporalSpec(DIM, DIM, 2, 4, 6, 8, "centre", snippets=3, order=True)
    assert (spec.num_noise, spec.num_uniform, spec.num_penalties) == (2 * DIM * 3, 1, 1)
    compared = head_spec(dataclasses.replace(config, width=8, layers=1), DIM, DIM, compares=True)
    assert compared == TemporalSpec(DIM, 8, 1, 4, 6, DIM, "centre", snippets=3, compares=True)
    assert (compared.num_uniform, compared.num_penalties) == (0, 0)


@pytest.mark.parametrize("snippets", [0, 1])
def test_the_order_of_one_snippet_cannot_be_learnt(snippets):
    with pytest.raises(RaffectError, match="loss.order 0.5: is about the order of snippets"):
        with_settings(
            Recipe(),
            {
                "head.kind": "temporal",
                "head.window": 6,
                "head.snippets": snippets,
                "loss.order": 0.5,
            },
        )


def test_a_window_is_whole_snippets():
    with pytest.raises(RaffectError, match=r"head.snippets 4: .* a divisor of head.window"):
        with_settings(Recipe(), {"head.kind": "temporal", "head.window": 6, "head.snippets": 4})


@EACH_SPEC
def test_a_spec_comes_back_from_its_file(spec):
    assert read_spec(json.loads(json.dumps(spec.to_json())), WHERE) == spec


GOOD = make_spec(snippets=3, order=True).to_json()
HOSTILE = [
    {name: value for name, value in GOOD.items() if name != "dim"},
    GOOD | {"more": 1},
    GOOD | {"dim": 10**9, "outputs": 10**9},
    GOOD | {"width": 0},
    GOOD | {"width": 2**17},
    GOOD | {"width": 9},
    GOOD | {"layers": 10**9},
    GOOD | {"layers": 2.0},
    GOOD | {"attention_heads": 0},
    GOOD | {"attention_heads": 3},
    GOOD | {"attention_heads": True},
    GOOD | {"window": 10**6},
    GOOD | {"window": 7},
    GOOD | {"snippets": -1},
    GOOD | {"snippets": 4},
    GOOD | {"snippets": 1},
    GOOD | {"pool": "max"},
    GOOD | {"pool": ["mean"]},
    GOOD | {"order": 1},
    GOOD | {"order": "true"},
    GOOD | {"compares": None},
    GOOD | {"outputs": 11},
    GOOD | {"outputs": "x" * 10_000},
]


@pytest.mark.parametrize("content", HOSTILE, ids=lambda content: str(content)[:60])
def test_a_hostile_spec_is_refused_in_one_line(content):
    require_refusal(content, most=250)


@EACH_SPEC
def test_no_sample_has_no_output(spec):
    module = make_module(spec)
    assert module(make_windows(spec)[:0]).shape == (0, spec.outputs)
