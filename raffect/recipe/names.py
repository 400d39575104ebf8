"""Settings by dotted name: flags, keys of a recipe, axes of a sweep and columns of its results.

``loss.alpha`` is the flag ``--loss.alpha 0.2``. A recipe's digest, and so the name of a head, is
made of the names and values of the first run folders.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from raffect.errors import did_you_mean, require
from raffect.recipe.settings import Recipe, flatten

R = TypeVar("R", bound=Recipe)

DEFAULTS = flatten(Recipe())
"""Every setting's default by dotted name."""
NAMES = tuple(DEFAULTS)
"""All dotted names."""
PLAIN_ERM: dict[str, Any] = {
    "loss.alpha": 1.0,
    "sam.rho": 0.0,
    "loss.weighting": "none",
    "loss.logit_adjustment": 0.0,
}
"""Empirical risk minimisation: the mean of the losses as they are, without CVaR, SAM, class weights
or logit adjustment."""

# The first run folders had other words. A recipe's digest, and so a head's name, is made of those.
_FIRST_NAMES = {
    "loss.tail_over": "loss.granularity",
    "sam.independent_dropout": "sam.redraw_dropout",
    "heads_per_trial": "members_per_trial",
}
"""Names of settings in the first run folders, by today's name."""
_FIRST_VALUES: dict[tuple[str, Any], str] = {
    ("loss.tail_over", "units"): "element",
    ("loss.tail_over", "frames"): "sample",
    ("select", "cv"): "folds",
}
"""Values of settings in the first run folders, by today's name and value."""
_LATER = (
    "loss.name",
    "loss.soft_targets",
    "loss.order",
    "loss.leave_out",
    "head.kind",
    "head.layers",
    "head.attention_heads",
    "head.window",
    "head.stride",
    "head.pool",
    "head.snippets",
    "head.tokens",
    "head.descriptors",
    "head.normalise",
    "optim.momentum",
    "text.prompts",
    "text.ensemble",
    "text.other",
    "text.against",
    "text.head",
)
"""Settings younger than the first run folders: at their default they leave the digest as it was."""


def with_settings(recipe: R, settings: Mapping[str, Any]) -> R:
    """A copy of a recipe with other values.

    Args:
        recipe: The recipe to start from.
        settings: Values by dotted name, of the type of the default (an int does for a float).

    Raises:
        RaffectError: If a name is unknown, a type wrong or a value out of range.
    """
    # Values by group; those of the recipe itself are in the group without a name
    nested: dict[str, dict[str, Any]] = {}
    flat = flatten(recipe)
    for name, value in settings.items():
        require(name in NAMES, unknown_name(name, NAMES))
        group, _, key = name.rpartition(".")
        nested.setdefault(group, {})[key] = as_type_of(name, flat[name], value)
    top = nested.pop("", {})

    # Copies, of which each checks its own values
    groups = {
        group: dataclasses.replace(getattr(recipe, group), **values)
        for group, values in nested.items()
    }
    return dataclasses.replace(recipe, **top, **groups)


def plain(recipe: Recipe) -> Recipe:
    """The recipe alone of a configuration that extends one."""
    return Recipe(**{item.name: getattr(recipe, item.name) for item in dataclasses.fields(Recipe)})


def digest(recipe: Recipe) -> str:
    """Twelve hexadecimal digits that name a recipe: equal settings have equal digests."""
    first = {}
    for name, given in flatten(recipe).items():
        value = as_type_of(name, DEFAULTS[name], given)  # 1 is 1.0
        if name not in _LATER or value != DEFAULTS[name]:
            first[_FIRST_NAMES.get(name, name)] = _FIRST_VALUES.get((name, value), value)
    return hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()[:12]


def in_todays_words(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as the first run folders (November 2026) have them, by today's names and values."""
    names = {old: new for new, old in _FIRST_NAMES.items()}
    values = {(name, old): new for (name, new), old in _FIRST_VALUES.items()}

    def translate(name: str, value: Any) -> Any:
        if name == "space" and are_texts(value):
            return [translate_axis(axis) for axis in value]
        return values.get((name, value), value) if isinstance(value, str) else value

    def translate_axis(axis: str) -> str:
        old, equals, text = axis.partition("=")
        name = names.get(old.strip(), old.strip())
        parts = [values.get((name, part.strip()), part) for part in text.split(",")]
        return f"{name}{equals}{','.join(parts)}"

    renamed = {names.get(name, name): value for name, value in settings.items()}
    return {name: translate(name, value) for name, value in renamed.items()}


def are_texts(value: Any) -> bool:
    """Whether a value of a TOML file is a list of texts."""
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def unknown_name(name: str, known: Sequence[str]) -> str:
    """The error message for a setting that does not exist."""
    hint = did_you_mean(name, known, cutoff=0.5)
    return f"unknown setting {shorten(name)}{hint}; all are: {', '.join(known)}"


def expand(recipe: Recipe, space: Mapping[str, Sequence[Any]]) -> list[Recipe]:
    """All recipes of a grid, the last axis fastest."""
    return [
        with_settings(recipe, dict(zip(space, values, strict=True)))
        for values in itertools.product(*space.values())
    ]


# Types and choices of values


def as_type_of(name: str, default: Any, value: Any) -> Any:
    """A value as the type of its default.

    Raises:
        RaffectError: If it is of another type, or not among the choices of the setting.
    """
    # A bool is an int to Python, but not to a recipe.
    is_sane = type(value) is not int or abs(value) < _LARGE
    if isinstance(default, float) and type(value) is int and is_sane:
        return float(value)
    expected, is_kind = _KINDS[type(default)], type(value) is type(default)
    require(is_kind and is_sane, f"{name} {shorten(value)}: expected {expected}")
    choices = _CHOICES.get(name)
    require(
        choices is None or value in choices,
        f"{name} {shorten(value)}: expected one of {', '.join(choices or ())}",
    )
    return value


def shorten(value: Any) -> str:
    """A value for an error."""
    try:
        shown = repr(value)
    except ValueError:  # Python prints no whole number of thousands of digits
        shown = "of thousands of digits"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]} ..."


def _choices(kind: type, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """Values that settings may take, by dotted name, read from their ``Literal`` types."""
    found: dict[str, tuple[str, ...]] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found |= _choices(typing.cast(type, hint), f"{name}.")
        elif typing.get_origin(hint) is Literal:
            found[f"{prefix}{name}"] = typing.get_args(hint)
    return found


_LARGE = 10**300
"""Whole numbers from here on are taken for no number, before they are too large for a float."""
_SHOWN = 60
"""Most characters of a value that an error shows."""
_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_CHOICES = _choices(Recipe)
