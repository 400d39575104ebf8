"""Two made-up data sets whose features show the same things under other names and numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.format import Bank
from raffect.config import TrainConfig
from raffect.datasets.expressions import expression_task
from raffect.datasets.labels import write_labels
from raffect.datasets.tasks import Task
from raffect.training.train import train
from tests.helpers.learning import DIM, IDENTITY

SHOWN = ("happiness", "sadness", "neutral", "anger", "fear", "contempt")
"""What a feature shows: its place in SHOWN is the number of the feature that is raised."""
FIRST = expression_task(("Happiness", "Sadness", "Neutral", "Anger", "Fear"))
SECOND = expression_task(("Angry", "Contempt", "neutral", "Happy", "Sad"))
COMMON = ("Happiness", "Sadness", "Neutral", "Anger")
"""What both have, in the first one's names and order."""
WORDS = {"angry": "anger", "happy": "happiness", "sad": "sadness"}


def labels_task(names: tuple[str, ...]) -> Task:
    """Units as labels, each in a column of its own name."""
    return Task(name="au", kind="multilabel", outputs=names, columns=names)


def make_set(folder: Path, task: Task, seed: int, videos: int = 9, length: int = 40) -> Path:
    """A bank and the labels of a task; a tenth is unlabelled."""
    rng = np.random.default_rng(seed)
    names = [f"{folder.name}{k:02d}" for k in range(videos) for _ in range(length)]
    frame = np.tile(np.arange(1, length + 1), videos).astype(np.int32)
    known = rng.random(len(names)) > 0.1
    x = rng.normal(size=(len(names), DIM))
    if task.kind == "multiclass":
        label = rng.choice(len(task.outputs), len(names), p=_shares(len(task.outputs)))
        shown = [SHOWN.index(WORDS.get(name.lower(), name.lower())) for name in task.outputs]
        x[np.arange(len(names)), np.array(shown)[label]] += 2.0
        columns = {task.columns[0]: np.where(known, label, -1).astype(np.int16)}
    else:
        label = {name: rng.random(len(names)) < 0.3 for name in task.outputs}
        for name, active in label.items():
            x[active, int(name[2:])] += 2.0
        known_of = {name: rng.random(len(names)) > 0.4 for name in task.outputs}
        columns = {
            name: np.where(known_of[name], active, -1).astype(np.int8)
            for name, active in label.items()
        }
    split = np.where(np.repeat(np.arange(videos) % 2 == 1, length), "validation", "train")
    manifest = pa.table({"video": names, "frame": frame, "path": names, "root": names})
    bank = Bank(folder / "bank")
    plan = bank.extend_plan(manifest, 64)
    bank.claim(IDENTITY)
    for shard in range(plan.num_shards):
        rows = slice(plan.offsets[shard], plan.offsets[shard + 1])
        bank.commit(shard, plan.rows(shard), x[rows].astype(np.float16), {}, IDENTITY)
    keys = {"video": names, "frame": frame, "split": split}
    write_labels(folder / "labels" / f"{task.name}.parquet", pa.table(keys | columns), task)
    return folder


def _shares(count: int) -> np.ndarray:
    weights = np.arange(count, 0, -1)
    return weights / weights.sum()


def train_on(data: Path, out: Path, task: str = "expr", **settings) -> Path:
    """A run of two seeds that learns what features show."""
    values = {"epochs": 6, "batch_size": 16, "optim.lr": 0.02, "head.dropout": 0.0}
    places = {"bank": data / "bank", "labels": data, "task": task, "out": out}
    config = TrainConfig.from_recipe("erm", values | settings, **places, num_seeds=2, device="cpu")
    train(config)
    return out
