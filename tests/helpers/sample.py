"""Of a long test's many values CI tries some; a release tries all."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def sampled(values: Iterable[Any], in_ci: Container[Any]) -> list[Any]:
    """Parameters of a test: those that are not ``in_ci`` are marked as a release's."""
    return [value if value in in_ci else _of_a_release(value) for value in values]


def _of_a_release(value: Any) -> Any:
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=pytest.mark.release)
