"""Preparation: counts agree with a plain loop over files, and everything missing has a name."""

import csv
import os
import shutil

import numpy as np
import pytest

from raffect.config import PrepareConfig
from raffect.datasets.affwild2.importer import measure
from raffect.datasets.affwild2.tasks import ACTION_UNITS, EXPR, HEADERS, TASKS
from raffect.datasets.labels import read_labels
from raffect.datasets.manifest import is_synthetic_manifest, read_manifest
from raffect.datasets.prepare import prepare
from raffect.datasets.synthetic.tree import EDITION, TASK_FOLDERS
from raffect.errors import RaffectError
from raffect.storage.tables import read_metadata
from tests.helpers.banks import make_manifest

SPLIT_FOLDERS = {"train": "Train_Set", "validation": "Validation_Set"}


def count_by_hand(tree, task, split):
    """Lines, labelled lines, and labelled lines with a file, by looking at each file."""
    lines = annotated = with_image = 0
    for file in (tree / EDITION / TASK_FOLDERS[task] / SPLIT_FOLDERS[split]).glob("*.txt"):
        for frame, line in enumerate(file.read_text().split("\n")[1:], start=1):
            if line.strip():
                values = [float(value) for value in line.split(",")]
                known = (
                    all(value != -5 for value in values)
                    if task == "va"
                    else any(value != -1 for value in values)
                )
                lines += 1
                annotated += known
                with_image += (
                    known and (tree / "cropped_aligned" / file.stem / f"{frame:05d}.jpg").exists()
                )
    return lines, annotated, with_image


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("split", SPLIT_FOLDERS)
def test_counts_are_those_of_a_plain_loop(tree, prepared, task, split):
    part = measure(
        task,
        split,
        read_labels(prepared / "labels" / f"{task.name}.parquet"),
        read_manifest(prepared / "manifest.parquet"),
    )
    assert (part.lines, part.annotated, part.with_image) == count_by_hand(tree, task.name, split)
    assert part.missing_videos == []


def test_tables_carry_their_origin(prepared):
    metadata = read_metadata(read_labels(prepared / "labels" / "au.parquet"))
    assert metadata["edition"] == EDITION
    assert len(metadata["digest"]) == 64
    assert metadata["synthetic"] == "true"
    assert is_synthetic_manifest(read_manifest(prepared / "manifest.parquet"))
    assert set(read_labels(prepared / "labels" / "au.parquet").column_names) == {
        "video",
        "frame",
        "split",
        *ACTION_UNITS,
    }


def test_missing_videos_wrong_lines_and_images_beyond_the_last_line_are_named(tmp_path):
    for frame in (1, 2, 5):
        path = tmp_path / "images" / "a_left" / f"{frame:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    folder = tmp_path / "6th ABAW Annotations" / "EXPR_Recognition_Challenge" / "Train_Set"
    folder.mkdir(parents=True)
    (folder / "a_left.txt").write_text(f"{HEADERS[EXPR]}\n1\n9\n-1\n")
    (folder / "b.txt").write_text(f"{HEADERS[EXPR]}\n1\n")
    report = prepare(
        PrepareConfig(images=(tmp_path / "images",), annotations=tmp_path, out=tmp_path / "out")
    )
    text = "\n".join(report.lines())
    assert "1 of 2 expr train videos have no image folder: b" in text
    assert "597,361" in text
    with (tmp_path / "out" / "problems.csv").open() as handle:
        problems = list(csv.DictReader(handle))
    assert [row["line"] for row in problems] == ["3", ""]
    assert problems[0]["file"].endswith("Train_Set/a_left.txt")
    assert "second archive" in problems[1]["problem"]
    part = measure(
        EXPR,
        "train",
        read_labels(tmp_path / "out" / "labels" / "expr.parquet"),
        read_manifest(tmp_path / "out" / "manifest.parquet"),
    )
    assert (
        part.lines,
        part.annotated,
        part.with_image,
        part.without_image,
        part.images_without_line,
    ) == (4, 2, 1, 2, 1)
    assert not is_synthetic_manifest(read_manifest(tmp_path / "out" / "manifest.parquet"))


def test_running_it_twice_gives_the_same_files(tree, prepared, tmp_path):
    prepare(
        PrepareConfig(images=(tree / "cropped_aligned",), annotations=tree / EDITION, out=tmp_path)
    )
    for file in prepared.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / file.relative_to(prepared)).read_bytes()


def test_nothing_is_written_when_an_input_is_missing(tmp_path):
    with pytest.raises(RaffectError, match="no such folder"):
        prepare(
            PrepareConfig(images=(tmp_path / "gone",), annotations=tmp_path, out=tmp_path / "out")
        )
    assert not (tmp_path / "out").exists()


def test_a_split_without_lines_counts_zero():
    labels = __import__("pyarrow").table(
        {
            "video": ["a"],
            "frame": np.array([1], np.int32),
            "split": ["train"],
            "expression": np.array([1], np.int8),
        }
    )
    assert measure(EXPR, "validation", labels, make_manifest({"a": 1})).lines == 0


@pytest.mark.timeout(60)
def test_links_that_leave_the_root_are_one_line_and_pipes_among_annotations_are_problems(
    tree, tmp_path
):
    images, annotations = tmp_path / "images", tmp_path / "annotations"
    images.mkdir()
    for video in (tree / "cropped_aligned").iterdir():
        (images / video.name).symlink_to(video)
    (images / "loop").symlink_to("loop")
    shutil.copytree(tree / EDITION, annotations)
    os.mkfifo(annotations / TASK_FOLDERS["expr"] / "Train_Set" / "pipe.txt")
    lines = prepare(
        PrepareConfig(images=(images,), annotations=annotations, out=tmp_path / "data")
    ).lines()
    assert len(read_manifest(tmp_path / "data" / "manifest.parquet")) == sum(
        1 for _ in (tree / "cropped_aligned").glob("*/*.jpg")
    )
    (line,) = (line for line in lines if line.startswith("links: "))
    assert (
        f"{len(list(images.iterdir())) - 1} lead out of their image root and are followed" in line
    )
    problems = [
        row["problem"] for row in csv.DictReader((tmp_path / "data" / "problems.csv").open())
    ]
    assert any("link cannot be followed" in problem for problem in problems)
    assert any("not a regular file but a pipe" in problem for problem in problems)
