"""Checks of the plain values that a head's file gives for its spec: such files can be hostile."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raffect.errors import RaffectError, require
from raffect.heads.head_batch import HeadSpec

Bounds = Mapping[str, tuple[int, int]]
"""Least and largest value of a number, by name."""


def require_names(spec: type[HeadSpec], content: Mapping[str, Any], where: Path) -> None:
    """Raise unless a file gives exactly the fields of a spec.

    Raises:
        RaffectError: In one line.
    """
    # Fields that are not compared, such as a text tower, are not saved either.
    names = [field.name for field in dataclasses.fields(spec) if field.compare]
    if content.keys() != set(names):
        raise RaffectError(f"{where}: its head has to name {', '.join(names)}; train again")


def require_bounds(content: Mapping[str, Any], bounds: Bounds, where: Path) -> None:
    """Raise unless values are whole numbers within bounds.

    Raises:
        RaffectError: Names the first value that is not.
    """
    for name, (least, most) in bounds.items():
        if type(content[name]) is not int or not least <= content[name] <= most:
            raise refuse(name, content[name], f"{least} to {most}", where)


def require_words(
    content: Mapping[str, Any], words: Mapping[str, Sequence[str]], where: Path
) -> None:
    """Raise unless values are among the words for them.

    Raises:
        RaffectError: Names the first value that is not.
    """
    for name, among in words.items():
        if not isinstance(content[name], str) or content[name] not in among:
            raise refuse(name, content[name], " or ".join(among), where)


def require_flags(content: Mapping[str, Any], names: Sequence[str], where: Path) -> None:
    """Raise unless values are true or false.

    Raises:
        RaffectError: Names the first value that is not.
    """
    for name in names:
        if type(content[name]) is not bool:
            raise refuse(name, content[name], "true or false", where)


def require_same_length(kind: str, dim: int, outputs: int) -> None:
    """Raise unless vectors are as long as the features that they are made of.

    Raises:
        RaffectError: If targets of another encoder are to be learnt by such a head.
    """
    require(
        outputs == dim,
        f"head.kind {kind}: its vectors are as long as the features ({dim}), "
        f"not as the targets ({outputs}); expected targets of the same encoder",
    )


def refuse(name: str, value: Any, expected: str, where: Path) -> RaffectError:
    """The error of one value of a head's file."""
    found = f"{where}: {name} {str(value)[:40]} of its head"
    return RaffectError(f"{found}: expected {expected}; train again")
