"""Time and memory of a report against the number of heads.

    uv run python benchmarks/report_size.py --heads 500 2000 10000

A run folder is made up (EXPR, 70 videos of Aff-Wild2's class shares, 32 epochs, five seeds a
setting, 40 heads a batch), and read by the real `report` in a process of its own, so that its
memory is its own. Records and statistics are those of a sweep over alpha, learning rate and
dropout, written by the code that training writes them with; scores are drawn.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from stand_in import IDENTITY
from tools import new_parser, print_header, print_machine, print_row, scratch

from raffect.bank.facts import DataFacts, SplitFacts
from raffect.datasets.affwild2.tasks import COMPLETE_EXPR_COUNTS, EXPR
from raffect.metrics.scores import JudgedScore
from raffect.metrics.task_kinds import kind_of
from raffect.provenance import describe_run
from raffect.recipe import Recipe, with_settings
from raffect.runs.folder import RunFolder
from raffect.runs.group_statistics import Statistics
from raffect.runs.records import Curve, HeadRecord, PlannedHead, RunRecord, TrainedBy
from raffect.storage.atomic import write_atomic

VIDEOS, FRAMES, EPOCHS, BEST_EPOCH, SEEDS, BATCH = 70, 4000, 32, 20, 5, 40


def list_recipes(heads: int) -> list[Recipe]:
    """Settings that differ in three axes, with the recipe's own first, of five seeds each."""
    rng, base = np.random.default_rng(0), Recipe(task="expr")
    drawn = [
        {
            "loss.alpha": float(rng.integers(1, 11)) / 10,
            "optim.lr": float(10 ** rng.uniform(-5, -2)),
            "head.dropout": float(rng.uniform(0, 0.7)),
        }
        for _ in range(heads // SEEDS - 1)
    ]
    return [
        with_settings(base, settings | {"seed": seed})
        for settings in ({}, *drawn)
        for seed in range(SEEDS)
    ]


def draw_statistics(rng: np.random.Generator, videos: int) -> np.ndarray:
    """Confusion matrices of one head by video, shape (videos, 8, 8)."""
    shares = np.array(COMPLETE_EXPR_COUNTS["validation"], float)
    true = rng.multinomial(FRAMES, rng.dirichlet(shares / shares.sum() * 4, videos))
    right = rng.uniform(0.2, 0.8, (videos, 8, 1))
    probability = right * np.eye(8) + (1 - right) / 8
    return rng.multinomial(true, probability)


def make_run(path: Path, heads: int, videos: int = VIDEOS) -> None:
    """Write a run folder of so many heads, judged on so many videos."""
    folder, rng, kind = RunFolder(path), np.random.default_rng(1), kind_of(EXPR)
    facts = DataFacts(
        task=EXPR,
        bank="bank",
        labels="data",
        bank_digest="b" * 64,
        labels_sha256="c" * 64,
        encoders=(IDENTITY,),
        caveat="made up",
        synthetic=True,
        splits={
            "train": SplitFacts(frames=585_317, groups=248),
            "validation": SplitFacts(frames=videos * FRAMES, groups=videos),
        },
    )
    run = RunRecord(command="tune", fingerprint="f" * 16, run=describe_run(), data=facts)
    write_atomic(path / "env.json", run.to_bytes())

    # A file of statistics a batch, a record a head
    planned, names = [PlannedHead(one) for one in list_recipes(heads)], _names(videos)
    for begin in range(0, len(planned), BATCH):
        batch = planned[begin : begin + BATCH]
        found = {
            head.id: {epoch: draw_statistics(rng, videos) for epoch in (BEST_EPOCH, EPOCHS)}
            for head in batch
        }
        file = folder.write_statistics(Statistics(names, found))
        for head in batch:
            curve = tuple(rng.uniform(0.2, 0.4, EPOCHS).tolist())
            scores = {
                name: JudgedScore(
                    **vars(kind.score(found[head.id][epoch].sum(0), EXPR)),
                    epoch=epoch,
                    interval_95=(0.2, 0.5),
                )
                for name, epoch in (("last", EPOCHS), ("best", BEST_EPOCH))
            }
            record = HeadRecord(
                id=head.id,
                task=EXPR,
                recipe=head.recipe,
                fingerprint="f" * 16,
                status="done",
                trained_by=TrainedBy(device="cpu", batch_of_heads=BATCH, wall_s=begin + 1),
                curve=Curve(lr=curve, train_loss=curve, validation=curve),
                scores=scores,
                chance=kind.chance(found[head.id][EPOCHS].sum(0), EXPR),
                statistics=file,
            )
            folder.write_record(record)


def _names(videos: int) -> list[str]:
    return [f"video{k:03d}" for k in range(videos)]


def measure(run: Path) -> None:
    """Report one run; print seconds, CPU seconds and peak memory as JSON."""
    from raffect.reporting.report import report

    begin = time.perf_counter()
    report([run], run / "report")
    used = resource.getrusage(resource.RUSAGE_SELF)
    size_mb = (run / "report" / "report.html").stat().st_size / 1e6
    found = {
        "wall_s": time.perf_counter() - begin,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss / 1e3,
        "page_mb": size_mb,
    }
    print(json.dumps(found))


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--heads", type=int, nargs="+", default=[500, 2000, 10_000])
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        return measure(options.run)

    # One process a point
    print_header("heads", "settings", "wall s", "CPU s", "peak MB", "page MB")
    for heads in options.heads:
        with scratch("report") as folder:
            make_run(folder / "run", heads)
            command = [sys.executable, __file__, "--run", str(folder / "run")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        shown = (f"{found[name]:.1f}" for name in ("wall_s", "cpu_s", "peak_mb", "page_mb"))
        print_row(f"{heads:,}", f"{heads // SEEDS:,}", *shown)
    return print_machine()


if __name__ == "__main__":
    main()
