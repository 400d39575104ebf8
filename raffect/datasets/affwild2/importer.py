"""`raffect prepare --dataset affwild2`: image folders and ABAW annotations.

The report shows how far they are from a complete copy.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from raffect.config import PrepareConfig
from raffect.datasets.affwild2.annotations import Annotations, read_annotations
from raffect.datasets.affwild2.tasks import COMPLETE
from raffect.datasets.imported import Imported, Problem, SplitCounts, file_problems
from raffect.datasets.labels import read_values, select_split
from raffect.datasets.manifest import Listing, list_images
from raffect.datasets.synthetic.tree import is_synthetic
from raffect.datasets.tasks import SPLITS, Task
from raffect.metrics.task_kinds import kind_of
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
        shares: Classes, labels or values -> count, rate or mean over annotated frames with an
            image.
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
    # Images and annotations
    start = time.perf_counter()
    listing = list_images(config.images)
    listed_s = time.perf_counter() - start
    assert config.annotations is not None  # PrepareConfig has checked it
    annotations = read_annotations(config.annotations)
    synthetic = all(is_synthetic(root) for root in listing.table["root"].unique().to_pylist())

    # How far they belong together, for every split that has lines
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
    """Compare one split's lines with the images of a manifest."""
    labels = select_split(labels, split)

    # Lines and images by key; the manifest's videos have the first numbers
    vocabulary = Vocabulary(sorted(manifest["video"].unique().to_pylist()))
    known_videos = len(vocabulary.names)
    images = vocabulary.keys(manifest)
    lines = vocabulary.keys(labels)
    has_image = positions(lines, images) >= 0

    # Labels
    values = read_values(labels, task)
    known = task.is_labelled(values).any(axis=1)

    # Videos without an image folder, and images beyond a video's last line
    videos = labels["video"].unique().to_pylist()
    numbers = np.array([vocabulary.number(video) for video in videos], np.int64)
    missing = sorted(vocabulary.names[number] for number in numbers if number >= known_videos)
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
        missing_videos=missing,
        shares=kind_of(task).shares(task, values[known & has_image]),
    )


def _all_problems(
    annotations: Annotations, listing: Listing, coverage: list[Coverage]
) -> list[Problem]:
    problems = [*annotations.problems, *file_problems(listing.problems)]
    what = "no image folder of this name; is a second archive missing from --images?"
    for part in coverage:
        folder = f"{part.task.name}/{part.split}"
        problems += [Problem(f"{folder}/{video}.txt", 0, what) for video in part.missing_videos]
    return problems


def _report(
    listing: Listing,
    annotations: Annotations,
    coverage: list[Coverage],
    listed_s: float,
    synthetic: bool,
) -> list[str]:
    """What was found, for people."""
    # Images and annotations
    videos = len(listing.table["video"].unique())
    images = f"{len(listing.table):,} frames in {videos:,} videos, listed in {listed_s:.1f} s"
    drawn = " [drawn by raffect]" if synthetic else ""
    names = ", ".join(task.name for task in annotations.tables)
    out = [
        f"images: {images} ({listing.num_other:,} other files ignored){drawn}",
        *listing.link_lines(),
        f"annotations: edition {annotations.edition!r}, {names}",
        "",
    ]

    # Counts beside those of a complete copy
    out += _coverage_lines(coverage)
    out.append("")

    # Classes, rates and means
    for part in coverage:
        out += _share_lines(part)

    # Videos without images
    for part in coverage:
        count = len(part.missing_videos)
        if count:
            shown = ", ".join(part.missing_videos[:_SHOWN])
            more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
            which = f"{count} of {part.videos} {part.task.name} {part.split} videos"
            out.append(f"missing: {which} have no image folder: {shown}{more}")
    return out


def _coverage_lines(coverage: list[Coverage]) -> list[str]:
    """A table with a line a split; a column "complete copy" belongs to the one on its left."""
    titles = (
        f"{'task':5}{'split':11}{'videos':>7}{'complete':>9}{'lines':>11}"
        f"{'annotated':>11}{'complete copy':>15}{'with image':>12}{'complete copy':>15}"
        f"{'lines w/o image':>17}{'images w/o line':>17}"
    )
    lines = [titles]
    for part in coverage:
        copy, split = COMPLETE[part.task], part.split
        lines.append(
            f"{part.task.name:5}{split:11}{part.videos:7,}{copy.videos[split]:9,}{part.lines:11,}"
            f"{part.annotated:11,}{copy.annotated[split]:15,}"
            f"{part.with_image:12,}{_or_unknown(copy.with_image.get(split)):>15}"
            f"{part.without_image:17,}{part.images_without_line:17,}"
        )
    return lines


def _share_lines(part: Coverage) -> list[str]:
    """Class counts, label rates or means of values.

    Those of a complete copy are on the line below where they are known.
    """
    title = f"{part.task.name} {part.split}"
    shares = part.shares
    # Means have names of their own, since they are not shares of the task's outputs
    if any(name not in part.task.outputs for name in shares):
        means = ", ".join(f"{name} {value:+.3f}" for name, value in shares.items())
        return [f"{title}: {means}", ""]
    here = [f"{value:,}" if isinstance(value, int) else f"{value:.3f}" for value in shares.values()]
    rows = [(title, list(shares)), ("  here", here)]
    if part.split in (complete := COMPLETE[part.task].shares):
        rows.append(("  complete copy", list(complete[part.split])))
    return [f"{name:17}" + "".join(f"{cell:>11}" for cell in row) for name, row in rows] + [""]


def _or_unknown(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"
