"""Seconds from a typed command to its first act.

    python benchmarks/startup.py [--frames 866708] [--models raffect-faces] [--repeats 3]

The acts are help, the first training step on a bank of Aff-Wild2's size, and the first frames of an
extraction. Every command is a process of its own; the fastest of --repeats counts, the first one
reads files that later ones find in memory. CPU is of the command's own process. Milestones of
extract are files in the bank: plan (before Ray), a reader's note, bank.json (the encoder is
loaded), the first commit.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from made import AFF_WILD2, draw_faces, make_bank
from tools import flags, new_parser, print_header, print_machine, print_row, scratch

# A thread waits until the class is there and wraps its step, so that nothing is imported earlier
# than by the command itself.
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
PLAIN = """
import sys, time
from raffect.cli import main
try:
    main()
finally:
    print("end", time.time(), time.process_time(), "torch" in sys.modules)
"""
MILESTONES = {
    "plan": "plan/*.parquet",
    "first frames read": "attempts/*",
    "encoder loaded": "bank.json",
    "first shard committed": "commits/*.json",
}


def time_command(code: str, *arguments: str) -> tuple[float, float]:
    """Seconds to the child's last line, and CPU seconds of the child until then."""
    start, command = time.time(), [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1:] or [done.stderr]
    fields = last[0].split()
    if len(fields) < 4:
        raise SystemExit(f"raffect {' '.join(arguments)}: {done.stderr[-500:]}")
    return float(fields[-3]) - start, float(fields[-2])


def time_extract(manifest: Path, bank: Path, model: str) -> dict[str, float]:
    """Seconds to each milestone."""
    weights = "embedded" if model == "raffect-faces" else "random:0"
    command = [sys.executable, "-m", "raffect.cli", "extract"]
    command += flags(manifest=manifest, bank=bank, shard_rows=64)
    command += ["--encoder.model", model, "--encoder.weights", weights]

    # Look for each file until all are there
    start, found = time.time(), {}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, **quiet)
    while len(found) < len(MILESTONES) and process.poll() is None:
        for name, pattern in MILESTONES.items():
            if name not in found and any(bank.glob(pattern)):
                found[name] = time.time() - start
        time.sleep(0.01)

    # Stop it
    process.send_signal(signal.SIGINT)
    process.wait()
    if len(found) < len(MILESTONES):
        status = f"ended with status {process.returncode} before its first commit"
        raise SystemExit(f"{' '.join(command)} {status}")
    found["stopped by Ctrl-C then"] = time.time() - start
    return found


def show_commands(folder: Path, frames: int, repeats: int) -> None:
    """Rows of commands that run in one process."""
    train = frames * AFF_WILD2[0] // sum(AFF_WILD2)
    bank, labels = make_bank(folder, train, frames - train)
    data = flags(task="expr", bank=bank, labels=labels)
    to_first_step = f"raffect train, to its first step, {frames:,} frames"
    for name, code, arguments in (
        ("raffect --help", PLAIN, ["--help"]),
        ("raffect train --help", PLAIN, ["train", "--help"]),
        ("raffect bank info", PLAIN, ["bank", "info", str(bank)]),
        (to_first_step, FIRST_STEP, ["train", "paper", *data]),
    ):
        times = []
        for k in range(repeats):
            out = flags(out=folder / f"run{k}") if code == FIRST_STEP else []
            times.append(time_command(code, *arguments, *out))
        wall, cpu = min(times)
        print_row(name, f"{wall:.2f}", f"{cpu:.2f}")


def show_extract(manifest: Path, folder: Path, model: str, repeats: int) -> None:
    """Rows of the milestones of the fastest extraction."""
    banks = [folder / f"bank-{model}-{k}" for k in range(repeats)]
    runs = [time_extract(manifest, bank, model) for bank in banks]
    best = min(runs, key=lambda run: run["first shard committed"])
    for name, seconds in sorted(best.items(), key=lambda item: item[1]):
        print_row(f"raffect extract, {model}, {name}", f"{seconds:.2f}", "")


def main() -> None:
    parser = new_parser(__doc__)
    of_train, frames = "of the bank that is trained on", sum(AFF_WILD2)
    parser.add_argument("--frames", type=int, default=frames, help=of_train)
    models, of_extract = ["raffect-faces", "ViT-L-14-quickgelu"], "encoders of the extraction"
    parser.add_argument("--models", nargs="*", default=models, help=of_extract)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with scratch("startup") as folder:
        print_header("command", "seconds", "CPU seconds")
        show_commands(folder, args.frames, args.repeats)
        manifest = draw_faces(folder / "drawn", 400)
        for model in args.models:
            show_extract(manifest, folder, model, args.repeats)
        print_machine()


if __name__ == "__main__":
    main()
