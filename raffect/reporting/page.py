"""Markdown as one self-contained page.

Text from run folders stays text, and only pictures that were just drawn are shown.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;max-width:60rem;margin:2rem auto;
 padding:0 1rem}
h1,h2{line-height:1.2}
h2{margin-top:2.4rem;border-bottom:1px solid #d9dee4}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;border-bottom:1px solid #e4e8ed;text-align:left}
th{background:#f4f6f8}
img{max-width:100%}
blockquote{margin:1rem 0;padding:.6rem 1rem;background:#fff4d6;border-left:4px solid #e0a800}
code{background:#f4f6f8;padding:0 .2rem}
"""
_PAGE = """\
<!doctype html><html lang="en"><meta charset="utf-8"><title>raffect report</title>\
<style>{style}</style><body>
{body}</body></html>
"""


def as_text(value: object) -> str:
    """Any text as Markdown that shows exactly that text.

    What comes from a run folder must not become a picture, a link or a cell of its own.
    """
    return re.sub(r"([\\`*_{}\[\]<>|~&])", r"\\\1", " ".join(str(value).split()))


def as_code(value: object) -> str:
    """Any text as a code span, fenced by more backticks than it holds in a row."""
    text = " ".join(str(value).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"


def to_html(markdown: str, pictures: Mapping[str, bytes]) -> str:
    """One page with pictures inside.

    Args:
        markdown: The report.
        pictures: PNG files that were drawn for it, by the address that it has for them; no other
            picture is shown.
    """
    from markdown_it import MarkdownIt

    # Text alone: neither HTML nor links
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    renderer.disable(["link", "autolink", "reference"])

    # Pictures inside the page; one that was not drawn is shown as its text
    def show(tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
        address, text = tokens[index].attrs["src"], html.escape(tokens[index].content)
        if address not in pictures:
            return text
        content = base64.b64encode(pictures[address]).decode()
        return f'<img src="data:image/png;base64,{content}" alt="{text}">'

    renderer.add_render_rule("image", lambda _, *token: show(*token))
    return _PAGE.format(style=_STYLE, body=renderer.render(markdown))
