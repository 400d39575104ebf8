"""SAM's perturbation by its definition; counters that behave like random numbers."""

import numpy as np
import pytest
import torch
from scipy import stats

from raffect.heads.random import (
    random_bits,
    dropout_key,
    epoch_order,
    keep_threshold,
    weights_generator,
)
from raffect.heads.sam import perturb


def test_l2_goes_rho_along_the_gradient():
    weights, gradient = torch.randn(2, 3, 50, dtype=torch.float64)
    rho = torch.tensor([0.0, 0.05, 2.0], dtype=torch.float64)
    moved = perturb(weights, gradient, rho, "l2", torch.empty_like(weights)) - weights
    assert torch.allclose(moved.norm(dim=1), rho, atol=1e-12)
    # No other direction of that length gains more.
    gain = (moved * gradient).sum(1)
    assert torch.allclose(gain, rho * gradient.norm(dim=1), rtol=1e-9)


def test_sign_goes_rho_in_every_weight():
    weights, gradient = torch.randn(2, 9), torch.tensor([[1.0, -2.0, 0.0] * 3] * 2)
    rho = torch.tensor([0.5, 0.0])
    moved = perturb(weights, gradient, rho, "sign", torch.empty_like(weights)) - weights
    assert torch.allclose(moved, torch.tensor([[0.5, -0.5, 0.0] * 3, [0.0] * 9]), atol=1e-7)


@pytest.mark.parametrize("kind", ["l2", "sign"])
def test_rho_zero_and_a_zero_gradient_change_no_bit(kind):
    weights = torch.randn(2, 100)
    gradient = torch.randn(2, 100)
    gradient[1] = 0
    moved = perturb(weights, gradient, torch.tensor([0.0, 0.1]), kind, torch.empty_like(weights))
    assert torch.equal(moved, weights)


def bits(seed=0, step=0, n=100_000, start=0):
    key, number = (torch.tensor(v, dtype=torch.int32) for v in ([dropout_key(seed)], step))
    position = torch.arange(start, start + n, dtype=torch.int32)
    out, scratch = torch.empty(2, 1, n, dtype=torch.int32)
    return random_bits(key, number, position, out, scratch)[0]


def test_bits_are_uniform_and_unrelated_between_steps_seeds_and_neighbours():
    one, next_step, other_seed = (bits(*case).double() for case in ((0, 5), (0, 6), (1, 5)))
    assert stats.kstest((one + 2**31) / 2**32, "uniform").pvalue > 1e-3
    for a, b in ((one, next_step), (one, other_seed), (one[1:], one[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.015
    every_bit = ((bits(3, 1)[:, None] >> torch.arange(32)) & 1).double().mean(0)
    assert (every_bit - 0.5).abs().max() < 0.01


def test_bits_depend_on_seed_step_and_position_alone():
    assert torch.equal(bits(0, 5)[5000:6000], bits(0, 5, 1000, 5000))
    assert not torch.equal(bits(0, 5), bits(0, 6))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6, 0.999])
def test_dropout_drops_its_share(rate):
    dropped = (bits(7, 3) < keep_threshold(rate)).double().mean().item()
    assert dropped == pytest.approx(rate, abs=5 * (rate * (1 - rate) / 1e5) ** 0.5)


def test_epoch_orders_are_permutations_of_their_own():
    cases = ((3, 0), (3, 0), (3, 1), (4, 0))
    one, same, later, other = (epoch_order(seed, epoch, 1000) for seed, epoch in cases)
    assert sorted(one) == list(range(1000))
    assert np.array_equal(one, same)
    assert (one == later).mean() < 0.02
    assert (one == other).mean() < 0.02


def test_weights_follow_their_seed():
    one, same, other = (torch.rand(5, generator=weights_generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
