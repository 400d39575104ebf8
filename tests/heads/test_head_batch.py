"""Batches of MLPs: alone as in a batch, by autograd, and SAM's step written out."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from raffect.heads.head import Head, MlpSpec
from raffect.heads.head_batch import HeadBatch, normalise
from raffect.heads.head_kinds import head_spec
from raffect.heads.mlp import MlpBatch
from raffect.heads.sam import perturb
from raffect.recipe import HeadConfig
from tests.helpers.mlp_heads import EACH_SHAPE, make_heads, make_pass
from tests.helpers.small_heads import (
    DIM,
    make_learner,
    make_recipe,
    make_samples,
    run,
)


@EACH_SHAPE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_head_alone_is_the_same_head_in_a_batch_bit_by_bit(spec, dtype):
    together = make_heads(spec, dtype=dtype)
    x, noise, upstream = make_pass(spec, dtype=dtype)
    rho = torch.tensor([0.5, 0.0, 0.1], dtype=dtype)
    found = one_step(together, x, noise, upstream, rho, x[0])
    for p in range(3):
        part = slice(p, p + 1)
        alone = spec.build(together.rows[part].clone())
        expected = one_step(alone, x[part], noise[part], upstream[part], rho[part], x[0])
        for name, tensor in expected.items():
            assert torch.equal(found[name][part], tensor), name
        for name, buffer in alone.buffers.items():
            assert torch.equal(together.buffers[name][part], buffer), name


def one_step(heads, x, noise, upstream, rho, judged):
    """Everything that a step with SAM computes."""
    first = heads.forward(heads.rows, x, noise, update_buffers=True)
    moved = heads.climb(upstream, rho)
    second = heads.forward(moved, x, noise, update_buffers=False)
    heads.backward(upstream)
    predicted = heads.predict(heads.rows, heads.buffers, judged)
    gradient = heads.gradient.clone()
    return {"first": first, "second": second, "gradient": gradient, "predicted": predicted}


@EACH_SHAPE
def test_the_first_product_is_taken_once_and_no_bit_tells(spec):
    heads = make_heads(spec)
    x, noise, upstream = make_pass(spec)
    heads.forward(heads.rows, x, noise, update_buffers=True)
    moved = heads.climb(upstream, torch.tensor([0.5, 0.0, 0.1], dtype=torch.float64))
    lifts = {name: dataclasses.replace(lift, outputs=None) for name, lift in moved.lifts.items()}
    plain = dataclasses.replace(moved, lifts=lifts)
    # A linear probe's only Linear has an offset that moves, and l2 makes samples of its own.
    assert any(lift.outputs is not None for lift in moved.lifts.values()) == (spec.depth > 0)
    both = (heads.forward(point, x, noise, update_buffers=False) for point in (moved, plain))
    assert torch.equal(*both)


@EACH_SHAPE
def test_backward_agrees_with_autograd_through_the_module(spec):
    heads = make_heads(spec)
    x, noise, upstream = make_pass(spec)
    outputs = heads.forward(heads.rows, x, noise, update_buffers=False)
    heads.backward(upstream)
    for p in range(3):
        head = spec.build_module(heads.state(p)).train()
        hidden = normalise(x[p], spec.normalise)
        for block in range(spec.depth):
            linear, norm, relu, _ = head.layers[4 * block : 4 * block + 4]
            part = noise[p, :, spec.width * block : spec.width * (block + 1)]
            hidden = relu(norm(linear(hidden))) * part
        expected = head.layers[-1](hidden)
        expected.backward(upstream[p])
        named = dict(head.named_parameters())
        gradient = torch.cat([named[name].grad.flatten() for name in spec.weights])
        assert torch.allclose(outputs[p], expected, atol=1e-12)
        assert torch.allclose(heads.gradient[p], gradient, atol=1e-12)


@EACH_SHAPE
def test_a_batch_predicts_what_the_modules_do(spec):
    heads = make_heads(spec)
    x, noise, _ = make_pass(spec)
    for _ in range(3):
        heads.forward(heads.rows, x + 1, noise, update_buffers=True)
    before = {name: buffer.clone() for name, buffer in heads.buffers.items()}
    found = heads.predict(heads.rows, heads.buffers, x[0])
    assert torch.equal(found, heads.predictor(heads.rows, heads.buffers)(x[0]))
    for p in range(3):
        head = spec.build_module(heads.state(p))
        assert torch.allclose(found[p], head(x[0]), atol=1e-12)
    assert all(torch.equal(before[name], buffer) for name, buffer in heads.buffers.items())


@EACH_SHAPE
def test_a_low_rank_step_of_sam_is_that_of_the_whole_matrix(spec):
    low_rank, matrix = make_heads(spec), make_heads(spec)
    x, noise, upstream = make_pass(spec)
    rho = torch.tensor([0.5, 0.0, 0.1], dtype=torch.float64)
    for heads in (low_rank, matrix):
        heads.forward(heads.rows, x, noise, update_buffers=True)
    there = low_rank.climb(upstream, rho)
    matrix.backward(upstream)
    moved = perturb(matrix.rows, matrix.gradient, rho, "l2", torch.empty_like(matrix.rows))
    outputs = low_rank.forward(there, x, noise, update_buffers=False)
    expected = matrix.forward(moved, x, noise, update_buffers=False)
    assert torch.allclose(outputs, expected, atol=1e-12)
    for heads in (low_rank, matrix):
        heads.backward(upstream)
    assert torch.allclose(low_rank.gradient, matrix.gradient, atol=1e-12)
    # The step is one: only the head whose rho is 0 stays where it was.
    here = low_rank.forward(low_rank.rows, x, noise, update_buffers=False)
    assert [torch.allclose(outputs[p], here[p]) for p in range(3)] == [False, True, False]


@pytest.mark.parametrize("depth", [0, 2])
def test_a_batch_without_climb_takes_the_matrix_path_to_the_same_heads(monkeypatch, depth):
    settings = {"sam__rho": 0.3, "head__depth": depth, "batch_size": 8}
    recipes = [make_recipe(seed=seed, **settings) for seed in (0, 1)]
    samples = make_samples()
    with_climb = run(make_learner(recipes, samples), samples)
    monkeypatch.setattr(MlpBatch, "climb", HeadBatch.climb)
    without = run(make_learner(recipes, samples), samples)
    assert torch.allclose(with_climb.heads.rows, without.heads.rows, atol=1e-9)
    assert "_perturbed" in vars(without)
    assert "_perturbed" not in vars(with_climb)


def test_a_batch_larger_than_a_layer_is_wide_is_cheaper_as_a_matrix():
    for spec, size in ((MlpSpec(DIM, 16, 1, 8), 17), (MlpSpec(DIM, 0, 0, 8), DIM + 1)):
        heads = make_heads(spec)
        for samples, is_written_out in ((size - 1, False), (size, True)):
            x, _, upstream = make_pass(spec, size=samples)
            heads.forward(heads.rows, x, None, update_buffers=False)
            found = heads.climb(upstream, torch.ones(3, dtype=torch.float64))
            assert (found is None) == is_written_out


def test_l2_divides_each_feature_by_its_norm_and_leaves_zeros():
    x = torch.randn(5, 7, DIM, dtype=torch.float64)
    x[2, 3] = 0
    found = normalise(x, "l2")
    assert torch.equal(found[2, 3], torch.zeros(DIM, dtype=torch.float64))
    expected = torch.ones(5, 7, dtype=torch.float64)
    expected[2, 3] = 0
    assert torch.allclose(found.norm(dim=-1), expected)
    assert torch.allclose(found * x.norm(dim=-1, keepdim=True), x)
    assert normalise(x, "none") is x
    spec = MlpSpec(DIM, 16, 1, 8, "l2")
    head = spec.build_module(make_heads(spec).state(0))
    assert torch.allclose(head(x[0]), head(x[0] * 100), atol=1e-12)
    assert head(x[2])[3].isfinite().all()


def test_the_papers_heads_have_its_number_of_weights():
    spec = MlpSpec(768, 768, 3, 8)
    assert spec.num_weights == sum(p.numel() for p in Head(spec).parameters()) == 1_782_536
    assert MlpSpec(768, 768, 3, 12).num_weights == 1_785_612


@pytest.mark.parametrize("how", ["none", "l2"])
def test_a_head_takes_a_banks_float16_features_as_they_are(how):
    spec = MlpSpec(4, 8, 2, 3, how)
    head = spec.build_module(spec.build(torch.randn(1, spec.num_weights)).state(0))
    features = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float16)
    features.flags.writeable = False  # as those that are mapped from a file
    expected = head(torch.from_numpy(features.astype(np.float32)))
    assert expected.dtype == torch.float32
    assert torch.equal(head(features), expected)
    assert torch.equal(head(torch.from_numpy(features.copy())), expected)


def test_a_head_of_depth_0_is_one_linear():
    spec = head_spec(HeadConfig(depth=0, width=300), 768, 8)
    assert spec.weights == {"layers.0.weight": (8, 768), "layers.0.bias": (8,)}
    assert (spec.buffers, spec.num_noise) == ({}, 0)
    assert [type(layer) for layer in spec.module().layers] == [nn.Linear]


def test_he_weights_have_hes_spread_and_zero_biases():
    spec = MlpSpec(200, 300, 1, 8)
    views = spec.views(spec.initial_row(5, HeadConfig(init="he"))[None])
    assert views["layers.0.weight"].std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert (views["layers.0.bias"] == 0).all()
    assert (views["layers.1.weight"] == 1).all()
