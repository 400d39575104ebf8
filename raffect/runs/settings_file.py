"""Settings of a command as the file `config.toml` of its run folder."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import tomli_w

from raffect.config import LearnConfig, may_change
from raffect.errors import RaffectError
from raffect.recipe import DEFAULTS, NAMES, flatten, plain, read_recipe


def command_of(config: LearnConfig) -> Any:
    """The command that a configuration is of: ``learn-prompts`` for `LearnPromptsConfig`."""
    name = type(config).__name__.removesuffix("Config")
    return re.sub("(?<=[a-z])(?=[A-Z])", "-", name).lower()


def to_toml(config: LearnConfig) -> str:
    """All settings of a command, as a recipe that repeats it."""
    nested: dict[str, Any] = {}
    for name, value in _settings(config).items():
        group, _, key = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[key] = value
    # TOML wants plain values before tables.
    tables = {name: value for name, value in nested.items() if isinstance(value, dict)}
    plain_values = {name: value for name, value in nested.items() if name not in tables}
    return tomli_w.dumps(plain_values | tables)


def require_same_settings(config: LearnConfig, file: Path) -> None:
    """Refuse to go on with other settings than those of a file that `to_toml` wrote.

    Raises:
        RaffectError: Names the first setting that differs.
    """
    fields = dataclasses.fields(type(config))
    known = [*NAMES, *(item.name for item in fields)]
    before = read_recipe(file, known)
    # A setting that is younger than the folder had its default.
    younger = {item.name: item.default for item in fields} | DEFAULTS
    free = may_change(type(config))
    if config.select != "cv":
        free.add("folds")  # nothing was trained on them
    # What the sweep varies does not have one value.
    axes = (*before.get("space", ()), *getattr(config, "space", ()))
    swept = {axis.partition("=")[0].strip() for axis in axes}
    for name, value in _settings(config).items():
        had = before.get(name, younger.get(name))
        if name not in free and name not in swept and had != value:
            raise RaffectError(
                f"--out {config.out}: a run with {name} {had}, this one has {value}; "
                "name a new folder"
            )


def _settings(config: LearnConfig) -> dict[str, Any]:
    """Settings by dotted name as TOML values; those that are None are left out."""
    flat = flatten(plain(config))
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.name in flat or dataclasses.is_dataclass(value) or value is None:
            continue
        if hasattr(value, "absolute"):
            value = str(value.absolute())
        flat[item.name] = list(value) if isinstance(value, tuple) else value
    return flat
