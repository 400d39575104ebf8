"""Records of heads as tables: one row a head, one a head and epoch, one a head and group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raffect.metrics.scores import SNAPSHOTS
from raffect.metrics.task_kinds import Kind
from raffect.runs.folder import RunFolder
from raffect.runs.group_statistics import in_reading_order
from raffect.runs.records import HeadRecord
from raffect.storage.tables import write_csv, write_table

Row = dict[str, Any]


def write_tables(folder: RunFolder, records: Sequence[HeadRecord]) -> None:
    """Write heads.csv and .parquet, results.csv and per_group.csv of a run folder."""
    rows = [head_row(record) for record in records]
    write_table(pa.Table.from_pylist(rows), folder.path / "heads.parquet", {"raffect": "heads/2"})
    write_csv(folder.path / "heads.csv", [_flat(row) for row in rows])
    write_csv(folder.path / "results.csv", (row for one in records for row in _epoch_rows(one)))

    # Numbers of groups, from files that are read one after the other, and rows in order of heads
    found = {
        record.id: _group_scores(folder, record)
        for (record,) in in_reading_order([record] for record in records)
    }
    groups = (
        {"id": record.id, **row}
        for record in records
        if (scores := found[record.id]) is not None
        for row in _iter_group_rows(record.kind, *scores)
    )
    write_csv(folder.path / "per_group.csv", groups)


def head_row(record: HeadRecord) -> Row:
    """One row of heads.csv: settings, scores by snapshot, curve."""
    # What the head is
    key, trained = record.kind.key, record.trained_by
    row: Row = {"id": record.id, "status": record.status}
    row |= {"fold": record.fold, "num_folds": record.num_folds} | record.settings

    # Its scores, beside those by chance
    for name in SNAPSHOTS:
        score = record.scores.get(name)
        low, high = (score.interval_95 if score else None) or (None, None)
        row[f"{name}.epoch"] = score.epoch if score else None
        row[f"{name}.{key}"] = score.headline if score else None
        row |= {f"{name}.low": low, f"{name}.high": high}
    row |= {"chance.majority": record.chance.majority, "chance.prior": record.chance.prior}

    # How it was trained
    row |= {"wall_s": trained.wall_s, "batch_of_heads": trained.batch_of_heads}
    row["note"] = record.note
    return row | {
        "curve.train_loss": list(record.curve.train_loss),
        f"curve.{record.kind.curve_key}": list(record.curve.validation),
    }


def group_rows(kind: Kind, statistics: np.ndarray, names: Sequence[str]) -> Iterator[Row]:
    """Rows of one head's statistics, shape (groups, A, B), one a group.

    A row has the group's frames, and its headline score over all classes or values.
    """
    return _iter_group_rows(kind, names, kind.count_frames(statistics), kind.headline(statistics))


def _iter_group_rows(
    kind: Kind, names: Sequence[str], frames: np.ndarray, scores: np.ndarray
) -> Iterator[Row]:
    column = f"{kind.key}_over_all_{kind.parts}"
    for k, name in enumerate(names):
        yield {"group": name, "frames": int(frames[k]), column: round(float(scores[k]), 4)}


def _epoch_rows(record: HeadRecord) -> Iterator[Row]:
    curve, score = record.curve, record.kind.curve_key
    for k, lr in enumerate(curve.lr):
        row = {"id": record.id, "epoch": k + 1, "lr": lr}
        yield row | {"train_loss": curve.train_loss[k], score: curve.validation[k]}


def _group_scores(
    folder: RunFolder, record: HeadRecord
) -> tuple[Sequence[str], np.ndarray, np.ndarray] | None:
    """Names of groups, and frames and last score of each; None without statistics."""
    statistics, found = folder.read_statistics(record), folder.statistics_of(record, "last")
    if statistics is None or found is None:
        return None
    kind = record.kind
    return statistics.groups, kind.count_frames(found), kind.headline(found)


def _flat(row: Row) -> Row:
    """A row for CSV: curves as numbers with spaces between."""
    return {
        name: _numbers(value) if isinstance(value, list) else value for name, value in row.items()
    }


def _numbers(values: Sequence[float | None]) -> str:
    return " ".join("nan" if value is None else f"{value:.4g}" for value in values)
