"""What it costs to prove every shard while it is read: all features of a bank of Aff-Wild2's size, hashed and not, in alternation.

    python benchmarks/hashing.py [--frames 866708] [--repeats 6]
    OPENSSL_ia32cap=":~0x20000000" python benchmarks/hashing.py    # a processor without SHA instructions

The bank is in the page cache, the result in memory that is there already. Not hashed is what raffect did before: shards mapped and parsed.
The fastest of --repeats counts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from made import AFF_WILD2, make_bank

from raffect.bank.features import read_shard_features
from raffect.bank.format import Bank
from raffect.provenance import describe_run


def read_mapped(bank: Bank, shard: int, sha256: str, dim: int) -> np.ndarray:
    column = pq.read_table(
        bank.shard_path(shard), columns=["feature"], memory_map=True, use_threads=False
    )["feature"].chunk(0)
    return np.frombuffer(column.buffers()[1], "<f2").reshape(-1, dim)


def time_read(bank: Bank, read, out: np.ndarray) -> tuple[float, float]:
    commits, offsets = bank.read_commits(), bank.plan.offsets

    def fill(shard: int) -> None:
        out[offsets[shard] : offsets[shard + 1]] = read(
            bank, shard, commits[shard].sha256, out.shape[1]
        )

    cpu, wall = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, commits))
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=sum(AFF_WILD2))
    parser.add_argument("--repeats", type=int, default=6)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raffect-hashing-"))
    try:
        bank = Bank(make_bank(folder, args.frames - args.frames // 3, args.frames // 3)[0])
        identity = bank.read_identity()
        assert identity is not None
        out = np.ones((args.frames, identity.dim), np.float16)
        readers = {"mapped, not hashed": read_mapped, "read and hashed": read_shard_features}
        times = [
            {name: time_read(bank, read, out) for name, read in readers.items()}
            for _ in range(args.repeats)
        ]
        print(
            f"{args.frames:,} x {identity.dim}\n\n| reading | CPU seconds | seconds |\n|---|---|---|"
        )
        for name in readers:
            cpu, wall = min(part[name] for part in times)
            print(f"| {name} | {cpu:.2f} | {wall:.2f} |")
        print(f"\n{describe_run()['versions']} {describe_run()['machine']}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
