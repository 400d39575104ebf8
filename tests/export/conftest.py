"""Runs and an encoder to export."""

import pytest

from raffect.bank.format import Identity
from raffect.config import EncoderConfig
from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.encoders.tower import load_encoder
from raffect.recipe import HeadConfig, Recipe
from tests.helpers.heads import make_head

PROBE = Recipe(task="expr", head=HeadConfig(depth=0, normalise="l2"))


@pytest.fixture
def runs(tmp_path):
    """Runs of three tasks; one of EXPR is a linear probe that divides features by their norm."""
    root = tmp_path / "runs"
    for place in range(2):
        make_head(root / "expr" / "weights" / f"h{place}" / "last", EXPR, seed=place)
    make_head(root / "probe" / "weights" / "h" / "last", EXPR, recipe=PROBE, seed=2)
    make_head(root / "au" / "weights" / "h" / "last", AU, seed=4)
    make_head(root / "va" / "weights" / "h" / "last", VA, seed=5)
    return tuple(root / name for name in ("expr", "probe", "au", "va"))


@pytest.fixture(scope="session")
def embedded() -> Identity:
    return load_encoder(EncoderConfig(model="raffect-faces"), "cpu").identity
