"""How far exported files are from raffect: heads on 10,000 features, encoders with heads on 500
pictures.

    uv run --extra export python benchmarks/export.py [--features 10000] [--pictures 500]
    uv run --extra export python benchmarks/export.py --features 0 --encoders ViT-B-32

Heads are trained on features that are made up (the paper's head, 768 features), and on drawn faces
seen by the embedded encoder and by ViT-B-32 with random weights. Each file is run by the runtime of
its users. A difference is the largest one of a probability or value; decisions are classes and
labels. CPU seconds are of the whole command, its check included.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from made import draw_faces, make_bank
from robust import command
from tools import new_parser, print_header, print_machine, print_row, scratch

import raffect
from raffect.config import ExportConfig

ENCODERS = {"raffect-faces": "embedded", "ViT-B-32": "random:0"}
"""Encoders and their weights."""
_RESIZED = 50
"""Pictures of half the encoder's side; the check of their resize needs fewer."""


def train(bank: Path, labels: Path, out: Path, tasks: Sequence[str], epochs: int) -> list[Path]:
    """Two heads of each task; returns their runs."""
    for task in tasks:
        inputs = ["--task", task, "--bank", bank, "--labels", labels, "--out", out / task]
        few = ["--epochs", epochs, "--num-seeds", 2, "--batch-size", 64]
        command("train", "paper", *inputs, *few)
    return [out / task for task in tasks]


def row(what: str, runs: Sequence[Path], out: Path, form: str, **settings: object) -> None:
    """Export, and print what was found."""
    start = time.process_time()
    config = ExportConfig(
        run=tuple(runs), out=out, format=form, data_licence="none, made for a test", **settings
    )
    result = raffect.export_heads(config)
    spent, agreement = time.process_time() - start, result.record.agreement
    print_row(
        what,
        form,
        agreement.runtime,
        f"{agreement.samples:,} {agreement.source}",
        ", ".join(f"{name} {value:.1e}" for name, value in agreement.difference.items()),
        ", ".join(f"{name} {count}" for name, count in agreement.decided_otherwise.items()),
        f"{result.size_bytes / 1e6:.1f}",
        f"{spent:.0f}",
    )


def main() -> None:
    """Print the table."""
    parser = new_parser(__doc__)
    parser.add_argument("--features", type=int, default=10_000)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--frames", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--encoders", nargs="*", default=list(ENCODERS))
    arguments = parser.parse_args()
    print_machine()
    with scratch("export") as folder:
        # Runs
        made: list[Path] = []
        if arguments.features:
            bank, labels = make_bank(folder / "made", 4000, arguments.features)
            made = train(bank, labels, folder / "made" / "runs", ["expr"], arguments.epochs)
        data, seen = folder / "data", {}
        if arguments.encoders:
            draw_faces(folder, arguments.frames)
        for encoder in arguments.encoders:
            bank = folder / encoder / "bank"
            chosen = ["--encoder.model", encoder, "--encoder.weights", ENCODERS[encoder]]
            command("extract", "--manifest", data, "--bank", bank, *chosen)
            runs = folder / encoder / "runs"
            seen[encoder] = train(bank, data, runs, ["expr", "au", "va"], arguments.epochs)

        # Files
        print_header(
            *("exported", "format", "runtime", "compared on", "largest difference"),
            *("decisions that differ", "MB", "CPU s"),
        )
        for form in ("safetensors", "onnx", "pt2") if made else ():
            out = folder / "made" / form
            row("2 heads, made features", made, out, form, num_checked=arguments.features)
        for encoder, runs in seen.items():
            own = int(
                str(raffect.Bank(folder / encoder / "bank").read_identity().preprocess["size"])
            )
            for side in (own, own // 2):
                for form in ("onnx", "pt2"):
                    row(
                        f"{encoder} ({ENCODERS[encoder]}) and 6 heads, {side} pixels",
                        runs,
                        folder / encoder / f"{form}-{side}",
                        form,
                        input="pixels",
                        size=side,
                        images=folder / "faces" / "cropped_aligned",
                        num_checked=min(arguments.pictures, _RESIZED if side < own else 10**6),
                    )


if __name__ == "__main__":
    main()
