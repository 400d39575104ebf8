"""Small MLPs moved from their start, and a pass through them."""

import pytest
import torch

from raffect.heads.head import MlpSpec
from raffect.recipe import HeadConfig
from tests.helpers.small_heads import (
    DIM,
)

SHAPES = [
    MlpSpec(DIM, 16, 3, 8),
    MlpSpec(DIM, 16, 1, 8, "l2"),
    MlpSpec(DIM, 0, 0, 8),
    MlpSpec(DIM, 0, 0, 8, "l2"),
]
EACH_SHAPE = pytest.mark.parametrize("spec", SHAPES, ids=str)


def make_heads(spec, seeds=(0, 1, 2), dtype=torch.float64):
    """Heads moved from their start, so that biases, gains and buffers are not 0 or 1."""
    inits = ["he", "torch"]
    configs = [HeadConfig(init=inits[seed % 2]) for seed in seeds]
    rows = [spec.initial_row(seed, config) for seed, config in zip(seeds, configs, strict=True)]
    noise = [torch.randn(spec.num_weights, generator=torch.manual_seed(seed)) for seed in seeds]
    rows = torch.stack([row + 0.1 * part for row, part in zip(rows, noise, strict=True)])
    return spec.build(rows.to(dtype))


def make_pass(spec, num_heads=3, size=9, dtype=torch.float64, seed=5):
    """Samples, dropout's factors, and a derivative by the outputs."""
    torch.manual_seed(seed)
    x = torch.randn(num_heads, size, spec.dim, dtype=dtype)
    x[:, 0] = 0  # a feature that l2 cannot scale
    noise = (torch.rand(num_heads, size, spec.num_noise) > 0.4).to(dtype) / 0.6
    upstream = torch.randn(num_heads, size, spec.outputs, dtype=dtype)
    return x, noise, upstream
