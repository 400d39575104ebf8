"""What was wrong in the files of a data set, and what of it was ignored; both counted by kind.

A user sees every kind, however often another one occurs.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raffect.storage.atomic import write_atomic

_SHOWN_FILES = 3
"""Files of each kind that are named."""
_SHOWN_KINDS = 20
"""Kinds of problems, and of ignored files, that are named."""

PICTURE = re.compile(r"\.(?:jpe?g|png|bmp|webp|tiff?)$", re.I)
"""How names of pictures end."""


@dataclass(frozen=True)
class Problem:
    """Something wrong in a file.

    Attributes:
        file: The file or folder.
        line: 1-based; 0 when the whole file is meant.
        what: What is wrong, and what became of it.
        kind: The same without this line's own values, by which problems are counted; ``what``
            itself if it is left out.
    """

    file: str
    line: int
    what: str
    kind: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.kind or self.what)

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.what}"


@dataclass(frozen=True)
class Line:
    """A line of a list.

    Attributes:
        file: The list, as a path below its root.
        number: From 1.
        text: Without the line end.
    """

    file: str
    number: int
    text: str

    def problem(self, what: str, kind: str = "") -> Problem:
        """What is wrong with this line; ``kind`` is the same without its values."""
        return Problem(self.file, self.number, what, kind)


def note_unknown(line: Line, word: str, known: Iterable[str]) -> Problem:
    """A class that the data set does not have."""
    expected = f"is not a class ({', '.join(known)}); unlabelled"
    return line.problem(f"{word[:40]!r} {expected}", f"class {expected}")


def unread_lines(kind: str, files: Sequence[str]) -> list[str]:
    """One line that names lists which are there and not read; none if there are none."""
    more = f" and {len(files) - _SHOWN_FILES:,} more" if len(files) > _SHOWN_FILES else ""
    return [f"{kind}lists not read: {', '.join(files[:_SHOWN_FILES])}{more}"] if files else []


def group_problems(problems: Iterable[Problem]) -> dict[str, dict[str, list[Problem]]]:
    """Problems by kind and then by file, each in the order of their first one."""
    groups: dict[str, dict[str, list[Problem]]] = {}
    for problem in problems:
        groups.setdefault(problem.kind, {}).setdefault(problem.file, []).append(problem)
    return groups


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """A line for each kind and file, with the first such problem; of a kind the first files."""
    lines, groups = [], list(group_problems(problems).values())
    for files in groups[:_SHOWN_KINDS]:
        for found in list(files.values())[:_SHOWN_FILES]:
            more = f" ({len(found):,} of this kind in the file)" if len(found) > 1 else ""
            lines.append(f"  {found[0]}{more}")
        if others := list(files.values())[_SHOWN_FILES:]:
            count = sum(map(len, others))
            lines.append(f"  and {count:,} more of this kind in {len(others):,} other files")
    if others := groups[_SHOWN_KINDS:]:
        count = sum(len(found) for files in others for found in files.values())
        lines.append(f"  and {count:,} of {len(others):,} other kinds")
    return lines


def write_problems(problems: Iterable[Problem], file: Path) -> None:
    """Write ``problems.csv``: file, line (empty for a whole file) and problem."""
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(["file", "line", "problem"])
    writer.writerows([problem.file, problem.line or "", problem.what] for problem in problems)
    write_atomic(file, sink.getvalue().encode())


@dataclass
class Ignored:
    """Files and folders that were not read.

    Attributes:
        counts: Number of them by kind.
        examples: The first ones of each kind.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, *names: str, count: int = 1) -> None:
        """Count some of a kind.

        Args:
            kind: What they are.
            names: The first ones of them.
            count: How many there are.
        """
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.examples[kind] = [*self.examples.get(kind, []), *names][:_SHOWN_FILES]

    def extend(self, other: Ignored) -> None:
        """Add all that another one counted."""
        for kind, count in other.counts.items():
            self.add(kind, *other.examples[kind], count=count)

    def add_entry(self, entry: os.DirEntry, name: str) -> None:
        """Count a file or folder by what its name says of it."""
        stem, suffix = os.path.splitext(entry.name)
        if entry.name.startswith("."):
            kind = "hidden"
        elif entry.is_dir():
            kind, name = "folders", f"{name}/"
        elif PICTURE.search(entry.name):
            kind = "pictures without a frame number from 1"
        else:
            kind = f"{suffix.lower()} files" if stem and suffix else "files without a suffix"
        self.add(kind, name)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())

    def lines(self, among: str) -> list[str]:
        """A line for each kind, the most frequent first; ``among`` says where they lie."""
        kinds = sorted(self.counts, key=lambda kind: (-self.counts[kind], kind))
        lines = []
        for kind in kinds[:_SHOWN_KINDS]:
            names, count = self.examples[kind], self.counts[kind]
            more = " ..." if count > len(names) else ""
            lines.append(f"ignored among the {among}: {count:,} {kind} ({', '.join(names)}{more})")
        if others := kinds[_SHOWN_KINDS:]:
            count = sum(self.counts[kind] for kind in others)
            what = f"{count:,} files of {len(others):,} other kinds"
            lines.append(f"ignored among the {among}: {what}")
        return lines
