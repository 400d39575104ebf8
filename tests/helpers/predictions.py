"""Tables of predictions that tests make up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.datasets.tasks import Task
from raffect.predictions.columns import Predicted, as_table
from raffect.predictions.rules import DecisionRules, WeightedHead, plain_rules
from raffect.predictions.table import PredictionFacts, write_predictions
from raffect.provenance import describe_run
from tests.helpers.banks import IDENTITY

HEADS = (WeightedHead(folder="runs/a", sha256="a" * 64),)


def make_facts(rules: Sequence[DecisionRules], **more: object) -> PredictionFacts:
    """Facts of a table of some rules."""
    usual = {"bank": "bank", "bank_digest": "b" * 64, "encoders": (IDENTITY,)}
    return PredictionFacts(**usual | {"rules": tuple(rules), "run": describe_run()} | more)


def draw_scores(task: Task, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Probabilities or values of a task, float32, shape (rows, C)."""
    outputs = len(task.outputs)
    if task.kind == "multiclass":
        return rng.dirichlet(np.full(outputs, 0.5), rows).astype(np.float32)
    if task.kind == "multilabel":
        return rng.random((rows, outputs), np.float32)
    return rng.uniform(-1, 1, (rows, outputs)).astype(np.float32)


def make_table(
    path: Path,
    rules: Sequence[DecisionRules] | Sequence[Task],
    frames: Mapping[str, Sequence[int]],
    without: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """Write a table.

    Args:
        path: The file.
        rules: Of its tasks, or the tasks, whose rules are then the plain ones.
        frames: Predicted frames of each video.
        without: Frames that have a row and no prediction.
        seed: Of the scores.

    Returns:
        Scores by task of each predicted frame.
    """
    rules = [one if isinstance(one, DecisionRules) else plain_rules(one, HEADS) for one in rules]
    rng, tasks = np.random.default_rng(seed), [one.task for one in rules]
    keys = [(name, frame, "ok") for name in frames for frame in frames[name]]
    keys += [(name, k, "unreadable") for name, some in (without or {}).items() for k in some]
    keys.sort()
    is_bad = np.array([status != "ok" for *_, status in keys])
    predicted = {}
    for one in rules:
        scores = draw_scores(one.task, len(keys), rng)
        scores[is_bad] = np.nan
        predicted[one.task.name] = Predicted(scores, one.decide(scores))
    columns = list(zip(*keys, strict=True))
    table = pa.table(dict(zip(("video", "frame", "status"), map(pa.array, columns), strict=True)))
    facts = make_facts(rules)
    with write_predictions(path, facts) as writer:
        writer.write(as_table(table, predicted, tasks, facts.model))
    return {
        (name, frame): {task: found.scores[row] for task, found in predicted.items()}
        for row, (name, frame, status) in enumerate(keys)
        if status == "ok"
    }
