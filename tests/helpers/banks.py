"""Manifests and banks that tests make up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.format import Bank, Identity
from raffect.config import EncoderConfig

TINY = EncoderConfig(model="raffect-faces", weights="embedded")


def make_manifest(counts: dict[str, int], root: str = "/nowhere") -> pa.Table:
    """A manifest of frames 1..n a video, without files."""
    video = [name for name in sorted(counts) for _ in range(counts[name])]
    frame = [k for name in sorted(counts) for k in range(1, counts[name] + 1)]
    path = [f"{name}/{k:05d}.jpg" for name, k in zip(video, frame, strict=True)]
    return pa.table(
        {
            "video": pa.array(video).dictionary_encode(),
            "frame": pa.array(frame, pa.int32()),
            "path": path,
            "root": pa.array([root] * len(video)).dictionary_encode(),
        }
    )


IDENTITY = Identity(
    model="m",
    weights_sha256="a" * 64,
    weights="random:0",
    preprocess={"size": 4},
    precision="float32",
    dim=6,
)


def fill_bank(
    path: Path,
    manifest: pa.Table,
    shard_rows: int = 16,
    rejects: dict[int, dict[int, str]] | None = None,
    identity: Identity = IDENTITY,
) -> Bank:
    """A finished bank; row k of the plan has the feature k, k+0.25, ..., so that all differ."""
    bank = Bank(path)
    plan = bank.extend_plan(manifest, shard_rows)
    bank.claim(identity)
    for shard in range(plan.num_shards):
        rows = np.arange(plan.offsets[shard], plan.offsets[shard + 1])
        bad = (rejects or {}).get(shard, {})
        good = np.delete(rows, sorted(bad))
        features = (good[:, None] + np.arange(identity.dim) / 4).astype(np.float16)
        bank.commit(shard, plan.rows(shard), features, bad, identity)
    return bank
