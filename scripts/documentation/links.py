"""Checks of a built site: every link leads somewhere, and no page loads anything from elsewhere."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_NAMED = {"canonical", "prev", "next", "alternate", "edit"}
"""Links of a page's head that name another page, which browsers do not load."""


class _Page(HTMLParser):
    """The anchors of a page, and what it links to or loads."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element's name and targets."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        is_link = tag == "a" or bool(_NAMED & set(values.get("rel", "").split()))
        for name in ("href", "src", "data", "poster"):
            if name in values and not values[name].startswith("data:"):
                (self.links if is_link else self.loaded).append(values[name])
        for part in values.get("srcset", "").split(","):
            self.loaded += part.split()[:1]
        self.loaded += re.findall(r"url\(['\"]?(\w+:[^)'\"]+)", values.get("style", ""))


def check_site(site: Path, base: str) -> list[str]:
    """What is wrong with a built site, a line each.

    Args:
        site: Folder of the built pages.
        base: Path of the site on its server, such as ``/raffect/``, with which some links begin.
    """
    found = []
    for file in sorted(site.rglob("*.html")):
        page, name = _read(file), str(file.relative_to(site))
        found += [f"{name}: loads {url}, of another site" for url in page.loaded if _is_remote(url)]
        local = [url for url in page.links + page.loaded if not _is_remote(url)]
        found += [f"{name}: {wrong}" for url in local for wrong in _follow(url, file, site, base)]
        for url in filter(_is_remote, page.links):
            if not re.fullmatch(r"https?://[\w-]+(\.[\w-]+)+(:\d+)?(/[^\s<>\"]*)?", url):
                found.append(f"{name}: {url} is not an address")
    for file in sorted(site.rglob("*.css")):
        remote = re.findall(r"(?:url\(|@import )['\"]?((?:https?:)?//[^)'\"]+)", file.read_text())
        found += [f"{file.relative_to(site)}: loads {url}, of another site" for url in remote]
    return found


@functools.cache
def _read(file: Path) -> _Page:
    page = _Page()
    page.feed(file.read_text())
    return page


def _is_remote(url: str) -> bool:
    return url.startswith(("http:", "https:", "//"))


def _follow(url: str, file: Path, site: Path, base: str) -> Iterator[str]:
    """What is wrong with a link within the site."""
    parts = urlsplit(url)
    if parts.scheme:
        if parts.scheme != "mailto":
            yield f"{url} has a scheme that no browser opens"
        return
    path = unquote(parts.path)
    target = site / path.removeprefix(base) if path.startswith("/") else file.parent / path
    target = file if not path else target.resolve()
    if target.is_dir():
        target /= "index.html"
    if not target.is_file() or not target.is_relative_to(site.resolve()):
        yield f"{url} leads to no file"
    elif parts.fragment and unquote(parts.fragment) not in _read(target).anchors | {"__top"}:
        yield f"{url} leads to no heading"
