"""A real sweep of Figure 2's 50 heads and 5 of plain ERM, cut short, on a made-up bank.

    python benchmarks/gpu_figure2.py [--epochs 2] [--frames 866708] [--eager]

The bank is of Aff-Wild2's size, and steps are compiled unless --eager is given. Prints seconds of
the whole command and of training alone, and what 32 epochs would take, extrapolated.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from made import AFF_WILD2, make_bank
from tools import flags, new_parser, scratch

from raffect.runs.folder import RunFolder

BATCH, PAPER_EPOCHS = 32, 32


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--frames", type=int, default=sum(AFF_WILD2))
    parser.add_argument("--alphas", default="0.1:1:0.1")
    parser.add_argument("--seeds", default="0:4")
    parser.add_argument("--eager", action="store_true", help="without `raffect tune --compile`")
    options = parser.parse_args()
    with scratch("figure2") as folder:
        # The bank
        train = options.frames * AFF_WILD2[0] // sum(AFF_WILD2)
        start = time.perf_counter()
        bank, labels = make_bank(folder, train, options.frames - train)
        took = f"{time.perf_counter() - start:.1f} s"
        size = f"bank of {options.frames:,} frames, {train:,} to train on"
        print(f"{size}: {took}", flush=True)

        # The sweep
        words = flags(task="expr", bank=bank, labels=labels, out=folder / "sweep")
        words += [] if options.eager else ["--compile"]
        words += [*flags(epochs=options.epochs), "--space"]
        words += [f"loss.alpha={options.alphas}", f"seed={options.seeds}"]
        start = time.perf_counter()
        command = [sys.executable, "-m", "raffect.cli", "tune", "paper", *words]
        status = subprocess.run(command, check=False).returncode
        wall = time.perf_counter() - start
        show(folder / "sweep", status, wall, options.epochs, train // BATCH)


def show(sweep: Path, status: int, wall: float, epochs: int, steps_an_epoch: int) -> None:
    """Print what was trained, and how long it took."""
    records = RunFolder(sweep).read_records()
    if not records:
        raise SystemExit(f"status {status}, no head was recorded")
    trained = max(record.trained_by.wall_s for record in records)
    head_steps = len(records) * steps_an_epoch * epochs
    size = f"{len(records)} heads, {epochs} epochs, {head_steps:,} head-steps"
    print(f"status {status}; {size}, on {records[0].trained_by.device}")
    a_head_step = f"{trained / head_steps * 1e6:.1f} us a head-step"
    command = f"whole command {wall:.1f} s"
    print(f"{command}, training and validation {trained:.1f} s: {a_head_step}")
    whole = wall - trained + trained * PAPER_EPOCHS / epochs
    print(f"{PAPER_EPOCHS} epochs, extrapolated: {whole / 60:.1f} min")


if __name__ == "__main__":
    main()
