"""The pages' numbers: what is on a timeline is what is in the table, however long it is."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raffect.config import PrepareConfig
from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.datasets.prepare import prepare
from raffect.datasets.tasks import Task
from raffect.predictions.columns import FRAME_SCHEMA, as_table
from raffect.reporting.course import bin_rows, read_course
from raffect.reporting.index import Entry, draw_preview, write_index
from raffect.reporting.timeline import COLUMNS, write_timeline
from raffect.reporting.truth import Truth
from tests.helpers.scenes import TASKS, decide, draw_people, facts_of, predict_scene


def data_of(page: Path) -> dict:
    """What a page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    return json.loads(found[1])


def brute_bins(places, values, span, num):
    """Lowest and highest value of each column by a loop over all rows."""
    width = (span[1] - span[0]) / num
    low, high = np.full((num, values.shape[1]), np.nan), np.full((num, values.shape[1]), np.nan)
    for place, value in zip(places, values, strict=True):
        column = int((place - span[0]) / width + 1e-9)
        low[column] = np.fmin(low[column], value)
        high[column] = np.fmax(high[column], value)
    return low, high


@pytest.mark.parametrize(("frames", "num"), [(5000, 700), (901, 900), (64, 64)])
def test_columns_hold_the_lowest_and_highest_value_of_their_frames(frames, num):
    rng = np.random.default_rng(frames)
    places = np.flatnonzero(rng.random(frames) > 0.01).astype(float)
    values = rng.random((len(places), 3)).astype(np.float32)
    span = (0.0, float(frames))
    found = bin_rows(places, values, span, num)
    low, high = brute_bins(places, values, span, num)
    filled = ~np.isnan(low)
    np.testing.assert_array_equal(found.low[filled], low.astype(np.float32)[filled])
    np.testing.assert_array_equal(found.high[filled], high.astype(np.float32)[filled])


def test_a_gap_stays_a_gap_and_a_slower_rate_is_none():
    values = np.ones((6, 1), np.float32)
    gap = bin_rows(np.array([0, 1, 2, 10, 11, 12.0]), values, (0, 13), 13)
    assert np.isnan(gap.mean[:, 0]).tolist() == [False] * 3 + [True] * 7 + [False] * 3
    # Fewer frames than columns: each holds until the next
    places = np.arange(6.0)
    wide = bin_rows(places, places[:, None], (0, 6), 60)
    assert wide.mean[:, 0].tolist() == np.repeat(places, 10).tolist()


def test_counts_name_faces_that_were_too_unsure_to_predict():
    rows = predict_scene(draw_people(20, 1), "clip.mp4")
    sure = read_course(rows, TASKS, "clip.mp4").counts
    place, status = rows.column_names.index("status"), rows["status"].to_pylist()
    doubted = pa.array(["low_conf"] * 3 + status[3:])
    found = read_course(rows.set_column(place, "status", doubted), TASKS, "clip.mp4").counts
    assert found == (*sure, "3 faces too unsure to predict")


def test_a_page_holds_what_the_table_holds(tmp_path):
    people = draw_people(80, 2)
    rows = predict_scene(people, "clip.mp4")
    write_timeline(read_course(rows, TASKS, "clip.mp4"), facts_of(), tmp_path / "a.html")
    data = data_of(tmp_path / "a.html")
    assert data["columns"] == 80
    assert data["frame"] == list(range(1, 81))
    assert [face["title"] for face in data["faces"]] == ["face 1", "face 2"]
    for number, face in enumerate(data["faces"], 1):
        table = {row["frame"]: row for row in rows.to_pylist() if row["face_id"] == number}
        for frame in range(1, 81):
            column = frame - 1
            row, expr, au = table.get(frame), face["tasks"]["expr"], face["tasks"]["au"]
            if row is None:
                assert expr["low"][3][column] is expr["decided"][column] is None
                continue
            assert EXPR.outputs[expr["decided"][column]] == row["expr"]
            for k, name in enumerate(EXPR.outputs):
                assert expr["low"][k][column] == expr["high"][k][column]
                assert expr["low"][k][column] == pytest.approx(1000 * row[f"p_{name}"], abs=0.51)
            for k, name in enumerate(AU.outputs):
                assert au["decided"][k][column] == row[name]
            valence = face["tasks"]["va"]["high"][0][column]
            assert valence == pytest.approx(1000 * row["valence"], abs=0.51)


def test_a_page_of_30_000_frames_is_small_and_shows_a_spike_of_one_frame(tmp_path):
    frames, faces = 30_000, 3
    rng = np.random.default_rng(0)
    spike = 12_345
    scores = {task.name: rng.random((frames * faces, len(task.outputs))) for task in TASKS}
    scores["expr"] *= 0.1
    scores["expr"][spike] = np.eye(8)[3]
    number = np.tile(np.arange(1, frames + 1), faces)
    columns = {
        "frame": pa.array(number, pa.int32()),
        "timestamp_s": (number - 1) / 25,
        "face_id": pa.array(np.repeat(np.arange(1, faces + 1), frames), pa.int32()),
        "status": pa.repeat("ok", frames * faces),
    }
    predicted = {task.name: decide(task, scores[task.name]) for task in TASKS}
    rows = as_table(pa.table(columns), predicted, TASKS, "model")
    write_timeline(read_course(rows, TASKS, "long.mp4"), facts_of(), tmp_path / "a.html")
    assert (tmp_path / "a.html").stat().st_size < 3_000_000
    data = data_of(tmp_path / "a.html")
    assert data["columns"] == COLUMNS
    fear = data["faces"][0]["tasks"]["expr"]["high"][3]
    assert max(fear) == 1000
    assert fear.index(1000) == pytest.approx(spike / frames * COLUMNS, abs=1)


