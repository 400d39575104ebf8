"""FERV39k: clips of 22 scenes in seven expressions, with one split.

Lists are ``train_image.txt`` and ``test_image.txt`` (path, number of frames, number of the class)
or ``train_All.csv`` and ``test_All.csv`` (``Scene/Emotion/Clip Emotion``). The folder of a clip
names its class, so what a number means is read off the lists.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from raffect.config import PrepareConfig
from raffect.datasets.expressions import BASIC, expression_task, find_expression
from raffect.datasets.imported import Imported
from raffect.datasets.problems import Line, Problem, note_unknown, unread_lines
from raffect.datasets.root import Root, open_place, refuse_lists
from raffect.datasets.sets.clip_lists import (
    Entry,
    choose_lists,
    merge_entries,
    read_list,
)
from raffect.datasets.sets.clip_sets import ClipSet
from raffect.errors import require

_LISTS = (
    r"(?:.*/)?(?P<side>train|test)_image\.txt",
    r"(?:.*/)?(?P<side>train|test)_All\.csv",
    r"(?:.*/)?FERV39K_(?P<side>train|test)\.(?:txt|csv)",
)
_FRAMES = r"(?:.*/)?2_ClipsforFaceCrop/.*"
_COMPLETE = "a complete copy has 31,088 to train on and 7,847 to test on (Wang et al. 2022)"

_Row = tuple[Line, str, str, int | None, str]
"""A line, the side of its list, clip, number of frames, and the word for the class."""


def recognise(root: Root) -> str:
    """Why a root is FERV39k's; empty if it is not."""
    lists = [file for pattern in _LISTS for file in root.find(pattern)]
    if lists and any(re.fullmatch(_FRAMES, f"{folder}/", re.I) for folder in root.files):
        return f"list {lists[0]} and a folder 2_ClipsforFaceCrop"
    return ""


def import_ferv39k(config: PrepareConfig, root: Root | None = None) -> Imported:
    """Read both lists and the frames of their clips.

    Raises:
        RaffectError: If no list or no frames are found, or several lists of one side, since scenes
            have lists of their own.
    """
    # Lines of both lists
    place = open_place(config, root)
    lists, unread = choose_lists(place.lists, _LISTS)
    files = [match.string for match in lists]
    require(
        len(files) <= 2,
        f"{place.lists.path}: {len(files)} lists ({', '.join(files[:3])} ...); "
        "name the folder of the right ones with --annotations",
    )
    rows, problems = _read_lines(place.lists, lists)
    if not rows:
        expected = "train_image.txt or train_All.csv"
        raise refuse_lists(place.lists, files, problems, "FERV39k", expected)

    # Classes by the clips' folders, which numbers and words must agree with
    names = _read_numbers(rows)
    entries = []
    for line, side, clip, frames, word in rows:
        folder = find_expression(clip.split("/")[1])
        label = names.get(word) or find_expression(word)
        if folder not in BASIC:
            problems.append(note_unknown(line, clip.split("/")[1], BASIC))
            folder = None
        elif label != folder:
            kind = "class and folder of the clip disagree; unlabelled"
            what = f"{clip} {word} ({label or 'unknown'}): {kind}"
            problems.append(line.problem(what, kind))
            folder = None
        elif word not in names:
            names[word] = folder
        entries.append(Entry(line, clip, folder, side, 0, frames))

    # Clips
    clips, found = merge_entries(entries)
    data = ClipSet(
        title="FERV39k",
        place=place,
        task=expression_task(BASIC),
        names=names,
        complete=_COMPLETE,
        edition=", ".join(sorted({line.file for line, *_ in rows})),
        clips=clips,
        problems=[*problems, *found],
        lines=unread_lines("", unread),
    )
    data.find_all_frames(depth=3)
    return data.to_imported(config)


def _read_lines(root: Root, lists: list[re.Match[str]]) -> tuple[list[_Row], list[Problem]]:
    """Every line that names a clip."""
    rows, problems = list[_Row](), list[Problem]()
    for match in lists:
        for row in read_list(root, match.string, problems):
            parts = row.path.split("/")
            if len(parts) < 3:
                what = "expected scene/emotion/clip; left out"
                problems.append(row.line.problem(f"{row.path[:60]!r}: {what}", what))
                continue
            clip = "/".join(parts[-3:])
            rows.append((row.line, match["side"].lower(), clip, row.num_frames, row.word))
    return rows, problems


def _read_numbers(rows: list[_Row]) -> dict[str, str]:
    """Number of a class -> its name: what most clips of this number have as their folder."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for _, _, clip, _, word in rows:
        if word.isdigit() and (name := find_expression(clip.split("/")[1])) in BASIC:
            votes[word][str(name)] += 1
    return {word: votes[word].most_common(1)[0][0] for word in sorted(votes)}
