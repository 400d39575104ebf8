"""Encoders on drawn faces: scores, paired differences, frames/s, GFLOP, bank size.

    uv run python benchmarks/compare.py [--frames 2000] [--seeds 5] [--epochs 32] [--out FOLDER]

Draws faces and runs `raffect compare` on them with the embedded encoder, ViT-B-32 and a small tower
of timm's, both of random weights, and all three concatenated. With --out it goes on there after a
stop.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools import new_parser, print_header, print_machine, print_row, scratch

import raffect
from raffect.cli import main as run
from raffect.progress import format_bytes

ENCODERS = (
    "raffect-faces:embedded",
    "ViT-B-32-quickgelu:random",
    "timm:vit_tiny_patch16_224:random",
)


def command(*words: object) -> None:
    """Run a command of raffect, or end with its status."""
    if status := run([str(word) for word in words]):
        sys.exit(status)


def main() -> None:
    """Print the lines of the command, then its table."""
    parser = new_parser(__doc__)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--recipe", nargs="+", default=["erm"])
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    print_machine()
    with scratch("compare") as temporary:
        folder = arguments.out or temporary
        faces, data = folder / "faces", folder / "data"
        if not (data / "manifest.parquet").exists():
            command("synth", "--out", faces, "--frames", arguments.frames)
            images, annotations = faces / "cropped_aligned", faces / "8th_ABAW_Annotations"
            command("prepare", "--images", images, "--annotations", annotations, "--out", data)
        result = raffect.compare(
            raffect.CompareConfig(
                encoders=tuple(arguments.encoders),
                manifest=data,
                labels=data,
                task="expr",
                out=folder / "compare",
                join=True,
                recipe=tuple(arguments.recipe),
                num_seeds=arguments.seeds,
                epochs=arguments.epochs,
            )
        )
    print("\n".join(result.lines()) + "\n")
    costs = ("frames/s", "dim", "GFLOP a frame", "bank")
    print_header("", "encoder", "recipe", "score", "difference", *costs)
    for score in result.scores:
        bank = result.comparison.bank(score.letter)
        difference = "-"
        if score.difference is not None:
            difference = f"{score.difference.text()} to {score.against}: {score.verdict()}"
        rate = "-" if bank.frames_per_s is None else f"{bank.frames_per_s:,.1f}"
        gflop = "-" if bank.flop is None else f"{bank.flop / 1e9:,.2f}"
        scores = (score.recipe, score.score.text(), difference)
        size = format_bytes(bank.size_bytes)
        print_row(bank.letter, f"{bank.name}{bank.mark}", *scores, rate, bank.dim, gflop, size)


if __name__ == "__main__":
    main()
