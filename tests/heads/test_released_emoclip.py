"""The temporal head of EmoCLIP's released code: its tensors, what it computes, and its bounds."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from raffect.errors import RaffectError
from raffect.heads.head_kinds import head_spec, read_spec
from raffect.heads.released_emoclip import HEAD_WIDTH, ReleasedEmoclipSpec
from raffect.recipe import HeadConfig
from tests.helpers.small_heads import require_refusal

WHERE = Path("config.json")
DIM, WINDOW = 8, 5
SPEC = ReleasedEmoclipSpec(DIM, 2, 2)


def make_row(seed=0, dtype=torch.float64):
    noise = torch.randn(SPEC.num_weights, generator=torch.manual_seed(seed))
    return (SPEC.initial_row(seed, HeadConfig()) + 0.05 * noise).to(dtype)


def make_windows(size=6, seed=3, dtype=torch.float64):
    return torch.randn(size, WINDOW, DIM, generator=torch.manual_seed(seed), dtype=dtype)


def test_it_has_as_many_weights_as_the_released_head():
    # Each layer: attention without bias in and with it out, two Linears, two norms.
    layer = 3 * 16384 * 512 + (16384 + 1) * 512 + 2 * (512 + 1) * 512 + 4 * 512
    assert 2 * layer + (1 + 1024) * 512 == 68_689_408
    spec = ReleasedEmoclipSpec(512, 2, 8)
    assert spec.num_weights == 68_689_408 + 1  # and the scale of the logits
    # What the same code makes of other encoders, and by the default of its class.
    assert ReleasedEmoclipSpec(768, 2, 8).num_weights - 1 == 103_820_544
    assert ReleasedEmoclipSpec(512, 4, 8).num_weights - 1 == 2 * 68_689_408 - 1025 * 512


def test_its_tensors_have_the_names_and_shapes_of_the_released_code():
    layers = "temporal.temporal_transformer.layers"
    expected = {
        "logit_scale": (),
        "temporal.cls_token": (1, 1, 512),
        "temporal.pos_embedding": (1, 1024, 512),
    }
    for layer in (0, 1):
        expected |= {
            f"{layers}.{layer}.0.fn.norm.weight": (512,),
            f"{layers}.{layer}.0.fn.norm.bias": (512,),
            f"{layers}.{layer}.0.fn.fn.to_qkv.weight": (49152, 512),
            f"{layers}.{layer}.0.fn.fn.to_out.0.weight": (512, 16384),
            f"{layers}.{layer}.0.fn.fn.to_out.0.bias": (512,),
            f"{layers}.{layer}.1.fn.norm.weight": (512,),
            f"{layers}.{layer}.1.fn.norm.bias": (512,),
            f"{layers}.{layer}.1.fn.fn.net.0.weight": (512, 512),
            f"{layers}.{layer}.1.fn.fn.net.0.bias": (512,),
            f"{layers}.{layer}.1.fn.fn.net.3.weight": (512, 512),
            f"{layers}.{layer}.1.fn.fn.net.3.bias": (512,),
        }
    with torch.device("meta"):
        module = ReleasedEmoclipSpec(512, 2, 8).module()
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == expected
    assert ReleasedEmoclipSpec(512, 2, 8).weights == expected


def test_it_starts_as_the_released_code_does():
    spec = ReleasedEmoclipSpec(32, 1, 2)
    views = {
        name: view[0] for name, view in spec.views(spec.initial_row(4, HeadConfig())[None]).items()
    }
    assert views["logit_scale"].exp().item() == pytest.approx(100, rel=1e-5)
    assert views["temporal.pos_embedding"].std().item() == pytest.approx(1, rel=0.02)
    assert views["temporal.cls_token"].std().item() == pytest.approx(1, rel=0.5)
    # torch's default: uniform within 1 / sqrt(inputs), biases as well.
    layers = "temporal.temporal_transformer.layers.0"
    for name, inputs in (
        (f"{layers}.0.fn.fn.to_qkv.weight", 32),
        (f"{layers}.0.fn.fn.to_out.0.weight", 2 * HEAD_WIDTH),
        (f"{layers}.0.fn.fn.to_out.0.bias", 2 * HEAD_WIDTH),
        (f"{layers}.1.fn.fn.net.3.weight", 32),
    ):
        bound = inputs**-0.5
        assert bound * 0.8 < views[name].abs().max().item() <= bound
    assert (views[f"{layers}.0.fn.norm.weight"] == 1).all()
    assert (views[f"{layers}.1.fn.norm.bias"] == 0).all()


def by_hand(state, window, heads=2):
    """The vector of one window (n, D), an attention head and a token after the other."""
    tokens = torch.cat([state["temporal.cls_token"][0], window])
    x = tokens + state["temporal.pos_embedding"][0, : len(tokens)]
    for layer in range(2):
        part = f"temporal.temporal_transformer.layers.{layer}"
        attention, hidden = f"{part}.0.fn", f"{part}.1.fn"
        norm = state[f"{attention}.norm.weight"], state[f"{attention}.norm.bias"]
        queries, keys, values = (
            nn.functional.layer_norm(x, (DIM,), *norm) @ state[f"{attention}.fn.to_qkv.weight"].mT
        ).chunk(3, 1)
        found = []
        for head in range(heads):
            own = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
            rows = []
            for query in queries[:, own]:
                weight = torch.softmax(keys[:, own] @ query / math.sqrt(HEAD_WIDTH), 0)
                rows.append(weight @ values[:, own])
            found.append(torch.stack(rows))
        out = state[f"{attention}.fn.to_out.0.weight"], state[f"{attention}.fn.to_out.0.bias"]
        x = x + torch.cat(found, 1) @ out[0].mT + out[1]
        norm = state[f"{hidden}.norm.weight"], state[f"{hidden}.norm.bias"]
        first = state[f"{hidden}.fn.net.0.weight"], state[f"{hidden}.fn.net.0.bias"]
        second = state[f"{hidden}.fn.net.3.weight"], state[f"{hidden}.fn.net.3.bias"]
        inside = nn.functional.layer_norm(x, (DIM,), *norm) @ first[0].mT + first[1]
        cubic = math.sqrt(2 / math.pi) * (inside + 0.044715 * inside**3)
        x = x + (0.5 * inside * (1 + torch.tanh(cubic))) @ second[0].mT + second[1]
    return state["logit_scale"].exp() * x[0] / x[0].norm()


def test_it_computes_what_the_released_code_does():
    state = SPEC.build(make_row()[None]).state(0)
    x = make_windows()
    found = SPEC.build_module(state)(x)
    expected = torch.stack([by_hand(state, window) for window in x])
    assert torch.allclose(found, expected, atol=1e-9)


def test_features_that_are_not_there_are_not_attended_to():
    state = SPEC.build(make_row()[None]).state(0)
    head, x = SPEC.build_module(state), make_windows()
    padded = torch.cat([x, torch.full((6, 3, DIM), math.nan, dtype=torch.float64)], 1)
    assert torch.allclose(head(padded), head(x), atol=1e-9)
    assert torch.allclose(head(padded)[0], by_hand(state, x[0]), atol=1e-9)
    assert head(torch.full_like(x, math.nan)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_head_alone_is_the_same_head_in_a_batch_bit_by_bit(dtype):
    rows = torch.stack([make_row(seed, dtype) for seed in range(2)])
    x = torch.stack([make_windows(seed=seed, dtype=dtype) for seed in range(2)])
    upstream = torch.randn(2, 6, DIM, dtype=dtype)
    together = SPEC.build(rows.clone())
    outputs = together.forward(together.rows, x, None, update_buffers=True)
    together.backward(upstream)
    for p in range(2):
        part = slice(p, p + 1)
        alone = SPEC.build(rows[part].clone())
        assert torch.equal(
            alone.forward(alone.rows, x[part], None, update_buffers=True)[0], outputs[p]
        )
        alone.backward(upstream[part])
        assert torch.equal(alone.gradient[0], together.gradient[p])
        assert torch.equal(
            alone.predict(alone.rows, {}, x[0])[0], together.predict(together.rows, {}, x[0])[p]
        )
        # And by autograd through the module.
        head = SPEC.build_module(alone.state(0))
        head(x[p]).backward(upstream[p])
        named = dict(head.named_parameters())
        gradient = torch.cat([named[name].grad.flatten() for name in SPEC.weights])
        assert torch.allclose(alone.gradient[0], gradient, rtol=1e-3, atol=1e-4)


def test_samples_of_another_shape_are_refused():
    head = SPEC.build_module(SPEC.build(make_row()[None]).state(0))
    for shape in ((3, DIM + 1), (3, 1024, DIM), (3, 2, 2, DIM)):
        with pytest.raises(ValueError, match="expected windows of up to 1023 features"):
            head(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("changes", "outputs", "compares", "message"),
    [
        ({}, DIM, False, "does nothing but compare with texts"),
        ({}, DIM + 1, True, r"as long as the features \(8\), not as the targets \(9\)"),
        ({"window": 1024}, DIM, True, "expected at most 1023"),
    ],
)
def test_heads_that_cannot_be_are_refused_in_one_line(changes, outputs, compares, message):
    config = HeadConfig(kind="emoclip-released", **changes)
    with pytest.raises(RaffectError, match=message) as caught:
        head_spec(config, DIM, outputs, compares=compares)
    assert "\n" not in str(caught.value)


def test_a_spec_comes_back_from_its_file():
    config = HeadConfig(kind="emoclip-released", window=32)
    spec = head_spec(config, 512, 512, compares=True)
    assert spec == ReleasedEmoclipSpec(512, 2, 8)
    assert read_spec(json.loads(json.dumps(spec.to_json())), WHERE) == spec


GOOD = SPEC.to_json()


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "emoclip-released"},
        GOOD | {"more": 1},
        GOOD | {"dim": 10**9},
        GOOD | {"dim": "8"},
        GOOD | {"layers": 0},
        GOOD | {"layers": 10**9},
        GOOD | {"attention_heads": True},
        GOOD | {"attention_heads": 2**20},
    ],
    ids=str,
)
def test_a_hostile_spec_is_refused_in_one_line(content):
    require_refusal(content, most=250)
