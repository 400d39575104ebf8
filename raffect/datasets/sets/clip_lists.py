"""Lists of clips: what their lines say, and every clip of all lists once.

A list names clips of one side, train or test, of one official fold or of the only split. A clip is
in the test list of one fold at most, which its column ``fold`` names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raffect.datasets.expressions import find_expression
from raffect.datasets.listing import Video
from raffect.datasets.problems import Line, Problem
from raffect.datasets.root import Root

_LIST_LINE = re.compile(r"\s*(.+?)(?:[\s,]+([0-9]{1,6}))?[\s,]+([A-Za-z_]+|[0-9]{1,2})\s*", re.A)
_HEADER = re.compile(r"\s*(video|clip|name|path|order)", re.I)


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


def choose_lists(root: Root, patterns: Sequence[str]) -> tuple[list[re.Match[str]], list[str]]:
    """Lists of the first pattern of which there are some, and those of the others, not read."""
    found = [
        [match for file in root.find(pattern) if (match := re.fullmatch(pattern, file, re.I))]
        for pattern in patterns
    ]
    first = next((number for number, lists in enumerate(found) if lists), 0)
    return found[first], [match.string for lists in found[first + 1 :] for match in lists]


def clip_name(path: str) -> str:
    """Name of a clip: the end of its path without an ending; a number has five digits."""
    name = re.sub(r"\.(mp4|avi)$", "", path.rpartition("/")[2], flags=re.I)
    return name.zfill(5) if name.isascii() and name.isdigit() else name


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
        clip = clips.setdefault(entry.clip, Clip(entry, entry.label, entry.side))
        if (first := seen.setdefault((entry.clip, entry.side, entry.fold), entry)) is not entry:
            what = "again in the same list; left out"
            where = f"first in line {first.line.number}"
            problems.append(entry.line.problem(f"{entry.clip} {what} ({where})", f"clip {what}"))

        # Its class in this line and in others
        if clip.label is None and entry.clip not in disagree:
            clip.label = entry.label
        elif entry.label not in (None, clip.label) and entry.clip not in disagree:
            disagree.add(entry.clip)
            kind = "another class than in an earlier line; unlabelled"
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
