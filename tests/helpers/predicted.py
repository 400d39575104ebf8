"""A bank of two generations, heads of three tasks, and `raffect predict` on them."""

import numpy as np

import raffect
from raffect.recipe import HeadConfig, Recipe
from tests.helpers.banks import IDENTITY

FIRST = {"b": 9, "a_left": 14, "c": 3}
THEN = {"a": 5, "a_left": 31, "b": 9, "c": 40}
BAD = [("a_left", 2), ("b", 9), ("c", 17)]
PROBE = Recipe(task="expr", head=HeadConfig(depth=0, normalise="l2"))


def fill(bank, manifest, rng):
    """Commit every planned shard that has no record; returns features by key."""
    plan, features = bank.extend_plan(manifest, 8), {}
    bank.claim(IDENTITY)
    for shard in sorted(set(range(plan.num_shards)) - set(bank.committed())):
        keys = [tuple(row.values()) for row in plan.rows(shard).to_pylist()]
        bad = {k: "damaged" for k, key in enumerate(keys) if key in BAD}
        good = [key for key in keys if key not in BAD]
        x = rng.normal(size=(len(good), IDENTITY.dim)).astype(np.float16)
        bank.commit(shard, plan.rows(shard), x, bad, IDENTITY)
        features |= dict(zip(good, x, strict=True))
    return features


def predict(tmp_path, *names, **more):
    paths = tuple(tmp_path / name for name in names)
    usual = {"bank": tmp_path / "bank", "out": tmp_path / "p.parquet", "head": paths}
    return raffect.predict(raffect.PredictConfig(**usual | more))


def brute_force(scores, windows):
    """Means over windows by a plain loop; frames that are not there are in none."""
    out = {}
    for video, frame in scores:
        out[video, frame] = [
            np.mean([scores[v, f][k] for v, f in scores if v == video and abs(f - frame) <= w])
            for k, w in enumerate(windows)
        ]
    return out
