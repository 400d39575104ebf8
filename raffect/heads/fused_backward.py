"""Triton kernels of the fused step: losses, and the way back from them.

See `raffect.heads.fused_kernels`, also for the shape letters.
"""

from __future__ import annotations

import triton
import triton.language as tl

from raffect.heads.fused_forward import step_length

_INFINITY = tl.constexpr(float("inf"))


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
    # The share of each frame in the mean of the worst; see `raffect.heads.tail.Tail`.
    is_valid = is_row
    if LEAVES_OUT:
        is_valid &= class_B != tl.load(left_out + head)
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
def label_losses(
    outputs,  # (P, B, OUT)
    target,  # (P, B, OUT), int8: 1 there, 0 not, negative unlabelled
    shift,  # (P, OUT), read if SHIFTS
    weights,  # (P, OUT) of positives, read if WEIGHS
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
):
    """`class_losses` for binary cross-entropies, whose tail is one of (frame, label) elements.

    It compares BLOCK_B x BLOCK_B x BLOCK_C losses. Above 2**15 of them, as 16 labels of 64 frames
    or 64 of 32, it would compile for half a minute; `FusedStep` then takes torch's losses instead,
    with the same result and more launches.
    """
    # Cross-entropies and their slopes.
    head = tl.program_id(0).to(tl.int64)
    b, c = tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_C)
    is_there = (b < B)[:, None] & (c < OUT)[None, :]
    number_BC = b[:, None] * OUT + c[None, :]
    at_BC = head * B * OUT + number_BC
    logits_BC = tl.load(outputs + at_BC, mask=is_there, other=0.0)
    if SHIFTS:
        logits_BC += tl.load(shift + head * OUT + c, mask=c < OUT, other=0.0)[None, :]
    label_BC = tl.load(target + head * target_stride + number_BC, mask=is_there, other=-1)
    is_active, is_valid = label_BC > 0, is_there & (label_BC >= 0)
    wrong_BC = tl.where(is_active, -logits_BC, logits_BC)
    small_BC = tl.exp(-tl.abs(wrong_BC))
    loss_BC = tl.maximum(wrong_BC, 0.0) + tl.log(1.0 + small_BC)
    slope_BC = tl.where(wrong_BC > 0, 1.0, small_BC) / (1.0 + small_BC)
    slope_BC = tl.where(is_active, -slope_BC, slope_BC)
    if WEIGHS:
        weight_C = tl.load(weights + head * OUT + c, mask=c < OUT, other=1.0)
        weight_BC = tl.where(is_active, weight_C[None, :], 1.0)
        loss_BC *= weight_BC
        slope_BC *= weight_BC
    # Ranks, by comparing with one label of all frames at a time.
    ranked_BC = tl.where(is_valid, loss_BC, -_INFINITY)
    rank_BC = tl.full((BLOCK_B, BLOCK_C), 0.0, tl.float32)
    for label in range(OUT):
        other_B = tl.max(tl.where(c[None, :] == label, ranked_BC, -_INFINITY), 1)[None, None, :]
        is_larger = other_B > ranked_BC[:, :, None]
        is_before = (b * OUT + label)[None, None, :] < number_BC[:, :, None]
        is_before &= other_B == ranked_BC[:, :, None]
        rank_BC += tl.sum((is_larger | is_before).to(tl.float32), 2)
    tail = tl.load(alpha + head) * tl.sum(tl.sum(is_valid.to(tl.float32), 1), 0)
    share_BC = tl.minimum(tl.maximum(tail - rank_BC, 0.0), 1.0)
    share_BC = tl.where(is_valid, share_BC, 0.0)
    share_BC /= tl.maximum(tl.sum(tl.sum(share_BC, 1), 0), 1e-37)
    total = tl.sum(tl.sum(tl.where(share_BC > 0, loss_BC * share_BC, 0.0), 1), 0)
    tl.store(loss + head, total)
    tl.store(derivative + at_BC, slope_BC * share_BC, mask=is_there)


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
        if IS_LAST and tl.program_id(0) == 0:
            # The last bias has the gradient by the outputs, added up.
            tl.store(vector + 3 * IN + k, tl.sum(delta_BK, 0), mask=k < OUT)
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
    delta_BN = tl.where(hidden_BN <= 0, 0.0, product_BN)
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
