"""Reference of the command line: a page a command, from its configuration class.

What stands on these pages is what `raffect COMMAND --help` reads: fields, their types and defaults,
and the texts below them.
"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

from raffect.cli import COMMANDS
from raffect.flags import WITH_RECIPE, set_help
from raffect.recipe.settings import Recipe
from scripts.documentation.flags import about_lines, as_text, flags_of, grouped
from scripts.documentation.pages import write_navigation


def write_commands(out: Path) -> None:
    """Write a page a command to ``out``, and a list of them."""
    set_help()
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        "# Commands",
        "",
        "Each is `raffect COMMAND`, and explains itself: `raffect COMMAND --help`.",
        "",
    ]
    rows += ["| command | what it does |", "|---|---|"]
    for name, (kind, summary) in COMMANDS.items():
        (out / f"{name}.md").write_text("\n".join(command_page(name, kind, summary)))
        rows.append(f"| [{name}]({name}.md) | {as_text(summary).replace('|', '&#124;')} |")
    rows += [
        "",
        "Exit status, what is printed while one waits, and encoders: [Using raffect](../using.md).",
    ]
    (out / "index.md").write_text("\n".join(rows) + "\n")
    write_navigation(out, {"index.md": "All commands", **{f"{name}.md": name for name in COMMANDS}})


def command_page(name: str, kind: Any, summary: str) -> list[str]:
    """Lines of a command's page."""
    lines = ["---", f"title: raffect {name}", "---", f"# raffect {name}", ""]
    if dataclasses.is_dataclass(kind):
        return lines + config_lines(kind, name)
    lines += [sentence(summary.rpartition(": ")[2]), ""]
    for part in typing.get_args(kind):
        config, sub = typing.get_args(part)
        lines += [
            f"## {name} {sub.name}",
            "",
            *config_lines(config, f"{name} {sub.name}", sub.name),
        ]
    return lines


def config_lines(kind: Any, command: str, prefix: str = "") -> list[str]:
    """What a configuration is for, with its examples, and its flags in groups.

    Args:
        kind: The configuration class.
        command: What is typed for it.
        prefix: In front of anchors, where a page has several commands.
    """
    lines = about_lines(kind.__doc__)
    required_first = sorted(flags_of(kind), key=lambda flag: flag.default != "")
    for group, flags in grouped(required_first).items():
        if not prefix:
            title = f"`--{group}.*`" if group else "Flags"
            lines += [f"## {title} {{ #{group or 'flags'} }}", ""]
        if command in WITH_RECIPE and group in typing.get_type_hints(Recipe):
            lines += ["Of the [recipe](../recipes.md).", ""]
        for flag in flags:
            lines += flag.lines(f"{prefix}-" if prefix else "")
    return lines


def sentence(text: str) -> str:
    """A text that begins with a capital letter and ends with a full stop."""
    return f"{text[0].upper()}{text[1:]}."
