"""Damaged copies of sets of pictures and of DISFA: what is wrong is named, and never guessed."""

import numpy as np
import pytest

from raffect.errors import RaffectError
from tests.helpers.damaged_sets import copy_of_layout, kinds, of
from tests.helpers.layouts import PIXELS, edit, labels_of, run

tree = pytest.fixture(copy_of_layout)


@of("rafdb")
def test_doubles_unknown_classes_and_missing_pictures_of_rafdb_are_named(name, tree, tmp_path):
    _, root = tree
    file = root / "EmoLabel/list_patition_label.txt"
    lines = file.read_text().splitlines()
    stems = [line.split(".")[0] for line in lines]
    other = f"{lines[3][:-1]}{int(lines[3][-1]) % 7 + 1}"
    lines[2] = f"{stems[2]}.jpg 12"
    file.write_text("\n".join([*lines, lines[0], other]))
    (root / f"Image/aligned/{stems[1]}_aligned.jpg").unlink()
    _, manifest, labels, problems = run(root, tmp_path / "out", name)
    found = labels_of(labels["expr"])
    assert found[stems[2]] is None
    assert found[stems[3]] is None
    by_line = {int(row["line"]): row["problem"] for row in problems}
    assert by_line[3].startswith("'12' is not a class")
    assert by_line[2] == f"{stems[1]}: no such picture"
    assert "a picture again; left out (first in" in by_line[len(lines) + 1]
    assert "again with other labels; unlabelled" in by_line[len(lines) + 2]
    assert len(manifest) == len(lines) - 1


@of("rafdb")
def test_the_compound_part_of_rafdb_is_refused(name, tree, tmp_path):
    _, root = tree
    file = root / "EmoLabel/list_patition_label.txt"
    file.write_text(file.read_text().replace(".jpg 4", ".jpg 9"))
    with pytest.raises(RaffectError, match="classes 8 to 11, as the compound part has"):
        run(root, tmp_path / "out", name)


@of("rafdb")
def test_the_aligned_picture_counts_where_the_original_lies_beside_it(name, tree, tmp_path):
    plan, root = tree
    (root / "Image/original").mkdir()
    for path in plan.pictures:
        name_of = path.split("/")[-1].replace("_aligned", "")
        (root / "Image/original" / name_of).write_bytes(PIXELS[".jpg"])
    _, manifest, _, problems = run(root, tmp_path / "out", name)
    assert problems == []
    assert all(path.endswith("_aligned.jpg") for path in manifest.values())


@of("affectnet")
def test_arrays_of_affectnet_that_are_missing_or_wrong_leave_a_picture_unlabelled(
    name, tree, tmp_path
):
    plan, root = tree
    rows = [row for row in plan.rows if row["split"] == "train" and row["expression"]]
    one, two, three = (row["video"].split("/")[1] for row in rows[:3])
    folder = root / "train_set/annotations"
    (folder / f"{one}_exp.npy").unlink()
    (folder / f"{two}_exp.npy").write_bytes(b"\x93NUMPY rubbish")
    np.save(folder / f"{three}_val.npy", np.array("1.5"))
    report, _, labels, _ = run(root, tmp_path / "out", name)
    assert kinds(report) == {
        "no array of kind exp; unlabelled",
        "not an array of one number; unlabelled",
        "expected valence and arousal from -1 to 1; unlabelled",
    }
    found = labels_of(labels["expr"])
    assert found[f"train/{one}"] is None
    assert found[f"train/{two}"] is None
    assert found[f"train/{three}"] is not None
    assert labels["va"].to_pylist()[0].keys() >= {"valence", "arousal"}


def pickled(file):
    np.save(file, np.array([object()]), allow_pickle=True)


def zipped(file):
    np.savez(file.with_suffix(".npz"), np.array(3))
    file.with_suffix(".npz").rename(file)


def claims_to_be_huge(file):
    content = file.read_bytes()
    head = content.replace(b"'shape': ()", b"'shape': (99999999999,)")
    file.write_bytes(head[: len(content)])


def claims_more_than_a_number_holds(file):
    file.write_bytes(file.read_bytes().replace(b"'shape': ()", b"'shape': (9" + b"9" * 40 + b",)"))


def has_an_open_bracket(file):
    file.write_bytes(file.read_bytes().replace(b"'shape': ()", b"'shape': (("))


def has_letters_beyond_unicode(file):
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")


@of("affectnet")
@pytest.mark.parametrize(
    "change",
    [
        pickled,
        zipped,
        claims_to_be_huge,
        claims_more_than_a_number_holds,
        has_an_open_bracket,
        has_letters_beyond_unicode,
    ],
)
def test_arrays_that_would_run_code_or_are_others_are_not_loaded(name, tree, tmp_path, change):
    plan, root = tree
    number = next(row["video"] for row in plan.rows if row["split"] == "train").split("/")[1]
    change(root / f"train_set/annotations/{number}_exp.npy")
    report, _, labels, _ = run(root, tmp_path / "out", name)
    assert kinds(report) == {"not an array of one number; unlabelled"}
    assert labels_of(labels["expr"])[f"train/{number}"] is None


@of("affectnet")
def test_half_a_pair_of_utf_16_as_valence_is_named_in_the_file_of_problems(name, tree, tmp_path):
    plan, root = tree
    number = next(row["video"] for row in plan.rows if row["split"] == "train").split("/")[1]
    np.save(root / f"train_set/annotations/{number}_val.npy", np.array("\ud800"))
    _, _, _, problems = run(root, tmp_path / "out", name)
    assert [row["problem"][:8] for row in problems] == ["'\\ud800'"]


