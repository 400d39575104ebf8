"""Preparation: counts agree with a plain loop over files, and all that is missing is named."""

import csv
import os
import shutil

import numpy as np
import pyarrow as pa
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
    unlabelled = -5 if task == "va" else -1
    combine = all if task == "va" else any
    for file in (tree / EDITION / TASK_FOLDERS[task] / SPLIT_FOLDERS[split]).glob("*.txt"):
        images = tree / "cropped_aligned" / file.stem
        for frame, line in enumerate(file.read_text().split("\n")[1:], start=1):
            if line.strip():
                known = combine(float(value) != unlabelled for value in line.split(","))
                lines += 1
                annotated += known
                with_image += known and (images / f"{frame:05d}.jpg").exists()
    return lines, annotated, with_image


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("split", SPLIT_FOLDERS)
def test_counts_are_those_of_a_plain_loop(tree, prepared, task, split):
    labels = read_labels(prepared / "labels" / f"{task.name}.parquet")
    part = measure(task, split, labels, read_manifest(prepared / "manifest.parquet"))
    assert (part.lines, part.annotated, part.with_image) == count_by_hand(tree, task.name, split)
    assert part.missing_videos == []


def test_tables_carry_their_origin(prepared):
    labels = read_labels(prepared / "labels" / "au.parquet")
    metadata = read_metadata(labels)
    assert metadata["edition"] == EDITION
    assert len(metadata["digest"]) == 64
    assert metadata["synthetic"] == "true"
    assert is_synthetic_manifest(read_manifest(prepared / "manifest.parquet"))
    assert set(labels.column_names) == {"video", "frame", "split", *ACTION_UNITS}


def test_missing_videos_wrong_lines_and_images_beyond_the_last_line_are_named(tmp_path):
    # Three lines for a_left, of which the second is wrong, and images 1, 2 and 5; no image for b
    for frame in (1, 2, 5):
        path = tmp_path / "images" / "a_left" / f"{frame:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    folder = tmp_path / "6th ABAW Annotations" / "EXPR_Recognition_Challenge" / "Train_Set"
    folder.mkdir(parents=True)
    (folder / "a_left.txt").write_text(f"{HEADERS[EXPR]}\n1\n9\n-1\n")
    (folder / "b.txt").write_text(f"{HEADERS[EXPR]}\n1\n")
    out = tmp_path / "out"
    report = prepare(PrepareConfig(images=(tmp_path / "images",), annotations=tmp_path, out=out))

    # The report, beside a complete copy's numbers
    text = "\n".join(report.lines())
    assert "1 of 2 expr train videos have no image folder: b" in text
    assert "597,361" in text

    # The problems
    with (out / "problems.csv").open() as handle:
        problems = list(csv.DictReader(handle))
    assert [row["line"] for row in problems] == ["3", ""]
    assert problems[0]["file"].endswith("Train_Set/a_left.txt")
    assert "second archive" in problems[1]["problem"]

    # The counts
    manifest = read_manifest(out / "manifest.parquet")
    part = measure(EXPR, "train", read_labels(out / "labels" / "expr.parquet"), manifest)
    assert (part.lines, part.annotated, part.with_image) == (4, 2, 1)
    assert (part.without_image, part.images_without_line) == (2, 1)
    assert not is_synthetic_manifest(manifest)


def test_running_it_twice_gives_the_same_files(tree, prepared, tmp_path):
    images, annotations = (tree / "cropped_aligned",), tree / EDITION
    prepare(PrepareConfig(images=images, annotations=annotations, out=tmp_path))
    for file in prepared.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / file.relative_to(prepared)).read_bytes()


def test_nothing_is_written_when_an_input_is_missing(tmp_path):
    config = PrepareConfig(images=(tmp_path / "gone",), annotations=tmp_path, out=tmp_path / "out")
    with pytest.raises(RaffectError, match="no such folder"):
        prepare(config)
    assert not (tmp_path / "out").exists()


def test_a_split_without_lines_counts_zero():
    keys = {"video": ["a"], "frame": np.array([1], np.int32), "split": ["train"]}
    labels = pa.table({**keys, "expression": np.array([1], np.int8)})
    assert measure(EXPR, "validation", labels, make_manifest({"a": 1})).lines == 0


@pytest.mark.timeout(60)
def test_links_that_leave_the_root_are_one_line_and_pipes_among_annotations_are_problems(
    tree, tmp_path
):
    # Links to all videos, a link to itself, and a pipe among the annotations
    images, annotations = tmp_path / "images", tmp_path / "annotations"
    images.mkdir()
    for video in (tree / "cropped_aligned").iterdir():
        (images / video.name).symlink_to(video)
    (images / "loop").symlink_to("loop")
    shutil.copytree(tree / EDITION, annotations)
    os.mkfifo(annotations / TASK_FOLDERS["expr"] / "Train_Set" / "pipe.txt")
    data = tmp_path / "data"
    lines = prepare(PrepareConfig(images=(images,), annotations=annotations, out=data)).lines()

    # The links are followed
    num_images = sum(1 for _ in (tree / "cropped_aligned").glob("*/*.jpg"))
    assert len(read_manifest(data / "manifest.parquet")) == num_images
    (line,) = (line for line in lines if line.startswith("links: "))
    num_links = len(list(images.iterdir())) - 1
    assert f"{num_links} lead out of their image root and are followed" in line

    # The loop and the pipe are reported
    problems = [row["problem"] for row in csv.DictReader((data / "problems.csv").open())]
    assert any("link cannot be followed" in problem for problem in problems)
    assert any("not a regular file but a pipe" in problem for problem in problems)
