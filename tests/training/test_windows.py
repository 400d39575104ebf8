"""Heads of windows as a user trains, sweeps, judges and uses them."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

import raffect
from raffect.config import EvaluateConfig, PostprocessConfig, PredictConfig, TrainConfig, TuneConfig
from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_head
from raffect.recipe import HeadConfig, LossConfig, OptimConfig, Recipe, SamConfig
from raffect.runs import data as runs_data
from raffect.runs.data import open_dataset, targets_of
from raffect.runs.folder import RunFolder
from raffect.runs.records import PlannedHead
from raffect.training.run_batch import split_rows
from raffect.training.train import count_steps

SMALL = {"kind": "temporal", "width": 8, "layers": 1, "attention_heads": 2, "pool": "centre"}
HEAD = HeadConfig(**SMALL, window=5, stride=2)
FAST = {
    "head": HEAD,
    "loss": LossConfig(alpha=1.0),
    "sam": SamConfig(rho=0.0),
    "optim": OptimConfig(lr=0.01),
    "epochs": 4,
    "device": "cpu",
    "threads": 1,
}


def paths(data, out):
    return {"bank": data / "bank", "labels": data, "task": "expr", "out": out}


def windows_by_loop(dataset, split, head):
    """The window of each frame of a split, looked up in the whole bank."""
    whole = {}
    for index in dataset.splits.values():
        names = [index.videos[number] for number in index.video]
        whole |= dict(zip(zip(names, index.frame.tolist(), strict=True), index.read(), strict=True))
    index, nothing = dataset.splits[split], np.full(len(next(iter(whole.values()))), np.nan)
    steps = [(k - head.window // 2) * head.stride for k in range(head.window)]
    rows = [
        [whole.get((index.videos[video], int(frame) + step), nothing) for step in steps]
        for video, frame in zip(index.video, index.frame, strict=True)
    ]
    return np.array(rows, np.float32)


def test_what_training_recorded_is_what_evaluate_predict_and_a_loop_find(data, tmp_path):
    run = tmp_path / "run"
    raffect.train(TrainConfig(**paths(data, run), **FAST, num_seeds=2))
    dataset = open_dataset(data / "bank", data, "expr")
    index, task = dataset.splits["validation"], dataset.task
    target = targets_of(index, task)
    x = windows_by_loop(dataset, "validation", HEAD)
    judged = raffect.evaluate(EvaluateConfig(bank=data / "bank", labels=data, run=run)).tasks[0]
    table = PredictConfig(bank=data / "bank", head=run, out=tmp_path / "p.parquet")
    rows = raffect.predict(table).to_pandas().set_index(["video", "frame"])
    keys = list(zip([index.videos[v] for v in index.video], index.frame.tolist(), strict=True))
    mean = 0
    for record, found in zip(RunFolder(run).read_records(), judged.evaluation.heads, strict=True):
        head, _ = load_head(RunFolder(run).weights_path(record.id, "last"))
        with torch.no_grad():
            outputs = head(torch.from_numpy(x))
        f1 = f1_score(target, outputs.argmax(1), labels=range(8), average="macro", zero_division=0)
        assert record.scores["last"].headline == pytest.approx(f1, abs=1e-9)
        assert found.score.headline == record.scores["last"].headline
        assert found.score.interval_95 == record.scores["last"].interval_95
        mean = mean + outputs.softmax(1).numpy() / 2
    columns = [f"p_{name}" for name in task.outputs]
    np.testing.assert_allclose(rows.loc[keys, columns], mean, atol=2e-6)


def test_heads_of_folds_read_windows_and_their_predictions_are_chosen_on(data, tmp_path):
    run = tmp_path / "run"
    raffect.train(TrainConfig(**paths(data, run), **FAST, select="cv", folds=2))
    folder = RunFolder(run)
    dataset = open_dataset(data / "bank", data, "expr")
    fold = dataset.fold_of_frames(2)
    assert sum(record.fold is not None for record in folder.read_records()) == 2
    found = raffect.postprocess(PostprocessConfig(run=(run,), device="cpu"))
    assert found.found.frames == len(fold)
    on_validation = raffect.postprocess(
        PostprocessConfig(run=(run,), on="validation", out=tmp_path / "v", device="cpu")
    )
    assert on_validation.found.frames == len(dataset.splits["validation"])
    # With these rules, evaluate's score before them is that of the head alone
    judged = raffect.evaluate(
        EvaluateConfig(bank=data / "bank", labels=data, run=run, device="cpu")
    ).tasks[0]
    assert judged.evaluation.postprocessed.before.score == pytest.approx(
        judged.evaluation.heads[0].score.headline, abs=1e-9
    )


@pytest.mark.cluster
def test_window_and_stride_are_axes_of_a_sweep(data, tmp_path):
    run = tmp_path / "sweep"
    axes = ("head.window=1,3", "head.stride=1,4")
    raffect.tune(TuneConfig(**paths(data, run), **FAST, space=axes, gpus_per_trial=0))
    records = RunFolder(run).read_records()
    shapes = [(r.recipe.head.window, r.recipe.head.stride) for r in records]
    assert sorted(shapes) == [(1, 1), (1, 4), (3, 1), (3, 4)]
    scores = {shape: r.scores["last"].headline for shape, r in zip(shapes, records, strict=True)}
    # A window of one has no stride; others read other frames
    assert scores[1, 1] == scores[1, 4]
    assert len(set(scores.values())) == 3
    judged = raffect.evaluate(
        EvaluateConfig(bank=data / "bank", labels=data, run=run, device="cpu")
    ).tasks[0]
    assert [head.score.headline for head in judged.evaluation.heads] == [
        scores[head.recipe.head.window, head.recipe.head.stride] for head in judged.evaluation.heads
    ]


def test_a_sweep_finds_windows_shape_by_shape_whatever_else_it_varies(data, tmp_path, monkeypatch):
    found = []
    plain = runs_data.find_windows
    note = lambda index, frames, window: found.append(window.length) or plain(index, frames, window)  # noqa: E731
    monkeypatch.setattr(runs_data, "find_windows", note)
    space = ("loss.alpha=0.5,1", "head.width=4,8", "head.window=3,5,41")
    with pytest.raises(RaffectError, match="fullest window"):
        raffect.tune(TuneConfig(**paths(data, tmp_path / "run"), **FAST, space=space))
    # Once to see whether they fit into memory, and once for all checks
    assert found == [3, 5, 41, 3, 5, 41]


def test_steps_are_those_of_the_rows_that_are_trained_on(data):
    dataset = open_dataset(data / "bank", data, "expr")
    recipe = Recipe(head=HEAD, epochs=3, batch_size=32)
    for head in (PlannedHead(recipe), PlannedHead(recipe, 1, 3)):
        rows, _ = split_rows(dataset, head, HEAD)
        assert count_steps(dataset, [head, head]) == 2 * 3 * (len(rows) // 32)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"head": HeadConfig(**SMALL, window=41)}, "fullest window .* has 40"),
        ({"stream": "always"}, "--stream always: windows"),
    ],
)
def test_windows_that_cannot_be_trained_on_are_refused_before_anything_is_written(
    data, tmp_path, settings, line
):
    with pytest.raises(RaffectError, match=line):
        raffect.train(TrainConfig(**paths(data, tmp_path / "run"), **FAST | settings))
    space = ("head.window=1,41",) if "head" in settings else ("head.window=1,3",)
    with pytest.raises(RaffectError, match=line):
        raffect.tune(TuneConfig(**paths(data, tmp_path / "run"), **FAST | settings, space=space))
    assert not (tmp_path / "run").exists()
