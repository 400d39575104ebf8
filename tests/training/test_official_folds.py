"""`raffect train --folds official`: scores by fold, their mean and pooled."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

from raffect.bank.format import Bank
from raffect.cli import main
from raffect.config import TrainConfig, TuneConfig
from raffect.datasets.expressions import expression_task
from raffect.datasets.labels import read_labels, write_clip_labels
from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_head
from raffect.metrics.intervals import interval_around
from raffect.metrics.scores import Chance, mean_chance
from raffect.reporting.cross_sets import _matrix
from raffect.reporting.run import read_runs
from raffect.runs.data import open_dataset
from raffect.training.official_folds import (
    FoldScores,
    Judged,
    pool_groups,
    read_judged,
    train_on_official_folds,
)
from raffect.training.train import train
from tests.helpers.banks import IDENTITY

TASK = expression_task(("Happiness", "Sadness", "Neutral"))
FOLDS, CLIPS, LENGTH = 3, 48, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A bank of clips whose features show their classes, and a label table with folds."""
    folder = tmp_path_factory.mktemp("folds")
    rng = np.random.default_rng(0)
    names = [f"c{k:02d}" for k in range(CLIPS)]
    classes = rng.integers(0, 3, CLIPS)
    video = np.repeat(names, LENGTH)
    frames = np.tile(np.arange(1, LENGTH + 1), CLIPS).astype(np.int32)
    x = rng.normal(size=(len(video), IDENTITY.dim))
    x[np.arange(len(video)), np.repeat(classes, LENGTH)] += 1.5
    bank = Bank(folder / "bank")
    manifest = pa.table({"video": video, "frame": frames, "path": video, "root": video})
    plan = bank.extend_plan(manifest, 64)
    bank.claim(IDENTITY)
    for shard in range(plan.num_shards):
        rows = slice(plan.offsets[shard], plan.offsets[shard + 1])
        bank.commit(shard, plan.rows(shard), x[rows].astype(np.float16), {}, IDENTITY)
    # Clip 0 is in no test list
    fold = np.where(np.arange(CLIPS) == 0, 0, np.arange(CLIPS) % FOLDS + 1).astype(np.int8)
    columns = {
        "video": names,
        "start": np.ones(CLIPS, np.int32),
        "end": np.full(CLIPS, LENGTH, np.int32),
        "split": np.where(fold == 1, "validation", "train"),
        "fold": fold,
        "expression": classes.astype(np.int16),
    }
    write_clip_labels(folder / "labels" / "expr.parquet", pa.table(columns), TASK)
    return folder


SETTINGS = {"epochs": 10, "batch_size": 8, "optim.lr": 0.01, "head.dropout": 0.0}
WORDS = ["--epochs", "10", "--batch-size", "8", "--optim.lr", "0.01", "--head.dropout", "0"]


def config_of(data, out, **more):
    places = {"bank": data / "bank", "labels": data, "out": out}
    settings = {"device": "cpu", "folds": "official"} | more
    return TrainConfig.from_recipe("erm", SETTINGS, **places, **settings)


@pytest.fixture(scope="module")
def found(data, tmp_path_factory):
    return train_on_official_folds(
        config_of(data, tmp_path_factory.mktemp("run") / "run", num_seeds=2)
    )


