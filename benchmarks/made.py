"""Data for benchmarks: a bank and labels of any size without pictures, and drawn faces as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from stand_in import IDENTITY
from tools import raffect

from raffect.bank.format import Bank, Identity
from raffect.datasets.affwild2.tasks import COMPLETE, COMPLETE_EXPR_COUNTS, EXPR
from raffect.storage.tables import write_table

AFF_WILD2 = tuple(COMPLETE[EXPR].with_image.values())
"""Frames of both splits with a label and an image."""
FRAMES_A_VIDEO = 2400
_NOISE = 6.0


def make_bank(
    folder: Path,
    train: int,
    validation: int,
    shard_rows: int | None = None,
    identity: Identity = IDENTITY,
    frames_a_video: int = FRAMES_A_VIDEO,
) -> tuple[Path, Path]:
    """Write ``bank/`` and ``data/labels/expr.parquet``, from which a head can learn.

    Classes are as frequent as in Aff-Wild2; a feature is the direction of its class plus noise.

    Returns:
        Their paths, as ``--bank`` and ``--labels`` take them.
    """
    # Keys of all frames, in videos that lie in one split each
    rng, rows = np.random.default_rng(0), train + validation
    length = min(frames_a_video, train // 4, validation // 4)
    number = np.arange(rows) // length
    names = pa.array([f"video{k:05d}" for k in range(number[-1] + 1)])
    video = pa.DictionaryArray.from_arrays(number.astype(np.int32), names)
    frame = (np.arange(rows) % length + 1).astype(np.int32)
    split = np.where(number < -(-train // length), "train", "validation")

    # Labels
    share = np.array(COMPLETE_EXPR_COUNTS["train"]) / sum(COMPLETE_EXPR_COUNTS["train"])
    expression = rng.choice(len(share), rows, p=share).astype(np.int8)
    labels = pa.table({"video": video, "frame": frame, "split": split, "expression": expression})
    metadata = {"task": "expr", "edition": "made up", "synthetic": "true"}
    write_table(labels, folder / "data" / "labels" / "expr.parquet", metadata)

    # Features, shard by shard
    bank = Bank(folder / "bank")
    plan = bank.extend_plan(pa.table({"video": video, "frame": frame}), shard_rows)
    bank.claim(identity)
    centres = rng.standard_normal((len(share), identity.dim), np.float32)
    for shard in range(plan.num_shards):
        begin, end = plan.offsets[shard], plan.offsets[shard + 1]
        noise = rng.standard_normal((end - begin, identity.dim), np.float32)
        features = (centres[expression[begin:end]] + _NOISE * noise).astype(np.float16)
        bank.commit(shard, plan.rows(shard), features, {}, identity)
    return bank.path, folder / "data"


def draw_faces(folder: Path, frames: int) -> Path:
    """Draw faces into ``faces/``, prepare them into ``data/``; returns the manifest's path."""
    # Not at the top: a process whose memory is measured does without.
    from raffect.config import PrepareConfig
    from raffect.datasets.prepare import prepare
    from raffect.datasets.synthetic.tree import EDITION, write_synthetic

    faces, out = folder / "faces", folder / "data"
    write_synthetic(faces, frames, 0)
    images = (faces / "cropped_aligned",)
    prepare(PrepareConfig(images=images, annotations=faces / EDITION, out=out))
    return out / "manifest.parquet"


def extract_faces(folder: Path, frames: int, seed: int) -> tuple[Path, Path]:
    """Draw faces, prepare and extract them by commands: the bank, and the folder of labels."""
    faces, data, bank = folder / "faces", folder / "data", folder / "bank"
    raffect("synth", out=faces, frames=frames, seed=seed)
    annotations = faces / "8th_ABAW_Annotations"
    raffect("prepare", images=faces / "cropped_aligned", annotations=annotations, out=data)
    encoder = ["--encoder.model", "raffect-faces"]
    raffect("extract", *encoder, manifest=data / "manifest.parquet", bank=bank)
    return bank, data
