"""Triton kernels of the fused step: the way from samples to outputs.

See `raffect.heads.fused_kernels`, also for the shape letters.
"""

from __future__ import annotations

import triton
import triton.language as tl

from raffect.heads.head import EPS, MOMENTUM

_EPS, _MOMENTUM = tl.constexpr(EPS), tl.constexpr(MOMENTUM)
_GOLDEN = tl.constexpr(0x9E3779B9)  # 2^32 / golden ratio


@triton.jit
def mix(x):
    """`raffect.heads.random.random_bits`' mixing function on uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def dropout_bits(key, number, position):
    """`raffect.heads.random.random_bits`: int32 of a key, a pass and positions, all int32."""
    number = number.to(tl.uint32, bitcast=True)
    state = mix(mix(key.to(tl.uint32, bitcast=True)) + number * _GOLDEN)
    bits = mix((position.to(tl.uint32, bitcast=True) ^ state) * _GOLDEN)
    return bits.to(tl.int32, bitcast=True)


@triton.jit
def step_length(squares, rho, head, PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr):
    """SAM's rho / |g| of a head, from the parts of |g|^2."""
    part = tl.arange(0, BLOCK_PARTS)
    found = tl.load(squares + head * PARTS + part, mask=part < PARTS, other=0.0)
    total = tl.sum(found, 0)
    # Not `tl.maximum`, which makes 0 of NaN.
    norm = tl.sqrt(tl.where(total < 0, 0.0, total))
    return tl.load(rho + head) / (norm + 1e-12)


@triton.jit
def linear_columns(
    inputs,  # (B, IN) of this head
    weight,  # (OUT, IN) of this head, then its bias
    n,
    scale,
    first_inputs,  # (B, IN) of SAM's first pass
    first_delta,  # (B, OUT) of it
    bias_gradient,  # (OUT,) of it
    B: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SECOND: tl.constexpr,
):
    """Columns ``n`` of a Linear's outputs, in SAM's second pass a step from its weights."""
    b = tl.arange(0, BLOCK_B)
    is_row, is_column = (b < B)[:, None], n < OUT
    product_BN = tl.full((BLOCK_B, BLOCK_N), 0.0, tl.float32)
    gram_BB = tl.full((BLOCK_B, BLOCK_B), 0.0, tl.float32)
    for start in range(0, IN, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K))[None, :]
        x_BK = tl.load(inputs + b[:, None] * IN + k, mask=is_row & (k < IN), other=0.0)
        at_NK, is_weight = n[:, None] * IN + k, is_column[:, None] & (k < IN)
        w_NK = tl.load(weight + at_NK, mask=is_weight, other=0.0)
        product_BN = tl.dot(x_BK, tl.trans(w_NK), product_BN, input_precision="ieee")
        if SECOND:
            at_BK = b[:, None] * IN + k
            first_BK = tl.load(first_inputs + at_BK, mask=is_row & (k < IN), other=0.0)
            gram_BB = tl.dot(x_BK, tl.trans(first_BK), gram_BB, input_precision="ieee")
    bias_N = tl.load(weight + OUT * IN + n, mask=is_column, other=0.0)
    if SECOND:
        # What the step does: (x @ x1.T) @ delta1, as in `raffect.heads.low_rank.Lift`
        at_BN = b[:, None] * OUT + n[None, :]
        delta_BN = tl.load(first_delta + at_BN, mask=is_row & is_column[None, :], other=0.0)
        product_BN = tl.dot(gram_BB * scale, delta_BN, product_BN, input_precision="ieee")
        bias_N += scale * tl.load(bias_gradient + n, mask=is_column, other=0.0)
    return product_BN + bias_N[None, :]