def test_uar_and_war_by_fold_and_pooled_equal_scikit_learn(data, found):
    measures = {
        "uar": balanced_accuracy_score,
        "accuracy": accuracy_score,
        "macro_f1": lambda true, said: f1_score(true, said, average="macro"),
    }
    answers = {}
    for fold, run in zip(found.scores.folds, found.runs, strict=True):
        index = open_dataset(data / "bank", Path(run.data.labels)).splits["validation"]
        x = torch.from_numpy(index.read()).float()
        for record in run.records:
            head, _ = load_head(run.folder / "weights" / record.id / "last")
            said = head(x).argmax(1).numpy()
            answers[fold, record.recipe.seed] = index.y[:, 0], said
    for key, measure in measures.items():
        by_seed = [
            [measure(*answers[fold, seed]) for seed in (0, 1)] for fold in found.scores.folds
        ]
        each = np.mean(by_seed, axis=1)
        parts = [
            [
                np.concatenate([answers[fold, seed][k] for fold in found.scores.folds])
                for k in (0, 1)
            ]
            for seed in (0, 1)
        ]
        pooled = np.mean([measure(*part) for part in parts])
        assert found.scores.by_fold[key] == pytest.approx(each, abs=1e-9)
        assert found.scores.mean[key] == pytest.approx(np.mean(each), abs=1e-9)
        assert found.scores.sd[key] == pytest.approx(np.std(each, ddof=1), abs=1e-9)
        assert found.scores.pooled[key] == pytest.approx(pooled, abs=1e-9)
        # The mean over folds of each seed
        assert found.scores.by_seed[key] == pytest.approx(np.mean(by_seed, axis=0), abs=1e-9)
        # An interval of each pooled score, around it
        low, high = found.scores.intervals[key]
        assert low < found.scores.pooled[key] < high
    assert found.scores.mean["uar"] > 0.5, "the features show the classes"
    assert found.scores.intervals["macro_f1"] == found.scores.interval_95


def test_each_score_of_folds_has_the_chance_of_a_blind_predictor_by_scikit_learn(data, found):
    by_fold = []
    for run in found.runs:
        index = open_dataset(data / "bank", Path(run.data.labels)).splits["validation"]
        true = index.y[:, 0]
        frequent = np.full(len(true), np.bincount(true).argmax())
        recall = recall_score(true, frequent, average="macro", zero_division=0)
        assert recall == pytest.approx(balanced_accuracy_score(true, frequent))
        by_fold.append((recall, accuracy_score(true, frequent)))
    uar, war = np.mean(by_fold, axis=0)
    assert found.scores.chances["uar"] == pytest.approx(uar)
    assert found.scores.chances["accuracy"] == pytest.approx(war)
    assert found.scores.chances["macro_f1"] == pytest.approx(found.scores.chance.level)


def test_the_interval_of_uar_is_the_jackknife_over_clips(data, found):
    """Recomputed by hand: each clip left out in turn, on the logit of the score."""
    judged = [read_judged(run, fold) for run, fold in zip(found.runs, (1, 2, 3), strict=True)]
    pooled = pool_groups(judged)

    def score(counts):
        rows = counts.sum(1) > 0
        return np.mean((np.diagonal(counts) / np.maximum(counts.sum(1), 1))[rows])

    whole = np.mean([score(head.sum(0)) for head in pooled])
    without = np.array(
        [
            np.mean([score(np.delete(head, clip, 0).sum(0)) for head in pooled])
            for clip in range(pooled.shape[1])
        ]
    )
    expected = interval_around(float(whole), without, 0.0)
    assert found.scores.intervals["uar"] == pytest.approx(expected)


def test_official_folds_never_leak_a_clip_and_judge_each_once(data, found):
    judged = []
    for run in found.runs:
        rows = read_labels(Path(run.data.labels)).to_pylist()
        train_clips = {row["video"] for row in rows if row["split"] == "train"}
        held_out = {row["video"] for row in rows if row["split"] == "validation"}
        assert not train_clips & held_out
        assert len(train_clips | held_out) == CLIPS
        assert run.data.splits["validation"].frames == len(held_out)
        judged += held_out
    table = read_labels(data / "labels/expr.parquet").to_pylist()
    assert sorted(judged) == sorted(row["video"] for row in table if row["fold"] > 0)


def test_scores_of_folds_are_printed_and_written(found, capsys):
    lines = found.lines()
    assert lines[0].startswith("EXPR UAR ")
    assert lines[1].startswith("  seeds 0 .")
    assert lines[2].startswith("EXPR WAR ")
    assert " over 3 folds (sd " in lines[0]
    assert ", chance .333 (always one class), pooled ." in lines[0]
    assert " (always the most frequent class), pooled ." in lines[2]
    assert re.search(r"pooled \.\d{3} \[\.\d{3}, \.\d{3}\]; folds ", lines[2])
    assert any(line.startswith("EXPR chance") for line in lines)
    file = found.folder / "official_folds.json"
    assert FoldScores.from_json(file.read_bytes(), file, "") == found.scores
    rows = list(csv.DictReader((found.folder / "official_folds.csv").open()))
    ends = ["pooled low", "pooled high", "chance", "mean of seed 0", "mean of seed 1"]
    assert [row["fold"] for row in rows] == ["1", "2", "3", "mean", "pooled", *ends]
    assert len(found.to_pandas()) == len(rows)
    # Files from before these fields are read
    content = found.scores.to_json()
    for name in ("intervals", "chances", "by_seed"):
        del content[name]
    assert FoldScores.from_json(content, file, "").by_seed == {}


