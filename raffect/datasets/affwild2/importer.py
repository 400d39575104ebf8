"""`raffect prepare --dataset affwild2`: image folders and ABAW annotations, and how far they are from a complete copy."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from raffect.config import PrepareConfig
from raffect.datasets.affwild2.annotations import Annotations, read_annotations
from raffect.datasets.affwild2.tasks import COMPLETE
from raffect.datasets.importing import Imported, Problem, SplitCounts
from raffect.datasets.labels import read_values, select_split
from raffect.datasets.manifest import Listing, list_images
from raffect.datasets.synthetic.tree import is_synthetic
from raffect.datasets.tasks import SPLITS, Task
from raffect.metrics.kinds import kind_of
from raffect.storage.keys import Vocabulary, absent, positions

_SHOWN = 10


@dataclass
class Coverage:
    """One split of one task: how many lines have a label and an image.

    Attributes:
        lines: Annotation lines.
        annotated: Lines that carry a label.
        with_image: Those of them that have an image.
        without_image: Lines, labelled or not, whose frame has no image.
        images_without_line: Images of the split's videos beyond the last line.
        missing_videos: Videos without an image folder.
        shares: Classes, labels or values -> count, rate or mean over annotated frames with an image.
    """

    task: Task
    split: str
    videos: int
    lines: int
    annotated: int
    with_image: int
    without_image: int
    images_without_line: int
    missing_videos: list[str]
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def counts(self) -> SplitCounts:
        """The counts that every data set has."""
        return SplitCounts(
            task=self.task.name,
            split=self.split,
            rows=self.lines,
            labelled=self.annotated,
            with_image=self.with_image,
            groups=self.videos,
        )


def import_affwild2(config: PrepareConfig) -> Imported:
    """Read an ABAW edition and list its images.

    Raises:
        RaffectError: If no image or no annotation is found.
    """
    start = time.perf_counter()
    listing = list_images(config.images)
    listed_s = time.perf_counter() - start
    assert config.annotations is not None  # the configuration has seen to it
    annotations = read_annotations(config.annotations)
    synthetic = all(is_synthetic(root) for root in listing.table["root"].unique().to_pylist())
    coverage = [
        measure(task, split, table, listing.table)
        for task, table in annotations.tables.items()
        for split in SPLITS
    ]
    coverage = [part for part in coverage if part.lines]
    return Imported(
        manifest=listing.table,
        labels=annotations.tables,
        edition=annotations.edition,
        digest=annotations.digest,
        synthetic=synthetic,
        counts=[part.counts for part in coverage],
        lines=_report(listing, annotations, coverage, listed_s, synthetic),
        problems=_all_problems(annotations, listing, coverage),
    )


def measure(task: Task, split: str, labels: pa.Table, manifest: pa.Table) -> Coverage:
    """Compare one split's lines with the images there are."""
    labels = select_split(labels, split)
    vocabulary = Vocabulary(sorted(manifest["video"].unique().to_pylist()))
    known_videos = len(vocabulary.names)
    images = vocabulary.keys(manifest)
    lines = vocabulary.keys(labels)
    has_image = positions(lines, images) >= 0
    values = read_values(labels, task)
    known = task.is_labelled(values).any(axis=1)
    videos = labels["video"].unique().to_pylist()
    numbers = np.array([vocabulary.number(video) for video in videos], np.int64)
    beyond = np.isin(images >> 32, numbers) & absent(images, lines)
    return Coverage(
        task=task,
        split=split,
        videos=len(videos),
        lines=len(lines),
        annotated=int(known.sum()),
        with_image=int((known & has_image).sum()),
        without_image=int((~has_image).sum()),
        images_without_line=int(beyond.sum()),
        missing_videos=sorted(
            vocabulary.names[number] for number in numbers if number >= known_videos
        ),
        shares=kind_of(task).shares(task, values[known & has_image]),
    )


def _all_problems(
    annotations: Annotations, listing: Listing, coverage: list[Coverage]
) -> list[Problem]:
    problems = list(annotations.problems)
    problems += [
        Problem(path, 0, what)
        for path, _, what in (problem.partition(": ") for problem in listing.problems)
    ]
    for part in coverage:
        problems += [
            Problem(
                f"{part.task.name}/{part.split}/{video}.txt",
                0,
                "no image folder of this name; is a second archive missing from --images?",
            )
            for video in part.missing_videos
        ]
    return problems


def _report(
    listing: Listing,
    annotations: Annotations,
    coverage: list[Coverage],
    listed_s: float,
    synthetic: bool,
) -> list[str]:
    videos = len(listing.table["video"].unique())
    out = [
        f"images: {len(listing.table):,} frames in {videos:,} videos, listed in {listed_s:.1f} s ({listing.num_other:,} other files ignored)"
        + (" [drawn by raffect]" if synthetic else ""),
        *listing.link_lines(),
        f"annotations: edition {annotations.edition!r}, {', '.join(task.name for task in annotations.tables)}",
        "",
        f"{'task':5}{'split':11}{'videos':>7}{'complete':>9}{'lines':>11}{'annotated':>11}{'complete copy':>15}{'with image':>12}{'complete copy':>15}{'lines w/o image':>17}{'images w/o line':>17}",
    ]
    for part in coverage:
        copy = COMPLETE[part.task]
        out.append(
            f"{part.task.name:5}{part.split:11}{part.videos:7,}{copy.videos[part.split]:9,}{part.lines:11,}{part.annotated:11,}{copy.annotated[part.split]:15,}{part.with_image:12,}"
            f"{_or_unknown(copy.with_image.get(part.split)):>15}{part.without_image:17,}{part.images_without_line:17,}"
        )
    out.append("")
    for part in coverage:
        out += _share_lines(part)
    for part in coverage:
        if part.missing_videos:
            names = ", ".join(part.missing_videos[:_SHOWN]) + (
                f" and {len(part.missing_videos) - _SHOWN} more"
                if len(part.missing_videos) > _SHOWN
                else ""
            )
            out.append(
                f"missing: {len(part.missing_videos)} of {part.videos} {part.task.name} {part.split} videos have no image folder: {names}"
            )
    return out


def _share_lines(part: Coverage) -> list[str]:
    """Class counts, label rates or means of values, with those of a complete copy below where they are known."""
    title = f"{part.task.name} {part.split}"
    if any(name not in part.task.outputs for name in part.shares):  # means say so in their names
        return [
            f"{title}: " + ", ".join(f"{name} {value:+.3f}" for name, value in part.shares.items()),
            "",
        ]
    here = [
        f"{value:,}" if isinstance(value, int) else f"{value:.3f}" for value in part.shares.values()
    ]
    rows = [(title, list(part.shares)), ("  here", here)]
    if part.split in (complete := COMPLETE[part.task].shares):
        rows.append(("  complete copy", list(complete[part.split])))
    return [f"{name:17}" + "".join(f"{cell:>11}" for cell in row) for name, row in rows] + [""]


def _or_unknown(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"
