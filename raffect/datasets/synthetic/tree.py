"""A data set in Aff-Wild2's exact layout, or another one's, drawn from action units.

Every frame and label follows from one seed: `plan` says which videos there are, `course` what
happens in each. Other layouts are in `layouts`.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Ge, Le
from PIL import Image

from raffect.datasets.affwild2.tasks import EXPR, HEADERS
from raffect.datasets.synthetic.course import Course, draw_course, iter_frames
from raffect.datasets.synthetic.layout import Face, Layout
from raffect.datasets.synthetic.layouts import LAYOUTS
from raffect.datasets.synthetic.plan import Video, plan_videos
from raffect.errors import RaffectError, require
from raffect.storage.atomic import write_atomic
from raffect.storage.records import Record

MARKER = "raffect-synthetic.json"
"""File that marks a data set as drawn."""

GENERATOR = 2
"""Version of the drawings: one more with every change of what is drawn from the same seed."""

AFFWILD2 = "affwild2"
"""Name of the layout that is drawn here."""

SIZES = {"tiny": 400, "small": 4_000, "medium": 40_000}
IMAGES, EDITION = "cropped_aligned", "8th_ABAW_Annotations"
TASK_FOLDERS = {
    "expr": "EXPR_Recognition_Challenge",
    "au": "AU_Detection_Challenge",
    "va": "VA_Estimation_Challenge",
}
_PATH = re.compile(rf"{IMAGES}/([^/]+)/([0-9]{{5,9}})\.jpg", re.A)
TEMPLATES = "test_set_examples"
"""Folder of the example files that a challenge's organisers give: the rows of an entry."""
_REDRAW = "delete its folder and draw it again"
_SPLIT_FOLDERS = {"train": "Train_Set", "validation": "Validation_Set"}


@dataclass(frozen=True, kw_only=True)
class DrawnSpec(Record):
    """Everything that decides what a drawn data set holds."""

    generator: int
    num_frames: Annotated[int, Ge(0), Le(100_000_000)]
    seed: Annotated[int, Ge(0)]
    layout: str = AFFWILD2

    def __str__(self) -> str:
        layout = "" if self.layout == AFFWILD2 else f"layout {self.layout}, "
        return f"{layout}generator {self.generator}, {self.num_frames:,} frames, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Drawn(Record):
    """The content of `MARKER`: the data set's specification, and its counts once it is finished."""

    spec: DrawnSpec
    counts: Mapping[str, Annotated[int, Ge(0)]] | None = None


def write_synthetic(
    out: Path,
    num_frames: int,
    seed: int,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda n: None,
    layout: str = AFFWILD2,
) -> dict[str, int]:
    """Write a drawn data set: ``out/cropped_aligned`` and ``out/8th_ABAW_Annotations``.

    In another layout the folders are those of that data set.

    A finished data set with the same size and seed is kept; an interrupted one is drawn again.

    Args:
        out: Folder to make; an existing one must be empty or hold a drawn data set.
        num_frames: Annotated lines over all videos, about; gaps leave 3 % of them without an image.
        seed: Decides everything that is drawn.
        workers: Processes; all cores by default.
        progress: Called with the number of frames each finished video adds.
        layout: Whose layout: ``affwild2`` or one of `raffect.datasets.synthetic.layouts.LAYOUTS`.

    Returns:
        Counts: videos, lines, images.

    Raises:
        RaffectError: If ``out`` holds something else or a damaged marker, ``num_frames`` is too
            small to have every split, or there is no such layout.
    """
    known = (AFFWILD2, *LAYOUTS)
    require(layout in known, f"--layout {layout}: expected one of {', '.join(known)}")
    spec = DrawnSpec(generator=GENERATOR, num_frames=num_frames, seed=seed, layout=layout)
    if finished := _read_finished(out, spec):
        return finished

    # Videos; until all are written the marker has no counts
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / MARKER, Drawn(spec=spec).to_bytes())
    if layout != AFFWILD2:
        counts = _write_layout(out, LAYOUTS[layout](num_frames, seed), seed, workers, progress)
        write_atomic(out / MARKER, Drawn(spec=spec, counts=counts).to_bytes())
        return counts
    videos = plan_videos(num_frames, seed)
    images = 0
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_write_video, out, video, seed) for video in videos]
        for video, job in zip(videos, jobs, strict=True):
            images += job.result()
            progress(video.num_frames)
    write_templates(out, videos)

    counts = {"videos": len(videos), "lines": sum(v.num_frames for v in videos), "images": images}
    write_atomic(out / MARKER, Drawn(spec=spec, counts=counts).to_bytes())
    return counts


_PART = 64
"""Pictures that a process draws at a time."""


def _write_layout(
    out: Path, layout: Layout, seed: int, workers: int | None, progress: Callable[[int], None]
) -> dict[str, int]:
    """Write lists and pictures of a layout; returns its counts."""
    for path, content in layout.files.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(content)
    for folder in {(out / path).parent for path in layout.pictures}:
        folder.mkdir(parents=True, exist_ok=True)
    faces = [(out / path, face) for path, face in layout.pictures.items()]
    parts = [faces[start : start + _PART] for start in range(0, len(faces), _PART)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_draw_faces, part, seed) for part in parts]
        for part, job in zip(parts, jobs, strict=True):
            job.result()
            progress(len(part))
    videos = len({face.clip for _, face in faces})
    return {"videos": videos, "lines": len(layout.rows), "images": len(faces)}


