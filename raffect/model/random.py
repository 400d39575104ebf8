"""Everything random in training, as a pure function of (seed, epoch, step): nothing to save, nothing to share out.

Members of one seed see the same frames and the same dropout masks, in any pack, on any number of workers, after any stop.
"""

from __future__ import annotations

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


def dropout_bits(key_P: Tensor, step: Tensor, position_N: Tensor) -> Tensor:
    """Uniform bits from counters: one hash of (member, step, position), without a state.

    Args:
        key_P: `dropout_key` of each member, int32, shape (P,).
        step: Number of the pass, int32, a scalar or shape (P,).
        position_N: Position within the global batch, int32, shape (N,).

    Returns:
        int32 of shape (P, N), uniform over all its values.

    Source:
        The mixing function is lowbias32 (Wellons 2018), which changes each output bit with half a chance for each input bit.
    """
    key_P = _mix(_mix(key_P) + step * _GOLDEN)
    return _mix((position_N * _GOLDEN) ^ key_P[:, None])


def keep_threshold(dropout: float) -> int:
    """Bits at or above it are kept: a share of ``1 - dropout``."""
    return min(round(dropout * 2**32), 2**32 - 1) - 2**31


def _mix(x: Tensor) -> Tensor:
    # Shifts of int32 bring in copies of the sign, so they are masked; products wrap around.
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -2073254261
    return x ^ ((x >> 16) & 0xFFFF)


def _key(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> 1)
