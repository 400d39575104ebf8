"""Sums of two halves to whole pixels: in one kernel on CUDA, in seven of torch's elsewhere.

The sum itself needs more bits than float32 has, so whole and fractional parts are added apart; each
step is exact, so both ways give the same bits. In steps it is two thirds of all that the transform
of a batch moves through memory.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor


def round_sum(coarse: Tensor, fine: Tensor) -> Tensor:
    """``coarse + fine`` to the nearest whole number in 0-255, halves up.

    Args:
        coarse: Multiples of 2**-10, float32, contiguous; overwritten by the result.
        fine: Multiples of 2**-22 below 2 in size, of the same shape, contiguous; overwritten.

    Returns:
        ``coarse``.
    """
    if coarse.is_cuda and _has_kernel(coarse.device):
        from raffect.encoders.rounding_kernel import round_in_one

        return round_in_one(coarse, fine)
    return _round_in_steps(coarse, fine)


def _round_in_steps(coarse: Tensor, fine: Tensor) -> Tensor:
    whole = coarse.floor()
    fine.add_(coarse.sub_(whole)).add_(0.5).floor_()
    return torch.add(whole, fine, out=coarse).clamp_(0, 255)


@cache
def _has_kernel(device: torch.device) -> bool:
    """Whether a device rounds in one kernel, which has to give the bits of the steps once."""
    if not torch.cuda.is_available():
        return False  # a device that is only pretended, as in tests
    try:
        from raffect.encoders.rounding_kernel import round_in_one

        coarse, fine = drawn_halves(device)
        found = round_in_one(coarse.clone(), fine.clone())
        problem = "" if torch.equal(found, _round_in_steps(coarse, fine)) else "its bits differ"
    except Exception as error:  # no triton, no compiler, a card it does not know
        problem = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    if problem:
        line = "%s: no kernel of our own for pixels (%s); torch's are used, a little slower"
        logging.getLogger("raffect").warning(line, device, problem)
    return not problem


def drawn_halves(device: torch.device, count: int = 100_000) -> tuple[Tensor, Tensor]:
    """Halves at random, ties and what is next to them among them, for comparing both ways."""
    dice = torch.Generator().manual_seed(0)
    coarse = torch.randint(-(2**17), 3 * 2**17, (count,), generator=dice).float() / 2**10
    fine = torch.randint(-(2**21), 2**21, (count,), generator=dice).float() / 2**22
    coarse[::3] = coarse[::3].floor() + 0.5
    fine[::3] = fine[::3].sign() / 2**22
    fine[::6] = 0
    return coarse.to(device), fine.to(device)
