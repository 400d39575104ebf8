"""Label tables whose targets are vectors, on the small bank of `tests.helpers.learning`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raffect.datasets.affwild2.tasks import EXPR
from raffect.datasets.labels import read_labels
from raffect.datasets.targets import contrastive_task, write_targets
from raffect.datasets.tasks import Task
from tests.helpers.learning import DIM, IDENTITY

CAPTIONS = contrastive_task("captions", EXPR.outputs)
HEAD = [
    *("--head.kind", "temporal", "--head.width", "16", "--head.layers", "1"),
    *("--head.attention-heads", "2", "--head.dropout", "0", "--loss.alpha", "1", "--sam.rho", "0"),
    *("--optim.lr", "0.01", "--epochs", "3", "--device", "cpu"),
]
"""Settings of a small head for captions."""


def caption_vectors(seed: int = 0) -> np.ndarray:
    """Two captions of each expression, near to each other and to what features show of it."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(16, DIM)) / 10
    found[np.arange(16), np.arange(16) // 2] += 1
    return found


def add_captions(
    data: Path,
    vectors: np.ndarray | None = None,
    task: Task = CAPTIONS,
    image_sha256: str = IDENTITY.weights_sha256,
) -> Path:
    """Write ``captions.parquet`` and its vectors into a folder of their own beside ``data``."""
    labels = read_labels(data / "labels" / "expr.parquet")
    expression = labels["expression"].to_numpy().astype(np.int32)
    target = 2 * expression + np.arange(len(labels), dtype=np.int32) % 2
    rows = labels.select(["video", "frame", "split"])
    rows = rows.append_column("target", [target]).append_column("class", [expression])
    path = data / "captions" / f"{task.name}.parquet"
    path.parent.mkdir(exist_ok=True)
    vectors = caption_vectors() if vectors is None else vectors
    names = [f"{EXPR.outputs[k // 2]} {k % 2}" for k in range(len(vectors))]
    write_targets(
        path,
        rows.select(["video", "frame", "split", *task.columns]),
        task,
        vectors,
        captions=names,
        image_sha256=image_sha256,
        source=labels,
    )
    return path
