"""Heads of texts on drawn faces: captions without any EXPR label, and what heads learn from them.

    uv run python benchmarks/language.py [--frames 12000] [--seed 1] [--num-seeds 3]

Every step is a command as a user types it, with fixed seeds; its words are printed before it, and
behind it what it printed: scores with their intervals beside chance. Faces are drawn and the
encoder is the embedded one, so nothing here says what CLIP does on photographs. The teacher of the
projection is made up: the action units of each frame, mapped by a drawn matrix, with noise.
Temporal heads that learn from labels are those of temporal.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from made import extract_faces
from tools import flags, new_parser, print_header, print_machine, print_row, raffect, scratch

from raffect.datasets.labels import read_labels, read_values
from raffect.datasets.tasks import Task
from raffect.storage.tables import read_metadata

CAPTIONS = {
    "au-frames": ("au", {}),
    "au-clips": ("au", {"clips": "stretches", "clip_frames": 16}),
    "expr-classes": ("expr", {"prompts": "facs"}),
}
"""Tables of captions: the label table that each is made from, and its flags."""


TEACHER_DIM, TEACHER_NOISE = 256, 0.5
"""Length of the made-up teacher's vectors, and how large its noise is beside a unit's vector."""


def make_captions(folder: Path, bank: Path, data: Path, seed: int) -> dict[str, Path]:
    """The tables of `CAPTIONS`, and one of the made-up teacher's vectors, by name."""
    made = {}
    for name, (task, options) in CAPTIONS.items():
        made[name] = folder / f"{name}.parquet"
        source = {"from_labels": data / "labels" / f"{task}.parquet", **options}
        raffect("captions", "--truncate", bank=bank, out=made[name], seed=seed, **source)
    made["teacher"] = folder / "teacher.parquet"
    source = {"teacher": make_teacher(folder, data, seed), "labels": data / "labels" / "au.parquet"}
    raffect("captions", bank=bank, out=made["teacher"], seed=seed, **source)
    return made


def make_teacher(folder: Path, data: Path, seed: int) -> Path:
    """A bank of vectors that hold the action units of each labelled frame, and noise."""
    labels = read_labels(data / "labels" / "au.parquet")
    task = Task.from_json(read_metadata(labels)["task"], "au.parquet")
    units = np.maximum(read_values(labels, task), 0).astype(np.float32)
    rng = np.random.default_rng(seed)
    units = np.column_stack([units, np.ones(len(units), np.float32)])
    vectors = units @ rng.normal(size=(units.shape[1], TEACHER_DIM))
    vectors += TEACHER_NOISE * rng.normal(size=vectors.shape)
    np.save(folder / "teacher.npy", vectors.astype(np.float32))
    pq.write_table(labels.select(["video", "frame"]), folder / "keys.parquet")
    bank = folder / "teacher"
    raffect(
        "bank", "import", npy=folder / "teacher.npy", keys=folder / "keys.parquet",
        name="made-up", bank=bank,
    )  # fmt: skip
    return bank


def judge_all(folder: Path, bank: Path, data: Path, made: dict[str, Path], seeds: int) -> None:
    """Train on the captions and judge what comes out on EXPR, of which no head saw a label."""
    expr = {"task": "expr", "bank": bank, "labels": data}
    heads = {"num_seeds": seeds, "threads": 1}
    raffect("zeroshot", **expr, out=folder / "zs")

    # Captions of action units: EmoCLIP, the same with snippets, and with CVaR and SAM
    harder = {"loss.alpha": 0.3, "sam.rho": 0.05}
    snippets = {"head.snippets": 4, "loss.order": 0.1}
    for name, own in {"emoclip": {}, "snippets": snippets, "cvar-sam": harder}.items():
        run, labels = folder / name, made["au-frames"]
        raffect("train", "emoclip", *settings(own), bank=bank, labels=labels, out=run, **heads)
        raffect("zeroshot", **expr, head=run, out=folder / f"{name}-expr")

    # A projection that texts share, and below what learns from labels of EXPR
    run = folder / "expclip"
    own = settings({"batch_size": 64, "epochs": 20})
    raffect("train", "expclip", *own, bank=bank, labels=made["teacher"], out=run, **heads)
    raffect("zeroshot", **expr, head=run, out=folder / "expclip-expr")
    run = folder / "left-out"
    own = {"labels": made["expr-classes"], "leave_out": "each"}
    raffect("train", "emoclip", *settings({"epochs": 6}), bank=bank, out=run, **own, **heads)
    raffect("zeroshot", **expr, head=run, out=folder / "unseen")
    raffect("learn-prompts", **expr, **heads, out=folder / "prompts", select="cv")


def settings(own: dict[str, object]) -> list[str]:
    """Settings by dotted name as flags."""
    return [word for name, value in own.items() for word in flags(**{name: value})]


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
    parser.add_argument("--frames", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--num-seeds", type=int, default=3, help="0 trains nothing")
    args = parser.parse_args()

    with scratch("language") as folder:
        bank, data = extract_faces(folder, args.frames, args.seed)
        made = make_captions(folder, bank, data, args.seed)
        print_captions(made)
        if args.num_seeds:
            judge_all(folder, bank, data, made, args.num_seeds)
    print_machine()


if __name__ == "__main__":
    main()
