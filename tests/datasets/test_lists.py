"""Lists of data sets: of any system and kind; those that are not understood are named."""

import shutil

import pytest

from raffect.errors import RaffectError
from tests.helpers.damaged_sets import copy_of_layout, of
from tests.helpers.layouts import labels_of, run

tree = pytest.fixture(copy_of_layout)


@pytest.mark.parametrize("name", ["dfew", "ferv39k", "mafw", "rafdb", "disfa"])
@pytest.mark.parametrize("end", ["\r\n", "\r", "\r\r\n"])
def test_lists_with_the_line_ends_of_any_system_are_the_same_labels(name, end, tree, tmp_path):
    _, root = tree
    _, manifest, before, _ = run(root, tmp_path / "before", name)
    for file in [*root.rglob("*.txt")]:
        lines = file.read_bytes().decode("gbk").splitlines()
        file.write_bytes(end.join([*lines, ""]).encode("gbk"))
    _, same, labels, problems = run(root, tmp_path / "out", name)
    assert problems == []
    assert same == manifest
    assert all(labels[task].equals(table) for task, table in before.items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dfew", "10 lists of DFEW .DFEW_set_1_test.txt ..."),
        ("ferv39k", "2 lists of FERV39k .test_image.txt ..."),
        ("mafw", "10 lists of MAFW single .Train_Test_Set/single/no_caption/set_1/test.txt ..."),
    ],
)
def test_lists_without_a_line_that_is_understood_are_not_called_missing(
    name, expected, tree, tmp_path
):
    _, root = tree
    shutil.rmtree(root / "Train_Test_Set/compound", ignore_errors=True)
    for content, reason in ((b"", "they are empty"), (b"-\n", "first problem: .*:1: '-': ")):
        for file in root.rglob("*.txt"):
            file.write_bytes(content)
        with pytest.raises(
            RaffectError, match=f"{expected}.*, of which no line is understood; {reason}"
        ) as error:
            run(root, tmp_path / "out", name)
        assert "\n" not in str(error.value)
    for file in root.rglob("*.txt"):
        file.unlink()
    with pytest.raises(RaffectError, match="no lists of "):
        run(root, tmp_path / "out", name)


@of("dfew")
def test_a_flag_that_the_numbers_contradict_is_refused(name, tree, tmp_path):
    _, root = tree
    with pytest.raises(RaffectError, match="--first-class 1: .* are 0 to 6, which count from 0"):
        run(root, tmp_path / "out", name, first_class=1)
    # Where first and last number occur, one of them by mistake, the flag decides
    file = root / "DFEW_set_1_train.txt"
    clip = file.read_text().split()[0]
    file.write_text(f"{file.read_text()}{clip} 6 7\n")
    with pytest.raises(RaffectError, match="are 0 to 7, which may count from 0 or from 1"):
        run(root, tmp_path / "out", name)
    _, _, _, problems = run(root, tmp_path / "out", name, first_class=0)
    assert any("'7' is not a class" in row["problem"] for row in problems)


@pytest.mark.parametrize("name", ["dfew", "ferv39k"])
def test_lists_of_another_kind_beside_those_that_are_read_are_named(name, tree, tmp_path):
    _, root = tree
    other = {"dfew": "train(single-labeled)/set_1.csv", "ferv39k": "all/train_All.csv"}[name]
    (root / other).parent.mkdir()
    (root / other).write_text("video_name,label\n1,3\n")
    report, _, _, problems = run(root, tmp_path / "out", name)
    assert f"lists not read: {other}" in report.lines()
    assert problems == []


@of("dfew")
def test_a_copy_without_test_lists_has_no_test_and_no_folds_and_the_report_says_so(
    name, tree, tmp_path
):
    _, root = tree
    for file in root.glob("*_test.txt"):
        file.unlink()
    report, _, labels, _ = run(root, tmp_path / "out", name)
    assert set(labels["expr"]["split"].to_pylist()) == {"train", "validation"}
    how = "0.2 of the train clips are validation; no --folds official, no test lists"
    assert f"split: {how}" in report.lines()


@of("afew")
def test_splits_of_afew_may_be_called_as_its_archives_are(name, tree, tmp_path):
    plan, root = tree
    (root / "AFEW_Face/train").rename(root / "Train_AFEW")
    (root / "AFEW_Face/validation").rename(root / "Val_AFEW")
    report, _, labels, problems = run(root, tmp_path / "out", "auto")
    assert problems == []
    assert report.lines()[0] == "recognised: afew, by folder Train_AFEW"
    drawn = sorted((row["split"], row["expression"]) for row in plan.rows)
    splits = labels["expr"]["split"].to_pylist()
    found = zip(splits, labels_of(labels["expr"]).values(), strict=True)
    assert sorted(found) == drawn
    with pytest.raises(RaffectError, match="no frames of AFEW; .*first frames are in Angry/"):
        run(root / "Train_AFEW", tmp_path / "low", name)
