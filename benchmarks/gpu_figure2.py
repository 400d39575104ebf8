"""A real sweep of Figure 2's 50 heads and 5 plain ones, cut short, on a made-up bank of Aff-Wild2's size.

    python benchmarks/gpu_figure2.py [--epochs 2] [--frames 866708]

Prints seconds of the whole command and of training alone, and what 32 epochs would take, extrapolated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from made import AFF_WILD2, make_bank


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--frames", type=int, default=sum(AFF_WILD2))
    parser.add_argument("--alphas", default="0.1:1:0.1")
    parser.add_argument("--seeds", default="0:4")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raffect-figure2-"))
    try:
        train = options.frames * AFF_WILD2[0] // sum(AFF_WILD2)
        start = time.perf_counter()
        bank, labels = make_bank(folder, train, options.frames - train)
        print(
            f"bank of {options.frames:,} frames, {train:,} to train on: {time.perf_counter() - start:.1f} s",
            flush=True,
        )
        start = time.perf_counter()
        command = [
            "tune",
            "paper",
            "--task",
            "expr",
            "--bank",
            str(bank),
            "--labels",
            str(labels),
            "--out",
            str(folder / "sweep"),
            "--epochs",
            str(options.epochs),
            "--space",
            f"loss.alpha={options.alphas}",
            f"seed={options.seeds}",
        ]
        done = subprocess.run([sys.executable, "-m", "raffect.cli", *command], check=False)
        wall = time.perf_counter() - start
        records = [
            json.loads(file.read_text()) for file in (folder / "sweep" / "members").glob("*.json")
        ]
        trained = max(record["wall_s"] for record in records)
        head_steps = len(records) * (train // 32) * options.epochs
        print(
            f"status {done.returncode}; {len(records)} heads, {options.epochs} epochs, {head_steps:,} head-steps, on {records[0]['device']}"
        )
        print(
            f"whole command {wall:.1f} s, training and validation {trained:.1f} s: {trained / head_steps * 1e6:.1f} us a head-step"
        )
        whole = wall - trained + trained * 32 / options.epochs
        print(f"32 epochs, extrapolated: {whole / 60:.1f} min")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
