"""Tasks that no module of raffect knows, one of each kind, defined here alone.

They are trained, swept, evaluated and reported as any other.
"""

import csv
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import f1_score

from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.cli import main
from raffect.datasets.labels import read_labels
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_head
from raffect.metrics.task_kinds import kind_of
from raffect.runs.data import open_dataset
from raffect.storage.tables import write_table
from tests.helpers.banks import IDENTITY

MOODS = Task(
    name="moods",
    kind="multiclass",
    outputs=("calm", "glad", "cross", "low", "odd"),
    columns=("mood",),
    unlabelled=99,
)
SIGNS = Task(
    name="signs",
    kind="multilabel",
    outputs=("smile", "frown", "blink"),
    columns=("s", "f", "b"),
    unlabelled=9,
    descriptions=("a", "b", "c"),
)
PAINS = Task(
    name="pains",
    kind="regression",
    outputs=("pain", "effort"),
    columns=("pspi", "effort"),
    unlabelled=None,
    limits=(0, 16),
)
TASKS = (MOODS, SIGNS, PAINS)
DIM = 24
HEAD = ["--head.width", "32", "--head.depth", "2", "--head.dropout", "0"]
FAST = ["--epochs", "12", *HEAD, "--optim.lr", "0.01", "--loss.alpha", "1", "--device", "cpu"]


