"""A teacher: another bank's vectors of the same frames and clips are the targets."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.datasets.affwild2.tasks import EXPR
from raffect.datasets.labels import read_labels, write_clip_labels
from raffect.datasets.targets import read_targets
from tests.helpers.banks import IDENTITY, make_manifest
from tests.helpers.caption_tables import (
    make_captions,
    make_teacher,
)
from tests.helpers.texts import LENGTH, unit

# A teacher


def test_a_teachers_vectors_are_the_targets_of_the_same_frames(texts, tmp_path):
    counts = {f"v{k:02d}": LENGTH for k in range(11)}
    teacher = make_teacher(tmp_path / "teacher", counts, {0: {2: "broken", 5: "broken"}})
    source = {"teacher": teacher, "labels": texts / "labels" / "expr.parquet"}
    found = make_captions(texts, tmp_path / "c.parquet", **source)
    table = read_labels(found.out)
    targets = read_targets(found.out, table)
    assert (targets.facts.image_sha256, targets.facts.dim) == ("", 6)
    assert "caption" not in pq.read_schema(found.targets).names
    vectors = {}
    labels = read_labels(texts / "labels" / "expr.parquet")
    for split in ("train", "validation"):
        own = read_features(Bank(teacher), labels, EXPR, split)
        for k, x in enumerate(own.x.astype(np.float64)):
            vectors[own.videos[own.video[k]], own.frame[k]] = unit(x)
    for row in table.to_pylist():
        found_vector = targets.vectors[row["target"]].astype(np.float64)
        np.testing.assert_allclose(found_vector, vectors[row["video"], row["frame"]], atol=1e-3)
    assert len(table) == len(vectors) == 11 * LENGTH - 2
    (lacking,) = found.facts.left_out
    assert lacking.what == "frames that the teacher teacher does not have"
    assert (lacking.rows, lacking.videos) == (LENGTH + 2, 2)


def test_a_teachers_vector_of_a_clip_is_the_mean_and_equal_vectors_are_one_target(texts, tmp_path):
    clips = pa.table(
        {
            "video": ["v00", "v00", "v01", "v02"],
            "start": [1, 5, 1, 1],
            "end": [4, 9, 4, 3],
            "split": ["train", "train", "train", "validation"],
            "expression": [0, 1, 2, 3],
        }
    )
    write_clip_labels(tmp_path / "clips.parquet", clips, EXPR)
    bank = Bank(tmp_path / "teacher")
    bank.extend_plan(make_manifest({"v00": 9, "v01": 9, "v02": 9}), 32)
    bank.claim(IDENTITY)
    x = np.random.default_rng(2).normal(size=(27, 6)).astype(np.float16)
    x[9:13] = x[:4]
    bank.commit(0, bank.plan.rows(0), x, {}, IDENTITY)
    source = {"teacher": tmp_path / "teacher", "labels": tmp_path / "clips.parquet"}
    found = make_captions(texts, tmp_path / "c.parquet", **source)
    vectors = read_targets(found.out, read_labels(found.out)).vectors.astype(np.float64)
    rows = found.table.to_pylist()
    assert rows[0]["target"] == rows[2]["target"]
    assert found.num_targets == 3
    for row, (low, high) in zip(rows, ((0, 4), (4, 9), (9, 13), (18, 21)), strict=True):
        expected = unit(unit(x[low:high].astype(np.float64)).mean(0))
        np.testing.assert_allclose(vectors[row["target"]], expected, atol=2e-3)
