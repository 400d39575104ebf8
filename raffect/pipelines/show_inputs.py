"""What there is to look at of each input: overlay, page and CSV, made side by side by tasks of Ray.

A finished input leaves a record in the scratch folder, so a run that was stopped goes on with the
others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from raffect.errors import RaffectError
from raffect.predictions.styles import Style, write_styled
from raffect.predictions.table import PredictionFacts
from raffect.reporting.course import read_course
from raffect.reporting.index import Entry, draw_preview
from raffect.reporting.opening import plural
from raffect.reporting.overlay import draw_overlay
from raffect.reporting.timeline import write_timeline
from raffect.reporting.truth import Truth
from raffect.storage.atomic import atomic_path, write_atomic
from raffect.storage.records import Record

_REMEDY = "delete it and give the same command again"


@dataclass(frozen=True, kw_only=True)
class Shown(Record):
    """What was made of an input; addresses are relative to ``--out``.

    Attributes:
        title: File name of the input.
        about: Counts, or why there is nothing to see.
        page: Its timeline; empty without.
        preview: Its small picture; empty without.
        links: Further files by what they are.
        problem: What could not be drawn, and why; empty if nothing.
    """

    title: str
    about: str
    page: str = ""
    preview: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    def entry(self) -> Entry:
        """Its line of the list."""
        about = f"{self.about}; {self.problem}" if self.problem else self.about
        return Entry(
            name=self.title, about=about, page=self.page, preview=self.preview, links=self.links
        )


@dataclass(frozen=True, kw_only=True)
class Showing:
    """How inputs are shown.

    Attributes:
        out: Folder of the results.
        records: Folder of the records of finished inputs.
        facts: Of the predictions.
        style: Of the CSV files.
        overlay: Whether overlays are drawn.
        truth: Labels, if there are any.
    """

    out: Path
    records: Path
    facts: PredictionFacts
    style: Style
    overlay: bool
    truth: Truth | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An input.

    Attributes:
        name: Safe and unique, of its files.
        path: Where it lies.
        kind: ``picture`` or ``video``.
        problem: Why it is damaged or unreadable; empty if it is neither.
    """

    name: str
    path: Path
    kind: str
    problem: str


def show_inputs(
    showing: Showing, inputs: Iterator[tuple[Seen, pa.Table]]
) -> Iterator[tuple[str, Shown]]:
    """Show inputs side by side on all cores of Ray.

    Args:
        showing: How.
        inputs: Each with its rows of the table of predictions.

    Yields:
        Name of each and what was made, in the order in which they are done.
    """
    import ray

    common = ray.put(showing)
    task = ray.remote(num_cpus=1, max_retries=2)(_show)
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: dict[Any, str] = {}
    for seen, rows in inputs:
        record = showing.records / f"{seen.name}.json"
        if record.exists():
            yield seen.name, Shown.from_json(record.read_bytes(), record, _REMEDY)
            continue
        running[task.remote(common, seen, rows)] = seen.name
        if len(running) >= most:
            yield from _wait(running)
    while running:
        yield from _wait(running)


def _wait(running: dict[Any, str]) -> Iterator[tuple[str, Shown]]:
    """What the next task that is done has made."""
    import ray

    (done,), _ = ray.wait(list(running), num_returns=1)
    yield running.pop(done), ray.get(done)


def _show(showing: Showing, seen: Seen, rows: pa.Table) -> Shown:
    """Make all files of one input, and last its record."""
    shown = _make(showing, seen, rows)
    write_atomic(showing.records / f"{seen.name}.json", shown.to_bytes())
    return shown


def _make(showing: Showing, seen: Seen, rows: pa.Table) -> Shown:
    # Table
    out, facts = showing.out, showing.facts
    title = os.fsencode(seen.path.name).decode("utf-8", "backslashreplace")
    links = {"CSV": f"csv/{seen.name}.csv"}
    write_styled(rows, facts.tasks, showing.style, out / links["CSV"])
    try:
        course = read_course(rows, facts.tasks, title)
    except RaffectError:
        return Shown(title=title, about="no frame", links=links, problem=seen.problem)
    about = f"{plural(course.frames, 'frame')}, {plural(len(course.faces), 'face')}"
    about += f", {plural(course.without_face, 'frame')} without a face"

    # Overlay and small picture
    problem, preview = seen.problem, ""
    if showing.overlay:
        address = f"overlay/{seen.name}{'.png' if seen.kind == 'picture' else '.mp4'}"
        try:
            overlay = draw_overlay(seen.path, rows, facts, out / address)
        except RaffectError as error:
            problem = problem or str(error)
        else:
            problem, links["overlay"] = problem or overlay.problem, address
            preview = f"previews/{seen.name}.jpg"
            image = draw_preview(course, overlay.picture) if course.frames > 1 else overlay.picture
            _save(image, out / preview)
    if seen.kind == "picture":
        page = links.get("overlay", "")
        return Shown(
            title=title, about=about, page=page, preview=preview, links=links, problem=problem
        )

    # Timeline
    page, pages = f"pages/{seen.name}.html", out / "pages"
    video = links.get("overlay", "")
    beside = f"../{video}" if video else os.path.relpath(seen.path, pages)
    back = {"all inputs": "../index.html", "CSV": f"../{links['CSV']}"}
    write_timeline(course, facts, out / page, video=beside, truth=showing.truth, links=back)
    return Shown(title=title, about=about, page=page, preview=preview, links=links, problem=problem)


def _save(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        image.convert("RGB").save(temporary, format="JPEG", quality=85)