@triton.jit
def block_forward(
    rows,  # (P, N)
    row_stride,
    weight_at,  # of the block within a row
    inputs,  # (P, B, IN), heads `inputs_stride` apart
    inputs_stride,
    first_inputs,  # of SAM's first pass; read in the second alone, as the next two
    first_delta,  # (P, B, OUT)
    vectors,  # (P, V): gradients of the first pass by biases, gains and offsets
    num_vectors,
    vector_at,  # of the block within V
    squares,  # (P, PARTS)
    rho,  # (P,)
    hidden,  # (P, B, OUT), written
    normal,  # (P, B, OUT), written
    rstd,  # (P, OUT), written
    running_mean,  # (P, OUT), moved in the first pass
    running_var,
    keys,  # (P,), and all of dropout's numbers of a head
    thresholds,
    factors,
    independent,
    counter,
    num_units,  # of a sample, over all blocks
    unit_at,  # of the block among them
    B: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    SECOND: tl.constexpr,
    DROPS: tl.constexpr,
):
    """Linear -> BatchNorm -> ReLU -> Dropout of one block, for some of its columns."""
    # The product.
    head = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    b = tl.arange(0, BLOCK_B)
    is_row, is_column = (b < B)[:, None], n < OUT
    weight = rows + head * row_stride + weight_at
    vector = vectors + head * num_vectors + vector_at
    scale = step_length(squares, rho, head, PARTS, BLOCK_PARTS) if SECOND else 0.0
    z_BN = linear_columns(
        inputs + head * inputs_stride,
        weight,
        n,
        scale,
        first_inputs + head * inputs_stride,
        first_delta + head * B * OUT,
        vector,
        B,
        IN,
        OUT,
        BLOCK_B,
        BLOCK_N,
        BLOCK_K,
        SECOND,
    )
    # Mean 0 and variance 1 over the samples.
    mean_N = tl.sum(tl.where(is_row, z_BN, 0.0), 0) / B
    z_BN = tl.where(is_row, z_BN - mean_N[None, :], 0.0)
    var_N = tl.sum(z_BN * z_BN, 0) / B
    rstd_N = tl.rsqrt(var_N + _EPS)
    normal_BN = z_BN * rstd_N[None, :]
    if not SECOND:
        at_N = head * OUT + n
        for_mean_N = tl.load(running_mean + at_N, mask=is_column, other=0.0)
        for_var_N = tl.load(running_var + at_N, mask=is_column, other=0.0)
        for_mean_N += _MOMENTUM * (mean_N - for_mean_N)
        for_var_N += _MOMENTUM * (var_N * (B / (B - 1)) - for_var_N)
        tl.store(running_mean + at_N, for_mean_N, mask=is_column)
        tl.store(running_var + at_N, for_var_N, mask=is_column)
    # BatchNorm's own gain and offset, then ReLU and dropout.
    behind = weight + OUT * IN + n
    gain_N = tl.load(behind + OUT, mask=is_column, other=0.0)
    offset_N = tl.load(behind + 2 * OUT, mask=is_column, other=0.0)
    if SECOND:
        gain_N += scale * tl.load(vector + OUT + n, mask=is_column, other=0.0)
        offset_N += scale * tl.load(vector + 2 * OUT + n, mask=is_column, other=0.0)
    out_BN = normal_BN * gain_N[None, :] + offset_N[None, :]
    # Not `tl.maximum`, which makes 0 of NaN: a head that diverges would go on unseen.
    out_BN = tl.where(out_BN < 0, 0.0, out_BN)
    if DROPS:
        number = 2 * tl.load(counter)
        if SECOND:
            number += tl.load(independent + head)
        position_BN = b[:, None] * num_units + unit_at + n[None, :]
        bits_BN = dropout_bits(tl.load(keys + head), number, position_BN)
        is_kept = bits_BN >= tl.load(thresholds + head)
        out_BN = tl.where(is_kept, out_BN * tl.load(factors + head), 0.0)
    at_BN = head * B * OUT + b[:, None] * OUT + n[None, :]
    is_there = is_row & is_column[None, :]
    tl.store(hidden + at_BN, out_BN, mask=is_there)
    tl.store(normal + at_BN, normal_BN, mask=is_there)
    tl.store(rstd + head * OUT + n, rstd_N, mask=is_column)


@triton.jit
def last_forward(
    rows,
    row_stride,
    weight_at,
    inputs,  # (P, B, IN), heads `inputs_stride` apart
    inputs_stride,
    first_inputs,
    first_delta,  # (P, B, OUT)
    vectors,
    num_vectors,
    vector_at,
    squares,
    rho,
    outputs,  # (P, B, OUT), written
    B: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    SECOND: tl.constexpr,
):
    """The last Linear, for some of its outputs; parameters are those of `block_forward`."""
    head = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    b = tl.arange(0, BLOCK_B)
    found_BN = linear_columns(
        inputs + head * inputs_stride,
        rows + head * row_stride + weight_at,
        n,
        step_length(squares, rho, head, PARTS, BLOCK_PARTS) if SECOND else 0.0,
        first_inputs + head * inputs_stride,
        first_delta + head * B * OUT,
        vectors + head * num_vectors + vector_at,
        B,
        IN,
        OUT,
        BLOCK_B,
        BLOCK_N,
        BLOCK_K,
        SECOND,
    )
    at_BN = head * B * OUT + b[:, None] * OUT + n[None, :]
    tl.store(outputs + at_BN, found_BN, mask=(b < B)[:, None] & (n < OUT)[None, :])
