"""Steps of `lists.py` that go through all heads of a run, or all videos that they are judged on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from report_size import VIDEOS, list_recipes, make_run

from raffect.heads.head_kinds import head_spec
from raffect.runs.folder import RunFolder, find_records
from raffect.runs.records import PlannedHead
from raffect.runs.saved_heads import save_snapshot

DIM, HEADS = 8, 40

Measured = Callable[[], Any]

# What there is


def make_heads(folder: Path, heads: int) -> None:
    """A run of so many heads, with weights, on 70 videos."""
    _make(folder, heads, VIDEOS)


def make_videos(folder: Path, videos: int) -> None:
    """A run of 40 heads on so many videos."""
    _make(folder, HEADS, videos)


def _make(folder: Path, heads: int, videos: int) -> None:
    make_run(folder / "run", heads, videos)
    run = RunFolder(folder / "run")
    facts = run.read_run().data
    for record in run.read_records():
        spec = head_spec(record.recipe.head, DIM, len(record.task.outputs))
        row = spec.initial_row(record.recipe.seed, record.recipe.head)
        save_snapshot(run, record, facts, "last", spec.build(row[None]), 0)


def _planned(folder: Path) -> list[PlannedHead]:
    return [PlannedHead(one) for one in list_recipes(len(RunFolder(folder / "run").read_records()))]


# Steps


def plan_sweep(folder: Path) -> Measured:
    """What a sweep that goes on looks up before its first trial: ids, records, batches."""
    from raffect.training.run_batch import plan_batches

    run, heads = RunFolder(folder / "run"), _planned(folder)
    return lambda: plan_batches(run, heads, 8, one_seed=False)


def partition_sweep(folder: Path) -> Measured:
    """Batches of a new sweep."""
    from raffect.training.run_batch import plan_batches

    run, heads = RunFolder(folder / "new"), _planned(folder)
    return lambda: plan_batches(run, heads, 8, one_seed=False)


def read_records(folder: Path) -> Measured:
    """All records."""
    return RunFolder(folder / "run").read_records


def write_tables(folder: Path) -> Measured:
    """heads.csv, heads.parquet, results.csv and per_group.csv."""
    from raffect.runs.tables import write_tables

    run = RunFolder(folder / "run")
    return partial(write_tables, run, run.read_records())


def conclude(folder: Path) -> Measured:
    """The end of a sweep: records, tables, metrics.json and its lines."""
    from raffect.runs.conclusions import conclude_sweep

    run, heads = RunFolder(folder / "run"), _planned(folder)
    facts, axes = run.read_run().data, ["loss.alpha", "optim.lr", "head.dropout"]

    def end() -> list[str]:
        records = find_records(run, [head.id for head in heads])
        return conclude_sweep(run, facts, records, axes, saved_heads=True).lines()

    return end


def pick(folder: Path) -> Measured:
    """The heads that predict: cards of all, and the main setting by their records."""
    from raffect.runs.pick import pick_heads

    return partial(pick_heads, [folder / "run"], "last")


def write_report(folder: Path) -> Measured:
    """`raffect report`."""
    from raffect.reporting.report import report

    return partial(report, [folder / "run"], folder / "report")


STEPS = {
    "batches of a new sweep": partition_sweep,
    "records of a sweep that goes on": plan_sweep,
    "read_records": read_records,
    "write_tables": write_tables,
    "end of a sweep": conclude,
    "heads that predict": pick,
    "report": write_report,
}
