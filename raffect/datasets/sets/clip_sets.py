"""Data sets whose samples are clips: clips of lists and folders of frames become a label table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raffect.config import PrepareConfig
from raffect.datasets.expressions import describe_classes
from raffect.datasets.imported import Imported, count_splits, describe_counts, hold_out
from raffect.datasets.listing import Listing, Video, build_manifest
from raffect.datasets.problems import Problem
from raffect.datasets.root import Place
from raffect.datasets.sets.clip_lists import Clip
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError


class ClipFolders:
    """Folders of frames, looked up by the name of a clip.

    Args:
        place: Where the data set lies.
        depth: How many folders at the end of a path make the clip's name.
    """

    def __init__(self, place: Place, depth: int = 1) -> None:
        self._roots = []
        for root in place.images:
            by_name: dict[str, list[Video]] = defaultdict(list)
            for video in root.videos:
                by_name["/".join(video.folder.split("/")[-depth:])].append(video)
            by_number: dict[int, list[Video]] = defaultdict(list)
            for name, videos in by_name.items():
                if _is_number(name):
                    by_number[int(name)] += videos
            self._roots.append((root.path, by_name, by_number))
        self._used = set[tuple[str, str]]()

    def find(self, clip: str) -> Video | None:
        """Frames of a clip; ``00007`` is also found in a folder ``7``.

        Raises:
            RaffectError: If several folders of one root have frames of it.
        """
        for root, by_name, by_number in self._roots:
            found = by_name.get(clip, [])
            if not found and _is_number(clip):
                found = by_number.get(int(clip), [])
            if len(found) > 1:
                folders = [video.folder for video in found]
                raise RaffectError(
                    f"{root}: {len(found)} folders hold frames of clip {clip} "
                    f"({', '.join(folders[:3])}); name the folder of the right ones with --images"
                )
            if found:
                self._used.add((root, found[0].folder))
                return found[0]._replace(name=clip)
        return None

    def ignore_unused(self, listing: Listing) -> None:
        """Count the folders of frames that no list names."""
        for root, by_name, _ in self._roots:
            folders = (video.folder for videos in by_name.values() for video in videos)
            unused = sorted(folder for folder in folders if (root, folder) not in self._used)
            if unused:
                kind = "clips that no list names"
                listing.ignored.add(kind, *unused[:3], count=len(unused))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 10


@dataclass
class ClipSet:
    """A data set of clips on its way to `Imported`.

    Attributes:
        title: Its name, such as ``DFEW``.
        place: Where it lies.
        task: The task of its labels.
        names: The data set's own word or number -> class.
        complete: What a complete copy has, as text; empty if that is not published.
        edition: Which lists the labels come from.
        clips: Every clip by name.
        num_official: Official folds of the data set; 0 for one split.
        problems: All that is wrong so far.
        lines: What was found so far, as lines of text.
    """

    title: str
    place: Place
    task: Task
    names: dict[str, str]
    complete: str
    edition: str
    clips: dict[str, Clip]
    num_official: int = 0
    problems: list[Problem] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def find_frames(self, folders: ClipFolders) -> None:
        """Look up the frames of every clip, and note what is missing."""
        for name, clip in self.clips.items():
            line, expected = clip.entry.line, clip.entry.num_frames
            clip.video = folders.find(name)
            if clip.video is None:
                kind = "no folder of frames"
                self.problems.append(line.problem(f"{name}: {kind}", kind))
            elif expected is not None and len(clip.video.frames) != expected:
                kind = "another number of frames than the list says"
                what = f"{name}: {len(clip.video.frames)} frames, the list says {expected}"
                self.problems.append(line.problem(what, kind))

    def find_all_frames(self, depth: int = 1) -> None:
        """`find_frames` below all image roots, whose other folders are counted.

        Args:
            depth: See `ClipFolders`.
        """
        folders = ClipFolders(self.place, depth)
        self.find_frames(folders)
        folders.ignore_unused(self.place.images[0].listing)

    def to_imported(self, config: PrepareConfig) -> Imported:
        """Manifest, label table and report.

        Raises:
            RaffectError: If no clip has frames.
        """
        rows = _Rows.of(self.clips)
        listing = self.place.listing
        if not rows.videos:
            first = next(iter(self.clips))
            images = " ".join(root.path for root in self.place.images)
            raise RaffectError(
                f"{images}: no frames of any of the {len(self.clips):,} clips of {self.title} "
                f"(first {first}); expected a folder of numbered pictures for each"
            )
        manifest = build_manifest(rows.videos, listing)
        splits, how_split = self._split(rows, config)
        number = {name: k for k, name in enumerate(self.task.outputs)}
        labels = np.array([number.get(label or "", -1) for label in rows.labels], np.int16)
        columns = {"video": rows.names, "start": rows.start, "end": rows.end}
        columns["split"] = pa.array(splits).dictionary_encode()
        if self.has_folds:
            columns["fold"] = np.array(rows.folds, np.int8)
        table = pa.table(columns | {"expression": labels})

        counts = count_splits(self.task, table, labels >= 0, manifest)
        with_frames = f"{len(rows.videos):,} of them with frames, {len(manifest):,} frames"
        complete = f"; {self.complete}" if self.complete else ""
        return Imported(
            manifest=manifest,
            labels={self.task: table},
            edition=self.edition,
            digest=self.place.lists.digest,
            groups="clips",
            counts=counts,
            lines=[
                f"{self.title}: {len(rows.names):,} clips, {with_frames}{complete}",
                *listing.lines(),
                *self.lines,
                f"labels: {self.task.name}, a class a clip",
                *describe_classes(self.names, self.task.outputs),
                f"split: {how_split}",
                *describe_counts(counts, "clips"),
            ],
            problems=[*self.problems, *listing.problems],
            names={self.task.name: self.names},
        )

    @property
    def has_frames(self) -> bool:
        """Whether any clip has frames."""
        return any(clip.video is not None for clip in self.clips.values())

    @property
    def folds(self) -> list[int]:
        """Official folds whose test lists were found."""
        return sorted({clip.fold for clip in self.clips.values()} - {0})

    @property
    def has_folds(self) -> bool:
        """Whether every official fold was found."""
        return len(self.folds) == self.num_official > 1

    def _split(self, rows: _Rows, config: PrepareConfig) -> tuple[list[str], str]:
        """Split of each clip, and how it came about.

        Where nothing is ``validation``, a share of the training clips is.
        """
        if folds := self.folds:
            found = f"column fold has all {len(folds)} sets (--folds official)"
            if not self.has_folds:
                numbers = ", ".join(map(str, folds))
                found = f"no --folds official, test lists of sets {numbers} of {self.num_official}"
            return rows.splits, f"test clips of set {folds[0]} are validation; {found}"
        if "validation" in rows.splits:
            return rows.splits, "as given"
        how = f"{config.validation_share:g} of the train clips are validation"
        if "test" in rows.splits:
            how = f"test as given; {how}"
        if self.num_official:
            how += "; no --folds official, no test lists"
        return hold_out(rows.names, rows.splits, config.validation_share), how


class _Rows(NamedTuple):
    """Clips as columns, by name."""

    names: list[str]
    start: np.ndarray
    end: np.ndarray
    splits: list[str]
    folds: list[int]
    labels: list[str | None]
    videos: list[Video]

    @classmethod
    def of(cls, clips: Mapping[str, Clip]) -> _Rows:
        # A clip without frames is its frame 1 alone, which no bank has
        found = sorted(clips.items())
        chosen = [clip for _, clip in found]
        frames = [clip.video.frames if clip.video else np.array([1], np.int32) for clip in chosen]
        return cls(
            names=[name for name, _ in found],
            start=np.array([part.min() for part in frames], np.int32),
            end=np.array([part.max() for part in frames], np.int32),
            splits=[clip.split for clip in chosen],
            folds=[clip.fold for clip in chosen],
            labels=[clip.label for clip in chosen],
            videos=[clip.video for clip in chosen if clip.video],
        )
