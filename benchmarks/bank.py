"""Writing features and reading them back with their labels: the bank beside common formats.

    uv run --with pylance python benchmarks/bank.py --rows 1000000

Every format holds the same rows (video, frame, 768 float16) and is written in blocks of 2,048, as
an encoder gives them. Reading ends in one C-contiguous float16 array of all rows in order. "A
sample at a time" is how the released code reads: the file is opened, one row taken, closed, in
random order; it is timed over a part. Only the bank writes SHA-256, and syncs each file; the join
with labels is part of its reading.
"""

from __future__ import annotations

import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from stand_in import DIM, IDENTITY
from tools import new_parser, print_header, print_machine, print_row, scratch

from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.bank.verify import verify
from raffect.datasets.affwild2.tasks import EXPR

VIDEO_ROWS, SHARD_ROWS = 4000, 2048


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    one_at_a_time = "rows that are read one at a time"
    parser.add_argument("--samples", type=int, default=2000, help=one_at_a_time)
    where = "where to write; a temporary folder by default"
    parser.add_argument("--folder", type=Path, default=None, help=where)
    args = parser.parse_args()
    with scratch("bank", args.folder) as folder:
        block = np.random.default_rng(0).normal(size=(SHARD_ROWS, DIM)).astype(np.float16)
        print_header("what", "seconds", "MB/s of features")
        compare_bank(folder, args.rows, block)
        compare_files(folder / "features", args.rows, block, args.samples)
        print_machine()


# The bank


def compare_bank(folder: Path, rows: int, block: np.ndarray) -> None:
    """Write, read with labels, verify."""
    video, frame = make_keys(rows)
    bank = write_bank(folder / "bank", pa.table({"video": video, "frame": frame}), block)
    time_reads(bank, folder, video, frame)

    # What reading costs without labels and checks, and what checking alone costs
    start = time.perf_counter()
    for file in sorted((bank.path / "shards").glob("*.parquet")):
        file.read_bytes()
    report("plain read of its files", rows, start)
    start = time.perf_counter()
    assert verify(Bank(bank.path)).complete
    report("bank verify", rows, start)


