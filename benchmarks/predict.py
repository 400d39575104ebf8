"""Predicting a bank and writing an entry of a challenge: how fast, and in how much memory.

    python benchmarks/predict.py [--frames 500000] [--heads 1 3] [--rows 1000000]

The other side of `raffect predict` is what cannot be avoided: each shard read and hashed, its
features made float32, and the heads' matrix products without anything between them. Both sides go
through the same bank in one run, one after the other, and the best of several times counts. Heads
are as wide as the feature, as the paper's are. Memory is the peak of a process of its own that does
nothing else. The first table writes an entry for a template of a row a frame, a tenth of which the
table of predictions lacks.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from made import make_bank
from stand_in import DIM, IDENTITY
from tools import flags, new_parser, print_header, print_machine, print_row, scratch

from raffect.bank.facts import DataFacts
from raffect.bank.features import read_shard_features
from raffect.bank.format import Bank
from raffect.config import PredictConfig
from raffect.datasets.affwild2.tasks import AU, EXPR, HEADERS, VA
from raffect.datasets.tasks import Task
from raffect.evaluation.predict import predict
from raffect.heads.checkpoint import HeadCard, save_head
from raffect.heads.head_kinds import head_spec
from raffect.metrics.scores import Chance, JudgedScore
from raffect.predictions.columns import Predicted, as_table
from raffect.predictions.rules import plain_rules
from raffect.predictions.table import ROWS, PredictionFacts, write_predictions
from raffect.provenance import describe_run
from raffect.recipe import Recipe

VIDEO_FRAMES = 4000
_CHILD = """
import re, sys, time
from raffect.cli import main
if main(sys.argv[1:]):
    raise SystemExit(1)
print(re.search(r"VmHWM:\\s+([0-9]+)", open("/proc/self/status").read())[1], time.process_time())
"""


def save_heads(run: Path, task: Task, heads: int) -> None:
    """Heads of the paper's shape with drawn weights, as the weights of a run."""
    recipe = Recipe(task=task.name)
    spec = head_spec(recipe.head, DIM, len(task.outputs))
    about = {"bank": "-", "labels": "-", "bank_digest": "-", "labels_sha256": "-", "splits": {}}
    card = HeadCard(
        head=spec.to_json(),
        id="-",
        status="done",
        snapshot="last",
        recipe=recipe,
        data=DataFacts(task=task, encoders=(IDENTITY,), **about),
        validation=JudgedScore(headline=0.0, metrics={}, outputs={}, epoch=1),
        chance=Chance(answer="-", majority=None),
    )
    for seed in range(heads):
        batch = spec.build(spec.initial_row(seed, recipe.head)[None])
        save_head(run / "weights" / f"h{seed}" / "last", card, batch.state(0))


def read_and_multiply(bank: Bank, outputs: Sequence[int]) -> None:
    """Read every shard, and multiply its features as heads with so many outputs do."""
    widths = [[(DIM, DIM)] * 3 + [(DIM, count)] for count in outputs]
    heads = [[torch.randn(shape) / 28 for shape in shapes] for shapes in widths]
    for commit in bank.read_commits().values():
        x = torch.from_numpy(read_shard_features(bank, commit, DIM).copy()).float()
        for weights in heads:
            hidden = x
            for weight in weights:
                hidden = hidden @ weight


