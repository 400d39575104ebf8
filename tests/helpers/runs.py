"""Run folders made of statistics, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raffect.bank.facts import DataFacts, SplitFacts
from raffect.config import TuneConfig
from raffect.datasets.affwild2.tasks import EXPR
from raffect.datasets.tasks import Task
from raffect.metrics.scores import JudgedScore, Snapshot
from raffect.metrics.task_kinds import kind_of
from raffect.provenance import describe_run
from raffect.recipe import Recipe, with_settings
from raffect.runs.folder import RunFolder
from raffect.runs.group_statistics import Statistics
from raffect.runs.records import Curve, HeadRecord, PlannedHead, RunRecord
from raffect.runs.settings_file import to_toml
from raffect.storage.atomic import write_atomic
from tests.helpers.banks import IDENTITY

EPOCHS = 3
ERM = {"loss.alpha": 1.0, "sam.rho": 0.0}

Draw = Callable[[np.random.Generator, Mapping[str, Any]], np.ndarray]
"""Statistics of a head by group, shape (groups, A, B), from its settings."""


def draw_confusion(skill: float, groups: int = 6, classes: int = 8, frames: int = 80) -> np.ndarray:
    """Counts of a head that is right in a share of the frames; classes differ by group."""
    rng = np.random.default_rng(groups)
    true = rng.multinomial(frames, rng.dirichlet(np.full(classes, 2.0), groups))
    wrong = np.full((classes, classes), 1 / classes)
    return rng.multinomial(true, skill * np.eye(classes) + (1 - skill) * wrong)


def make_run(
    path: Path,
    settings: Sequence[Mapping[str, Any]],
    draw: Draw,
    *,
    task: Task = EXPR,
    seeds: int = 2,
    cv_scores: Sequence[float] = (),
    groups: Sequence[str] = (),
    fingerprint: str = "f" * 16,
    own: Mapping[str, Any] | None = None,
    command: Sequence[str] = ("raffect", "tune", "paper"),
    **facts: Any,
) -> RunFolder:
    """Write a sweep that has been trained.

    Args:
        path: Its folder.
        settings: Of its heads, by dotted name; all others are the defaults.
        draw: Makes the statistics behind a head's scores.
        task: What the heads predict.
        seeds: How many heads a setting has.
        cv_scores: For each setting its score on the one held-out fold that it is given; none
            without.
        groups: Names of the groups.
        fingerprint: Of the data.
        own: What its recipe sets; without it there is no config.toml.
        command: Words that are recorded.
        facts: Of the data, in place of the usual ones.
    """
    # The run
    folder, kind, rng = RunFolder(path), kind_of(task), np.random.default_rng(0)
    base = with_settings(Recipe(task=task.name), {"epochs": EPOCHS})
    first = draw(rng, with_settings(base, dict(settings[0])).settings)
    names = list(groups) or [f"v{k:02d}" for k in range(len(first))]
    usual = {
        "bank": "bank",
        "labels": "data",
        "bank_digest": "b" * 64,
        "labels_sha256": "c" * 64,
        "encoders": (IDENTITY,),
        "splits": {
            "train": SplitFacts(frames=900, groups=9),
            "validation": SplitFacts(frames=int(kind.count_frames(first).sum()), groups=len(names)),
        },
    }
    data = DataFacts(**{"task": task} | usual | facts)
    provenance = describe_run()
    object.__setattr__(provenance, "command", tuple(command))
    run = RunRecord(command="tune", fingerprint=fingerprint, run=provenance, data=data)
    write_atomic(path / "env.json", run.to_bytes())
    if own is not None:
        recipe = with_settings(base, dict(own))
        config = TuneConfig(**vars(recipe) | {"bank": path, "labels": path, "out": path})
        write_atomic(path / "config.toml", to_toml(config).encode())

    # Its heads
    for place, values in enumerate(settings):
        for seed in range(seeds):
            recipe = with_settings(base, dict(values) | {"seed": seed})
            snapshots: tuple[Snapshot, ...] = ("last", "best", *(("cv",) if cv_scores else ()))
            found = draw(rng, recipe.settings)
            head = PlannedHead(recipe)
            write_head(folder, head, data, fingerprint, dict.fromkeys(snapshots, found), names)
            if cv_scores:
                curve = (0.0, 0.0, cv_scores[place])
                fold = PlannedHead(recipe, 0, 2)
                write_head(folder, fold, data, fingerprint, {"last": found}, names, curve)
    return folder


def write_head(
    folder: RunFolder,
    head: PlannedHead,
    data: DataFacts,
    fingerprint: str,
    found: Mapping[Snapshot, np.ndarray],
    groups: Sequence[str],
    curve: tuple[float, ...] = (0.1, 0.2, 0.3),
) -> None:
    """Write a head's record, and its statistics at the last epoch."""
    task, kind, statistics = data.task, kind_of(data.task), found["last"]
    file = folder.write_statistics(Statistics(groups, {head.id: {EPOCHS: statistics}}))
    scores = {
        name: JudgedScore(**vars(kind.score(counts.sum(0), task)), epoch=EPOCHS)
        for name, counts in found.items()
    }
    folder.write_record(
        HeadRecord(
            id=head.id,
            task=task,
            recipe=head.recipe,
            fold=head.fold,
            num_folds=head.num_folds,
            fingerprint=fingerprint,
            group_name=data.group_name,
            status="done",
            cv_epoch=EPOCHS if "cv" in found else None,
            curve=Curve(lr=(0.1,) * EPOCHS, train_loss=(3.0, 2.0, 1.0), validation=curve),
            scores=scores,
            chance=kind.chance(statistics.sum(0), task),
            statistics=file,
        )
    )