def test_the_same_command_goes_on_and_ends_in_the_same_bytes(data, found, capsys):
    before = (found.folder / "official_folds.json").read_bytes()
    places = ["--bank", str(data / "bank"), "--labels", str(data), "--out", str(found.folder)]
    more = ["--folds", "official", "--num-seeds", "2", "--device", "cpu"]
    assert main(["train", "erm", *places, *WORDS, *more]) == 0
    assert (found.folder / "official_folds.json").read_bytes() == before
    assert "EXPR UAR" in capsys.readouterr().out


def test_data_without_official_folds_and_other_commands_refuse_it(data, tmp_path):
    table = read_labels(data / "labels/expr.parquet").drop_columns(["fold", "frame"])
    write_clip_labels(tmp_path / "labels/expr.parquet", table, TASK)
    config = TrainConfig(
        bank=data / "bank", labels=tmp_path, out=tmp_path / "run", folds="official"
    )
    with pytest.raises(RaffectError, match="has no official folds; those of DFEW and MAFW have"):
        train_on_official_folds(config)
    with pytest.raises(RaffectError, match="which raffect.train_on_official_folds trains"):
        train(config)
    with pytest.raises(RaffectError, match="does not go with --select cv"):
        config_of(data, tmp_path, select="cv")
    with pytest.raises(RaffectError, match="--folds official: is for `raffect train`"):
        TuneConfig(bank=data, labels=data, out=tmp_path, folds="official")


def test_chance_beside_the_mean_is_the_mean_over_folds(found):
    each = [run.chance for run in found.runs]
    assert len({chance.majority for chance in each}) > 1, "folds differ"
    assert found.scores.chance.prior == pytest.approx(np.mean([c.prior for c in each]))
    assert found.scores.chance.majority == pytest.approx(np.mean([c.majority for c in each]))
    (line,) = [line for line in found.lines() if line.startswith("EXPR chance")]
    assert line.startswith("EXPR chance macro F1 over 3 folds: ")
    alike = [Chance(answer="always A", majority=k, prior=None) for k in (0.25, 0.75)]
    assert mean_chance(alike) == Chance(answer="always A", majority=0.5, prior=None)


def test_a_group_in_two_folds_is_one_group_of_the_pooled_answers():
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 9, (2, 2, 3, 3)), rng.integers(0, 9, (2, 3, 3, 3))
    judged = [Judged(["a", "b"], list(one)), Judged(["c", "b", "d"], list(two))]
    pooled = pool_groups(judged)
    assert pooled.shape == (2, 4, 3, 3)
    assert (pooled[:, 1] == one[:, 1] + two[:, 1]).all()
    assert (pooled[:, [0, 2, 3]] == np.stack([one[:, 0], two[:, 0], two[:, 2]], 1)).all()


def test_a_head_that_diverges_stops_before_the_next_fold(data, tmp_path):
    config = config_of(data, tmp_path / "run", num_seeds=1)
    config = replace(config, optim=replace(config.optim, lr=1e30))
    with pytest.raises(RaffectError, match="fold-1.*diverged|every head diverged|no head"):
        train_on_official_folds(config)
    assert (tmp_path / "run/fold-1").exists()
    assert not (tmp_path / "run/fold-2").exists()


def test_a_fold_is_named_by_its_data_set_where_scores_stand_across_sets(found):
    runs = read_runs([run.folder for run in found.runs])
    names = list(_matrix(runs, {}).columns.values())
    assert names == [f"{found.folder.name}, official fold {fold}" for fold in found.scores.folds]
