"""Written pages: docs/ and other Markdown of the repository, at their places on the site.

They are written for GitHub. What Python-Markdown reads otherwise is adapted in the copies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from raffect.errors import RaffectError

ROOT = Path(__file__).parents[2]
BLOB = "https://github.com/raffect/raffect/blob/main"
_ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks/index.md",
    "cluster/README.md": "cluster-files.md",
}
"""Pages outside docs/ and benchmarks/results/, and their places."""
_FOLDERS = {
    "docs/notebooks": "notebooks/index.md",
    "benchmarks": "benchmarks/index.md",
    "benchmarks/results": "benchmarks/index.md",
    "cluster": "cluster-files.md",
}
"""Folders that pages link to, and the pages that show them."""
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_ITEM = re.compile(r"[-*] |\d+\. ")


def places() -> dict[str, str]:
    """Places of written pages and pictures below build/docs, by their path in the repository."""
    found = dict(_ELSEWHERE)
    for file in sorted((ROOT / "docs").iterdir()):
        if file.suffix in (".md", ".png", ".svg"):
            found[f"docs/{file.name}"] = file.name
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.md")):
        found[f"benchmarks/results/{file.name}"] = f"benchmarks/{file.name}"
    return found


def copy_pages(out: Path) -> None:
    """Copy all written pages and pictures to their places below ``out``."""
    where = places()
    for source, target in where.items():
        file = out / target
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            file.write_text(adapt((ROOT / source).read_text(), source, where))
        else:
            file.write_bytes((ROOT / source).read_bytes())
    results = [name for name in where.values() if re.match(r"benchmarks/.*_.*\.md", name)]
    write_navigation(out / "benchmarks", {Path(name).name: None for name in ["index.md", *results]})


def write_navigation(folder: Path, pages: dict[str, str | None]) -> None:
    """List pages of a folder for the site's navigation, with a title each or else their own."""
    titles = {name: title or title_of(folder / name) for name, title in pages.items()}
    text = "".join(f"- [{title}]({name})\n" for name, title in titles.items())
    (folder / "SUMMARY.md").write_text(text)


def title_of(page: Path) -> str:
    """The first heading of a page.

    Raises:
        RaffectError: If it has none.
    """
    if found := re.search(r"(?m)^# (.*)", page.read_text()):
        return found[1]
    raise RaffectError(f"{page.name}: has no heading; begin it with one: # Title")


def adapt(text: str, source: str, where: dict[str, str]) -> str:
    """A page for its place on the site: links lead from there, lists stand apart from text."""

    def lead(match: re.Match[str]) -> str:
        name, anchor = match[1], match[2] or ""
        path = os.path.normpath(os.path.join(os.path.dirname(source), name))
        if place := where.get(path) or _FOLDERS.get(path):
            return os.path.relpath(place, os.path.dirname(where[source])) + anchor
        return f"{BLOB}/{path}{anchor}"

    return _outside_code(text, lambda prose: _apart(_LINK.sub(lead, prose)))


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    """Text of which all but blocks of code is changed."""
    parts = re.split(r"(?ms)^(```.*?^```$)", text)
    return "".join(part if index % 2 else change(part) for index, part in enumerate(parts))


def _apart(prose: str) -> str:
    """Text with an empty line before each list, which Python-Markdown needs and GitHub does not."""
    lines: list[str] = []
    for line in prose.split("\n"):
        before = lines[-1] if lines else ""
        is_text = before.strip() and not _ITEM.match(before.lstrip()) and before[0] not in " #"
        if _ITEM.match(line) and is_text:
            lines.append("")
        lines.append(line)
    return "\n".join(lines)
