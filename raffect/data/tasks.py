"""What a head predicts, as data: a task travels in the metadata of its label table, and from there into every run and head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raffect.errors import RaffectError

SPLITS = ("train", "validation")
MOST_OUTPUTS = 65_536


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        name: Names its label table and stands before its scores, such as ``"expr"``.
        kind: How outputs are read and scored: one of ``raffect.metrics.kinds.KINDS``.
        outputs: Names of a head's outputs in order: classes, labels or values.
        columns: Value columns of the label table: one with the number of the class (multiclass), else one an output.
        unlabelled: Value that marks a missing label; None where an empty cell or NaN does.
        descriptions: What each output means, in the order of ``outputs``; may be empty.
        limits: Lowest and highest value there is (regression); None for any.
    """

    name: str
    kind: str
    outputs: tuple[str, ...]
    columns: tuple[str, ...]
    unlabelled: float | None = -1
    descriptions: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None

    def is_labelled(self, values: np.ndarray) -> np.ndarray:
        """Which values are labels: bool, of the shape of ``values``."""
        known = np.isfinite(values)
        return known if self.unlabelled is None else known & (values != self.unlabelled)

    def describe(self, output: str) -> str:
        """``AU1 inner brows raised``: an output with what it means, where that is known."""
        meanings = dict(zip(self.outputs, self.descriptions, strict=False))
        return f"{output} {meanings[output]}" if meanings.get(output) else output

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, of which `from_json` makes an equal task."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any, where: str) -> Task:
        """The task that a JSON value describes.

        Args:
            content: Of `to_json`.
            where: The file it was read from, for errors.

        Raises:
            RaffectError: If it is not a task.
        """
        try:
            return cls._read(content)
        except (ValueError, TypeError, KeyError) as error:
            raise RaffectError(f"{where}: its task is not one that raffect knows ({str(error)[:120]}); make the label table again with `raffect prepare`") from error

    @classmethod
    def _read(cls, content: Mapping[str, Any]) -> Task:
        expected = {"name", "kind", "outputs", "columns", "unlabelled", "descriptions", "limits"}
        if not isinstance(content, dict) or content.keys() != expected:
            raise ValueError(f"expected {', '.join(sorted(expected))}")
        for name in ("outputs", "columns", "descriptions"):
            if not isinstance(content[name], list | tuple) or not all(isinstance(item, str) and item for item in content[name]):
                raise ValueError(f"{name} has to be a list of names")
            if name != "descriptions" and len(set(content[name])) != len(content[name]):
                raise ValueError(f"{name} has a name twice")
        if not 1 <= len(content["outputs"]) <= MOST_OUTPUTS or not content["columns"] or len(content["descriptions"]) not in (0, len(content["outputs"])):
            raise ValueError("outputs, columns or descriptions are empty, or not as many")
        unlabelled, limits = content["unlabelled"], content["limits"]
        if unlabelled is not None and not _is_number(unlabelled):
            raise ValueError(f"unlabelled {unlabelled!r} is not a number")
        if limits is not None and not (isinstance(limits, list | tuple) and len(limits) == 2 and all(map(_is_number, limits)) and limits[0] < limits[1]):
            raise ValueError(f"limits {limits!r} are not a lowest and a highest number")
        if not all(isinstance(content[name], str) and content[name] for name in ("name", "kind")):
            raise ValueError("name and kind have to be texts")
        texts = {name: tuple(content[name]) for name in ("outputs", "columns", "descriptions")}
        return cls(name=content["name"], kind=content["kind"], unlabelled=unlabelled, limits=None if limits is None else (limits[0], limits[1]), **texts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
