"""Parts of `raffect predict` on inputs: scratch folders, the join of faces and predictions, CSV."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raffect
from raffect.cli import main
from raffect.config import PredictConfig
from raffect.datasets.affwild2.tasks import AU, EXPR
from raffect.errors import RaffectError
from raffect.faces.table import SCHEMA
from raffect.pipelines import predict_files
from raffect.pipelines.join_faces import join_rows, split_inputs
from raffect.pipelines.scratch import delete_scratch, open_scratch
from raffect.predictions.columns import as_table
from raffect.predictions.rules import DecisionRules, plain_rules
from raffect.predictions.styles import require_style, write_styled
from raffect.predictions.table import write_predictions
from tests.helpers.scenes import TASKS, decide, draw_people, facts_of, predict_scene


def test_the_same_command_finds_its_scratch_folder_and_another_one_does_not(tmp_path):
    file = tmp_path / "a.mp4"
    file.write_bytes(b"1")
    first, _ = open_scratch(tmp_path / "out", [file], {"every": 5})
    (first / "work").touch()
    again, deleted = open_scratch(tmp_path / "out", [file], {"every": 5})
    assert (again, deleted) == (first, [])
    assert (again / "work").exists()
    assert open_scratch(tmp_path / "out", [file], {"every": 6})[0] != first
    # An input that was replaced is another input
    file.write_bytes(b"22")
    assert open_scratch(tmp_path / "out", [file], {"every": 5})[0] != first


def test_scratch_of_a_dead_run_is_deleted_a_day_later_and_named(tmp_path):
    young, _ = open_scratch(tmp_path, [], "young")
    old, _ = open_scratch(tmp_path, [], "old")
    (old / "faces").mkdir()
    (old / "faces" / "crop").write_bytes(b"pixels")
    then = time.time() - 25 * 3600
    os.utime(old / "started", (then, then))
    _, deleted = open_scratch(tmp_path, [], "new")
    assert not old.exists()
    assert young.exists()
    assert len(deleted) == 1
    assert str(old) in deleted[0]
    assert "crops of faces that a run left 25 hours ago" in deleted[0]


def make_old(scratch: Path) -> None:
    then = time.time() - 25 * 3600
    for path in (*scratch.rglob("*"), scratch):
        os.utime(path, (then, then))


def test_a_run_goes_on_with_its_own_scratch_after_a_day(tmp_path):
    ours, _ = open_scratch(tmp_path, [], "ours")
    (ours / "work").touch()
    make_old(ours)
    assert open_scratch(tmp_path, [], "ours") == (ours, [])
    assert (ours / "work").exists()


def test_a_scratch_that_is_kept_or_in_use_stays(tmp_path):
    kept, _ = open_scratch(tmp_path, [], "kept", keep=True)
    used, _ = open_scratch(tmp_path, [], "used")
    dead, _ = open_scratch(tmp_path, [], "dead")
    for folder in (used, dead):
        (folder / "running").mkdir()
        (folder / "running" / "host-1-abcdef.json").touch()
    for folder in (kept, used, dead):
        make_old(folder)
    os.utime(used / "running" / "host-1-abcdef.json")
    _, deleted = open_scratch(tmp_path, [], "new")
    assert [folder.exists() for folder in (kept, used, dead)] == [True, True, False]
    assert len(deleted) == 1
    # The same command without --keep means that it is not to be kept any more
    open_scratch(tmp_path, [], "kept")
    make_old(kept)
    open_scratch(tmp_path, [], "new")
    assert not kept.exists()


def test_no_file_or_folder_of_the_user_is_taken_for_scratch(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    names = [".scratch-pad", ".scratch-gone-fishing", ".scratch-0123456789abc", ".scratch-"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".scratch-notes").write_text("mine")
    (tmp_path / ".scratch-0123456789ab").write_text("mine")
    (tmp_path / ".scratch-ba9876543210").symlink_to(tmp_path / "elsewhere")
    before = {path.name for path in tmp_path.iterdir()}
    for path in tmp_path.iterdir():
        make_old(path)
    scratch, deleted = open_scratch(tmp_path, [], "new")
    assert deleted == []
    assert {path.name for path in tmp_path.iterdir()} == before | {scratch.name}


def test_a_temporary_folder_of_python_is_gone_where_the_process_leaves(tmp_path):
    code = """
