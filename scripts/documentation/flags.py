"""Flags of configuration classes as Markdown: their kind, default and help."""

from __future__ import annotations

import dataclasses
import html
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

_WORDS = {int: "whole number", float: "number", str: "text", Path: "path", bool: "switch"}
_POSITIONAL = typing.get_args(Positional[int])[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag of a command, as its page shows it."""

    name: str
    """As it is typed, such as ``--loss.alpha``; of a positional argument its name alone."""
    kind: str
    """What it takes, in words."""
    default: str
    """As it is typed; empty for a flag that must be given."""
    help: str
    """The text below its field."""

    @property
    def group(self) -> str:
        """What stands in front of its dot; empty for one without."""
        return self.name.removeprefix("--").rpartition(".")[0]

    def lines(self, prefix: str = "") -> list[str]:
        """Its heading, its kind and default, and its help, as Markdown.

        Args:
            prefix: In front of its anchor, on a page of several commands.
        """
        anchor = prefix + re.sub("[._]", "-", self.name.removeprefix("--"))
        default = f"default {self.default}" if self.default else "**required**"
        about = f"{self.kind} · {default}"
        heading = f"### `{self.name}` {{ #{anchor} data-toc-label='{self.name}' }}"
        return [heading, "", about, "{ .flag }", "", as_text(self.help), ""]


def grouped(flags: Iterable[Flag]) -> dict[str, list[Flag]]:
    """Flags by what stands in front of their dot; those without one first."""
    groups: dict[str, list[Flag]] = {"": []}
    for flag in flags:
        groups.setdefault(flag.group, []).append(flag)
    return groups


def flags_of(kind: Any, prefix: str = "", values: Any = None) -> Iterator[Flag]:
    """Flags of a configuration; of settings that are a group, one each behind a dot.

    Args:
        kind: A configuration class, or one of its groups.
        prefix: Name of the group and a dot.
        values: The group's defaults, where the configuration has others than the group's class.
    """
    hints, nested = typing.get_type_hints(kind, include_extras=True), []
    for field in dataclasses.fields(kind):
        default = getattr(values, field.name) if values is not None else default_of(field)
        hint, is_positional = _bare(hints[field.name])
        name = f"{prefix}{field.name}".replace("_", "-")
        if dataclasses.is_dataclass(hint):
            nested.append((hint, f"{name}.", None if default is dataclasses.MISSING else default))
            continue
        yield Flag(
            name=name if is_positional else f"--{name}",
            kind=kind_of(hint),
            default=text_of(default, name),
            help=field.metadata.get("help", ""),
        )
    for hint, name, default in nested:
        yield from flags_of(hint, name, default)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """What a field is if nothing is given; ``dataclasses.MISSING`` if something must be."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _bare(hint: Any) -> tuple[Any, bool]:
    """A type without what annotates it, and whether it is of a positional argument."""
    is_positional = False
    while typing.get_origin(hint) is typing.Annotated:
        is_positional |= _POSITIONAL in hint.__metadata__
        hint = hint.__origin__
    return hint, is_positional


def kind_of(hint: Any) -> str:
    """A type in words."""
    hint, _ = _bare(hint)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        kinds = [kind_of(part) for part in parts if part is not types.NoneType]
        return " or ".join(kinds)
    if origin is tuple:
        repeated = parts[-1] is Ellipsis
        inner = kind_of(parts[0])
        return f"any number of: {inner}" if repeated else f"{len(parts)} of: {inner}"
    return _WORDS[hint]


def text_of(value: Any, name: str) -> str:
    """A default as Markdown; empty for what must be given."""
    if value is dataclasses.MISSING:
        return ""
    if value is None or value in ("", ()):
        return "none"
    if isinstance(value, bool):
        group, dot, key = name.rpartition(".")
        return f"on, `--{group}{dot}no-{key}` turns it off" if value else "off"
    if isinstance(value, tuple):
        return "`" + " ".join(map(str, value)) + "`"
    return f"`{value}`"


def about_lines(text: str) -> list[str]:
    """A configuration's docstring as Markdown: its examples become blocks of code."""
    lines: list[str] = []
    for paragraph in (" ".join(part.split()) for part in text.split("\n\n")):
        if match := re.fullmatch(r"(Example|Or)[^`]*: `([^`]+)`\.?", paragraph):
            lines += ["```bash", match[2], "```", ""]
        else:
            lines += [as_text(paragraph), ""]
    return lines


def as_text(text: str) -> str:
    """Help as Markdown: flags become code; what Markdown would take for its own is escaped."""
    parts = re.split(r"(`[^`]*`)", text)
    for index in range(0, len(parts), 2):
        escaped = re.sub(r"([*_\[\]])", r"\\\1", html.escape(parts[index], quote=False))
        parts[index] = re.sub(r"(?<![\w-])--[a-z][\w.-]*\w", r"`\g<0>`{ .word }", escaped)
    return "".join(parts)
