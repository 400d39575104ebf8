"""Small temporal heads of every kind, windows with gaps, and noise."""

import math

import pytest
import torch

from raffect.heads.temporal import TemporalSpec
from raffect.recipe import HeadConfig

DIM, WINDOW = 12, 6


def make_spec(**changes):
    values = {"width": 8, "layers": 2, "attention_heads": 2, "window": WINDOW, "outputs": DIM}
    return TemporalSpec(**{"dim": DIM, "compares": True, **values, **changes})


SPECS = [
    make_spec(),
    make_spec(pool="centre"),
    make_spec(window=1),
    make_spec(compares=False, outputs=8),
    make_spec(snippets=3),
    make_spec(snippets=3, order=True),
    make_spec(snippets=2, order=True, compares=False, outputs=5),
]
EACH_SPEC = pytest.mark.parametrize("spec", SPECS, ids=str)


def make_row(spec, seed=0, moved=0.1, dtype=torch.float64):
    """A head moved from its start, so that no weight is 0 or 1."""
    noise = torch.randn(spec.num_weights, generator=torch.manual_seed(seed))
    return (spec.initial_row(seed, HeadConfig()) + moved * noise).to(dtype)


def make_module(spec, **options):
    row = make_row(spec, **options)
    return spec.build_module(spec.build(row[None]).state(0))


def make_windows(spec, size=9, seed=5, dtype=torch.float64):
    """Windows of which some rows are not there, and one of which none is."""
    torch.manual_seed(seed)
    x = torch.randn(size, spec.window, spec.dim, dtype=dtype)
    if spec.window == 1:
        return x[:, 0]
    x[1, spec.window // 2] = math.nan
    x[2, 1:] = math.nan
    x[3] = math.nan
    x[4, 0] = 0  # a feature that has no direction
    return x


def make_noise(spec, size=9, seed=7, dtype=torch.float64):
    torch.manual_seed(seed)
    factors = (torch.rand(size, spec.num_noise) > 0.4).to(dtype) / 0.6
    return torch.cat([factors, torch.rand(size, spec.num_uniform, dtype=dtype)], 1)
