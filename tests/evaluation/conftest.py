"""A bank and heads that tests of prediction share."""

import numpy as np
import pytest

from raffect.bank.format import Bank
from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from tests.helpers.banks import make_manifest
from tests.helpers.heads import make_head
from tests.helpers.predicted import FIRST, PROBE, THEN, fill


@pytest.fixture
def bank(tmp_path):
    """A bank of two generations, whose videos begin in the first and go on in the second."""
    rng, path = np.random.default_rng(0), tmp_path / "bank"
    features = fill(Bank(path), make_manifest(FIRST), rng)
    features |= fill(Bank(path), make_manifest(THEN), rng)
    return path, dict(sorted(features.items()))


@pytest.fixture
def heads(tmp_path):
    """Runs of three tasks; heads of EXPR are of two shapes."""
    run, other = tmp_path / "runs" / "expr", tmp_path / "runs" / "other"
    return {
        "expr": [
            *(make_head(run / "weights" / f"h{k}" / "last", EXPR, seed=k) for k in range(3)),
            make_head(other / "weights" / "probe" / "last", EXPR, recipe=PROBE, seed=7),
        ],
        "au": [make_head(tmp_path / "runs" / "au" / "weights" / "h" / "last", AU, seed=4)],
        "va": [make_head(tmp_path / "one head", VA, seed=5)],
    }
