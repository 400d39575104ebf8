"""What one call costs at least: bytes that it reads and writes, and arithmetic of our kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

_GATHERS = {"index_select", "gather", "index", "embedding"}
"""Calls that read as much of their first operand as they return, not all of it."""
_ONLY_WRITE = {"copy_", "fill_", "zero_", "_foreach_copy_"}
"""In-place calls that do not read what they overwrite."""
_ONLY_SHAPE = {"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"}
"""Calls that take no more than the shape of their operand."""


def name_of(func: OpOverload) -> str:
    """Of a call in aten, without its overload."""
    return func.overloadpacket.__name__


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor, of which an expanded one holds each number once."""
    shape = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return int(np.prod(shape, dtype=np.int64)) * tensor.element_size() if tensor.numel() else 0


def bytes_of(func: OpOverload, args: tuple, kwargs: dict, made: list[Tensor]) -> tuple[int, int]:
    """Bytes that a call reads and writes at least: each operand once."""
    name = name_of(func)
    read = written = 0
    for argument in func._schema.arguments:
        position = func._schema.arguments.index(argument)
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        size = sum(size_of(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
        # Optimisers' kernels are declared to write gradients, which they do only to scale them.
        is_gradient = name.startswith("_fused_") and argument.name == "grads"
        alias = argument.alias_info
        writes = alias is not None and alias.is_write and not is_gradient
        written += size if writes else 0
        is_read = not writes or not (argument.is_out or name in _ONLY_WRITE)
        if name in _GATHERS and position == 0:
            size = sum(size_of(one) for one in made)
        read += size if is_read and name not in _ONLY_SHAPE else 0
    # New tensors
    if not func._schema.is_mutable:
        written += sum(size_of(one) for one in made)
    return read, written


def kernel_costs(operands: dict[str, Any]) -> tuple[int, int, int]:
    """Bytes read and written and arithmetic of one of our Triton kernels, by its operands' names.

    Each operand counts once; of matrices as long as ``rows`` those of the one Linear (IN, OUT),
    which `layer_update` also writes. Pixels are read and overwritten.
    """
    # What the second pass alone reads
    unread = () if operands.get("SECOND") else ("first_inputs", "first_delta")
    pairs = operands.items()
    tensors = {n: value for n, value in pairs if isinstance(value, Tensor) and n not in unread}
    rows = tensors.get("rows")
    whole = [name for name, one in tensors.items() if rows is not None and one.shape == rows.shape]
    read = sum(size_of(one) for name, one in tensors.items() if name not in whole)
    written = size_of(tensors["coarse_ptr"]) if "coarse_ptr" in tensors else 0
    if rows is None:
        return read, written, 0
    # A layer's matrix and vectors
    heads, batch, size = len(rows), operands["B"], operands["IN"] * operands["OUT"]
    own = 4 * heads * (size + operands.get("COUNT", 0))
    flop = 2 * heads * batch * size
    if operands.get("SECOND"):
        # Two thin factors: every block of columns multiplies the first one again.
        terms, columns = operands["IN"], operands["OUT"]
        if "IS_LAST" in operands:
            terms, columns = columns, terms  # backward
        blocks = -(-columns // operands["BLOCK_N"])
        flop += 2 * heads * batch * batch * (terms * blocks + columns)
    return read + own * len(whole), written + own * len(whole) * ("means" in whole), flop
