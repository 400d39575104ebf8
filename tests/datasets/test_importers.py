"""Pictures of any name with a table, with a folder a class, or without labels.

What becomes of each row, and how wrong rows are reported.
"""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raffect.cli import main
from raffect.config import PrepareConfig
from raffect.datasets.affwild2.tasks import read_task
from raffect.datasets.labels import read_labels
from raffect.datasets.manifest import read_manifest
from raffect.datasets.prepare import prepare
from raffect.errors import RaffectError
from raffect.storage.tables import read_metadata


def draw(root: Path, *names: str) -> Path:
    """Small grey pictures."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (abs(hash(name)) % 256,) * 3).save(path)
    return root


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def run(tmp_path: Path, images: Path, **settings):
    """Prepare and read the results: lines, manifest rows, label table by task name, problems."""
    data = tmp_path / "data"
    lines = prepare(PrepareConfig(images=(images,), out=data, **settings)).lines()
    rows = read_manifest(data / "manifest.parquet").to_pylist()
    manifest = [(row["video"], row["frame"], row["path"]) for row in rows]
    labels = {file.stem: read_labels(file) for file in (data / "labels").glob("*.parquet")}
    problems = list(csv.DictReader((data / "problems.csv").open()))
    return lines, manifest, labels, problems


def task_of(table: pa.Table):
    return read_task(read_metadata(table)["task"], "test")


def test_a_table_of_pictures_by_path(tmp_path):
    images = draw(tmp_path / "images", "IMG_0001.jpg", "deep/er/IMG_0002.PNG", "spare.jpg")
    file = write(
        tmp_path / "labels.csv",
        "path,split,mood",
        "IMG_0001.jpg,train,happy",
        "./deep/er/IMG_0002.PNG,Val,sad",
        "gone.jpg,train,sad",
    )
    settings = {"dataset": "table", "annotations": file, "task": "moods"}
    lines, manifest, labels, problems = run(tmp_path, images, **settings)
    assert manifest == [
        ("IMG_0001.jpg", 1, "IMG_0001.jpg"),
        ("deep/er/IMG_0002.PNG", 1, "deep/er/IMG_0002.PNG"),
    ]
    rows = [(row["video"], row["split"], row["mood"]) for row in labels["moods"].to_pylist()]
    assert rows == [
        ("IMG_0001.jpg", "train", 0),
        ("deep/er/IMG_0002.PNG", "validation", 1),
        ("gone.jpg", "train", 1),
    ]
    task = task_of(labels["moods"])
    assert (task.kind, task.outputs) == ("multiclass", ("happy", "sad"))
    missing = "gone.jpg: no such image below --images"
    assert problems == [{"file": "labels.csv", "line": "4", "problem": missing}]
    assert "labels: moods, multiclass: 0 happy, 1 sad" in lines
    assert "ignored among the images: 1 images that no row names (spare.jpg)" in lines
    assert read_metadata(labels["moods"])["groups"] == "pictures"


def test_a_table_of_frames_of_videos_with_subjects(tmp_path):
    images = draw(tmp_path / "images", "007/00001.jpg", "007/00003.jpg", "b/1.jpg")
    file = write(
        tmp_path / "labels.csv",
        "video,frame,subject,valence,arousal",
        "007,1,s1,0.5,-0.25",
        "007,3,s1,,0.1",
        "b,1,s2,0.3,inf",
        "b,2,s2,0.1,0.1",
    )
    settings = {"dataset": "table", "annotations": file, "task": "va2"}
    _, manifest, labels, problems = run(tmp_path, images, **settings)
    expected = [("007", 1, "007/00001.jpg"), ("007", 3, "007/00003.jpg"), ("b", 1, "b/1.jpg")]
    assert manifest == expected
    table, task = labels["va2"], task_of(labels["va2"])
    assert (task.kind, task.unlabelled) == ("regression", None)
    assert task.outputs == ("valence", "arousal")
    assert table["group"].to_pylist() == ["s1", "s1", "s2", "s2"]
    assert np.allclose(table["valence"].to_numpy(), [0.5, np.nan, 0.3, 0.1], equal_nan=True)
    assert np.allclose(table["arousal"].to_numpy(), [-0.25, 0.1, np.nan, 0.1], equal_nan=True)
    splits = zip(table["group"].to_pylist(), table["split"].to_pylist(), strict=True)
    assert len(set(splits)) == 2, "a subject is in one split"
    assert [row["line"] for row in problems] == ["5", "4"]
    assert read_metadata(table)["groups"] == "subjects"


def test_a_parquet_table_of_units_with_a_path_for_each_frame_of_a_video(tmp_path):
    images = draw(tmp_path / "images", "x/a.jpg", "x/b.jpg")
    keys = {"path": ["x/a.jpg", "x/b.jpg"], "video": ["v", "v"], "frame": [7, 9]}
    units = {"AU1": [1, 0], "AU2": [-1, 1]}
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({**keys, **units, "note": ["p", "q"]}), file)
    settings = {"dataset": "table", "annotations": file, "columns": ("AU1", "AU2")}
    _, manifest, labels, _ = run(tmp_path, images, **settings)
    assert manifest == [("v", 7, "x/a.jpg"), ("v", 9, "x/b.jpg")]
    assert task_of(labels["labels"]).kind == "multilabel"
    assert labels["labels"].select(["AU1", "AU2"]).to_pydict() == units


def test_a_minus_one_among_names_of_classes_is_unlabelled(tmp_path):
    images = draw(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    file = write(tmp_path / "t.csv", "path,mood", "a.jpg,sad", "b.jpg,-1", "c.jpg,glad")
    _, _, labels, problems = run(tmp_path, images, dataset="table", annotations=file)
    assert task_of(labels["labels"]).outputs == ("glad", "sad")
    assert labels["labels"]["mood"].to_pylist() == [1, -1, 0]
    assert not problems


def test_a_table_without_labels_is_a_manifest(tmp_path):
    images = draw(tmp_path / "images", "a.jpg", "b.jpg")
    file = write(tmp_path / "t.csv", "path", "b.jpg")
    lines, manifest, labels, _ = run(tmp_path, images, dataset="table", annotations=file)
    assert manifest == [("b.jpg", 1, "b.jpg")]
    assert labels == {}
    assert any(line.startswith("labels: none") for line in lines)


def test_absolute_paths_and_those_of_another_system_are_found(tmp_path):
    images = draw(tmp_path / "images", "d/a.jpg", "d/b.jpg")
    file = write(tmp_path / "t.csv", "path,x", f"{images}/d/a.jpg,1", "d\\b.jpg,0")
    _, manifest, _, problems = run(tmp_path, images, dataset="table", annotations=file)
    assert [path for *_, path in manifest] == ["d/a.jpg", "d/b.jpg"]
    assert problems == []


def test_wrong_rows_are_reported_by_line_and_leave_nothing_else_out(tmp_path):
    images = draw(tmp_path / "images", "v/00001.jpg", "v/00002.jpg", "v/00003.jpg")
    file = write(
        tmp_path / "t.csv",
        "video,frame,split,mood",
        "v,1,train,0",
        "v,1,train,1",
        ",2,train,1",
        "v,0,train,1",
        "v,2,tomorrow,1",
        "v,3,train,7",
        "v,4,train,-1",
    )
    settings = {"dataset": "table", "annotations": file, "classes": ("calm", "glad")}
    _, manifest, labels, problems = run(tmp_path, images, **settings)

    # What is used
    assert [frame for _, frame, _ in manifest] == [1, 2, 3]
    assert [(row["frame"], row["split"], row["mood"]) for row in labels["labels"].to_pylist()] == [
        (1, "train", 0),
        (2, "test", 1),
        (3, "train", -1),
        (4, "train", -1),
    ]

    # What is reported
    found = {int(row["line"]): row["problem"] for row in problems}
    assert "v frame 1 again, first in line 2" in found[3]
    assert "expected a name and a whole number" in found[4]
    assert "expected a name and a whole number" in found[5]
    assert "split 'tomorrow'" in found[6]
    assert "mood '7' is not a class (calm, glad)" in found[7]
    assert "no such image" in found[8]


REGRESSION, MULTICLASS = {"kind": "regression"}, {"kind": "multiclass"}
NO_TABLES = [
    ("name,x\na,1\n", {}, "expected a column path, or video and frame; found name, x"),
    ("path,x\na.jpg,1\na.jpg", {}, "not a readable CSV or Parquet table"),
    ("", {}, "not a readable CSV or Parquet table"),
    ("path,x,x\na.jpg,1,2\n", {}, "column 'x' is there twice"),
    ("path,x,y\na.jpg,1,0.5\n", {}, r"labels\? x \(int64\), y \(double\); add --kind"),
    ("path,x\na.jpg,0.5\n", {"columns": ("z",)}, "--columns z: not in .*columns are path, x"),
    ("path,x\nb.jpg,1\n", {}, "none of its 1 pictures is below .*first: b.jpg"),
    ("path,x\na.jpg,5000\n", {}, "classes from 5000 to 5000, expected 0 to 999"),
    ("path,x\na.jpg,one\n", {}, "has 1 classes; expected 2"),
    ("path,x\na.jpg,one\n", REGRESSION, "column 'x' is string, expected numbers"),
    ("path,x,y\na.jpg,1,0\n", MULTICLASS, "multiclass: has one label column, not x, y"),
]


@pytest.mark.parametrize(("text", "settings", "match"), NO_TABLES)
def test_a_table_that_cannot_be_understood_is_one_line(tmp_path, text, settings, match):
    images, file = draw(tmp_path / "images", "a.jpg"), write(tmp_path / "t.csv", text)
    with pytest.raises(RaffectError, match=match) as error:
        run(tmp_path, images, dataset="table", annotations=file, **settings)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_a_table_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    images = draw(tmp_path / "images", "a.jpg")
    with pytest.raises(RaffectError, match="not a regular file but a pipe"):
        run(tmp_path, images, dataset="table", annotations=tmp_path / "t.csv")


def test_a_folder_a_class(tmp_path):
    names = ["cross/ü.jpg", "glad/2019/x.png", "glad/IMG 1.jpg", "loose.jpg"]
    images = draw(tmp_path / "images", *names)
    (images / "glad" / "notes.txt").write_text("x")
    lines, manifest, labels, _ = run(tmp_path, images, dataset="folder", task="moods")
    assert [path for *_, path in manifest] == names
    assert labels["moods"]["label"].to_pylist() == [0, 1, 1, -1]
    assert task_of(labels["moods"]).outputs == ("cross", "glad")
    assert "images: 4 pictures" in lines
    assert "ignored among the images: 1 .txt files (glad/notes.txt)" in lines
    assert "labels: moods, a class a folder: 0 cross, 1 glad" in lines


def test_folders_of_splits_and_a_chosen_order_of_classes(tmp_path):
    names = ("Train/b/1.jpg", "Train/a/1.jpg", "val/a/1.jpg", "test/c/1.jpg")
    images = draw(tmp_path / "images", *names)
    _, _, labels, problems = run(tmp_path, images, dataset="folder", classes=("b", "a"))
    rows = [(row["video"], row["split"], row["label"]) for row in labels["labels"].to_pylist()]
    assert rows == [
        ("Train/a/1.jpg", "train", 1),
        ("Train/b/1.jpg", "train", 0),
        ("test/c/1.jpg", "test", -1),
        ("val/a/1.jpg", "validation", 1),
    ]
    assert [row["problem"] for row in problems] == ["folder 'c' is not among --classes; unlabelled"]
    message = "--classes z: no such folder of pictures; there are a, b, c"
    with pytest.raises(RaffectError, match=message):
        run(tmp_path, images, dataset="folder", classes=("z", "a"))


def test_pictures_without_labels_are_a_manifest(tmp_path):
    images = draw(tmp_path / "images", "IMG_0001.jpg", "more/IMG_0002.jpg")
    _, manifest, labels, _ = run(tmp_path, images, dataset="folder")
    assert len(manifest) == 2
    assert labels == {}
    images = draw(tmp_path / "two", "a/1.jpg", "b/1.jpg")
    _, _, labels, _ = run(tmp_path, images, dataset="folder", with_labels=False)
    assert labels == {}


def test_the_same_path_in_two_roots_counts_once(tmp_path):
    one, two = draw(tmp_path / "one", "a/1.jpg"), draw(tmp_path / "two", "a/1.jpg", "b/1.jpg")
    prepare(PrepareConfig(images=(one, two), out=tmp_path / "data", dataset="folder"))
    rows = read_manifest(tmp_path / "data" / "manifest.parquet").to_pylist()
    found = [(row["path"], Path(row["root"]).name) for row in rows]
    assert found == [("a/1.jpg", "one"), ("b/1.jpg", "two")]


def test_preparing_another_data_set_into_a_folder_leaves_no_old_labels(tmp_path):
    images = draw(tmp_path / "images", "a/1.jpg", "b/1.jpg")
    run(tmp_path, images, dataset="folder", task="old")
    _, _, labels, _ = run(tmp_path, images, dataset="folder", task="new")
    assert list(labels) == ["new"]


@pytest.mark.cluster
def test_pictures_of_any_name_become_a_bank_and_heads(tmp_path, capsys, local_ray):
    # Grey pictures, labelled with their brightness
    rng = np.random.default_rng(0)
    images = tmp_path / "images"
    images.mkdir()
    rows = ["path,brightness,subject"]
    for k in range(96):
        value, name = float(rng.random()), f"IMG_{k:04d}.jpg"
        pixels = np.clip(rng.normal(255 * value, 20, (64, 64, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(images / name)
        rows.append(f"{name},{value:.4f},s{k % 12}")
    table = write(tmp_path / "labels.csv", *rows)

    # Manifest and labels
    data, bank, head = tmp_path / "data", tmp_path / "bank", tmp_path / "run"
    tables = f"--dataset table --images {images} --annotations {table} --task light"
    assert main(["prepare", *tables.split(), "--out", str(data)]) == 0

    # Bank
    encoder = "--encoder.model raffect-faces --encoder.weights embedded --allow-embedded"
    source = f"--manifest {data}/manifest.parquet --bank {bank} --shard-rows 48"
    assert main(["extract", *source.split(), *encoder.split()]) == 0

    # Head
    fast = "--epochs 40 --head.width 16 --head.depth 1 --batch-size 16 --device cpu"
    loss = "--loss.alpha 1 --optim.lr 0.01"
    source = f"--bank {bank} --labels {data} --out {head}"
    assert main(["train", "erm", *source.split(), *fast.split(), *loss.split()]) == 0
    text = capsys.readouterr().out
    assert "over subjects" in text
    (found,) = json.loads((head / "metrics.json").read_text())["settings"]
    assert found["scores"]["last"]["mean"] > 0.5
