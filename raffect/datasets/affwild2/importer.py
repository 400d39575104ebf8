"""`raffect prepare --dataset affwild2`: image folders and ABAW annotations.

Where they are Aff-Wild2's own the report shows how far they are from a complete copy.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.config import PrepareConfig
from raffect.datasets.affwild2.annotations import IMAGES, Annotations, read_annotations
from raffect.datasets.affwild2.tasks import COMPLETE
from raffect.datasets.imported import Imported, SplitCounts
from raffect.datasets.labels import read_values, select_split
from raffect.datasets.listing import Listing, list_images
from raffect.datasets.problems import Problem
from raffect.datasets.root import Root, scan_root
from raffect.datasets.tasks import SPLITS, Task
from raffect.errors import RaffectError, require
from raffect.metrics.task_kinds import kind_of
from raffect.storage.keys import Vocabulary, absent, positions

_ANNOTATIONS = (
    r"(?:.*/)?(?:EXPR_(?:Classification|Recognition)|AU_Detection|VA_Estimation)_Challenge"
    r"/[^/]+/[^/]+\.txt"
)
_SHOWN = 10
_TOLERANCE = 0.1
"""How far counts of Aff-Wild2's annotations may be from a complete copy's, as a share of these."""


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


def recognise(root: Root) -> str:
    """Why a root is Aff-Wild2's; empty if it is not."""
    found = root.find(_ANNOTATIONS)
    return f"annotations {found[0]}" if found else ""


def import_affwild2(config: PrepareConfig, root: Root | None = None) -> Imported:
    """Read an ABAW edition and list its images.

    Below ``--root`` images are all folders ``cropped_aligned*``, unless ``--images`` names some.

    Raises:
        RaffectError: If no image or no annotation is found, or they have no frame in common.
    """
    # Images and annotations
    if config.root is not None:
        config = _below_root(config, root or scan_root(config.root, skip=IMAGES))
    start = time.perf_counter()
    listing = list_images(config.images)
    listed_s = time.perf_counter() - start
    assert config.annotations is not None  # PrepareConfig has checked it
    annotations = read_annotations(config.annotations)

    # How far they belong together, for every split that has lines
    coverage = [
        measure(task, split, table, listing.table)
        for task, table in annotations.tables.items()
        for split in SPLITS
    ]
    coverage = [part for part in coverage if part.lines]
    _require_common(config, listing, annotations, coverage)

    # The data set and its report
    found = Imported(
        manifest=listing.table,
        labels=annotations.tables,
        edition=annotations.edition,
        digest=annotations.digest,
        counts=[part.counts for part in coverage],
        problems=_all_problems(annotations, listing, coverage),
    )
    is_affwild2 = not found.synthetic and resembles_affwild2(coverage)
    found.lines = _report(listing, annotations, coverage, listed_s, is_affwild2)
    return found


def _below_root(config: PrepareConfig, root: Root) -> PrepareConfig:
    """The configuration with images and annotations as they lie below a root.

    Its walk has left the pictures out: `list_images` lists them.
    """
    tops = [folder for folder, _ in root.skipped]
    require(
        bool(config.images or tops),
        f"--root {config.root}: no folder cropped_aligned below it; name images with --images",
    )
    images = config.images or tuple(Path(root.path) / folder for folder in sorted(tops))
    return replace(config, images=images, annotations=config.annotations or config.root)


def resembles_affwild2(coverage: Sequence[Coverage]) -> bool:
    """Whether annotations are Aff-Wild2's own, of any edition, rather than others in its layout.

    They are if one of their splits has as many videos and annotated frames as a complete copy, give
    or take a tenth: editions differ by less. Images play no part, for they may be missing.
    """
    return any(
        abs(part.videos / copy.videos[part.split] - 1) <= _TOLERANCE
        and abs(part.annotated / copy.annotated[part.split] - 1) <= _TOLERANCE
        for part in coverage
        for copy in [COMPLETE[part.task]]
    )


def _require_common(
    config: PrepareConfig,
    listing: Listing,
    annotations: Annotations,
    coverage: Sequence[Coverage],
) -> None:
    """Refuse images and annotations that have no frame in common.

    Raises:
        RaffectError: Names the first frame of both.
    """
    if any(part.without_image < part.lines for part in coverage):
        return
    image, line = map(_first_frame, (listing.table, next(iter(annotations.tables.values()))))
    images = " ".join(map(str, config.images))
    raise RaffectError(
        f"--images {images}: no frame of it is in --annotations {config.annotations} (first image "
        f"{image}, first annotated frame {line}); give folders that are named as the annotation "
        "files are"
    )


