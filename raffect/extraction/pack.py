"""Packing: loose frames become Parquet files, still encoded, whose row groups are shards."""

from __future__ import annotations

import hashlib
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raffect.bank.plan import DEFAULT_SHARD_ROWS
from raffect.config import PackConfig
from raffect.datasets.frames import PACKED_SCHEMA, PACKED_SUFFIX, BadFrame, read_contents
from raffect.datasets.manifest import is_synthetic_manifest, read_manifest, write_manifest
from raffect.errors import RaffectError
from raffect.progress import Progress, format_bytes
from raffect.storage.atomic import atomic_path
from raffect.storage.paths import has_file, open_parquet
from raffect.storage.tables import read_metadata

_SOURCE, _FILES = "source", "files"
_READERS = 8
_PIECE = 64
"""Frames that one thread reads at a time."""


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What was packed.

    Attributes:
        manifest: The manifest of the packed frames.
        files: Packed files, in order.
        frames: Frames in them.
        size_bytes: Size of all packed files.
        unreadable: Frames that this run could not read; they keep a row and become rejects.
        gone: Frames packed by an earlier run whose pictures are gone; the packed files that hold
            them were left as they are.
        shard_rows: Frames of a row group.
    """

    manifest: Path
    files: tuple[Path, ...]
    frames: int
    size_bytes: int
    unreadable: int
    gone: int
    shard_rows: int

    def lines(self) -> list[str]:
        """The report as lines of text."""
        files = f"{len(self.files)} file(s), {format_bytes(self.size_bytes)}"
        unreadable = f"{self.unreadable:,} could not be read and will be rejects"
        out = [f"packed {self.frames:,} frames into {files}; {unreadable}"]
        if self.gone:
            what = f"the pictures of {self.gone:,} packed frames are gone"
            out.append(f"kept: {what}; files that hold any of them were left as they are")
        rows = "" if self.shard_rows == DEFAULT_SHARD_ROWS else f" --shard-rows {self.shard_rows}"
        manifest = shlex.quote(str(self.manifest))
        return [*out, f"next: raffect extract --manifest {manifest} --bank BANK{rows}"]


def pack(config: PackConfig) -> PackReport:
    """Pack a manifest's frames.

    Frames that cannot be read keep a row with the reason; packed files that exist already are kept.

    Raises:
        RaffectError: If there is no manifest, or it is packed already.
    """
    # Names of the packed files
    manifest = read_manifest(config.manifest)
    if manifest["root"][0].as_py().endswith(PACKED_SUFFIX):
        raise RaffectError(f"{config.manifest}: its frames are packed already")
    out = config.out.absolute()
    per_file = config.shard_rows * config.groups_per_file
    starts = range(0, len(manifest), per_file)
    files = [out / f"frames-{number:05d}{PACKED_SUFFIX}" for number in range(len(starts))]
    # The files, without those that an earlier run has made
    unreadable = gone = 0
    with Progress("pack", len(manifest)) as progress:
        for file, start in zip(files, starts, strict=True):
            rows = manifest.slice(start, per_file)
            is_packed, missing = _find_packed(file, rows, config.shard_rows)
            gone += missing
            if is_packed:
                progress.add_earlier(len(rows))
            else:
                unreadable += _pack_file(file, rows, config.shard_rows, progress)
    # The manifest of the packed frames
    table = _point_into(files, manifest, per_file, config.shard_rows)
    write_manifest(table, out / "manifest.parquet", is_synthetic_manifest(manifest))
    return PackReport(
        manifest=out / "manifest.parquet",
        files=tuple(files),
        frames=len(manifest),
        size_bytes=sum(file.stat().st_size for file in files),
        unreadable=unreadable,
        gone=gone,
        shard_rows=config.shard_rows,
    )


def _point_into(files: list[Path], manifest: pa.Table, per_file: int, shard_rows: int) -> pa.Table:
    """The manifest whose paths are ``<row group>/<row>`` of packed files."""
    # Paths
    row = np.arange(len(manifest))
    group, place = np.divmod(row % per_file, shard_rows)
    paths = [f"{one}/{other}" for one, other in zip(group.tolist(), place.tolist(), strict=True)]
    # Roots, which are the packed files
    names = pa.array([str(file) for file in files], pa.string())
    roots = pa.DictionaryArray.from_arrays(pa.array(row // per_file, pa.int32()), names)
    columns = {"video": manifest["video"], "frame": manifest["frame"]}
    return pa.table(columns | {"path": pa.array(paths, pa.string()), "root": roots})


def _pack_file(file: Path, rows: pa.Table, shard_rows: int, progress: Progress) -> int:
    """Write one file; returns how many of its frames could not be read."""
    # Pictures are marked before they are read. If one is replaced meanwhile, its mark differs in
    # the next run, which packs the file again.
    about = {_SOURCE: _digest(rows), _FILES: _digest_marks(_mark_files(rows))}
    schema = PACKED_SCHEMA.with_metadata(about)
    keys, unreadable = ["video", "frame"], 0
    with (
        atomic_path(file) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="none",
            use_dictionary=["video"],
            write_statistics=keys,
        ) as writer,
        ThreadPoolExecutor(_READERS) as pool,
    ):
        for start in range(0, len(rows), shard_rows):
            group = rows.slice(start, shard_rows)
            table = _read_group(group, schema, pool)
            writer.write_table(table, row_group_size=shard_rows)
            unreadable += len(group) - table["reason"].null_count
            progress.advance(len(group))
    return unreadable


def _read_group(group: pa.Table, schema: pa.Schema, pool: ThreadPoolExecutor) -> pa.Table:
    """Frames of a manifest with their contents, or the reasons why they could not be read."""
    pieces = [group.slice(start, _PIECE) for start in range(0, len(group), _PIECE)]
    contents = [content for part in pool.map(read_contents, pieces) for content in part]
    images, reasons = [], []
    for content in contents:
        is_bad = isinstance(content, BadFrame)
        images.append(None if is_bad else content)
        reasons.append(str(content) if is_bad else None)
    columns = [
        group["video"].cast(pa.string()).combine_chunks(),
        group["frame"].combine_chunks(),
        pa.array(images, pa.binary()),
        pa.array(reasons, pa.string()),
    ]
    return pa.table(columns, schema=schema)


def _find_packed(file: Path, rows: pa.Table, shard_rows: int) -> tuple[bool, int]:
    """Whether to keep the file of an earlier run, and how many pictures of its frames are gone.

    A file is kept if it holds exactly these frames and none of their pictures was replaced.
    """
    # The file, if it is readable
    if not has_file(file):
        return False, 0
    try:
        with open_parquet(file) as packed:
            found = packed.read(columns=["reason"])
            first = packed.metadata.row_group(0).num_rows
        unreadable = found["reason"].is_valid().to_numpy()
    except (pa.ArrowException, OSError, LookupError, ValueError):
        return False, 0
    # Frames from the same paths, in row groups of the same size
    about = read_metadata(found)
    if first != min(shard_rows, len(rows)) or about.get(_SOURCE) != _digest(rows):
        return False, 0
    # Where a picture is gone, the packed copy is the only one, and packing again would lose it.
    marks = _mark_files(rows)
    if gone := sum(mark is None and not bad for mark, bad in zip(marks, unreadable, strict=True)):
        return True, gone
    # A frame that could not be read may be there now, so such a file is made again.
    return not unreadable.any() and about.get(_FILES) == _digest_marks(marks), 0


def _digest(rows: pa.Table) -> str:
    """SHA-256 over frames and the paths of their pictures."""
    digest = hashlib.sha256()
    for row in rows.to_pylist():
        digest.update(f"{row['video']}\0{row['frame']}\0{row['root']}\0{row['path']}\n".encode())
    return digest.hexdigest()


def _mark_files(rows: pa.Table) -> list[tuple[int, int] | None]:
    """Size and time of each picture, which change when it is replaced; None for a missing one."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(_mark, rows["root"].to_pylist(), rows["path"].to_pylist()))


def _digest_marks(marks: list[tuple[int, int] | None]) -> str:
    return hashlib.sha256("\n".join(map(str, marks)).encode()).hexdigest()


def _mark(root: str, path: str) -> tuple[int, int] | None:
    try:
        info = Path(root, path).stat()
    except (OSError, ValueError):
        return None
    return info.st_size, info.st_mtime_ns
