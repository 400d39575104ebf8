"""Everything random in training on resident rows, as a pure function of (seed, epoch, step): nothing to save, nothing to share out.

Members of one seed see the same frames and the same dropout masks, in any pack, on any number of workers, after any stop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_WEIGHTS, _ORDER, _DROPOUT = 1, 2, 3
_GOLDEN = -1640531527  # 2^32 / golden ratio, as int32


def weights_generator(seed: int) -> torch.Generator:
    """Generator of a member's initial weights, on the CPU so that they are the same for every device."""
    return torch.Generator().manual_seed(_key(seed, _WEIGHTS))


def epoch_order(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """Order of the rows in an epoch: a permutation of ``range(num_rows)``, int64."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(num_rows)


def dropout_key(seed: int) -> int:
    """A member's key for `dropout_bits`, an int32."""
    return int(np.int32(np.uint32(_key(seed, _DROPOUT) & 0xFFFFFFFF)))


def dropout_bits(key_P: Tensor, step: Tensor, position_N: Tensor, out: Tensor, scratch: Tensor) -> Tensor:
    """Uniform bits from counters: one hash of (member, step, position), without a state.

    Args:
        key_P: `dropout_key` of each member, int32, shape (P,).
        step: Number of the pass, int32, a scalar or shape (P,).
        position_N: Position within the global batch, int32, shape (N,).
        out: Where to write, int32, shape (P, N); fresh memory for every step would cost more than the hash.
        scratch: As ``out``.

    Returns:
        ``out``, uniform over all values of an int32.

    Source:
        The mixing function is lowbias32 (Wellons 2018), which changes each output bit with half a chance for each input bit.
    """
    key = torch.empty_like(key_P).copy_(key_P)
    spare = torch.empty_like(key)
    _mix_(_mix_(key, spare).add_(step * _GOLDEN), spare)
    torch.bitwise_xor(position_N, key[:, None], out=out)
    out *= _GOLDEN
    return _mix_(out, scratch)


def keep_threshold(dropout: float) -> int:
    """Bits at or above it are kept: a share of ``1 - dropout``."""
    return min(round(dropout * 2**32), 2**32 - 1) - 2**31


class Dropout:
    """Factors of every hidden unit in every step, the same for members of one seed up to their rate.

    Args:
        seeds: One a member.
        rates: Share that each member drops.
        redraws: Whether a member takes another mask in SAM's second pass.
        shape: Frames of this worker's part of a batch, and hidden units of all blocks.
        rank: Of this worker: its frames come after those of lower ranks.
        device: Where the factors are.
        dtype: Their type.
    """

    def __init__(self, seeds: Sequence[int], rates: Sequence[float], redraws: Sequence[bool], shape: tuple[int, int], rank: int, device: torch.device, dtype: torch.dtype) -> None:
        self.active, self.redraws = any(rates), any(redraw and rate for redraw, rate in zip(redraws, rates, strict=True))
        size, self._shape = shape[0] * shape[1], (len(seeds), *shape)
        self._position = torch.arange(rank * size, (rank + 1) * size, dtype=torch.int32, device=device)
        self._key = torch.tensor([dropout_key(seed) for seed in seeds], dtype=torch.int32, device=device)
        self._threshold = torch.tensor([[keep_threshold(rate)] for rate in rates], dtype=torch.int32, device=device)
        self._factor = torch.tensor([[1 / (1 - rate)] for rate in rates], dtype=dtype, device=device)
        self._redraw = torch.tensor([int(redraw) for redraw in redraws], dtype=torch.int32, device=device)
        rows = (len(seeds), size if self.active else 0)
        self._bits, self._scratch = (torch.empty(rows, dtype=torch.int32, device=device) for _ in range(2))
        self._kept, self._scale = torch.empty(rows, dtype=torch.bool, device=device), torch.empty(rows, dtype=dtype, device=device)

    def draw(self, step: Tensor, second: bool) -> Tensor | None:
        """Factors 0 or 1 / (1 - rate), shape (P, B, K); None where nobody drops anything. The next draw overwrites them."""
        if not self.active:
            return None
        bits = dropout_bits(self._key, 2 * step + (self._redraw if second else 0), self._position, self._bits, self._scratch)
        torch.ge(bits, self._threshold, out=self._kept)
        return torch.mul(self._kept, self._factor, out=self._scale).view(self._shape)


def _mix_(x: Tensor, scratch: Tensor) -> Tensor:
    """In place. Shifts of int32 bring in copies of the sign, so they are masked; products wrap around."""
    for shift, factor in ((16, 0x7FEB352D), (15, -2073254261), (16, None)):
        torch.bitwise_right_shift(x, shift, out=scratch)
        x ^= scratch.bitwise_and_((1 << (32 - shift)) - 1)
        if factor is not None:
            x *= factor
    return x


def _key(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> 1)
