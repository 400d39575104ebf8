"""Seconds of joining two banks, beside reading both of them as training does.

    python benchmarks/joining.py [--frames 50000] [--folder FOLDER]

Rounds alternate, so that other work on the machine slows both; a join is to a new folder each time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa

from raffect.bank.features import read_shard_features
from raffect.bank.format import Bank
from raffect.bank.join import join_banks
from raffect.bank.records import Identity

ROUNDS, DIM, PER_VIDEO = 3, 768, 1500
IDENTITY = Identity(
    model="a",
    weights_sha256="a" * 64,
    weights="drawn",
    preprocess={"size": 224},
    precision="float32",
    dim=DIM,
)


def write_bank(path: Path, frames: int, identity: Identity) -> Path:
    """A bank of drawn vectors."""
    rng, bank = np.random.default_rng(0), Bank(path)
    number = np.arange(frames)
    video = [f"v{k:05d}" for k in number // PER_VIDEO]
    frame = pa.array(number % PER_VIDEO + 1, pa.int32())
    plan = bank.extend_plan(pa.table({"video": video, "frame": frame}))
    bank.claim(identity)
    for shard in range(plan.num_shards):
        keys = plan.rows(shard)
        x = rng.standard_normal((len(keys), DIM), np.float32).astype(np.float16)
        bank.commit(shard, keys, x, {}, identity)
    return path


def read_all(path: Path) -> None:
    """Read and hash every vector of a bank."""
    bank = Bank(path)
    for commit in bank.read_commits().values():
        read_shard_features(bank, commit, DIM)


def seconds(work) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as text:
        folder = Path(text)
        parts = [
            write_bank(folder / "A", options.frames, IDENTITY),
            write_bank(folder / "B", options.frames, replace(IDENTITY, model="b")),
        ]
        times: dict[str, list[float]] = {"read": [], "join": [], "up to date": []}
        for number in range(ROUNDS):
            out = folder / f"joined{number}"
            times["read"].append(seconds(lambda: [read_all(part) for part in parts]))
            times["join"].append(seconds(lambda out=out: join_banks(parts, out)))
            times["up to date"].append(seconds(lambda out=out: join_banks(parts, out)))
    read = median(times["read"])
    print("| work | s | of reading both | frames/s |\n|---|---|---|---|")
    for name, found in times.items():
        middle = median(found)
        print(f"| {name} | {middle:.2f} | {middle / read:.2f} | {options.frames / middle:,.0f} |")


if __name__ == "__main__":
    main()
