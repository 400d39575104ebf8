"""Reading a task's features with their labels: seconds and MB/s, beside a plain read of the same bytes.

uv run python benchmarks/bank.py --rows 500000
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.data.bank import Bank, Identity
from raffect.data.features import read_features
from raffect.data.labels import EXPR
from raffect.data.verify import verify
from raffect.stages.provenance import describe_run

DIM = 768
VIDEO_ROWS = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--folder", type=Path, default=None, help="where to write the bank; a temporary folder by default")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raffect-bank-", dir=args.folder))
    rng = np.random.default_rng(0)
    identity = Identity(model="m", weights_sha256="0" * 64, weights="none", preprocess={}, precision="float16", dim=DIM)
    try:
        video = np.array([f"video{k // VIDEO_ROWS:05d}" for k in range(args.rows)])
        frame = (np.arange(args.rows) % VIDEO_ROWS + 1).astype(np.int32)
        manifest = pa.table({"video": pa.array(video).dictionary_encode(), "frame": frame})
        bank = Bank(folder / "bank")
        start = time.perf_counter()
        plan = bank.extend_plan(manifest)
        print(f"plan {args.rows:,} rows: {time.perf_counter() - start:.2f} s")
        bank.claim(identity)
        block = rng.normal(size=(plan.shard_rows, DIM)).astype(np.float16)
        start = time.perf_counter()
        for shard in range(plan.num_shards):
            rows = plan.rows(shard)
            bank.commit(shard, rows, block[: len(rows)], {}, identity)
        report("write (with SHA-256 and fsync)", args.rows, start)
        labels = pa.table({"video": manifest["video"], "frame": frame, "split": pa.array(["train"] * args.rows), "expression": rng.integers(0, 8, args.rows).astype(np.int8)})
        unlabelled = rng.random(args.rows) < 0.05
        sparse = labels.set_column(3, "expression", pa.array(np.where(unlabelled, -1, labels["expression"].to_numpy()).astype(np.int8)))
        for name, table, options in (
            ("read_features, every row", labels, {}),
            ("read_features, every row, again", labels, {}),
            ("read_features, 5 % unlabelled", sparse, {}),
            ("read_features, 1 thread", labels, {"threads": 1}),
            ("read_features, memory-mapped", labels, {"memmap": folder / "x.npy"}),
        ):
            start = time.perf_counter()
            out = read_features(Bank(bank.path), table, EXPR, "train", **options)
            report(name, len(out.x), start)
            del out
        start = time.perf_counter()
        for file in sorted((bank.path / "shards").glob("*.parquet")):
            file.read_bytes()
        report("plain read of the same files", args.rows, start)
        np.save(folder / "plain.npy", np.zeros((args.rows, DIM), np.float16))
        start = time.perf_counter()
        np.load(folder / "plain.npy").sum(dtype=np.float32)
        report("numpy.load of one .npy (and a sum)", args.rows, start)
        start = time.perf_counter()
        assert verify(Bank(bank.path)).complete
        report("bank verify", args.rows, start)
        print(json.dumps(describe_run()["versions"] | describe_run()["machine"]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(name: str, rows: int, start: float) -> None:
    """One line: seconds and MB/s of features."""
    seconds = time.perf_counter() - start
    print(f"{name:40} {seconds:7.2f} s {rows * DIM * 2 / seconds / 1e6:8.0f} MB/s")


if __name__ == "__main__":
    main()
