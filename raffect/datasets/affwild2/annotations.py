"""ABAW annotation trees to label tables.

Line k after the header is frame k, whatever else is wrong with the file. A wrong line keeps its
place as an unlabelled one and is reported with its file and line number. A file whose header is
another edition's is left out as a whole and reported. No label is ever shifted to another frame.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raffect.datasets.affwild2.lines import MTL_HEADER, PARSERS, parse_mtl
from raffect.datasets.affwild2.tasks import AU, DTYPES, EXPR, HEADERS, TASKS, VA
from raffect.datasets.problems import Ignored, Problem
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.storage.keys import is_utf8
from raffect.storage.paths import Damaged, open_regular, printable, read_regular

# Names of folders and files in the editions
_TASK_FOLDERS = {
    EXPR: re.compile(r"expr_(classification|recognition)_challenge|expr_set", re.I),
    AU: re.compile(r"au_detection_challenge|au_set", re.I),
    VA: re.compile(r"va_estimation_challenge|va_set", re.I),
}
_SPLIT_FOLDERS = {
    "train": re.compile(r"train(ing)?_set", re.I),
    "validation": re.compile(r"validation_set", re.I),
}
_MTL_SPLITS = {"train": re.compile(r"train", re.I), "validation": re.compile(r"val", re.I)}

# Headers that the 2020 edition alone has
_EDITION_2020 = {
    "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise": "7 expressions",
    "AU1,AU2,AU4,AU6,AU12,AU15,AU20,AU25": "8 action units",
}

_SEARCH_DEPTH = 3
IMAGES = re.compile(r"cropped_aligned.*", re.I)
"""Names of folders of pictures, millions of them: no annotation is looked for there."""


class _VideoRows(NamedTuple):
    """Rows of one video.

    Attributes:
        video: Its name.
        split: Its split in the task.
        frames: Frame numbers, int32, shape (rows,).
        values: Values of the task, shape (rows, columns).
    """

    video: str
    split: str
    frames: np.ndarray
    values: np.ndarray


@dataclass
class Annotations:
    """What an annotation tree holds.

    Attributes:
        edition: Name of the tree's folder.
        digest: SHA-256 over the relative names and bytes of every file read.
        tables: Task -> table ``video, frame, split, <values>``, one row per annotated line.
        problems: All that was wrong.
        ignored: Files and folders beside the ones that were read.
    """

    edition: str
    digest: str
    tables: dict[Task, pa.Table]
    problems: list[Problem] = field(default_factory=list)
    ignored: Ignored = field(default_factory=Ignored)


def read_annotations(root: Path) -> Annotations:
    """Read every task that a tree holds; the MTL files only where no tree of single tasks is found.

    Args:
        root: Folder of an edition, or one up to three levels above the task folders.

    Raises:
        RaffectError: If there is no such folder, it holds several editions, or nothing in it is an
            annotation.
    """
    if not root.is_dir():
        raise RaffectError(
            f"--annotations {root}: no such folder; give the folder that holds "
            "EXPR_*_Challenge, AU_*_Challenge or VA_*_Challenge"
        )
    root = Path(os.path.abspath(root))  # so that `.` has a name
    reader = _Reader(root)

    # Trees of single tasks
    folders = list(_find_task_folders(root))
    editions = sorted({folder.parent.parent for _, _, folder in folders})
    if len(editions) > 1:
        names = ", ".join(_printable(path, root) for path in editions)
        raise RaffectError(
            f"--annotations {root}: holds {len(editions)} editions ({names}); "
            "give the folder of one"
        )
    for task, split, folder in folders:
        for file in sorted(folder.glob("*.txt")):
            if not file.name.startswith("."):
                reader.read_video(file, task, split)
    splits = {folder for *_, folder in folders}
    ignored = _find_ignored(sorted(splits), root)

    # Files of the MTL challenge, whose videos are in other splits than those of single tasks
    for file in _find_texts(root):
        if file.parent in splits:
            continue
        if not _has_mtl_header(file):
            if not folders:
                ignored.add("text files without an MTL header", _printable(file, root))
        elif folders:
            what = "MTL files beside single tasks (give their own folder to read them)"
            ignored.add(what, _printable(file, root))
        else:
            reader.read_mtl(file)

    # Label tables
    tables = reader.tables()
    if not tables:
        raise _nothing_readable(root, reader.problems)
    edition = folders[0][2].parent.parent.name if folders else root.name
    return Annotations(edition, reader.digest.hexdigest(), tables, reader.problems, ignored)


def _nothing_readable(root: Path, problems: list[Problem]) -> RaffectError:
    expected = "expected e.g. EXPR_Recognition_Challenge/Train_Set/<video>.txt below it"
    hint = ""
    if problems:
        hint = f"; first problem: {problems[0].file}: {problems[0].what}"
    return RaffectError(f"--annotations {root}: no readable annotations; {expected}{hint}")


def _printable(path: Path, root: Path) -> str:
    return printable(path.relative_to(root))


def _expected(error: ValueError) -> str:
    """What a wrong line should have been, without what it is."""
    return str(error).partition(", found ")[0]


class _Reader:
    """Collects rows and problems over the files of a tree."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[Problem] = []
        self.digest = hashlib.sha256()
        self._rows: dict[Task, list[_VideoRows]] = {task: [] for task in TASKS}
        self._splits: dict[tuple[str, str], str] = {}

    def read_video(self, file: Path, task: Task, split: str) -> None:
        """Read one ``<video>.txt``."""
        name = self._name(file)
        lines = self._lines(file, name)
        video = file.stem
        if lines is None or not self._check_header(name, lines, task):
            return
        if not is_utf8(video):
            remedy = "rename the file and its image folder"
            self._report(name, 0, f"file name is not UTF-8, video left out; {remedy}")
            return
        if other := self._splits.get((task.name, video)):
            what = f"video stands in the {other} split of {task.name} too, left out here"
            self._report(name, 0, what)
            return
        self._splits[task.name, video] = split
        values = self._parse(name, lines[1:], task)
        frames = np.arange(1, len(values) + 1, dtype=np.int32)
        self._rows[task].append(_VideoRows(video, split, frames, values))

    def read_mtl(self, file: Path) -> None:
        """Read one MTL file of 16 columns; a frame that occurs twice counts once."""
        name = self._name(file)
        splits = [split for split, pattern in _MTL_SPLITS.items() if pattern.search(file.stem)]
        if len(splits) != 1:
            what = "file name says neither train nor validation, or both; file left out, rename it"
            self._report(name, 0, what)
            return
        lines, split = self._lines(file, name), splits[0]
        if lines is None:
            return

        # Frames of each video in order
        rows = self._parse_mtl_lines(name, lines[1:])
        videos: dict[str, list[tuple[int, tuple]]] = {}
        for (video, frame), values in sorted(rows.items(), key=lambda row: row[0]):
            videos.setdefault(video, []).append((frame, values))

        # Rows of each task; a video that another file has too is left out
        for video, items in videos.items():
            if other := self._splits.get(("mtl", video)):
                what = f"stands in another file of the {other} split too, left out here"
                self._report(name, 0, f"video {video} {what}", f"a video {what}")
                continue
            self._splits["mtl", video] = split
            frames = np.array([frame for frame, _ in items], np.int32)
            for k, task in enumerate((VA, EXPR, AU)):
                values = np.array([parts[k] for _, parts in items], DTYPES[task])
                self._rows[task].append(_VideoRows(video, split, frames, values))

    def tables(self) -> dict[Task, pa.Table]:
        """Label tables, sorted by (video, frame); tasks without a file are missing."""
        return {task: _build_table(task, rows) for task, rows in self._rows.items() if rows}

    def _parse(self, name: str, lines: list[bytes], task: Task) -> np.ndarray:
        parse, unlabelled = PARSERS[task], (task.unlabelled,) * len(task.columns)
        # A video has few distinct lines, so that each needs to be parsed once only.
        known: dict[bytes, tuple] = {}
        values = []
        for number, line in enumerate(lines, start=2):
            value = known.get(line)
            if value is None:
                try:
                    value = known[line] = parse(line)
                except ValueError as error:
                    value = unlabelled
                    kind = f"{_expected(error)}; counted as unlabelled"
                    self._report(name, number, f"{error}; counted as unlabelled", kind)
            values.append(value)
        return np.array(values, DTYPES[task]).reshape(len(values), len(task.columns))

    def _parse_mtl_lines(self, name: str, lines: list[bytes]) -> dict[tuple[str, int], tuple]:
        """(video, frame) -> its VA, EXPR and AU values; of a repeated frame the first ones."""
        rows: dict[tuple[str, int], tuple] = {}
        repeats = 0
        for number, line in enumerate(lines, start=2):
            try:
                key, values = parse_mtl(line)
            except ValueError as error:
                kind = f"{_expected(error)}; line left out"
                self._report(name, number, f"{error}; line left out", kind)
                continue
            if key not in rows:
                rows[key] = values
                continue
            repeats += 1
            if rows[key] != values:
                what = "occurs again with other values, first ones kept"
                self._report(name, number, f"frame {key[0]}/{key[1]:05d} {what}", f"a frame {what}")
        if repeats:
            what = "lines repeat a frame; each frame counts once"
            self._report(name, 0, f"{repeats} {what}", what)
        return rows

    def _check_header(self, name: str, lines: list[bytes], task: Task) -> bool:
        first = (lines[0] if lines else b"").decode("utf-8", "replace")
        header = ",".join(cell.strip() for cell in first.split(",")).rstrip(",")
        if header == HEADERS[task]:
            return True
        if header in _EDITION_2020:
            reason = "which this program does not read; take edition 3 or later"
            what = f"2020 edition with {_EDITION_2020[header]}, {reason}"
        else:
            expected = f"expected the header {HEADERS[task]!r}"
            what = f"{expected}, found {header[:80]!r}; file left out"
        self._report(name, 1, what, what.partition(", found ")[0])
        return False

    def _lines(self, file: Path, name: str) -> list[bytes] | None:
        """Lines without line ends, outer blanks or blank lines at the end of the file."""
        try:
            content = read_regular(file)
        except (OSError, Damaged) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self._report(name, 0, f"cannot be read ({reason}); file left out")
            return None
        self.digest.update(name.encode() + b"\0" + content + b"\0")

        # Byte-order marks
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            self._report(name, 0, "is UTF-16, expected ASCII; save it as plain text; file left out")
            return None
        content = content.removeprefix(b"\xef\xbb\xbf")

        # A file without "\n" has the line ends of an old Mac.
        lines = [line.strip() for line in content.split(b"\n" if b"\n" in content else b"\r")]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def _report(self, name: str, line: int, what: str, kind: str = "") -> None:
        self.problems.append(Problem(name, line, what, kind))

    def _name(self, file: Path) -> str:
        return _printable(file, self.root)


