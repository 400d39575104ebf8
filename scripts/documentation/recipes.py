"""Reference of recipes: every setting, with its values in the recipes that ship with raffect."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raffect.flags import set_help
from raffect.recipe import RECIPES, read_recipe
from raffect.recipe.settings import Recipe
from scripts.documentation.flags import about_lines, flags_of, grouped

_TITLE = """\
# Recipes

A recipe is a TOML file of the settings below, or the name of one that ships with raffect: {names}.
`raffect train`, `raffect tune` and `raffect learn-prompts` take it as their first word; flags
override it: `--loss.alpha 0.5`. What each is for: [Training](training.md#recipes).
"""


def write_recipes(out: Path) -> None:
    """Write the page."""
    set_help()
    shipped = {file.stem: read_recipe(file) for file in sorted(RECIPES.glob("*.toml"))}
    lines = [_TITLE.format(names=", ".join(f"`{name}`" for name in shipped))]
    hints = typing.get_type_hints(Recipe)
    for group, flags in grouped(flags_of(Recipe)).items():
        about = about_lines(hints[group].__doc__) if group else []
        lines += [f"## {group or 'Training'}", "", *about]
        for flag in flags:
            setting = flag.name.removeprefix("--").replace("-", "_")
            lines += dataclasses.replace(flag, name=setting).lines()
            lines += [*values_line(setting, shipped), ""]
    out.write_text("\n".join(lines))


def values_line(setting: str, shipped: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A setting's values, each with the recipes that have it; nothing where no recipe sets it."""
    names: dict[str, list[str]] = {}
    for name, values in shipped.items():
        if setting in values:
            names.setdefault(f"`{values[setting]}`", []).append(name)
    texts = [f"{value} in {', '.join(names[value])}" for value in names]
    return [f"Recipes: {'; '.join(texts)}."] if texts else []