def best_of(times: int, *jobs: Callable[[], object]) -> list[tuple[float, float]]:
    """Least wall and CPU seconds of each job, in turns, after each ran once."""
    found: list[list[tuple[float, float]]] = [[] for _ in jobs]
    for turn in range(times + 1):
        for own, job in zip(found, jobs, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            if turn:
                own.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [(min(w for w, _ in own), min(c for _, c in own)) for own in found]


def run_command(*words: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak resident MB of a command in a process of its own."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *words], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr[-1000:]}")
    peak_kb, cpu_s = done.stdout.split()[-2:]
    return time.perf_counter() - start, float(cpu_s), int(peak_kb) / 1000


def compare(folder: Path, frames: int, heads: Sequence[int], times: int) -> None:
    """Seconds of `raffect predict` against reading and bare products."""
    path, _ = make_bank(folder / "small", frames * 2 // 3, frames - frames * 2 // 3)
    print(
        f"\n{frames:,} frames, {torch.get_num_threads()} threads: least seconds of {times} each\n"
    )
    print_header("heads", "read + products", "predict", "wall ratio", "CPU ratio", "frames/s")
    jobs = {f"{count} of EXPR": ([EXPR], count) for count in heads}
    jobs["1 each of EXPR, AU, VA"] = ([EXPR, AU, VA], 1)
    for number, (name, (tasks, count)) in enumerate(jobs.items()):
        runs = []
        for task in tasks:
            runs.append(folder / f"run{number}-{task.name}")
            save_heads(runs[-1], task, count)
        outputs = [len(task.outputs) for task in tasks] * count
        config = PredictConfig(bank=path, head=tuple(runs), out=folder / "p.parquet")
        bare = partial(read_and_multiply, Bank(path), outputs)
        (wall, cpu), (our_wall, our_cpu) = best_of(times, bare, partial(predict, config))
        ratios = f"{our_wall / wall:.2f}", f"{our_cpu / cpu:.2f}"
        print_row(name, f"{wall:.2f}", f"{our_wall:.2f}", *ratios, f"{frames / our_wall:,.0f}")


def measure_sizes(folder: Path, sizes: Sequence[int]) -> None:
    """Seconds and memory of the command for banks of several sizes."""
    print("\nOne head of EXPR, the whole command\n")
    print_header("frames", "wall s", "frames/s", "CPU s", "peak MB", "table MB")
    save_heads(folder / "run", EXPR, 1)
    for size in sizes:
        path, _ = make_bank(folder / f"bank{size}", size * 2 // 3, size - size * 2 // 3)
        out = folder / "p.parquet"
        words = flags(bank=path, head=folder / "run", out=out)
        wall, cpu, peak = run_command("predict", *words)
        cells = f"{wall:.1f}", f"{size / wall:,.0f}", f"{cpu:.1f}", f"{peak:,.0f}"
        print_row(f"{size:,}", *cells, f"{out.stat().st_size / 1e6:.1f}")


def make_predictions(path: Path, rows: int) -> None:
    """A table of all tasks for so many frames, a tenth of which it lacks."""
    rng, rules = np.random.default_rng(0), [plain_rules(task) for task in (EXPR, AU, VA)]
    tasks = [one.task for one in rules]
    about = {"bank": "-", "bank_digest": "-", "run": describe_run()}
    place = np.flatnonzero(rng.random(rows) > 0.1)
    with write_predictions(path, PredictionFacts(rules=tuple(rules), **about)) as writer:
        for start in range(0, len(place), ROWS):
            part = place[start : start + ROWS]
            names = pa.array([f"video{k:05d}" for k in range(rows // VIDEO_FRAMES + 1)])
            frames = {
                "video": names.take(pa.array(part // VIDEO_FRAMES)),
                "frame": pa.array(part % VIDEO_FRAMES + 1),
                "status": pa.repeat("ok", len(part)),
            }
            scores = [rng.random((len(part), len(task.outputs)), np.float32) for task in tasks]
            found = {
                one.task.name: Predicted(own, one.decide(own))
                for one, own in zip(rules, scores, strict=True)
            }
            writer.write(as_table(pa.table(frames), found, tasks, "-"))


def measure_submit(folder: Path, rows: int) -> None:
    """Seconds and memory of entries for templates of so many rows."""
    print(f"\n`raffect submit`, a template of {rows:,} rows, the whole command\n")
    print_header("entry", "wall s", "CPU s", "peak MB", "entry MB")
    make_predictions(folder / "p.parquet", rows)
    names = [f"video{k // VIDEO_FRAMES:05d}/{k % VIDEO_FRAMES + 1:05d}.jpg" for k in range(rows)]
    headers = {task.name.upper(): f"image_location,{HEADERS[task]}" for task in (EXPR, AU, VA)}
    headers["MTL"] = "image,valence,arousal,expression,aus"
    for name, header in headers.items():
        template, out = folder / f"{name}.txt", folder / f"entry-{name}.txt"
        template.write_text("\n".join([header, *(f"{image},0" for image in names), ""]))
        words = flags(template=template, predictions=folder / "p.parquet", out=out)
        wall, cpu, peak = run_command("submit", *words)
        size = out.stat().st_size / 1e6
        print_row(name, f"{wall:.1f}", f"{cpu:.1f}", f"{peak:,.0f}", f"{size:.0f}")


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--frames", type=int, default=500_000, help="frames of the large bank")
    parser.add_argument("--heads", type=int, nargs="*", default=[1, 3], help="heads of EXPR")
    parser.add_argument("--repeats", type=int, default=3, help="times that each side runs")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the template")
    args = parser.parse_args()
    with scratch("predict") as folder:
        measure_submit(folder, args.rows)
        measure_sizes(folder, [args.frames // 4, args.frames])
        compare(folder, args.frames // 20, args.heads, args.repeats)
    print_machine()


if __name__ == "__main__":
    main()
