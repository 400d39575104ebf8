"""What it costs to hash every shard while it is read: all features of a bank, hashed and not.

    python benchmarks/hashing.py [--frames 866708] [--repeats 6]
    OPENSSL_ia32cap=":~0x20000000" python benchmarks/hashing.py    # without SHA instructions

The bank is of Aff-Wild2's size by default and in the page cache, the result in memory that is
there already. Not hashed is what raffect did before: shards mapped and parsed. Both are run in
alternation, and the fastest of --repeats counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
from made import AFF_WILD2, make_bank
from tools import new_parser, print_header, print_machine, print_row, scratch

from raffect.bank.features import read_shard_features
from raffect.bank.format import Bank
from raffect.bank.records import Commit

ReadShard = Callable[[Bank, Commit, int], np.ndarray]


def read_mapped(bank: Bank, commit: Commit, dim: int) -> np.ndarray:
    """Features of a shard whose file is mapped and not hashed."""
    path = bank.path / commit.features_file
    table = pq.read_table(path, columns=["feature"], memory_map=True, use_threads=False)
    return np.frombuffer(table["feature"].chunk(0).buffers()[1], "<f2").reshape(-1, dim)


def time_read(bank: Bank, read: ReadShard, out: np.ndarray) -> tuple[float, float]:
    """CPU seconds and seconds of reading all shards into ``out``."""
    commits, offsets, dim = bank.read_commits(), bank.plan.offsets, out.shape[1]

    def fill(shard: int) -> None:
        features = read(bank, commits[shard], dim)
        out[offsets[shard] : offsets[shard + 1]] = features

    cpu, wall = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, commits))
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--frames", type=int, default=sum(AFF_WILD2))
    parser.add_argument("--repeats", type=int, default=6)
    args = parser.parse_args()
    with scratch("hashing") as folder:
        # A bank in the page cache, and memory that was touched
        validation = args.frames // 3
        bank = Bank(make_bank(folder, args.frames - validation, validation)[0])
        identity = bank.read_identity()
        assert identity is not None
        out = np.ones((args.frames, identity.dim), np.float16)

        # Both ways in alternation
        readers = {"mapped, not hashed": read_mapped, "read and hashed": read_shard_features}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
        for _ in range(args.repeats):
            for name, read in readers.items():
                times[name].append(time_read(bank, read, out))

        print(f"{args.frames:,} x {identity.dim}\n")
        print_header("reading", "CPU seconds", "seconds")
        for name in readers:
            cpu, wall = min(times[name])
            print_row(name, f"{cpu:.2f}", f"{wall:.2f}")
        print_machine()


if __name__ == "__main__":
    main()
