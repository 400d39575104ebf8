"""Records of heads as tables: one row a head, one a head and epoch, one a head and group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raffect.metrics.kinds import Kind
from raffect.metrics.scores import SNAPSHOTS
from raffect.runs.folder import RunFolder
from raffect.runs.records import HeadRecord
from raffect.storage.tables import write_csv, write_table

Row = dict[str, Any]


def write_tables(folder: RunFolder, records: Sequence[HeadRecord]) -> None:
    """Write heads.csv and .parquet, results.csv and per_group.csv of a run folder."""
    rows = [head_row(record) for record in records]
    write_table(pa.Table.from_pylist(rows), folder.path / "heads.parquet", {"raffect": "heads/2"})
    write_csv(folder.path / "heads.csv", [_flat(row) for row in rows])
    write_csv(
        folder.path / "results.csv", [line for record in records for line in _epoch_rows(record)]
    )
    write_csv(
        folder.path / "per_group.csv",
        [line for record in records for line in _group_rows(folder, record)],
    )


def head_row(record: HeadRecord) -> Row:
    """One row of heads.csv: settings, scores by snapshot, curve."""
    key = record.kind.key
    row: Row = {
        "id": record.id,
        "status": record.status,
        "fold": record.fold,
        "num_folds": record.num_folds,
    }
    row |= record.settings
    for name in SNAPSHOTS:
        score = record.scores.get(name)
        low, high = (score.interval_95 if score else None) or (None, None)
        row |= {
            f"{name}.epoch": score.epoch if score else None,
            f"{name}.{key}": score.headline if score else None,
        }
        row |= {f"{name}.low": low, f"{name}.high": high}
    row |= {"chance.majority": record.chance.majority, "chance.prior": record.chance.prior}
    row |= {
        "wall_s": record.trained_by.wall_s,
        "batch_of_heads": record.trained_by.batch_of_heads,
        "note": record.note,
    }
    return row | {
        "curve.train_loss": list(record.curve.train_loss),
        f"curve.val_{key}": list(record.curve.validation),
    }


def group_rows(kind: Kind, statistics: np.ndarray, names: Sequence[str]) -> list[Row]:
    """A row a group of one head's statistics (groups, A, B): its frames, and the headline score over all classes or values."""
    frames, scores = kind.count_frames(statistics), kind.headline(statistics)
    column = f"{kind.key}_over_all_{kind.parts}"
    return [
        {"group": name, "frames": int(frames[k]), column: round(float(scores[k]), 4)}
        for k, name in enumerate(names)
    ]


def _epoch_rows(record: HeadRecord) -> list[Row]:
    curve, score = record.curve, f"val_{record.kind.key}"
    return [
        {
            "id": record.id,
            "epoch": k + 1,
            "lr": lr,
            "train_loss": curve.train_loss[k],
            score: curve.validation[k],
        }
        for k, lr in enumerate(curve.lr)
    ]


def _group_rows(folder: RunFolder, record: HeadRecord) -> list[Row]:
    statistics, found = folder.read_statistics(record), folder.statistics_of(record, "last")
    if statistics is None or found is None:
        return []
    return [{"id": record.id, **row} for row in group_rows(record.kind, found, statistics.groups)]


def _flat(row: Row) -> Row:
    """A row for CSV: curves as numbers with spaces between."""
    return {
        name: " ".join("nan" if item is None else f"{item:.4g}" for item in value)
        if isinstance(value, list)
        else value
        for name, value in row.items()
    }
