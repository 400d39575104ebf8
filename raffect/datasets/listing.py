"""Image roots to the rows of a manifest: a sorted row per frame that has a file, without labels.

A frame's number is the one in its file name, never its position, because frames without a face have
no file. Listing reads folders only and does not open the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from raffect.datasets.problems import PICTURE, Ignored, Problem
from raffect.errors import RaffectError
from raffect.storage.keys import is_ascending, is_utf8
from raffect.storage.paths import printable

_pc: Any = pa.compute
_FRAME = re.compile(r"0*([0-9]{1,9})\.(?:jpe?g|png|bmp|webp|tiff?)", re.I | re.A)
_TEXTS = 1 << 20
"""Texts that are taken at a time."""


@dataclass
class Listing:
    """What image roots hold.

    Attributes:
        table: ``video, frame, path, root``, sorted by (video, frame), each once.
        problems: What was left out for a fault of its own.
        ignored: What is no image of a data set of this layout.
        links_out: Links that lead out of their root, ``link -> target``; they are followed.
    """

    table: pa.Table
    problems: list[Problem] = field(default_factory=list)
    ignored: Ignored = field(default_factory=Ignored)
    links_out: list[str] = field(default_factory=list)

    def note(self, file: str, what: str) -> None:
        """Note what is wrong with a file or folder."""
        self.problems.append(Problem(printable(file), 0, what))

    def extend(self, other: Listing) -> None:
        """Add all notes of another listing to this one."""
        self.problems += other.problems
        self.ignored.extend(other.ignored)
        self.links_out += other.links_out

    def lines(self) -> list[str]:
        """What was ignored, and whether links lead out of their image root.

        They are followed, so that pictures from outside the root are encoded.
        """
        lines = self.ignored.lines("images")
        if self.links_out:
            count, first = len(self.links_out), ", ".join(self.links_out[:3])
            first += " ..." if count > 3 else ""
            lines.append(f"links: {count:,} lead out of their image root and are followed: {first}")
        return lines


class Video(NamedTuple):
    """The frames of one video in one folder.

    Attributes:
        name: Name of the video.
        root: Image root, an absolute path.
        folder: Path of the video's folder below ``root``.
        frames: Frame numbers, int32, shape (frames,).
        files: File name of each frame; as Python's objects they would take 60 bytes more each.
    """

    name: str
    root: str
    folder: str
    frames: np.ndarray
    files: pa.StringArray


def list_images(roots: Iterable[Path]) -> Listing:
    """List the frames below image roots; where two roots hold the same frame the first one counts.

    Args:
        roots: Folders with one folder a video, or one level above such folders.

    Raises:
        RaffectError: If a root is missing, is itself a video, or no root holds a frame.
    """
    listing = Listing(pa.table({}))
    videos: list[Video] = []
    for root in roots:
        if not root.is_dir():
            raise RaffectError(
                f"--images {root}: no such folder; "
                "give the folder that holds one folder a video (e.g. cropped_aligned)"
            )
        videos += _list_root(os.path.realpath(root), listing, depth=1)
    if not videos:
        raise RaffectError(
            f"--images {' '.join(map(str, roots))}: no frames; expected <video>/00001.jpg below it"
        )
    listing.table = build_manifest(videos, listing)
    return listing


def list_pictures(roots: Iterable[Path]) -> Listing:
    """List pictures of any name at any depth below image roots.

    A picture's key is its path below its root, frame 1: it belongs to no video. Where two roots
    hold the same path the first one counts.

    Args:
        roots: Folders.

    Raises:
        RaffectError: If a root is missing, or no root holds a picture.
    """
    # Root of each path
    listing, found = Listing(pa.table({})), dict[str, str]()
    for root in roots:
        if not root.is_dir():
            raise RaffectError(f"--images {root}: no such folder")
        top = os.path.realpath(root)
        _check_root(top)
        for path in _walk_pictures(top, "", listing):
            if found.setdefault(path, top) != top:
                listing.note(path, "another root has the same path, this one left out")
    if not found:
        raise RaffectError(
            f"--images {' '.join(map(str, roots))}: "
            "no pictures (.jpg, .png, .bmp, .webp, .tiff) at any depth"
        )

    # Manifest
    paths = sorted(found)
    names = pa.array(paths, pa.string())
    tops = pa.array([found[path] for path in paths], pa.string()).dictionary_encode()
    frames = np.ones(len(paths), np.int32)
    columns = {"video": names.dictionary_encode(), "frame": frames, "path": names, "root": tops}
    listing.table = pa.table(columns)
    return listing


def _walk_pictures(top: str, below: str, listing: Listing) -> Iterator[str]:
    """Paths below ``top`` of all pictures in its folder ``below`` and deeper."""
    for entry in scan_folder(os.path.join(top, below), listing):
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.name.startswith("."):
            _ignore(entry, top, listing)
        elif entry.is_symlink() and not may_follow(entry, top, listing):
            continue
        elif not is_utf8(entry.name):
            listing.note(path, "name is not UTF-8, left out; rename it")
        elif entry.is_dir():
            yield from _walk_pictures(top, path, listing)
        elif PICTURE.search(entry.name):
            yield path
        else:
            _ignore(entry, top, listing)


def _list_root(folder: str, listing: Listing, depth: int, root: str | None = None) -> list[Video]:
    """Videos of one folder.

    Args:
        folder: The folder.
        listing: Where problems and counts go.
        depth: How many levels deeper to look; archives are often nested one folder deeper.
        root: The image root that ``folder`` lies in; ``folder`` itself by default.
    """
    videos, root = [], root or folder
    for entry in scan_folder(folder, listing):
        if entry.is_symlink() and not may_follow(entry, root, listing):
            continue
        # A file: a frame here means that the root itself is a video.
        if not entry.is_dir():
            if _FRAME.fullmatch(entry.name):
                raise RaffectError(
                    f"--images {folder}: holds frames itself ({printable(entry.name)}); "
                    "give the folder above it"
                )
            _ignore(entry, root, listing)
        elif entry.name.startswith("."):
            _ignore(entry, root, listing)
        # A folder: a video, or folders of videos where it has no frames of its own.
        else:
            own = Listing(pa.table({}))
            frames, files, has_folders = _list_video(entry.path, own, root)
            if not len(files) and has_folders and depth:
                videos += _list_root(entry.path, listing, depth - 1, root)
                continue
            listing.extend(own)
            if _is_video(entry, len(files), has_folders, listing):
                videos.append(Video(entry.name, folder, entry.name, frames, files))
    return videos


def _is_video(entry: os.DirEntry, count: int, has_folders: bool, listing: Listing) -> bool:
    """Whether a folder with ``count`` frames is taken as a video; notes what is wrong with it."""
    problem = ""
    if not is_utf8(entry.name):
        problem = "folder name is not UTF-8, its frames left out; rename it"
    elif not count:
        problem = "no frames in it"
    elif has_folders:
        problem = (
            "taken as a video, its folders left out; "
            "if they are videos, move the pictures beside them away"
        )
    if problem:
        listing.note(entry.path, problem)
    return is_utf8(entry.name) and count > 0


def _list_video(
    folder: str, listing: Listing, root: str
) -> tuple[np.ndarray, pa.StringArray, bool]:
    """Frame numbers and file names of one folder, and whether folders lie beside them."""
    frames, files, has_folders = [], [], False
    for entry in scan_folder(folder, listing):
        name = entry.name
        if entry.is_symlink() and not may_follow(entry, root, listing):
            continue
        match = _FRAME.fullmatch(name)
        if match and 0 < int(match[1]) < 1 << 31:
            frames.append(int(match[1]))
            files.append(name)
        elif entry.is_dir() and not name.startswith("."):
            has_folders = True
        else:
            _ignore(entry, root, listing)
    return np.array(frames, np.int32), pa.array(files, pa.string()), has_folders


def may_follow(link: os.DirEntry, root: str, listing: Listing) -> bool:
    """Whether a link leads anywhere but to itself or to a folder that it lies in.

    Links that leave the root are noted.
    """
    try:
        target = os.path.realpath(link.path, strict=True)
    except FileNotFoundError:  # an attempt to read it reports the error
        target = os.path.realpath(link.path)
    except OSError as error:
        listing.note(link.path, f"link cannot be followed ({error.strerror}), left out")
        return False
    if _is_below(os.path.realpath(os.path.dirname(link.path)), target):
        listing.note(link.path, "link to a folder that it lies in, left out")
        return False
    if not _is_below(target, root):
        name = printable(os.path.relpath(link.path, root))
        listing.links_out.append(f"{name} -> {printable(target)}")
    return True


def _ignore(entry: os.DirEntry, root: str, listing: Listing) -> None:
    listing.ignored.add_entry(entry, printable(os.path.relpath(entry.path, root)))


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def scan_folder(folder: str, listing: Listing) -> list[os.DirEntry]:
    """Entries of a folder by name, because file systems list them in any order."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        listing.note(folder, f"folder cannot be read ({error.strerror}), its frames left out")
        return []


