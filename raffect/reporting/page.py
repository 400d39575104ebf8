"""Markdown as one page that follows the reader's screen: narrow or wide, light or dark.

Text from run folders stays text. Only pictures that were just drawn are shown, inside the page;
links lead to headings of the page and to files that were just written, and nowhere else.
"""

from __future__ import annotations

import base64
import html
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any

DOTS_PER_INCH = 192
"""Of pictures; a screen's pixel is 1/96 inch, so they are sharp where it has two dots a pixel."""
_STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1f2933;--line:#d9dee4;--head:#f4f6f8;
 --note:#fff4d6;--edge:#e0a800;--link:#0b5cd6;--shade:#0002}
@media (prefers-color-scheme:dark){:root{--page:#14181d;--ink:#dfe5eb;--line:#39424c;
 --head:#1f262d;--note:#3a3116;--edge:#c99700;--link:#7ab0ff;--shade:#fff2}
 img{filter:invert(1) hue-rotate(180deg);mix-blend-mode:screen}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);
 max-width:64rem;margin:2rem auto;padding:0 1rem;overflow-wrap:anywhere}
h1,h2,h3{line-height:1.25;margin:2rem 0 .6rem}
h1{margin-top:0}
h2{margin-top:3rem;padding-bottom:.2rem;border-bottom:1px solid var(--line)}
a{color:var(--link)}
li{margin:.2rem 0}
.scroll{overflow-x:auto;margin:1rem 0;background:
 linear-gradient(90deg,var(--page) 40%,transparent) left/2.5rem 100% no-repeat local,
 linear-gradient(270deg,var(--page) 40%,transparent) right/2.5rem 100% no-repeat local,
 linear-gradient(90deg,var(--shade),transparent) left/1rem 100% no-repeat scroll,
 linear-gradient(270deg,var(--shade),transparent) right/1rem 100% no-repeat scroll}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;overflow-wrap:normal;font-size:.94em}
th,td{padding:.3rem .55rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;
 white-space:nowrap}
td.wide{white-space:normal;min-width:13rem}
th{font-weight:600;border-bottom:2px solid var(--line)}
img{display:block}
blockquote{margin:1rem 0;padding:.1rem 1rem;background:var(--note);
 border-left:4px solid var(--edge)}
code{font-size:.9em;background:var(--head);padding:0 .2rem}
@media (max-width:40rem){body{margin:1rem auto;font-size:15px}th,td{padding:.25rem .5rem}
 td.wide{min-width:9rem}ul{padding-left:1.2rem}}
"""
_PAGE = """\
<!doctype html><html lang="en"><meta charset="utf-8">\
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>\
<style>{style}</style><body>
{body}</body></html>
"""
_WIDE = 36
"""Characters from which a cell of a table may break into lines."""


def as_text(value: object) -> str:
    """Any text as Markdown that shows exactly that text.

    What comes from a run folder must not become a picture, a link or a cell of its own.
    """
    return re.sub(r"([\\`*_{}\[\]<>|~&#])", r"\\\1", " ".join(str(value).split()))


def as_code(value: object) -> str:
    """Any text as a code span, fenced by more backticks than it holds in a row."""
    text = " ".join(str(value).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"


def as_link(address: str) -> str:
    """A file beside the report, as a link to it."""
    return f"[{as_text(address)}]({address})"


def contents_of(lines: Sequence[str]) -> list[str]:
    """A list of links to the headings of a report, those of level 3 below those of level 2."""
    headings = [line for line in lines if re.match("##+ ", line)]
    texts = [line.lstrip("#").strip() for line in headings]
    anchors = name_anchors([re.sub(r"\\(.)", r"\1", text) for text in texts])
    return [
        f"{'  ' * (line.count('#', 0, 3) - 2)}- [{text}](#{anchor})"
        for line, text, anchor in zip(headings, texts, anchors, strict=True)
    ] + [""]


def name_anchors(headings: Sequence[str]) -> list[str]:
    """A name for each heading to link to, as GitHub makes them; all differ."""
    anchors: list[str] = []
    for text in headings:
        plain = re.sub(r"[^\w\- ]", "", text.lower(), flags=re.ASCII).replace(" ", "-") or "part"
        others = (f"{plain}-{k}" for k in range(1, len(headings) + 1))
        anchors.append(next(name for name in (plain, *others) if name not in anchors))
    return anchors


def to_html(markdown: str, pictures: Mapping[str, bytes], files: Collection[str] = ()) -> str:
    """One page with pictures inside.

    Args:
        markdown: The report.
        pictures: PNG files that were drawn for it, by the address that it has for them; no other
            picture is shown.
        files: Addresses of the files beside the page that it may link to.
    """
    from markdown_it import MarkdownIt

    # Text alone, without HTML; an address that is not allowed leaves its link as text
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    renderer.disable(["autolink", "reference"])
    allowed = {*pictures, *files}
    renderer.validateLink = lambda url: url in allowed or url.startswith("#")
    tokens = renderer.parse(markdown)

    # Anchors of headings, and cells with long text
    headings = [k for k, token in enumerate(tokens) if token.type == "heading_open"]
    texts = ["".join(part.content for part in tokens[k + 1].children or ()) for k in headings]
    linked = [k for k in headings if tokens[k].tag != "h1"]
    names = [text for k, text in zip(headings, texts, strict=True) if k in linked]
    for k, anchor in zip(linked, name_anchors(names), strict=True):
        tokens[k].attrSet("id", anchor)
    for k, token in enumerate(tokens):
        if token.type == "td_open" and len(tokens[k + 1].content) > _WIDE:
            token.attrSet("class", "wide")

    # Pictures inside the page; what is wider than a narrow screen scrolls by itself
    renderer.add_render_rule("image", lambda _, *token: _show_picture(pictures, *token))
    scroll = '<div class="scroll" tabindex="0">'
    renderer.add_render_rule("table_open", lambda *_: f"{scroll}<table>")
    renderer.add_render_rule("table_close", lambda *_: "</table></div>\n")
    body = renderer.renderer.render(tokens, renderer.options, {})
    return _PAGE.format(
        style=_STYLE, title=html.escape(texts[0] if texts else "raffect"), body=body
    )


def _show_picture(
    pictures: Mapping[str, bytes], tokens: Sequence[Any], index: int, options: Any, env: Any
) -> str:
    """A picture in its natural size; one that was not drawn is shown as its text."""
    address, text = tokens[index].attrs["src"], html.escape(tokens[index].content)
    if address not in pictures:
        return text
    # A PNG file has its width in dots at byte 16
    (dots,) = struct.unpack(">I", pictures[address][16:20])
    width = f' width="{dots * 96 // DOTS_PER_INCH}"'
    content = base64.b64encode(pictures[address]).decode()
    image = f'<img src="data:image/png;base64,{content}" alt="{text}"{width}>'
    return f'<span class="scroll" tabindex="0" style="display:block">{image}</span>'
