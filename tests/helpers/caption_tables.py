"""Captions of a bank, the rows of their tables, and label tables and teachers to make them of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import raffect
from raffect.bank.format import Bank
from raffect.config import CaptionsConfig
from raffect.datasets.affwild2.tasks import AU
from raffect.datasets.labels import read_labels
from raffect.storage.tables import write_table
from tests.helpers.banks import IDENTITY, make_manifest


def make_captions(folder, out, **more):
    """Captions of ``folder/bank``; each test names their source."""
    return raffect.captions(CaptionsConfig(bank=folder / "bank", out=out, **more))


def rows_of(found):
    """The label table as it was written, a dict a row, with the caption of each row's target."""
    table = read_labels(found.out)
    captions = pq.read_table(found.targets)["caption"].to_pylist()
    return [row | {"caption": captions[row["target"]]} for row in table.to_pylist()]


def write_rows(path, task, rows, **metadata):
    """A label table of rows as dicts."""
    about = {"raffect": "labels/1", "task": task.to_bytes().decode(), **metadata}
    write_table(pa.Table.from_pylist(rows), path, about)
    return path


def au_rows(video, split, count=6, active=("AU12",), known=AU.columns):
    values = {name: int(name in active) if name in known else -1 for name in AU.columns}
    return [{"video": video, "frame": k + 1, "split": split} | values for k in range(count)]


def expr_rows(video, split, count=6):
    keys = {"video": video, "split": split, "expression": 4}
    return [keys | {"frame": k + 1} for k in range(count)]


def make_teacher(folder, counts, rejects=None, dim=6):
    """A bank of other vectors; row k has k + 1 in its first place, so that each is its own."""
    manifest = make_manifest(counts)
    bank = Bank(folder)
    plan = bank.extend_plan(manifest, 16)
    bank.claim(IDENTITY)
    rng = np.random.default_rng(1)
    for shard in range(plan.num_shards):
        bad = (rejects or {}).get(shard, {})
        x = rng.normal(size=(len(plan.rows(shard)) - len(bad), dim)).astype(np.float16)
        bank.commit(shard, plan.rows(shard), x, bad, IDENTITY)
    return folder
