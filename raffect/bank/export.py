"""`raffect bank export`: a bank's features as files that other tools read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raffect.bank.features import read_shard_features
from raffect.bank.format import Bank, Commit
from raffect.bank.verify import verify
from raffect.config import BankExportConfig
from raffect.errors import RaffectError
from raffect.progress import Progress
from raffect.storage.atomic import atomic_path
from raffect.storage.paths import read_parquet


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was exported.

    Attributes:
        out: The folder.
        format: ``"npy"`` for ``features.npy`` (float16) and ``keys.parquet``, where row k of one
            is row k of the other; ``"list"`` for ``features/*.parquet`` with a float16 list
            column.
        rows: Frames with a feature, all of which were exported.
        rejects: Frames of the bank that could not be read; they are not exported.
        missing: Planned frames that are not extracted yet; they are not exported.
        planned: Frames in the bank's plan.
        files: Parquet files with features; 0 for ``"npy"``.
        caveat: What every result based on them must say; empty for pretrained weights.
    """

    out: Path
    format: str
    rows: int
    rejects: int
    missing: int
    planned: int
    files: int
    caveat: str

    def lines(self) -> list[str]:
        """The same as lines of text."""
        # Which files
        what = "features.npy and keys.parquet, row k of one is row k of the other"
        if self.format == "list":
            what = f"features/ with {self.files} Parquet file(s) that have a float16 list column"
        # Which frames
        count = f"{self.rows:,} rows of {self.planned:,} planned frames"
        if self.rows < self.planned:
            missing = f"{self.missing:,} frames that are not extracted yet"
            count += f" ({self.rejects:,} rejects and {missing} are not among them)"
        line = f"exported {count} to {self.out}: {what}"
        return [line] + ([f"caveat: {self.caveat}"] if self.caveat else [])


def export(config: BankExportConfig) -> ExportReport:
    """Write a bank's features as ``.npy`` with a key table, or as Parquet with float16 lists.

    Raises:
        RaffectError: If nothing is extracted yet, the bank is damaged, or the folder is not empty.
    """
    # Checks, the cheap ones first
    bank = Bank(config.bank).require()
    identity, commits = bank.read_identity(), bank.read_commits()
    if identity is None or not commits:
        raise RaffectError(f"{bank.path}: nothing extracted yet; run `raffect extract` on it")
    if config.out.is_dir() and any(config.out.iterdir()):
        remedy = "an export does not mix with other files"
        raise RaffectError(f"--out {config.out} is not empty; {remedy}")
    found = verify(bank)  # reads every byte
    if not found.sound:
        raise RaffectError(f"{bank.path}: damaged, nothing exported; see `raffect bank verify`")
    # The files, of these commits alone: an extract that is running may add others meanwhile.
    rows = sum(commit.rows for commit in commits.values())
    config.out.mkdir(parents=True, exist_ok=True)
    with Progress("export", rows, "rows") as progress:
        if config.format == "npy":
            _export_npy(bank, commits, rows, identity.dim, config, progress)
        else:
            _export_lists(bank, commits, identity.dim, config, progress)
    (config.out / "identity.json").write_bytes(identity.to_bytes())
    return ExportReport(
        out=config.out,
        format=config.format,
        rows=rows,
        rejects=found.rejects,
        missing=found.missing,
        planned=found.planned,
        files=len(commits) if config.format == "list" else 0,
        caveat=identity.caveat,
    )


def _export_npy(
    bank: Bank,
    commits: Mapping[int, Commit],
    rows: int,
    dim: int,
    config: BankExportConfig,
    progress: Progress,
) -> None:
    """Write ``features.npy`` of shape (rows, dim) and ``keys.parquet`` in the same order."""
    keys = []
    # Features go into a mapped file, so that a bank may be larger than memory.
    with atomic_path(config.out / "features.npy") as temporary:
        out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=(rows, dim))
        start = 0
        for commit in commits.values():
            features = read_shard_features(bank, commit, dim)
            out[start : start + len(features)] = features
            keys.append(read_parquet(bank.path / commit.features_file, ["video", "frame"]))
            start += len(features)
            progress.advance(len(features))
        out.flush()
    # Keys, of the same shards in the same order
    with atomic_path(config.out / "keys.parquet") as temporary:
        pq.write_table(pa.concat_tables(keys).replace_schema_metadata(None), temporary)


def _export_lists(
    bank: Bank,
    commits: Mapping[int, Commit],
    dim: int,
    config: BankExportConfig,
    progress: Progress,
) -> None:
    """Write a Parquet file a shard, in which a feature is a list of ``dim`` float16 numbers."""
    for shard, commit in commits.items():
        table = read_parquet(bank.path / commit.features_file).replace_schema_metadata(None)
        flat = pa.array(read_shard_features(bank, commit, dim).reshape(-1))
        # In the place of the bank's column of bytes, which is the third
        table = table.set_column(2, "feature", pa.FixedSizeListArray.from_arrays(flat, dim))
        with atomic_path(config.out / "features" / f"{shard:06d}.parquet") as temporary:
            pq.write_table(table, temporary, compression="none")
        progress.advance(len(table))
