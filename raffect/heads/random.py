"""Everything random in training on resident samples, as a pure function of (seed, epoch, step).

No state has to be saved or sent: heads of one seed see the same samples and the same noise, in any
batch of heads, on any number of workers, after any stop.

Shape letters: P heads, B samples of this worker's part of a batch, K dropout's factors of a sample,
U uniform numbers of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_WEIGHTS, _ORDER, _DROPOUT, _UNIFORM = 1, 2, 3, 4
"""Independent streams of one seed."""
_GOLDEN = -1640531527  # 2^32 / golden ratio, as int32


def weights_generator(seed: int) -> torch.Generator:
    """Generator of a head's initial weights, on the CPU so that every device has the same."""
    return torch.Generator().manual_seed(_key(seed, _WEIGHTS))


def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Order of the samples in an epoch: a permutation of ``range(num_samples)``, int64."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(num_samples)


def dropout_key(seed: int) -> int:
    """A head's key for the bits of dropout, an int32."""
    return int(np.int32(np.uint32(_key(seed, _DROPOUT) & 0xFFFFFFFF)))


def uniform_key(seed: int) -> int:
    """A head's key for the bits of uniform numbers, an int32."""
    return int(np.int32(np.uint32(_key(seed, _UNIFORM) & 0xFFFFFFFF)))


def random_bits(
    key_P: Tensor,
    step: Tensor,
    position_N: Tensor,
    out: Tensor,
    scratch: Tensor,
) -> Tensor:
    """Uniform bits from counters: one hash of (head, step, position), without a state.

    Args:
        key_P: `dropout_key` or `uniform_key` of each head, int32, shape (P,).
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


class Noise:
    """All noise of every step: factors of dropout and, behind them, uniform numbers in [0, 1).

    It is the same for heads of one seed, up to their rate of dropout.

    Args:
        seeds: One a head.
        rates: Share of units that each head drops.
        independent: Whether a head takes other noise in SAM's second pass.
        shape: (B, K, U).
        rank: Of this worker: its samples come after those of lower ranks.
        device: Where the noise is.
        dtype: Its type.

    Attributes:
        active: Whether there is any noise.
        independent: Whether any head has other noise in SAM's second pass.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        rates: Sequence[float],
        independent: Sequence[bool],
        shape: tuple[int, int, int],
        rank: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        size, num_factors, num_uniform = shape
        drops, has_uniform = num_factors > 0 and any(rates), num_uniform > 0
        self.active = drops or has_uniform
        # Other noise of a head that has none is no reason to draw again.
        pairs = zip(independent, rates, strict=True)
        both = [own and (has_uniform or rate > 0) for own, rate in pairs]
        self.independent = self.active and any(both)

        def integers(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        # What each kind of noise is drawn from; nothing where a head has none of it.
        self._keys = integers([dropout_key(seed) for seed in seeds])
        uniform_keys = integers([uniform_key(seed) for seed in seeds])
        self._dropout = _Stream(self._keys, rank, size, num_factors if drops else 0)
        self._uniform = _Stream(uniform_keys, rank, size, num_uniform)
        self._threshold = integers([keep_threshold(rate) for rate in rates])[:, None, None]
        factors = [[[1 / (1 - rate)]] for rate in rates]
        self._factor = torch.tensor(factors, dtype=dtype, device=device)
        self._independent = integers([int(own) for own in independent])
        # Memory that every step writes again; factors of heads that drop nothing stay 1.
        columns = num_factors + num_uniform if self.active else 0
        self._noise = torch.ones(len(seeds), size, columns, dtype=dtype, device=device)
        kept = (len(seeds), size, self._dropout.count)
        self._kept = torch.empty(kept, dtype=torch.bool, device=device)
        self._factors, self._numbers = self._noise.split((columns - num_uniform, num_uniform), 2)

    @property
    def dropout(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `draw` makes factors of, for kernels that do so themselves.

        Returns:
            Of each head its key, the least bits that are kept, the factor of what is kept, and 1
            where SAM's second pass has noise of its own: each of P numbers.
        """
        return self._keys, self._threshold, self._factor, self._independent

    def draw(self, step: Tensor, second: bool) -> Tensor | None:
        """Noise of a step, shape (P, B, K + U), or None where heads have none.

        Factors are 0 or 1 / (1 - rate). Uniform numbers are multiples of 2^-24, which float32 holds
        exactly. The next draw overwrites them.
        """
        if not self.active:
            return None
        # Even numbers for first passes, odd ones for second passes with noise of their own.
        number = 2 * step + (self._independent if second else 0)
        if self._dropout.count:
            torch.ge(self._dropout.draw(number), self._threshold, out=self._kept)
            torch.mul(self._kept, self._factor, out=self._factors)
        if self._uniform.count:
            bits = self._uniform.draw(number)
            bits.bitwise_right_shift_(8).bitwise_and_(2**24 - 1)
            torch.mul(bits, 2.0**-24, out=self._numbers)
        return self._noise


class _Stream:
    """Random bits of every head in every step, from one key a head.

    Args:
        key_P: See `random_bits`.
        rank: Of this worker.
        size: B.
        count: Numbers of a sample.
    """

    def __init__(self, key_P: Tensor, rank: int, size: int, count: int) -> None:
        self.count, self._key, self._shape = count, key_P, (len(key_P), size, count)
        # One number each, by which its bits are drawn: those of the global batch.
        own = size * count
        positions = (rank * own, (rank + 1) * own)
        self._position = torch.arange(*positions, dtype=torch.int32, device=key_P.device)
        # Memory that every step writes again.
        self._bits, self._scratch = (key_P.new_empty(len(key_P), own) for _ in range(2))

    def draw(self, number: Tensor) -> Tensor:
        """Bits of a pass, int32, shape (P, B, count), which the next draw overwrites."""
        bits = random_bits(self._key, number, self._position, self._bits, self._scratch)
        return bits.view(self._shape)


def _mix_(x: Tensor, scratch: Tensor) -> Tensor:
    """Mix the bits of int32 values in place; see `random_bits` for the source.

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
