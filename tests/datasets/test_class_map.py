"""`raffect prepare --map`: labels in the classes of another data set, by name."""

import json

import numpy as np
import pyarrow as pa
import pytest

from raffect.config import PrepareConfig
from raffect.datasets.affwild2.tasks import EXPR, read_task
from raffect.datasets.expressions import expression_task
from raffect.datasets.labels import read_labels
from raffect.datasets.prepare import prepare
from raffect.datasets.synthetic.layouts import LAYOUTS
from raffect.datasets.synthetic.tree import EDITION
from raffect.errors import RaffectError
from raffect.storage.tables import read_metadata, write_table
from tests.helpers.layouts import labels_of, run, write_tree


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Roots of drawn copies, and their label tables."""
    top, found = tmp_path_factory.mktemp("maps"), {}
    for name in ("dfew", "mafw", "affectnet"):
        plan = LAYOUTS[name](60, 5)
        root = write_tree(top / name, plan)
        report, _, labels, _ = run(root, top / f"{name}-data", name)
        found[name] = plan, root, report.labels["expr"], labels
    return found


def test_mafw_gets_the_classes_and_numbers_of_dfew_by_name(sets, tmp_path):
    plan, root, _, _ = sets["mafw"]
    report, _, labels, _ = run(root, tmp_path, "mafw", map=sets["dfew"][2])
    task = read_task(read_metadata(labels["expr"])["task"], "test")
    assert task == read_task(read_metadata(sets["dfew"][3]["expr"])["task"], "test")
    seven = set(task.outputs)
    single = {row["video"]: row["expression"] for row in plan.rows if row["size"] == 1}
    expected = {video: name if name in seven else None for video, name in single.items()}
    assert labels_of(labels["expr"]) == expected
    assert "compound" in labels
    lost = sum(name is None for name in expected.values())
    (line,) = [line for line in report.lines() if "are unlabelled: " in line]
    assert line.startswith(f"mapped: {lost} samples of other classes are unlabelled: Contempt,")
    # Its own words, those of lost classes left out; the other task's stay
    names = json.loads(read_metadata(labels["expr"])["names"])
    before = json.loads(read_metadata(sets["mafw"][3]["expr"])["names"])
    assert names == {word: name for word, name in before.items() if name in seven}
    words = json.loads(read_metadata(labels["compound"])["names"])
    assert words == json.loads(read_metadata(sets["mafw"][3]["compound"])["names"])
    assert "Disappointment" in before.values()
    # Folds and splits stay
    before = sets["mafw"][3]["expr"]
    assert labels["expr"]["fold"].equals(before["fold"])
    assert labels["expr"]["split"].to_pylist() == before["split"].to_pylist()


def test_the_stored_words_of_a_set_name_the_classes_that_it_was_mapped_to(sets, tmp_path):
    _, root, _, _ = sets["dfew"]
    task = expression_task(("angry", "happy"))
    rows = {"video": ["a"], "frame": np.array([1], np.int32), "split": ["train"], "expression": [0]}
    write_table(pa.table(rows), tmp_path / "own.parquet", {"task": task.to_bytes().decode()})
    _, _, labels, _ = run(root, tmp_path / "out", "dfew", map=tmp_path / "own.parquet")
    names = json.loads(read_metadata(labels["expr"])["names"])
    assert names == {"0": "happy", "3": "angry"}


def test_dfew_as_mafw_names_the_classes_that_it_lacks(sets, tmp_path):
    plan, root, _, _ = sets["dfew"]
    report, _, labels, _ = run(root, tmp_path, "dfew", map=sets["mafw"][2])
    assert labels_of(labels["expr"]) == {row["video"]: row["expression"] for row in plan.rows}
    lacks = "Contempt, Anxiety, Helplessness, Disappointment"
    assert f"mapped: classes that this data set lacks: {lacks}" in report.lines()


def test_affwild2_and_affectnet_map_both_ways_and_other_tasks_stay(sets, tree, prepared, tmp_path):
    # AffectNet in the classes of Aff-Wild2, whose Other it lacks
    plan, root, file, _ = sets["affectnet"]
    report, _, labels, _ = run(
        root, tmp_path / "a", "affectnet", map=prepared / "labels/expr.parquet"
    )
    assert read_task(read_metadata(labels["expr"])["task"], "test") == EXPR
    found = labels_of(labels["expr"])
    expected = {
        row["video"]: None if row["expression"] in ("", "Contempt") else row["expression"]
        for row in plan.rows
    }
    assert found == expected
    assert labels["va"].num_rows == len(plan.rows)
    assert "mapped: classes that this data set lacks: Other" in report.lines()

    # And back: Other is unlabelled, all counts are those of numpy
    images, annotations = (tree / "cropped_aligned",), tree / EDITION
    config = PrepareConfig(images=images, annotations=annotations, out=tmp_path / "b", map=file)
    report = prepare(config)
    plain = prepare(PrepareConfig(images=images, annotations=annotations, out=tmp_path / "c"))
    own = np.array(labels_of_file(plain.labels["expr"]), object)
    other = np.array(labels_of_file(report.labels["expr"]), object)
    assert [name if name != "Other" else None for name in own] == other.tolist()
    (train,) = [part for part in report.counts if (part.task, part.split) == ("expr", "train")]
    (before,) = [part for part in plain.counts if (part.task, part.split) == ("expr", "train")]
    assert train.rows == before.rows
    assert train.labelled < before.labelled
    assert report.labels["au"].read_bytes() == plain.labels["au"].read_bytes()


def labels_of_file(file):
    table = read_labels(file)
    outputs = read_task(read_metadata(table)["task"], "test").outputs
    return [None if k < 0 else outputs[k] for k in table["expression"].to_pylist()]


def test_what_has_no_classes_in_common_is_refused(sets, prepared, tmp_path):
    _, root, _, _ = sets["dfew"]
    with pytest.raises(RaffectError, match="labels of au are multilabel, expected classes"):
        run(root, tmp_path / "x", "dfew", map=prepared / "labels/au.parquet")
    task = EXPR.__class__(
        name="moods", kind="multiclass", outputs=("calm", "happy"), columns=("mood",)
    )
    rows = {"video": ["a"], "frame": np.array([1], np.int32), "split": ["train"], "mood": [0]}
    write_table(pa.table(rows), tmp_path / "moods.parquet", {"task": task.to_bytes().decode()})
    with pytest.raises(RaffectError, match="fewer than two classes in common: calm, happy and"):
        run(root, tmp_path / "x", "dfew", map=tmp_path / "moods.parquet")
