"""Heads of windows in use: what each module answers for each window alone, by a plain loop."""

import dataclasses

import numpy as np
import pytest
import torch

import raffect
from raffect.bank.format import Bank
from raffect.bank.in_order import frames_in_order
from raffect.datasets.affwild2.tasks import EXPR, VA
from raffect.evaluation import scan
from raffect.evaluation.ensemble import load_ensembles
from raffect.evaluation.scan import predict_frames
from raffect.heads.checkpoint import read_card
from raffect.recipe import HeadConfig, Recipe
from raffect.runs.pick import pick_heads
from tests.helpers.banks import IDENTITY, draw_bank, fill_bank, make_manifest
from tests.helpers.heads import make_head
from tests.helpers.shards import ShardWatch

CPU = torch.device("cpu")
SMALL = {"kind": "temporal", "width": 8, "attention_heads": 2, "layers": 1}


def temporal(task, **head):
    return Recipe(task=task.name, head=HeadConfig(**SMALL, **head))


HEADS = {
    "expr": [None, temporal(EXPR, window=4), temporal(EXPR, window=5, stride=3, pool="centre")],
    "va": [temporal(VA, window=3, stride=7)],
}
"""Recipes by task: an MLP and two temporal heads together, and a temporal head alone."""


@pytest.fixture(params=[0, 1])
def bank(tmp_path, request):
    return draw_bank(tmp_path / "bank", request.param)


@pytest.fixture
def heads(tmp_path):
    """Modules of each task, saved as runs of the same names."""
    return {
        task.name: [
            make_head(tmp_path / task.name / "weights" / f"h{k}" / "last", task, recipe=r, seed=k)
            for k, r in enumerate(HEADS[task.name])
        ]
        for task in (EXPR, VA)
    }


def by_loop(heads, task, features):
    """The mean of what each module alone answers for the window of each frame alone."""
    nothing, out = np.full(IDENTITY.dim, np.nan, np.float16), {}
    for video, frame in sorted(features):
        found = []
        for module, recipe in zip(heads[task.name], HEADS[task.name], strict=True):
            head = recipe.head if recipe else HeadConfig()
            steps = [(k - head.window // 2) * head.stride for k in range(head.window)]
            rows = [features.get((video, frame + step), nothing) for step in steps]
            x = torch.tensor(np.array(rows), dtype=torch.float32)[None]
            outputs = module(x if recipe else x[:, 0])[0]
            found.append(outputs.softmax(0) if task is EXPR else outputs.clamp(-1, 1))
        out[video, frame] = torch.stack(found).mean(0).detach().numpy()
    return out


def test_a_temporal_head_predicts_a_bank_as_a_loop_over_windows_does(bank, heads, tmp_path):
    _, features = bank
    folders = [p for n in ("expr", "va") for p in sorted((tmp_path / n).glob("weights/*/last"))]
    out = tmp_path / "p.parquet"
    config = raffect.PredictConfig(bank=tmp_path / "bank", head=tuple(folders), out=out)
    rows = raffect.predict(config).to_pandas()
    ok = rows[rows["status"] == "ok"]
    assert list(zip(ok["video"], ok["frame"], strict=True)) == sorted(features)
    expr = list(by_loop(heads, EXPR, features).values())
    np.testing.assert_allclose(ok[[f"p_{name}" for name in EXPR.outputs]], expr, atol=3e-6)
    va = list(by_loop(heads, VA, features).values())
    np.testing.assert_allclose(ok[list(VA.outputs)], va, atol=3e-6)
    # A frame that could not be read has no answer, though its neighbours could be
    bad = rows[rows["status"] != "ok"]
    assert len(bad) > 3
    assert bad[["expr", "p_Anger", "valence"]].isna().all().all()


@pytest.mark.parametrize("every", [1, 5])
def test_windows_that_are_mostly_gaps_are_a_caveat(heads, tmp_path, every):
    manifest = make_manifest({"a": 40})
    fill_bank(tmp_path / "few", manifest.filter([k % every == 0 for k in range(40)]))
    folder = tmp_path / "expr" / "weights" / "h1" / "last"
    config = {"bank": tmp_path / "few", "head": folder, "out": tmp_path / "p.parquet"}
    lines = raffect.predict(raffect.PredictConfig(**config)).lines()
    gaps = "caveat: a head reads frames that are 1 apart, and 0% of the frames have the next"
    assert any(line.startswith(gaps) for line in lines) == (every == 5)


@pytest.mark.parametrize(("rows", "block"), [(1, 3), (7, 5), (1000, 4), (9, 1000)])
def test_windows_go_over_the_ends_of_blocks_parts_and_shards(
    bank, heads, tmp_path, rows, block, monkeypatch
):
    monkeypatch.setattr(scan, "_BLOCK", block)
    path, features = bank
    folders = sorted((tmp_path / "expr").glob("weights/*/last"))
    (plain,), _ = load_ensembles(pick_heads(folders, "last")[0], CPU, "none")
    plain.rules = dataclasses.replace(plain.rules, windows=(2,) * 8)
    parts = list(predict_frames(frames_in_order(path), [plain], rows))
    scores = np.concatenate([predicted["expr"].scores for _, predicted in parts])
    keys = [tuple(row.values())[:2] for table, _ in parts for row in table.to_pylist()]
    alone = by_loop(heads, EXPR, features)
    for key, found in zip(keys, scores, strict=True):
        near = [alone[key[0], n] for n in range(key[1] - 2, key[1] + 3) if (key[0], n) in alone]
        expected = np.mean(near, 0) if key in features else np.full(8, np.nan)
        np.testing.assert_allclose(found, expected, atol=3e-6)


def test_each_shard_is_read_once_and_few_are_kept_for_windows(tmp_path, heads, monkeypatch):
    # Four videos of 60 frames in 30 shards
    bank = fill_bank(tmp_path / "long", make_manifest(dict.fromkeys("abcd", 60)), 8)
    watch = ShardWatch(monkeypatch)
    monkeypatch.setattr(scan, "_BLOCK", 16)
    folders = sorted((tmp_path / "expr").glob("weights/*/last"))
    ensembles, _ = load_ensembles(pick_heads(folders, "last")[0], CPU)
    found = predict_frames(frames_in_order(Bank(bank.path)), ensembles, 64)
    assert sum(len(table) for table, _ in found) == 240
    assert sorted(watch.read) == list(range(30))
    # A block of two shards, and 6 frames on both sides: two more, and where the ends cut them
    assert watch.most <= 6


def test_heads_that_were_trained_on_clips_say_so_in_a_bank(bank, heads, tmp_path):
    recipe, folder = temporal(EXPR, window=4, stride=2), tmp_path / "clips"
    make_head(folder, EXPR, recipe=recipe)
    data = dataclasses.replace(read_card(folder).data, of_clips=True)
    make_head(folder, EXPR, recipe=recipe, data=data)
    out = tmp_path / "p.parquet"
    config = raffect.PredictConfig(bank=tmp_path / "bank", head=(folder,), out=out)
    what = "trained on 4 frames evenly spread over a clip, used here on windows of 4 neighbouring"
    assert f"{what} frames, stride 2" in raffect.predict(config).facts.caveats
    # Heads of frames say nothing of the kind.
    mlp = dataclasses.replace(config, head=(tmp_path / "expr" / "weights" / "h0" / "last",))
    assert not any("used here" in caveat for caveat in raffect.predict(mlp).facts.caveats)
