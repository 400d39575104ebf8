"""A bank whose features are texts: each frame is the vector of a prompt of its class, plus noise.

The encoder is the embedded one, so its text tower goes with the bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raffect.bank.format import Bank, Identity
from raffect.config import EncoderConfig
from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.datasets.labels import read_labels
from raffect.datasets.targets import contrastive_task, write_targets
from raffect.encoders.text import open_text_encoder
from raffect.encoders.tower import load_encoder
from raffect.language.prompt_sets import prompts_for
from raffect.storage.tables import write_table

VIDEOS, LENGTH = 12, 30


@cache
def embedded() -> Identity:
    """What a bank of the embedded encoder records."""
    return load_encoder(EncoderConfig(model="raffect-faces"), "cpu").identity


def make_text_bank(folder: Path, seed: int = 0, noise: float = 2.0) -> Path:
    """``bank/`` and ``labels/{expr,au,va}.parquet``; the last class of expr is noise alone."""
    # Labels: a class a frame, and half of the units' texts added up
    rng, rows = np.random.default_rng(seed), VIDEOS * LENGTH
    names = [f"v{k:02d}" for k in range(VIDEOS) for _ in range(LENGTH)]
    frames = np.tile(np.arange(1, LENGTH + 1), VIDEOS).astype(np.int32)
    split = np.where(np.repeat(np.arange(VIDEOS) % 3 == 2, LENGTH), "validation", "train")
    expr = rng.integers(0, len(EXPR.outputs), rows)
    au = (rng.random((rows, len(AU.outputs))) < 0.2).astype(np.int8)

    # Features
    encoder = open_text_encoder(embedded(), folder)
    vectors = [
        None if parts is None else unit(encoder.encode(parts[0]))[0]
        for parts in prompts_for("facs", EXPR).outputs.values()
    ]
    dim = encoder.identity.dim
    x = np.stack([np.zeros(dim) if (v := vectors[k]) is None else v for k in expr])
    x = 3 * x + noise * rng.normal(size=x.shape) / np.sqrt(dim) * 3

    # The bank, and label tables
    manifest = pa.table({"video": names, "frame": frames, "path": names, "root": names})
    bank = Bank(folder / "bank")
    plan = bank.extend_plan(manifest, 64)
    bank.claim(embedded())
    for shard in range(plan.num_shards):
        begin, end = plan.offsets[shard], plan.offsets[shard + 1]
        bank.commit(shard, plan.rows(shard), x[begin:end].astype(np.float16), {}, embedded())
    keys = {"video": names, "frame": frames, "split": split}
    meta = {"raffect": "labels/1", "edition": "test", "digest": "", "synthetic": "true"}
    labels = {
        EXPR: {"expression": expr.astype(np.int8)},
        AU: {name: au[:, k] for k, name in enumerate(AU.columns)},
        VA: {
            name: (x[:, k] / 10).clip(-1, 1).astype(np.float32) for k, name in enumerate(VA.columns)
        },
    }
    for task, columns in labels.items():
        table = pa.table(keys | {name: pa.array(values) for name, values in columns.items()})
        path = folder / "labels" / f"{task.name}.parquet"
        write_table(table, path, meta | {"task": task.to_bytes().decode()})
    return folder


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def text_bank(tmp_path_factory):
    """Fixture: ``bank/`` and ``labels/`` of frames that are vectors of prompts, and a cache of
    prompts of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAFFECT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield make_text_bank(tmp_path_factory.mktemp("texts"))


def write_class_captions(
    texts: Path,
    file: Path,
    names: Sequence[str] = EXPR.outputs[:7],
    image_sha256: str = embedded().weights_sha256,
) -> Path:
    """Captions of the classes of a bank of texts, one a frame that shows one of them.

    Args:
        texts: Of `make_text_bank`.
        file: The label table.
        names: Classes, whose number is that of their vector.
        image_sha256: Of the weights of the texts; empty to have them as vectors of a teacher.
    """
    labels = read_labels(texts / "labels" / "expr.parquet")
    number = labels["expression"].to_numpy()
    kept = labels.filter(pa.array(number < len(names)))
    number = number[number < len(names)].astype(np.int32)
    rows = kept.select(["video", "frame", "split"])
    rows = rows.append_column("target", pa.array(number)).append_column("class", pa.array(number))
    encoder = open_text_encoder(embedded(), texts)
    captions = [prompts_for("facs", EXPR).outputs[name][0][0] for name in names]
    write_targets(
        file,
        rows,
        contrastive_task("captions", names),
        encoder.encode(captions),
        captions=captions,
        image_sha256=image_sha256,
        source=labels,
    )
    return file
