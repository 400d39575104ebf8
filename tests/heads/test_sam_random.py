"""SAM's perturbation by its definition; counters that behave like random numbers."""

import numpy as np
import pytest
import torch
from scipy import stats

from raffect.heads.random import (
    Noise,
    dropout_key,
    epoch_order,
    keep_threshold,
    random_bits,
    uniform_key,
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


def noise(
    seeds=(0,),
    rates=(0.5,),
    shape=(8, 3, 2),
    step=4,
    second=False,
    independent=None,
    rank=0,
    dtype=torch.float32,
):
    """Noise of one step."""
    independent = independent or [False] * len(seeds)
    drawn = Noise(seeds, rates, independent, shape, rank, torch.device("cpu"), dtype)
    return drawn.draw(torch.tensor(step, dtype=torch.int32), second=second)


def test_numbers_are_uniform_and_unrelated_to_dropout_steps_seeds_and_neighbours():
    both = noise(shape=(50_000, 1, 2), dtype=torch.float64)[0]
    one, beside = both[:, 1], both[:, 2]
    assert stats.kstest(one, "uniform").pvalue > 1e-3
    others = [both[:, 0], beside]
    others += [
        noise(shape=(50_000, 1, 2), **own)[0, :, 1] for own in ({"step": 5}, {"seeds": (1,)})
    ]
    others += [one.roll(1)]
    for other in others:
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.02


def test_numbers_lie_in_0_to_1_and_are_the_same_in_every_type():
    numbers = noise(shape=(100_000, 0, 2))
    assert numbers.min() >= 0
    assert 1 > numbers.max() > 0.9999
    steps = numbers.double() * 2**24
    assert torch.equal(steps, steps.round())
    assert torch.equal(numbers.double(), noise(shape=(100_000, 0, 2), dtype=torch.float64))


def test_numbers_beside_them_change_no_factor_of_dropout():
    seeds, rates = (3, 4), (0.5, 0.5)
    plain = noise(seeds, rates, (2, 20, 0), step=7, rank=1)
    # As they were before there were any numbers (raffect of 2026-11-26).
    bits = ["0000111111110011010011011111101000001000", "0100011010001010011011001101001001011011"]
    for head, expected in zip(plain, bits, strict=True):
        assert "".join(str(int(kept > 0)) for kept in head.flatten()) == expected
    found = noise(seeds, rates, (2, 20, 5), step=7, rank=1)
    assert torch.equal(found[..., :20], plain)
    assert plain.unique().tolist() == [0, 2]


def test_noise_follows_the_seed_whatever_the_batch_of_heads():
    seeds, rates = (0, 5, 0, 7), (0.5, 0.5, 0.2, 0.0)
    together = noise(seeds, rates)
    for p in range(4):
        # Alone, a head without dropout still has its factors, which are 1.
        assert torch.equal(together[p], noise(seeds[p : p + 1], rates[p : p + 1])[0])
    assert torch.equal(together[0, :, 3:], together[2, :, 3:])
    assert not torch.equal(together[0, :, 3:], together[1, :, 3:])
    assert (together[3, :, :3] == 1).all()


def test_workers_draw_their_parts_of_the_noise_of_one():
    whole = noise((0, 1), (0.5, 0.3), (8, 3, 2))
    parts = [noise((0, 1), (0.5, 0.3), (2, 3, 2), rank=rank) for rank in range(4)]
    assert torch.equal(torch.cat(parts, 1), whole)


def test_only_heads_without_dropout_and_numbers_have_no_noise():
    for rates, shape, is_there in (
        ((0.0,), (8, 3, 0), False),
        ((0.5,), (8, 0, 0), False),
        ((0.5,), (8, 3, 0), True),
        ((0.0,), (8, 3, 1), True),
        ((0.0,), (8, 0, 1), True),
    ):
        found = noise(rates=rates, shape=shape)
        assert (found is not None) == is_there
        assert found is None or found.shape == (1, 8, shape[1] + shape[2])


def test_the_second_pass_of_sam_has_noise_of_its_own_where_a_head_asks_for_it():
    seeds, rates, independent = (0, 0, 1), (0.5, 0.5, 0.0), (True, False, True)
    first, second = (noise(seeds, rates, second=s, independent=independent) for s in (False, True))
    same = [torch.equal(first[p], second[p]) for p in range(3)]
    assert same == [False, True, False]
    # Both kinds of noise are drawn again.
    assert not torch.equal(first[0, :, :3], second[0, :, :3])
    assert not torch.equal(first[0, :, 3:], second[0, :, 3:])


def test_streams_of_a_seed_have_keys_of_their_own():
    keys = {key(seed) for key in (dropout_key, uniform_key) for seed in range(1000)}
    assert len(keys) == 2000
