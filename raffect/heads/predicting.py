"""What heads predict for samples that the device holds, as numpy arrays of limited precision.

Shape letters: P heads, N samples, C outputs.
"""

from __future__ import annotations

import numpy as np
import torch

from raffect.heads.head_batch import HeadBatch
from raffect.heads.loss_kind import LossKind
from raffect.heads.samples import Samples

_PREDICTIONS = 32_768
"""Features times heads that are predicted at once."""


@torch.no_grad()
def predict(kind: LossKind, heads: HeadBatch, samples: Samples) -> np.ndarray:
    """Probabilities, or values within the task's limits, of every head and sample.

    Returns:
        Shape (P, N, C): probabilities as float16, whose error is at most 0.00025; values, which
        may have any unit, as float32.
    """
    # Parts of a size that bounds memory, whatever the number of heads.
    run = heads.predictor(heads.rows, heads.buffers)
    chunk = max(1, _PREDICTIONS // (len(heads) * samples.features_per_sample))
    is_values = kind.task.kind == "regression"
    parts = []
    for start in range(0, len(samples), chunk):
        part = samples.part(slice(start, start + chunk)).samples().to(heads.rows)
        found = kind.probabilities(run(part))
        parts.append(found.to(torch.float32 if is_values else torch.float16).cpu().numpy())
    return np.concatenate(parts, 1)
