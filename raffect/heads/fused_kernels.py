"""Triton kernels of the fused step: one for each layer and pass of a batch of MLPs.

32 samples hold whole columns, so one program computes some columns of one head from the product
to what BatchNorm, ReLU and dropout make of them. Programs run over column blocks in a grid's first
axis and over heads in its second. Products are float32's own (``ieee``: TF32 is off). Nothing here
is tuned at run time. `raffect.heads.fused_step` launches them; this module imports Triton, which
macOS does not have, and so is imported late.

Shape letters of names: B samples, N columns of a block, K terms of a product's sum. Sizes in
capitals are constants of a compiled kernel.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from raffect.heads.adam import BETA1, BETA2
from raffect.heads.adam import EPS as ADAM_EPS
from raffect.heads.head import EPS, MOMENTUM

_EPS, _MOMENTUM = tl.constexpr(EPS), tl.constexpr(MOMENTUM)
_BETA1, _BETA2, _ADAM_EPS = tl.constexpr(BETA1), tl.constexpr(BETA2), tl.constexpr(ADAM_EPS)
_LOG2_BETA1, _LOG2_BETA2 = (tl.constexpr(math.log2(beta)) for beta in (BETA1, BETA2))
_GOLDEN = tl.constexpr(0x9E3779B9)  # 2^32 / golden ratio
_INFINITY = tl.constexpr(float("inf"))


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
    norm = tl.sqrt(tl.maximum(tl.sum(found, 0), 0.0))
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
    out_BN = tl.maximum(normal_BN * gain_N[None, :] + offset_N[None, :], 0.0)
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


@triton.jit
def class_losses(
    outputs,  # (P, B, OUT)
    target,  # (P, B), int64
    shift,  # (P, OUT), read if SHIFTS
    weights,  # (P, OUT), read if WEIGHS
    left_out,  # (P,), int64, read if LEAVES_OUT
    alpha,  # (P,)
    loss,  # (P,), written
    derivative,  # (P, B, OUT), written
    target_stride,
    B: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SHIFTS: tl.constexpr,
    WEIGHS: tl.constexpr,
    LEAVES_OUT: tl.constexpr,
):
    """Mean of the worst share of cross-entropies, and its derivative: one program a head.

    The derivative is (softmax - one-hot) times the class's weight and the frame's share. A frame's
    rank is how many losses are larger, which for 32 frames is a comparison of all with all.
    """
    # Cross-entropies.
    head = tl.program_id(0).to(tl.int64)
    b, c = tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_C)
    is_row, is_there = b < B, (b < B)[:, None] & (c < OUT)[None, :]
    at_BC = head * B * OUT + b[:, None] * OUT + c[None, :]
    logits_BC = tl.load(outputs + at_BC, mask=is_there, other=0.0)
    if SHIFTS:
        shift_C = tl.load(shift + head * OUT + c, mask=c < OUT, other=0.0)
        logits_BC += shift_C[None, :]
    logits_BC = tl.where((c < OUT)[None, :], logits_BC, -_INFINITY)
    class_B = tl.load(target + head * target_stride + b, mask=is_row, other=0)
    top_B = tl.max(logits_BC, 1)
    exp_BC = tl.exp(logits_BC - top_B[:, None])
    sum_B = tl.sum(exp_BC, 1)
    is_class = c[None, :] == class_B[:, None]
    own_B = tl.sum(tl.where(is_class, logits_BC - top_B[:, None], 0.0), 1)
    loss_B = tl.log(sum_B) - own_B
    slope_BC = exp_BC / sum_B[:, None] - tl.where(is_class, 1.0, 0.0)
    if WEIGHS:
        weight_B = tl.load(weights + head * OUT + class_B, mask=is_row, other=0.0)
        loss_B *= weight_B
        slope_BC *= weight_B[:, None]
    # The share of each frame in the mean of the worst; see `raffect.heads.losses.cvar`.
    if LEAVES_OUT:
        is_valid = is_row & (class_B != tl.load(left_out + head))
    else:
        is_valid = is_row
    ranked_B = tl.where(is_valid, loss_B, -_INFINITY)
    is_larger = ranked_B[None, :] > ranked_B[:, None]
    is_before = (ranked_B[None, :] == ranked_B[:, None]) & (b[None, :] < b[:, None])
    rank_B = tl.sum((is_larger | is_before).to(tl.float32), 1)
    tail = tl.load(alpha + head) * tl.sum(is_valid.to(tl.float32), 0)
    share_B = tl.minimum(tl.maximum(tail - rank_B, 0.0), 1.0)
    share_B = tl.where(is_valid, share_B, 0.0)
    share_B /= tl.maximum(tl.sum(share_B, 0), 1e-37)
    tl.store(loss + head, tl.sum(tl.where(share_B > 0, loss_B * share_B, 0.0), 0))
    tl.store(derivative + at_BC, slope_BC * share_B[:, None], mask=is_there)


@triton.jit
def block_backward(
    rows,
    row_stride,
    weight_at,  # of the Linear behind the block
    norm_at,  # of the block's gain
    delta,  # (P, B, OUT): gradient by the outputs of the Linear behind it
    first_inputs,  # (P, B, IN): that Linear's lift in SAM's second pass
    first_delta,  # (P, B, OUT)
    first_vectors,  # (P, V)
    vectors,  # (P, V), written
    num_vectors,
    vector_at,  # of the block within V
    squares,
    rho,
    hidden,  # (P, B, IN): the block's outputs
    normal,
    rstd,
    factors,
    by_product,  # (P, B, IN), written: gradient by the outputs of the block's own Linear
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
    IS_LAST: tl.constexpr,
):
    """Back through the Linear behind a block, its dropout, ReLU and BatchNorm, for some columns.

    IN and OUT are those of the Linear behind it, so that IN is the block's width.
    """
    # Through the Linear behind it.
    head = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    b = tl.arange(0, BLOCK_B)
    is_row, is_column = (b < B)[:, None], n < IN
    is_there = is_row & is_column[None, :]
    weight = rows + head * row_stride + weight_at
    vector = vectors + head * num_vectors + vector_at
    product_BN = tl.full((BLOCK_B, BLOCK_N), 0.0, tl.float32)
    gram_BB = tl.full((BLOCK_B, BLOCK_B), 0.0, tl.float32)
    for start in range(0, OUT, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        at_BK = head * B * OUT + b[:, None] * OUT + k[None, :]
        is_term = is_row & (k < OUT)[None, :]
        delta_BK = tl.load(delta + at_BK, mask=is_term, other=0.0)
        at_KN = k[:, None] * IN + n[None, :]
        is_weight = (k < OUT)[:, None] & is_column[None, :]
        w_KN = tl.load(weight + at_KN, mask=is_weight, other=0.0)
        product_BN = tl.dot(delta_BK, w_KN, product_BN, input_precision="ieee")
        if SECOND:
            first_BK = tl.load(first_delta + at_BK, mask=is_term, other=0.0)
            gram_BB = tl.dot(delta_BK, tl.trans(first_BK), gram_BB, input_precision="ieee")
        if IS_LAST:
            # The last bias has the gradient by the outputs, added up.
            if tl.program_id(0) == 0:
                by_bias = vector + 3 * IN + k
                tl.store(by_bias, tl.sum(delta_BK, 0), mask=k < OUT)
    at_BN = head * B * IN + b[:, None] * IN + n[None, :]
    gain_N = tl.load(rows + head * row_stride + norm_at + n, mask=is_column, other=0.0)
    if SECOND:
        scale = step_length(squares, rho, head, PARTS, BLOCK_PARTS)
        first_BN = tl.load(first_inputs + at_BN, mask=is_there, other=0.0)
        product_BN = tl.dot(gram_BB * scale, first_BN, product_BN, input_precision="ieee")
        first_vector = first_vectors + head * num_vectors + vector_at
        gain_N += scale * tl.load(first_vector + IN + n, mask=is_column, other=0.0)
    # Through dropout and ReLU: what they let through is what is not 0.
    hidden_BN = tl.load(hidden + at_BN, mask=is_there, other=0.0)
    if DROPS:
        product_BN *= tl.load(factors + head)
    delta_BN = tl.where(hidden_BN > 0, product_BN, 0.0)
    # The gradients by BatchNorm's vectors, then through the batch's mean and variance.
    normal_BN = tl.load(normal + at_BN, mask=is_there, other=0.0)
    rstd_N = tl.load(rstd + head * IN + n, mask=is_column, other=0.0)
    sum_N, product_N = tl.sum(delta_BN, 0), tl.sum(delta_BN * normal_BN, 0)
    tl.store(vector + IN + n, product_N, mask=is_column)
    tl.store(vector + 2 * IN + n, sum_N, mask=is_column)
    delta_BN -= sum_N[None, :] / B + normal_BN * (product_N[None, :] / B)
    tl.store(by_product + at_BN, delta_BN * (rstd_N * gain_N)[None, :], mask=is_there)


@triton.jit
def gram_rows(x, first_row, length, B: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr):
    """16 rows of x @ x.T for x of shape (B, length)."""
    a, b = first_row + tl.arange(0, 16), tl.arange(0, BLOCK_B)
    gram = tl.full((16, BLOCK_B), 0.0, tl.float32)
    for start in range(0, length, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K))[None, :]
        is_term = k < length
        x_AK = tl.load(x + a[:, None] * length + k, mask=(a < B)[:, None] & is_term, other=0.0)
        x_BK = tl.load(x + b[:, None] * length + k, mask=(b < B)[:, None] & is_term, other=0.0)
        gram = tl.dot(x_AK, tl.trans(x_BK), gram, input_precision="ieee")
    return gram


@triton.jit
def square_norms(
    inputs,  # (P, B, dim), heads `inputs_stride` apart
    inputs_stride,
    hidden,  # (depth, P, B, width)
    delta,  # (depth, P, B, width)
    d_outputs,  # (P, B, outputs)
    vectors,  # (P, V)
    squares,  # (P, PARTS), written
    dim,
    width,
    outputs,
    depth,
    B: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Parts of |g|^2: of each Linear's matrix by its factors, some rows a program, and its vectors.

    See `raffect.heads.low_rank.squared_norm`.
    """
    head = tl.program_id(1).to(tl.int64)
    part = tl.program_id(0)
    layer, first_row = part // (BLOCK_B // 16), part % (BLOCK_B // 16) * 16
    # The factors of this Linear.
    size = tl.num_programs(1).to(tl.int64) * B * width
    x = inputs + head * inputs_stride
    if layer > 0:
        x = hidden + (layer - 1) * size + head * B * width
        dim = width
    d = delta + layer * size + head * B * width
    count, length = 3 * width, width
    if layer == depth:
        d = d_outputs + head * B * outputs
        count, length = outputs, outputs
    by_inputs = gram_rows(x, first_row, dim, B, BLOCK_B, BLOCK_K)
    by_outputs = gram_rows(d, first_row, length, B, BLOCK_B, BLOCK_K)
    total = tl.sum(tl.sum(by_inputs * by_outputs, 1), 0)
    # Its vectors.
    if first_row == 0:
        vector = vectors + head * (3 * width * depth + outputs) + 3 * width * layer
        for start in range(0, count, 1024):
            at = start + tl.arange(0, 1024)
            values = tl.load(vector + at, mask=at < count, other=0.0)
            total += tl.sum(values * values, 0)
    tl.store(squares + head * PARTS + part, total)


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
    size = tl.sqrt_rn(square) / correction2 + _ADAM_EPS
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