def make_values(task: Task, x: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Labels that features carry, some of them missing."""
    lost = rng.random((len(x), len(task.columns))) < 0.05
    if task is MOODS:
        return {"mood": np.where(lost[:, 0], 99, x[:, :5].argmax(1)).astype(np.int16)}
    if task is SIGNS:
        return {
            name: np.where(lost[:, k], 9, x[:, k] > 0.3).astype(np.int8)
            for k, name in enumerate(task.columns)
        }
    clean = np.clip(8 + 3 * x[:, :2], 0, 16)
    return {name: np.where(lost[:, k], np.nan, clean[:, k]) for k, name in enumerate(task.columns)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A bank of 12 videos and the three label tables."""
    # Features of 40 frames of each video
    folder, rng = tmp_path_factory.mktemp("tasks"), np.random.default_rng(0)
    video = np.repeat([f"v{k:02d}" for k in range(12)], 40)
    frame = np.tile(np.arange(1, 41), 12).astype(np.int32)
    x = rng.normal(size=(len(video), DIM)).astype(np.float16)
    bank, identity = Bank(folder / "bank"), replace(IDENTITY, dim=DIM, caveat="made by a test")
    plan = bank.extend_plan(pa.table({"video": video, "frame": frame}), 64)
    bank.claim(identity)
    for shard in range(plan.num_shards):
        rows = slice(plan.offsets[shard], plan.offsets[shard + 1])
        bank.commit(shard, plan.rows(shard), x[rows], {}, identity)

    # Labels of each task; every third video is in the validation split
    split = np.where(np.repeat(np.arange(12) % 3 == 2, 40), "validation", "train")
    keys = {"video": video, "frame": frame, "split": split}
    for task in TASKS:
        table = pa.table(keys | make_values(task, x, rng))
        file = folder / "labels" / f"{task.name}.parquet"
        write_table(table, file, {"task": json.dumps(task.to_json()), "synthetic": "true"})
    return folder


def words(command: str, data: Path, out: Path, *more: str) -> list[str]:
    bank = ["--bank", str(data / "bank"), "--labels", str(data)]
    return [command, "paper", *bank, "--out", str(out), *FAST, *more]


def oracle(task: Task, true: np.ndarray, outputs: np.ndarray) -> float:
    """The headline score by other libraries."""
    if task is MOODS:
        predicted = outputs.argmax(1)
        return f1_score(true[:, 0], predicted, labels=range(5), average="macro", zero_division=0)
    known = np.isfinite(true) if task is PAINS else true != 9
    parts = []
    for k in range(true.shape[1]):
        t, p = true[known[:, k], k], outputs[known[:, k], k]
        if task is SIGNS:
            parts.append(f1_score(t, p >= 0, zero_division=0))
        else:
            p = np.clip(p, 0, 16)
            spread = t.var() + p.var() + (t.mean() - p.mean()) ** 2
            parts.append(2 * np.cov(t, p, ddof=0)[0, 1] / spread)
    return float(np.mean(parts))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_task_that_is_data_alone_is_trained_judged_and_reported(data, tmp_path, capsys, task):
    # Training, with an epoch that is cross-validated
    run, kind = tmp_path / "run", kind_of(task)
    more = ["--num-seeds", "2", "--select", "cv", "--folds", "2"]
    assert main(words("train", data, run, "--task", task.name, *more)) == 0
    text = capsys.readouterr().out
    assert f"{task.name.upper()} val-last  {kind.title} " in text
    assert "over 2 seeds" in text
    assert f"{task.name.upper()} chance" in text

    # Every head scores what metrics.json says, by another library
    heads = json.loads((run / "metrics.json").read_text())["heads"]
    labels = read_labels(data / "labels" / f"{task.name}.parquet")
    features = read_features(Bank(data / "bank"), labels, task, "validation")
    for name, about in heads.items():
        head, card = load_head(run / "weights" / name / "last")
        assert card.task == task
        with torch.no_grad():
            outputs = head(torch.from_numpy(features.x).float()).numpy()
        score = about["scores"]["last"]
        expected = oracle(task, features.y.astype(float), outputs)
        assert score["headline"] == pytest.approx(expected, abs=1e-6)
        assert score["headline"] > 0.5
        low, high = score["interval_95"]
        assert low < score["headline"] < high
        assert set(score["outputs"]) == set(task.outputs)

    # `raffect evaluate` finds the same scores
    out = tmp_path / "judged"
    bank = ["--bank", str(data / "bank"), "--labels", str(data)]
    assert main(["evaluate", "--run", str(run), *bank, "--out", str(out)]) == 0
    judged = capsys.readouterr().out
    assert all(name in judged for name in task.outputs)
    found = json.loads((out / "metrics.json").read_text())["heads"]
    again = {head["id"]: head["score"]["headline"] for head in found}
    first = {name: about["scores"]["last"]["headline"] for name, about in heads.items()}
    assert again == pytest.approx(first)
    videos = {row["group"] for row in csv.DictReader((out / "per_group.csv").open())}
    assert videos == set(features.videos)

    # The report has the task's own names
    assert main(["report", "--runs", str(run)]) == 0
    page = (run / "report.md").read_text()
    assert f"| {task.name.upper()} | alpha " in page
    assert f"| {kind.part} | {kind.columns[0][0]} |" in page
    assert (run / "plots" / f"run-{kind.parts}.png").exists()


@pytest.mark.parametrize(
    "task",
    [PAINS, *(pytest.param(task, marks=pytest.mark.cluster) for task in (MOODS, SIGNS))],
    ids=lambda task: task.name,
)
def test_a_task_that_is_data_alone_is_swept(data, tmp_path, capsys, local_ray, task):
    run, kind = tmp_path / "sweep", kind_of(task)
    more = ["--epochs", "2", "--space", "loss.alpha=0.3,0.6,1", "seed=0,1"]
    assert main(words("tune", data, run, "--task", task.name, *more)) == 0
    assert "8 heads" in capsys.readouterr().out
    rows = list(csv.DictReader((run / "heads.csv").open()))
    assert all(float(row[f"last.{kind.key}"]) >= kind.lowest for row in rows)
    assert main(["report", "--runs", str(run)]) == 0
    assert f"{kind.title} against alpha" in (run / "report.md").read_text()


def test_a_pickled_task_scores_as_the_original(data):
    rng = np.random.default_rng(0)
    for task, shape in ((MOODS, (5, 5)), (SIGNS, (3, 4)), (PAINS, (2, 6))):
        statistics = rng.integers(1, 50, shape)
        copy = pickle.loads(pickle.dumps(task))
        assert copy == task
        assert kind_of(copy).score(statistics, copy) == kind_of(task).score(statistics, task)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_task_comes_back_from_json_as_it_was(task):
    assert Task.from_json(json.loads(json.dumps(task.to_json())), "x") == task


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": []},
        {"outputs": ["a", "a"]},
        {"outputs": "abc"},
        {"columns": [1]},
        {"unlabelled": "x"},
        {"unlabelled": float("nan")},
        {"limits": [1, 0]},
        {"name": ""},
        {"kind": 3},
        {"more": 1},
        {"descriptions": ["a"]},
    ],
)
def test_a_damaged_task_is_one_line_with_its_file(change):
    with pytest.raises(
        RaffectError, match=r"^labels/x.parquet, its task: damaged, .*`raffect prepare`$"
    ):
        Task.from_json(MOODS.to_json() | change, "labels/x.parquet")


