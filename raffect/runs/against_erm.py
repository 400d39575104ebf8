"""Settings compared with plain ERM on the same videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import numpy as np

from raffect.metrics.intervals import Interval, difference_interval, plain_interval
from raffect.metrics.task_kinds import Kind
from raffect.recipe import PLAIN_ERM
from raffect.runs.spread import HasRecipe, is_erm, settings_key, signed
from raffect.storage.records import Record

T = TypeVar("T", bound=HasRecipe)


@dataclass(frozen=True, kw_only=True)
class Difference(Record):
    """How much higher some heads score than plain ERM on the same videos.

    Attributes:
        mean: Difference of the mean headline scores.
        interval_95: Of it, paired by video; None as for `raffect.runs.spread.Spread`.
    """

    mean: float
    interval_95: Interval | None

    @classmethod
    def of(cls, mean: float, interval: Interval | None) -> Self:
        """Of numpy's numbers."""
        return cls(mean=float(mean), interval_95=plain_interval(interval))

    def text(self) -> str:
        """``+.012 [-.003, +.027]``."""
        ends = f" [{', '.join(map(signed, self.interval_95))}]" if self.interval_95 else ""
        return f"{signed(self.mean)}{ends}"


def difference_of(
    first: Sequence[np.ndarray | None], second: Sequence[np.ndarray | None], kind: Kind
) -> Difference | None:
    """Difference of two groups of heads.

    Args:
        first: Statistics by group of each head, shape (groups, A, B).
        second: Likewise, of the heads to compare with, on the same groups.
        kind: Of the task.

    Returns:
        None without the statistics of all of them.
    """
    if any(found is None for found in (*first, *second)):
        return None
    return Difference.of(*difference_interval(np.array(first), np.array(second), kind))


class Baselines(Generic[T]):
    """The plain ERM beside each group of heads.

    Args:
        groups: Of `raffect.runs.spread.group_by_settings`.
    """

    def __init__(self, groups: Sequence[Sequence[T]]) -> None:
        plain = [group for group in groups if is_erm(group[0].recipe)]
        self._by_others = {_other_settings(group[0]): group for group in plain}
        self._only = plain[0] if len(plain) == 1 else None

    def beside(self, group: Sequence[T]) -> Sequence[T] | None:
        """Plain ERM with the same other settings, else the only one.

        Returns:
            None without one, and for ERM itself.
        """
        if is_erm(group[0].recipe):
            return None
        return self._by_others.get(_other_settings(group[0]), self._only)


def _other_settings(item: HasRecipe) -> tuple:
    """Settings that plain ERM leaves open."""
    return tuple(pair for pair in settings_key(item) if pair[0] not in PLAIN_ERM)
