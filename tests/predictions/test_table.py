"""The table of predictions: the same in Parquet and CSV, whole or not at all."""

import csv
import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.predictions.columns import Predicted, as_table, columns_of, schema_of
from raffect.predictions.rules import plain_rules
from raffect.predictions.table import (
    iter_predictions,
    read_facts,
    read_predictions,
    write_predictions,
)
from tests.helpers.predictions import HEADS, make_facts, make_table

FRAMES = {"a": [1, 2, 5], "b": [3]}
REFERENCE = """
input video frame timestamp_s face_id status face_conf x y w h expr expr_conf
p_Neutral p_Anger p_Disgust p_Fear p_Happiness p_Sadness p_Surprise p_Other
AU1 AU2 AU4 AU6 AU7 AU10 AU12 AU15 AU23 AU24 AU25 AU26
p_AU1 p_AU2 p_AU4 p_AU6 p_AU7 p_AU10 p_AU12 p_AU15 p_AU23 p_AU24 p_AU25 p_AU26
valence arousal model
"""


def test_the_columns_are_those_of_the_documents():
    assert schema_of([EXPR, AU, VA]).names == REFERENCE.split()


@pytest.mark.parametrize("name", ["p.parquet", "p.csv"])
def test_a_table_holds_scores_and_decisions_of_all_tasks(tmp_path, name):
    path = tmp_path / name
    scores = make_table(path, [EXPR, AU, VA], FRAMES, {"a": [3]})
    rows = read_predictions(path).to_pylist()
    assert [(row["video"], row["frame"]) for row in rows] == [
        ("a", 1),
        ("a", 2),
        ("a", 3),
        ("a", 5),
        ("b", 3),
    ]
    for row in rows:
        found = scores.get((row["video"], row["frame"]))
        if found is None:
            assert row["status"] == "unreadable"
            filled = [name for name, value in row.items() if value is not None]
            assert filled == ["video", "frame", "status", "model"]
            continue
        best = int(found["expr"].argmax())
        assert (row["expr"], row["status"]) == (EXPR.outputs[best], "ok")
        assert row["expr_conf"] == pytest.approx(found["expr"][best], rel=1e-6)
        for k, unit in enumerate(AU.outputs):
            assert row[f"p_{unit}"] == pytest.approx(found["au"][k], rel=1e-6)
            assert row[unit] == int(found["au"][k] >= np.float32(0.5))
        assert [row["valence"], row["arousal"]] == pytest.approx(found["va"].tolist(), rel=1e-6)
        assert row["model"] == "expr: 1 head(s) + au: 1 head(s) + va: 1 head(s)"


def test_csv_is_what_pythons_own_reader_reads(tmp_path):
    make_table(tmp_path / "p.csv", [EXPR, AU], {'a "b", c': [1], "NA": [2]}, {"b": [4]})
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == schema_of([EXPR, AU]).names
    assert [row["video"] for row in rows] == ["NA", 'a "b", c', "b"]
    assert [row["AU1"] in ("0", "1") for row in rows] == [True, True, False]
    assert read_predictions(tmp_path / "p.csv")["video"].to_pylist() == ["NA", 'a "b", c', "b"]


@pytest.mark.parametrize("name", ["p.parquet", "p.csv"])
def test_facts_come_back_and_columns_can_be_chosen(tmp_path, name):
    path, rules = tmp_path / name, dataclasses.replace(plain_rules(VA, HEADS), windows=(3, 4))
    make_table(path, [rules], FRAMES)
    assert read_facts(path).rules == (rules,)
    parts = list(iter_predictions(path, ["arousal", "frame"]))
    assert all(part.column_names == ["arousal", "frame"] for part in parts)
    assert sum(map(len, parts)) == 4


@pytest.mark.parametrize("name", ["p.parquet", "p.csv"])
def test_an_error_while_writing_leaves_no_table(tmp_path, name):
    with pytest.raises(ZeroDivisionError), write_predictions(tmp_path / name, make_facts([])):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_tasks_with_equal_names_of_outputs_keep_both():
    mine = Task(name="mine", kind="multilabel", outputs=("AU1", "AU99"), columns=("a", "b"))
    names = schema_of([AU, mine]).names
    assert len(set(names)) == len(names)
    assert columns_of([AU, mine])["mine"].decisions == ("mine_AU1", "mine_AU99")
    assert columns_of([mine])["mine"].decisions == ("AU1", "AU99")
    status = Task(name="status", kind="multiclass", outputs=("a", "b"), columns=("c",))
    assert schema_of([status]).names[11:-1] == ["status_class", "status_class_conf", "p_a", "p_b"]


def test_a_frame_with_one_missing_score_has_none():
    scores = np.array([[0.5, np.nan], [0.2, 0.8]], np.float32)
    two = Task(name="two", kind="regression", outputs=("a", "b"), columns=("a", "b"))
    frames = pa.table({"video": ["v", "v"], "frame": [1, 2]})
    table = as_table(frames, {"two": Predicted(scores, scores)}, [two], "m")
    assert table["a"].to_pylist() == [None, pytest.approx(0.2)]


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda path: None, "no such table of predictions"),
        (lambda path: path.write_bytes(b"PAR1 no"), "not a readable table of predictions"),
        (lambda path: pq.write_table(pa.table({"a": [1]}), path), "not a table of predictions"),
    ],
)
def test_what_is_no_table_of_predictions_is_one_line(tmp_path, write, match):
    write(tmp_path / "p.parquet")
    with pytest.raises(RaffectError, match=match):
        read_facts(tmp_path / "p.parquet")


def test_a_damaged_csv_or_one_without_its_facts_is_one_line(tmp_path):
    make_table(tmp_path / "p.csv", [EXPR], FRAMES)
    text = (tmp_path / "p.csv").read_text()
    (tmp_path / "p.csv").write_text(text.replace('"ok"', '"ok",1', 1))
    with pytest.raises(RaffectError, match="not a readable table of predictions"):
        read_predictions(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text(text.split("\n", 1)[1])
    with pytest.raises(RaffectError, match="not a readable table of predictions"):
        read_predictions(tmp_path / "p.csv")
    (tmp_path / "p.csv.json").unlink()
    with pytest.raises(RaffectError, match=r"p.csv.json: missing"):
        read_predictions(tmp_path / "p.csv")
    with pytest.raises(RaffectError, match=r"ends in .parquet or .csv"):
        read_facts(tmp_path / "p.txt")
