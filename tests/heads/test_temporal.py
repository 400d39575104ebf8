"""Temporal heads: transformers over windows of features."""

import math

import pytest
import torch
from torch import nn

from raffect.heads.head_batch import normalise
from raffect.heads.samples import Samples
from tests.helpers.small_heads import make_learner, make_recipe, run
from tests.helpers.temporal_heads import (
    DIM,
    EACH_SPEC,
    WINDOW,
    make_module,
    make_noise,
    make_row,
    make_spec,
    make_windows,
)

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
        expected = mean / mean.norm().clamp(min=1e-12)
        # The scale is 100 in float32, so vectors of length 1 are compared
        assert torch.allclose(output / 100, expected, rtol=0, atol=1e-6)
    # In the type that trains too
    single = make_module(spec, moved=0, dtype=torch.float32)(x.float())
    assert torch.allclose(single.double() / 100, found / 100, rtol=0, atol=1e-6)
    # Rows of another length are the same directions.
    assert torch.allclose(found, make_module(spec, moved=0)(x * 7), atol=1e-9)


def test_at_the_start_a_head_of_the_centre_is_the_frame_itself():
    spec = make_spec(pool="centre")
    x = make_windows(spec)
    found = make_module(spec, moved=0)(x)
    centres = x[:, WINDOW // 2].clone()
    centres[1] = normalise(x[1], "l2").nanmean(0)  # it is not there
    centres[2] = x[2, 0]
    expected = normalise(centres, "l2")
    expected[3] = 0
    assert torch.allclose(found / 100, expected, rtol=0, atol=1e-6)


# What it is


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
    assert torch.allclose(found, head(x), rtol=0, atol=1e-11)
    single = make_module(long, dtype=torch.float32)(padded.float())
    assert torch.allclose(
        nn.functional.normalize(single),
        nn.functional.normalize(found.float()),
        rtol=0,
        atol=1e-6,
    )


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
