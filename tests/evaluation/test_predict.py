"""Prediction on a bank: every frame once, in order, as each head alone and a plain loop have it."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import raffect
from raffect.bank.format import Bank
from raffect.bank.in_order import frames_in_order
from raffect.cli import main
from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.evaluation.ensemble import load_ensembles
from raffect.evaluation.scan import predict_frames
from raffect.heads.checkpoint import read_card
from raffect.predictions.table import read_facts
from raffect.runs.pick import pick_heads
from tests.helpers.banks import IDENTITY, make_manifest
from tests.helpers.heads import make_head
from tests.helpers.predicted import BAD, FIRST, THEN, brute_force, predict
from tests.helpers.runs import draw_confusion, make_run
from tests.helpers.shards import ShardWatch

CPU = torch.device("cpu")
ALL = ("runs/expr", "runs/other", "runs/au", "one head")


def mean_of_modules(heads, task, x):
    """Each module alone on all features, and the mean of what they answer."""
    outputs = [module(torch.tensor(x, dtype=torch.float32)) for module in heads[task]]
    if task == "expr":
        return torch.stack([found.softmax(1) for found in outputs]).mean(0).detach().numpy()
    if task == "au":
        return outputs[0].sigmoid().detach().numpy()
    return outputs[0].clamp(-1, 1).detach().numpy()


def test_every_frame_has_the_mean_of_what_each_head_alone_answers(bank, heads, tmp_path):
    result = predict(tmp_path, *ALL)
    rows = result.to_pandas()
    _, features = bank
    # Every planned frame once, sorted
    keys = list(zip(rows["video"], rows["frame"], strict=True))
    assert keys == sorted({*features, *BAD})
    assert rows["status"].tolist() == ["unreadable" if key in BAD else "ok" for key in keys]
    assert (result.rows, result.videos) == (85, 4)
    assert result.statuses == {"ok": 82, "unreadable": 3}
    # Scores and decisions
    x, ok = np.array(list(features.values())), rows[rows["status"] == "ok"]
    expr = mean_of_modules(heads, "expr", x)
    np.testing.assert_allclose(ok[[f"p_{name}" for name in EXPR.outputs]], expr, atol=2e-6)
    assert ok["expr"].tolist() == [EXPR.outputs[k] for k in expr.argmax(1)]
    au = mean_of_modules(heads, "au", x)
    np.testing.assert_allclose(ok[[f"p_{name}" for name in AU.outputs]], au, atol=2e-6)
    np.testing.assert_array_equal(ok[list(AU.outputs)], au >= 0.5)
    np.testing.assert_allclose(ok[list(VA.outputs)], mean_of_modules(heads, "va", x), atol=2e-6)
    bad = rows[rows["status"] != "ok"]
    assert bad[["expr", "p_Anger", "AU1", "p_AU1", "valence"]].isna().all().all()


def test_facts_say_which_heads_on_which_bank(bank, heads, tmp_path):
    result = predict(tmp_path, *ALL)
    facts = read_facts(tmp_path / "p.parquet")
    assert facts == result.facts
    expr, au, _ = facts.rules
    assert [head.sha256 for head in au.heads] == [
        read_card(tmp_path / "runs/au/weights/h/last").sha256
    ]
    assert [head.folder.rpartition("runs/")[2] for head in expr.heads] == [
        *(f"expr/weights/h{k}/last" for k in range(3)),
        "other/weights/probe/last",
    ]
    assert facts.bank_digest == Bank(tmp_path / "bank").digest()
    assert facts.encoders == (IDENTITY,)
    assert "expr: 4 head(s) + au: 1 head(s) + va: 1 head(s): 85 frames" in "\n".join(result.lines())


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_windows_go_by_frame_number_over_the_ends_of_parts(bank, heads, tmp_path, rows):
    path, features = bank
    found, _ = pick_heads([tmp_path / "runs/expr"], "last")
    plain, _ = load_ensembles(found, CPU, "none")
    windows = (0, 1, 2, 3, 5, 8, 13, 100_000)
    rules = dataclasses.replace(plain[0].rules, windows=windows)
    file = tmp_path / "rules.json"
    file.write_bytes(rules.to_bytes())
    ensembles, _ = load_ensembles(found, CPU, str(file))
    frames = frames_in_order(Bank(path))
    parts = list(predict_frames(frames, ensembles, rows))
    assert [len(table) for table, _ in parts[:-1]] == [rows] * (len(parts) - 1)
    smoothed = np.concatenate([predicted["expr"].scores for _, predicted in parts])
    scores = dict(zip(features, plain[0].scores(np.array(list(features.values()))), strict=True))
    expected = brute_force(scores, windows)
    keys = [tuple(row.values())[:2] for table, _ in parts for row in table.to_pylist()]
    for key, values in zip(keys, smoothed, strict=True):
        np.testing.assert_allclose(values, expected.get(key, [np.nan] * 8), atol=1e-6)


@pytest.mark.parametrize("rows", [4, 1000])
def test_each_shard_is_read_once_and_few_are_kept(bank, heads, tmp_path, rows, monkeypatch):
    watch = ShardWatch(monkeypatch)
    ensembles, _ = load_ensembles(pick_heads([tmp_path / "runs/au"], "last")[0], CPU)
    assert (
        sum(len(t) for t, _ in predict_frames(frames_in_order(Bank(bank[0])), ensembles, rows))
        == 85
    )
    plan = Bank(bank[0]).plan
    assert sorted(watch.read) == list(range(plan.num_shards))
    # Of each of the two generations one shard, and another one where a part begins
    assert watch.most <= (4 if rows == 4 else plan.num_shards)


def test_scores_are_the_mean_of_what_each_head_alone_answers(bank, heads, tmp_path):
    found, _ = pick_heads([tmp_path / "runs/other", tmp_path / "runs/expr"], "last")
    (ensemble,), _ = load_ensembles(found, CPU)
    x = np.random.default_rng(0).normal(size=(5000, IDENTITY.dim)).astype(np.float16)
    alone = [
        heads["expr"][k](torch.tensor(x, dtype=torch.float32)).softmax(1) for k in (3, 0, 1, 2)
    ]
    expected = torch.stack(alone).mean(0).detach().numpy()
    np.testing.assert_allclose(ensemble.scores(x), expected, atol=2e-6)
    assert ensemble.scores(x[:0]).shape == (0, 8)


def test_a_single_path_is_taken_as_one_head_or_run():
    paths = {"bank": Path("b"), "out": Path("p.csv")}
    config = raffect.PredictConfig(**paths | {"head": Path("runs/a")})
    assert config == raffect.PredictConfig(**paths, head=(Path("runs/a"),))
    paths = {"bank": Path("b"), "labels": Path("data")}
    config = raffect.EvaluateConfig(**paths | {"run": Path("runs/a")})
    assert config == raffect.EvaluateConfig(**paths, run=(Path("runs/a"),))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("style", "openface"),
        ("labels", Path("data")),
        ("boxes", Path("boxes.csv")),
        ("detector_model", Path("yunet.onnx")),
        ("weights", "random:1"),
    ],
)
def test_settings_for_inputs_are_refused_beside_a_bank(name, value):
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(raffect.RaffectError, match=f"{flag}: is for inputs; leave it out"):
        raffect.PredictConfig(bank=Path("b"), head=(Path("h"),), out=Path("p.csv"), **{name: value})


def test_of_a_sweep_the_setting_that_stands_for_it_predicts(bank, tmp_path):
    skill = {0.1: 0.3, 0.3: 0.9, 1.0: 0.5}
    settings = [{"loss.alpha": alpha} for alpha in skill]
    folder = make_run(
        tmp_path / "sweep", settings, lambda _, found: draw_confusion(skill[found["loss.alpha"]])
    )
    for seed, record in enumerate(folder.read_records()):
        path = folder.weights_path(record.id, "last")
        make_head(path, EXPR, recipe=record.recipe, seed=seed, id=record.id)
    result = predict(tmp_path, "sweep")
    cards = [read_card(Path(head.folder)) for head in result.facts.rules[0].heads]
    assert {card.recipe.loss.alpha for card in cards} == {0.3}
    assert len(cards) == 2
    assert result.notes[0] == (
        f"{tmp_path / 'sweep'}: 2 head(s) of alpha 0.3: highest val-last of 3 settings, compared "
        "on the validation split itself: optimistic"
    )
    # Weights without records cannot be chosen among
    shutil.rmtree(tmp_path / "sweep" / "heads")
    with pytest.raises(raffect.RaffectError, match="heads of 3 settings and no record of them"):
        predict(tmp_path, "sweep")


def test_heads_that_diverged_are_left_out_and_said(bank, heads, tmp_path):
    bad = tmp_path / "runs/expr/weights/h9/last"
    make_head(bad, EXPR, seed=9, status="diverged")
    result = predict(tmp_path, "runs/expr")
    assert result.notes[0] == f"left out: {bad}, which diverged"
    assert len(result.facts.rules[0].heads) == 3
    alone = predict(tmp_path, "runs/expr/weights/h9/last")
    assert "diverged; its last sound epoch predicts" in alone.notes[0]
    make_head(tmp_path / "all/weights/a/last", EXPR, status="diverged")
    make_head(tmp_path / "all/weights/b/last", EXPR, seed=1, status="diverged")
    with pytest.raises(raffect.RaffectError, match="all: every head diverged"):
        predict(tmp_path, "all")


def test_a_head_that_is_named_twice_counts_once(bank, heads, tmp_path):
    shutil.copytree(tmp_path / "runs/expr", tmp_path / "copy")
    result = predict(tmp_path, "runs/expr", "runs/expr/weights/h1/last", "copy")
    assert len(result.facts.rules[0].heads) == 3


def test_planned_frames_that_are_not_extracted_are_refused_or_said(bank, heads, tmp_path):
    manifest = make_manifest({**{k: max(FIRST.get(k, 0), n) for k, n in THEN.items()}, "d": 4})
    Bank(bank[0]).extend_plan(manifest)
    with pytest.raises(raffect.RaffectError, match="4 of 89 frames are planned and not there"):
        predict(tmp_path, "runs/au")
    assert not (tmp_path / "p.parquet").exists()
    result = predict(tmp_path, "runs/au", allow_incomplete=True)
    assert result.facts.incomplete == "4 of 89 frames"
    assert "INCOMPLETE BANK: it lacks 4 of 89 frames, which have no row" in result.lines()
    assert result.rows == 85


def test_heads_of_another_encoder_are_refused(bank, heads, tmp_path):
    card = read_card(tmp_path / "one head")
    other = dataclasses.replace(IDENTITY, weights_sha256="d" * 64)
    data = dataclasses.replace(card.data, encoders=(other,))
    make_head(tmp_path / "other encoder", VA, data=data)
    with pytest.raises(raffect.RaffectError, match="other encoder was trained on features of"):
        predict(tmp_path, "runs/expr", "other encoder")


def test_a_feature_that_is_not_finite_is_named(tmp_path, heads):
    bank = Bank(tmp_path / "bank")
    plan = bank.extend_plan(make_manifest({"a": 3, "b": 3}), 4)
    bank.claim(IDENTITY)
    x = np.ones((6, IDENTITY.dim), np.float16)
    x[4, 2] = np.inf
    bank.commit(0, plan.rows(0), x[:4], {}, IDENTITY)
    bank.commit(1, plan.rows(1), x[4:], {}, IDENTITY)
    with pytest.raises(raffect.RaffectError, match="the feature of b frame 2 is not finite"):
        predict(tmp_path, "runs/expr")
    assert not (tmp_path / "p.parquet").exists()


def test_two_tasks_of_one_name_are_refused(bank, heads, tmp_path):
    six = dataclasses.replace(EXPR, outputs=EXPR.outputs[:6])
    make_head(tmp_path / "six", six)
    with pytest.raises(raffect.RaffectError, match="two tasks are called expr, with 8 and 6"):
        predict(tmp_path, "runs/expr", "six")


def test_caveats_of_bank_and_heads_are_in_the_table_and_printed(tmp_path):
    drawn = dataclasses.replace(IDENTITY, caveat="embedded encoder, not CLIP")
    bank = Bank(tmp_path / "bank")
    plan = bank.extend_plan(make_manifest({"a": 2}))
    bank.claim(drawn)
    bank.commit(0, plan.rows(0), np.ones((2, drawn.dim), np.float16), {}, drawn)
    make_head(tmp_path / "head", EXPR)
    data = dataclasses.replace(
        read_card(tmp_path / "head").data,
        caveat="embedded encoder, not CLIP; drawn faces",
        incomplete="9 of 99 train frames",
    )
    make_head(tmp_path / "head", EXPR, data=data)
    result = predict(tmp_path, "head")
    lacking = "trained on an incomplete bank, which lacked 9 of 99 train frames"
    caveats = ("embedded encoder, not CLIP", "drawn faces", lacking)
    assert read_facts(result.out).caveats == caveats
    assert [line for line in result.lines() if line.startswith("caveat")] == [
        f"caveat: {c}" for c in caveats
    ]


def test_the_command_writes_csv_and_prints_its_result(bank, heads, tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ALL]
    out = tmp_path / "p.csv"
    words = ["predict", "--bank", str(bank[0]), "--head", *paths, "--out", str(out)]
    assert main(words) == 0
    assert f"wrote {out}: a row a frame, sorted by video, then frame" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 86
    assert main([*words[:-1], str(tmp_path / "p.txt")]) == 2
    assert "expected a name that ends in .parquet or .csv" in capsys.readouterr().err
