"""DFEW: clips of films in seven expressions, with five official folds.

Lists are ``DFEW_set_<k>_<side>.txt`` (clip or its path, perhaps its number of frames, class) or
``<side>.../set_<k>.csv`` (``video_name,label``). Both have numbers, in the order of `BASIC`; the
first count them from 0, the second from 1.
"""

from __future__ import annotations

import re

from raffect.config import PrepareConfig
from raffect.datasets.expressions import BASIC, expression_task, find_expression
from raffect.datasets.imported import Imported
from raffect.datasets.problems import Line, Problem, note_unknown, unread_lines
from raffect.datasets.root import Root, open_place, refuse_lists
from raffect.datasets.sets.clip_lists import (
    Entry,
    choose_lists,
    clip_name,
    merge_entries,
    read_list,
)
from raffect.datasets.sets.clip_sets import ClipSet
from raffect.errors import RaffectError, require

_LISTS = (
    r"(?:.*/)?[^/]*DFEW_set_(?P<fold>[1-5])_(?P<side>train|test)\.(?:txt|csv)",
    r"(?:.*/)?(?P<side>train|test)[^/]*/set_(?P<fold>[1-5])\.(?:txt|csv)",
)
_COMPLETE = "a complete copy has 11,697 in five folds (Jiang et al. 2020)"


def recognise(root: Root) -> str:
    """Why a root is DFEW's; empty if it is not."""
    found = root.find(_LISTS[0])
    return f"list {found[0]}" if found else ""


def import_dfew(config: PrepareConfig, root: Root | None = None) -> Imported:
    """Read the lists of every fold that is there, and the frames of their clips.

    Raises:
        RaffectError: If no list or no frames are found, or the numbers of the classes may count
            from 0 or from 1.
    """
    # Lines of all lists
    place = open_place(config, root)
    lists, unread = choose_lists(place.lists, _LISTS)
    lines, problems = _read_lines(place.lists, lists)
    if not lines:
        files = [match.string for match in lists]
        expected = "DFEW_set_1_train.txt or train/set_1.csv"
        raise refuse_lists(place.lists, files, problems, "DFEW", expected)

    # Classes by name
    names = _name_numbers({word for *_, word in lines}, place.lists.path, config.first_class)
    entries = []
    for line, (fold, side), clip, frames, word in lines:
        label = names.get(word) or find_expression(word)
        if label not in BASIC:
            problems.append(note_unknown(line, word, names or BASIC))
            label = None
        elif word not in names:
            names[word] = label
        entries.append(Entry(line, clip, label, side, fold, frames))

    # Clips
    clips, found = merge_entries(entries)
    files = sorted({line.file for line, *_ in lines})
    data = ClipSet(
        title="DFEW",
        place=place,
        task=expression_task(BASIC),
        names=names,
        complete=_COMPLETE,
        edition=f"{len(files)} lists, {files[0]} first",
        clips=clips,
        num_official=5,
        problems=[*problems, *found],
        lines=unread_lines("", unread),
    )
    data.find_all_frames()
    return data.to_imported(config)


_Row = tuple[Line, tuple[int, str], str, int | None, str]
"""A line, the fold and side of its list, clip, number of frames, and the word for the class."""


def _read_lines(root: Root, lists: list[re.Match[str]]) -> tuple[list[_Row], list[Problem]]:
    """Every line that names a clip."""
    rows, problems = list[_Row](), list[Problem]()
    for match in lists:
        part = int(match["fold"]), match["side"].lower()
        for row in read_list(root, match.string, problems):
            rows.append((row.line, part, clip_name(row.path), row.num_frames, row.word))
    return rows, problems


def _name_numbers(words: set[str], where: str, first: int | None) -> dict[str, str]:
    """Number of a class -> its name; empty if the lists have names.

    Raises:
        RaffectError: If it is not clear whether they count from 0 or from 1, or ``first`` is not
            what is clear.
    """
    numbers = {int(word) for word in words if word.isdigit()}
    if not numbers:
        return {}
    has_first, has_last = 0 in numbers, len(BASIC) in numbers
    found = f"{where}: classes of DFEW are {min(numbers)} to {max(numbers)}"
    if has_first != has_last:
        counted = 0 if has_first else 1
        require(
            first in (None, counted),
            f"--first-class {first}: {found}, which count from {counted}; leave the flag out",
        )
        first = counted
    elif first is None:
        raise RaffectError(
            f"{found}, which may count from 0 or from 1; add --first-class 0 or --first-class 1"
        )
    return {str(number): name for number, name in enumerate(BASIC, first)}
