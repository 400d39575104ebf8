"""Annotations: exact, never shifted, every irregularity reported with file and line."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raffect.datasets.affwild2.annotations import read_annotations
from raffect.datasets.affwild2.lines import (
    parse_expression,
    parse_units,
    parse_valence_arousal,
)
from raffect.datasets.affwild2.tasks import ACTION_UNITS, AU, EXPR, HEADERS, VA
from raffect.datasets.synthetic.course import draw_course
from raffect.datasets.synthetic.plan import plan_videos
from raffect.datasets.synthetic.tree import EDITION
from raffect.errors import RaffectError


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def expr_file(tmp_path, content: bytes, name="EXPR_Recognition_Challenge/Train_Set/v.txt"):
    return read_annotations(write_tree(tmp_path, {name: content}))


HEADER = HEADERS[EXPR].encode()
MTL_HEADER = b"image,valence,arousal,expression,aus"
NO_UNITS = b",".join([b"0"] * 12)


def test_line_k_is_frame_k(tmp_path):
    table = expr_file(tmp_path, HEADER + b"\n4\n-1\n7\n0\n").tables[EXPR]
    assert table["frame"].to_pylist() == [1, 2, 3, 4]
    assert table["expression"].to_pylist() == [4, -1, 7, 0]
    assert set(table["split"].to_pylist()) == {"train"}


IRREGULAR = {
    "crlf-no-newline": HEADER + b"\r\n4\r\n-1\r\n7",
    "bom": b"\xef\xbb\xbf" + HEADER + b"\n4\n-1\n7\n",
    "trailing-comma-and-blanks": HEADER + b", \n4\n-1\n7\n\n\n",
    "spaces": HEADER + b" \n 4 \n-1\n7\n \n",
    "spaced-header": HEADER.replace(b",", b", ") + b"\n4\n-1\n7",
    "old-mac": HEADER + b"\r4\r-1\r7\r",
    "doubled-cr": HEADER + b"\r\r\n4\r\r\n-1\r\r\n7\r\r\n",
}


@pytest.mark.parametrize("content", IRREGULAR.values(), ids=IRREGULAR)
def test_irregularities_of_real_files_change_nothing(tmp_path, content):
    found = expr_file(tmp_path, content)
    assert found.tables[EXPR]["expression"].to_pylist() == [4, -1, 7]
    assert found.problems == []


NO_NUMBERS = (b"", b"x", b"1.0", b"1_0", b"1,2", b"+1", "٣".encode(), b"\xff\xfe")
NO_CLASSES = (b"8", b"-2", b"99999999999999")


@pytest.mark.parametrize("bad", NO_NUMBERS + NO_CLASSES)
def test_a_wrong_line_keeps_its_place_and_is_reported(tmp_path, bad):
    found = expr_file(tmp_path, HEADER + b"\n1\n" + bad + b"\n3\n")
    assert found.tables[EXPR]["expression"].to_pylist() == [1, -1, 3]
    (problem,) = found.problems
    assert problem.file.endswith("Train_Set/v.txt")
    assert problem.line == 3
    assert "-1 to 7" in problem.what


@pytest.mark.parametrize(
    "folder",
    [
        "EXPR_Classification_Challenge/Train_Set",
        "EXPR_Recognition_Challenge/Train_Set",
        "EXPR_Set/Training_Set",
        "EXPR_Set/Train_Set",
        "6th ABAW Annotations/EXPR_Recognition_Challenge/Train_Set",
    ],
)
def test_every_edition_is_found(tmp_path, folder):
    found = expr_file(tmp_path, HEADER + b"\n4\n", f"{folder}/v.txt")
    assert len(found.tables[EXPR]) == 1
    assert found.edition == ("6th ABAW Annotations" if "6th" in folder else tmp_path.name)


def test_the_2020_edition_is_reported_and_not_misread(tmp_path):
    files = {
        "EXPR_Set/Train_Set/v.txt": HEADER + b"\n1\n",
        "EXPR_Set/Train_Set/w.txt": b"Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise\n1\n",
        "AU_Set/Train_Set/v.txt": b"AU1,AU2,AU4,AU6,AU12,AU15,AU20,AU25\n" + b"0," * 7 + b"1\n",
    }
    found = read_annotations(write_tree(tmp_path, files))
    assert list(found.tables) == [EXPR]
    assert [problem.line for problem in found.problems] == [1, 1]
    assert all("2020 edition" in problem.what for problem in found.problems)


def test_a_file_without_header_is_left_out_not_shifted(tmp_path):
    files = {"EXPR_Set/Train_Set/v.txt": b"1\n2\n", "EXPR_Set/Train_Set/w.txt": HEADER + b"\n3\n"}
    found = read_annotations(write_tree(tmp_path, files))
    assert found.tables[EXPR]["video"].to_pylist() == ["w"]
    assert "expected the header" in found.problems[0].what


def test_au_and_va_values_and_marks(tmp_path):
    au_lines = [HEADERS[AU].encode(), b"0,1," * 5 + b"-1,1", b"2" + b",0" * 11]
    va_lines = [
        b"valence,arousal",
        b"0.25,-1",
        b"-5,-5",
        b"1.01,0",
        b".5,1e-1",
        b"nan,0",
        b"-5,0.1",
    ]
    files = {
        "AU_Detection_Challenge/Validation_Set/v_left.txt": b"\n".join(au_lines),
        "VA_Estimation_Challenge/Train_Set/v.txt": b"\n".join(va_lines),
    }
    found = read_annotations(write_tree(tmp_path, files))
    au, va = found.tables[AU], found.tables[VA]
    assert [au[unit][0].as_py() for unit in ACTION_UNITS] == [0, 1] * 5 + [-1, 1]
    assert [au[unit][1].as_py() for unit in ACTION_UNITS] == [-1] * 12
    assert au["video"].to_pylist() == ["v_left"] * 2
    assert va["valence"].to_pylist() == [0.25, -5, -5, 0.5, -5, -5]
    values = np.stack([va["valence"].to_numpy(), va["arousal"].to_numpy()], 1)
    both, neither = [True, True], [False, False]
    known = [both, neither, neither, both, neither, [False, True]]
    assert VA.is_labelled(values).tolist() == known
    assert sorted(problem.line for problem in found.problems) == [3, 4, 6]


def test_mtl_file_gives_all_three_tasks_and_counts_repeats(tmp_path):
    row = b"a/00003.jpg,0.1,-0.2,4," + b",".join([b"0"] * 11 + [b"1"])
    other = row.replace(b",4,", b",5,")
    unlabelled = b"b_right/00001.jpg,-5,-5,-1," + b",".join([b"-1"] * 12)
    train = [MTL_HEADER, row, row, other, unlabelled, b"broken", b""]
    validation = [MTL_HEADER, row.replace(b"a/", b"c/"), b""]
    files = {
        "MTL_Challenge/training_set_annotations.txt": b"\n".join(train),
        "MTL_Challenge/validation_set_annotations.txt": b"\n".join(validation),
    }
    found = read_annotations(write_tree(tmp_path, files))
    assert found.tables[EXPR].select(["video", "frame", "expression"]).to_pylist() == [
        {"video": "a", "frame": 3, "expression": 4},
        {"video": "b_right", "frame": 1, "expression": -1},
        {"video": "c", "frame": 3, "expression": 4},
    ]
    assert found.tables[AU]["AU26"].to_pylist() == [1, -1, 1]
    assert found.tables[VA]["valence"].to_pylist() == pytest.approx([0.1, -5, 0.1])
    assert found.tables[EXPR]["split"].to_pylist() == ["train", "train", "validation"]
    what = [problem.what for problem in found.problems]
    assert any("other values" in text for text in what)
    assert any("2 lines repeat" in text for text in what)
    assert any("broken" in text for text in what)


def test_two_editions_below_one_folder_are_refused(tmp_path):
    for edition in ("5th", "6th"):
        name = f"{edition}/EXPR_Recognition_Challenge/Train_Set/v.txt"
        write_tree(tmp_path, {name: HEADER + b"\n1\n"})
    with pytest.raises(RaffectError, match="2 editions .*5th, 6th"):
        read_annotations(tmp_path)


def test_an_mtl_file_has_one_split_and_a_video_too(tmp_path):
    content = MTL_HEADER + b"\na/00003.jpg,0.1,-0.2,4," + NO_UNITS + b"\n"
    files = {f"MTL/{name}.txt": content for name in ("train_val", "training", "validation")}
    found = read_annotations(write_tree(tmp_path, files))
    assert found.tables[EXPR]["split"].to_pylist() == ["train"]
    both, second = (problem.what for problem in found.problems)
    assert "rename it" in both
    assert "train split too" in second


def test_mtl_files_beside_single_tasks_are_named_and_not_read(tmp_path):
    content = MTL_HEADER + b"\na/00003.jpg,0.1,-0.2,4," + NO_UNITS + b"\n"
    files = {
        "EXPR_Set/Train_Set/v.txt": HEADER + b"\n1\n",
        "MTL_Challenge/training_set_annotations.txt": content,
        "readme.txt": b"not an annotation\n",
    }
    found = read_annotations(write_tree(tmp_path, files))
    assert found.tables.keys() == {EXPR}
    assert found.tables[EXPR]["video"].to_pylist() == ["v"]
    assert found.ignored.lines("annotations") == [
        "ignored among the annotations: 1 MTL files beside single tasks (give their own folder to "
        "read them) (MTL_Challenge/training_set_annotations.txt)"
    ]


def test_a_copy_of_an_mtl_file_doubles_no_frame(tmp_path):
    rows = [b"a/%05d.jpg,0.1,-0.2,4," % frame + NO_UNITS for frame in (1, 2)]
    content = b"\n".join([MTL_HEADER, *rows, b""])
    names = ("training_set_annotations", "training_set_annotations (1)")
    files = {f"MTL/{name}.txt": content for name in names}
    found = read_annotations(write_tree(tmp_path, files))
    assert found.tables[EXPR]["frame"].to_pylist() == [1, 2]
    assert "another file of the train split" in found.problems[0].what


def test_a_video_in_two_splits_is_reported(tmp_path):
    files = {
        f"EXPR_Set/{split}/v.txt": HEADER + b"\n1\n" for split in ("Train_Set", "Validation_Set")
    }
    found = read_annotations(write_tree(tmp_path, files))
    assert len(found.tables[EXPR]) == 1
    assert "train split" in found.problems[0].what


def test_unreadable_and_foreign_files_are_reported_or_ignored(tmp_path):
    files = {
        "v.txt": HEADER + b"\n1\n",
        ".DS_Store": b"x",
        "._v.txt": b"x",
        "u.txt": "\ufeffNeutral".encode("utf-16-le"),
    }
    tree = write_tree(tmp_path, {f"EXPR_Set/Train_Set/{name}": files[name] for name in files})
    (tree / "EXPR_Set/Train_Set/gone.txt").symlink_to(tree / "nowhere")
    found = read_annotations(tree).problems
    problems = {problem.file.rsplit("/", 1)[-1]: problem.what for problem in found}
    assert set(problems) == {"gone.txt", "u.txt"}
    assert "UTF-16" in problems["u.txt"]


@pytest.mark.parametrize("make", [lambda path: path / "missing", lambda path: path])
def test_a_folder_without_annotations_is_one_clear_error(tmp_path, make):
    with pytest.raises(RaffectError, match="annotations"):
        read_annotations(make(tmp_path))


def test_drawn_annotations_come_back_as_drawn(tree):
    found = read_annotations(tree / EDITION)
    assert found.problems == []
    tables = {task.name: table for task, table in found.tables.items()}
    for video in plan_videos(600, 3):
        course = draw_course(video, 3)
        expected = {"expr": (["expression"], course.expr[:, None])}
        expected["au"] = (list(ACTION_UNITS), course.au)
        for task, (columns, truth) in expected.items():
            if video.splits[task] is None:
                continue
            names = tables[task]["video"].to_pylist()
            rows = tables[task].filter(np.array([name == video.name for name in names]))
            values = np.stack([rows[column].to_numpy() for column in columns], 1)

            # Some drawn files have a line or two more or less than their video
            length = min(len(values), len(truth))
            assert abs(len(values) - len(truth)) <= 2
            assert (values[:length] == truth[:length]).all()


@given(st.binary(max_size=40))
@settings(max_examples=500, deadline=None)
def test_parsers_accept_their_language_and_nothing_else(line):
    line = line.strip()

    # The language of each parser in another form
    is_short = len(line.lstrip(b"-")) <= 3
    is_class = re.fullmatch(rb"0*[0-7]|-0*[01]", line) is not None and is_short
    cells = [cell.strip() for cell in line.split(b",")]
    is_units = len(cells) == 12 and set(cells) <= {b"-1", b"0", b"1"}

    for parse, expected in {parse_expression: is_class, parse_units: is_units}.items():
        try:
            parse(line)
        except ValueError:
            assert not expected
        else:
            assert expected

    # Of valence and arousal the range alone
    try:
        values = parse_valence_arousal(line)
    except ValueError:
        return
    assert len(values) == 2
    assert all(value == -5 or -1 <= value <= 1 for value in values)


_LINE = st.one_of(
    st.sampled_from([b"0", b"1", b"7", b"-1", b"", b" 3", b"4\r", b"8", b"\x00"]),
    st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"")),
)


@given(
    lines=st.lists(_LINE, max_size=30),
    ending=st.sampled_from([b"", b"\n", b"\n\n"]),
    bom=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_fuzzed_files_never_shift_and_account_for_every_line(tmp_path_factory, lines, ending, bom):
    content = (b"\xef\xbb\xbf" if bom else b"") + HEADER + b"\n" + b"\n".join(lines) + ending
    found = expr_file(tmp_path_factory.mktemp("fuzz"), content)

    # Every line but the blank ones at the end is a frame
    stripped = [line.strip() for line in lines]
    while stripped and not stripped[-1]:
        stripped.pop()
    table = found.tables[EXPR]
    assert table["frame"].to_pylist() == list(range(1, len(stripped) + 1))

    # Its value, or unlabelled and reported
    wrong = {problem.line for problem in found.problems}
    values = table["expression"].to_pylist()
    for number, (line, value) in enumerate(zip(stripped, values, strict=True), start=2):
        assert value == (-1 if number in wrong else int(line))


def test_the_edition_has_its_name_from_any_working_folder(tmp_path, monkeypatch):
    name = "6th ABAW Annotations/EXPR_Recognition_Challenge/Train_Set/v.txt"
    write_tree(tmp_path, {name: HEADER + b"\n1\n"})
    monkeypatch.chdir(tmp_path / "6th ABAW Annotations")
    for root in (".", "EXPR_Recognition_Challenge", "EXPR_Recognition_Challenge/.."):
        assert read_annotations(Path(root)).edition == "6th ABAW Annotations"
