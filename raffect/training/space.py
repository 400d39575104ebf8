"""A sweep's space: axes as text become recipes, the same list every time, so that a sweep can go on after a stop."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raffect.errors import require
from raffect.recipe import NAMES, PLAIN_ERM, Recipe, digest, expand, unknown_name, with_settings

_SAMPLES = 3
_DISTRIBUTION = re.compile(r"(uniform|loguniform)\(([^,]+),([^,]+)\)")
_MOST_VALUES = 10_000


@dataclass(frozen=True)
class Distribution:
    """``uniform`` or ``loguniform`` between two numbers."""

    kind: str
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """One value."""
        return float(
            rng.uniform(self.low, self.high)
            if self.kind == "uniform"
            else math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        )


def read_space(axes: Sequence[str]) -> dict[str, list[Any] | Distribution]:
    """Values of each axis, by dotted name.

    Args:
        axes: ``loss.alpha=0.1,0.3``, ``loss.alpha=0.1:1:0.1`` (both ends), ``optim.lr=loguniform(1e-4,1e-2)``.

    Raises:
        RaffectError: If a name is unknown or an axis makes no sense.
    """
    space: dict[str, list[Any] | Distribution] = {}
    for axis in axes:
        name, equals, text = (part.strip() for part in axis.partition("="))
        require(
            bool(equals and text),
            f"--space {axis}: expected NAME=V1,V2 or NAME=FROM:TO:STEP, such as loss.alpha=0.1:1:0.1",
        )
        require(name in NAMES, f"--space {axis}: {unknown_name(name, NAMES)}")
        require(name != "task", f"--space {axis}: a sweep has one task; run two sweeps")
        require(name not in space, f"--space {axis}: {name} is there twice")
        space[name] = _read_values(axis, text)
    return space


def list_recipes(base: Recipe, axes: Sequence[str], samples: int) -> list[Recipe]:
    """Every recipe of a space, without doubles: the grid, for each random draw of the distributions.

    Args:
        base: What the axes do not set; its seed decides the draws.
        axes: As text.
        samples: Draws of the distributions.

    Raises:
        RaffectError: If a value is out of range, or draws are asked for without a distribution and the other way round.
    """
    space = read_space(axes)
    random = {name: values for name, values in space.items() if isinstance(values, Distribution)}
    grid = {name: values for name, values in space.items() if not isinstance(values, Distribution)}
    require(
        bool(random) == bool(samples),
        f"--samples {samples}: {'how many draws of ' + ', '.join(random) + '?' if random else 'no axis of --space is a distribution'}",
    )
    rng = np.random.default_rng([base.seed, _SAMPLES])
    draws = [
        {name: values.draw(rng) for name, values in random.items()} for _ in range(samples)
    ] or [{}]
    recipes = [recipe for draw in draws for recipe in expand(with_settings(base, draw), grid)]
    return list({digest(recipe): recipe for recipe in recipes}.values())


def add_baseline(recipes: list[Recipe]) -> list[Recipe]:
    """`PLAIN_ERM` with every seed of a sweep, behind it unless there already."""
    first = recipes[0]
    seeds = sorted({recipe.seed for recipe in recipes})
    erm = [with_settings(first, {**PLAIN_ERM, "seed": seed}) for seed in seeds]
    return list({digest(recipe): recipe for recipe in [*recipes, *erm]}.values())


def _read_values(axis: str, text: str) -> list[Any] | Distribution:
    if match := _DISTRIBUTION.fullmatch(text):
        low, high = (_number(axis, part) for part in match.groups()[1:])
        require(
            low < high and (match[1] == "uniform" or low > 0),
            f"--space {axis}: expected a range from low to high{', above 0' if match[1] == 'loguniform' else ''}",
        )
        return Distribution(match[1], low, high)
    parts = text.split(":")
    if len(parts) in (2, 3):
        low, high, step = (*(_number(axis, part) for part in parts), 1)[:3]
        whole = isinstance(low, int) and isinstance(high, int)
        require(
            len(parts) == 3 or whole,
            f"--space {axis}: FROM:TO without STEP is for whole numbers; expected a step, such as {parts[0]}:{parts[1]}:0.1",
        )
        require(
            step > 0 and low <= high,
            f"--space {axis}: expected FROM:TO:STEP with FROM <= TO and STEP > 0",
        )
        count = math.floor((high - low) / step + 1e-9) + 1
        require(count <= _MOST_VALUES, f"--space {axis}: {count} values are too many")
        return [
            round(low + k * step, 12) if isinstance(low + k * step, float) else low + k * step
            for k in range(count)
        ]
    return [_value(part.strip()) for part in text.split(",")]


def _number(axis: str, text: str) -> int | float:
    value = _value(text.strip())
    require(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
        f"--space {axis}: {text.strip()!r} is not a number",
    )
    return value


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
