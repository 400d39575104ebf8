"""Copies of data sets for tests that damage them."""

import pytest

from raffect.datasets.synthetic.layouts import LAYOUTS
from tests.helpers.layouts import write_tree


def copy_of_layout(request, tmp_path):
    """A copy of the layout that a test names with ``@of(...)``: its plan and its root."""
    name = request.getfixturevalue("name")
    layout = LAYOUTS[name](60, 2)
    return layout, write_tree(tmp_path / name, layout)


def of(name):
    """Give a test the copy of a layout."""
    return pytest.mark.parametrize("name", [name])


def kinds(report):
    """Kinds of the problems that a report has."""
    return {problem.kind for problem in report.problems}
