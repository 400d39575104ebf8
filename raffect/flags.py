"""Flags: the words after a command become its configuration, by tyro.

What tyro lacks is added here: help from the text below each field, paths in object stores, and a
recipe in front of the flags that override it.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import shlex
import types
import typing
from pathlib import Path
from typing import Any

import tyro

from raffect import config as c
from raffect import recipe
from raffect.errors import RaffectError
from raffect.several import name_joined_bank, split_values

WITH_RECIPE = ("train", "tune", "learn-prompts")
"""Commands whose first word may be a recipe."""


def read_flags(command: str, kind: Any, words: list[str]) -> Any:
    """The configuration that words after a command mean.

    Args:
        command: Its name.
        kind: Class of its configuration, or a union of subcommands as tyro takes it.
        words: All that follows.

    Raises:
        RaffectError: If a value is out of range, or a recipe is wrong or not in front.
        SystemExit: After ``--help`` or a wrong flag, as argparse does.
    """
    set_help()
    takes_recipe = command in WITH_RECIPE
    if takes_recipe:
        _require_recipe_first(kind, command, words)
    words, _ = name_joined_bank(command, words)
    words = _join_repeated(kind, words)
    with _paths_may_be_urls():
        return tyro.cli(
            kind,
            args=_recipe_words(kind, words) if takes_recipe else words,
            prog=f"raffect {command}{' RECIPE' * takes_recipe}",
        )


def _join_repeated(kind: Any, words: list[str]) -> list[str]:
    """``--head A --head B`` as ``--head A B``: of a flag that comes twice, tyro takes the last."""
    for flag in _lists(kind):
        if sum(word == flag or word.startswith(f"{flag}=") for word in words) > 1:
            values, others = split_values(words, flag)
            words = [*others, flag, *values]
    return words


def _lists(kind: Any) -> list[str]:
    """Flags of a configuration, or of those of subcommands, that take any number of values."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return [flag for part in typing.get_args(kind) for flag in _lists(part)]
    hints = typing.get_type_hints(kind).items()
    lists = [name for name, hint in hints if typing.get_args(hint)[1:] == (...,)]
    return [f"--{name.replace('_', '-')}" for name in lists]


@functools.cache
def set_help() -> None:
    """Make the text below each field of a configuration its help, as one paragraph.

    tyro reads these texts and the classes' own itself, but keeps line breaks of some of them.
    """
    parts = (*vars(c).values(), *vars(recipe).values())
    for module in (part for part in parts if isinstance(part, types.ModuleType)):
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef) and dataclasses.is_dataclass(vars(module)[node.name]):
                kind = vars(module)[node.name]
                paragraphs = (kind.__doc__ or "").split("\n\n")
                kind.__doc__ = "\n\n".join(" ".join(text.split()) for text in paragraphs)
                for name, text in _texts_below_fields(node).items():
                    field = kind.__dataclass_fields__[name]
                    field.metadata = types.MappingProxyType({"help": text})


def _texts_below_fields(node: ast.ClassDef) -> dict[str, str]:
    """The text below each field of a class, in one line."""
    texts = {}
    for statement, below in itertools.pairwise(node.body):
        match statement, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = " ".join(text.split())
    return texts


def _paths_may_be_urls() -> tyro.constructors.ConstructorRegistry:
    """Rules by which tyro also reads ``s3://bucket/folder`` where a setting is a path."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def read_path(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec | None:
        if info.type is not Path:
            return None

        def read(words: list[str]) -> Path:
            from raffect.storage.paths import locate

            return locate(words[0])

        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=read,
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda path: [str(path)],
        )

    return registry


def _recipe_words(kind: Any, words: list[str]) -> list[str]:
    """Replace a recipe in front by the flags it stands for; flags that follow override them."""
    if not words or words[0].startswith("-"):
        return words
    file = recipe.find_recipe(words[0])
    settings = recipe.read_recipe(file, dotted_names(kind))
    c.require_types(kind, settings, file)
    flags: list[str] = []
    for name, value in settings.items():
        group, dot, key = name.replace("_", "-").rpartition(".")
        if isinstance(value, bool):
            # Of a nested setting the "no-" stands behind the dot: --sam.no-independent-dropout
            flags.append(f"--{group}{dot}{'' if value else 'no-'}{key}")
        elif isinstance(value, list):
            flags += [f"--{group}{dot}{key}", *map(str, value)]
        else:
            # In one word, since a text may begin like a flag
            flags.append(f"--{group}{dot}{key}={value}")
    return [*flags, *words[1:]]


def _require_recipe_first(kind: Any, command: str, words: list[str]) -> None:
    """Refuse a recipe that stands behind flags, which tyro would call an unknown option.

    Raises:
        RaffectError: If a word that no flag takes is a recipe's name or a TOML file.
    """
    shipped = {file.stem for file in recipe.RECIPES.glob("*.toml")}
    for before, word in itertools.pairwise(words):
        flag = before.removeprefix("--")
        is_value = flag != before and "=" not in flag and flag not in _switches(kind)
        if not is_value and (word in shipped or word.endswith(".toml")):
            first = f"`raffect {command} {shlex.quote(word)} ...`"
            raise RaffectError(f"{word}: a recipe comes first, before all flags: {first}")


def _switches(kind: Any, prefix: str = "") -> set[str]:
    """Flags of a configuration that take no value, without their first dashes."""
    found: set[str] = set()
    for name, hint in typing.get_type_hints(kind).items():
        key = name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            found |= _switches(hint, f"{prefix}{key}.")
        elif hint is bool:
            found |= {f"{prefix}{key}", f"{prefix}no-{key}"}
    return found


def dotted_names(kind: Any, prefix: str = "") -> list[str]:
    """Names of all settings of a configuration, those of nested ones behind a dot."""
    names: list[str] = []
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            names += dotted_names(hint, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names
