"""The root of a data set: one walk over it, in which importers look up lists and pictures.

Copies of a data set are nested and named differently, so files are found by what they are called,
wherever they lie below the root.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.config import PrepareConfig
from raffect.datasets.listing import Listing, Video, may_follow, scan_folder
from raffect.datasets.problems import PICTURE, Line, Problem
from raffect.errors import RaffectError
from raffect.progress import stage
from raffect.storage.keys import is_utf8
from raffect.storage.paths import Damaged, open_regular, printable, read_regular

_NUMBERED = re.compile(r"(?:.*[^0-9])?0*([0-9]{1,9})\.(?:jpe?g|png|bmp|webp|tiff?)", re.I | re.A)
_DEEPEST = 12
_ENCODINGS = ("utf-8-sig", "gb18030")
"""Of lists without a mark of their own: UTF-8, else GBK, of which GB 18030 is the superset."""
_WIDE = (b"\xff\xfe", b"\xfe\xff")
"""Marks at the start of UTF-16."""
_LINE_END = re.compile(r"\r{0,2}\n|\r")
"""Of any system; two returns come of a file that was converted twice."""


@dataclass
class Root:
    """Every file below a folder.

    Attributes:
        path: Absolute path of the folder.
        files: Folder below it ("" is itself) -> names of its files, in order.
        listing: What was wrong or ignored on the way.
        skipped: Folders that the walk left out, and how deep they lie.
        digest: SHA-256 of the lists that were read.
    """

    path: str
    files: dict[str, list[str]]
    listing: Listing
    skipped: list[tuple[str, int]] = field(default_factory=list)
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    @cached_property
    def _others(self) -> list[str]:
        """Paths of all files that are no pictures, in order: these are far fewer."""
        return sorted(
            f"{folder}/{name}".lstrip("/")
            for folder, names in self.files.items()
            for name in names
            if not PICTURE.search(name)
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the names and bytes of every list that `read` has read."""
        return self._digest.hexdigest()

    def walk_skipped(self) -> None:
        """Walk over the folders that were left out, too."""
        self.__dict__.pop("_others", None)
        while self.skipped:
            _scan(self, *self.skipped.pop(0))

    def find(self, pattern: str) -> list[str]:
        """Paths below the root of files, pictures aside, that match as a whole, in order.

        Case is ignored.
        """
        compiled = re.compile(pattern, re.I | re.A)
        return [path for path in self._others if compiled.fullmatch(path)]

    def read(self, path: str) -> bytes:
        """Bytes of a file below the root.

        Raises:
            RaffectError: If it cannot be read.
        """
        try:
            content = read_regular(os.path.join(self.path, path))
        except (Damaged, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RaffectError(f"{self.path}/{path}: cannot be read ({reason})") from error
        self._digest.update(f"{path}\n{len(content)}\n".encode())
        self._digest.update(content)
        return content

    def lines(self, path: str) -> list[Line]:
        """Lines of a text file that are not empty: UTF-8, UTF-16 with its mark, or GBK.

        Raises:
            RaffectError: If it cannot be read, or is text of another encoding.
        """
        text = self._decode(path, self.read(path))
        lines = enumerate(_LINE_END.split(text), 1)
        return [Line(path, number, line) for number, line in lines if line.strip()]

    def iter_cells(self, path: str) -> Iterator[tuple[Line, list[str]]]:
        """Rows of a CSV file of any size, each with its line.

        Raises:
            RaffectError: If it cannot be read, or is not text in UTF-8 or UTF-16.
        """
        for line, cells in self._read_rows(path):
            # As JSON, so that a cell that moves to another row or column is another content
            self._digest.update(json.dumps([path, *cells]).encode() + b"\n")
            yield line, cells

    def peek_cells(self, path: str) -> list[str]:
        """The first row of a CSV file, which the digest does not count; empty for an empty file.

        Raises:
            RaffectError: As `iter_cells`.
        """
        return next((cells for _, cells in self._read_rows(path)), [])

    def _read_rows(self, path: str) -> Iterator[tuple[Line, list[str]]]:
        """Rows of a CSV file that are not empty."""
        try:
            with open_regular(os.path.join(self.path, path)) as file:
                content = io.BufferedReader(file)
                encoding = "utf-16" if content.peek(2)[:2] in _WIDE else "utf-8-sig"
                text = io.TextIOWrapper(content, encoding, newline="")
                reader = csv.reader(text)
                for cells in reader:
                    if any(cell.strip() for cell in cells):
                        yield Line(path, reader.line_num, ",".join(cells)), cells
        except (Damaged, OSError, UnicodeError, csv.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RaffectError(f"{self.path}/{path}: not a readable CSV file ({reason})") from error

    def _decode(self, path: str, content: bytes) -> str:
        for encoding in ("utf-16",) if content[:2] in _WIDE else _ENCODINGS:
            try:
                text = content.decode(encoding)
            except UnicodeDecodeError:
                continue
            if "\0" not in text:
                return text
        raise RaffectError(
            f"{self.path}/{path}: not text in UTF-8, UTF-16 or GBK; save it as UTF-8"
        )

    @cached_property
    def videos(self) -> list[Video]:
        """Folders with numbered pictures, each as a video under its path below the root.

        A frame's number is the last one in its file name. Where a folder has a picture 0, its
        numbers count from 0, and each becomes one more.
        """
        found = (self._read_video(folder) for folder in sorted(self.files))
        return [video for video in found if video is not None]

    def _read_video(self, folder: str) -> Video | None:
        names = self.files[folder]
        matches = [(name, _NUMBERED.fullmatch(name)) for name in names]
        numbered = [(int(match[1]), name) for name, match in matches if match]
        if not numbered:
            return None
        if unnumbered := [name for name, match in matches if not match and PICTURE.search(name)]:
            first = f"{folder}/{unnumbered[0]}".lstrip("/")
            kind = "pictures without a frame number beside numbered ones"
            self.listing.ignored.add(kind, first, count=len(unnumbered))
        numbered.sort()
        frames = np.array([number for number, _ in numbered], np.int32)
        if frames[0] == 0:
            self.listing.ignored.add("folders whose pictures count from 0 (one added)", folder)
            frames += 1
        files = pa.array([name for _, name in numbered], pa.string())
        return Video(folder, self.path, folder, frames, files)

    def find_pictures(self) -> Iterator[str]:
        """Paths below the root of all pictures, in order."""
        for folder in sorted(self.files):
            for name in self.files[folder]:
                if PICTURE.search(name):
                    yield f"{folder}/{name}".lstrip("/")


def scan_root(path: Path, flag: str = "--root", skip: re.Pattern[str] | None = None) -> Root:
    """Walk over a folder.

    Args:
        path: The folder.
        flag: The flag that names it, for errors.
        skip: Folders of such names are noted and left out: they may hold millions of pictures.

    Raises:
        RaffectError: If there is no such folder, or its path is not UTF-8.
    """
    if not path.is_dir():
        raise RaffectError(f"{flag} {path}: no such folder")
    top = os.path.realpath(path)
    if not is_utf8(top):
        raise RaffectError(f"{flag} {printable(top)}: path is not UTF-8; rename the folder")
    root = Root(top, {}, Listing(pa.table({})))
    with stage(f"listing {path}"):
        _scan(root, "", 0, skip)
    return root


def _scan(root: Root, below: str, depth: int, skip: re.Pattern[str] | None = None) -> None:
    """Note the files of a folder and all below it."""
    names = root.files[below] = []
    for entry in scan_folder(os.path.join(root.path, below), root.listing):
        path = f"{below}/{entry.name}".lstrip("/")
        if entry.name.startswith("."):
            root.listing.ignored.add("hidden", path)
        elif entry.is_symlink() and not may_follow(entry, root.path, root.listing):
            continue
        elif not is_utf8(entry.name):
            root.listing.note(path, "name is not UTF-8, left out; rename it")
        elif not entry.is_dir():
            names.append(entry.name)
        elif skip is not None and skip.fullmatch(entry.name):
            root.skipped.append((path, depth + 1))
        elif depth < _DEEPEST:
            _scan(root, path, depth + 1, skip)
        else:
            root.listing.note(path, f"more than {_DEEPEST} folders deep, left out")


def refuse_lists(
    root: Root, files: Sequence[str], problems: Sequence[Problem], title: str, expected: str
) -> RaffectError:
    """Why nothing was read: no lists at all, or lists of which no line is understood.

    Args:
        root: Of the lists.
        files: The lists that were found.
        problems: What was wrong with their lines.
        title: Name of the data set.
        expected: What its lists are called.
    """
    if not files:
        return RaffectError(f"{root.path}: no lists of {title}; expected {expected}")
    first = f"first problem: {problems[0]}" if problems else "they are empty"
    where = f"{root.path}: {len(files)} lists of {title} ({files[0]} ...)"
    return RaffectError(f"{where}, of which no line is understood; {first}")


@dataclass(frozen=True)
class Place:
    """Where a data set lies.

    Attributes:
        lists: Root of its lists.
        images: Roots of its pictures; the first one with a picture counts.
    """

    lists: Root
    images: Sequence[Root]

    @property
    def listing(self) -> Listing:
        """What was wrong or ignored below all of them."""
        found = Listing(pa.table({}))
        for root in {id(root): root for root in (self.lists, *self.images)}.values():
            found.extend(root.listing)
        return found


def open_place(config: PrepareConfig, root: Root | None = None) -> Place:
    """Walk over the folders that a configuration names.

    ``--annotations`` and ``--images`` stand for the root where a data set's lists and pictures
    lie apart.

    Raises:
        RaffectError: If a folder is missing.
    """
    if root is None and config.root is not None:
        root = scan_root(config.root)
    if root is not None:
        root.walk_skipped()
    lists, images = root, [root] if root else []
    if config.annotations is not None:
        lists = scan_root(config.annotations, "--annotations")
    if config.images:
        images = [scan_root(path, "--images") for path in config.images]
    if lists is None or not images:
        raise RaffectError(
            f"--root: expected the folder of {config.dataset}, or --images and --annotations"
        )
    return Place(lists, images)
