"""What there is to look at of each input: overlay, page and CSV, made side by side by tasks of Ray.

A finished input leaves a record in the scratch folder, so a run that was stopped goes on with the
others. An input that kills the process that draws it has no overlay, and all the rest.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from raffect.errors import RaffectError
from raffect.pipelines.scratch import DAY_S
from raffect.predictions.styles import Style, write_styled
from raffect.predictions.table import PredictionFacts
from raffect.ray_session.session import explain_stop
from raffect.reporting.course import read_course
from raffect.reporting.index import Entry, draw_preview
from raffect.reporting.overlay import draw_overlay
from raffect.reporting.timeline import write_timeline
from raffect.reporting.truth import Truth
from raffect.storage.atomic import PREFIX, atomic_path, write_atomic
from raffect.storage.paths import printable
from raffect.storage.records import Record

_REMEDY = "delete it and give the same command again"
_GOES_ON = "what is done is kept, the same command goes on from there"
_KILLER = "no overlay: the process that drew it died again and again"
_UNFINISHED = re.compile(rf"{re.escape(PREFIX)}(.+)\.[a-z0-9]+-[0-9a-f]{{8}}")
_TABLES = ("predictions", "index")
_FOLDERS = ("csv", "overlay", "pages", "previews")
_PATIENCE_S = 10.0
"""Seconds that tasks have to end when a run is stopped."""


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

    def is_in(self, out: Path) -> bool:
        """Whether all its files are still there."""
        addresses = (self.page, self.preview, *self.links.values())
        return all((out / address).is_file() for address in addresses if address)


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
        draw: Whether an overlay may be drawn; False where that killed the process.
    """

    name: str
    path: Path
    kind: str
    problem: str
    draw: bool = True


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
    running: dict[Any, tuple[Seen, pa.Table]] = {}
    names = set()

    def start(seen: Seen, rows: pa.Table) -> None:
        running[task.remote(common, seen, rows)] = seen, rows

    try:
        for seen, rows in inputs:
            names.add(seen.name)
            if (shown := _read_record(showing, seen.name)) is not None:
                yield seen.name, shown
                continue
            start(seen, rows)
            if len(running) >= most:
                yield from _wait(running, start)
        while running:
            yield from _wait(running, start)
    finally:
        _end(running)
        delete_unfinished(showing.out, names)


def _read_record(showing: Showing, name: str) -> Shown | None:
    """What an earlier run has made of an input; None if it, or a file of it, is not there."""
    record = showing.records / f"{name}.json"
    if not record.exists():
        return None
    shown = Shown.from_json(record.read_bytes(), record, _REMEDY)
    return shown if shown.is_in(showing.out) else None


def _wait(
    running: dict[Any, tuple[Seen, pa.Table]], start: Callable[[Seen, pa.Table], None]
) -> Iterator[tuple[str, Shown]]:
    """What the next task that is done has made; nothing if its input is started once more.

    Raises:
        RaffectError: If it failed.
    """
    import ray
    from ray.exceptions import RayError, WorkerCrashedError

    (done,), _ = ray.wait(list(running), num_returns=1)
    seen, rows = running.pop(done)
    try:
        shown = ray.get(done)
    except RayError as error:
        if not isinstance(error, WorkerCrashedError) or not seen.draw:
            raise RaffectError(f"{_explain(error)}; {_GOES_ON}") from error
        start(replace(seen, draw=False, problem=seen.problem or _KILLER), rows)
        return
    yield seen.name, shown


def _explain(error: BaseException) -> str:
    """Why a task failed, as one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, OSError):
        what = cause.strerror or cause
        return f"{cause.filename}: {what}" if cause.filename else f"cannot read or write ({what})"
    return str(cause) if isinstance(cause, RaffectError) else explain_stop(error, "cpu")


def _end(running: Collection[Any]) -> None:
    """End tasks whose results nobody waits for: they would leave files half written."""
    import ray
    from ray.exceptions import RayError

    if running and ray.is_initialized():
        with contextlib.suppress(RayError):
            for one in running:
                ray.cancel(one, force=True)
            ray.wait(list(running), num_returns=len(running), timeout=_PATIENCE_S)


def delete_unfinished(out: Path, names: Collection[str]) -> None:
    """Delete files that killed processes left half written: pictures of people among them.

    Args:
        out: Folder of the results.
        names: Of the inputs that are shown now; what is left of others is deleted a day later,
            since another run may be writing it.
    """
    for path in (path for name in _TABLES for path in out.glob(f"{PREFIX}{name}.*")):
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)
    for path in (path for name in _FOLDERS for path in (out / name).glob(f"{PREFIX}*")):
        found = _UNFINISHED.fullmatch(path.name)
        with contextlib.suppress(FileNotFoundError):
            if found and (found[1] in names or time.time() - path.stat().st_mtime > DAY_S):
                path.unlink()


def _show(showing: Showing, seen: Seen, rows: pa.Table) -> Shown:
    """Make all files of one input, and last its record."""
    shown = _make(showing, seen, rows)
    write_atomic(showing.records / f"{seen.name}.json", shown.to_bytes())
    return shown


def _make(showing: Showing, seen: Seen, rows: pa.Table) -> Shown:
    # Table
    out, facts = showing.out, showing.facts
    title = printable(seen.path.name)
    links = {"CSV": f"csv/{seen.name}.csv"}
    write_styled(rows, facts.tasks, showing.style, out / links["CSV"])
    try:
        course = read_course(rows, facts.tasks, title)
    except RaffectError:
        return Shown(title=title, about="no frame", links=links, problem=seen.problem)
    about = ", ".join(course.counts)

    # Overlay and small picture
    problem, preview = seen.problem, ""
    if showing.overlay and seen.draw:
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
