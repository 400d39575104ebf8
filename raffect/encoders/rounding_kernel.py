"""The Triton kernel of `raffect.encoders.rounding`; triton comes with torch for CUDA."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
OPTIONS = {"enable_fp_fusion": False}


@triton.jit
def round_kernel(coarse_ptr, fine_ptr, count, BLOCK: tl.constexpr):
    """One block of ``coarse + fine`` to whole numbers in 0-255, written over ``coarse``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    coarse = tl.load(coarse_ptr + at, mask=inside)
    fine = tl.load(fine_ptr + at, mask=inside)
    # Every step is exact, so their order does not matter.
    whole = tl.floor(coarse)
    rounded = whole + tl.floor((coarse - whole) + fine + 0.5)
    tl.store(coarse_ptr + at, tl.minimum(tl.maximum(rounded, 0.0), 255.0), mask=inside)


def round_in_one(coarse: Tensor, fine: Tensor) -> Tensor:
    """`raffect.encoders.rounding.round_sum` in one kernel, on CUDA."""
    count = coarse.numel()
    launch: Any = round_kernel[(-(-count // BLOCK),)]
    launch(coarse, fine, count, BLOCK=BLOCK, **OPTIONS)
    return coarse
