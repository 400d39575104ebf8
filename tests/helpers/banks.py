"""Manifests and banks that tests make up."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

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


LAST = 2**31 - 1
"""The last frame number that a manifest can hold."""
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


def draw_bank(
    path: Path, seed: int, identity: Identity = IDENTITY, shard_rows: int = 8
) -> tuple[Bank, dict[tuple[str, int], np.ndarray]]:
    """A bank of several generations, with gaps and rejects, and the feature of each frame.

    Each generation has frames of each video, so that those of one lie in many shards; names of
    videos are drawn, so that their order is another than that of the bank.
    """
    rng, bank, features = np.random.default_rng(seed), Bank(path), {}
    names = [f"v{k}" for k in rng.permutation(6)]
    frames = {name: rng.permutation(np.arange(1, rng.integers(4, 60))) for name in names}
    frames[names[0]] = np.array([1, 2, 4, LAST - 1, LAST])
    # Each generation adds a part of the frames; some frames of a video are never there
    kept = {name: part[: max(3, int(0.8 * len(part)))] for name, part in frames.items()}
    listed = set()
    for share in (0.4, 0.7, 1.0):
        listed |= {(v, int(f)) for v, part in kept.items() for f in part[: int(share * len(part))]}
        rows = sorted(listed)
        table = {"video": [v for v, _ in rows], "frame": pa.array([f for _, f in rows], pa.int32())}
        table |= {"path": [f"{v}/{f}" for v, f in rows], "root": ["/nowhere"] * len(rows)}
        plan = bank.extend_plan(pa.table(table), shard_rows)
        bank.claim(identity)
        for shard in sorted(set(range(plan.num_shards)) - set(bank.committed())):
            keys = [tuple(row.values()) for row in plan.rows(shard).to_pylist()]
            bad = {k: "damaged" for k in range(len(keys)) if rng.random() < 0.1}
            good = [key for k, key in enumerate(keys) if k not in bad]
            x = rng.normal(size=(len(good), identity.dim)).astype(np.float16)
            bank.commit(shard, plan.rows(shard), x, bad, identity)
            features |= dict(zip(good, x, strict=True))
    return bank, features


def load_stand_in(config, device, threads):
    """An encoder without torch, whose caveat is what its process looks like."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES")
    seen = [device, threads, os.nice(0), *(os.environ.get(name) for name in names)]
    return SimpleNamespace(
        identity=replace(IDENTITY, caveat=json.dumps(seen)),
        batch_size=8,
        encode=lambda frames: np.zeros((len(frames), IDENTITY.dim), np.float16),
        probe=lambda: 1.0,
    )
