"""A sweep through Ray Tune in batches of heads against one trial a head.

    python benchmarks/tune.py [--heads 16] [--frames 40000] [--epochs 3]

Shows that both give the same heads, their wall and CPU time, and what a trial costs. Both sweeps
run `raffect tune` in one process and one Ray, one after the other, on made-up features 768 wide.
CPU is of the whole machine, on which nothing else may run, because trials come and go. A trial's
overhead is the slope over sweeps of 4 and of 16 trials that train one head for one epoch on 1,024
frames, which takes no time to speak of.
"""

from __future__ import annotations

import contextlib
import io
import time
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from made import make_bank
from processes import machine_cpu_s
from safetensors.numpy import load_file
from tools import new_parser, print_header, print_machine, print_row, scratch

from raffect.config import TuneConfig
from raffect.ray_session.session import ray_session
from raffect.recipe import HeadConfig
from raffect.runs.folder import RunFolder
from raffect.training.tune import tune


def sweep(
    bank: Path,
    labels: Path,
    out: Path,
    *,
    heads: int,
    epochs: int,
    width: int,
    heads_per_trial: int | Literal["auto"],
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
        heads_per_trial=heads_per_trial,
    )
    cpu, start = machine_cpu_s(), time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        tune(config)
    return time.perf_counter() - start, machine_cpu_s() - cpu


def compare(one: Path, other: Path) -> tuple[int, int, float]:
    """Heads, those whose bytes are equal, and the largest difference of a validation score."""
    folders = RunFolder(one), RunFolder(other)
    records = {record.id: record for record in folders[0].read_records()}
    equal, largest = 0, 0.0
    for record in folders[1].read_records():
        files = [folder.weights_path(record.id, "last") for folder in folders]
        first, second = (load_file(file / "head.safetensors") for file in files)
        equal += all(np.array_equal(first[name], second[name]) for name in first)
        scores = [found.scores["last"].headline for found in (record, records[record.id])]
        largest = max(largest, abs(scores[0] - scores[1]))
    return len(records), equal, largest


def main() -> None:
    parser = new_parser(__doc__)
    of_split = "of the training split; half as many are judged on"
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--frames", type=int, default=40_000, help=of_split)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--width", type=int, default=256, help="of the hidden layers")
    args = parser.parse_args()
    with scratch("tune") as folder:
        full = make_bank(folder / "full", args.frames, args.frames // 2)
        few = make_bank(folder / "few", 1024, 1024)
        with ray_session(None):
            # Start-up, which neither side is to pay
            one_each = partial(sweep, width=args.width, heads_per_trial=1)
            one_each(*few, folder / "warm", heads=2, epochs=1)
            # The two sides, then sweeps in which trials have almost nothing to train
            size = {"heads": args.heads, "epochs": args.epochs}
            together = {"width": args.width, "heads_per_trial": "auto"}
            batches = sweep(*full, folder / "batches", **size, **together)
            trials = one_each(*full, folder / "trials", **size)
            four = one_each(*few, folder / "four", heads=4, epochs=1)
            sixteen = one_each(*few, folder / "sixteen", heads=16, epochs=1)

        # Tables
        size = f"{args.heads} heads {args.width} wide, {args.epochs} epochs"
        print(f"{size} of {args.frames:,} frames\n")
        print_header("sweep", "wall s", "CPU s")
        for name, (wall, cpu) in (
            ("batches of heads (--heads-per-trial auto)", batches),
            ("one trial a head", trials),
        ):
            print_row(name, f"{wall:.1f}", f"{cpu:.1f}")
        ratios = trials[0] / batches[0], trials[1] / batches[1]
        print_row("ratio", *(f"{ratio:.2f}" for ratio in ratios))

        # Whether both gave the same heads, and what a trial costs
        heads, equal, largest = compare(folder / "batches", folder / "trials")
        difference = f"largest difference of a macro F1 {largest:.1e}"
        print(f"\nsame heads: {equal} of {heads} with equal bytes, {difference}")
        wall, cpu = ((sixteen[k] - four[k]) / 12 for k in (0, 1))
        cost = f"a trial costs {wall:.2f} s wall, {cpu:.2f} s CPU"
        print(f"{cost}; a sweep of four {four[0]:.1f} s")
        print_machine()


if __name__ == "__main__":
    main()