def build_manifest(videos: list[Video], listing: Listing) -> pa.Table:
    """The manifest of videos; a frame that occurs again is left out and noted in ``listing``.

    Raises:
        RaffectError: If the path of an image root is not UTF-8.
    """
    # Names and roots as numbers
    names = sorted({video.name for video in videos})
    roots = list(dict.fromkeys(video.root for video in videos))
    for root in roots:
        _check_root(root)
    rank = {name: i for i, name in enumerate(names)}

    # Columns, video after video
    lengths = [len(video.frames) for video in videos]
    name = np.repeat(np.array([rank[video.name] for video in videos], np.int32), lengths)
    root = np.repeat(np.array([roots.index(video.root) for video in videos], np.int32), lengths)
    frame = np.concatenate([video.frames for video in videos])
    paths = [_pc.binary_join_element_wise(one.folder, one.files, "/") for one in videos]
    path = pa.chunked_array(paths, pa.string())

    # Rows by (video, frame), of which the first root's counts
    order = np.lexsort((np.arange(len(frame)), root, frame, name))
    keep = np.ones(len(order), bool)
    keep[1:] = (np.diff(name[order]) != 0) | (np.diff(frame[order]) != 0)
    for double in _take_texts(path, order[~keep]).to_pylist():
        listing.note(double, "another file shows the same frame, this one left out")

    order = order[keep]
    return pa.table(
        {
            "video": pa.DictionaryArray.from_arrays(name[order], pa.array(names, pa.string())),
            "frame": frame[order],
            "path": _take_texts(path, order),
            "root": pa.DictionaryArray.from_arrays(root[order], pa.array(roots, pa.string())),
        }
    )


def _take_texts(column: pa.ChunkedArray, rows: np.ndarray) -> pa.ChunkedArray:
    """Some rows of a column of text, all of which may be more than the 2 GB of an Arrow array."""
    if len(rows) == len(column) and is_ascending(rows):
        return column
    long = column.cast(pa.large_string()).combine_chunks()
    starts = range(0, len(rows), _TEXTS)
    parts = [long.take(pa.array(rows[k : k + _TEXTS])).cast(pa.string()) for k in starts]
    return pa.chunked_array(parts, pa.string())


def _check_root(root: str) -> None:
    if not is_utf8(root):
        raise RaffectError(f"--images {printable(root)}: path is not UTF-8; rename the folder")
