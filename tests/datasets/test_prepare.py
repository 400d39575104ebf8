"""Preparation: counts agree with a plain loop over files, and all that is missing is named."""

import csv
import itertools
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from raffect.cli import main
from raffect.config import PrepareConfig
from raffect.datasets.affwild2.importer import Coverage, measure, resembles_affwild2
from raffect.datasets.affwild2.tasks import ACTION_UNITS, COMPLETE, EXPR, HEADERS, TASKS, VA
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

    # The report
    text = "\n".join(report.lines())
    assert "1 of 2 expr train videos have no image folder: b" in text

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


def annotate(folder, counts, lines=("1",)):
    """EXPR validation files: video -> number of lines, which repeat ``lines``."""
    folder = folder / "EXPR_Recognition_Challenge" / "Validation_Set"
    folder.mkdir(parents=True)
    for video, count in counts.items():
        found = itertools.islice(itertools.cycle(lines), count)
        (folder / f"{video}.txt").write_text("\n".join([HEADERS[EXPR], *found]) + "\n")
    return folder


def one_image(folder, video="v00"):
    (folder / video).mkdir(parents=True)
    (folder / video / "00001.jpg").write_bytes(b"x")
    return folder


def test_a_complete_copys_counts_stand_beside_aff_wild2s_own_annotations(tmp_path):
    # The validation split's 70 videos and 284,230 annotated frames, few images or not
    counts = {f"v{k:02d}": 284_230 // 70 for k in range(70)}
    annotate(tmp_path / "labels", counts)
    images, labels = one_image(tmp_path / "images"), tmp_path / "labels"
    config = PrepareConfig(images=(images,), annotations=labels, out=tmp_path / "out")
    text = "\n".join(prepare(config).lines())
    assert "complete copy" in text
    assert "284,230" in text
    assert "82,258" in text  # Neutral


def test_no_complete_copys_counts_stand_beside_other_data(tree, tmp_path):
    annotate(tmp_path / "labels", {f"v{k:02d}": 100 for k in range(70)})
    few = (one_image(tmp_path / "images"), tmp_path / "labels")
    for images, annotations in (few, (tree / "cropped_aligned", tree / EDITION)):
        config = PrepareConfig(images=(images,), annotations=annotations, out=tmp_path / "out")
        assert "complete copy" not in "\n".join(prepare(config).lines())


@pytest.mark.parametrize("task", [EXPR, VA], ids=lambda task: task.name)
def test_aff_wild2_is_known_by_a_split_of_its_size(task):
    def part(videos, annotated):
        copy = COMPLETE[task]
        numbers = dict.fromkeys(("with_image", "without_image", "images_without_line"), 0)
        return Coverage(
            task=task,
            split="train",
            videos=round(videos * copy.videos["train"]),
            lines=0,
            annotated=round(annotated * copy.annotated["train"]),
            missing_videos=[],
            **numbers,
        )

    assert resembles_affwild2([part(1, 1)])
    assert resembles_affwild2([part(0.1, 0.1), part(0.95, 0.92)])
    for other in ([], [part(1, 0.5)], [part(0.5, 1)], [part(1.2, 1.2)]):
        assert not resembles_affwild2(other)


def test_images_and_annotations_without_a_common_frame_are_an_error(tmp_path, capsys):
    images = one_image(tmp_path / "images", "other")
    annotate(tmp_path / "labels", {"v00": 3})
    words = ["--images", str(images), "--annotations", str(tmp_path / "labels")]
    assert main(["prepare", *words, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "first image other/00001, first annotated frame v00/00001" in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_annotations_without_a_line_have_no_frame_in_common(tmp_path):
    annotate(tmp_path / "labels", {"v00": 0})
    images, labels = (one_image(tmp_path / "images"),), tmp_path / "labels"
    with pytest.raises(RaffectError, match="first annotated frame none"):
        prepare(PrepareConfig(images=images, annotations=labels, out=tmp_path / "out"))


def test_ten_wrong_lines_of_one_file_do_not_hide_other_problems(tmp_path):
    # Wrong lines with values that all differ, a header of another data set, missing images
    lines = ["1", *(str(value) for value in range(100, 150))]
    folder = annotate(tmp_path / "labels", {"v00": 51, "v01": 2}, lines)
    (folder / "v02.txt").write_text("happy,sad\n0\n")
    for k in range(5):
        (folder / f"gone{k}.txt").write_text(f"{HEADERS[EXPR]}\n1\n")
    images, labels = (one_image(tmp_path / "images"),), tmp_path / "labels"
    report = prepare(PrepareConfig(images=images, annotations=labels, out=tmp_path / "out"))
    assert len(report.problems) == 50 + 1 + 1 + 6

    text = "\n".join(report.lines())
    assert "v00.txt:3: expected one integer from -1 to 7, found '100'" in text
    assert "counted as unlabelled (50 of this kind in the file)" in text
    assert "found '101'" not in text
    assert "v01.txt:3: expected one integer" in text
    assert "v02.txt:1: expected the header" in text
    assert "gone2.txt: no image folder of this name" in text
    assert "  and 3 more of this kind in 3 other files" in text


def test_ignored_annotation_files_are_named(tmp_path):
    folder = annotate(tmp_path / "labels", {"v00": 1})
    for name in ("v01.csv", ".v02.txt", "../Test_Set/v03.txt", "../notes.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    images, labels = (one_image(tmp_path / "images"),), tmp_path / "labels"
    report = prepare(PrepareConfig(images=images, annotations=labels, out=tmp_path / "out"))
    task = "EXPR_Recognition_Challenge"
    assert [line for line in report.lines() if line.startswith("ignored")] == [
        f"ignored among the annotations: 1 .csv files ({task}/Validation_Set/v01.csv)",
        f"ignored among the annotations: 1 .md files ({task}/notes.md)",
        f"ignored among the annotations: 1 folders ({task}/Test_Set/)",
        f"ignored among the annotations: 1 hidden ({task}/Validation_Set/.v02.txt)",
    ]


@pytest.mark.parametrize("dataset", ["table", "folder"])
def test_drawn_images_are_known_whatever_the_importer(tree, tmp_path, dataset):
    faces = shutil.copytree(tree, tmp_path / "faces")
    rows = [path.relative_to(faces) for path in sorted(faces.rglob("*.jpg"))]
    (tmp_path / "t.csv").write_text("\n".join(["path", *map(str, rows), "photo.jpg"]))
    settings = {"annotations": tmp_path / "t.csv"} if dataset == "table" else {}
    config = PrepareConfig(images=(faces,), out=tmp_path / "out", dataset=dataset, **settings)
    report = prepare(config)
    assert report.synthetic
    assert "images: drawn by raffect; every score will say so" in report.lines()

    # One picture among them that raffect did not draw
    shutil.copy(faces / rows[0], faces / "photo.jpg")
    report = prepare(config)
    assert not report.synthetic
    mixed = f"{len(rows):,} of {len(rows) + 1:,} drawn by raffect; no score will say so"
    assert any(mixed in line for line in report.lines())
    assert not is_synthetic_manifest(read_manifest(report.manifest))


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


def test_a_file_in_the_way_of_the_label_tables_is_named(tmp_path):
    annotate(tmp_path / "a", {"v00": 1})
    images = (one_image(tmp_path / "images"),)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels").write_text("notes")
    with pytest.raises(RaffectError, match="out/labels: a file is where .* move it, or choose"):
        prepare(PrepareConfig(images=images, annotations=tmp_path / "a", out=tmp_path / "out"))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["labels"]


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
