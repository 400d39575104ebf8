"""Additive statistics of a batch of heads by group and epoch, as one Parquet file.

Every score and interval is computed from them. A row is a head, an epoch and a group:
``head, epoch, group, statistics``; the last is an (A, B) matrix, row by row (its shape is in the
metadata): a confusion matrix of classes, counts of labels, moments of numbers, or hits of retrieval
(see `raffect.metrics.task_kinds`). Heads of the whole training split keep the epochs of their
snapshots, heads of folds every epoch, so that epochs can be chosen from pooled counts later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from raffect.datasets.tasks import Task
from raffect.runs.named_files import read_named, write_named
from raffect.runs.records import HeadRecord, NamedFile
from raffect.storage.paths import Damaged, parse_parquet
from raffect.storage.tables import check_cells, read_metadata

G = TypeVar("G", bound=Sequence[HeadRecord])

_COLUMNS = ("head", "epoch", "group", "statistics")
_COLUMNS_OF = {"multilabel": 4, "regression": 6, "contrastive": 4}
"""Columns of a kind's statistics; of classes as many as rows."""

_MOST_BYTES = 1 << 28
"""Of the files that `Recent` keeps: 10,000 heads on 70 videos have 0.7 GB, on 1,000 videos ten."""

ByEpoch = Mapping[int, np.ndarray]
"""Statistics of one head by 1-based epoch, each of shape (groups, A, B)."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of some heads.

    Attributes:
        groups: Names of the videos, subjects or pictures.
        heads: By head and epoch, shape (groups, A, B).
    """

    groups: Sequence[str]
    heads: Mapping[str, ByEpoch]

    @property
    def size_bytes(self) -> int:
        """Memory that the counts take."""
        found = (counts for by_epoch in self.heads.values() for counts in by_epoch.values())
        return sum(counts.nbytes for counts in found)


class Recent:
    """The statistics that were read last, as many as fit a number of bytes, and one at least.

    All heads of a batch have the same file, and each of their snapshots asks for it.

    Args:
        most_bytes: Of all together.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._kept: dict[str, Statistics] = {}
        self._sizes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str, read: Callable[[], Statistics]) -> Statistics:
        """What ``read`` gives, which is called unless what it gave last is kept."""
        found = self._kept.pop(key, None)
        if found is None:
            found = read()
            self._sizes[key] = found.size_bytes
        self._kept[key] = found  # the newest is the last
        while len(self._kept) > 1 and sum(self._sizes[one] for one in self._kept) > self.most_bytes:
            del self._kept[next(iter(self._kept))]
        return found


def in_reading_order(groups: Iterable[G]) -> list[G]:
    """Groups of records in an order that reads each file of statistics once, or nearly so."""

    def file_of(group: G) -> str:
        return group[0].statistics.name if group[0].statistics else ""

    return sorted(groups, key=file_of)


def write_statistics(folder: Path, statistics: Statistics) -> NamedFile:
    """Write the statistics of a batch of heads.

    Args:
        folder: ``statistics/`` of the run folder.
        statistics: Of at least one head and epoch.

    Returns:
        What their records name. Equal statistics have equal names and bytes.
    """
    # A block of rows for each head and epoch
    keys = [(head, epoch) for head, by_epoch in statistics.heads.items() for epoch in by_epoch]
    values = np.concatenate([statistics.heads[head][epoch] for head, epoch in keys])
    shape, groups = values.shape[1:], statistics.groups
    flat = pa.array(values.ravel())
    table = pa.table(
        {
            "head": pa.array([head for head, _ in keys for _ in groups]).dictionary_encode(),
            "epoch": pa.array([epoch for _, epoch in keys for _ in groups], pa.int32()),
            "group": pa.array([*groups] * len(keys), pa.string()).dictionary_encode(),
            "statistics": pa.FixedSizeListArray.from_arrays(flat, shape[0] * shape[1]),
        }
    )
    metadata = {"raffect": "statistics/1", "shape": f"{shape[0]},{shape[1]}"}
    return write_named(folder, table.replace_schema_metadata(metadata))


def read_statistics(folder: Path, file: NamedFile) -> Statistics:
    """Read what `write_statistics` wrote.

    Raises:
        RaffectError: If it is missing, or not the file that the records name.
    """
    return read_named(folder, file, _parse)


def require_shapes(by_epoch: ByEpoch, groups: Sequence[str], task: Task) -> None:
    """Refuse statistics of a head that are not of its task.

    Raises:
        Damaged: Names the first epoch.
    """
    count, columns = len(task.outputs), _COLUMNS_OF.get(task.kind)
    expected = (len(groups), count, columns or count)
    for epoch, found in by_epoch.items():
        if found.shape != expected:
            raise Damaged(f"statistics of epoch {epoch} of shape {found.shape}, not {expected}")


def _parse(content: pa.Buffer) -> Statistics:
    # All values as one array, in the order of the rows
    table = parse_parquet(content, _COLUMNS)
    if table.num_columns != len(_COLUMNS) or not len(table):
        raise Damaged(f"expected rows with columns {', '.join(_COLUMNS)}")
    check_cells(table, ("head", "group"), ("epoch",))
    rows, columns = (int(size) for size in read_metadata(table).get("shape", "").split(","))
    kind = table["statistics"].type
    if not (pa.types.is_fixed_size_list(kind) and kind.value_type in (pa.int64(), pa.float64())):
        raise Damaged(f"statistics are {str(kind)[:40]}, expected lists of whole numbers or floats")
    flat = pa.concat_arrays([chunk.flatten() for chunk in table["statistics"].chunks])
    if flat.null_count or min(rows, columns) < 1:
        raise Damaged("statistics have empty cells")
    values = flat.to_numpy().reshape(len(table), rows, columns)
    groups = table["group"].unique().to_pylist()

    # A block of rows is a head and an epoch, which stand in its first row
    blocks = values.reshape(-1, len(groups), rows, columns)
    firsts = table.take(np.arange(0, len(table), len(groups)))
    names, epochs = firsts["head"].to_pylist(), firsts["epoch"].to_pylist()
    heads: dict[str, dict[int, np.ndarray]] = {}
    for block, head, epoch in zip(blocks, names, epochs, strict=True):
        heads.setdefault(head, {})[epoch] = block
    return Statistics(groups, heads)