def _build_table(task: Task, rows: list[_VideoRows]) -> pa.Table:
    """The label table of a task, sorted by (video, frame)."""
    # Videos and splits as numbers
    rows = sorted(rows, key=lambda part: part.video)
    lengths = [len(part.frames) for part in rows]
    names = sorted({part.video for part in rows})
    rank = {name: i for i, name in enumerate(names)}
    video = np.repeat(np.array([rank[part.video] for part in rows], np.int32), lengths)
    splits = sorted({part.split for part in rows})
    split = np.repeat(np.array([splits.index(part.split) for part in rows], np.int8), lengths)

    values = np.concatenate([part.values for part in rows])
    return pa.table(
        {
            "video": pa.DictionaryArray.from_arrays(video, pa.array(names, pa.string())),
            "frame": np.concatenate([part.frames for part in rows]),
            "split": pa.DictionaryArray.from_arrays(split, pa.array(splits, pa.string())),
            **{column: np.ascontiguousarray(values[:, k]) for k, column in enumerate(task.columns)},
        }
    )


def _find_task_folders(root: Path) -> Iterator[tuple[Task, str, Path]]:
    for folder in _walk(root, _SEARCH_DEPTH):
        for task, pattern in _TASK_FOLDERS.items():
            if pattern.fullmatch(folder.name):
                for below in sorted(path for path in folder.iterdir() if path.is_dir()):
                    for split, name in _SPLIT_FOLDERS.items():
                        if name.fullmatch(below.name):
                            yield task, split, below


