"""Data sets whose samples are clips: lists of clips and folders of frames become a label table.

A list names clips of one side, train or test, of one official fold or of the only split. A clip is
in the test list of one fold at most, which its column ``fold`` names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raffect.config import PrepareConfig
from raffect.datasets.expressions import describe_classes, find_expression
from raffect.datasets.imported import Imported, count_splits, deal_split, describe_counts
from raffect.datasets.manifest import Listing, Video, build_manifest
from raffect.datasets.problems import Problem
from raffect.datasets.root import Line, Place, Root
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError

_LIST_LINE = re.compile(r"\s*(.+?)(?:[\s,]+([0-9]{1,6}))?[\s,]+([A-Za-z_]+|[0-9]{1,2})\s*", re.A)
_HEADER = re.compile(r"\s*(video|clip|name|path|order)", re.I)
_DEALT_SEED = 0


@dataclass(frozen=True)
class Entry:
    """What a line of a list says of a clip.

    Attributes:
        line: The line.
        clip: The clip's name.
        label: Its class; None if the line has none that is understood.
        side: ``train``, ``validation`` or ``test``.
        fold: Number of the official fold that the list belongs to; 0 for the only split.
        num_frames: Frames that the clip should have, where the line says so.
    """

    line: Line
    clip: str
    label: str | None
    side: str
    fold: int = 0
    num_frames: int | None = None


@dataclass
class Clip:
    """A clip that lists name.

    Attributes:
        entry: The first line that names it.
        label: Its class; None if it has none, or lines disagree.
        split: ``train``, ``validation`` or ``test``.
        fold: The official fold whose test list has it; 0 for none.
        video: Its frames; None if no folder has them.
    """

    entry: Entry
    label: str | None
    split: str
    fold: int = 0
    video: Video | None = None


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
            for video in root.find_videos():
                by_name["/".join(video.folder.split("/")[-depth:])].append(video)
            numbers = {int(name): name for name in by_name if name.isascii() and name.isdigit()}
            self._roots.append((root.path, by_name, numbers))
        self._depth, self._used = depth, set[tuple[str, str]]()

    def find(self, clip: str) -> Video | None:
        """Frames of a clip; ``00007`` is also found in a folder ``7``.

        Raises:
            RaffectError: If several folders of one root have frames of it.
        """
        is_number = clip.isascii() and clip.isdigit() and len(clip) < 10
        for root, by_name, numbers in self._roots:
            name = numbers.get(int(clip), clip) if is_number and clip not in by_name else clip
            found = by_name.get(name, ())
            if len(found) > 1:
                folders = [video.folder for video in found]
                raise RaffectError(
                    f"{root}: {len(found)} folders hold frames of clip {clip} "
                    f"({', '.join(folders[:3])}); name the folder of the right ones with --images"
                )
            if found:
                self._used.add((root, name))
                return found[0]._replace(name=clip)
        return None

    def ignore_unused(self, listing: Listing) -> None:
        """Count the folders of frames that no list names."""
        for root, by_name, _ in self._roots:
            unused = sorted(name for name in by_name if (root, name) not in self._used)
            if unused:
                kind = "clips that no list names"
                listing.ignored.add(kind, *unused[:3], count=len(unused))


def merge_entries(entries: Sequence[Entry]) -> tuple[dict[str, Clip], list[Problem]]:
    """Every clip of all lists once, with its split or fold, and what is wrong with the lists.

    Lines that disagree on a clip's class leave it unlabelled. Of official folds, the test clips of
    the first one are ``validation`` and all others ``train``; column ``fold`` has the others.
    """
    clips: dict[str, Clip] = {}
    problems: list[Problem] = []
    seen: dict[tuple[str, str, int], Entry] = {}
    disagree: set[str] = set()
    for entry in entries:
        # A clip again in the same list
        if (first := seen.setdefault((entry.clip, entry.side, entry.fold), entry)) is not entry:
            what = "again in the same list; left out"
            where = f"first in line {first.line.number}"
            problems.append(entry.line.problem(f"{entry.clip} {what} ({where})", f"clip {what}"))
            continue

        # Its class in this list and in others
        clip = clips.setdefault(entry.clip, Clip(entry, entry.label, entry.side))
        if clip.label is None and entry.clip not in disagree:
            clip.label = entry.label
        elif entry.label not in (None, clip.label) and entry.clip not in disagree:
            disagree.add(entry.clip)
            kind = "another class than in an earlier list; unlabelled"
            other = clip.entry.line
            where = f"{clip.label} in {other.file}:{other.number}"
            what = f"{entry.clip} {entry.label}: {kind} ({where})"
            problems.append(entry.line.problem(what, kind))
            clip.label = None
    _set_sides(clips, seen.values(), problems)
    return clips, problems


def _set_sides(
    clips: Mapping[str, Clip], entries: Iterable[Entry], problems: list[Problem]
) -> None:
    """Set split and fold of every clip; a clip on both sides of a fold counts as a test clip."""
    held_out: dict[str, list[Entry]] = defaultdict(list)
    trained: dict[str, dict[int, Entry]] = defaultdict(dict)
    for entry in entries:
        if entry.side == "train":
            trained[entry.clip][entry.fold] = entry
        else:
            held_out[entry.clip].append(entry)
    folds = sorted({entry.fold for found in held_out.values() for entry in found})
    for name, clip in clips.items():
        found = sorted(held_out[name], key=lambda entry: entry.fold)
        for other in found:
            if leak := trained[name].get(other.fold):
                kind = f"in the train list and the {other.side} list; counts as {other.side}"
                problems.append(leak.line.problem(f"{name} {kind}", f"clip {kind}"))
        for other in found[1:]:
            kind = "held out in another list too; counts where it is first"
            problems.append(other.line.problem(f"{name} {kind}", f"clip {kind}"))
        if not folds or folds == [0]:
            clip.split = found[0].side if found else "train"
            continue
        clip.fold = found[0].fold if found else 0
        clip.split = "validation" if clip.fold == folds[0] else "train"
        kind = ""
        if len(folds) > 1 and not found:
            kind = "in no test list; trains in every fold"
        elif any(fold not in trained[name] for fold in folds if fold != clip.fold):
            kind = "in neither list of another set; trains there"
        if kind:
            problems.append(clip.entry.line.problem(f"{name} {kind}", f"clip {kind}"))


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
            names=self.names,
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
        pairs = list(zip(rows.names, rows.splits, strict=True))
        train, share = [name for name, split in pairs if split == "train"], config.validation_share
        dealt = dict(zip(train, deal_split(train, share, _DEALT_SEED).tolist(), strict=True))
        splits = [dealt.get(name, split) for name, split in pairs]
        return splits, f"test as given; {share:g} of the train clips are validation"


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


def is_header(line: Line, word: str) -> bool:
    """Whether a line names columns; ``word`` is what stands where others have their class."""
    is_class = word.isdigit() or find_expression(word) is not None
    return line.number == 1 and not is_class and _HEADER.match(line.text) is not None


class Listed(NamedTuple):
    """A line of a list: clip or its path, its number of frames if given, and its class."""

    line: Line
    path: str
    num_frames: int | None
    word: str


def read_list(root: Root, file: str, problems: list[Problem]) -> list[Listed]:
    """Lines ``path [frames] class``, with spaces or commas; all have frames, or none.

    A line that is cut off could pass its number of frames off as its class, so one of another form
    than most lines is left out and noted.
    """
    rows = []
    for line in root.lines(file):
        found = _LIST_LINE.fullmatch(line.text)
        if found is None:
            what = "expected a clip and its class; left out"
            problems.append(line.problem(f"{line.text[:60]!r}: {what}", what))
        elif not is_header(line, found[3]):
            path = found[1].replace("\\", "/").strip("/\"' ")
            rows.append(Listed(line, path, int(found[2]) if found[2] else None, found[3]))

    # Those of the form that most have
    with_frames = 2 * sum(row.num_frames is not None for row in rows) > len(rows)
    for row in rows:
        if (row.num_frames is not None) != with_frames:
            what = "another number of cells than other lines have; left out"
            problems.append(row.line.problem(f"{row.line.text[:60]!r}: {what}", what))
    return [row for row in rows if (row.num_frames is not None) == with_frames]


def note_unknown(line: Line, word: str, known: Iterable[str]) -> Problem:
    """A class that the data set does not have."""
    expected = f"is not a class ({', '.join(known)}); unlabelled"
    return line.problem(f"{word[:40]!r} {expected}", f"class {expected}")
