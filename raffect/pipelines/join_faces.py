"""Rows of faces with what was predicted for their crops: the table of predictions of inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raffect.datasets.tasks import Task
from raffect.predictions.columns import FRAME_SCHEMA, columns_of, schema_of
from raffect.storage.keys import Vocabulary, positions


def join_rows(
    faces: Path, predictions: Path | None, tasks: Sequence[Task], model: str
) -> Iterator[pa.Table]:
    """Rows of the table, in the order of ``faces.parquet``, in parts of whole inputs.

    Args:
        faces: ``faces.parquet`` of `raffect faces`.
        predictions: Table of the bank of its crops; None if there is no crop.
        tasks: All tasks of the table.
        model: What the column ``model`` says.
    """
    with pq.ParquetFile(faces) as file:
        for part in whole_inputs(file.iter_batches()):
            yield _join(part, predictions, tasks, model)


def whole_inputs(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Rows in parts that hold all rows of their inputs, whose rows stand together."""
    kept = None
    for batch in batches:
        table = pa.Table.from_batches([batch])
        table = pa.concat_tables([kept, table]) if kept is not None else table
        last = table["input"].combine_chunks().to_pylist()
        start = last.index(last[-1]) if last else 0
        if start:
            yield table.slice(0, start)
        kept = table.slice(start)
    if kept is not None and len(kept):
        yield kept


def split_inputs(part: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Name and rows of each input of a part."""
    names = part["input"].to_pylist()
    starts = [k for k, name in enumerate(names) if not k or name != names[k - 1]]
    for start, stop in zip(starts, [*starts[1:], len(names)], strict=True):
        yield names[start], part.slice(start, stop - start)


def _join(part: pa.Table, predictions: Path | None, tasks: Sequence[Task], model: str) -> pa.Table:
    # Row of each face among the predictions; a doubtful face is not predicted
    schema, status = schema_of(tasks), part["status"].to_pylist()
    found = _read_videos(part, predictions, schema)
    vocabulary = Vocabulary()
    has_video = np.array([video is not None for video in part["video"].to_pylist()])
    rows = np.full(len(part), -1, np.int64)
    keys = vocabulary.keys(found)
    order = np.argsort(keys, kind="stable")
    place = positions(vocabulary.keys(part.filter(pa.array(has_video))), keys[order])
    rows[has_video] = np.where(place >= 0, order[place] if len(order) else -1, -1)
    rows[np.array(status) != "ok"] = -1
    taken = found.take(pa.array(rows, mask=rows < 0))

    # A crop that could not be read has no prediction either
    states = [
        theirs if ours == "ok" and theirs else ours
        for ours, theirs in zip(status, taken["status"].to_pylist(), strict=True)
    ]
    names = [name for columns in columns_of(tasks).values() for name in columns.names]
    arrays = {name: part[name] for name in FRAME_SCHEMA.names if name in part.column_names}
    arrays |= {name: taken[name] for name in names}
    arrays |= {"face_conf": part["score"], "status": pa.array(states)}
    arrays["model"] = pa.repeat(model, len(part))
    return pa.table({name: arrays[name] for name in schema.names}).cast(schema)


def _read_videos(part: pa.Table, predictions: Path | None, schema: pa.Schema) -> pa.Table:
    """Predictions of the tracks of a part; the table is sorted by video, so few parts are read."""
    videos = [name for name in part["video"].unique().to_pylist() if name is not None]
    if predictions is None or not videos:
        return schema.empty_table()
    return pq.read_table(predictions, filters=[("video", "in", videos)])
