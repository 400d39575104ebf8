"""Paths of a manifest's frames, which stay in its file until they are needed.

They are most of a manifest: 34 bytes a frame of Aff-Wild2, beside 12 for video, number and root.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raffect.datasets.manifest import REMEDY, find_manifest, read_manifest
from raffect.errors import RaffectError, require
from raffect.storage.paths import has_file, open_parquet
from raffect.storage.tables import check_cells

_ROWS = 1 << 18
"""Rows that are checked at a time."""


class Manifest:
    """A manifest of which only some paths are in memory.

    Its file stays open, so that another one put in its place changes nothing.

    Args:
        path: The file, or the folder that `raffect prepare` or `raffect pack` wrote.

    Attributes:
        frames: ``video, frame, root`` of all frames, with the manifest's metadata.

    Raises:
        RaffectError: As `raffect.datasets.manifest.read_manifest`.
    """

    def __init__(self, path: Path) -> None:
        # Opened before all else is read, and looked at again after: paths are of these frames
        self._path = path = find_manifest(path)
        self._file = _open(path)
        found = read_manifest(path, with_paths=False)
        _check_paths(self._file, path)
        is_same = open_parquet(path).metadata.equals(self._file.metadata)
        require(is_same, f"{path}: was replaced while it was read; run the same command again")
        # One chunk, of which a column is used without a copy
        self.frames = found.unify_dictionaries().combine_chunks()
        groups = range(self._file.num_row_groups)
        self._ends = np.cumsum([self._file.metadata.row_group(k).num_rows for k in groups])
        self._kept: dict[int, pa.ChunkedArray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.frames)

    def take(self, places: np.ndarray) -> pa.Table:
        """``video, frame, root, path`` of some rows, by their ascending numbers, at least one.

        Calls with rows further down are cheap; going back reads again.
        """
        # Row groups that hold them, of which those that the last call needed too are in memory
        group = np.searchsorted(self._ends, places, "right")
        needed = np.unique(group).tolist()
        with self._lock:
            self._kept = kept = {
                k: self._kept[k] if k in self._kept else self._read_group(k) for k in needed
            }
        starts = {k: int(self._ends[k - 1]) if k else 0 for k in needed}
        parts = [take_rows(kept[k], places[group == k] - starts[k]) for k in needed]
        paths = pa.chunked_array([chunk for part in parts for chunk in part.chunks])
        return take_rows(self.frames, places).append_column("path", paths)

    def _read_group(self, number: int) -> pa.ChunkedArray:
        with _explained(self._path):
            return self._file.read_row_group(number, ["path"])["path"]


def take_frames(manifest: Manifest | pa.Table, places: np.ndarray) -> pa.Table:
    """Some rows of a manifest, with paths; see `Manifest.take`."""
    return manifest.take(places) if isinstance(manifest, Manifest) else take_rows(manifest, places)


def take_rows(table: pa.Table | pa.ChunkedArray, places: np.ndarray) -> pa.Table | pa.ChunkedArray:
    """Some rows by their ascending numbers, at least one: a slice where these are in a row."""
    # `take` is slow on a table of many chunks.
    if places[-1] - places[0] + 1 == len(places):
        return table.slice(int(places[0]), len(places))
    return table.take(pa.array(places))


def _open(path: Path) -> pq.ParquetFile:
    with _explained(path):
        if not has_file(path):  # nor a pipe, on which opening would wait
            raise FileNotFoundError(path)
        return open_parquet(path)


def _check_paths(file: pq.ParquetFile, path: Path) -> None:
    """Check every path, whatever the file claims of itself.

    Raises:
        RaffectError: If there is no such column, or a cell is empty or no text in UTF-8.
    """
    with _explained(path):
        for batch in file.iter_batches(_ROWS, columns=["path"]):
            check_cells(pa.Table.from_batches([batch]), ("path",), ())


@contextlib.contextmanager
def _explained(path: Path) -> Generator[None]:
    """What is wrong with a manifest, in the words of `read_manifest` if it sees it.

    Raises:
        RaffectError: Of whatever Arrow raises, which of wrong bytes is nearly anything.
        OSError: If the disk, the network or the file's permissions are at fault.
    """
    try:
        yield
    except Exception as error:
        is_missing = isinstance(error, FileNotFoundError)
        if isinstance(error, OSError) and error.errno is not None and not is_missing:
            raise
        read_manifest(path)
        what = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise RaffectError(f"{path}: {what}; {REMEDY}") from error