def test_a_folder_of_several_tasks_asks_which_and_one_of_one_does_not(data, tmp_path, capsys):
    with pytest.raises(
        RaffectError, match="holds labels of moods, pains, signs; choose one with --task"
    ):
        open_dataset(data / "bank", data)
    run, labels = tmp_path / "run", data / "labels" / "signs.parquet"
    bank = ["--bank", str(data / "bank"), "--labels", str(labels)]
    assert main(["train", "erm", *bank, "--out", str(run), *FAST, "--epochs", "1"]) == 0
    assert "SIGNS val-last" in capsys.readouterr().out
    records = [json.loads(path.read_text()) for path in (run / "heads").iterdir()]
    assert {record["recipe"]["task"] for record in records} == {"signs"}


def test_labels_that_a_task_does_not_have_are_refused_with_their_frame(data, tmp_path):
    for task, column, value in ((MOODS, "mood", 5), (SIGNS, "f", 3), (PAINS, "effort", 16.5)):
        table = read_labels(data / "labels" / f"{task.name}.parquet")
        values = table[column].to_numpy().copy()
        values[7] = value
        file = tmp_path / f"{task.name}.parquet"
        wrong = table.set_column(table.column_names.index(column), column, pa.array(values))
        write_table(wrong, file, {"task": json.dumps(task.to_json())})
        fault = (
            f"{task.name}.parquet: 1 values are not labels of task {task.name}, "
            f"first {column} {value:g} of v00 frame 8"
        )
        with pytest.raises(RaffectError, match=fault):
            open_dataset(data / "bank", file)


def test_heads_are_not_judged_on_another_task(data, tmp_path, capsys):
    run, labels = tmp_path / "run", tmp_path / "moods.parquet"
    assert main(words("train", data, run, "--task", "moods", "--epochs", "1")) == 0
    other = replace(MOODS, outputs=("calm", "glad", "low", "cross", "odd"))
    table = read_labels(data / "labels" / "moods.parquet")
    write_table(table, labels, {"task": json.dumps(other.to_json())})
    bank = ["--bank", str(data / "bank"), "--labels", str(labels)]
    assert main(["evaluate", "--run", str(run), *bank]) == 2
    assert "has other outputs than the heads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "more", "match"),
    [
        (
            "pains",
            ["--loss.name", "ccc", "--loss.alpha", "0.3"],
            "loss.name ccc: a batch has one CCC and so no worst share; "
            "expected loss.alpha 1, not 0.3",
        ),
        (
            "moods",
            ["--loss.name", "ccc"],
            "loss.name ccc: task moods is multiclass; expected default",
        ),
        (
            "pains",
            ["--loss.weighting", "inverse"],
            "loss.weighting inverse: task pains has numbers, not classes; expected none",
        ),
        (
            "pains",
            ["--loss.logit-adjustment", "1"],
            "loss.logit-adjustment 1: task pains has numbers",
        ),
    ],
)
def test_a_loss_that_a_kind_does_not_have_is_one_line_before_anything_is_written(
    data, tmp_path, capsys, task, more, match
):
    assert main(words("train", data, tmp_path / "run", "--task", task, *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert match in line
    assert not (tmp_path / "run").exists()


def test_ccc_is_a_loss_that_learns(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(words("train", data, run, "--task", "pains", "--loss.name", "ccc")) == 0
    score = float(re.search(r"PAINS val-last  CCC (\.\d+)", capsys.readouterr().out)[1])
    assert score > 0.5
    history = json.loads(next((run / "heads").iterdir()).read_text())["curve"]
    assert history["train_loss"][-1] < history["train_loss"][0] < 2


def test_cvar_of_squared_errors_looks_at_the_worst_frames(data, tmp_path, capsys):
    losses = []
    for alpha in ("0.2", "1"):
        more = ["--task", "pains", "--loss.alpha", alpha, "--epochs", "1"]
        assert main(words("train", data, tmp_path / alpha, *more)) == 0
        record = json.loads(next((tmp_path / alpha / "heads").iterdir()).read_text())
        losses.append(record["curve"]["train_loss"][0])
    assert losses[0] > 1.5 * losses[1]
