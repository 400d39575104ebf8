"""Temporal heads side by side: alone as in a batch, and by autograd."""

import pytest
import torch

from tests.helpers.temporal_heads import EACH_SPEC, make_noise, make_row, make_windows

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