def make_keys(rows: int) -> tuple[pa.DictionaryArray, np.ndarray]:
    """Video and frame of each row."""
    names = pa.array([f"video{k:05d}" for k in range(rows // VIDEO_ROWS + 1)])
    number = (np.arange(rows) // VIDEO_ROWS).astype(np.int32)
    frame = (np.arange(rows) % VIDEO_ROWS + 1).astype(np.int32)
    return pa.DictionaryArray.from_arrays(number, names), frame


def write_bank(path: Path, keys: pa.Table, block: np.ndarray) -> Bank:
    """A bank whose shards all hold the same features."""
    bank = Bank(path)
    start = time.perf_counter()
    plan = bank.extend_plan(keys, SHARD_ROWS)
    report("bank: plan", len(keys), start)
    bank.claim(IDENTITY)
    start = time.perf_counter()
    for shard in range(plan.num_shards):
        own = plan.rows(shard)
        bank.commit(shard, own, block[: len(own)], {}, IDENTITY)
    report("bank: write, with SHA-256 and fsync", len(keys), start)
    return bank


def time_reads(bank: Bank, folder: Path, video: pa.DictionaryArray, frame: np.ndarray) -> None:
    """Read all features with labels, in several ways."""
    # Labels of every frame, and of all but one frame in twenty
    rows = len(frame)
    expression = np.random.default_rng(1).integers(0, 8, rows).astype(np.int8)
    split = pa.array(["train"] * rows)
    keys = {"video": video, "frame": frame, "split": split}
    labels = pa.table(keys | {"expression": expression})
    unlabelled = np.random.default_rng(2).random(rows) < 0.05
    sparse = pa.table(keys | {"expression": np.where(unlabelled, -1, expression).astype(np.int8)})

    for name, table, options in (
        ("bank: read with labels, first (fresh pages)", labels, {}),
        ("bank: read with labels", labels, {}),
        ("bank: read with labels, 5 % of them unlabelled", sparse, {}),
        ("bank: read with labels, 1 thread", labels, {"threads": 1}),
        ("bank: read with labels into a memory map", labels, {"memmap": folder / "x.npy"}),
    ):
        start = time.perf_counter()
        out = read_features(Bank(bank.path), table, EXPR, "train", **options)
        report(name, len(out.x), start)
        del out


# The other formats


class Format(ABC):
    """A file of all rows, written block by block.

    Args:
        path: Without a suffix.
        rows: How many.
        block: Features of a full block, shape (SHARD_ROWS, DIM); each block holds the same ones.
    """

    name: ClassVar[str]

    def __init__(self, path: Path, rows: int, block: np.ndarray) -> None:
        self.path, self.rows, self.block = path, rows, block

    @abstractmethod
    def write(self) -> None:
        """Write all rows."""

    @abstractmethod
    def read(self) -> np.ndarray:
        """All rows, shape (rows, DIM)."""

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows and features of each block."""
        for start in range(0, self.rows, SHARD_ROWS):
            size = min(SHARD_ROWS, self.rows - start)
            yield slice(start, start + size), self.block[:size]


class Hdf5(Format):
    """One dataset in one file."""

    name = "HDF5"

    def write(self) -> None:
        with h5py.File(self.path.with_suffix(".h5"), "w") as file:
            data = file.create_dataset("x", (self.rows, DIM), np.float16)
            for where, features in self.blocks():
                data[where] = features

    def read(self) -> np.ndarray:
        with h5py.File(self.path.with_suffix(".h5"), "r") as file:
            return file["x"][:]

    def read_samples(self, order: np.ndarray) -> None:
        """Rows one at a time, as the released code reads them."""
        for index in order:
            with h5py.File(self.path.with_suffix(".h5"), "r") as file:
                file["x"][index]


class Npy(Format):
    """One array."""

    name = "one .npy"

    def write(self) -> None:
        path, shape = self.path.with_suffix(".npy"), (self.rows, DIM)
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        for where, features in self.blocks():
            out[where] = features
        out.flush()

    def read(self) -> np.ndarray:
        return np.load(self.path.with_suffix(".npy"))


class ParquetLists(Format):
    """A column of lists of fixed size."""

    name = "Parquet, lists of float16"

    def write(self) -> None:
        schema = list_table(self.block[:1]).schema
        with pq.ParquetWriter(self.path.with_suffix(".parquet"), schema) as writer:
            for _, features in self.blocks():
                writer.write_table(list_table(features))

    def read(self) -> np.ndarray:
        column = pq.read_table(self.path.with_suffix(".parquet"))["x"]
        return np.concatenate([features_of(chunk) for chunk in column.chunks])


class Lance(Format):
    """A Lance data set, with the same column."""

    name = "Lance"

    def __init__(self, path: Path, rows: int, block: np.ndarray) -> None:
        super().__init__(path, rows, block)
        self.lance: Any = importlib.import_module("lance")

    def write(self) -> None:
        schema = list_table(self.block[:1]).schema
        batches = (
            batch for _, features in self.blocks() for batch in list_table(features).to_batches()
        )
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        self.lance.write_dataset(reader, f"{self.path}.lance")

    def read(self) -> np.ndarray:
        batches = self.lance.dataset(f"{self.path}.lance").to_batches()
        return np.concatenate([features_of(batch["x"]) for batch in batches])


def list_table(features: np.ndarray) -> pa.Table:
    """Features as one column of lists."""
    return pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), DIM)})


def features_of(column: pa.FixedSizeListArray) -> np.ndarray:
    return column.values.to_numpy(zero_copy_only=False).reshape(-1, DIM)


def compare_files(path: Path, rows: int, block: np.ndarray, samples: int) -> None:
    """Each format: write, read whole; and HDF5 a sample at a time."""
    hdf5 = Hdf5(path, rows, block)
    formats = [hdf5, Npy(path, rows, block), ParquetLists(path, rows, block)]
    try:
        formats.append(Lance(path, rows, block))
    except ImportError:
        print_row("Lance: not installed (uv run --with pylance ...)", "", "")

    for kind in formats:
        start = time.perf_counter()
        kind.write()
        report(f"{kind.name}: write", rows, start)
        for verb in ("read whole, first (fresh pages)", "read whole"):
            start = time.perf_counter()
            out = kind.read()
            report(f"{kind.name}: {verb}", rows, start)
            assert out.shape == (rows, DIM)
            assert (out[:SHARD_ROWS] == block[:rows]).all()
            del out

    order = np.random.default_rng(3).integers(0, rows, samples)
    start = time.perf_counter()
    hdf5.read_samples(order)
    report(f"HDF5: a sample at a time, over {samples:,}", samples, start)


def report(name: str, rows: int, start: float) -> None:
    """A row of the table."""
    seconds = time.perf_counter() - start
    print_row(name, f"{seconds:.2f}", f"{rows * DIM * 2 / seconds / 1e6:,.1f}")


if __name__ == "__main__":
    main()
