"""Data that all tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.learning import make_data


@pytest.fixture(scope="package")
def data(tmp_path_factory) -> Path:
    """A bank of 12 videos and the label tables of EXPR and AU."""
    return make_data(tmp_path_factory.mktemp("learn"))
