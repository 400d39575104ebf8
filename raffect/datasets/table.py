"""`raffect prepare --dataset table`: a CSV or Parquet file with a row a picture, or a row a frame of a video."""

from __future__ import annotations

import hashlib
import os
import posixpath
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from raffect.config import PrepareConfig
from raffect.datasets.importing import (
    SPLIT_NAMES,
    Imported,
    Problem,
    count_splits,
    deal_split,
    describe_counts,
)
from raffect.datasets.manifest import Listing, list_images, list_pictures
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require
from raffect.storage.paths import Damaged, open_regular, read_parquet

TEXTS = ("path", "video", "split", "subject")
RESERVED = (*TEXTS, "frame")
"""Columns that say what a row is; all others are labels, unless ``--columns`` names them."""

_DEALT_SEED = 0
_MOST_CLASSES = 1000


def import_table(config: PrepareConfig) -> Imported:
    """Read a table and find its pictures.

    A row is named by ``path`` (below an image root), or by ``video`` and ``frame`` (then images lie as in Aff-Wild2, or ``path`` says where).
    ``split`` and ``subject`` are optional; so are labels. An empty cell is unlabelled, and so is -1 in classes and labels.

    Raises:
        RaffectError: If the file is not a table, names no pictures, or its labels cannot be told.
    """
    file = config.annotations
    assert file is not None  # the configuration has seen to it
    table = _read(file)
    require(
        "path" in table.column_names or {"video", "frame"} <= set(table.column_names),
        f"{file}: expected a column path, or video and frame; found {', '.join(table.column_names)}",
    )
    rows = _Rows(table, file, config)
    found = Imported(
        manifest=rows.manifest(),
        labels={},
        edition=file.name,
        digest=hashlib.sha256(file.read_bytes()).hexdigest(),
        groups=rows.groups,
    )
    task, values = _read_labels(rows.table, config, rows)
    missing = rows.count_missing()
    found.lines = [
        f"table: {len(table):,} rows of {file.name}, {len(rows.table):,} of them used, {missing:,} without an image; {len(found.manifest):,} images",
        *rows.listing.link_lines(),
    ]
    if task is None:
        found.lines.append("labels: none, no column but " + ", ".join(table.column_names))
    else:
        labels = pa.table(
            {
                "video": rows.video,
                "frame": rows.frame,
                "split": rows.split(),
                **rows.group_column(),
                **values,
            }
        )
        labels = labels.sort_by([("video", "ascending"), ("frame", "ascending")])
        found.labels[task] = labels
        known = np.asarray(
            task.is_labelled(np.stack([labels[name].to_numpy() for name in task.columns], 1)).any(
                axis=1
            )
        )
        names = (
            ", ".join(f"{k} {name}" for k, name in enumerate(task.outputs))
            if task.kind == "multiclass"
            else ", ".join(task.outputs)
        )
        found.counts = count_splits(task, labels, known, found.manifest)
        found.lines += [f"labels: {task.name}, {task.kind}: {names}", f"split: {rows.how_split}"]
        found.lines += describe_counts(found.counts, rows.groups)
    found.problems = rows.problems
    return found


def _read(file: Path) -> pa.Table:
    """The table, with columns of names as text: video ``007`` is not 7."""
    try:
        open_regular(file).close()
        if file.suffix.lower() == ".parquet":
            table = read_parquet(file).combine_chunks()
        else:
            delimiter = "\t" if file.suffix.lower() in (".tsv", ".tab") else ","
            options = pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(TEXTS, pa.string()), strings_can_be_null=True
            )
            table = pyarrow.csv.read_csv(
                file,
                parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
                convert_options=options,
            )
    except (pa.ArrowException, OSError, Damaged, UnicodeDecodeError) as error:
        reason = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else str(error).splitlines()[0][:150]
        )
        raise RaffectError(
            f"--annotations {file}: not a readable CSV or Parquet table ({reason})"
        ) from error
    if doubled := next(
        (name for name in table.column_names if table.column_names.count(name) > 1), None
    ):
        raise RaffectError(f"{file}: column {doubled!r} is there twice; rename one")
    for name in TEXTS:
        if name in table.column_names:
            table = table.set_column(
                table.column_names.index(name), name, table[name].cast(pa.string())
            )
    return table