def _first_frame(table: pa.Table) -> str:
    rows = table.select(["video", "frame"]).slice(0, 1).to_pylist()
    return f"{rows[0]['video']}/{rows[0]['frame']:05d}" if rows else "none"


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
    annotations: Annotations, listing: Listing, coverage: Sequence[Coverage]
) -> list[Problem]:
    problems = [*annotations.problems, *listing.problems]
    what = "no image folder of this name; is a second archive missing from --images?"
    for part in coverage:
        folder = f"{part.task.name}/{part.split}"
        problems += [Problem(f"{folder}/{video}.txt", 0, what) for video in part.missing_videos]
    return problems


def _report(
    listing: Listing,
    annotations: Annotations,
    coverage: Sequence[Coverage],
    listed_s: float,
    is_affwild2: bool,
) -> list[str]:
    """What was found, as lines of text."""
    # Images and annotations
    videos = len(listing.table["video"].unique())
    images = f"{len(listing.table):,} frames in {videos:,} videos, listed in {listed_s:.1f} s"
    names = ", ".join(task.name for task in annotations.tables)
    out = [
        f"images: {images}",
        *listing.lines(),
        f"annotations: edition {annotations.edition!r}, {names}",
        *annotations.ignored.lines("annotations"),
        "",
    ]

    # Counts, beside those of a complete copy if the data are Aff-Wild2
    out += _coverage_lines(coverage, is_affwild2)
    out.append("")

    # Classes, rates and means
    for part in coverage:
        out += _share_lines(part, is_affwild2)

    # Videos without images
    for part in coverage:
        count = len(part.missing_videos)
        if count:
            shown = ", ".join(part.missing_videos[:_SHOWN])
            more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
            which = f"{count} of {part.videos} {part.task.name} {part.split} videos"
            out.append(f"missing: {which} have no image folder: {shown}{more}")
    return out


def _coverage_lines(coverage: Sequence[Coverage], with_complete: bool) -> list[str]:
    """A table with a line a split; a column "complete copy" belongs to the one on its left."""
    titles = ["videos", "complete copy", "lines", "annotated", "complete copy", "with image"]
    titles += ["complete copy", "lines w/o image", "images w/o line"]
    rows = [["task", "split", *titles]]
    for part in coverage:
        copy, split = COMPLETE[part.task], part.split
        complete = (copy.videos[split], copy.annotated[split], copy.with_image.get(split))
        videos, annotated, with_image = map(_or_unknown, complete)
        found = [f"{part.videos:,}", videos, f"{part.lines:,}", f"{part.annotated:,}", annotated]
        found += [f"{part.with_image:,}", with_image, f"{part.without_image:,}"]
        rows.append([part.task.name, split, *found, f"{part.images_without_line:,}"])

    # Numbers to the right; without the columns of a complete copy if the data are others
    shown = [k for k, title in enumerate(rows[0]) if with_complete or title != "complete copy"]
    return [
        f"{row[0]:5}{row[1]:11}" + "".join(f"{row[k]:>{len(rows[0][k]) + 3}}" for k in shown[2:])
        for row in rows
    ]


def _share_lines(part: Coverage, with_complete: bool) -> list[str]:
    """Class counts, label rates or means of values.

    Those of a complete copy are on the line below if they are wanted and known.
    """
    title = f"{part.task.name} {part.split}"
    shares = part.shares
    # Means have names of their own, since they are not shares of the task's outputs
    if any(name not in part.task.outputs for name in shares):
        means = ", ".join(f"{name} {value:+.3f}" for name, value in shares.items())
        return [f"{title}: {means}", ""]
    here = [f"{value:,}" if isinstance(value, int) else f"{value:.3f}" for value in shares.values()]
    rows = [(title, list(shares)), ("  here" if with_complete else "", here)]
    if with_complete and part.split in (complete := COMPLETE[part.task].shares):
        rows.append(("  complete copy", list(complete[part.split])))
    return [f"{name:17}" + "".join(f"{cell:>11}" for cell in row) for name, row in rows] + [""]


def _or_unknown(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"
