"""Writing features and reading them back with their labels: the bank beside the formats that people use.

    uv run --with pylance python benchmarks/bank.py --rows 1000000

Every format holds the same rows (video, frame, 768 float16) and is written in blocks of 2,048 as an encoder gives them. Reading ends in one
C-contiguous float16 array of all rows in order. "A sample at a time" is how the released code reads: the file is opened, one row taken, closed,
in random order; it is timed over a part. Only the bank writes SHA-256, and syncs each file; the join with labels is part of its reading.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from stand_in import DIM, IDENTITY

from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.bank.verify import verify
from raffect.datasets.affwild2.tasks import EXPR
from raffect.provenance import describe_run

VIDEO_ROWS, SHARD_ROWS = 4000, 2048


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--samples", type=int, default=2000, help="rows that are read one at a time"
    )
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write; a temporary folder by default"
    )
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raffect-bank-", dir=args.folder))
    block = np.random.default_rng(0).normal(size=(SHARD_ROWS, DIM)).astype(np.float16)
    print("| what | seconds | MB/s of features |\n|---|---|---|")
    try:
        compare_bank(folder, args.rows, block)
        compare_files(folder, args.rows, block, args.samples)
        print(json.dumps(describe_run()["versions"] | describe_run()["machine"]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare_bank(folder: Path, rows: int, block: np.ndarray) -> None:
    """Write, read with labels, verify."""
    video = pa.DictionaryArray.from_arrays(
        (np.arange(rows) // VIDEO_ROWS).astype(np.int32),
        pa.array([f"video{k:05d}" for k in range(rows // VIDEO_ROWS + 1)]),
    )
    frame = (np.arange(rows) % VIDEO_ROWS + 1).astype(np.int32)
    bank = Bank(folder / "bank")
    start = time.perf_counter()
    plan = bank.extend_plan(pa.table({"video": video, "frame": frame}), SHARD_ROWS)
    report("bank: plan", rows, start)
    bank.claim(IDENTITY)
    start = time.perf_counter()
    for shard in range(plan.num_shards):
        keys = plan.rows(shard)
        bank.commit(shard, keys, block[: len(keys)], {}, IDENTITY)
    report("bank: write, with SHA-256 and fsync", rows, start)
    expression = np.random.default_rng(1).integers(0, 8, rows).astype(np.int8)
    labels = pa.table(
        {
            "video": video,
            "frame": frame,
            "split": pa.array(["train"] * rows),
            "expression": expression,
        }
    )
    sparse = labels.set_column(
        3,
        "expression",
        pa.array(
            np.where(np.random.default_rng(2).random(rows) < 0.05, -1, expression).astype(np.int8)
        ),
    )
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
    start = time.perf_counter()
    for file in sorted((bank.path / "shards").glob("*.parquet")):
        file.read_bytes()
    report("plain read of its files", rows, start)
    start = time.perf_counter()
    assert verify(Bank(bank.path)).complete
    report("bank verify", rows, start)


def compare_files(folder: Path, rows: int, block: np.ndarray, samples: int) -> None:
    """HDF5, .npy, Parquet with list columns and Lance: write, read whole, and HDF5 a sample at a time."""
    path, order = folder / "features", np.random.default_rng(3).integers(0, rows, samples)
    sizes = [min(SHARD_ROWS, rows - start) for start in range(0, rows, SHARD_ROWS)]

    def write_hdf5():
        with h5py.File(path.with_suffix(".h5"), "w") as file:
            data = file.create_dataset("x", (rows, DIM), np.float16)
            for k, size in enumerate(sizes):
                data[k * SHARD_ROWS : k * SHARD_ROWS + size] = block[:size]

    def read_hdf5():
        with h5py.File(path.with_suffix(".h5"), "r") as file:
            return file["x"][:]

    def sample_hdf5():
        for index in order:
            with h5py.File(path.with_suffix(".h5"), "r") as file:
                file["x"][index]

    def write_npy():
        out = np.lib.format.open_memmap(
            path.with_suffix(".npy"), mode="w+", dtype=np.float16, shape=(rows, DIM)
        )
        for k, size in enumerate(sizes):
            out[k * SHARD_ROWS : k * SHARD_ROWS + size] = block[:size]
        out.flush()

    def lists(size: int) -> pa.Table:
        return pa.table(
            {"x": pa.FixedSizeListArray.from_arrays(pa.array(block[:size].reshape(-1)), DIM)}
        )

    def write_lists():
        with pq.ParquetWriter(path.with_suffix(".parquet"), lists(1).schema) as writer:
            for size in sizes:
                writer.write_table(lists(size))

    def read_lists():
        column = pq.read_table(path.with_suffix(".parquet"))["x"]
        return np.concatenate(
            [
                chunk.values.to_numpy(zero_copy_only=False).reshape(-1, DIM)
                for chunk in column.chunks
            ]
        )

    pairs = {
        "HDF5": (write_hdf5, read_hdf5),
        "one .npy": (write_npy, lambda: np.load(path.with_suffix(".npy"))),
        "Parquet, lists of float16": (write_lists, read_lists),
    }
    try:
        lance = importlib.import_module("lance")
    except ImportError:
        print("| Lance: not installed (uv run --with pylance ...) | | |")
    else:
        schema = lists(1).schema
        pairs["Lance"] = (
            lambda: lance.write_dataset(
                pa.RecordBatchReader.from_batches(
                    schema, (batch for size in sizes for batch in lists(size).to_batches())
                ),
                str(path) + ".lance",
            ),
            lambda: np.concatenate(
                [
                    batch["x"].values.to_numpy(zero_copy_only=False).reshape(-1, DIM)
                    for batch in lance.dataset(str(path) + ".lance").to_batches()
                ]
            ),
        )
    for name, (write, read) in pairs.items():
        for verb, work in (
            ("write", write),
            ("read whole, first (fresh pages)", read),
            ("read whole", read),
        ):
            start = time.perf_counter()
            out = work()
            report(f"{name}: {verb}", rows, start)
            assert not isinstance(out, np.ndarray) or (
                out.shape == (rows, DIM)
                and (out[:SHARD_ROWS] == block[: min(rows, SHARD_ROWS)]).all()
            )
            del out
    start = time.perf_counter()
    sample_hdf5()
    report(f"HDF5: a sample at a time, over {samples:,}", samples, start)


def report(name: str, rows: int, start: float) -> None:
    """A row of the table."""
    seconds = time.perf_counter() - start
    print(f"| {name} | {seconds:.2f} | {rows * DIM * 2 / seconds / 1e6:,.1f} |", flush=True)


if __name__ == "__main__":
    main()
