"""What heads of folds predict for their held-out fold, as one Parquet file a batch of heads.

No head has seen these frames in training, so that decision rules can be chosen on them and the
validation split stays unseen (`raffect postprocess`). They are of the last epoch: which epoch
cross-validation chooses is known only after all folds. A row is a frame: ``video, frame, group,
target`` and a column a head, named by its id, with probabilities (float16) or values (float32).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.runs.named_files import read_named, write_named
from raffect.runs.records import NamedFile
from raffect.storage.paths import Damaged, parse_parquet
from raffect.storage.tables import check_cells, read_metadata

FORMAT = "fold predictions/1"
_KEYS = ("video", "frame", "group", "target")
_ELEMENTS = (pa.float16(), pa.float32())


@dataclass(frozen=True)
class FoldPredictions:
    """Predictions of some heads for the N frames of their fold.

    Attributes:
        video: Number of each frame's video in ``videos``, shape (N,).
        videos: Names of videos.
        frame: 1-based frame numbers, int32, shape (N,).
        group: Number of each frame's group in ``groups``, shape (N,).
        groups: Names of the videos, subjects or pictures that are kept together.
        target: As training takes them, see `raffect.metrics.task_kinds.Kind.targets`.
        heads: By id, probabilities or values of shape (N, C).
    """

    video: np.ndarray
    videos: Sequence[str]
    frame: np.ndarray
    group: np.ndarray
    groups: Sequence[str]
    target: np.ndarray
    heads: Mapping[str, np.ndarray]


def write_fold_predictions(folder: Path, found: FoldPredictions) -> NamedFile:
    """Write the predictions of a batch of heads of one fold.

    Args:
        folder: ``predictions/`` of the run folder.
        found: Of at least one head and frame.

    Returns:
        What their records name. Equal predictions have equal names and bytes.
    """
    lists = {"target": found.target} | dict(found.heads)
    table = pa.table(
        {
            "video": _texts(found.video, found.videos),
            "frame": pa.array(found.frame, pa.int32()),
            "group": _texts(found.group, found.groups),
            **{name: _lists(values) for name, values in lists.items()},
        }
    )
    # Bytes of one significance side by side: half the size, and written in half the time
    table = table.replace_schema_metadata({"raffect": FORMAT})
    split = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in found.heads}
    keys = ["video", "group", "frame"]
    return write_named(folder, table, use_dictionary=keys, column_encoding=split)


def read_fold_predictions(
    folder: Path, file: NamedFile, heads: Sequence[str], num_outputs: int
) -> FoldPredictions:
    """Read what `write_fold_predictions` wrote.

    Args:
        folder: ``predictions/`` of the run folder.
        file: As records name it.
        heads: Whose predictions are wanted.
        num_outputs: C.

    Raises:
        RaffectError: If it is missing, not the file that the records name, or lacks a head.
    """

    def parse(content: pa.Buffer) -> FoldPredictions:
        return _parse(content, heads, num_outputs)

    return read_named(folder, file, parse)


def _texts(number: np.ndarray, names: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(
        pa.array(number, pa.int32()), pa.array(list(names), pa.string())
    )


def _lists(values: np.ndarray) -> pa.FixedSizeListArray:
    """Rows of a matrix as lists; of a vector as lists of one."""
    values = values.reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _parse(content: pa.Buffer, heads: Sequence[str], num_outputs: int) -> FoldPredictions:
    # Only the columns that are wanted
    table = parse_parquet(content, (*_KEYS, *heads))
    if read_metadata(table).get("raffect") != FORMAT or not len(table):
        raise Damaged("not predictions of heads for their fold")
    check_cells(table, ("video", "group"), ("frame",))
    video, videos = _codes(table["video"])
    group, groups = _codes(table["group"])

    # Lists, whose predictions must be finite
    found = {}
    for name in heads:
        found[name] = _matrix(table, name)
        if found[name].shape[1] != num_outputs or table[name].type.value_type not in _ELEMENTS:
            raise Damaged(f"column {name!r} is {table[name].type}, expected {num_outputs} outputs")
        if not np.isfinite(found[name]).all():
            raise Damaged(f"column {name!r} has numbers that are not finite")
    target = _matrix(table, "target")
    return FoldPredictions(
        video=video,
        videos=videos,
        frame=table["frame"].to_numpy(),
        group=group,
        groups=groups,
        target=target[:, 0] if target.dtype == np.int64 else target,
        heads=found,
    )


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    array = column.combine_chunks()
    array = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    return array.indices.to_numpy(), array.dictionary.to_pylist()


def _matrix(table: pa.Table, name: str) -> np.ndarray:
    """A column of fixed-size lists of numbers, shape (N, length)."""
    column = table[name]
    if not pa.types.is_fixed_size_list(column.type) or column.null_count:
        raise Damaged(f"column {name!r} is {str(column.type)[:40]}, expected lists of one length")
    flat = pa.concat_arrays([chunk.flatten() for chunk in column.chunks])
    if flat.null_count:
        raise Damaged(f"column {name!r} has empty cells")
    return flat.to_numpy().reshape(len(table), column.type.list_size)
