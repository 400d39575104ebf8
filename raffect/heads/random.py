"""Everything random in training on resident samples, as a pure function of (seed, epoch, step).

No state has to be saved or sent: heads of one seed see the same samples and the same dropout masks,
in any batch of heads, on any number of workers, after any stop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_WEIGHTS, _ORDER, _DROPOUT = 1, 2, 3
"""Independent streams of one seed."""
_GOLDEN = -1640531527  # 2^32 / golden ratio, as int32


def weights_generator(seed: int) -> torch.Generator:
    """Generator of a head's initial weights, on the CPU so that every device has the same."""
    return torch.Generator().manual_seed(_key(seed, _WEIGHTS))


def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Order of the samples in an epoch: a permutation of ``range(num_samples)``, int64."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(num_samples)


def dropout_key(seed: int) -> int:
    """A head's key for `dropout_bits`, an int32."""
    return int(np.int32(np.uint32(_key(seed, _DROPOUT) & 0xFFFFFFFF)))


def dropout_bits(
    key_P: Tensor,
    step: Tensor,
    position_N: Tensor,
    out: Tensor,
    scratch: Tensor,
) -> Tensor:
    """Uniform bits from counters: one hash of (head, step, position), without a state.

    Args:
        key_P: `dropout_key` of each head, int32, shape (P,).
        step: Number of the pass, int32, a scalar or shape (P,).
        position_N: Position within the global batch, int32, shape (N,).
        out: Where to write, int32, shape (P, N); fresh memory for every step would cost more than
            the hash.
        scratch: As ``out``.

    Returns:
        ``out``, uniform over all values of an int32.

    Source:
        The mixing function is lowbias32 (Wellons 2018), which changes each output bit with half a
        chance for each input bit.
    """
    # A key of this step, then a hash of it and each position.
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
    """Factors of every hidden unit in every step, the same for heads of one seed up to their rate.

    Args:
        seeds: One a head.
        rates: Share that each head drops.
        independent: Whether a head takes another mask in SAM's second pass.
        shape: (B, K): samples of this worker's part of a batch, and factors of a sample.
        rank: Of this worker: its samples come after those of lower ranks.
        device: Where the factors are.
        dtype: Their type.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        rates: Sequence[float],
        independent: Sequence[bool],
        shape: tuple[int, int],
        rank: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._shape = (len(seeds), *shape)
        size = shape[0] * shape[1]
        self.active = size > 0 and any(rates)
        both = [bool(own and rate) for own, rate in zip(independent, rates, strict=True)]
        self.independent = self.active and any(both)

        def integers(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        # One number a factor, by which its bits are drawn: those of the global batch.
        positions = (rank * size, (rank + 1) * size)
        self._position = torch.arange(*positions, dtype=torch.int32, device=device)
        self._key = integers([dropout_key(seed) for seed in seeds])
        self._threshold = integers([keep_threshold(rate) for rate in rates])[:, None]
        factors = [[1 / (1 - rate)] for rate in rates]
        self._factor = torch.tensor(factors, dtype=dtype, device=device)
        self._independent = integers([int(own) for own in independent])
        # Memory that every step writes again.
        rows = (len(seeds), size if self.active else 0)
        self._bits = torch.empty(rows, dtype=torch.int32, device=device)
        self._scratch = torch.empty_like(self._bits)
        self._kept = torch.empty(rows, dtype=torch.bool, device=device)
        self._scale = torch.empty(rows, dtype=dtype, device=device)

    def draw(self, step: Tensor, second: bool) -> Tensor | None:
        """Factors 0 or 1 / (1 - rate), shape (P, B, K); None where no head drops anything.

        The next draw overwrites them.
        """
        if not self.active:
            return None
        # Even numbers for first passes, odd ones for second passes with a mask of their own.
        number = 2 * step + (self._independent if second else 0)
        bits = dropout_bits(self._key, number, self._position, self._bits, self._scratch)
        torch.ge(bits, self._threshold, out=self._kept)
        return torch.mul(self._kept, self._factor, out=self._scale).view(self._shape)


def _mix_(x: Tensor, scratch: Tensor) -> Tensor:
    """Mix the bits of int32 values in place; see `dropout_bits` for the source.

    Shifts of int32 bring in copies of the sign, so they are masked; products wrap around.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, -2073254261), (16, None)):
        torch.bitwise_right_shift(x, shift, out=scratch)
        x ^= scratch.bitwise_and_((1 << (32 - shift)) - 1)
        if factor is not None:
            x *= factor
    return x


def _key(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> 1)
