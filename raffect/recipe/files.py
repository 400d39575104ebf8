"""Recipes as TOML files: those that ship with raffect, and one's own."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raffect.errors import RaffectError, did_you_mean, require
from raffect.recipe.names import (
    DEFAULTS,
    NAMES,
    are_texts,
    as_type_of,
    in_todays_words,
    shorten,
    unknown_name,
)

RECIPES = Path(__file__).parents[1] / "recipes"
_REMEDY = "write one like raffect/recipes/paper.toml, or restore it"


def find_recipe(name: str) -> Path:
    """File of a recipe.

    Args:
        name: Of a recipe that ships with raffect, or else the path of a TOML file.

    Raises:
        RaffectError: If there is no such recipe or file.
    """
    # A recipe that ships with raffect, or a file
    shipped = RECIPES / f"{name}.toml"
    if shipped.is_file():
        return shipped
    # Imported only now, because it loads pyarrow.
    from raffect.storage.paths import locate

    if (path := locate(name)).is_file():
        return path

    # Neither
    names = sorted(file.stem for file in RECIPES.glob("*.toml"))
    hint = did_you_mean(name, names)
    expected = f"expected one of {', '.join(names)} or a TOML file"
    raise RaffectError(f"{name}: no such recipe{hint}; {expected}")


def read_recipe(path: Path, known: Sequence[str] = NAMES) -> dict[str, Any]:
    """Settings of a recipe by dotted name.

    Args:
        path: A TOML file; ``alpha`` in table ``[loss]`` is ``loss.alpha``.
        known: Names that it may set.

    Raises:
        RaffectError: If it is not TOML, a name is unknown or a value is of another type.
    """
    # The file's tables and keys, as dotted names
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise RaffectError(f"{path}: not a recipe, nested too deeply; {_REMEDY}") from error
    except ValueError as error:  # TOMLDecodeError is one, and a number of thousands of digits
        raise RaffectError(f"{path}: not a TOML file ({str(error)[:120]}); {_REMEDY}") from error
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    flat = in_todays_words(flat)

    # Checks; names that a configuration adds to a recipe are checked when it is made
    for name, value in flat.items():
        is_table = any(other.startswith(f"{name}.") for other in known)
        require(not is_table, f"{path}: {name} is a table; write [{name}] and its settings below")
        require(name in known, f"{path}: {unknown_name(name, known)}")
        require(
            name != "space" or are_texts(value),
            f"{path}: space {shorten(value)}: expected a list of texts such as seed=0:4",
        )
        if name in DEFAULTS:
            try:
                as_type_of(name, DEFAULTS[name], value)
            except RaffectError as error:
                raise RaffectError(f"{path}: {error}") from error
    return flat
