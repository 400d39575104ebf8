"""A bank and labels of any size without pictures: features that a head can learn from, for benchmarks that begin at the bank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from stand_in import DIM, IDENTITY

from raffect.bank.format import Bank
from raffect.datasets.affwild2.tasks import COMPLETE, COMPLETE_EXPR_COUNTS, EXPR
from raffect.storage.tables import write_table

AFF_WILD2 = tuple(COMPLETE[EXPR].with_image.values())
"""Frames of both splits with a label and an image."""
FRAMES_A_VIDEO = 2400
_NOISE = 6.0


def make_bank(
    folder: Path, train: int, validation: int, shard_rows: int | None = None
) -> tuple[Path, Path]:
    """Write ``bank/`` and ``data/labels/expr.parquet``; classes are as frequent as in Aff-Wild2, features a class's own direction and noise.

    Returns:
        Their paths, as ``--bank`` and ``--labels`` take them.
    """
    rng, rows = np.random.default_rng(0), train + validation
    length = min(FRAMES_A_VIDEO, train // 4, validation // 4)
    number = np.arange(rows) // length
    video = pa.DictionaryArray.from_arrays(
        number.astype(np.int32), pa.array([f"video{k:05d}" for k in range(number[-1] + 1)])
    )
    frame = (np.arange(rows) % length + 1).astype(np.int32)
    share = np.array(COMPLETE_EXPR_COUNTS["train"]) / sum(COMPLETE_EXPR_COUNTS["train"])
    expression = rng.choice(len(share), rows, p=share).astype(np.int8)
    split = np.where(number < -(-train // length), "train", "validation")
    labels = pa.table({"video": video, "frame": frame, "split": split, "expression": expression})
    write_table(
        labels,
        folder / "data" / "labels" / "expr.parquet",
        {"task": "expr", "edition": "made up", "synthetic": "true"},
    )
    bank = Bank(folder / "bank")
    plan = bank.extend_plan(pa.table({"video": video, "frame": frame}), shard_rows)
    bank.claim(IDENTITY)
    centres = rng.standard_normal((len(share), DIM), np.float32)
    for shard in range(plan.num_shards):
        begin, end = plan.offsets[shard], plan.offsets[shard + 1]
        features = centres[expression[begin:end]] + _NOISE * rng.standard_normal(
            (end - begin, DIM), np.float32
        )
        bank.commit(shard, plan.rows(shard), features.astype(np.float16), {}, IDENTITY)
    return bank.path, folder / "data"