def test_truth_stands_beside_predictions_and_unlabelled_frames_are_gaps(tmp_path):
    rows = [{"video": "v", "frame": k, "status": "ok"} for k in range(1, 11)]
    frames = pa.Table.from_pylist(rows, FRAME_SCHEMA)
    (tmp_path / "images" / "v").mkdir(parents=True)
    for k in range(1, 11):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / "v" / f"{k:05}.png")
    lines = "".join(f"v,{k},train,{'a' if k < 6 else 'b'}\n" for k in range(1, 9))
    (tmp_path / "labels.csv").write_text(f"video,frame,split,label\n{lines}")
    config = PrepareConfig(
        images=(tmp_path / "images",),
        annotations=tmp_path / "labels.csv",
        out=tmp_path / "data",
        dataset="table",
        task="two",
    )
    prepare(config)
    task = Task(name="two", kind="multiclass", outputs=("a", "b"), columns=("label",))
    table = as_table(frames, {"two": decide(task, np.full((10, 2), 0.5))}, [task], "m")
    truth = Truth(tmp_path / "data", [task])
    course = read_course(table, [task], "v")
    write_timeline(course, facts_of([task]), tmp_path / "a.html", truth=truth)
    data = data_of(tmp_path / "a.html")
    assert data["in_seconds"] is False
    assert data["faces"][0]["tasks"]["two"]["truth"] == [0] * 5 + [1] * 3 + [None] * 2


def test_hostile_names_stay_text_on_every_page(tmp_path):
    name = "</script><script>alert(1)</script>\"'@@data@@.mp4"
    people = draw_people(10)
    rows = predict_scene(people, name)
    facts = facts_of(caveats=('<img src="http://example.invalid/x.png">',))
    course = read_course(rows, TASKS, name)
    write_timeline(course, facts, tmp_path / "a.html", video=name, links={name: name})
    write_timeline(course, facts, tmp_path / "b.html")
    entry = Entry(name=name, about=name, page=name, preview=name, links={name: name})
    write_index([entry], facts, name, tmp_path / "c.html")
    for page in ("a.html", "b.html", "c.html"):
        text = (tmp_path / page).read_text()
        assert "<script>alert" not in text
        assert '<img src="http' not in text
        assert text.count("</script>") == 2 * (page != "c.html")


def test_a_video_whose_name_is_not_utf8_has_a_page_that_plays_it(tmp_path):
    course = read_course(predict_scene(draw_people(10), "a"), TASKS, "a")
    name = os.fsdecode(b"caf\xe9 #1.mp4")
    write_timeline(course, facts_of(), tmp_path / "a.html", video=f"../{name}")
    (address,) = re.findall(r'<video src="([^"]*)"', (tmp_path / "a.html").read_text())
    assert unquote_to_bytes(address) == b"../caf\xe9 #1.mp4"
    assert address == "../caf%E9%20%231.mp4"


def test_no_page_may_load_anything_from_a_network(tmp_path):
    course = read_course(predict_scene(draw_people(10), "a"), TASKS, "a")
    write_timeline(course, facts_of(), tmp_path / "a.html", video="a.mp4")
    text = (tmp_path / "a.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src &#x27;none&#x27;")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == ["a.mp4"]


def test_a_preview_shows_the_picture_and_the_course(tmp_path):
    course = read_course(predict_scene(draw_people(60), "a"), TASKS, "a")
    image = draw_preview(course, Image.new("RGB", (64, 48), (255, 0, 0)))
    pixels = np.asarray(image, int)
    width = round(64 * image.height / 48)
    assert (pixels[:, : width - 1] == (255, 0, 0)).all()
    assert len(np.unique(pixels[:, width:].reshape(-1, 3), axis=0)) > 20


def test_values_without_limits_have_an_axis_that_holds_them(tmp_path):
    pain = Task(name="pain", kind="regression", outputs=("pain",), columns=("pain",))
    rows = [{"video": "v", "frame": k, "status": "ok"} for k in range(1, 5)]
    scores = np.array([[3.0], [16.0], [0.5], [8.0]])
    frames = pa.Table.from_pylist(rows, FRAME_SCHEMA)
    table = as_table(frames, {"pain": decide(pain, scores)}, [pain], "m")
    write_timeline(read_course(table, [pain], "v"), facts_of([pain]), tmp_path / "a.html")
    data = data_of(tmp_path / "a.html")
    assert data["tasks"][0]["limits"] == [0, 16]
    assert data["faces"][0]["tasks"]["pain"]["high"] == [[3000, 16000, 500, 8000]]


def test_tasks_are_told_apart_by_what_they_are(tmp_path):
    course = read_course(predict_scene(draw_people(10), "a", (VA,)), (VA,), "a")
    write_timeline(course, facts_of((VA,)), tmp_path / "a.html")
    (task,) = data_of(tmp_path / "a.html")["tasks"]
    assert (task["kind"], task["limits"], task["outputs"]) == (
        "regression",
        [-1, 1],
        ["valence", "arousal"],
    )