from raffect.leaving import leave
from raffect.pipelines.predict_files import _temporary_folder
with _temporary_folder() as folder:
    (folder / "crop").write_bytes(b"pixels")
    leave("Ray has died")
"""
    env = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "raffect: Ray has died\n")
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_needs_an_out_that_it_shares():
    with pytest.raises(RaffectError, match="address: expected out beside it, a folder that all"):
        raffect.predict("a.mp4", head="r", address="auto")


@pytest.mark.parametrize("name", ["boxes", "detector_model", "labels"])
def test_python_takes_texts_for_all_paths(name, monkeypatch):
    seen = []
    monkeypatch.setattr(predict_files, "predict_files", seen.append)
    raffect.predict("a.mp4", head="r", out="o", **{name: "x.csv"})
    raffect.predict("a.mp4", head="r", out="o", **{name: None})
    assert [getattr(config, name) for config in seen] == [Path("x.csv"), None]


def test_other_rules_boxes_detectors_and_labels_make_another_scratch(tmp_path):
    # Finished inputs of a stopped run must not stand beside new decisions
    boxes, model = tmp_path / "boxes.csv", tmp_path / "yunet.onnx"
    plain = plain_rules(EXPR)
    folder, labels = tmp_path / "boxes", tmp_path / "data" / "labels"
    folder.mkdir()
    labels.mkdir(parents=True)
    files = [boxes, model, folder / "a.csv", labels / "expr.parquet"]
    for file in files:
        file.write_bytes(b"1")

    def deciding(rules: DecisionRules = plain, **changes) -> str:
        given = {"boxes": boxes, "detector_model": model, "labels": tmp_path / "data"} | changes
        config = PredictConfig(inputs=(Path("a"),), head=(Path("r"),), out=tmp_path, **given)
        return json.dumps(predict_files._deciding(config, [], [SimpleNamespace(rules=rules)]))

    def all_of() -> tuple[str, str]:
        return deciding(), deciding(boxes=folder)

    assert all_of() == all_of()
    assert deciding(replace(plain, windows=(3,) * 8)) != deciding()
    for number, file in enumerate(files):
        before = all_of()
        file.write_bytes(b"22")
        is_new = [now != then for now, then in zip(all_of(), before, strict=True)]
        assert is_new == [[True, False], [True, True], [False, True], [True, True]][number]


def test_a_deletion_that_was_stopped_is_finished_by_the_next_run(tmp_path):
    scratch, _ = open_scratch(tmp_path, [], "a")
    (tmp_path / ".scratch-gone-0123456789ab").mkdir()
    (tmp_path / ".scratch-gone-0123456789ab" / "crop").write_bytes(b"pixels")
    open_scratch(tmp_path, [], "a")
    assert [path.name for path in tmp_path.iterdir()] == [scratch.name]
    delete_scratch(scratch)
    assert list(tmp_path.iterdir()) == []


def write_faces(path: Path, rows: list[dict]) -> Path:
    table = pa.Table.from_pylist(rows, SCHEMA)
    pq.write_table(table, path, row_group_size=3)
    return path


def test_each_face_has_the_prediction_of_its_own_crop(tmp_path):
    # Inputs whose tracks stand in another order in the bank; some rows without a prediction
    rng = np.random.default_rng(0)
    rows, crops = [], []
    for name in ("z.mp4", "a.mp4", "m.png"):
        for frame in range(1, 8):
            for face in (1, 2):
                status = ("ok", "low_conf", "ok", "no_face")[int(rng.integers(4))]
                video = f"{name[0]}_face{face}" if status != "no_face" else None
                rows.append({"input": name, "video": video, "frame": frame, "status": status})
                rows[-1] |= {"face_id": face if video else None, "score": 0.5, "x": 1.0}
                crops += [(video, frame)] if video else []
    rows.append({"input": "broken.mp4", "video": None, "frame": None, "status": "unreadable"})
    faces = write_faces(tmp_path / "faces.parquet", rows)
    crops.sort()
    sure = {(row["video"], row["frame"]) for row in rows if row["status"] == "ok"}
    place = next(k for k, crop in enumerate(crops) if crop in sure)
    lost = crops[place]
    scores = rng.dirichlet(np.ones(8), len(crops))
    scores[place] = np.nan
    frames = pa.table(
        {
            "video": [video for video, _ in crops],
            "frame": pa.array([frame for _, frame in crops], pa.int32()),
            "status": ["unreadable" if crop == lost else "ok" for crop in crops],
        }
    )
    predictions = tmp_path / "p.parquet"
    with write_predictions(predictions, facts_of([EXPR])) as writer:
        writer.write(as_table(frames, {"expr": decide(EXPR, scores)}, [EXPR], "model"))

    joined = pa.concat_tables(join_rows(faces, predictions, [EXPR], "model")).to_pylist()
    assert len(joined) == len(rows)
    for row, before in zip(joined, rows, strict=True):
        key = (before["video"], before["frame"])
        assert (row["input"], row["video"], row["frame"]) == (before["input"], *key)
        if before["status"] == "ok" and key != lost:
            k = crops.index(key)
            assert row["p_Fear"] == pytest.approx(scores[k, 3], rel=1e-6)
            assert row["expr"] == EXPR.outputs[scores[k].argmax()]
            assert (row["status"], row["face_conf"], row["x"]) == ("ok", 0.5, 1.0)
        else:
            assert row["expr"] is row["p_Fear"] is None
            assert row["status"] == ("unreadable" if key == lost else before["status"])
    # Without any crop the rows are there all the same
    empty = pa.concat_tables(join_rows(faces, None, [EXPR], "model"))
    assert empty["status"].to_pylist() == [row["status"] for row in rows]


def test_rows_come_in_whole_inputs(tmp_path):
    rows = [{"input": f"{k // 5}", "frame": k % 5 + 1, "status": "no_face"} for k in range(23)]
    faces = write_faces(tmp_path / "faces.parquet", rows)
    found = [
        (name, len(part))
        for table in join_rows(faces, None, [EXPR], "m")
        for name, part in split_inputs(table)
    ]
    assert found == [("0", 5), ("1", 5), ("2", 5), ("3", 5), ("4", 3)]


def test_openface_columns_have_its_names_and_a_row_for_frames_without_a_face(tmp_path):
    people = draw_people(30)
    people[0][0].face[3] = False
    rows = predict_scene(people, "a.mp4")
    write_styled(rows, TASKS, "openface", tmp_path / "a.csv")
    found = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert list(found[0])[:5] == ["frame", "face_id", "timestamp", "confidence", "success"]
    units = [f"AU{number:02}_c" for number in (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)]
    assert [name for name in found[0] if name.endswith("_c")] == units
    for row, before in zip(found, rows.to_pylist(), strict=True):
        assert int(row["success"]) == (before["status"] == "ok")
        assert float(row["timestamp"]) == pytest.approx(before["timestamp_s"])
        if before["status"] == "ok":
            assert [row[name] for name in units] == [str(before[name]) for name in AU.outputs]
    (missing,) = [row for row in found if row["frame"] == "4"]
    assert (missing["success"], missing["confidence"], missing["AU01_c"]) == ("0", "0", "")
    with pytest.raises(RaffectError, match="--style openface: is for action units"):
        require_style("openface", [EXPR])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--head", "r", "--out", "o"], "expected a picture, video, folder or pattern, or --bank"),
        (["a.mp4", "--bank", "b", "--head", "r", "--out", "o.csv"], "--bank: expected no inputs"),
        (["a.mp4", "--head", "r", "--out", "o.csv"], "--out o.csv: expected a folder"),
        (["--bank", "b", "--head", "r", "--out", "o"], "--out o: expected a name that ends in"),
    ],
)
def test_inputs_or_a_bank_and_never_both(capsys, words, line):
    assert main(["predict", *words]) == 2
    assert line in capsys.readouterr().err


def test_a_gallery_needs_its_files_and_they_need_the_gallery():
    from raffect.config import ReportConfig

    with pytest.raises(RaffectError, match="--gallery: expected --predictions beside it"):
        ReportConfig(runs=(Path("r"),), gallery=True)
    with pytest.raises(RaffectError, match="--images: is for the gallery; add --gallery"):
        ReportConfig(runs=(Path("r"),), images=(Path("i"),))


def test_settings_of_inputs_are_those_of_faces_by_default():
    from raffect.config import FacesConfig

    predict = PredictConfig(inputs=(Path("a"),), head=(Path("r"),), out=Path("o"))
    faces = FacesConfig(inputs=(Path("a"),), out=Path("o"))
    for name in ("detector", "boxes", "detector_model", "every", "margin"):
        assert getattr(predict, name) == getattr(faces, name)
