"""Heads of the multi-task challenge judged together: its sum, over the videos of all tasks."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from scipy import stats
from sklearn.metrics import f1_score

import raffect
from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.bank.groups import MOST_GROUPS, are_blocks, block_of
from raffect.cli import main
from raffect.config import PrepareConfig
from raffect.datasets.affwild2.tasks import AU, EXPR, TASKS, VA
from raffect.datasets.labels import read_labels, read_values
from raffect.datasets.manifest import read_manifest
from raffect.datasets.prepare import prepare
from raffect.evaluation.totals import _common_names
from raffect.heads.checkpoint import load_head
from raffect.metrics.intervals import Summand, score_interval, sum_interval
from raffect.metrics.task_kinds import kind_of
from raffect.runs.spread import short
from tests.helpers.learning import DIM, IDENTITY
from tests.helpers.mtl import write_mtl

NAMES = ("expr", "au", "va")
PROBE = ["--head.depth", "0", "--loss.alpha", "1", "--sam.rho", "0", "--optim.lr", "0.01"]
FAST = ["--epochs", "8", *PROBE, "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def data(tree, tmp_path_factory):
    """The drawn MTL tree, prepared, and a bank whose features carry some of its labels."""
    folder = tmp_path_factory.mktemp("mtl")
    write_mtl(tree, folder / "MTL_Challenge")
    images, annotations = (tree / "cropped_aligned",), folder / "MTL_Challenge"
    prepare(PrepareConfig(images=images, annotations=annotations, out=folder))

    # Labels of every task as features, in noise
    manifest, rng = read_manifest(folder / "manifest.parquet"), np.random.default_rng(0)
    keys = list(zip(*(manifest[name].to_pylist() for name in ("video", "frame")), strict=True))
    x = rng.normal(0, 0.5, (len(keys), DIM))
    for task, columns in ((EXPR, slice(0, 8)), (AU, slice(8, 20)), (VA, slice(20, 22))):
        table = read_labels(folder / "labels" / f"{task.name}.parquet")
        places = zip(table["video"].to_pylist(), table["frame"].to_pylist(), strict=True)
        row_of = {key: k for k, key in enumerate(places)}
        values = read_values(table, task)
        for k, key in enumerate(keys):
            if key in row_of:
                value = values[row_of[key]]
                own = np.eye(8)[int(value[0])] if task is EXPR and value[0] >= 0 else value
                x[k, columns] += own if task is not EXPR or value[0] >= 0 else 0
    bank = Bank(folder / "bank")
    plan = bank.extend_plan(manifest, 64)
    bank.claim(IDENTITY)
    for shard in range(plan.num_shards):
        rows = slice(plan.offsets[shard], plan.offsets[shard + 1])
        bank.commit(shard, plan.rows(shard), x[rows].astype(np.float16), {}, IDENTITY)
    return folder


@pytest.fixture(scope="module")
def runs(data):
    """A run of two heads of each task."""
    for name in NAMES:
        words = ["train", "va" if name == "va" else "paper", "--task", name, "--num-seeds", "2"]
        paths = ["--bank", str(data / "bank"), "--labels", str(data), "--out", str(data / name)]
        assert main([*words, *paths, *FAST]) == 0
    return [data / name for name in NAMES]


def evaluate(data, runs, *more):
    paths = ["--bank", str(data / "bank"), "--labels", str(data), "--device", "cpu"]
    return main(["evaluate", "--run", *map(str, runs), *paths, *more])


def test_a_drawn_mtl_file_is_three_label_tables_of_equal_frames_and_splits(tree, data):
    tables = {task: read_labels(data / "labels" / f"{task.name}.parquet") for task in TASKS}
    lines = (data / "MTL_Challenge" / "validation_set_annotations.txt").read_text().splitlines()[1:]
    for task, table in tables.items():
        assert table.select(["video", "frame", "split"]).equals(
            tables[EXPR].select(["video", "frame", "split"])
        )
        own = table.filter(pc.equal(table["split"].cast(pa.string()), "validation"))
        images = [f"{row['video']}/{row['frame']:05d}.jpg" for row in own.to_pylist()]
        rows = dict(zip(images, read_values(own, task).tolist(), strict=True))
        columns = {VA: slice(1, 3), EXPR: slice(3, 4), AU: slice(4, 16)}[task]
        assert len(rows) == len(lines) > 100
        for line in lines:
            cells = line.split(",")
            assert rows[cells[0]] == pytest.approx([float(cell) for cell in cells[columns]])


def scores_of_frames(task, true, outputs):
    """The headline score by other libraries."""
    if task is EXPR:
        predicted = outputs.argmax(1)
        return f1_score(true[:, 0], predicted, labels=range(8), average="macro", zero_division=0)
    parts = []
    for k in range(true.shape[1]):
        known = true[:, k] != task.unlabelled
        t, p = true[known, k].astype(float), outputs[known, k]
        if task is AU:
            parts.append(f1_score(t, p >= 0, zero_division=0))
        else:
            p = p.clip(-1, 1)
            spread = t.var() + p.var() + (t.mean() - p.mean()) ** 2
            parts.append(2 * np.mean((t - t.mean()) * (p - p.mean())) / spread)
    return float(np.mean(parts))


def test_the_sum_is_that_of_frames_and_its_interval_leaves_each_video_out_of_all_tasks(
    data, runs, tmp_path, capsys
):
    out = tmp_path / "judged"
    assert evaluate(data, runs, "--out", str(out)) == 0
    text = capsys.readouterr().out
    found = json.loads((out / "sum.json").read_text())

    # Predictions of every head, frame by frame
    frames = []
    for task, run in zip((EXPR, AU, VA), runs, strict=True):
        labels = read_labels(data / "labels" / f"{task.name}.parquet")
        features = read_features(Bank(data / "bank"), labels, task, "validation")
        heads = [load_head(folder)[0] for folder in sorted(run.glob("weights/*/last"))]
        assert len(heads) == 2
        with torch.no_grad():
            outputs = [head(features.x).double().numpy() for head in heads]
        video = np.array(features.videos)[features.video]
        frames.append((task, features.y, outputs, video))

    def total(left_out=None):
        score = 0.0
        for task, true, outputs, video in frames:
            kept = video != left_out
            score += np.mean([scores_of_frames(task, true[kept], one[kept]) for one in outputs])
        return score

    # The sum, its spread over seeds and its chance level
    assert found["mean"] == pytest.approx(total())
    assert list(found["tasks"]) == list(NAMES)
    assert sum(found["tasks"].values()) == pytest.approx(found["mean"])
    by_task = [json.loads((out / name / "metrics.json").read_text()) for name in NAMES]
    sds = [one["settings"][0]["scores"]["last"]["sd"] for one in by_task]
    assert found["sd"] == pytest.approx(np.sqrt(np.sum(np.square(sds))))
    assert found["chance"] == pytest.approx(0.125 + by_task[1]["chance"]["majority"])

    # Its interval: pseudo-values of the logit of its place between -1 and 3
    def logit(score):
        place = (score + 1) / 4
        return np.log(place / (1 - place))

    names = sorted({name for *_, video in frames for name in video})
    count = found["groups"]
    assert count == len(names) > 2
    whole, without = logit(total()), np.array([logit(total(name)) for name in names])
    pseudo = count * whole - (count - 1) * without
    deviations = pseudo - pseudo.mean()
    effective = (deviations**2).sum() ** 2 / (deviations**4).sum()
    half = stats.t.ppf(0.975, effective + 2) * pseudo.std(ddof=1) / np.sqrt(count)
    ends = np.array([min(whole, pseudo.mean() - half), max(whole, pseudo.mean() + half)])
    assert found["interval_95"] == pytest.approx(-1 + 4 / (1 + np.exp(-ends)), abs=1e-6)

    # All is printed, with what it must not be taken for
    assert f"sum, the score of ABAW's multi-task challenge: {short(found['mean'])} ±" in text
    assert f"over {count} videos of all tasks together" in text
    for name in NAMES:
        assert f"{name.upper()} validation: " in text
    assert text.count("worst 30 % of") == 2 * 3
    assert found["caveats"] == ["made by a test", "drawn faces"]
    assert sorted(path.name for path in out.iterdir()) == ["au", "expr", "sum.json", "va"]


def test_two_of_the_three_tasks_or_several_settings_have_no_sum(data, runs, tmp_path, capsys):
    assert evaluate(data, runs[1:]) == 0
    text = capsys.readouterr().out
    assert "AU validation" in text
    assert "VA validation" in text
    assert "sum" not in text

    # A second setting beside the first, made of its own heads
    mixed = tmp_path / "mixed"
    for head in runs[0].glob("weights/*/last"):
        (mixed / "weights" / head.parent.name).mkdir(parents=True)
        (mixed / "weights" / head.parent.name / "last").symlink_to(head)
    words = [
        "train",
        "weighted",
        "--task",
        "expr",
        "--bank",
        str(data / "bank"),
        "--labels",
        str(data),
    ]
    assert main([*words, "--out", str(tmp_path / "other"), *FAST]) == 0
    (other,) = (tmp_path / "other").glob("weights/*/last")
    (mixed / "weights" / other.parent.name).mkdir()
    (mixed / "weights" / other.parent.name / "last").symlink_to(other)
    assert evaluate(data, [mixed, *runs[1:]]) == 0
    text = capsys.readouterr().out
    assert "no sum of the three tasks: heads of expr have several settings; give the" in text
    assert "challenge:" not in text
    assert evaluate(data, [other, *runs[1:]]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "challenge:" in line)
    assert "±" not in line  # one head has no spread over seeds


def test_two_runs_of_one_task_are_refused_before_anything_is_written(data, runs, tmp_path, capsys):
    out = tmp_path / "judged"
    assert evaluate(data, [runs[0], runs[1], runs[0]], "--out", str(out)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "both are of task expr; evaluate them one by one" in line
    assert not out.exists()


def test_in_python_the_heads_of_all_tasks_are_one_table(data, runs):
    result = raffect.evaluate(
        raffect.EvaluateConfig(run=tuple(runs), bank=data / "bank", labels=data, device="cpu")
    )
    table = result.to_pandas()
    assert isinstance(table, pd.DataFrame)
    assert table["task"].tolist() == ["expr"] * 2 + ["au"] * 2 + ["va"] * 2
    assert table["ccc"].notna().tolist() == [False] * 4 + [True] * 2
    assert len(result.heads) == 6
    assert len(result.settings) == 3
    assert result.total.mean == pytest.approx(
        sum(setting.scores["last"].mean for setting in result.settings)
    )


def draw(kind, videos, rng):
    """Statistics of two heads of a kind on some videos."""
    if kind == "va":
        x = rng.normal(size=(2, videos, 30, 2, 2))
        t, g = x[..., 0], x[..., 0] + x[..., 1]
        return np.stack([np.ones_like(t), t, g, t * t, g * g, t * g], -1).sum(2)
    return rng.integers(0, 30, (2, videos, *((8, 8) if kind == "expr" else (12, 4))))


def test_the_interval_of_a_sum_of_one_task_is_that_of_the_task():
    rng = np.random.default_rng(0)
    for task in TASKS:
        kind, statistics = kind_of(task), draw(task.name, 12, rng)
        names = [f"v{k}" for k in range(12)]
        part = Summand(kind=kind, statistics=statistics, groups=names)
        score, interval = sum_interval([part])
        assert score == pytest.approx(kind.headline(statistics.sum(1)).mean())
        assert interval == pytest.approx(score_interval(statistics, kind))


@pytest.mark.parametrize("shared", [0, 5, 12])
def test_videos_of_one_name_are_one_video_whatever_their_order(shared):
    rng = np.random.default_rng(shared)
    parts = []
    for number, task in enumerate(TASKS):
        names = [f"v{k}" for k in range(shared)]
        names += [f"{task.name}{k}" for k in range(12 - shared)]
        statistics = draw(task.name, 12, rng)
        parts.append(Summand(kind=kind_of(task), statistics=statistics, groups=names))
        if number == 1:
            order = rng.permutation(12)
            other = Summand(
                kind=kind_of(task),
                statistics=statistics[:, order],
                groups=[names[k] for k in order],
            )
    score, interval = sum_interval(parts)
    again = sum_interval([parts[0], other, parts[2]])
    assert again[0] == pytest.approx(score)
    assert again[1] == pytest.approx(interval)

    # By hand
    def total(left_out):
        kept = [[name != left_out for name in part.groups] for part in parts]
        pairs = zip(parts, kept, strict=True)
        return sum(
            part.kind.headline(part.statistics[:, rows].sum(1)).mean() for part, rows in pairs
        )

    names = sorted({name for part in parts for name in part.groups})
    assert len(names) == 36 - 2 * shared
    count, without = len(names), np.array([total(name) for name in names])
    place = np.log((without + 1) / (3 - without))
    centre = count * np.log((total(None) + 1) / (3 - total(None))) - (count - 1) * place.mean()
    low, high = (np.log((end + 1) / (3 - end)) for end in interval)
    assert low - 1e-9 <= centre <= high + 1e-9


def test_tasks_with_and_without_blocks_know_a_video_by_its_block():
    many = [f"v{k}" for k in range(3 * MOST_GROUPS)]
    blocks = sorted(set(map(block_of, many)))
    assert are_blocks(blocks)
    assert not are_blocks(many)
    assert len(blocks) <= MOST_GROUPS
    blocked, single = _common_names([blocks, many[:50]])
    assert blocked == blocks
    assert single == [block_of(name) for name in many[:50]]
    assert _common_names([many[:3], many[:2]]) == [many[:3], many[:2]]
    # Groups that fall into one block are left out together
    rng = np.random.default_rng(0)
    statistics, kind = draw("expr", 6, rng), kind_of(EXPR)
    merged = statistics.reshape(2, 3, 2, 8, 8).sum(2)
    names = ["a", "a", "b", "b", "c", "c"]
    twice = sum_interval([Summand(kind=kind, statistics=statistics, groups=names)])
    assert twice[1] == pytest.approx(score_interval(merged, kind))
