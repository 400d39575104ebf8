"""Seconds from a typed command to its first act.

    python benchmarks/startup.py [--frames 866708] [--models raffect-faces] [--repeats 3]
    python benchmarks/startup.py --trees /path/to/main . --repeats 5

The acts are help, the first training step on a bank of Aff-Wild2's size, and the first frames of an
extraction. Every command is a process of its own. --trees names checkouts, such as before and after
a change, whose commands take turns; of each there is the fastest and the median. The first one
reads files that later ones find in memory. CPU is of the command's own process, or for extract of
all its processes until the first commit. Milestones of extract are files in the bank: plan (before
Ray), a reader's note, bank.json (the encoder is loaded), the first commit. Weights of another
encoder than the embedded one are random numbers in a file.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from made import AFF_WILD2, draw_faces, make_bank
from processes import tree_cpu_s
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
SAVE_WEIGHTS = """
import sys
from safetensors.torch import save_file
from raffect.encoders.tower import build_model
from raffect.encoders.weights import random_source
state = build_model(random_source(sys.argv[1], "random:0")).state_dict()
save_file({name: tensor.contiguous() for name, tensor in state.items()}, sys.argv[2])
"""
Times = dict[str, tuple[float, float]]
"""Seconds and CPU seconds by act."""
MILESTONES = {
    "plan": "plan/*.parquet",
    "first frames read": "attempts/*",
    "encoder loaded": "bank.json",
    "first shard committed": "commits/*.json",
}


def environment(tree: Path) -> dict[str, object]:
    """Arguments of `subprocess` that run the raffect of a checkout."""
    return {"cwd": tree, "env": os.environ | {"PYTHONPATH": str(tree)}}


def time_command(tree: Path, name: str, code: str, arguments: Sequence[str]) -> Times:
    """Seconds to the child's last line, and CPU seconds of the child until then."""
    start, command = time.time(), [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **environment(tree))
    last = done.stdout.splitlines()[-1:] or [done.stderr]
    fields = last[0].split()
    if len(fields) < 4:
        raise SystemExit(f"raffect {' '.join(arguments)}: {done.stderr[-500:]}")
    return {name: (float(fields[-3]) - start, float(fields[-2]))}


def time_extract(tree: Path, manifest: Path, bank: Path, model: str, weights: str) -> Times:
    """Seconds to each milestone, and CPU seconds of all processes."""
    command = [sys.executable, "-m", "raffect.cli", "extract"]
    rows = 64 if weights == "embedded" else 8  # of a large encoder one batch
    command += flags(manifest=manifest, bank=bank, shard_rows=rows)
    command += ["--encoder.model", model, "--encoder.weights", weights]

    # Look for each file until all are there
    start, found = time.time(), {}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, **quiet, **environment(tree))
    while len(found) < len(MILESTONES) and process.poll() is None:
        for name, pattern in MILESTONES.items():
            if name not in found and any(bank.glob(pattern)):
                found[name] = time.time() - start, tree_cpu_s(process.pid)
        time.sleep(0.01)

    # Stop it
    process.send_signal(signal.SIGINT)
    process.wait()
    if len(found) < len(MILESTONES):
        status = f"ended with status {process.returncode} before its first commit"
        raise SystemExit(f"{' '.join(command)} {status}")
    return {f"raffect extract, {model}, {name}": times for name, times in found.items()}


def show(trees: Sequence[Path], repeats: int, measure: Callable[[Path, int], Times]) -> None:
    """Rows of what each checkout takes, measured in turn."""
    runs = [[measure(tree, k) for tree in trees] for k in range(repeats)]
    for name in sorted(runs[0][0], key=lambda name: runs[0][0][name]):
        for number, tree in enumerate(trees):
            wall, cpu = zip(*(run[number][name] for run in runs), strict=True)
            values = (min(wall), statistics.median(wall), min(cpu), statistics.median(cpu))
            print_row(name, tree, *(f"{value:.2f}" for value in values))


def show_commands(trees: Sequence[Path], folder: Path, frames: int, repeats: int) -> None:
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

        def measure(tree: Path, k: int, name=name, code=code, words=tuple(arguments)) -> Times:
            out = folder / f"run{k}-{trees.index(tree)}"
            return time_command(
                tree, name, code, [*words, *(flags(out=out) if code == FIRST_STEP else [])]
            )

        show(trees, repeats, measure)


def save_weights(tree: Path, model: str, folder: Path) -> str:
    """Random numbers in a file, as an encoder's weights; the embedded encoder has its own."""
    if model == "raffect-faces":
        return "embedded"
    file = str(folder / f"{model}--openai.safetensors")
    save = [sys.executable, "-c", SAVE_WEIGHTS, model, file]
    subprocess.run(save, check=True, **environment(tree))
    return file


def show_extract(
    trees: Sequence[Path], manifest: Path, folder: Path, model: str, repeats: int
) -> None:
    """Rows of the milestones of an extraction."""
    weights = save_weights(trees[0], model, folder)

    def measure(tree: Path, k: int) -> Times:
        bank = folder / f"bank-{model}-{k}-{trees.index(tree)}"
        return time_extract(tree, manifest, bank, model, weights)

    show(trees, repeats, measure)


def main() -> None:
    parser = new_parser(__doc__)
    of_train, frames = "of the bank that is trained on; 0 leaves that out", sum(AFF_WILD2)
    parser.add_argument("--frames", type=int, default=frames, help=of_train)
    models, of_extract = ["raffect-faces", "ViT-L-14-quickgelu"], "encoders of the extraction"
    parser.add_argument("--models", nargs="*", default=models, help=of_extract)
    parser.add_argument("--repeats", type=int, default=3)
    here = [Path(__file__).parents[1]]
    parser.add_argument("--trees", nargs="*", type=Path, default=here, help="checkouts in turn")
    args = parser.parse_args()
    trees = [tree.absolute() for tree in args.trees]
    with scratch("startup") as folder:
        print_header("act", "checkout", "s", "median s", "CPU s", "median CPU s")
        if args.frames:
            show_commands(trees, folder, args.frames, args.repeats)
        manifest = draw_faces(folder / "drawn", 400)
        for model in args.models:
            show_extract(trees, manifest, folder, model, args.repeats)
        print(f"\nload: {' '.join(f'{load:.1f}' for load in os.getloadavg())}")
        print_machine()


if __name__ == "__main__":
    main()
