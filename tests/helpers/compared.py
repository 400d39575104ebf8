"""Banks of the same frames with other features, and settings to compare them quickly."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raffect.bank.format import Bank
from raffect.config import CompareConfig
from tests.helpers.learning import IDENTITY, make_data


def rewrite_bank(source, path, change, rejects=()):
    """The frames of a bank with other features, as another encoder would give them."""
    old, new = Bank(source), Bank(path)
    frames = old.plan.table.append_column("path", old.plan.table["video"].cast(pa.string()))
    plan = new.extend_plan(frames.append_column("root", frames["path"]), 64)
    identity = replace(IDENTITY, weights_sha256="b" * 64, caveat="another encoder of a test")
    new.claim(identity)
    for shard in range(plan.num_shards):
        x = read_shard(old, shard)
        bad = {row: "damaged" for number, row in rejects if number == shard}
        keys, x = plan.rows(shard), np.delete(change(x), sorted(bad), axis=0)
        new.commit(shard, keys, x, bad, identity)


def read_shard(bank, shard):
    column = pq.read_table(bank.shard_path(shard))["feature"]
    return np.frombuffer(b"".join(column.to_pylist()), "<f2").reshape(len(column), -1)


def noisy(x):
    return (x + np.random.default_rng(5).normal(scale=4, size=x.shape)).astype(np.float16)


QUICK = """
epochs = 6
batch_size = 32
head = {dropout = 0.0}
loss = {alpha = 1.0}
sam = {rho = 0.0}
optim = {lr = 0.01}
"""


def make_two_banks(folder):
    """Two banks of the same frames: one whose features show the labels, one with noise on them."""
    make_data(folder, videos=18)
    rewrite_bank(folder / "bank", folder / "noisy", noisy)
    (folder / "quick.toml").write_text(QUICK)
    return folder


def config_of(world, **more):
    banks = (world / "noisy", world / "bank")
    settings = {"banks": banks, "labels": world, "task": "expr", "out": world / "compare"}
    return CompareConfig(
        **{
            **settings,
            "recipe": (str(world / "quick.toml"),),
            "num_seeds": 3,
            "device": "cpu",
            **more,
        }
    )
