"""A sweep's space: axes as text become recipes.

The list is the same every time, so that a sweep can go on after a stop.
"""

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
        axes: ``loss.alpha=0.1,0.3``, ``loss.alpha=0.1:1:0.1`` (both ends), or
            ``optim.lr=loguniform(1e-4,1e-2)``.

    Raises:
        RaffectError: If a name is unknown or an axis cannot be read.
    """
    space: dict[str, list[Any] | Distribution] = {}
    for axis in axes:
        # A name, once, and what is to the right of the first "="
        name, equals, text = (part.strip() for part in axis.partition("="))
        require(
            bool(equals and text),
            f"--space {axis}: expected NAME=V1,V2 or NAME=FROM:TO:STEP, "
            "such as loss.alpha=0.1:1:0.1",
        )
        require(name in NAMES, f"--space {axis}: {unknown_name(name, NAMES)}")
        require(
            not name.startswith("text."),
            f"--space {axis}: heads that are trained have no prompts; use `raffect zeroshot`",
        )
        require(name != "task", f"--space {axis}: a sweep has one task; run two sweeps")
        require(name not in space, f"--space {axis}: {name} is there twice")
        space[name] = _read_values(axis, text)
    return space


def list_recipes(base: Recipe, axes: Sequence[str], samples: int) -> list[Recipe]:
    """Every recipe of a space once: the whole grid for each random draw of the distributions.

    Args:
        base: What the axes do not set; its seed decides the draws.
        axes: As text.
        samples: Draws of the distributions.

    Raises:
        RaffectError: If a value is out of range, or if there are draws without a distribution or a
            distribution without draws.
    """
    # Axes of listed values and axes of distributions
    space = read_space(axes)
    random = {name: values for name, values in space.items() if isinstance(values, Distribution)}
    grid = {name: values for name, values in space.items() if not isinstance(values, Distribution)}
    how_many = f"how many draws of {', '.join(random)}?"
    fault = how_many if random else "no axis of --space is a distribution"
    require(bool(random) == bool(samples), f"--samples {samples}: {fault}")

    # The grid for each draw; without a distribution there is one draw, of nothing
    rng = np.random.default_rng([base.seed, _SAMPLES])
    draws: list[dict[str, Any]] = [{}]
    if samples > 0:
        draws = [{name: found.draw(rng) for name, found in random.items()} for _ in range(samples)]
    recipes = [recipe for draw in draws for recipe in expand(with_settings(base, draw), grid)]
    return list({digest(recipe): recipe for recipe in recipes}.values())


def add_baseline(recipes: list[Recipe]) -> list[Recipe]:
    """Recipes of a sweep, then `PLAIN_ERM` with each of its seeds unless it is among them."""
    first = recipes[0]
    seeds = sorted({recipe.seed for recipe in recipes})
    erm = [with_settings(first, {**PLAIN_ERM, "seed": seed}) for seed in seeds]
    return list({digest(recipe): recipe for recipe in [*recipes, *erm]}.values())


def _read_values(axis: str, text: str) -> list[Any] | Distribution:
    """What stands behind the ``=`` of an axis: a distribution, a range, or a list."""
    if match := _DISTRIBUTION.fullmatch(text):
        return _read_distribution(axis, *match.groups())
    parts = text.split(":")
    if len(parts) in (2, 3):
        return _read_range(axis, parts)
    return [_value(part.strip()) for part in text.split(",")]


def _read_distribution(axis: str, kind: str, low_text: str, high_text: str) -> Distribution:
    low, high = _number(axis, low_text), _number(axis, high_text)
    bound = ", above 0" if kind == "loguniform" else ""
    require(
        low < high and (kind == "uniform" or low > 0),
        f"--space {axis}: expected a range from low to high{bound}",
    )
    return Distribution(kind, low, high)


def _read_range(axis: str, parts: Sequence[str]) -> list[Any]:
    """Values of FROM:TO or FROM:TO:STEP, both ends included."""
    low, high, step = (*(_number(axis, part) for part in parts), 1)[:3]

    # Without a step both ends are whole numbers
    whole = isinstance(low, int) and isinstance(high, int)
    require(
        len(parts) == 3 or whole,
        f"--space {axis}: FROM:TO without STEP is for whole numbers; expected a step, "
        f"such as {parts[0]}:{parts[1]}:0.1",
    )
    require(
        step > 0 and low <= high,
        f"--space {axis}: expected FROM:TO:STEP with FROM <= TO and STEP > 0",
    )

    # The margin is for rounding errors, so that 0.1:1:0.1 has ten values
    count = math.floor((high - low) / step + 1e-9) + 1
    require(count <= _MOST_VALUES, f"--space {axis}: {count} values are too many")
    values = [low + k * step for k in range(count)]
    return [round(value, 12) if isinstance(value, float) else value for value in values]


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
