"""Vectors that label tables name: written, read back, refused if they are others or hostile."""

import hashlib
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raffect.datasets.labels import read_labels
from raffect.datasets.targets import contrastive_task, read_targets, write_targets
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.storage.tables import read_metadata

TASK = contrastive_task("captions", ("Anger", "Joy"))
VECTORS = np.random.default_rng(0).normal(size=(5, 7)) * 3


def make_rows(targets=(0, 4, 2, 2), classes=(0, 1, 1, 0)):
    count = len(targets)
    return pa.table(
        {
            "video": ["v"] * count,
            "frame": pa.array(range(1, count + 1), pa.int32()),
            "split": ["train"] * count,
            "target": pa.array(targets, pa.int32()),
            "class": pa.array(classes, pa.int8()),
        }
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "captions.parquet"


def rewrite(path, vectors, name="vector", **facts):
    """Other vectors under the table's own hash: a file that is not damaged, but hostile."""
    file = path.with_name("captions.targets.parquet")
    pq.write_table(pa.table({name: vectors}), file)
    table = pq.read_table(path)
    meta = read_metadata(table)
    found = json.loads(meta["targets"]) | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    meta["targets"] = json.dumps(found | facts)
    pq.write_table(table.replace_schema_metadata(meta), path)


def lists(values, dim, kind=np.float16):
    return pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(values, kind).ravel()), dim)


def read_back(path):
    return read_targets(path, read_labels(path))


def test_targets_come_back_as_vectors_of_length_1(path):
    written = write_targets(path, make_rows(), TASK, VECTORS, image_sha256="a" * 64)
    found = read_back(path)
    assert found.facts == written
    assert (found.facts.count, found.facts.dim, found.facts.image_sha256) == (5, 7, "a" * 64)
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    np.testing.assert_array_equal(found.vectors, unit.astype(np.float16))
    assert Task.from_json(read_metadata(read_labels(path))["task"], path) == TASK


def test_vectors_too_large_for_float16_keep_their_direction(path):
    write_targets(path, make_rows(), TASK, VECTORS * 1e30)
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    np.testing.assert_allclose(read_back(path).vectors, unit, atol=5e-4)


def test_captions_stand_beside_vectors_and_are_never_read(path):
    write_targets(path, make_rows(), TASK, VECTORS, captions=list("abcde"))
    table = pq.read_table(path.with_name("captions.targets.parquet"))
    assert table["caption"].to_pylist() == list("abcde")
    assert not hasattr(read_back(path), "captions")


def test_many_vectors_are_written_and_read_without_copies(path):
    vectors = np.random.default_rng(0).normal(size=(100_000, 32)).astype(np.float16)
    peaks = []
    for work in (lambda: write_targets(path, make_rows(), TASK, vectors), lambda: read_back(path)):
        tracemalloc.start()  # of Python and numpy, not of Arrow
        found = work()
        peaks.append(tracemalloc.get_traced_memory()[1] / vectors.nbytes)
        tracemalloc.stop()
    assert peaks[0] < 1.7  # those of length 1, and some at a time in float64
    assert peaks[1] < 0.5
    assert found.vectors.flags.writeable  # torch warns of arrays that are not


def test_a_table_of_clips_has_targets_too(path):
    rows = make_rows().rename_columns(["video", "start", "split", "target", "class"])
    rows = rows.append_column("end", pa.array([9] * len(rows), pa.int32()))
    write_targets(path, rows, TASK, VECTORS)
    assert read_labels(path)["end"].to_pylist() == [9] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": make_rows((0, 5, 2, 2))}, r"1 rows name no target, first row 1 \(5\); expected"),
        ({"rows": make_rows((0, -2, 2, 2))}, "name no target"),
        ({"rows": make_rows().drop_columns("class")}, "expected one column 'class'|'class' is mis"),
        ({"vectors": VECTORS[0]}, "expected \\(V, E\\)"),
        ({"vectors": np.where(np.arange(7) == 3, np.nan, VECTORS)}, "5 vectors are not finite"),
        ({"vectors": VECTORS * np.array([1, 1, 0, 1, 1])[:, None]}, "all 0, first number 2"),
        ({"captions": ["a"]}, "1 captions of 5 vectors"),
    ],
)
def test_wrong_targets_are_refused_before_anything_is_written(change, message, path):
    arguments = {"rows": make_rows(), "vectors": VECTORS, "captions": ()} | change
    rows, vectors = arguments.pop("rows"), arguments.pop("vectors")
    with pytest.raises(RaffectError, match=message):
        write_targets(path, rows, TASK, vectors, **arguments)
    assert not list(path.parent.iterdir())


def test_missing_or_other_vectors_are_refused(path):
    write_targets(path, make_rows(), TASK, VECTORS)
    file = path.with_name("captions.targets.parquet")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(RaffectError, match="not the targets that .* was written with"):
        read_back(path)
    file.unlink()
    with pytest.raises(RaffectError, match="no such file, which .* names; copy both"):
        read_back(path)


@pytest.mark.parametrize(
    ("vectors", "facts", "message"),
    [
        (lists(VECTORS, 7, np.float32), {}, "is fixed_size_list.*expected"),
        (lists(VECTORS[:, :6], 6), {}, "expected fixed_size_list"),
        (lists(VECTORS[:4], 7), {}, "4 vectors, expected 5"),
        (lists(VECTORS * [[1], [1], [np.nan], [1], [1]], 7), {}, "vector 2 is not finite"),
        (lists(VECTORS * [[1], [0], [1], [1], [1]], 7), {}, "vector 1 is not finite or all 0"),
        (pa.array(["a"] * 5), {}, "'vector' is string"),
        (
            pa.array([[np.float16(1)] * 7, None] * 2 + [None], pa.list_(pa.float16(), 7)),
            {},
            "empty cells",
        ),
        (lists(VECTORS, 7), {"file": "../x.targets.parquet"}, "expected the name of a file"),
        (lists(VECTORS, 7), {"file": "/etc/passwd"}, "expected the name of a file"),
        (lists(VECTORS, 7), {"count": 0}, "count 0: "),
        (lists(VECTORS, 7), {"dim": float("nan")}, "dim"),
    ],
)
def test_hostile_vectors_are_refused_in_one_line(vectors, facts, message, path):
    write_targets(path, make_rows(), TASK, VECTORS)
    try:
        rewrite(path, vectors, **facts)
    except pa.ArrowNotImplementedError as error:  # pyarrow 17 writes no empty cells of such lists
        pytest.skip(str(error))
    with pytest.raises(RaffectError, match=message) as caught:
        read_back(path)
    assert str(path.parent) in str(caught.value)


def test_a_table_without_targets_is_refused(path):
    write_targets(path, make_rows(), TASK, VECTORS)
    rewrite(path, lists(VECTORS, 7), name="other")
    with pytest.raises(RaffectError, match="expected one column 'vector'"):
        read_back(path)
    with pytest.raises(RaffectError, match="names no targets"):
        read_targets(path, read_labels(path).replace_schema_metadata({}))