def _draw_faces(faces: Sequence[tuple[Path, Face]], seed: int) -> None:
    for path, face in faces:
        Image.fromarray(face.draw(seed)).save(path, quality=90)  # which PNG ignores


def _read_finished(out: Path, spec: DrawnSpec) -> dict[str, int]:
    """Counts of the finished data set in a folder; empty if there is none and it may be drawn.

    Raises:
        RaffectError: If the folder holds something else or a damaged marker.
    """
    marker = out / MARKER
    if marker.exists():
        found = Drawn.from_json(marker.read_bytes(), marker, _REDRAW)
        if found.spec != spec:
            raise RaffectError(
                f"{out} holds another drawn data set ({found.spec}); "
                "choose another --out or delete the folder"
            )
        return dict(found.counts or {})
    if out.exists() and any(out.iterdir()):
        raise RaffectError(f"{out} is not empty and was not drawn by raffect; choose another --out")
    return {}


def count_drawn(table: pa.Table) -> int:
    """How many images of a manifest raffect drew.

    Drawn are frames of a drawn data set under the names that were drawn there. Others that lie in
    or beside it, photographs for instance, are not.

    Args:
        table: ``path, root`` among its columns; roots are folders of this machine.

    Raises:
        RaffectError: If the marker of a drawn data set is damaged.
    """
    count = 0
    for root in map(Path, table["root"].unique().to_pylist()):
        # The drawn data set is the root, or a folder above it.
        folders = (root, *list(root.parents)[:2])
        tree = next((folder for folder in folders if (folder / MARKER).is_file()), None)
        if tree is not None:
            is_drawn, below = _recogniser(tree), root.relative_to(tree)
            rows = table.filter(pc.field("root").cast(pa.string()) == str(root))
            count += sum(is_drawn((below / path).as_posix()) for path in rows["path"].to_pylist())
    return count


def _recogniser(tree: Path) -> Callable[[str], bool]:
    """Tells whether a path below a drawn data set is that of one of its pictures."""
    marker = tree / MARKER
    spec = Drawn.from_json(marker.read_bytes(), marker, _REDRAW).spec
    if spec.layout != AFFWILD2:
        require(spec.layout in LAYOUTS, f"{marker}: unknown layout {spec.layout}; {_REDRAW}")
        return LAYOUTS[spec.layout](spec.num_frames, spec.seed).pictures.__contains__
    videos = plan_videos(spec.num_frames, spec.seed)
    lengths = {video.name: video.num_frames for video in videos}

    def is_drawn(path: str) -> bool:
        match = _PATH.fullmatch(path)
        return match is not None and 0 < int(match[2]) <= lengths.get(match[1], 0)

    return is_drawn


def _write_video(out: Path, video: Video, seed: int) -> int:
    """Write a video's pictures and annotations; returns how many pictures it has."""
    course = draw_course(video, seed)
    folder = out / IMAGES / video.name
    folder.mkdir(parents=True, exist_ok=True)
    for frame, pixels in iter_frames(video, course, seed):
        Image.fromarray(pixels).save(folder / f"{frame:05d}.jpg", quality=90)
    for task, lines in _annotation_lines(course).items():
        split = video.splits[task]
        if split is not None:
            _write_annotation(out, video, task, split, lines)
    return int(course.face.sum())


def _annotation_lines(course: Course) -> dict[str, list[str]]:
    """Task -> its lines as in Aff-Wild2's files, one a frame."""
    va = [
        "-5,-5" if -5 in (valence, arousal) else f"{valence:.3f},{arousal:.3f}"
        for valence, arousal in course.va.tolist()
    ]
    return {
        "expr": [str(label) for label in course.expr.tolist()],
        "au": [",".join(map(str, row)) for row in course.au.tolist()],
        "va": va,
    }


def _write_annotation(out: Path, video: Video, task: str, split: str, lines: list[str]) -> None:
    """Write one annotation file, with the irregularities that the real ones have."""
    # Some files have more images than lines, others more lines than images
    if video.index % 5 == 2:
        lines = lines[:-2]
    elif video.index % 5 == 3:
        lines = [*lines, lines[-1]]

    # Line ends of two kinds, and sometimes none at the end
    header = {found.name: line for found, line in HEADERS.items()}[task]
    ending = "\r\n" if video.index % 4 == 1 else "\n"
    text = ending.join([header, *lines]) + ("" if video.index % 3 == 1 else ending)

    folder = out / EDITION / TASK_FOLDERS[task] / _SPLIT_FOLDERS[split]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{video.name}.txt").write_bytes(text.encode())


def write_templates(out: Path, videos: Sequence[Video]) -> None:
    """An example file of each task: every frame of the videos that are in none of its splits.

    Frames without a face are listed as well, as in the organisers' files.
    """
    values = {task: 1 if task == EXPR else len(task.outputs) for task in HEADERS}
    for task, header in HEADERS.items():
        zeros = ",0" * values[task]
        rows = [
            f"{video.name}/{frame:05d}.jpg{zeros}"
            for video in videos
            if video.splits[task.name] is None
            for frame in range(1, video.num_frames + 1)
        ]
        if rows:
            text = "\n".join([f"image_location,{header}", *rows, ""])
            write_atomic(out / TEMPLATES / f"{task.name}.txt", text.encode())