class _Rows:
    """Rows that name a picture or a frame, each once; what is wrong with others is noted."""

    def __init__(self, table: pa.Table, file: Path, config: PrepareConfig) -> None:
        self.file, self.config, self.problems = file, config, list[Problem]()
        self._first_line = 1 if file.suffix.lower() == ".parquet" else 2
        self.has_frames = {"video", "frame"} <= set(table.column_names)
        self.listing: Listing = (
            list_pictures(config.images)
            if "path" in table.column_names
            else list_images(config.images)
        )
        self.problems += [
            Problem(path, 0, what)
            for path, _, what in (problem.partition(": ") for problem in self.listing.problems)
        ]
        keys = self._read_keys(table)
        seen: dict[tuple[str, int], int] = {}
        for row, key in enumerate(keys):
            if key is not None and seen.setdefault(key, row) != row:
                self.note(
                    row,
                    f"{key[0]} frame {key[1]} again, first in line {seen[key] + self._first_line}; left out",
                )
        self.lines = np.array(sorted(seen.values()), np.int64)
        self.table = table.take(pa.array(self.lines))
        kept = [key for key in (keys[row] for row in self.lines.tolist()) if key is not None]
        require(
            bool(kept),
            f"{file}: no row names a picture; see its first problem: {self.problems[0].what if self.problems else 'it has no rows'}",
        )
        self.video, self.frame = (
            pa.array([video for video, _ in kept], pa.string()),
            pa.array([frame for _, frame in kept], pa.int32()),
        )
        self._keys = kept
        self.groups = (
            "subjects"
            if "subject" in table.column_names
            else "videos"
            if self.has_frames
            else "pictures"
        )
        self.how_split, self._missing = "", 0

    def note(self, row: int, what: str) -> None:
        """Note what is wrong with a row of the file."""
        self.problems.append(Problem(self.file.name, row + self._first_line, what))

    def manifest(self) -> pa.Table:
        """The rows' images: all that are there."""
        listed = self.listing.table
        places = {
            key: row
            for row, key in enumerate(
                zip(listed["video"].to_pylist(), listed["frame"].to_pylist(), strict=True)
            )
        }
        wanted = self._paths() if "path" in self.table.column_names else self._keys
        found = sorted(
            (key, places[place])
            for key, place in zip(self._keys, wanted, strict=True)
            if place in places
        )
        self._missing = len(self._keys) - len(found)
        for row, place in zip(self.lines.tolist(), wanted, strict=True):
            if place not in places:
                self.note(
                    row,
                    f"{place[0]}{'' if 'path' in self.table.column_names else f' frame {place[1]}'}: no such image below --images",
                )
        require(
            bool(found),
            f"{self.file}: none of its {len(self._keys):,} pictures is below {', '.join(map(str, self.config.images))}; first: {wanted[0][0]}",
        )
        rows = listed.take(pa.array([place for _, place in found]))
        video, frame = (
            pa.array([key[0] for key, _ in found], pa.string()).dictionary_encode(),
            pa.array([key[1] for key, _ in found], pa.int32()),
        )
        return pa.table(
            {
                "video": video,
                "frame": frame,
                "path": rows["path"].combine_chunks(),
                "root": rows["root"].combine_chunks(),
            }
        )

    def count_missing(self) -> int:
        """Rows without an image, once `manifest` was made."""
        return self._missing

    def split(self) -> pa.Array:
        """Split of each row; one that is not known leaves its row unlabelled in ``test``."""
        if "split" not in self.table.column_names:
            self.how_split = f"dealt by {self.groups.removesuffix('s')}, {self.config.validation_share:g} held out"
            return pa.array(
                deal_split(self._groups(), self.config.validation_share, _DEALT_SEED).tolist()
            ).dictionary_encode()
        self.how_split = "column split"
        names = []
        for row, name in zip(self.lines.tolist(), self.table["split"].to_pylist(), strict=True):
            known = SPLIT_NAMES.get((name or "").strip().lower())
            if known is None:
                self.note(
                    row, f"split {name!r}: expected train, validation or test; counted as test"
                )
            names.append(known or "test")
        return pa.array(names).dictionary_encode()

    def group_column(self) -> dict[str, pa.Array]:
        """Column ``group`` where the table has subjects."""
        return (
            {"group": pa.array(self._groups()).dictionary_encode()}
            if self.groups == "subjects"
            else {}
        )

    def _groups(self) -> list[str]:
        if self.groups == "subjects":
            return [
                name or f"unknown-{video}"
                for name, video in zip(
                    self.table["subject"].to_pylist(), self.video.to_pylist(), strict=True
                )
            ]
        return self.video.to_pylist()

    def _paths(self) -> list[tuple[str, int]]:
        return [(self._relative(path), 1) for path in self.table["path"].to_pylist()]

    def _relative(self, path: str | None) -> str:
        """A path as `list_pictures` names it: below a root."""
        clean = posixpath.normpath((path or "").replace("\\", "/").strip())
        for root in (os.path.realpath(root) for root in self.config.images):
            if clean.startswith(f"{root}/"):
                return clean[len(root) + 1 :]
        return clean

    def _read_keys(self, table: pa.Table) -> list[tuple[str, int] | None]:
        if not self.has_frames:
            paths = [self._relative(path) for path in table["path"].to_pylist()]
            for row, path in enumerate(paths):
                if path == ".":
                    self.note(row, "no path; left out")
            return [None if path == "." else (path, 1) for path in paths]
        keys: list[tuple[str, int] | None] = []
        for row, (video, frame) in enumerate(
            zip(table["video"].to_pylist(), table["frame"].to_pylist(), strict=True)
        ):
            good = (
                bool(video)
                and isinstance(frame, int)
                and not isinstance(frame, bool)
                and 0 < frame < 1 << 31
            )
            if not good:
                self.note(
                    row,
                    f"video {video!r} frame {frame!r}: expected a name and a whole number from 1; left out",
                )
            keys.append((video, frame) if good else None)
        return keys


