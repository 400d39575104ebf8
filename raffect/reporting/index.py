"""The first page of a folder of predictions: its inputs with small pictures and time courses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from raffect.predictions.table import PredictionFacts
from raffect.reporting.course import TimeCourse
from raffect.reporting.strip import BACKGROUND, draw_strip
from raffect.reporting.template import escape, fill_page, notes_of
from raffect.storage.atomic import write_atomic

_PREVIEW_WIDTH, _LETTER = 900, 11


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One input of the list.

    Attributes:
        name: Of the input.
        about: Counts, or why there is nothing to see.
        page: Its timeline, relative to the list; empty without.
        preview: Its small picture, relative to the list; empty without.
        links: Further relative addresses by the text that leads there.
    """

    name: str
    about: str
    page: str = ""
    preview: str = ""
    links: Mapping[str, str] = field(default_factory=dict)


def draw_preview(course: TimeCourse, picture: Image.Image) -> Image.Image:
    """A small picture of an input, and its time course beside it."""
    strip = draw_strip(course, _PREVIEW_WIDTH, _LETTER)
    tall = max(strip.image.height, 96)
    small = picture.convert("RGB")
    small = small.resize((max(1, round(small.width * tall / small.height)), tall))
    image = Image.new("RGB", (small.width + strip.image.width, tall), BACKGROUND)
    image.paste(small, (0, 0))
    image.paste(strip.image, (small.width, 0))
    return image


def write_index(entries: Sequence[Entry], facts: PredictionFacts, about: str, out: Path) -> None:
    """Write the list.

    Args:
        entries: Its inputs in order.
        facts: Of the predictions.
        about: A line on all of them.
        out: The file.
    """
    values = {
        "title": f"Predictions: {len(entries):,} input{'' if len(entries) == 1 else 's'}",
        "about": escape(about),
        "notes": notes_of(facts.caveats),
        "body": "\n".join(map(_item, entries)),
    }
    write_atomic(out, fill_page("index.html", values))


def _item(entry: Entry) -> str:
    name = escape(entry.name)
    if entry.page:
        name = f'<a href="{quote(entry.page)}">{name}</a>'
    links = [
        f'<a href="{quote(address)}">{escape(text)}</a>' for text, address in entry.links.items()
    ]
    line = " &middot; ".join([escape(entry.about), *links])
    image = ""
    if entry.preview:
        source = f'<img src="{quote(entry.preview)}" alt="" loading="lazy">'
        image = f'<a href="{quote(entry.page)}" tabindex="-1" aria-hidden="true">{source}</a>'
    return f'<li><h2>{name}</h2><p class="faint">{line}</p>{image}</li>'
