"""Scores on damaged copies of drawn faces, against strength: ERM, CVaR, SAM, and both.

    uv run python benchmarks/robust.py [--frames 4000] [--seeds 5] [--epochs 32] [--out FOLDER]

Draws faces, encodes them with the embedded encoder, trains four runs that differ in alpha and rho
alone, and judges them with `raffect robust`. With --out it goes on there after a stop.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools import new_parser, print_header, print_machine, print_row, scratch

import raffect
from raffect.cli import main as run
from raffect.config import CORRUPTION_NAMES, RobustConfig
from raffect.metrics.task_kinds import kind_of
from raffect.runs.spread import short

RUNS = {
    "erm": ("1", "0"),
    "cvar": ("0.3", "0"),
    "sam": ("1", "0.05"),
    "both": ("0.3", "0.05"),
}
"""Alpha and rho of each run; all other settings are the paper's."""


def command(*words: object) -> None:
    """Run a command of raffect, or end with its status."""
    if status := run([str(word) for word in words]):
        sys.exit(status)


def make_runs(folder: Path, frames: int, seeds: int, epochs: int) -> None:
    """Draw, prepare, encode and train what is not there yet."""
    faces, data, bank = folder / "faces", folder / "data", folder / "bank"
    if not (data / "manifest.parquet").exists():
        command("synth", "--out", faces, "--frames", frames)
        images, annotations = faces / "cropped_aligned", faces / "8th_ABAW_Annotations"
        command("prepare", "--images", images, "--annotations", annotations, "--out", data)
    encoder = ["--encoder.model", "raffect-faces"]
    command("extract", "--manifest", data, "--bank", bank, *encoder)
    for name, (alpha, rho) in RUNS.items():
        inputs = ["--task", "expr", "--bank", bank, "--labels", data, "--out", folder / name]
        settings = ["--loss.alpha", alpha, "--sam.rho", rho, "--epochs", epochs]
        command("train", "paper", *inputs, *settings, "--num-seeds", seeds)


def main() -> None:
    """Print the table."""
    parser = new_parser(__doc__)
    parser.add_argument("--frames", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--strengths", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--corruptions", nargs="+", default=list(CORRUPTION_NAMES))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    print_machine()
    with scratch("robust") as temporary:
        folder = arguments.out or temporary
        make_runs(folder, arguments.frames, arguments.seeds, arguments.epochs)
        result = raffect.robust(
            RobustConfig(
                manifest=folder / "data",
                labels=folder / "data",
                run=tuple(folder / name for name in RUNS),
                out=folder / "robust",
                corruptions=tuple(arguments.corruptions),
                strengths=tuple(arguments.strengths),
            )
        )
    print("\n".join(result.lines()) + "\n")

    # Each corruption by strength, then what is lost and what is won
    kind = kind_of(result.robustness.data.task)
    strengths = ["clean", *map(str, result.robustness.strengths)]
    print_header("corruption", "run", *strengths)
    for corruption in [*result.robustness.corruptions, "mean"]:
        for name in RUNS:
            means = [
                short(point.score.mean)
                for point in result.points
                if point.run == name
                and point.strength is not None
                and point.corruption in ("clean", corruption)
            ]
            print_row(corruption, name, *means)
    print()
    whole = ["against clean", "against ERM", "less lost than ERM"]
    print_header("all copies", kind.title, *whole, "worst class", "worst videos")
    for point in result.points:
        if point.strength is None:
            found = (point.change, point.against_erm, point.change_against_erm)
            differences = [one.text() if one else "-" for one in found]
            worst = [short(point.worst.output), short(point.worst.tail)]
            print_row(point.run, point.score.text(), *differences, *worst)


if __name__ == "__main__":
    main()