@of("affectnet-csv")
def test_a_table_of_affectnet_without_header_has_the_published_columns(name, tree, tmp_path):
    plan, root = tree
    for file in root.rglob("*.csv"):
        file.write_text(file.read_text().partition("\n")[2])
    report, _, labels, problems = run(root, tmp_path / "out", "affectnet")
    assert problems == []
    assert sum("no header; columns as published" in line for line in report.lines()) == 2
    found = labels_of(labels["expr"])
    assert found == {row["video"]: row["expression"] or None for row in plan.rows}
    edit(next(root.rglob("training.csv")), ",0,0,112", ",0,0,112,7")
    with pytest.raises(RaffectError, match="training.csv: expected a header, or 9 columns"):
        run(root, tmp_path / "out", "affectnet")


@of("disfa")
def test_wrong_intensities_and_missing_units_of_disfa_are_unlabelled(name, tree, tmp_path):
    _, root = tree
    folder = root / "ActionUnit_Labels/SN002"
    (folder / "SN002_au4.txt").unlink()
    lines = (folder / "SN002_au1.txt").read_text().splitlines()
    (folder / "SN002_au1.txt").write_text("\n".join(["1,9", *lines[1:], lines[4]]))
    report, _, labels, problems = run(root, tmp_path / "out", name)
    assert kinds(report) == {
        "expected a frame from 1 and an intensity from 0 to 5; unlabelled",
        "a frame again; left out",
        "no file of a unit; unlabelled",
    }
    own = [row for row in labels["au"].to_pylist() if row["video"] == "SN002_left"]
    assert {row["AU4"] for row in own} == {-1}
    assert own[0]["AU1"] == -1
    assert {row["AU1"] for row in own[1:]} <= {0, 1}
    (doubled,) = [row for row in problems if "a frame again" in row["problem"]]
    assert int(doubled["line"]) == len(lines) + 1


@of("disfa")
def test_videos_that_were_not_cut_into_frames_are_refused_with_the_reason(name, tree, tmp_path):
    plan, root = tree
    for path in plan.pictures:
        (root / path).unlink()
    (root / "Video_LeftCamera/LeftVideoSN001_comp.avi").write_bytes(b"RIFF")
    with pytest.raises(RaffectError, match="DISFA comes as videos: cut them first"):
        run(root, tmp_path / "out", name)


@of("disfa")
def test_labels_of_disfa_that_count_from_0_are_unlabelled_and_never_shifted(name, tree, tmp_path):
    _, root = tree
    file = root / "ActionUnit_Labels/SN003/SN003_au12.txt"
    cells = [line.split(",") for line in file.read_text().splitlines()]
    file.write_text("".join(f"{int(frame) - 1},{level}\n" for frame, level in cells))
    _, _, labels, problems = run(root, tmp_path / "out", name)
    (problem,) = problems
    assert (problem["file"], problem["line"]) == ("ActionUnit_Labels/SN003/SN003_au12.txt", "1")
    assert "count from 0, expected from 1; the unit is unlabelled" in problem["problem"]
    own = [row for row in labels["au"].to_pylist() if row["video"] == "SN003_left"]
    assert {row["AU12"] for row in own} == {-1}
    assert {row["AU1"] for row in own} <= {0, 1}


@of("disfa")
def test_labels_of_disfa_without_a_picture_are_refused_and_nothing_is_written(name, tree, tmp_path):
    _, root = tree
    for file in root.rglob("*_au*.txt"):
        cells = [line.split(",") for line in file.read_text().splitlines()]
        file.write_text("".join(f"{int(frame) + 5000},{level}\n" for frame, level in cells))
    with pytest.raises(RaffectError, match="no frame of SN001_left or another video has labels"):
        run(root, tmp_path / "out", name)
    for file in root.rglob("*_au*.txt"):
        file.write_text("rubbish\n")
    with pytest.raises(RaffectError, match="72 lists of DISFA .*SN001_au1.txt:1: 'rubbish': "):
        run(root, tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


@of("affectnet")
def test_the_array_that_holds_a_wrong_number_is_the_one_that_is_named(name, tree, tmp_path):
    plan, root = tree
    rows = [row["video"].split("/")[1] for row in plan.rows if row["split"] == "train"]
    folder = root / "train_set/annotations"
    np.save(folder / f"{rows[0]}_exp.npy", np.array(3.5))
    np.save(folder / f"{rows[1]}_val.npy", np.array("7"))
    _, _, _, problems = run(root, tmp_path / "out", name)
    files = {row["file"].split("/")[-1] for row in problems}
    assert files == {f"{rows[0]}_exp.npy", f"{rows[1]}_val.npy"}


@of("affectnet-csv")
def test_tables_of_affectnet_may_be_utf_16_and_their_counts_are_one_line(name, tree, tmp_path):
    plan, root = tree
    for file in root.rglob("*.csv"):
        file.write_bytes(file.read_text().encode("utf-16"))
    report, _, labels, problems = run(root, tmp_path / "out", "auto")
    assert problems == []
    found = labels_of(labels["expr"])
    assert found == {row["video"]: row["expression"] or None for row in plan.rows}
    (line,) = [line for line in report.lines() if line.startswith("without an expression")]
    number = sum(int(word) for word in line.split() if word.isdigit())
    assert number == sum(not row["expression"] for row in plan.rows) > 0
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RaffectError, match="not a readable CSV file"):
        run(root, tmp_path / "out", "affectnet")


@of("affectnet")
def test_tables_beside_the_arrays_of_affectnet_are_named_as_not_read(name, tree, tmp_path):
    _, root = tree
    (root / "training.csv").write_text("subDirectory_filePath,expression,valence,arousal\n")
    report, *_ = run(root, tmp_path / "out", name)
    assert "arrays are read; lists not read: training.csv" in report.lines()
