"""`raffect prepare --dataset table`: a CSV or Parquet file.

It has a row a picture, or a row a frame of a video.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from raffect.config import PrepareConfig
from raffect.datasets.imported import (
    SPLIT_NAMES,
    Imported,
    count_splits,
    deal_split,
    describe_counts,
)
from raffect.datasets.manifest import Listing, list_images, list_pictures
from raffect.datasets.problems import Problem
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require
from raffect.storage.paths import Damaged, open_regular, read_parquet

TEXTS = ("path", "video", "split", "subject")
RESERVED = (*TEXTS, "frame")
"""Columns that describe a row; all others are labels, unless ``--columns`` names them."""

_MOST_CLASSES = 1000

_Key = tuple[str, int]
"""Video and frame."""


def import_table(config: PrepareConfig) -> Imported:
    """Read a table and find its pictures.

    A row is named by ``path`` (below an image root), or by ``video`` and ``frame``; the images then
    lie as in Aff-Wild2, unless ``path`` names them too. ``split`` and ``subject`` are optional, and
    so are labels. An empty cell is unlabelled, and so is -1 in classes and labels.

    Raises:
        RaffectError: If the file is not a table, names no pictures, or the kind of its labels is
            not clear.
    """
    file = config.annotations
    assert file is not None  # PrepareConfig has checked it

    # Rows and their pictures
    table = _read(file)
    require(
        "path" in table.column_names or {"video", "frame"} <= set(table.column_names),
        f"{file}: expected a column path, or video and frame; "
        f"found {', '.join(table.column_names)}",
    )
    rows = _Rows(table, file, config)
    found = Imported(
        manifest=rows.manifest(),
        labels={},
        edition=file.name,
        digest=hashlib.sha256(file.read_bytes()).hexdigest(),
        groups=rows.groups,
    )
    used = f"{len(table):,} rows of {file.name}, {len(rows.table):,} of them used"
    images = f"{rows.count_missing():,} without an image; {len(found.manifest):,} images"
    found.lines = [f"table: {used}, {images}", *rows.listing.lines()]

    # Labels
    task, values = _read_labels(rows.table, config, rows)
    if task is None:
        found.lines.append("labels: none, no column but " + ", ".join(table.column_names))
    else:
        _add_labels(found, task, values, rows)
    found.problems = rows.problems
    return found


def _add_labels(found: Imported, task: Task, values: dict[str, np.ndarray], rows: _Rows) -> None:
    """Add the label table and its counts to what was found."""
    # Label table
    columns = {"video": rows.video, "frame": rows.frame, "split": rows.split()}
    labels = pa.table({**columns, **rows.group_column(), **values})
    labels = labels.sort_by([("video", "ascending"), ("frame", "ascending")])
    found.labels[task] = labels

    # Counts
    cells = np.stack([labels[name].to_numpy() for name in task.columns], 1)
    known = np.asarray(task.is_labelled(cells).any(axis=1))
    found.counts = count_splits(task, labels, known, found.manifest)

    # Report
    outputs = ", ".join(task.outputs)
    if task.kind == "multiclass":
        outputs = ", ".join(f"{k} {name}" for k, name in enumerate(task.outputs))
    found.lines += [f"labels: {task.name}, {task.kind}: {outputs}", f"split: {rows.how_split}"]
    found.lines += describe_counts(found.counts, rows.groups)


def _read(file: Path) -> pa.Table:
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


class _Rows:
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


def _read_labels(
    table: pa.Table, config: PrepareConfig, rows: _Rows
) -> tuple[Task | None, dict[str, np.ndarray]]:
    """The task that the label columns make, and their values."""
    # Label columns and their kind
    if missing := [name for name in config.columns if name not in table.column_names]:
        raise RaffectError(
            f"--columns {missing[0]}: not in {rows.file}; "
            f"its columns are {', '.join(table.column_names)}"
        )
    columns = config.columns or tuple(name for name in table.column_names if name not in RESERVED)
    if not columns or not config.with_labels:
        return None, {}
    kind = _choose_kind(table, columns, config, rows.file)
    if kind == "multiclass":
        return _read_classes(table[columns[0]], columns[0], config, rows)

    # Numbers
    for name in columns:
        if not _is_number(table[name].type):
            what = f"column {name!r} is {table[name].type}, expected numbers"
            raise RaffectError(f"{rows.file}: {what}; choose label columns with --columns")
    values = {name: np.array(table[name].cast(pa.float64()).to_numpy()) for name in columns}
    task = Task(
        name=config.task,
        kind=kind,
        outputs=columns,
        columns=columns,
        unlabelled=None if kind == "regression" else -1,
    )
    if kind == "regression":
        for name, column in values.items():
            _note_wrong(rows, name, column, np.isinf(column))
        return task, {name: column.astype(np.float32) for name, column in values.items()}

    # Multilabel: each 0, 1 or unlabelled
    labels = {}
    for name, column in values.items():
        _note_wrong(rows, name, column, np.isfinite(column) & ~np.isin(column, (-1, 0, 1)))
        labels[name] = np.where(np.isin(column, (0, 1)), column, -1).astype(np.int8)
    return task, labels


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _choose_kind(
    table: pa.Table, columns: tuple[str, ...], config: PrepareConfig, file: Path
) -> str:
    """The kind that was asked for, or the only one that fits these columns."""
    # As asked for
    if config.kind != "auto":
        require(
            config.kind != "multiclass" or len(columns) == 1,
            f"--kind multiclass: has one label column, not {', '.join(columns)}; "
            "choose it with --columns",
        )
        return config.kind

    # By the types of the columns
    types = [table[name].type for name in columns]
    if len(columns) == 1 and (
        pa.types.is_string(types[0]) or pa.types.is_integer(types[0]) or config.classes
    ):
        return "multiclass"
    if all(pa.types.is_boolean(kind) or pa.types.is_integer(kind) for kind in types):
        values = set()
        for name in columns:
            values.update(table[name].cast(pa.int64()).unique().to_pylist())
        if values <= {-1, 0, 1, None}:
            return "multilabel"
    if all(pa.types.is_floating(kind) for kind in types):
        return "regression"
    found = ", ".join(f"{name} ({kind})" for name, kind in zip(columns, types, strict=True))
    raise RaffectError(
        f"{file}: what are these labels? {found}; "
        "add --kind multiclass, multilabel or regression, and choose columns with --columns"
    )


def _read_classes(
    column: pa.ChunkedArray, name: str, config: PrepareConfig, rows: _Rows
) -> tuple[Task, dict[str, np.ndarray]]:
    """Classes by name, or by number where the column holds whole numbers."""
    # Cells as text, None where unlabelled
    is_number = pa.types.is_integer(column.type)
    unlabelled = (None, -1) if is_number else (None,)
    texts = [None if cell in unlabelled else str(cell).strip() for cell in column.to_pylist()]
    present = {text for text in texts if text}

    # Classes, and the number of each
    if is_number:
        numbers = {int(text) for text in present}
        low, high = min(numbers, default=0), max(numbers, default=0)
        require(
            low >= 0 and high < _MOST_CLASSES,
            f"{rows.file}: column {name!r} has classes from {low} to {high}, "
            f"expected 0 to {_MOST_CLASSES - 1} (-1 unlabelled)",
        )
        classes = config.classes or tuple(str(k) for k in range(max(numbers, default=-1) + 1))
        number = {str(k): k for k in range(len(classes))}
    else:
        classes = config.classes or tuple(sorted(present))
        number = {text: k for k, text in enumerate(classes)}
    require(
        2 <= len(classes) <= _MOST_CLASSES,
        f"{rows.file}: column {name!r} has {len(classes)} classes; "
        f"expected 2 to {_MOST_CLASSES}; for numbers add --kind regression",
    )

    # Number of each row's class; what is not a class is unlabelled
    for row, text in zip(rows.lines.tolist(), texts, strict=True):
        if text and text not in number:
            first = ", ".join(classes[:8])
            what = f"is not a class ({first}); unlabelled"
            rows.note(row, f"{name} {text[:40]!r} {what}", f"{name} {what}")
    values = np.array([number.get(text or "", -1) for text in texts], np.int16)
    task = Task(name=config.task, kind="multiclass", outputs=classes, columns=(name,))
    return task, {name: values}


def _note_wrong(rows: _Rows, name: str, column: np.ndarray, wrong: np.ndarray) -> None:
    """Note the rows where ``wrong`` is true, and make them NaN in place."""
    for row in np.flatnonzero(wrong).tolist():
        what = "is not a label; unlabelled"
        rows.note(int(rows.lines[row]), f"{name} {column[row]:g} {what}", f"{name} {what}")
    column[wrong] = np.nan
