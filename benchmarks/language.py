"""Heads of texts on drawn faces: captions without any EXPR label, and what heads learn from them.

    uv run python benchmarks/language.py [--frames 8000] [--seed 1]

Every step is a command as a user types it, with fixed seeds; its words are printed before it. Faces
are drawn and the encoder is the embedded one, so nothing here says what CLIP does on photographs.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tools import flags, new_parser, print_header, print_machine, print_row, scratch

from raffect.datasets.labels import read_labels
from raffect.storage.tables import read_metadata

CAPTIONS = {
    "au-frames": ("au", {}),
    "au-clips": ("au", {"clips": "stretches", "clip_frames": 16}),
    "expr-classes": ("expr", {"prompts": "facs"}),
}
"""Tables of captions: the label table that each is made from, and its flags."""


def raffect(command: str, *words: object, **options: object) -> list[str]:
    """Run a command; its lines. An error ends the benchmark with what was printed."""
    line = ["raffect", command, *map(str, words), *flags(**options)]
    print(f"\n$ {shlex.join(line)}", flush=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *line], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    print(f"{time.perf_counter() - start:.0f} s", flush=True)
    return done.stdout.splitlines()


def make_bank(folder: Path, frames: int, seed: int) -> tuple[Path, Path]:
    """Draw faces, prepare and extract them: the bank, and the folder of labels."""
    faces, data, bank = folder / "faces", folder / "data", folder / "bank"
    raffect("synth", out=faces, frames=frames, seed=seed)
    annotations = faces / "8th_ABAW_Annotations"
    raffect("prepare", images=faces / "cropped_aligned", annotations=annotations, out=data)
    encoder = ["--encoder.model", "raffect-faces"]
    raffect("extract", *encoder, manifest=data / "manifest.parquet", bank=bank)
    return bank, data


def make_captions(folder: Path, bank: Path, data: Path, seed: int) -> dict[str, Path]:
    """The tables of `CAPTIONS`, and one of the bank's own vectors as a teacher's, by name."""
    made = {}
    for name, (task, options) in CAPTIONS.items():
        made[name] = folder / f"{name}.parquet"
        source = {"from_labels": data / "labels" / f"{task}.parquet", **options}
        raffect("captions", "--truncate", bank=bank, out=made[name], seed=seed, **source)
    made["teacher"] = folder / "teacher.parquet"
    source = {"teacher": bank, "labels": data / "labels" / "au.parquet"}
    raffect("captions", bank=bank, out=made["teacher"], seed=seed, **source)
    return made


def print_captions(made: dict[str, Path]) -> None:
    """A row a table: its rows by split, its targets, and what the leak guard left out."""
    print()
    print_header("captions", "train rows", "validation rows", "targets", "kept from training")
    for name, file in made.items():
        table = read_labels(file)
        about = read_metadata(table)
        split = table["split"].to_pylist()
        guard = json.loads(about["captions"])["guard"]
        kept = f"{guard['videos']} videos ({guard['rows']:,} rows) of {' '.join(guard['tables'])}"
        print_row(
            name,
            f"{split.count('train'):,}",
            f"{split.count('validation'):,}",
            f"{json.loads(about['targets'])['count']:,}",
            kept if guard["tables"] else "none",
        )


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--frames", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    with scratch("language") as folder:
        bank, data = make_bank(folder, args.frames, args.seed)
        print_captions(make_captions(folder, bank, data, args.seed))
    print_machine()


if __name__ == "__main__":
    main()
