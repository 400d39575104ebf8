"""Drawn data: seeded, in the real layout and as irregular, with every unit visible."""

import csv
import shutil

import av
import numpy as np
import pytest
from PIL import Image

from raffect.datasets.affwild2.annotations import read_annotations
from raffect.datasets.affwild2.tasks import ACTION_UNITS, EXPRESSIONS
from raffect.datasets.listing import list_images, list_pictures
from raffect.datasets.synthetic.course import contact_sheet, draw_course
from raffect.datasets.synthetic.faces import DRAWN_UNITS, draw_face
from raffect.datasets.synthetic.looks import Pose, draw_look
from raffect.datasets.synthetic.plan import plan_videos
from raffect.datasets.synthetic.tree import (
    EDITION,
    MARKER,
    TEMPLATES,
    count_drawn,
    write_synthetic,
    write_templates,
)
from raffect.datasets.synthetic.video import write_video
from raffect.errors import RaffectError


@pytest.mark.parametrize("unit", DRAWN_UNITS)
def test_every_unit_changes_the_picture_where_the_face_is(unit):
    look = draw_look(np.random.default_rng(0))
    # A dropped jaw shows in an open mouth
    base = {"AU25": 1.0} if unit == "AU26" else {}
    faces = (draw_face(look, units, Pose(noise=0), 0) for units in (base, base | {unit: 1.0}))
    rest, shown = (face.astype(int) for face in faces)
    changed = np.abs(rest - shown).max(axis=2) > 20
    assert changed.sum() > 15
    upper = unit in ("AU1", "AU2", "AU4", "AU5", "AU6", "AU7")
    rows = np.flatnonzero(changed.any(1))
    assert rows.mean() < 66 if upper else rows.mean() > 50


def test_a_face_is_a_pure_function_of_its_arguments():
    look = draw_look(np.random.default_rng(1))
    one, two = (draw_face(look, {"AU12": 0.5}, Pose(), seed=5) for _ in range(2))
    assert np.array_equal(one, two)
    assert one.shape == (112, 112, 3)
    assert not np.array_equal(one, draw_face(look, {"AU12": 0.5}, Pose(), seed=6))


def test_the_same_seed_draws_the_same_files_with_any_number_of_workers(tmp_path):
    for name, seed, workers in (("one", 7, 1), ("two", 7, 2), ("three", 8, 1)):
        write_synthetic(tmp_path / name, 200, seed, workers=workers)

    def contents(root):
        files = (file for file in root.rglob("*") if file.is_file())
        return {str(file.relative_to(root)): file.read_bytes() for file in files}

    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one != three


def frames_of(table):
    return set(zip(table["video"].to_pylist(), table["frame"].to_pylist(), strict=True))


def test_the_layout_is_the_real_one_with_its_irregularities(tree):
    # Line ends
    raw = [file.read_bytes() for file in tree.rglob("*.txt")]
    assert any(b"\r\n" in content for content in raw)
    assert any(not content.endswith(b"\n") for content in raw)
    assert any(b"\r\n" not in content for content in raw)

    # Names and pictures
    videos = {folder.name for folder in (tree / "cropped_aligned").iterdir()}
    assert any(name.endswith("_left") for name in videos)
    assert any(f"{name}_right" in videos for name in videos)
    with Image.open(next((tree / "cropped_aligned").rglob("*.jpg"))) as image:
        assert (image.size, image.mode, image.format) == ((112, 112), "RGB", "JPEG")

    # Annotations
    found, listing = read_annotations(tree / EDITION), list_images([tree / "cropped_aligned"])
    assert {task.name for task in found.tables} == {"expr", "au", "va"}
    lines = set().union(*(frames_of(table) for table in found.tables.values()))
    assert lines - frames_of(listing.table), "lines without an image"


@pytest.mark.parametrize("list_files", [list_images, list_pictures])
def test_every_picture_of_a_drawn_data_set_is_known_as_drawn(tree, list_files):
    for root in (tree, tree / "cropped_aligned"):
        table = list_files([root]).table
        assert count_drawn(table) == len(table) == len(list(tree.rglob("*.jpg")))


def test_pictures_put_into_or_beside_a_drawn_data_set_are_not_drawn(tree, tmp_path):
    faces = shutil.copytree(tree, tmp_path / "faces")
    video = next((faces / "cropped_aligned").iterdir())
    drawn, picture = len(list(faces.rglob("*.jpg"))), next(video.iterdir())

    # Beside it, in a video of its own, after a video's end, and under a name that no drawing has
    others = ["photos/v/00001.jpg", "cropped_aligned/new/00001.jpg"]
    others += [f"cropped_aligned/{video.name}/{name}" for name in ("99999.jpg", "00001.png")]
    for name in others:
        (faces / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, faces / name)
    assert count_drawn(list_pictures([faces]).table) == drawn
    assert count_drawn(list_images([faces / "photos"]).table) == 0


