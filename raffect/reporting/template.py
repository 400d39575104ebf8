"""Self-contained pages from templates.

A page's own policy lets it load nothing from a network: its script and style are allowed by their
hashes, pictures are inside it, and a video lies beside it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from PIL import Image

_TEMPLATES = "raffect.reporting"
_FIXED = "default-src 'none'; base-uri 'none'; form-action 'none'"
_BESIDE = "img-src data: 'self' file:; media-src 'self' file:"
"""What may lie beside a page, whether it is opened as a file or from a server."""


_NOTHING = "'none'"


def fill_page(name: str, values: Mapping[str, str], data: Any = None) -> bytes:
    """A page.

    Args:
        name: Of its template, such as ``timeline.html``.
        values: HTML by placeholder; use `escape` on text.
        data: What its script reads, as JSON.
    """
    page = _read(name).replace("@@head@@", _read("head.html"))
    page = page.replace("@@common@@", _read("common.css"))

    # Hashes of the only script and style; data is never run
    policy = [_FIXED, _BESIDE]
    for tag in ("style", "script"):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        hashes = [_hash(content) for content in found]
        policy.append(f"{tag}-src {' '.join(hashes) or _NOTHING}")
    filled = {**values, "policy": html.escape("; ".join(policy), quote=True), "data": as_json(data)}
    return re.sub(r"@@(\w+)@@", lambda match: filled[match[1]], page).encode()


def notes_of(caveats: Sequence[str]) -> str:
    """What a page must say of its numbers, as one note; nothing where there is nothing to say."""
    return f'<p class="note">{escape("; ".join(caveats))}</p>' if caveats else ""


def escape(value: object) -> str:
    """Any text as HTML that shows exactly that text."""
    return html.escape(" ".join(str(value).split()), quote=True)


def as_json(data: Any) -> str:
    """JSON that can stand inside a script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def data_uri(image: Image.Image, kind: str = "JPEG") -> str:
    """A picture as an address that holds it."""
    sink = io.BytesIO()
    image.save(sink, format=kind, quality=82)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(sink.getvalue()).decode()}"


def _read(name: str) -> str:
    return resources.files(_TEMPLATES).joinpath("templates", name).read_text("utf-8")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
