"""The plan of a bank: which frames belong to which shard, one Parquet file a generation."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raffect.errors import RaffectError
from raffect.storage.atomic import PREFIX
from raffect.storage.keys import digest_keys, encode_video, without_others
from raffect.storage.paths import Damaged, read_parquet
from raffect.storage.tables import conform, read_metadata

DEFAULT_SHARD_ROWS = 2048
"""Rows of a shard, unless a user chooses another number."""
MOST_SHARD_ROWS = 65_536
"""Most rows of a shard."""
KEYS = pa.schema([("video", pa.dictionary(pa.int32(), pa.string())), pa.field("frame", pa.int32())])
"""Columns of a plan, with which those of a shard begin."""


@dataclass(frozen=True)
class Plan:
    """Rows in order and where each shard begins.

    Attributes:
        table: ``video`` (dictionary), ``frame`` (int32), sorted within a generation.
        offsets: int64, shape (num_shards + 1,); shard k has rows ``offsets[k]:offsets[k + 1]``.
        shard_rows: Most rows that a shard has.
        generations: Number of files that it was read from.
    """

    table: pa.Table
    offsets: np.ndarray
    shard_rows: int
    generations: int

    @property
    def num_shards(self) -> int:
        """Number of shards over all generations."""
        return len(self.offsets) - 1

    def rows(self, shard: int) -> pa.Table:
        """Keys of one shard; ``video`` names its own videos alone."""
        start, stop = self.offsets[shard : shard + 2].tolist()
        return key_table(self.table.slice(start, stop - start))


def key_table(table: pa.Table) -> pa.Table:
    """The columns ``video``, as a dictionary of the names that occur, and ``frame``.

    Equal keys become equal bytes, whatever table they came from.
    """
    video = without_others(encode_video(table["video"]))
    return pa.table({"video": video, "frame": table["frame"].cast(pa.int32()).combine_chunks()})


def list_generations(folder: Path) -> dict[int, Path]:
    """Files of a plan by generation, those of other names left out."""
    files = [file for file in folder.glob("*.parquet") if not file.name.startswith(PREFIX)]
    named = {file.stem: file for file in files if file.stem.isdecimal() and file.stem.isascii()}
    return {int(stem): named[stem] for stem in sorted(named, key=int) if f"{int(stem):04d}" == stem}


def first_missing(generations: Collection[int]) -> int:
    """The first generation that is not there."""
    return next(k for k in itertools.count() if k not in generations)


def build_plan(generations: Iterable[tuple[pa.Table, int]]) -> Plan:
    """The plan of generations in order, each as of `read_generation`."""
    # Every generation, cut into shards of its own
    tables, lengths, shard_rows = [], [], DEFAULT_SHARD_ROWS
    for table, shard_rows in generations:
        full, rest = divmod(len(table), shard_rows)
        lengths += [shard_rows] * full + [rest] * bool(rest)
        tables.append(table)
    # All of them as one table
    table = pa.concat_tables([KEYS.empty_table(), *tables]).unify_dictionaries()
    return Plan(
        table=table.combine_chunks(),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        shard_rows=shard_rows,
        generations=len(tables),
    )


def read_generation(file: Path) -> tuple[pa.Table, int]:
    """Keys of one file of a plan, and the rows of its shards.

    Raises:
        RaffectError: If it is damaged.
    """
    try:
        table = read_parquet(file)
        about = read_metadata(table)
        shard_rows = _parse_shard_rows(about.get("shard_rows", ""))
        table = conform(table, KEYS)
        if len(table) and table["frame"].to_numpy().min() < 1:
            raise Damaged("a frame number below 1")
        if about.get("digest") not in (None, _digest(table, shard_rows)):  # None in format 1
            raise Damaged("not the rows that were written (SHA-256 differs)")
    except Damaged as error:
        remedy = (
            "restore it from a backup, or let `raffect bank verify --repair` withdraw it; "
            "`raffect extract` then plans its frames again"
        )
        raise RaffectError(f"{file}: damaged plan ({error}); {remedy}") from error
    return table, shard_rows


def _parse_shard_rows(text: str) -> int:
    digits = text if text.isascii() and text.isdecimal() and len(text) < 8 else "0"
    if not 1 <= int(digits) <= MOST_SHARD_ROWS:
        raise Damaged(f"shard_rows {text[:20]!r}, expected 1 to {MOST_SHARD_ROWS}")
    return int(digits)


def _digest(keys: pa.Table, shard_rows: int) -> str:
    return hashlib.sha256(f"{shard_rows} {digest_keys(keys)}".encode()).hexdigest()


def format_generation(keys: pa.Table, shard_rows: int, manifest: pa.Table) -> bytes:
    """The file of a generation.

    Args:
        keys: Its frames.
        shard_rows: Rows of its shards.
        manifest: The manifest that they are from, whose digest goes into the file.
    """
    about = {"shard_rows": str(shard_rows), "manifest_digest": digest_keys(manifest)}
    keys, sink = key_table(keys), pa.BufferOutputStream()
    about["digest"] = _digest(keys, shard_rows)
    pq.write_table(keys.replace_schema_metadata(about), sink, compression="zstd")
    return sink.getvalue().to_pybytes()
