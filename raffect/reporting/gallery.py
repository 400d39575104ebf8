"""A page with the pictures of the frames that cost a head most: hard, or labelled wrongly?

It shows faces. It is written only where a user asks for it, is a file of its own, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from raffect.datasets.frames import BadFrame, read_frames
from raffect.datasets.listing import list_images, list_pictures
from raffect.datasets.manifest import read_manifest
from raffect.errors import RaffectError
from raffect.predictions.table import read_facts
from raffect.reporting.hardest import Hard, find_hardest
from raffect.reporting.template import data_uri, escape, fill_page, notes_of
from raffect.reporting.truth import Truth
from raffect.storage.atomic import write_atomic
from raffect.storage.keys import Vocabulary, positions
from raffect.storage.tables import write_csv

_SIDE = 160
_FACES = (
    "This page holds pictures of faces, inside the file. Whoever has the file sees them: keep it "
    "as the licence of your data asks for, and share the report without it."
)


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A gallery on disk.

    Attributes:
        html: The page, with its pictures inside.
        csv: Its frames without pictures.
        frames: How many.
        without_picture: Of how many the picture could not be read.
    """

    html: Path
    csv: Path
    frames: int
    without_picture: int

    def lines(self) -> list[str]:
        """Files and counts as lines of text."""
        lacking = f", {self.without_picture} without a picture" if self.without_picture else ""
        return [
            f"wrote {self.html}: {self.frames} frames with the highest loss{lacking}; "
            "it holds pictures of faces",
            f"wrote {self.csv}: the same frames as a table, without pictures",
        ]


def write_gallery(
    predictions: Path, labels: Path, images: Sequence[Path], split: str, out: Path
) -> Gallery:
    """Write ``gallery.html`` and ``gallery.csv``.

    Args:
        predictions: Table of `raffect predict`.
        labels: A label table, or the folder that `raffect prepare` wrote.
        images: Image roots as `raffect prepare` takes them, or manifests.
        split: Whose labels count; empty for all.
        out: Folder of the files.

    Raises:
        RaffectError: If a file is missing or damaged, or no labelled frame was predicted.
    """
    facts = read_facts(predictions)
    truth = Truth(labels, facts.tasks, split)
    hardest = find_hardest(predictions, truth)
    if not hardest:
        which = f"of split {split} " if split else ""
        raise RaffectError(
            f"{predictions}: no frame of it {which}has a label in {labels}; "
            "predict on the bank of those labels"
        )
    pictures = _find_pictures(images, hardest)

    # A section a task, a grid a class
    sections = []
    rows = list(zip(hardest, pictures, strict=True))
    tasks = {task.name: task for task in facts.tasks}
    for name, of_task in groupby(rows, key=lambda row: row[0].task):
        sections.append(f"<h2>{escape(name)}</h2>")
        for output, found in groupby(of_task, key=lambda row: row[0].output):
            figures = "\n".join(_figure(hard, picture) for hard, picture in found)
            title = escape(tasks[name].describe(output))
            sections.append(f'<h3>{title}</h3>\n<div class="grid">\n{figures}\n</div>')

    # Page and table
    which = f"split {split}" if split else "all labelled frames"
    values = {
        "title": "Frames with the highest loss: hard, or labelled wrongly?",
        "about": escape(f"{which}; model {facts.model}; of each second of a video one frame"),
        "notes": notes_of([_FACES]) + notes_of(facts.caveats),
        "body": "\n".join(sections),
    }
    write_atomic(out / "gallery.html", fill_page("gallery.html", values))
    write_csv(out / "gallery.csv", [asdict(hard) for hard in hardest])
    return Gallery(
        html=out / "gallery.html",
        csv=out / "gallery.csv",
        frames=len(hardest),
        without_picture=sum(isinstance(picture, BadFrame) for picture in pictures),
    )


def _find_pictures(images: Sequence[Path], hardest: Sequence[Hard]) -> list[np.ndarray | BadFrame]:
    """The picture of each frame, or why there is none."""
    manifest = _list(images)
    vocabulary = Vocabulary()
    wanted = pa.table(
        {
            "video": pa.array([hard.video for hard in hardest], pa.string()),
            "frame": pa.array([hard.frame for hard in hardest], pa.int32()),
        }
    )
    keys = vocabulary.keys(manifest)
    order = np.argsort(keys, kind="stable")
    rows = positions(vocabulary.keys(wanted), keys[order])
    found = read_frames(manifest.take(pa.array(order[rows[rows >= 0]])))
    pictures: list[np.ndarray | BadFrame] = [BadFrame("not below --images")] * len(hardest)
    for place, picture in zip(np.flatnonzero(rows >= 0).tolist(), found, strict=True):
        pictures[place] = picture
    return pictures


def _list(images: Sequence[Path]) -> pa.Table:
    """All frames of image roots: folders of videos, of pictures, or manifests."""
    manifests = [path for path in images if _has_manifest(path)]
    folders = [path for path in images if not _has_manifest(path)]
    tables = [read_manifest(path) for path in manifests]
    if folders:
        try:
            tables.append(list_images(folders).table)
        except RaffectError:
            tables.append(list_pictures(folders).table)
    columns = ("video", "frame", "path", "root")
    types = (pa.string(), pa.int32(), pa.string(), pa.string())
    schema = pa.schema(list(zip(columns, types, strict=True)))
    return pa.concat_tables([table.select(columns).cast(schema) for table in tables])


def _has_manifest(path: Path) -> bool:
    return path.suffix == ".parquet" or (path / "manifest.parquet").exists()


def _figure(hard: Hard, picture: np.ndarray | BadFrame) -> str:
    where = f"{hard.video} frame {hard.frame}"
    if isinstance(picture, BadFrame):
        shown = f'<div class="none">{escape(picture)}</div>'
    else:
        image = Image.fromarray(picture)
        image.thumbnail((_SIDE, _SIDE))
        shown = f'<img src="{data_uri(image)}" alt="{escape(where)}">'
    share = f" ({hard.confidence:.2f})" if hard.confidence is not None else ""
    return (
        f"<figure>{shown}<figcaption><b>{escape(hard.video)}</b> frame {hard.frame}<br>"
        f"true {escape(hard.true)}, predicted {escape(hard.predicted)}{share}<br>"
        f"loss {hard.loss:.2f}</figcaption></figure>"
    )
