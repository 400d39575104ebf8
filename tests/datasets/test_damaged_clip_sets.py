"""Damaged copies of sets of clips: what is wrong is named with file and line, and never guessed."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from raffect.errors import RaffectError
from raffect.storage.tables import read_metadata
from tests.helpers.damaged_sets import copy_of_layout, kinds, of
from tests.helpers.layouts import PIXELS, edit, labels_of, run

tree = pytest.fixture(copy_of_layout)


@of("dfew")
def test_missing_frames_and_folders_are_named_and_the_clip_keeps_the_frames_it_has(
    name, tree, tmp_path
):
    plan, root = tree
    (root / "DFEW_Frame_Face/00001/00001.jpg").unlink()
    shutil.rmtree(root / "DFEW_Frame_Face/00002")
    report, manifest, labels, problems = run(root, tmp_path / "out", name)
    table = labels["expr"]
    row = next(row for row in table.to_pylist() if row["video"] == "00001")
    assert (row["start"], ("00001", 1) in manifest) == (2, False)
    assert kinds(report) == {
        "no folder of frames",
        "another number of frames than the list says",
    }
    (missing,) = [row for row in problems if "no folder" in row["problem"]]
    listed = (root / missing["file"]).read_text().splitlines()[int(missing["line"]) - 1]
    assert listed.split()[0].endswith("00002")
    assert len(table) == len(plan.rows), "a clip without frames keeps its row, which no bank has"


@of("dfew")
def test_a_doubled_line_is_named_and_a_clip_with_two_classes_is_unlabelled(name, tree, tmp_path):
    _, root = tree
    file = root / "DFEW_set_1_train.txt"
    first, second = file.read_text().splitlines()[:2]
    other = second.rsplit(" ", 1)[0] + f" {(int(second[-1]) + 1) % 7}"
    text = file.read_text().replace(second, other)
    file.write_text(f"{text}{first}\n")
    _, _, labels, problems = run(root, tmp_path / "out", name)
    (doubled,) = [row for row in problems if "again in the same list" in row["problem"]]
    assert int(doubled["line"]) == len(text.splitlines()) + 1
    assert "first in line 1" in doubled["problem"]
    clip = second.split("/")[-1].split()[0]
    assert labels_of(labels["expr"])[clip] is None
    (conflict,) = [row for row in problems if "another class" in row["problem"]]
    assert clip in conflict["problem"]
    # In one list as well
    again = f"{first[:-1]}{(int(first[-1]) + 1) % 7}"
    file.write_text(f"{text}{again}\n")
    _, _, labels, _ = run(root, tmp_path / "out", name)
    assert labels_of(labels["expr"])[first.split("/")[-1].split()[0]] is None


@of("dfew")
def test_a_clip_in_both_lists_of_a_fold_counts_as_a_test_clip(name, tree, tmp_path):
    _, root = tree
    test, train = root / "DFEW_set_2_test.txt", root / "DFEW_set_2_train.txt"
    leak = test.read_text().splitlines()[0]
    train.write_text(train.read_text() + leak + "\n")
    report, _, labels, problems = run(root, tmp_path / "out", name)
    assert kinds(report) == {"clip in the train list and the test list; counts as test"}
    assert problems[0]["file"] == train.name
    clip = leak.split("/")[-1].split()[0]
    table = labels["expr"].to_pylist()
    assert [row["fold"] for row in table if row["video"] == clip] == [2]


@of("dfew")
def test_classes_that_may_count_from_0_or_1_are_refused_until_a_flag_says_it(name, tree, tmp_path):
    _, root = tree
    # Neither the first class nor the last one occurs
    for file in root.glob("*.txt"):
        lines = [line for line in file.read_text().splitlines() if line[-1] not in "0"]
        file.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(RaffectError, match="may count from 0 or from 1; add --first-class"):
        run(root, tmp_path / "out", name)
    _, _, labels, _ = run(root, tmp_path / "out", name, first_class=0)
    assert labels_of(labels["expr"])
    names = json.loads(read_metadata(labels["expr"])["names"])
    assert names["3"] == "Anger"


@of("dfew")
def test_lists_as_tables_count_from_1_and_name_clips_without_zeros(name, tree, tmp_path):
    plan, root = tree
    for file in list(root.glob("DFEW_set_*.txt")):
        _, _, fold, side = file.stem.split("_")
        cells = [line.split("/")[-1].split() for line in file.read_text().splitlines()]
        rows = [f"{int(clip)},{int(label) + 1}" for clip, _, label in cells]
        out = root / f"EmoLabel_DataSplit/{side}(single-labeled)/set_{fold}.csv"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n".join(["video_name,label", *rows]))
        file.unlink()
    _, _, labels, problems = run(root, tmp_path / "out", name)
    assert problems == []
    assert labels_of(labels["expr"]) == {row["video"]: row["expression"] for row in plan.rows}


@of("dfew")
def test_folds_are_left_out_where_lists_of_some_are_missing(name, tree, tmp_path):
    _, root = tree
    for fold in (3, 4, 5):
        (root / f"DFEW_set_{fold}_train.txt").unlink()
        (root / f"DFEW_set_{fold}_test.txt").unlink()
    report, _, labels, _ = run(root, tmp_path / "out", name)
    assert "fold" not in labels["expr"].column_names
    assert any("test lists of sets 1, 2 of 5" in line for line in report.lines())


@of("dfew")
def test_two_folders_for_one_clip_are_refused_until_images_names_one(name, tree, tmp_path):
    plan, root = tree
    shutil.copytree(root / "DFEW_Frame_Face", root / "Clip/clip_224x224_16f")
    with pytest.raises(RaffectError, match="2 folders hold frames of clip .* with --images"):
        run(root, tmp_path / "out", name)
    images = (root / "DFEW_Frame_Face",)
    _, manifest, _, _ = run(root, tmp_path / "out", name, images=images)
    assert len(manifest) == len(plan.pictures)


@of("dfew")
def test_frames_that_count_from_0_become_one_more_and_the_report_says_so(name, tree, tmp_path):
    _, root = tree
    folder = root / "DFEW_Frame_Face/00003"
    count = len(list(folder.iterdir()))
    (folder / "frame_0.jpg").write_bytes(PIXELS[".jpg"])
    report, manifest, _, _ = run(root, tmp_path / "out", name)
    assert manifest["00003", 1] == "DFEW_Frame_Face/00003/frame_0.jpg"
    assert max(frame for video, frame in manifest if video == "00003") == count + 1
    assert any("count from 0 (one added)" in line for line in report.lines())


@of("ferv39k")
def test_a_number_that_disagrees_with_the_folder_is_unlabelled(name, tree, tmp_path):
    plan, root = tree
    file = root / "train_image.txt"
    lines = file.read_bytes().decode().split("\r\n")
    wrong = lines[2][:-1] + str((int(lines[2][-1]) + 1) % 7)
    edit(file, lines[2], wrong)
    report, _, labels, problems = run(root, tmp_path / "out", name)
    assert kinds(report) == {"class and folder of the clip disagree; unlabelled"}
    assert (problems[0]["file"], problems[0]["line"]) == ("train_image.txt", "3")
    found = labels_of(labels["expr"])
    clip = wrong.split()[0].removeprefix("2_ClipsforFaceCrop/")
    assert found.pop(clip) is None
    drawn = {row["video"]: row["expression"] for row in plan.rows if row["video"] != clip}
    assert found == drawn


@of("ferv39k")
def test_numbers_of_any_order_are_read_off_the_folders(name, tree, tmp_path):
    plan, root = tree
    for file in root.glob("*_image.txt"):
        lines = file.read_bytes().decode().split("\r\n")[:-1]
        file.write_text("".join(f"{line[:-1]}{6 - int(line[-1])}\n" for line in lines))
    _, _, labels, problems = run(root, tmp_path / "out", name)
    assert problems == []
    assert labels_of(labels["expr"]) == {row["video"]: row["expression"] for row in plan.rows}


@of("ferv39k")
def test_an_emotion_that_is_not_one_of_the_seven_is_unlabelled(name, tree, tmp_path):
    _, root = tree
    file = root / "test_image.txt"
    path = file.read_bytes().decode().split()[0]
    scene, emotion, clip = path.split("/")[-3:]
    (root / f"2_ClipsforFaceCrop/{scene}/Bored").mkdir()
    shutil.move(root / path, root / f"2_ClipsforFaceCrop/{scene}/Bored/{clip}")
    edit(file, f"{scene}/{emotion}/{clip}", f"{scene}/Bored/{clip}")
    _, _, labels, problems = run(root, tmp_path / "out", name)
    assert "'Bored' is not a class" in problems[0]["problem"]
    assert labels_of(labels["expr"])[f"{scene}/Bored/{clip}"] is None


@of("mafw")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_mafw_may_be_of_another_encoding(name, tree, tmp_path, encoding):
    plan, root = tree
    for file in root.rglob("*.txt"):
        file.write_bytes(file.read_bytes().decode("gbk").encode(encoding))
    report, _, labels, problems = run(root, tmp_path / "out", name)
    assert problems == []
    assert "captions: " in "".join(report.lines())
    single = {row["video"]: row["expression"] for row in plan.rows if row["size"] == 1}
    assert labels_of(labels["expr"]) == single


@of("mafw")
def test_text_of_no_known_encoding_is_refused(name, tree, tmp_path):
    _, root = tree
    file = root / "Train_Test_Set/single/no_caption/set_1/train.txt"
    file.write_bytes(file.read_bytes() + b"\xff\xff\xfe\n")
    with pytest.raises(RaffectError, match="train.txt: not text in UTF-8, UTF-16 or GBK"):
        run(root, tmp_path / "out", name)


@of("mafw")
def test_an_unknown_class_and_a_caption_without_english_are_named(name, tree, tmp_path):
    plan, root = tree
    angry, other = (
        next(row["video"] for row in plan.rows if row["expression"] == word)
        for word in ("Anger", "Fear")
    )
    for file in (root / "Train_Test_Set/single").rglob("*.txt"):
        lines = file.read_bytes().decode("gbk").split("\n")
        for k, line in enumerate(lines):
            if line.startswith(angry):
                lines[k] = line.replace("\tanger", "\trage")
            elif line.startswith(other) and "with_caption" in str(file):
                lines[k] = line.rpartition("\t")[0]
        file.write_bytes("\n".join(lines).encode("gbk"))
    report, _, labels, problems = run(root, tmp_path / "out", name)
    assert labels_of(labels["expr"])[angry] is None
    assert sum("'rage' is not a class" in row["problem"] for row in problems) == 5
    missing = [row for row in problems if "one caption in English" in row["problem"]]
    assert len(missing) == 5
    assert all("/with_caption/" in row["file"] and row["line"] for row in missing)
    captions = pq.read_table(report.captions)["video"].to_pylist()
    assert sorted({row["video"] for row in plan.rows} - set(captions)) == [other]


@of("dfew")
def test_a_line_that_is_cut_off_never_passes_its_number_of_frames_off_as_its_class(
    name, tree, tmp_path
):
    _, root = tree
    file = root / "DFEW_set_1_train.txt"
    lines = file.read_text().splitlines()
    last = lines[-1].rpartition(" ")[0]
    file.write_text("\n".join([*lines[:-1], last]))
    assert int(last.split()[-1]) < 20, "it looks like a line with a class"
    _, _, _, problems = run(root, tmp_path / "out", name)
    assert problems[0]["line"] == str(len(lines))
    assert "another number of cells than other lines have; left out" in problems[0]["problem"]


@of("afew")
def test_a_clip_of_one_name_in_both_splits_and_a_strange_folder_are_named(name, tree, tmp_path):
    _, root = tree
    train = next(iter((root / "AFEW_Face/train/Happy").iterdir()))
    shutil.copytree(train, root / "AFEW_Face/validation/Happy" / train.name)
    shutil.copytree(train, root / "AFEW_Face/train/Bored" / train.name)
    report, _, labels, _ = run(root, tmp_path / "out", name)
    assert "a clip of this name is in another split, too" in kinds(report)
    assert "folder is not a class; its clips are unlabelled" in kinds(report)
    assert labels_of(labels["expr"])[f"train/Bored/{train.name}"] is None