def _find_ignored(splits: list[Path], root: Path) -> Ignored:
    """What lies in the folders of tasks and splits and is neither a split nor a video's file."""
    ignored = Ignored()
    for folder in sorted({*splits, *(split.parent for split in splits)}):
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                hidden, path = entry.name.startswith("."), Path(entry.path)
                is_text = folder in splits and entry.name.endswith(".txt") and not hidden
                if not is_text and path not in splits:
                    ignored.add_entry(entry, _printable(path, root))
    return ignored


def _find_texts(root: Path) -> Iterator[Path]:
    for folder in _walk(root, _SEARCH_DEPTH):
        yield from sorted(folder.glob("*.txt"))


def _has_mtl_header(file: Path) -> bool:
    try:
        with open_regular(file) as handle:
            head = handle.read(200)
    except (OSError, Damaged):
        return False
    header = head.removeprefix(b"\xef\xbb\xbf").replace(b" ", b"").strip().rstrip(b",")
    return header.startswith(MTL_HEADER.encode())


def _walk(root: Path, depth: int) -> Iterator[Path]:
    """A folder and the folders below it, except hidden ones and those of pictures."""
    yield root
    if not depth:
        return
    try:
        entries = [entry for entry in os.scandir(root) if not IMAGES.fullmatch(entry.name)]
        folders = [entry for entry in entries if entry.is_dir()]
    except OSError:
        return
    for path in sorted(entry.path for entry in folders if not entry.name.startswith(".")):
        if not _is_video_like(path):
            yield from _walk(Path(path), depth - 1)


def _is_video_like(path: str) -> bool:
    """Whether a folder holds frames; if so the search for annotations skips its many files."""
    try:
        with os.scandir(path) as entries:
            first = next(entries, None)
    except OSError:
        return False
    return first is not None and first.name.lower().endswith((".jpg", ".png"))
