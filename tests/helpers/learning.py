"""A small bank whose features carry their labels, and the commands that learn from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.format import Bank, Identity
from raffect.datasets.affwild2.tasks import AU
from raffect.storage.tables import write_table

DIM = 24
IDENTITY = Identity(
    model="m",
    weights_sha256="a" * 64,
    weights="random:0",
    preprocess={"size": 4},
    precision="float32",
    dim=DIM,
    caveat="made by a test",
)
LEARN = ["--loss.alpha", "1", "--optim.lr", "0.01", "--head.dropout", "0", "--epochs", "10"]
FAST = ["--epochs", "3", "--head.width", "16", "--head.depth", "2", "--device", "cpu"]


def make_data(folder: Path, seed=0, videos=12, length=40, change=None):
    """A bank whose features carry the labels of both tasks, and the label tables."""
    # Labels, and features that show them.
    rng = np.random.default_rng(seed)
    names = [f"v{k:02d}" for k in range(videos) for _ in range(length)]
    frames = np.tile(np.arange(1, length + 1), videos).astype(np.int32)
    expr = rng.integers(0, 8, len(names))
    x = rng.normal(size=(len(names), DIM))
    x[np.arange(len(names)), expr] += 2.5
    au = (x[:, 8:20] > 0.3).astype(np.int8)
    au[rng.random(au.shape) < 0.05] = -1
    x = x.astype(np.float16)
    if change is not None:
        change(x, expr, au)
    # The bank.
    split = np.where(np.repeat(np.arange(videos) % 3 == 2, length), "validation", "train")
    manifest = pa.table({"video": names, "frame": frames, "path": names, "root": names})
    bank = Bank(folder / "bank")
    plan = bank.extend_plan(manifest, 64)
    bank.claim(IDENTITY)
    for shard in range(plan.num_shards):
        rows = slice(plan.offsets[shard], plan.offsets[shard + 1])
        bank.commit(shard, plan.rows(shard), x[rows], {}, IDENTITY)
    # The label tables.
    video, split = (pa.array(values).dictionary_encode() for values in (names, split))
    keys = {"video": video, "frame": frames, "split": split}
    meta = {"raffect": "labels/1", "edition": "test", "digest": "", "synthetic": "true"}
    labels = {
        "expr": {"expression": expr.astype(np.int8)},
        "au": {name: au[:, k] for k, name in enumerate(AU.columns)},
    }
    for task, columns in labels.items():
        path = folder / "labels" / f"{task}.parquet"
        write_table(pa.table(keys | columns), path, meta | {"task": task})
    return folder


def words(command, data, out, *more, recipe="paper", task="expr"):
    """A command line of a small run."""
    inputs = ["--task", task, "--bank", str(data / "bank"), "--labels", str(data)]
    return [command, recipe, *inputs, "--out", str(out), *FAST, *more]


def scores_of(out):
    return json.loads((out / "metrics.json").read_text())


def sweep_words(data, out, *more, space=("loss.alpha=0.3,1", "seed=0,1")):
    """A command line of a small sweep."""
    return words("tune", data, out, "--space", *space, *more)


def read_heads(out):
    """Records of a run's heads as JSON objects."""
    return [json.loads(path.read_text()) for path in (out / "heads").glob("*.json")]


def judge_words(run, data, *more):
    """A command line of `raffect evaluate` on the CPU."""
    bank = ["--bank", str(data / "bank"), "--labels", str(data)]
    return ["evaluate", *bank, "--run", str(run), "--device", "cpu", *more]


def write_times(folder):
    """When each file below a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