def _read_labels(
    table: pa.Table, config: PrepareConfig, rows: _Rows
) -> tuple[Task | None, dict[str, np.ndarray]]:
    """The task that the label columns make, and their values."""
    if missing := [name for name in config.columns if name not in table.column_names]:
        raise RaffectError(
            f"--columns {missing[0]}: not in {rows.file}; its columns are {', '.join(table.column_names)}"
        )
    columns = config.columns or tuple(name for name in table.column_names if name not in RESERVED)
    if not columns or not config.with_labels:
        return None, {}
    kind = _choose_kind(table, columns, config, rows.file)
    if kind == "multiclass":
        return _read_classes(table[columns[0]], columns[0], config, rows)
    for name in columns:
        if not (
            pa.types.is_integer(table[name].type)
            or pa.types.is_floating(table[name].type)
            or pa.types.is_boolean(table[name].type)
        ):
            raise RaffectError(
                f"{rows.file}: column {name!r} is {table[name].type}, expected numbers; choose label columns with --columns"
            )
    values = {name: np.array(table[name].cast(pa.float64()).to_numpy()) for name in columns}
    if kind == "regression":
        for name, column in values.items():
            _note_wrong(rows, name, column, np.isinf(column))
        return Task(
            name=config.task, kind=kind, outputs=columns, columns=columns, unlabelled=None
        ), {name: column.astype(np.float32) for name, column in values.items()}
    for name, column in values.items():
        _note_wrong(rows, name, column, np.isfinite(column) & ~np.isin(column, (-1, 0, 1)))
    labels = {
        name: np.where(np.isin(column, (0, 1)), column, -1).astype(np.int8)
        for name, column in values.items()
    }
    return Task(name=config.task, kind=kind, outputs=columns, columns=columns), labels


def _choose_kind(
    table: pa.Table, columns: tuple[str, ...], config: PrepareConfig, file: Path
) -> str:
    """The kind that was asked for, or the only one that these columns can be."""
    if config.kind != "auto":
        require(
            config.kind != "multiclass" or len(columns) == 1,
            f"--kind multiclass: has one label column, not {', '.join(columns)}; choose it with --columns",
        )
        return config.kind
    types = [table[name].type for name in columns]
    if len(columns) == 1 and (
        pa.types.is_string(types[0]) or pa.types.is_integer(types[0]) or config.classes
    ):
        return "multiclass"
    if all(pa.types.is_boolean(kind) or pa.types.is_integer(kind) for kind in types):
        values = {
            cell for name in columns for cell in table[name].cast(pa.int64()).unique().to_pylist()
        }
        if values <= {-1, 0, 1, None}:
            return "multilabel"
    if all(pa.types.is_floating(kind) for kind in types):
        return "regression"
    found = ", ".join(f"{name} ({kind})" for name, kind in zip(columns, types, strict=True))
    raise RaffectError(
        f"{file}: what are these labels? {found}; add --kind multiclass, multilabel or regression, and choose columns with --columns"
    )


def _read_classes(
    column: pa.ChunkedArray, name: str, config: PrepareConfig, rows: _Rows
) -> tuple[Task, dict[str, np.ndarray]]:
    """Classes by name, or by number where the column holds whole numbers."""
    cells = column.to_pylist()
    is_number = pa.types.is_integer(column.type)
    texts = [
        None if cell is None or (is_number and cell == -1) else str(cell).strip() for cell in cells
    ]
    present = {text for text in texts if text}
    if is_number:
        numbers = {int(text) for text in present}
        require(
            not numbers or (min(numbers) >= 0 and max(numbers) < _MOST_CLASSES),
            f"{rows.file}: column {name!r} has classes from {min(numbers, default=0)} to {max(numbers, default=0)}, expected 0 to {_MOST_CLASSES - 1} (-1 unlabelled)",
        )
        classes = config.classes or tuple(str(k) for k in range(max(numbers, default=-1) + 1))
        number = {str(k): k for k in range(len(classes))}
    else:
        classes = config.classes or tuple(sorted(present))
        number = {text: k for k, text in enumerate(classes)}
    require(
        2 <= len(classes) <= _MOST_CLASSES,
        f"{rows.file}: column {name!r} has {len(classes)} classes; expected 2 to {_MOST_CLASSES}; for numbers add --kind regression",
    )
    for row, text in zip(rows.lines.tolist(), texts, strict=True):
        if text and text not in number:
            rows.note(
                row, f"{name} {text[:40]!r} is not a class ({', '.join(classes[:8])}); unlabelled"
            )
    values = np.array([number.get(text or "", -1) for text in texts], np.int16)
    return Task(name=config.task, kind="multiclass", outputs=classes, columns=(name,)), {
        name: values
    }


def _note_wrong(rows: _Rows, name: str, column: np.ndarray, wrong: np.ndarray) -> None:
    for row in np.flatnonzero(wrong).tolist():
        rows.note(int(rows.lines[row]), f"{name} {column[row]:g} is not a label; unlabelled")
    column[wrong] = np.nan
