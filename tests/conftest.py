"""What tests share: one drawn data set, one prepared folder, one Ray; all made here, nothing is downloaded."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

# Before anything imports Ray.
os.environ.update(RAY_ENABLE_UV_RUN_RUNTIME_ENV="0", RAY_BACKEND_LOG_LEVEL="fatal", HF_HUB_OFFLINE="1")
os.environ.pop("RAY_ADDRESS", None)
with socket.socket() as _free:
    _free.bind(("127.0.0.1", 0))
    S3_PORT = _free.getsockname()[1]
# Ray's workers have the environment of the time when Ray started; the server itself starts with the test that needs it.
os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="y", AWS_DEFAULT_REGION="us-east-1", AWS_ENDPOINT_URL=f"http://127.0.0.1:{S3_PORT}")

from raffect.bank.format import Bank, Identity
from raffect.config import EncoderConfig, PrepareConfig
from raffect.datasets.prepare import prepare
from raffect.datasets.synthetic.tree import EDITION, write_synthetic

TINY = EncoderConfig(model="raffect-faces", weights="embedded")


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Path:
    """A drawn data set of 600 lines."""
    out = tmp_path_factory.mktemp("faces")
    write_synthetic(out, 600, seed=3, workers=2)
    return out


@pytest.fixture(scope="session")
def prepared(tree, tmp_path_factory) -> Path:
    """Manifest and labels of ``tree``."""
    out = tmp_path_factory.mktemp("data")
    prepare(PrepareConfig(images=(tree / "cropped_aligned",), annotations=tree / EDITION, out=out))
    return out


@pytest.fixture(scope="session")
def local_ray():
    """One small Ray for every test that needs one."""
    import ray

    for attempt in (1, 2):
        try:
            ray.init(address="local", num_cpus=4, num_gpus=0, include_dashboard=False, object_store_memory=400_000_000, log_to_driver=False, logging_level="ERROR")
            break
        except Exception:  # on a loaded machine; Ray has no class for it
            ray.shutdown()
            if attempt == 2:
                raise
    yield
    ray.shutdown()


def make_manifest(counts: dict[str, int], root: str = "/nowhere") -> pa.Table:
    """A manifest of frames 1..n a video, without files."""
    video = [name for name in sorted(counts) for _ in range(counts[name])]
    frame = [k for name in sorted(counts) for k in range(1, counts[name] + 1)]
    path = [f"{name}/{k:05d}.jpg" for name, k in zip(video, frame, strict=True)]
    return pa.table({"video": pa.array(video).dictionary_encode(), "frame": pa.array(frame, pa.int32()), "path": path, "root": pa.array([root] * len(video)).dictionary_encode()})


IDENTITY = Identity(model="m", weights_sha256="a" * 64, weights="random:0", preprocess={"size": 4}, precision="float32", dim=6)


def fill_bank(path: Path, manifest: pa.Table, shard_rows: int = 16, rejects: dict[int, dict[int, str]] | None = None, identity: Identity = IDENTITY) -> Bank:
    """A finished bank whose feature of row k of the plan is k, k+0.25, ... (so that a test can tell them apart)."""
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
