"""A data set from its drawn copy to scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import raffect
from raffect.datasets.frames import read_frames
from raffect.encoders.tower import load_encoder
from tests.helpers.banks import TINY

SHORT = {"epochs": 1, "batch_size": 8}


def go_through(layout: str, folder: Path, num_frames: int, extract: Callable, **more):
    """Scores after one epoch on a drawn copy."""
    root = folder / "set"
    raffect.write_synthetic(root, num_frames, seed=1, workers=1, layout=layout)
    prepared = raffect.prepare(
        raffect.PrepareConfig(dataset="auto", root=root, out=folder / "data")
    )
    extract(prepared.manifest, folder / "bank")
    task = max(prepared.labels)
    config = raffect.TrainConfig.from_recipe(
        "erm" if task != "va" else "va",
        SHORT,
        bank=folder / "bank",
        labels=prepared.labels[task],
        out=folder / "run",
        device="cpu",
        **more,
    )
    is_official = config.folds == "official"
    return (raffect.train_on_official_folds if is_official else raffect.train)(config)


def encode(manifest: Path, bank_path: Path) -> None:
    """A bank without Ray."""
    bank, rows = raffect.Bank(bank_path), raffect.read_manifest(manifest)
    plan, encoder = bank.extend_plan(rows, 64), load_encoder(TINY, "cpu")
    identity = encoder.identity
    bank.claim(identity)
    for shard in range(plan.num_shards):
        pictures = read_frames(rows.slice(plan.offsets[shard], 64))
        bank.commit(shard, plan.rows(shard), encoder.encode(pictures), {}, identity)
