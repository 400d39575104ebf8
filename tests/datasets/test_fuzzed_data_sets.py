"""Copies of data sets that are damaged at random: refused, or read with right labels alone."""

import pytest

from raffect.datasets.synthetic.layouts import LAYOUTS
from tests.helpers.layouts import fuzz


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fuzzed_tree_is_refused_or_read_with_every_undamaged_label(layout, tmp_path):
    kept = [fuzz(layout, seed, tmp_path / str(seed)) for seed in range(4)]
    assert any(kept)


@pytest.mark.cluster
@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_fuzzed_trees_are_refused_or_read_with_every_undamaged_label(layout, tmp_path):
    kept = [fuzz(layout, seed, tmp_path / str(seed)) for seed in range(20)]
    read = [count for count in kept if count is not None]
    assert len(read) >= 5
    assert sum(count > 0 for count in read) >= 4
