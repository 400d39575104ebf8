"""Damaged copies of data sets: what is wrong is named with file and line, and never guessed."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from raffect.datasets.synthetic.layouts import LAYOUTS
from raffect.errors import RaffectError
from raffect.storage.tables import read_metadata
from tests.helpers.layouts import PIXELS, edit, fuzz, labels_of, run, write_tree


@pytest.fixture
def tree(request, tmp_path):
    """A copy of the layout that a test names with ``@of(...)``: its plan and its root."""
    name = request.getfixturevalue("name")
    layout = LAYOUTS[name](60, 2)
    return layout, write_tree(tmp_path / name, layout)


def of(name):
    """Give a test the copy of a layout."""
    return pytest.mark.parametrize("name", [name])


def kinds(report):
    return {problem.kind for problem in report.problems}


# Clips


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


# Pictures and frames


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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fuzzed_tree_is_refused_or_read_with_every_undamaged_label(layout, tmp_path):
    kept = [fuzz(layout, seed, tmp_path / str(seed)) for seed in range(4)]
    assert any(kept)


@pytest.mark.cluster
@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_fuzzed_trees_are_refused_or_read_with_every_undamaged_label(layout, tmp_path):
    kept = [fuzz(layout, seed, tmp_path / str(seed)) for seed in range(20)]
    read = [count for count in kept if count is not None]
    assert len(read) >= 5
    assert sum(count > 0 for count in read) >= 4
