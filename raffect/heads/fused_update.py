"""Triton kernels of the fused step: Adam's update, and what a step counts.

See `raffect.heads.fused_kernels`, also for the shape letters.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from raffect.heads.adam import BETA1, BETA2, EPS

_BETA1, _BETA2, _EPS = tl.constexpr(BETA1), tl.constexpr(BETA2), tl.constexpr(EPS)
_LOG2_BETA1, _LOG2_BETA2 = (tl.constexpr(math.log2(beta)) for beta in (BETA1, BETA2))
_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def adam(
    weights,
    means,
    squares,
    gradient,
    is_there,
    rate,
    decay,
    correction1,
    correction2,
    DECAYS: tl.constexpr,
    DECOUPLED: tl.constexpr,
):
    """One step of Adam or AdamW, as torch's fused kernel takes it."""
    weight = tl.load(weights, mask=is_there, other=0.0)
    if DECAYS:
        if DECOUPLED:
            weight -= rate * decay * weight
        else:
            gradient += decay * weight
    mean = tl.load(means, mask=is_there, other=0.0)
    square = tl.load(squares, mask=is_there, other=0.0)
    mean = _BETA1 * mean + (1 - _BETA1) * gradient
    square = _BETA2 * square + (1 - _BETA2) * gradient * gradient
    size = tl.sqrt_rn(square) / correction2 + _EPS
    tl.store(weights, weight - rate / correction1 * mean / size, mask=is_there)
    tl.store(means, mean, mask=is_there)
    tl.store(squares, square, mask=is_there)


@triton.jit
def layer_update(
    rows,  # (P, N), and Adam's two of the same shape; all moved
    means,
    squares,
    row_stride,
    weight_at,
    inputs,  # (P, B, IN), heads `inputs_stride` apart
    inputs_stride,
    delta,  # (P, B, OUT)
    vectors,  # (P, V)
    num_vectors,
    vector_at,
    steps,  # (P,): updates before this one
    rates,  # (P,)
    decays,  # (P,)
    B: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DECAYS: tl.constexpr,
    DECOUPLED: tl.constexpr,
):
    """Update of a Linear, and of the COUNT numbers of vectors behind it.

    The gradient delta.T @ inputs is made tile by tile where it is used and never written.
    """
    # Rates of this head; 1 - beta^step in float64, since for beta2 float32 loses four digits.
    head = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    step = (tl.load(steps + head) + 1).to(tl.float64)
    correction1 = (1 - tl.exp2(step * _LOG2_BETA1)).to(tl.float32)
    correction2 = tl.sqrt_rn((1 - tl.exp2(step * _LOG2_BETA2)).to(tl.float32))
    rate, decay = tl.load(rates + head), tl.load(decays + head)
    start = head * row_stride + weight_at
    num_across: tl.constexpr = (IN + BLOCK_N - 1) // BLOCK_N
    num_tiles: tl.constexpr = num_across * ((OUT + BLOCK_M - 1) // BLOCK_M)
    if tile < num_tiles:
        m = tile // num_across * BLOCK_M + tl.arange(0, BLOCK_M)
        n = tile % num_across * BLOCK_N + tl.arange(0, BLOCK_N)
        b = tl.arange(0, BLOCK_B)[:, None]
        at_BM, at_BN = b * OUT + m[None, :], b * IN + n[None, :]
        is_out, is_in = (b < B) & (m < OUT)[None, :], (b < B) & (n < IN)[None, :]
        delta_BM = tl.load(delta + head * B * OUT + at_BM, mask=is_out, other=0.0)
        inputs_BN = tl.load(inputs + head * inputs_stride + at_BN, mask=is_in, other=0.0)
        gradient_MN = tl.dot(tl.trans(delta_BM), inputs_BN, input_precision="ieee")
        at_MN = start + m[:, None] * IN + n[None, :]
        is_there = (m < OUT)[:, None] & (n < IN)[None, :]
        adam(
            rows + at_MN,
            means + at_MN,
            squares + at_MN,
            gradient_MN,
            is_there,
            rate,
            decay,
            correction1,
            correction2,
            DECAYS,
            DECOUPLED,
        )
    else:
        size: tl.constexpr = BLOCK_M * BLOCK_N
        at = (tile - num_tiles) * size + tl.arange(0, size)
        vector = vectors + head * num_vectors + vector_at
        adam(
            rows + start + OUT * IN + at,
            means + start + OUT * IN + at,
            squares + start + OUT * IN + at,
            tl.load(vector + at, mask=at < COUNT, other=0.0),
            at < COUNT,
            rate,
            decay,
            correction1,
            correction2,
            DECAYS,
            DECOUPLED,
        )


@triton.jit
def count_step(
    loss,  # (P,)
    loss_sum,  # (P,), moved
    first_bad,  # (P,), moved
    steps,  # (P,), moved
    counter,  # moved
    num_heads,
    BLOCK_P: tl.constexpr,
):
    """What a step counts of every head, by one program."""
    p = tl.arange(0, BLOCK_P)
    is_head = p < num_heads
    loss_P = tl.load(loss + p, mask=is_head, other=0.0)
    now = tl.load(counter)
    sum_P = tl.load(loss_sum + p, mask=is_head, other=0.0)
    tl.store(loss_sum + p, sum_P + loss_P, mask=is_head)
    bad_P = tl.load(first_bad + p, mask=is_head, other=0)
    is_finite = tl.abs(loss_P) < _INFINITY  # false for NaN as well
    bad_P = tl.where((bad_P < 0) & (is_finite == 0), now, bad_P)
    tl.store(first_bad + p, bad_P, mask=is_head)
    tl.store(steps + p, tl.load(steps + p, mask=is_head, other=0.0) + 1, mask=is_head)
    # Every thread has read the counter before one of them moves it.
    tl.debug_barrier()
    tl.store(counter, now + 1)
