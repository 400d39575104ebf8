"""The file of a manifest: ``video, frame, path, root`` of every frame, written and checked."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from raffect.errors import RaffectError
from raffect.storage.keys import Vocabulary, digest_keys, first_not_above
from raffect.storage.paths import Damaged
from raffect.storage.tables import check_cells, read_metadata, read_table, write_table

COLUMNS = ("video", "frame", "path", "root")
SYNTHETIC = "synthetic"
"""Metadata key: whether every image of the manifest was drawn."""

REMEDY = "make it again with `raffect prepare`"
"""What an error of a manifest ends with."""


def write_manifest(table: pa.Table, path: Path, synthetic: bool) -> None:
    """Write a manifest atomically.

    Args:
        table: ``video, frame, path, root``, sorted by (video, frame).
        path: The file to make.
        synthetic: Whether every image was drawn by raffect.
    """
    metadata = {"raffect": "manifest/1", "digest": digest_keys(table)}
    write_table(table, path, metadata | {SYNTHETIC: str(synthetic).lower()})


def find_manifest(path: Path) -> Path:
    """The manifest's file: ``path`` itself, or the one in the folder that prepare wrote."""
    return path / "manifest.parquet" if path.is_dir() else path


def read_manifest(path: Path, *, with_paths: bool = True) -> pa.Table:
    """Read and check a manifest; its metadata record whether it is synthetic.

    Args:
        path: The file, or the folder that `raffect prepare` or `raffect pack` wrote.
        with_paths: Whether the column ``path``, which is most of it, is read and checked too.

    Raises:
        RaffectError: If it is not a manifest, or a frame lacks its number, is doubled or is out of
            order.
    """
    path = find_manifest(path)
    texts = ("video", "path", "root") if with_paths else ("video", "root")
    only = None if with_paths else ("video", "frame", "root")
    table = read_table(path, COLUMNS, "manifest", "raffect prepare", only)

    # Cells
    try:
        check_cells(table, texts, ("frame",))
    except Damaged as error:
        raise RaffectError(f"{path}: {error}; {REMEDY}") from error
    if not len(table):
        raise RaffectError(f"{path}: the manifest has no rows; {REMEDY}")
    if table["frame"].type != pa.int32():
        what = f"column 'frame' is {table['frame'].type}, expected int32"
        raise RaffectError(f"{path}: {what}; {REMEDY}")

    # Order
    keys = Vocabulary(sorted(table["video"].unique().to_pylist())).keys(table)
    if (row := first_not_above(keys)) is not None:
        raise RaffectError(
            f"{path}: row {row} is not after the row before it in (video, frame); "
            "sort it and drop doubles, or make it with `raffect prepare`"
        )
    return table


def is_synthetic_manifest(table: pa.Table) -> bool:
    """Whether a manifest's metadata mark all its images as drawn."""
    return read_metadata(table).get(SYNTHETIC) == "true"
