"""Bring any vectors into a bank, such as a teacher's: an array, and the frame of each row of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.format import Bank, Identity
from raffect.bank.import_released import BY_FRAME, require_unique, write_shards
from raffect.bank.running import note_of_run
from raffect.config import BankImportConfig
from raffect.errors import RaffectError, require
from raffect.storage.arrays import map_npy
from raffect.storage.paths import Damaged
from raffect.storage.tables import check_cells, read_table

CAVEAT = "imported features"
_CHUNK = 65_536


@dataclass(frozen=True, kw_only=True)
class NpyReport:
    """What was imported.

    Attributes:
        bank: The bank.
        name: What made the vectors.
        dim: Numbers of a vector.
        listed: Rows of the array.
        written: Rows that this run wrote into the bank.
        kept: Rows that were in the bank already.
        differing: Rows among them that the bank has with other vectors.
    """

    bank: Path
    name: str
    dim: int
    listed: int
    written: int
    kept: int
    differing: int

    def lines(self) -> list[str]:
        """The report as lines of text."""
        what = (
            f"{self.written:,} of {self.listed:,} vectors of {self.name}, {self.dim} numbers each"
        )
        out = [f"imported {what}, into {self.bank}"]
        if self.kept:
            differ = f", {self.differing:,} of them with other vectors: import into a new --bank"
            out.append(f"kept: {self.kept:,} were there already{differ * bool(self.differing)}")
        if waiting := self.listed - self.written - self.kept:
            others = "frames that are planned and not listed here"
            out.append(f"waiting: {waiting:,} share a shard with {others}; import those as well")
        return [*out, f"caveat: {CAVEAT} (made by {self.name}, taken on trust)"]


def import_npy(config: BankImportConfig) -> NpyReport:
    """Bring the rows of an array into a bank.

    Raises:
        RaffectError: If the files do not fit together, a vector is not finite in float16, or the
            bank has vectors of another name or length.
    """
    assert config.npy is not None  # BankImportConfig has checked both
    assert config.keys is not None
    x, keys = _read_vectors(config.npy), _read_keys(config.keys)
    require(
        len(x) == len(keys),
        f"{config.npy} has {len(x):,} rows and {config.keys} {len(keys):,}; they belong together "
        "by position",
    )
    bank = Bank(config.bank.absolute())
    identity = Identity(
        model=config.name,
        weights_sha256="imported",
        weights="imported, not verified",
        preprocess={},
        precision="float32",
        dim=x.shape[1],
        caveat=CAVEAT,
    )
    with note_of_run(bank.path, join=None):
        bank.claim(identity)
        written, kept, differing = write_shards(bank, identity, keys, x)
    return NpyReport(
        bank=bank.path,
        name=config.name,
        dim=x.shape[1],
        listed=len(keys),
        written=written,
        kept=kept,
        differing=differing,
    )


def _read_vectors(file: Path) -> np.ndarray:
    """The array, as float16 of shape (N, D)."""
    try:
        found = map_npy(file)
    except (Damaged, OSError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise RaffectError(f"--npy {file}: not a readable array ({reason[:100]})") from error
    expected = "expected one array of floats of shape (N, D)"
    require(
        found.ndim == 2 and found.dtype.kind == "f" and found.size > 0,
        f"--npy {file}: {found.dtype} of shape {found.shape}, {expected}",
    )
    x = np.empty(found.shape, np.float16)
    for start in range(0, len(x), _CHUNK):
        with np.errstate(over="ignore"):
            part = x[start : start + _CHUNK] = found[start : start + _CHUNK].astype(np.float16)
        bad = ~np.isfinite(part).all(axis=1)
        require(
            not bad.any(),
            f"--npy {file}: row {start + int(bad.argmax())} is not finite, or above 65,504, the "
            "most that float16 holds; divide the vectors by a number",
        )
    return x


def _read_keys(file: Path) -> pa.Table:
    """``video, frame, row``, sorted by frame."""
    table = read_table(file, ("video", "frame"), "list of frames", "raffect bank export")
    try:
        check_cells(table, ("video",), ("frame",))
    except Damaged as error:
        raise RaffectError(
            f"--keys {file}: {error}; expected video and frame of each row"
        ) from error
    video, frame = table["video"].cast(pa.string()), table["frame"].cast(pa.int32())
    keys = pa.table({"video": video, "frame": frame, "row": pa.array(np.arange(len(table)))})
    keys = keys.sort_by(BY_FRAME).combine_chunks()
    require_unique(keys, file)
    return keys
