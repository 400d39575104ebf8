"""Seconds from a typed command to its first act: help, first training step on a bank of Aff-Wild2's size, first frames of an extraction.

    python benchmarks/startup.py [--frames 866708] [--model raffect-faces] [--repeats 3]

Every command is a process of its own; the fastest of --repeats counts, the first one reads files that later ones find in memory. CPU is of the command's
own process. Milestones of extract are files in the bank: plan (before Ray), a reader's note, bank.json (the encoder is loaded), the first commit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from made import AFF_WILD2, make_bank

from raffect.config import PrepareConfig
from raffect.datasets.prepare import prepare
from raffect.datasets.synthetic.tree import EDITION, write_synthetic
from raffect.provenance import describe_run

# A thread waits for the class to be there and wraps its step: nothing is imported earlier than the command itself would.
FIRST_STEP = """
import os, sys, threading, time
def watch():
    while not hasattr(sys.modules.get("raffect.heads.learner"), "learning_rate"):
        time.sleep(0.001)
    learner = sys.modules["raffect.heads.learner"].Learner
    step = learner.step
    def first(self, *args):
        step(self, *args)
        print("first step", time.time(), time.process_time(), "ray" in sys.modules, flush=True)
        os._exit(0)
    learner.step = first
threading.Thread(target=watch, daemon=True).start()
from raffect.cli import main
sys.exit(main())
"""
PLAIN = "import sys, time; from raffect.cli import main\ntry:\n    main()\nfinally:\n    print('end', time.time(), time.process_time(), 'torch' in sys.modules)"


def time_command(code: str, *arguments: str) -> tuple[float, float]:
    """Seconds to the child's last line, and CPU seconds of the child until then."""
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    last = done.stdout.splitlines()[-1:] or [done.stderr]
    fields = last[0].split()
    if len(fields) < 4:
        raise SystemExit(f"raffect {' '.join(arguments)}: {done.stderr[-500:]}")
    return float(fields[-3]) - start, float(fields[-2])


def time_extract(folder: Path, model: str, attempt: int) -> dict[str, float]:
    """Seconds to each milestone."""
    bank, weights = (
        folder / f"bank-{model}-{attempt}",
        "embedded" if model == "raffect-faces" else "random:0",
    )
    command = [
        sys.executable,
        "-m",
        "raffect.cli",
        "extract",
        "--manifest",
        str(folder / "data" / "manifest.parquet"),
        "--bank",
        str(bank),
        "--shard-rows",
        "64",
    ]
    start = time.time()
    process = subprocess.Popen(
        [*command, "--encoder.model", model, "--encoder.weights", weights],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    found: dict[str, float] = {}
    patterns = {
        "plan": "plan/*.parquet",
        "first frames read": "attempts/*",
        "encoder loaded": "bank.json",
        "first shard committed": "commits/*.json",
    }
    while len(found) < len(patterns) and process.poll() is None:
        for name, pattern in patterns.items():
            if name not in found and any(bank.glob(pattern)):
                found[name] = time.time() - start
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait()
    if len(found) < len(patterns):
        raise SystemExit(
            f"{' '.join(command)} ended with status {process.returncode} before its first commit"
        )
    found["stopped by Ctrl-C then"] = time.time() - start
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--frames", type=int, default=sum(AFF_WILD2), help="of the bank that is trained on"
    )
    parser.add_argument(
        "--models",
        nargs="*",
        default=["raffect-faces", "ViT-L-14-quickgelu"],
        help="encoders of the extraction",
    )
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raffect-startup-"))
    try:
        train = args.frames * AFF_WILD2[0] // sum(AFF_WILD2)
        bank, labels = make_bank(folder, train, args.frames - train)
        print("| command | seconds | CPU seconds |\n|---|---|---|")
        data = ["--task", "expr", "--bank", str(bank), "--labels", str(labels)]
        for name, code, arguments in (
            ("raffect --help", PLAIN, ["--help"]),
            ("raffect train --help", PLAIN, ["train", "--help"]),
            ("raffect bank info", PLAIN, ["bank", "info", str(bank)]),
            (
                f"raffect train, to its first step, {args.frames:,} frames",
                FIRST_STEP,
                ["train", "paper", *data],
            ),
        ):
            out = [str(folder / f"run{k}") for k in range(args.repeats)]
            times = [
                time_command(
                    code, *arguments, *(["--out", out[k]] if "--task" in arguments else [])
                )
                for k in range(args.repeats)
            ]
            print(f"| {name} | {min(times)[0]:.2f} | {min(times)[1]:.2f} |", flush=True)
        write_synthetic(folder / "faces", 400, 0)
        prepare(
            PrepareConfig(
                images=(folder / "faces" / "cropped_aligned",),
                annotations=folder / "faces" / EDITION,
                out=folder / "data",
            )
        )
        for model in args.models:
            runs = [time_extract(folder, model, attempt) for attempt in range(args.repeats)]
            best = min(runs, key=lambda run: run.get("first shard committed", 1e9))
            for name, seconds in sorted(best.items(), key=lambda item: item[1]):
                print(f"| raffect extract, {model}, {name} | {seconds:.2f} | |", flush=True)
        print(f"\n{describe_run()['versions']} {describe_run()['machine']} {os.cpu_count()} cores")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
