"""Image roots to a manifest: one sorted row per frame that has a file. It knows nothing of labels.

A frame's number is its file name's, never its position, because frames without a face have no file. Listing reads
folders only and asks nothing of the files themselves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.errors import RaffectError
from raffect.storage.keys import Vocabulary, digest_keys, is_utf8
from raffect.storage.tables import read_metadata, read_table, write_table

COLUMNS = ("video", "frame", "path", "root")
SYNTHETIC = "synthetic"
"""Metadata key that says that every image of the manifest was drawn."""

_FRAME = re.compile(r"0*([0-9]{1,9})\.(?:jpe?g|png|bmp|webp|tiff?)", re.I | re.A)
_PICTURE = re.compile(r"\.(?:jpe?g|png|bmp|webp|tiff?)$", re.I)


@dataclass
class Listing:
    """What image roots hold.

    Attributes:
        table: ``video, frame, path, root``, sorted by (video, frame), each once.
        problems: What was left out, one line each with the folder or file.
        num_other: Files that are not numbered images.
        links_out: Links that lead out of their root, ``link -> where``; they are followed.
    """

    table: pa.Table
    problems: list[str] = field(default_factory=list)
    num_other: int = 0
    links_out: list[str] = field(default_factory=list)

    def link_lines(self) -> list[str]:
        """One line if links lead out of their image root: they are followed, and what they show is encoded."""
        out = self.links_out
        return (
            [
                f"links: {len(out):,} lead out of their image root and are followed: {', '.join(out[:3])}{' ...' if len(out) > 3 else ''}"
            ]
            if out
            else []
        )


def list_images(roots: Iterable[Path]) -> Listing:
    """List the frames below image roots; where two roots hold the same frame the first one counts.

    Args:
        roots: Folders with one folder a video, or one level above such folders.

    Raises:
        RaffectError: If a root is missing, is itself a video, or no root holds a frame.
    """
    listing = Listing(pa.table({}))
    folders: list[tuple[str, str, np.ndarray, list[str]]] = []
    for root in roots:
        if not root.is_dir():
            raise RaffectError(
                f"--images {root}: no such folder; give the folder that holds one folder a video (e.g. cropped_aligned)"
            )
        folders += _list_root(os.path.realpath(root), listing, depth=1)
    if not folders:
        raise RaffectError(
            f"--images {' '.join(map(str, roots))}: no frames; expected <video>/00001.jpg below it"
        )
    listing.table = _build_table(folders, listing)
    return listing


def list_pictures(roots: Iterable[Path]) -> Listing:
    """List pictures of any name at any depth below image roots; where two roots hold the same path the first one counts.

    A picture's key is its path below its root, frame 1: it belongs to no video.

    Args:
        roots: Folders.

    Raises:
        RaffectError: If a root is missing, or no root holds a picture.
    """
    listing, found = Listing(pa.table({})), dict[str, str]()
    for root in roots:
        if not root.is_dir():
            raise RaffectError(f"--images {root}: no such folder")
        top = os.path.realpath(root)
        if not is_utf8(top):
            raise RaffectError(f"--images {_printable(top)}: path is not UTF-8; rename the folder")
        for path in _walk_pictures(top, "", listing):
            if found.setdefault(path, top) != top:
                listing.problems.append(
                    f"{path}: another root has the same path, this one left out"
                )
    if not found:
        raise RaffectError(
            f"--images {' '.join(map(str, roots))}: no pictures (.jpg, .png, .bmp, .webp, .tiff) at any depth"
        )
    paths = sorted(found)
    names = pa.array(paths, pa.string())
    root = pa.array([found[path] for path in paths], pa.string()).dictionary_encode()
    listing.table = pa.table(
        {
            "video": names.dictionary_encode(),
            "frame": np.ones(len(paths), np.int32),
            "path": names,
            "root": root,
        }
    )
    return listing


def _walk_pictures(top: str, below: str, listing: Listing) -> Iterator[str]:
    """Paths below ``top`` of all pictures in one of its folders and below."""
    for entry in sorted(_scan(os.path.join(top, below), listing), key=lambda entry: entry.name):
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.name.startswith(".") or (
            entry.is_symlink() and not _may_follow(entry, top, listing)
        ):
            continue
        if not is_utf8(entry.name):
            listing.problems.append(f"{_printable(path)}: name is not UTF-8, left out; rename it")
        elif entry.is_dir():
            yield from _walk_pictures(top, path, listing)
        elif _PICTURE.search(entry.name):
            yield path
        else:
            listing.num_other += 1


def _list_root(
    folder: str, listing: Listing, depth: int, root: str | None = None
) -> list[tuple[str, str, np.ndarray, list[str]]]:
    """Videos of one root as (video, folder, frames, file names); archives are often nested one folder deeper."""
    folders, root = [], root or folder
    for entry in sorted(_scan(folder, listing), key=lambda entry: entry.name):
        if entry.is_symlink() and not _may_follow(entry, root, listing):
            continue
        if not entry.is_dir():
            if _FRAME.fullmatch(entry.name):
                raise RaffectError(
                    f"--images {folder}: holds frames itself ({_printable(entry.name)}); give the folder above it"
                )
            listing.num_other += 1
        elif not entry.name.startswith("."):
            frames, names, has_folders = _list_video(entry.path, listing, root)
            if not names and has_folders and depth:
                folders += _list_root(entry.path, listing, depth - 1, root)
            elif not is_utf8(entry.name):
                listing.problems.append(
                    f"{_printable(entry.path)}: folder name is not UTF-8, {len(names)} frames left out; rename it"
                )
            elif not names:
                listing.problems.append(f"{_printable(entry.path)}: no frames in it")
            else:
                if has_folders:
                    listing.problems.append(
                        f"{_printable(entry.path)}: taken as a video, its folders left out; if they are videos, move the {len(names)} pictures beside them away"
                    )
                folders.append((entry.name, folder, frames, names))
    return folders


def _list_video(folder: str, listing: Listing, root: str) -> tuple[np.ndarray, list[str], bool]:
    frames, names, has_folders = [], [], False
    for entry in sorted(
        _scan(folder, listing), key=lambda entry: entry.name
    ):  # the order of a folder is its file system's own
        name = entry.name
        if entry.is_symlink() and not _may_follow(entry, root, listing):
            continue
        match = _FRAME.fullmatch(name)
        if match and (frame := int(match[1])) > 0 and frame < 1 << 31:
            frames.append(frame)
            names.append(name)
        elif entry.is_dir():
            has_folders |= not name.startswith(".")
        else:
            listing.num_other += 1
    return np.array(frames, np.int32), names, has_folders


def _may_follow(link: os.DirEntry, root: str, listing: Listing) -> bool:
    """Whether a link leads anywhere but to itself or to a folder that it lies in; notes links that leave the root."""
    try:
        target = os.path.realpath(link.path, strict=True)
    except FileNotFoundError:  # reading it will say so
        target = os.path.realpath(link.path)
    except OSError as error:
        listing.problems.append(
            f"{_printable(link.path)}: link cannot be followed ({error.strerror}), left out"
        )
        return False
    if _is_below(os.path.realpath(os.path.dirname(link.path)), target):
        listing.problems.append(
            f"{_printable(link.path)}: link to a folder that it lies in, left out"
        )
        return False
    if not _is_below(target, root):
        listing.links_out.append(
            f"{_printable(os.path.relpath(link.path, root))} -> {_printable(target)}"
        )
    return True


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _scan(folder: str, listing: Listing) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        listing.problems.append(
            f"{_printable(folder)}: folder cannot be read ({error.strerror}), its frames left out"
        )
        return []


def _build_table(
    folders: list[tuple[str, str, np.ndarray, list[str]]], listing: Listing
) -> pa.Table:
    videos = sorted({video for video, *_ in folders})
    roots = list(dict.fromkeys(root for _, root, *_ in folders))
    if bad := [root for root in roots if not is_utf8(root)]:
        raise RaffectError(f"--images {_printable(bad[0])}: path is not UTF-8; rename the folder")
    rank = {video: i for i, video in enumerate(videos)}
    lengths = [len(frames) for _, _, frames, _ in folders]
    video = np.repeat(np.array([rank[video] for video, *_ in folders], np.int32), lengths)
    root = np.repeat(np.array([roots.index(root) for _, root, *_ in folders], np.int32), lengths)
    frame = np.concatenate([frames for _, _, frames, _ in folders])
    path = pa.concat_arrays(
        [
            pa.array([f"{video}/{name}" for name in names], pa.string())
            for video, _, _, names in folders
        ]
    )
    order = np.lexsort((np.arange(len(frame)), root, frame, video))
    keep = np.ones(len(order), bool)
    keep[1:] = (video[order][1:] != video[order][:-1]) | (frame[order][1:] != frame[order][:-1])
    doubles = path.take(pa.array(order[~keep]))
    listing.problems += [
        f"{name}: another file shows the same frame, this one left out"
        for name in doubles.to_pylist()
    ]
    order = order[keep]
    return pa.table(
        {
            "video": pa.DictionaryArray.from_arrays(video[order], pa.array(videos, pa.string())),
            "frame": frame[order],
            "path": path.take(pa.array(order)),
            "root": pa.DictionaryArray.from_arrays(root[order], pa.array(roots, pa.string())),
        }
    )


def write_manifest(table: pa.Table, path: Path, synthetic: bool) -> None:
    """Write a manifest atomically.

    Args:
        table: ``video, frame, path, root``, sorted by (video, frame).
        path: The file to make.
        synthetic: Whether every image was drawn by raffect.
    """
    write_table(
        table,
        path,
        {"raffect": "manifest/1", "digest": digest_keys(table), SYNTHETIC: str(synthetic).lower()},
    )


def read_manifest(path: Path) -> pa.Table:
    """Read and check a manifest; its metadata say whether it is synthetic.

    Raises:
        RaffectError: If it is not a manifest, or a frame is missing its number, doubled or out of order.
    """
    table = read_table(path, COLUMNS, "manifest", "raffect prepare")
    for column in ("video", "frame", "path", "root"):
        if table[column].null_count:
            raise RaffectError(
                f"{path}: column {column!r} has {table[column].null_count} empty cells; make it again with `raffect prepare`"
            )
    if not len(table):
        raise RaffectError(
            f"{path}: the manifest has no rows; make it again with `raffect prepare`"
        )
    if table["frame"].type != pa.int32():
        raise RaffectError(
            f"{path}: column 'frame' is {table['frame'].type}, expected int32; make it again with `raffect prepare`"
        )
    keys = Vocabulary(sorted(table["video"].unique().to_pylist())).keys(table)
    if (np.diff(keys) <= 0).any():
        row = int(np.flatnonzero(np.diff(keys) <= 0)[0]) + 1
        raise RaffectError(
            f"{path}: row {row} is not after the row before it in (video, frame); sort it and drop doubles, or make it with `raffect prepare`"
        )
    if table["frame"][0].as_py() < 1 or int(np.min(table["frame"].to_numpy())) < 1:
        raise RaffectError(f"{path}: frame numbers start at 1")
    return table


def is_synthetic_manifest(table: pa.Table) -> bool:
    """Whether a manifest says that all its images were drawn."""
    return read_metadata(table).get(SYNTHETIC) == "true"


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
