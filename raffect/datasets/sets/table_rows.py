"""Rows of a user's table: the picture or frame that each names, its split and its group."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from raffect.config import PrepareConfig
from raffect.datasets.imported import SPLIT_NAMES, deal_split
from raffect.datasets.listing import Listing, list_images, list_pictures
from raffect.datasets.problems import Problem
from raffect.errors import RaffectError
from raffect.storage.paths import Damaged, open_regular, read_parquet

TEXTS = ("path", "video", "split", "subject")
RESERVED = (*TEXTS, "frame")
"""Columns that describe a row; all others are labels, unless ``--columns`` names them."""

_Key = tuple[str, int]
"""Video and frame."""


def read_rows(file: Path) -> pa.Table:
    """The table, with columns of names as text: video ``007`` is not 7."""
    try:
        open_regular(file).close()
        if file.suffix.lower() == ".parquet":
            table = read_parquet(file).combine_chunks()
        else:
            table = _read_csv(file)
        for name in TEXTS:
            if table.column_names.count(name) == 1:
                texts = table[name].cast(pa.string())
                table = table.set_column(table.column_names.index(name), name, texts)
        table.validate(full=True)
    except (pa.ArrowException, OSError, Damaged, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or str(error).splitlines()[0][:150]
        raise RaffectError(
            f"--annotations {file}: not a readable CSV or Parquet table ({reason})"
        ) from error

    names = table.column_names
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise RaffectError(f"{file}: column {doubled!r} is there twice; rename one")
    return table


def _read_csv(file: Path) -> pa.Table:
    delimiter = "\t" if file.suffix.lower() in (".tsv", ".tab") else ","
    types = dict.fromkeys(TEXTS, pa.string())
    return pyarrow.csv.read_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True),
    )


class Rows:
    """Rows that name a picture or a frame, each once; what is wrong with others is noted."""

    def __init__(self, table: pa.Table, file: Path, config: PrepareConfig) -> None:
        self.file, self.config, self.problems = file, config, list[Problem]()
        self._first_line = 1 if file.suffix.lower() == ".parquet" else 2
        self.has_paths = "path" in table.column_names
        self.has_frames = {"video", "frame"} <= set(table.column_names)
        if "subject" in table.column_names:
            self.groups = "subjects"
        else:
            self.groups = "videos" if self.has_frames else "pictures"
        self.how_split, self._missing = "", 0

        # Images
        list_files = list_pictures if self.has_paths else list_images
        self.listing: Listing = list_files(config.images)
        self.problems += self.listing.problems

        # Rows with a key, each key once
        self.lines, self._keys = self._choose_rows(self._read_keys(table))
        if not self._keys:
            first = self.problems[0].what if self.problems else "it has no rows"
            what = f"no row names a picture; see its first problem: {first}"
            raise RaffectError(f"{file}: {what}")
        self.table = table.take(pa.array(self.lines))
        self.video = pa.array([video for video, _ in self._keys], pa.string())
        self.frame = pa.array([frame for _, frame in self._keys], pa.int32())

    def note(self, row: int, what: str, kind: str) -> None:
        """Note what is wrong with a row of the file; ``kind`` is the same without its values."""
        self.problems.append(Problem(self.file.name, row + self._first_line, what, kind))

    def manifest(self) -> pa.Table:
        """The rows' images, as far as they were found."""
        # Place of each image in the listing
        listed = self.listing.table
        images = zip(listed["video"].to_pylist(), listed["frame"].to_pylist(), strict=True)
        places = {image: place for place, image in enumerate(images)}

        # Rows with and without an image
        wanted = self._paths() if self.has_paths else self._keys
        found = sorted(
            (key, places[image])
            for key, image in zip(self._keys, wanted, strict=True)
            if image in places
        )
        self._missing = len(self._keys) - len(found)
        for row, (name, frame) in zip(self.lines.tolist(), wanted, strict=True):
            if (name, frame) not in places:
                what = name if self.has_paths else f"{name} frame {frame}"
                kind = "no such image below --images"
                self.note(row, f"{what}: {kind}", kind)
        self._ignore_unnamed({place for _, place in found})
        if not found:
            roots = ", ".join(map(str, self.config.images))
            raise RaffectError(
                f"{self.file}: none of its {len(self._keys):,} pictures is below {roots}; "
                f"first: {wanted[0][0]}"
            )

        # Manifest: the rows' keys with the images' paths
        rows = listed.take(pa.array([place for _, place in found]))
        videos = pa.array([video for (video, _), _ in found], pa.string())
        frames = pa.array([frame for (_, frame), _ in found], pa.int32())
        columns = {"video": videos.dictionary_encode(), "frame": frames}
        return pa.table(columns | {name: rows[name].combine_chunks() for name in ("path", "root")})

    def _ignore_unnamed(self, named: set[int]) -> None:
        """Count the images that no row names; ``named`` has the places of the others."""
        table, unnamed = self.listing.table, np.ones(len(self.listing.table), bool)
        unnamed[list(named)] = False
        if places := np.flatnonzero(unnamed).tolist():
            first = [table["path"][place].as_py() for place in places[:3]]
            self.listing.ignored.add("images that no row names", *first, count=len(places))

    def count_missing(self) -> int:
        """Rows without an image, once `manifest` was made."""
        return self._missing

    def split(self) -> pa.Array:
        """Split of each row; a row with an unknown one counts as ``test``, and this is noted."""
        if "split" not in self.table.column_names:
            share = self.config.validation_share
            self.how_split = f"dealt by {self.groups.removesuffix('s')}, {share:g} held out"
            dealt = deal_split(self._groups(), share)
            return pa.array(dealt.tolist()).dictionary_encode()
        self.how_split = "column split"
        names = []
        for row, name in zip(self.lines.tolist(), self.table["split"].to_pylist(), strict=True):
            known = SPLIT_NAMES.get((name or "").strip().lower())
            if known is None:
                expected = "expected train, validation or test; counted as test"
                self.note(row, f"split {name!r}: {expected}", f"split: {expected}")
            names.append(known or "test")
        return pa.array(names).dictionary_encode()

    def group_column(self) -> dict[str, pa.Array]:
        """Column ``group`` where the table has subjects."""
        if self.groups != "subjects":
            return {}
        return {"group": pa.array(self._groups()).dictionary_encode()}

    def _groups(self) -> list[str]:
        """Group of each row; a row without a subject has a group with its video alone."""
        videos = self.video.to_pylist()
        if self.groups != "subjects":
            return videos
        subjects = self.table["subject"].to_pylist()
        return [name or f"unknown-{video}" for name, video in zip(subjects, videos, strict=True)]

    def _paths(self) -> list[_Key]:
        return [(self._relative(path), 1) for path in self.table["path"].to_pylist()]

    def _relative(self, path: str | None) -> str:
        """A path as `list_pictures` names it: below a root."""
        clean = posixpath.normpath((path or "").replace("\\", "/").strip())
        for root in (os.path.realpath(root) for root in self.config.images):
            if clean.startswith(f"{root}/"):
                return clean[len(root) + 1 :]
        return clean

    def _read_keys(self, table: pa.Table) -> list[_Key | None]:
        """Key of each row of the file; None for a row that is left out."""
        keys: list[_Key | None] = []
        if not self.has_frames:
            for row, path in enumerate(map(self._relative, table["path"].to_pylist())):
                if path == ".":
                    self.note(row, "no path; left out", "no path; left out")
                keys.append(None if path == "." else (path, 1))
            return keys
        names = zip(table["video"].to_pylist(), table["frame"].to_pylist(), strict=True)
        for row, (video, frame) in enumerate(names):
            is_whole = isinstance(frame, int) and not isinstance(frame, bool)
            is_key = bool(video) and is_whole and 0 < frame < 1 << 31
            if not is_key:
                expected = "expected a name and a whole number from 1; left out"
                self.note(row, f"video {video!r} frame {frame!r}: {expected}", f"key: {expected}")
            keys.append((video, frame) if is_key else None)
        return keys

    def _choose_rows(self, keys: list[_Key | None]) -> tuple[np.ndarray, list[_Key]]:
        """Rows of the file that are used, int64, and their keys; a repeated key is noted."""
        first: dict[_Key, int] = {}
        for row, key in enumerate(keys):
            if key is not None and first.setdefault(key, row) != row:
                line = first[key] + self._first_line
                what = f"{key[0]} frame {key[1]} again, first in line {line}; left out"
                self.note(row, what, "a frame again; left out")
        return np.array(list(first.values()), np.int64), list(first)
