"""Detectors: Haar on photographs, the choice and its reason, tables of boxes of other tools."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

from raffect.config import FacesConfig
from raffect.errors import RaffectError
from raffect.extraction.find_faces import choose_settings
from raffect.faces.boxes import read_boxes
from raffect.faces.detectors import WholePicture, choose_detector, load_detector, require_detector
from raffect.faces.tracks import overlap

WITHOUT_FACES = (
    "brick camera chelsea coffee coins grass gravel hubble_deep_field moon page rocket text"
)


def settings(**changes):
    given = {"inputs": (Path("a.jpg"),), "out": Path("o"), **changes}
    return choose_settings(FacesConfig(**given))[0]


def enlarged(face, side=100, around=20):
    """A small grey photograph as a picture of 140x140, on grey."""
    small = Image.fromarray((face * 255).astype(np.uint8)).resize((side, side), Image.BICUBIC)
    picture = np.full((side + 2 * around, side + 2 * around, 3), 128, np.uint8)
    picture[around:-around, around:-around] = np.asarray(small)[..., None]
    return picture


def test_haar_finds_the_astronaut_and_nobody_else():
    found = load_detector(settings(), Path()).detect(data.astronaut(), 1)
    assert len(found) == 1
    assert overlap(found, np.array([[177, 66, 95, 95]])) > 0.8
    assert found[0, 4] > 0.7


def test_haar_finds_the_faces_of_lfw_and_none_in_the_patches_without_faces():
    faces = np.load(Path(data.__file__).parent / "lfw_subset.npy")
    detector = load_detector(settings(min_face=30), Path())
    found = [len(detector.detect(enlarged(face), 1)) for face in faces]
    assert sum(count == 1 for count in found[:100]) >= 96
    assert sum(found[100:]) <= 1


def test_haar_finds_no_face_in_photographs_without_one():
    detector = load_detector(settings(), Path())
    for name in WITHOUT_FACES.split():
        picture = np.asarray(getattr(data, name)())
        rgb = np.asarray(Image.fromarray(picture).convert("RGB"))
        assert len(detector.detect(rgb, 1)) == 0, name


def test_a_large_picture_is_searched_at_a_smaller_size_and_boxes_are_of_the_large_one():
    large = np.asarray(Image.fromarray(data.astronaut()).resize((2048, 2048)))
    (found,) = load_detector(settings(detect_side=512), Path()).detect(large, 1)
    assert overlap(found[None], np.array([[177, 66, 95, 95]]) * 4.0) > 0.7


def test_the_choice_of_a_detector_has_its_reason():
    config = {"inputs": (Path("a.jpg"),), "out": Path("o")}
    assert choose_detector(FacesConfig(**config))[0] == "haar"
    assert "weights come with OpenCV" in choose_detector(FacesConfig(**config))[1]
    name, why = choose_detector(FacesConfig(**config, boxes=Path("/home/me/b.csv")))
    assert (name, why) == ("boxes", "boxes of b.csv")
    name, why = choose_detector(FacesConfig(**config, detector_model=Path("../me/y.onnx")))
    assert (name, why) == ("yunet", "--detector-model y.onnx")
    assert choose_detector(FacesConfig(**config, detector="none"))[0] == "none"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"detector": "boxes"}, "--detector boxes: expected a file in --boxes"),
        ({"detector": "yunet"}, "--detector yunet: expected a file in --detector-model"),
        ({"detector": "haar", "boxes": Path("b.csv")}, "--detector haar reads no such file"),
        ({"boxes": Path("b"), "detector_model": Path("m")}, "expected one of them"),
        ({"every": 0}, "--every 0: expected 1 to 1000"),
        ({"margin": float("nan")}, "--margin nan"),
        ({"inputs": ()}, "INPUT"),
    ],
)
def test_wrong_settings_are_one_line(changes, match):
    given = {"inputs": (Path("a.jpg"),), "out": Path("o"), **changes}
    with pytest.raises(RaffectError, match=match):
        FacesConfig(**given)


def test_a_file_that_is_no_yunet_model_is_one_line(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    chosen = settings(detector_model=tmp_path / "m.onnx")
    with pytest.raises(RaffectError, match="not a YuNet model that OpenCV reads"):
        require_detector(chosen)


def test_without_a_detector_the_whole_picture_is_the_face_without_a_margin():
    (row,) = WholePicture().detect(np.zeros((30, 50, 3), np.uint8), 1)
    assert row[:5].tolist() == [0, 0, 50, 30, 1]
    assert settings(detector="none").margin == 0
    assert settings(detector="none").every == 1


# Tables of other tools


def boxes_of(table, tmp_path, name="clip.mp4", frame=1, file="boxes.csv"):
    path = tmp_path / file
    if isinstance(table, str):
        path.write_text(table)
    else:
        pq.write_table(table, path)
    return read_boxes(path).of(Path("videos") / name).detect(np.zeros((1, 1, 3)), frame)


def test_a_table_of_our_own_columns_is_read(tmp_path):
    table = pa.table(
        {"input": ["clip.mp4", "other.mp4"], "frame": [1, 1], "x": [3.5, 9], "y": [4, 9]}
    )
    table = table.append_column("w", [[20, 9]]).append_column("h", [[30, 9]])
    (row,) = boxes_of(table, tmp_path, file="boxes.parquet")
    assert row[:5].tolist() == [3.5, 4, 20, 30, 1.0]
    assert np.isnan(row[5:]).all()


def test_py_feat_counts_frames_from_zero_and_names_its_input(tmp_path):
    head = "frame,FaceRectX,FaceRectY,FaceRectWidth,FaceRectHeight,FaceScore,input\n"
    text = head + "0,1,2,30,40,0.9,/data/clip.mp4\n1,5,6,30,40,0.8,/data/clip.mp4\n1,,,,,,b.mp4\n"
    assert boxes_of(text, tmp_path, frame=1)[0, :5].tolist() == [1, 2, 30, 40, 0.9]
    assert boxes_of(text, tmp_path, frame=2)[0, :5].tolist() == [5, 6, 30, 40, 0.8]
    assert len(boxes_of(text, tmp_path, frame=3)) == 0


def test_openface_has_blanks_before_names_and_no_boxes_but_landmarks(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(10, 90, (2, 68))
    names = ["frame", "face_id", "timestamp", "confidence", "success"]
    names += [f"{axis}_{k}" for axis in "xy" for k in range(68)]
    rows = [[1, 0, 0.0, 0.97, 1, *x, *y], [2, 0, 0.04, 0.1, 0, *x, *y]]
    text = "\n".join([", ".join(names), *(", ".join(map(str, row)) for row in rows)])
    (row,) = boxes_of(text, tmp_path)
    assert row[:4].tolist() == [x.min(), y.min(), np.ptp(x), np.ptp(y)]
    assert row[4] == 0.97
    eyes = [x[36:42].mean(), y[36:42].mean(), x[42:48].mean(), y[42:48].mean()]
    assert row[5:] == pytest.approx(eyes)
    assert len(boxes_of(text, tmp_path, frame=2)) == 0  # success is 0


def test_a_table_names_an_input_by_the_end_of_its_path_its_stem_or_its_old_place(tmp_path):
    rows = "".join(f"{name},1,{x},0,9,9\n" for x, name in enumerate(("a/v.mp4", "b/v.mp4", "w")))
    (tmp_path / "t.csv").write_text(f"input,frame,x,y,w,h\n{rows}/old/k.mp4,1,7,0,9,9\n")
    table = read_boxes(tmp_path / "t.csv")

    def found(path):
        return table.of(Path(path)).detect(np.zeros((1, 1, 3)), 1)[:, 0].tolist()

    assert found("/videos/a/v.mp4") == [0]
    assert found("/videos/b/v.mp4") == [1]
    assert found("/videos/c/w.mp4") == [2]
    assert found("/new/k.mp4") == [7]
    assert found("/new/x.mp4") == []
    with pytest.raises(RaffectError, match=r"rows of a/v.mp4, b/v.mp4 may be of /videos/c/v.mp4"):
        found("/videos/c/v.mp4")


def test_corners_of_mtcnn_become_a_box(tmp_path):
    text = "path,x1,y1,x2,y2,prob\nvideos/clip.mp4,10,20,50,80,0.99\n"
    assert boxes_of(text, tmp_path)[0, :5].tolist() == [10, 20, 40, 60, 0.99]


def test_a_table_that_names_no_input_is_for_one(tmp_path):
    (tmp_path / "b.csv").write_text("frame,x,y,w,h\n1,1,1,9,9\n")
    chosen = settings(boxes=tmp_path / "b.csv")
    assert require_detector(chosen, [Path("a.mp4")]) == ""
    with pytest.raises(RaffectError, match="has no column input, and there are 2 inputs"):
        require_detector(chosen, [Path("a.mp4"), Path("b.mp4")])


@pytest.mark.parametrize(
    ("named", "first", "second"),
    [
        ("s01/video.mp4", "s01/video.mp4", "s02/video.mp4"),
        ("video.mp4", "s01/video.mp4", "s02/video.mp4"),
        ("video", "s01/video.mp4", "s01/video.avi"),
        (None, "s01/video.mp4", "s02/video.mp4"),
    ],
    ids=["path", "file name", "stem", "folder"],
)
def test_boxes_of_one_person_never_go_to_another(named, first, second, tmp_path):
    files = [tmp_path / first, tmp_path / second]
    if named is None:
        (tmp_path / "boxes").mkdir()
        (tmp_path / "boxes" / "video.csv").write_text("frame,x,y,w,h\n1,1,1,9,9\n")
        chosen, named = settings(boxes=tmp_path / "boxes"), "video.csv"
    else:
        (tmp_path / "b.csv").write_text(f"input,frame,x,y,w,h\n{named},1,1,1,9,9\n")
        chosen = settings(boxes=tmp_path / "b.csv")
    match = f"rows of {named} may be of {files[0]} or of {files[1]}"
    with pytest.raises(RaffectError, match=re.escape(match)):
        require_detector(chosen, files)
    # Each alone is clear, and so is one file given twice
    require_detector(chosen, files[:1])
    require_detector(chosen, files[1:])
    require_detector(chosen, [files[0], files[0].parent / "." / files[0].name])


def test_an_input_without_a_face_is_named_by_a_row_without_a_box(tmp_path):
    rows = "s01/video.mp4,1,1,1,9,9\ns02/video.mp4,1,,,,\n"
    (tmp_path / "b.csv").write_text(f"input,frame,x,y,w,h\n{rows}")
    files = [tmp_path / "s01" / "video.mp4", tmp_path / "s02" / "video.mp4"]
    assert require_detector(settings(boxes=tmp_path / "b.csv"), files) == ""
    table = read_boxes(tmp_path / "b.csv")
    assert [len(table.of(file).detect(np.zeros((1, 1, 3)), 1)) for file in files] == [1, 0]


@pytest.mark.parametrize("head", ["input,frame,x,y,w,h", "frame, input, x, y, w, h"])
def test_inputs_whose_names_are_numbers_keep_their_zeros(head, tmp_path):
    cells = {"input": "001", "frame": "1", "x": "3", "y": "1", "w": "9", "h": "9"}
    comma = ", " if ", " in head else ","
    row = comma.join(cells[name] for name in head.split(comma))
    (found,) = boxes_of(f"{head}\n{row}\n", tmp_path, name="001.mp4")
    assert found[0] == 3
    assert len(boxes_of(f"{head}\n{row}\n", tmp_path, name="1.mp4", file="c.csv")) == 0


def test_inputs_without_a_row_are_counted_and_the_first_is_named(tmp_path):
    (tmp_path / "b.csv").write_text("input,frame,x,y,w,h\na.mp4,1,1,1,9,9\n")
    files = [tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4")]
    found = require_detector(settings(boxes=tmp_path / "b.csv"), files)
    assert found == f"no row for 2 of 3 inputs, the first is {files[1]}"


def test_a_folder_holds_a_table_an_input(tmp_path):
    (tmp_path / "clip.csv").write_text("frame,x,y,w,h\n1,1,2,3,4\n")
    folder = read_boxes(tmp_path)
    assert len(folder.of(Path("a/clip.mp4")).detect(np.zeros((1, 1, 3)), 1)) == 1
    assert len(folder.of(Path("a/none.mp4")).detect(np.zeros((1, 1, 3)), 1)) == 0
    found = require_detector(settings(boxes=tmp_path), [tmp_path / "clip.mp4", tmp_path / "b.mp4"])
    first = f"the first is {tmp_path}/b.mp4, whose file would be b.csv"
    assert found == f"no row for 1 of 2 inputs, {first}"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("input,frame,x,y,w,h\nd/other.mp4,1,1,1,9,9\n", "; it names 'd/other.mp4'"),
        ("input,frame,x,y,w,h\n", ""),
        (None, ""),
    ],
)
def test_boxes_of_none_of_the_inputs_are_refused_with_the_name_that_was_expected(
    text, match, tmp_path
):
    boxes, files = tmp_path / "b", [tmp_path / "b 1.mp4", tmp_path / "c.mp4"]
    if text is None:
        boxes.mkdir()
        what = f"holds a file of none of the 2 input(s); expected b 1.csv for {files[0]}"
    else:
        boxes.write_text(text)
        what = f"has a row of none of the 2 input(s); expected 'b 1.mp4' for {files[0]}{match}"
    with pytest.raises(RaffectError, match=f"^{re.escape(f'--boxes {boxes}: {what}')}$"):
        require_detector(settings(boxes=boxes), files)


@pytest.mark.parametrize(
    "cells", ["nan,1,2,2", "1,1,0,2", "1,1,-4,2", "1e300,1,2,2", "inf,1,2,2", ",1,2,2"]
)
def test_a_row_without_a_box_is_left_out(cells, tmp_path):
    assert len(boxes_of(f"frame,x,y,w,h\n1,{cells}\n1,5,5,5,5\n", tmp_path)) == 1


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("frame,left,top\n1,2,3\n", "no columns of a known kind"),
        ("frame,x,x,y,w,h\n1,1,1,1,1,1\n", "column 'x' is there twice"),
        ("frame,x,y,w,h\n1,a,1,1,1\n", "column 'x' has no numbers"),
        ("", "not a readable table"),
    ],
)
def test_a_table_that_is_none_is_one_line(text, match, tmp_path):
    with pytest.raises(RaffectError, match=match):
        boxes_of(text, tmp_path)
    with pytest.raises(RaffectError, match="no such file"):
        read_boxes(tmp_path / "gone.csv")