def test_pictures_without_a_marker_are_not_drawn_and_a_damaged_one_is_one_line(tree, tmp_path):
    images = shutil.copytree(tree / "cropped_aligned", tmp_path / "cropped_aligned")
    table = list_images([images]).table
    assert count_drawn(table) == 0
    (tmp_path / MARKER).write_text('{"spec": {"generator": 2, "num_frames": 1e30, "seed": 3}}')
    with pytest.raises(RaffectError, match=f"{MARKER}: damaged.*num_frames"):
        count_drawn(table)


def test_every_expression_is_in_both_splits_and_classes_are_unequal():
    videos = plan_videos(4000, 0)
    for split in ("train", "validation"):
        labels = np.concatenate(
            [draw_course(video, 0).expr for video in videos if video.splits["expr"] == split]
        )
        counts = np.bincount(labels[labels >= 0], minlength=len(EXPRESSIONS))
        assert (counts > 0).all()
        assert counts.max() > 8 * counts.min()
        assert (labels == -1).any()


def test_splits_are_per_task():
    splits = [tuple(video.splits.values()) for video in plan_videos(4000, 0)]
    assert ("validation", "train", "train") in splits
    assert ("train", "validation", "train") in splits


def test_units_follow_the_expression_smoothly():
    video = max(plan_videos(4000, 0), key=lambda video: video.num_frames)
    course = draw_course(video, 0)
    assert np.abs(np.diff(course.units, axis=0)).mean() < 0.06
    happy = course.expr == EXPRESSIONS.index("Happiness")
    smile = course.au[:, list(ACTION_UNITS).index("AU12")] == 1
    assert smile[happy].mean() > 0.8
    assert smile[~happy].mean() < 0.5


def test_a_finished_tree_is_kept_and_a_foreign_one_refused(tmp_path):
    counts = write_synthetic(tmp_path / "t", 200, 0, workers=1)
    written = (tmp_path / "t" / "cropped_aligned").stat().st_mtime_ns
    assert write_synthetic(tmp_path / "t", 200, 0, workers=1) == counts
    assert (tmp_path / "t" / "cropped_aligned").stat().st_mtime_ns == written
    with pytest.raises(RaffectError, match="another drawn data set"):
        write_synthetic(tmp_path / "t", 300, 0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(RaffectError, match="not empty"):
        write_synthetic(tmp_path / "mine", 200, 0)
    with pytest.raises(RaffectError, match="too few"):
        write_synthetic(tmp_path / "u", 50, 0)


def test_templates_list_every_frame_of_the_videos_that_are_in_no_split_of_their_task(tmp_path):
    write_templates(tmp_path, videos := plan_videos(4000, 0))
    for task, values in (("expr", 1), ("au", 12), ("va", 2)):
        lines = (tmp_path / TEMPLATES / f"{task}.txt").read_text().splitlines()
        listed = [line.split(",")[0].removesuffix(".jpg").split("/") for line in lines[1:]]
        assert {len(line.split(",")) - 1 for line in lines[1:]} == {values}
        expected = [video for video in videos if video.splits[task] is None]
        assert [int(frame) for _, frame in listed] == [
            frame for video in expected for frame in range(1, video.num_frames + 1)
        ]
        assert {video for video, _ in listed} == {video.name for video in expected}
        assert expected


def test_a_drawn_video_shows_its_face_in_its_boxes_and_sounds(tmp_path):
    path = tmp_path / "clip.mp4"
    course = write_video(path, seconds=1.0, seed=3)
    with av.open(str(path)) as file:
        pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    with av.open(str(path)) as file:
        heard = sum(frame.samples for frame in file.decode(audio=0))
    assert len(pictures) == len(course.face) == 25
    assert abs(heard - 48_000) < 3_000

    # Outside its box a picture has one colour, inside many
    with (tmp_path / "clip.mp4.boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in rows] == (np.flatnonzero(course.face) + 1).tolist()
    for row in rows:
        x, y, w, h = (int(row[name]) for name in ("x", "y", "w", "h"))
        picture = pictures[int(row["frame"]) - 1].astype(float)
        inside = picture[y : y + h, x : x + w].std((0, 1)).mean()
        outside = np.ones(picture.shape[:2], bool)
        outside[y - 4 : y + h + 4, x - 4 : x + w + 4] = False
        assert picture[outside].std(0).mean() < 4 < inside


def test_the_contact_sheet_has_a_row_a_subject_and_a_column_an_expression():
    assert contact_sheet(0, num_subjects=2).shape == (224, 896, 3)
