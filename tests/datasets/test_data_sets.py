"""Data sets as they come: each importer returns what the drawn copy of its layout holds."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raffect.cli import main
from raffect.config import PrepareConfig
from raffect.datasets.affwild2.annotations import IMAGES
from raffect.datasets.affwild2.tasks import read_task
from raffect.datasets.importers import BY_ROOT
from raffect.datasets.labels import read_labels
from raffect.datasets.prepare import prepare
from raffect.datasets.root import scan_root
from raffect.datasets.synthetic.layouts import LAYOUTS
from raffect.datasets.synthetic.tree import EDITION, count_drawn, write_synthetic
from raffect.errors import RaffectError
from raffect.storage.tables import read_metadata
from tests.helpers.layouts import PIXELS, run, write_tree

NAME_OF = {name: name.removesuffix("-csv") for name in LAYOUTS}
CLIP_SETS = ("dfew", "ferv39k", "mafw", "afew")


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> dict:
    """Every layout with grey pictures: its plan and its root."""
    top, trees = tmp_path_factory.mktemp("trees"), {}
    for name, draw in LAYOUTS.items():
        layout = draw(80, 0)
        trees[name] = layout, write_tree(top / name, layout)
    return trees


@pytest.fixture(scope="module")
def prepared_sets(trees, tmp_path_factory) -> dict:
    """What `prepare --dataset auto` makes of every layout."""
    out = tmp_path_factory.mktemp("sets")
    return {name: run(root, out / name, "auto") for name, (_, root) in trees.items()}


def class_names(table, column="expression"):
    """Name of the class of each row; None where it is unlabelled."""
    outputs = read_task(read_metadata(table)["task"], "test").outputs
    return [None if k < 0 else outputs[k] for k in table[column].to_pylist()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_root_is_recognised_and_the_report_says_by_what(layout, prepared_sets):
    report, _, _, problems = prepared_sets[layout]
    assert report.lines()[0].startswith(f"recognised: {NAME_OF[layout]}, by ")
    assert problems == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_auto_writes_what_the_named_set_does_byte_for_byte(layout, trees, prepared_sets, tmp_path):
    by_auto = prepared_sets[layout][0]
    named = run(trees[layout][1], tmp_path, NAME_OF[layout])[0]
    for file in (by_auto.manifest, *by_auto.labels.values()):
        twin = tmp_path / file.relative_to(by_auto.manifest.parent)
        assert file.read_bytes() == twin.read_bytes()
    assert named.labels.keys() == by_auto.labels.keys()


def test_cells_that_move_to_another_row_are_another_digest(tmp_path):
    digests = set()
    for k, content in enumerate(("a,b\nc\n", "a\nb,c\n", '"a\nb"\nc\n', "a,b,c\n")):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "x.csv").write_text(content)
        root = scan_root(tmp_path / str(k))
        assert root.peek_cells("x.csv")[0][0] == "a"
        list(root.iter_cells("x.csv"))
        digests.add(root.digest)
    assert len(digests) == 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_picture_that_was_drawn_is_in_the_manifest_once(layout, trees, prepared_sets):
    plan, _ = trees[layout]
    _, manifest, _, _ = prepared_sets[layout]
    assert sorted(manifest.values()) == sorted(plan.pictures)


@pytest.mark.parametrize("layout", CLIP_SETS)
def test_clips_have_the_classes_and_frames_that_were_drawn(layout, trees, prepared_sets):
    plan, _ = trees[layout]
    _, manifest, labels, _ = prepared_sets[layout]
    found = {}
    for table in labels.values():
        rows = table.to_pylist()
        for row, name in zip(rows, class_names(table), strict=True):
            found[row["video"]] = (row["start"], row["end"], name)
    assert found == {
        row["video"]: (row["start"], row["end"], row["expression"]) for row in plan.rows
    }
    # A frame's number is that of its file, gaps included
    for (_, frame), path in manifest.items():
        assert int(Path(path).stem.split("-")[-1]) == frame


@pytest.mark.parametrize("layout", ["dfew", "mafw"])
def test_official_folds_partition_the_clips_as_the_test_lists_do(layout, trees, prepared_sets):
    plan, _ = trees[layout]
    _, _, labels, _ = prepared_sets[layout]
    folds = {}
    for table in labels.values():
        folds |= dict(zip(table["video"].to_pylist(), table["fold"].to_pylist(), strict=True))
        for row in table.to_pylist():
            assert row["split"] == ("validation" if row["fold"] == 1 else "train")
    assert folds == {row["video"]: row["fold"] for row in plan.rows}


@pytest.mark.parametrize("layout", ["ferv39k", "rafdb"])
def test_test_lists_stay_test_and_validation_is_dealt_from_train(layout, trees, prepared_sets):
    plan, _ = trees[layout]
    _, _, labels, _ = prepared_sets[layout]
    table = labels["expr"]
    splits = dict(zip(table["video"].to_pylist(), table["split"].to_pylist(), strict=True))
    for row in plan.rows:
        expected = {"test"} if row["side"] == "test" else {"train", "validation"}
        assert splits[row["video"]] in expected
    assert set(splits.values()) == {"train", "validation", "test"}


def test_afew_and_affectnet_keep_their_own_validation(trees, prepared_sets):
    for layout in ("afew", "affectnet", "affectnet-csv"):
        plan, _ = trees[layout]
        table = prepared_sets[layout][2]["expr"]
        splits = dict(zip(table["video"].to_pylist(), table["split"].to_pylist(), strict=True))
        assert splits == {row["video"]: row["split"] for row in plan.rows}


@pytest.mark.parametrize("layout", ["affectnet", "affectnet-csv"])
def test_pictures_of_affectnet_have_a_class_valence_and_arousal(layout, trees, prepared_sets):
    plan, _ = trees[layout]
    report, _, labels, _ = prepared_sets[layout]
    rows = sorted(plan.rows, key=lambda row: row["video"])
    assert class_names(labels["expr"]) == [row["expression"] or None for row in rows]
    # -2 is AffectNet's own mark of an unlabelled picture, -5 that of the task
    drawn = [[row["valence"], row["arousal"]] for row in rows]
    expected = np.where(np.array(drawn) == -2, -5, drawn).astype(np.float32)
    found = np.stack([labels["va"][name].to_numpy() for name in ("valence", "arousal")], 1)
    assert np.array_equal(found, expected)
    without = sum(row["number"] >= 8 for row in rows)
    counted = [line for line in report.lines() if line.startswith("without an expression")]
    numbers = [int(word) for line in counted for word in line.split() if word.isdigit()]
    assert sum(numbers) == without > 0


def test_pictures_of_rafdb_are_their_own_groups(trees, prepared_sets):
    plan, _ = trees["rafdb"]
    report, manifest, labels, _ = prepared_sets["rafdb"]
    table = labels["expr"]
    found = dict(zip(table["video"].to_pylist(), class_names(table), strict=True))
    assert found == {row["video"]: row["expression"] for row in plan.rows}
    assert report.groups == "pictures"
    assert {frame for _, frame in manifest} == {1}


def test_units_of_disfa_are_active_from_intensity_two_and_subjects_stay_together(
    trees, prepared_sets
):
    plan, _ = trees["disfa"]
    _, _, labels, _ = prepared_sets["disfa"]
    table = labels["au"]
    task = read_task(read_metadata(table)["task"], "test")
    expected = {
        (row["video"], row["frame"]): [int(row[unit] >= 2) for unit in task.outputs]
        for row in plan.rows
    }
    found = {
        (row["video"], row["frame"]): [row[unit] for unit in task.outputs]
        for row in table.to_pylist()
    }
    assert found == expected
    # Both cameras of a subject are in one group, and a group in one split
    assert {"SN001_left", "SN001_right"} <= set(table["video"].to_pylist())
    groups = set(zip(table["group"].to_pylist(), table["split"].to_pylist(), strict=True))
    assert len(groups) == len({group for group, _ in groups}) == 6


def test_captions_of_mafw_are_kept_in_english_with_their_clips(trees, prepared_sets):
    plan, _ = trees["mafw"]
    report, _, _, _ = prepared_sets["mafw"]
    rows = pq.read_table(report.captions).to_pylist()
    keys = ("video", "start", "end", "fold", "caption")
    assert [[row[key] for key in keys] for row in rows] == [
        [row[key] for key in keys] for row in sorted(plan.rows, key=lambda row: row["video"])
    ]


def test_compounds_are_a_task_of_their_own_named_by_their_parts(prepared_sets):
    labels = prepared_sets["mafw"][2]
    task = read_task(read_metadata(labels["compound"])["task"], "test")
    assert task.outputs == ("Anger_Disgust", "Fear_Surprise", "Sadness_Helplessness")
    assert len(read_task(read_metadata(labels["expr"])["task"], "test").outputs) == 11


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "disfa"])
def test_the_map_of_class_names_is_printed_and_stored(layout, prepared_sets):
    report, _, labels, _ = prepared_sets[layout]
    names = json.loads(read_metadata(labels["expr"])["names"])
    (line, *_) = [line for line in report.lines() if line.startswith("classes by name: ")]
    outputs = set(read_task(read_metadata(labels["expr"])["task"], "test").outputs)
    assert names
    for word, name in names.items():
        assert name in outputs or "_" in name
        assert f"{word} -> {name}" in line or "_" in name


def test_orders_of_classes_are_those_of_each_set_and_the_names_are_common(prepared_sets):
    tasks = {
        layout: read_task(read_metadata(found[2]["expr"])["task"], "test")
        for layout, found in prepared_sets.items()
        if "expr" in found[2]
    }
    orders = {layout: task.outputs[:3] for layout, task in tasks.items()}
    assert orders["dfew"] == ("Happiness", "Sadness", "Neutral")
    assert orders["affectnet"] == ("Neutral", "Happiness", "Sadness")
    assert orders["rafdb"] == ("Surprise", "Fear", "Disgust")
    assert orders["mafw"] == ("Anger", "Disgust", "Fear")
    common = set.intersection(*(set(task.outputs) for task in tasks.values()))
    assert len(common) == 7


def test_affwild2_is_recognised_below_a_root_too(tree, tmp_path):
    found = run(tree, tmp_path / "root", "auto")[0]
    config = PrepareConfig(
        images=(tree / "cropped_aligned",), annotations=tree / EDITION, out=tmp_path / "flags"
    )
    assert found.found[0].startswith("recognised: affwild2, by annotations ")
    assert found.manifest.read_bytes() == prepare(config).manifest.read_bytes()


def test_an_unknown_root_is_refused_and_several_are_named(trees, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").write_text("nothing")
    with pytest.raises(RaffectError, match="not recognised; name it with --dataset affwild2 | "):
        run(tmp_path / "none", tmp_path / "x", "auto")
    shutil.copytree(trees["rafdb"][1], tmp_path / "both" / "raf")
    shutil.copytree(trees["dfew"][1], tmp_path / "both" / "dfew")
    with pytest.raises(RaffectError, match="several data sets, dfew by .*rafdb by "):
        run(tmp_path / "both", tmp_path / "x", "auto")
    assert main(["prepare", "--dataset", "what", "--root", "x", "--out", str(tmp_path)]) == 2
    assert "--dataset what: expected one of affwild2, dfew" in capsys.readouterr().err


def test_every_data_set_has_a_drawn_copy():
    assert set(NAME_OF.values()) | {"affwild2"} == set(BY_ROOT)


def test_drawn_copies_are_called_drawn_and_photographs_among_them_are_not(tmp_path):
    layout = "rafdb"
    counts = write_synthetic(tmp_path / "set", 20, seed=1, workers=1, layout=layout)
    report, manifest, _, _ = run(tmp_path / "set", tmp_path / "data", "auto")
    assert report.synthetic
    assert counts["images"] == len(manifest)
    # Drawn again it is kept, and the same pictures come from the same seed
    assert write_synthetic(tmp_path / "set", 20, seed=1, layout=layout) == counts
    with pytest.raises(RaffectError, match="holds another drawn data set"):
        write_synthetic(tmp_path / "set", 20, seed=1)
    table = pq.read_table(report.manifest)
    assert count_drawn(table) == len(table)
    strange = table.set_column(2, "path", [[f"x{path}" for path in table["path"].to_pylist()]])
    assert count_drawn(strange) == 0


def test_ten_lines_of_the_documents_turn_other_data_sets_into_tables(tmp_path, monkeypatch):
    page = Path(__file__).parents[2].joinpath("docs/datasets.md").read_text()
    part = page[page.index("### BP4D") : page.index("## A folder a class")]
    blocks = re.findall(r"```python\n(.*?)```", part, re.S)
    assert len(blocks) == 3

    # A picture or two of each, as the descriptions have it
    monkeypatch.chdir(tmp_path)
    for name in ("BP4D/AUCoding", "BP4D/images/F001_T1", "AFEW-VA/001", "fer"):
        Path(name).mkdir(parents=True)
    Path("BP4D/images/F001_T1/0002.jpg").write_bytes(PIXELS[".jpg"])
    Path("BP4D/AUCoding/F001_T1.csv").write_text("0,6,10,12,14,17\n2,1,0,9,0,1\n")
    Path("AFEW-VA/001/00000.png").write_bytes(PIXELS[".png"])
    Path("AFEW-VA/001/001.json").write_text('{"frames": {"00000": {"valence": 5, "arousal": -2}}}')
    pixels = " ".join(["7"] * 48 * 48)
    usages = ("Training", "PublicTest", "PrivateTest", "Training", "Training")
    faces = [f"0,{pixels},{usage}" for usage in usages]
    Path("fer/fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *faces]))
    names = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    votes = ["1,7,2,0,0,0,0,0,0,0", "0,1,0,9,0,0,0,0,0,0", "10,0,0,0,0,0,0,0,0,0"]
    votes += ["0,0,0,0,0,0,0,0,0,10", "1,2,0,0,0,0,0,0,7,0"]
    lines = [f"{usage},fer.png,{vote}" for usage, vote in zip(usages, votes, strict=True)]
    Path("fer/fer2013new.csv").write_text("\n".join([f"Usage,Image name,{names}", *lines]))
    known: dict = {}
    for block in blocks:
        exec(compile(block, "datasets.md", "exec"), known)

    def rows(images, file):
        config = PrepareConfig(
            dataset="table",
            images=(Path(images),),
            annotations=Path(file),
            out=tmp_path / file[:-4],
        )
        return read_labels(prepare(config).labels["labels"]).to_pylist()

    (units,) = rows("BP4D/images", "bp4d.csv")
    assert (units["video"], units["frame"], units["group"]) == ("F001_T1", 2, "F001")
    assert [units[name] for name in ("AU6", "AU10", "AU12", "AU14", "AU17")] == [1, 0, -1, 0, 1]
    (values,) = rows("AFEW-VA", "afew-va.csv")
    assert (values["video"], values["frame"]) == ("001", 1)
    assert (values["valence"], values["arousal"]) == pytest.approx((0.5, -0.2))
    found = [(row["split"], row["expression"]) for row in rows("fer", "fer.csv")]
    unlabelled = ("train", -1)  # no face, and unknown to most
    expected = [("train", 0), ("validation", 2), ("test", 1), unlabelled, unlabelled]
    assert found == expected  # happiness, neutral, sadness


def test_no_picture_of_affwild2_is_listed_before_it_is_needed(tree, tmp_path, monkeypatch):
    listed = []
    scandir = os.scandir

    def note(path):
        listed.append(os.path.relpath(path, tree))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", note)
    for dataset in ("affwild2", "auto"):
        listed.clear()
        prepare(PrepareConfig(dataset=dataset, root=tree, out=tmp_path / dataset))
        videos = [path for path in listed if path.startswith("cropped_aligned/")]
        assert len(videos) == len(set(videos)) > 0
    root = scan_root(tree, skip=IMAGES)
    assert root.skipped == [("cropped_aligned", 1)]
    assert not any(name.endswith(".jpg") for names in root.files.values() for name in names)


def test_a_set_with_pictures_in_a_folder_named_as_those_of_affwild2_is_read(trees, tmp_path):
    plan, root = trees["dfew"]
    shutil.copytree(root, tmp_path / "tree")
    (tmp_path / "tree/DFEW_Frame_Face").rename(tmp_path / "tree/cropped_aligned")
    _, manifest, _, problems = run(tmp_path / "tree", tmp_path / "out", "auto")
    assert len(manifest) == len(plan.pictures)
    assert problems == []


def test_what_is_ignored_in_folders_of_clips_is_counted_once(trees, tmp_path):
    _, root = trees["afew"]
    shutil.copytree(root, tmp_path / "tree")
    clip = next((tmp_path / "tree").rglob("*.jpg")).parent
    (clip / "cover.jpg").write_bytes(PIXELS[".jpg"])
    report = run(tmp_path / "tree", tmp_path / "out", "afew")[0]
    (line,) = [line for line in report.lines() if "without a frame number" in line]
    assert "1 pictures without a frame number beside numbered ones" in line


def test_prepare_deletes_its_own_tables_alone(trees, tmp_path):
    run(trees["mafw"][1], tmp_path, "mafw")
    folder = tmp_path / "labels"
    assert {file.name for file in folder.iterdir()} == {"expr.parquet", "compound.parquet"}
    theirs = folder / "mine.parquet"
    pq.write_table(pq.read_table(folder / "expr.parquet", columns=["video"]), theirs)
    rows = pq.read_table(theirs).replace_schema_metadata(None)
    pq.write_table(rows, theirs)
    (folder / "broken.parquet").write_bytes(b"notes")
    report, *_ = run(trees["dfew"][1], tmp_path, "dfew")
    found = {file.name for file in folder.iterdir()}
    assert found == {"expr.parquet", "mine.parquet", "broken.parquet"}, "compound was its own"
    assert f"kept: {theirs}" in report.lines()
    gone = f"deleted: {folder / 'compound.parquet'}, of an earlier `raffect prepare`"
    assert [line for line in report.lines() if line.startswith("deleted")] == [gone]
    # So is a table of captions
    theirs_too = tmp_path / "captions.parquet"
    assert not theirs_too.exists(), "that of MAFW was its own"
    pq.write_table(rows, theirs_too)
    run(trees["dfew"][1], tmp_path, "dfew")
    with pytest.raises(RaffectError, match=r"captions.parquet: was not written by"):
        run(trees["mafw"][1], tmp_path, "mafw")
    theirs_too.unlink()
    # One that has the name of a task is in the way, and nothing is written
    theirs.replace(folder / "expr.parquet")
    before = (tmp_path / "manifest.parquet").read_bytes()
    with pytest.raises(RaffectError, match=r"expr.parquet: was not written by `raffect prepare`"):
        run(trees["mafw"][1], tmp_path, "mafw")
    assert (tmp_path / "manifest.parquet").read_bytes() == before
    assert pq.read_table(folder / "expr.parquet").equals(rows)


def test_lines_of_mafw_say_which_lists_its_labels_are_of(prepared_sets):
    lines = prepared_sets["mafw"][0].lines()
    start = "single: labels are those of the lists in single/no_caption, not those"
    assert any(line.startswith(start) for line in lines)
