"""What the settings of all commands have in common: marks and checks."""

from __future__ import annotations

import json
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from raffect.errors import RaffectError, require
from raffect.recipe import NAMES

T = TypeVar("T")
_MAY_CHANGE = "may change"
MayChange = Annotated[T, _MAY_CHANGE]
"""A setting of a run that may change when the run goes on: it does not decide what a head is."""


def count_cores() -> int:
    """CPU cores that this process may use: those that Slurm, taskset or a container leave it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def may_change(kind: type) -> set[str]:
    """Names of the settings of a configuration that are marked as `MayChange`."""
    hints = typing.get_type_hints(kind, include_extras=True)
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name for name in marks if _MAY_CHANGE in marks[name]}


def require_types(kind: type, settings: Mapping[str, Any], where: Path) -> None:
    """Refuse values of a file that are of another type than a configuration's.

    Args:
        kind: The configuration.
        settings: Values by dotted name; `raffect.recipe.read_recipe` has checked those of a recipe.
        where: The file, for errors.

    Raises:
        RaffectError: Names the first one.
    """
    if not (others := settings.keys() - set(NAMES)):
        return
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    hints = typing.get_type_hints(kind)
    for name in sorted(others):
        value = settings[name]
        parts = value if isinstance(value, list) else ()
        flag = next((part for part in parts if str(part).startswith("-")), None)
        require(flag is None, f"{where}: {name} {str(flag)[:40]!r}: expected no - in front")
        try:
            adapter = TypeAdapter(hints[name], config=ConfigDict(strict=True))
            adapter.validate_json(json.dumps(value, default=str))
        except (ValidationError, ValueError) as error:
            faults = error.errors() if isinstance(error, ValidationError) else [{"msg": str(error)}]
            what = f"{name} {str(value)[:40]!r}: {faults[0]['msg'].lower()}"
            raise RaffectError(f"{where}: {what}; see `raffect train --help`") from error


def require_local(config: object, *names: str) -> None:
    """Refuse paths in an object store, which are not instances of `Path`.

    Raises:
        RaffectError: If one of the settings ``names`` holds such a path.
    """
    for name in names:
        value = getattr(config, name)
        for path in value if isinstance(value, tuple) else (value,):
            require(
                path is None or isinstance(path, Path),
                f"--{name} {path}: expected a folder or file of this machine, not an object store",
            )
