"""What a head predicts, as data.

A task is kept in the metadata of its label table, and copied from there into every run and head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from annotated_types import Gt, Len, Lt, MinLen

from raffect.storage.records import Record

SPLITS = ("train", "validation")
MOST_OUTPUTS = 65_536

_REMEDY = "make the label table again with `raffect prepare`"

Name = Annotated[str, MinLen(1)]
Number = Annotated[int | float, Gt(-math.inf), Lt(math.inf)]
"""Neither NaN nor infinity."""


@dataclass(frozen=True, kw_only=True)
class Task(Record):
    """One task.

    Attributes:
        name: Names its label table and stands before its scores, such as ``"expr"``.
        kind: How outputs are read and scored: one of ``raffect.metrics.task_kinds.KINDS``.
        outputs: Names of a head's outputs in order: classes, labels or values.
        columns: Value columns of the label table: one with the number of the class (multiclass),
            else one an output.
        unlabelled: Value that marks a missing label; None where an empty cell or NaN marks it.
        descriptions: What each output means, in the order of ``outputs``; may be empty.
        limits: Lowest and highest possible value (regression); None for any.

    Raises:
        ValueError: If a name occurs twice, descriptions are not as many as outputs, or limits are
            out of order.
    """

    name: Name
    kind: Name
    outputs: Annotated[tuple[Name, ...], Len(1, MOST_OUTPUTS)]
    columns: Annotated[tuple[Name, ...], Len(1, MOST_OUTPUTS)]
    unlabelled: Number | None = -1
    descriptions: tuple[Name, ...] = ()
    limits: tuple[Number, Number] | None = None

    def is_labelled(self, values: np.ndarray) -> np.ndarray:
        """Which values are labels: bool, of the shape of ``values``."""
        known = np.isfinite(values)
        return known if self.unlabelled is None else known & (values != self.unlabelled)

    def describe(self, output: str) -> str:
        """``AU1 inner brows raised``: an output with its meaning, where that is known."""
        meanings = dict(zip(self.outputs, self.descriptions, strict=False))
        return f"{output} {meanings[output]}" if meanings.get(output) else output

    def __post_init__(self) -> None:
        for field in ("outputs", "columns"):
            names = getattr(self, field)
            if len(set(names)) != len(names):
                raise ValueError(f"{field} has a name twice: {', '.join(names)[:60]}")
        if len(self.descriptions) not in (0, len(self.outputs)):
            raise ValueError(
                f"{len(self.descriptions)} descriptions of {len(self.outputs)} outputs"
            )
        if self.limits is not None and not self.limits[0] < self.limits[1]:
            raise ValueError(f"limits {self.limits}: expected a lowest and a higher number")

    @classmethod
    def from_json(
        cls, content: bytes | str | dict[str, Any], where: Path | str, remedy: str = _REMEDY
    ) -> Self:
        """The task that JSON describes; see `Record`, with a remedy of its own."""
        return super().from_json(content, f"{where}, its task", remedy)
