"""Reference of the Python interface: public names by theme, for mkdocstrings to fill in."""

from __future__ import annotations

from pathlib import Path

import raffect
from scripts.documentation.pages import write_navigation

_THEMES = {
    "Data sets and labels": ("datasets",),
    "Banks": ("bank", "extraction", "encoders"),
    "Heads": ("training", "runs", "heads"),
    "Judging and predicting": ("evaluation", "predictions", "reporting", "pipelines"),
    "Texts": ("language",),
    "Export": ("export",),
    "Configurations": ("config",),
    "Errors": ("errors",),
}
"""Pages, and the packages whose public names each shows."""


def names_by_theme() -> dict[str, list[str]]:
    """Public names of each page: functions first, then classes.

    Raises:
        KeyError: If a public name lies in a package that has no page.
    """
    themes = {package: title for title, packages in _THEMES.items() for package in packages}
    found: dict[str, list[str]] = {title: [] for title in _THEMES}
    for name, module in raffect._HOME.items():
        found[themes[module.partition(".")[0]]].append(name)
    return {
        title: sorted(names, key=lambda name: (not name.islower(), name.lower()))
        for title, names in found.items()
    }


def write_api(out: Path) -> None:
    """Write a page a theme to ``out``, and a list of them."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        "# Python",
        "",
        "All public names are attributes of `raffect`, and are loaded on first use. "
        "A walk through them: [raffect from Python](../api.md).",
        "",
    ]
    pages = {"index.md": "All names"}
    for title, names in names_by_theme().items():
        file = f"{title.lower().replace(' ', '-')}.md"
        blocks = [f"::: raffect.{raffect._HOME[name]}.{name}\n" for name in names]
        (out / file).write_text("\n".join([f"# {title}", "", *blocks]))
        pages[file] = title
        links = [f"[`{name}`]({file}#raffect.{raffect._HOME[name]}.{name})" for name in names]
        rows += [f"## {title}", "", " · ".join(links), ""]
    (out / "index.md").write_text("\n".join(rows))
    write_navigation(out, pages)
