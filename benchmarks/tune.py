"""A sweep through Ray Tune with packs against one trial a head: the same heads, wall time, CPU time; and what a trial costs.

    python benchmarks/tune.py [--heads 16] [--frames 40000] [--epochs 3]

Both sweeps run `raffect tune` in one process and one Ray, one after the other, on made-up features 768 wide. CPU is of the whole
machine, on which nothing else may run: trials come and go.
A trial's overhead is the slope over sweeps of 4 and of 16 trials that train one head for one epoch on 1,024 frames, where there is nothing to train.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
from made import make_bank
from processes import machine_cpu_s
from safetensors.numpy import load_file

from raffect.config import TuneConfig
from raffect.provenance import describe_run
from raffect.ray_session import ray_session
from raffect.recipe import HeadConfig
from raffect.runs.folder import RunFolder
from raffect.training.tune import tune


def sweep(
    bank: Path,
    labels: Path,
    out: Path,
    heads: int,
    epochs: int,
    width: int,
    members: int | Literal["auto"],
) -> tuple[float, float]:
    """Wall and CPU seconds of one `raffect tune`."""
    alphas = ",".join(f"{alpha:.3f}" for alpha in np.linspace(0.1, 1.0, heads))
    config = TuneConfig(
        task="expr",
        bank=bank,
        labels=labels,
        out=out,
        epochs=epochs,
        head=HeadConfig(width=width),
        baseline=False,
        space=(f"loss.alpha={alphas}",),
        heads_per_trial=members,
    )
    cpu, start = machine_cpu_s(), time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        tune(config)
    return time.perf_counter() - start, machine_cpu_s() - cpu


def compare(one: Path, other: Path) -> tuple[int, int, float]:
    """Heads, those of them whose bytes are equal, and the largest difference of a validation score."""
    records = {record["id"]: record for record in RunFolder(one).read_records()}
    equal, worst = 0, 0.0
    for record in RunFolder(other).read_records():
        files = [
            load_file(RunFolder(folder).weights_path(record["id"], "last") / "head.safetensors")
            for folder in (one, other)
        ]
        equal += all(np.array_equal(files[0][name], files[1][name]) for name in files[0])
        worst = max(
            worst,
            abs(
                record["scores"]["last"]["macro_f1"]
                - records[record["id"]]["scores"]["last"]["macro_f1"]
            ),
        )
    return len(records), equal, worst


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument(
        "--frames",
        type=int,
        default=40_000,
        help="of the training split; half as many are judged on",
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--width", type=int, default=256, help="of the hidden layers")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raffect-tune-"))
    try:
        bank, labels = make_bank(folder / "full", args.frames, args.frames // 2)
        few, few_labels = make_bank(folder / "few", 1024, 1024)
        with ray_session(None):
            sweep(few, few_labels, folder / "warm", 2, 1, args.width, 1)
            packs = sweep(
                bank, labels, folder / "packs", args.heads, args.epochs, args.width, "auto"
            )
            trials = sweep(bank, labels, folder / "trials", args.heads, args.epochs, args.width, 1)
            four = sweep(few, few_labels, folder / "four", 4, 1, args.width, 1)
            sixteen = sweep(few, few_labels, folder / "sixteen", 16, 1, args.width, 1)
        print(
            f"{args.heads} heads {args.width} wide, {args.epochs} epochs of {args.frames:,} frames\n\n| sweep | wall s | CPU s |\n|---|---|---|"
        )
        print(f"| packs (--heads-per-trial auto) | {packs[0]:.1f} | {packs[1]:.1f} |")
        print(f"| one trial a head | {trials[0]:.1f} | {trials[1]:.1f} |")
        print(f"| ratio | {trials[0] / packs[0]:.2f} | {trials[1] / packs[1]:.2f} |")
        heads, equal, worst = compare(folder / "packs", folder / "trials")
        print(
            f"\nsame heads: {equal} of {heads} with equal bytes, largest difference of a macro F1 {worst:.1e}"
        )
        print(
            f"a trial costs {(sixteen[0] - four[0]) / 12:.2f} s wall, {(sixteen[1] - four[1]) / 12:.2f} s CPU; a sweep of four {four[0]:.1f} s"
        )
        print(describe_run()["versions"], describe_run()["machine"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
