"""Training as a user runs it: what a run folder holds, what is repeated, what is refused."""

import csv
import json

import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import f1_score

from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.cli import main
from raffect.datasets.affwild2.tasks import EXPR
from raffect.datasets.labels import read_labels
from raffect.heads.checkpoint import load_head
from raffect.metrics.scores import JudgedScore
from tests.helpers.learning import (
    DIM,
    IDENTITY,
    LEARN,
    judge_words,
    make_data,
    scores_of,
    words,
    write_times,
)


def test_a_run_folder_holds_everything_and_its_heads_score_what_it_says(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(words("train", data, out, "--num-seeds", "2", *LEARN)) == 0
    text = capsys.readouterr().out
    assert "EXPR val-last" in text
    assert "over 2 seeds" in text
    assert "EXPR chance" in text
    caveat = "made by a test; drawn faces"
    assert f"caveat: {caveat}" in text
    files = "env.json heads.csv heads.parquet results.csv per_group.csv metrics.json"
    names = {path.name for path in out.iterdir()}
    assert {"config.toml", "heads", "weights", *files.split()} <= names
    assert not list((out / "state").glob("*")) if (out / "state").exists() else True

    # Weights of each head score what metrics.json and its card say
    labels = read_labels(data / "labels" / "expr.parquet")
    validation = read_features(Bank(data / "bank"), labels, EXPR, "validation")
    true, x = validation.y[:, 0], torch.from_numpy(validation.x).float()
    for name, about in scores_of(out)["heads"].items():
        head, card = load_head(out / "weights" / name / "last")
        predicted, score = head(x).argmax(1).numpy(), about["scores"]["last"]
        expected = f1_score(true, predicted, labels=range(8), average="macro", zero_division=0)
        assert score["headline"] == pytest.approx(expected, abs=1e-9)
        recorded = JudgedScore.from_json(score, "metrics.json", "")
        assert card.validation.to_json() == recorded.to_json()
        assert card.data.encoders == (IDENTITY,)
        assert card.task == EXPR
        assert (card.data.caveat, card.versions["raffect"]) == (caveat, "0.1.0")
    assert expected > 0.4

    # Tables: ten epochs of two heads
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert len(rows) == 20
    assert len(pq.read_table(out / "heads.parquet")) == 2
    groups = {row["group"] for row in csv.DictReader((out / "per_group.csv").open())}
    assert groups == set(validation.videos)


def test_training_twice_trains_once_and_config_toml_repeats_it(data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    assert main(words("train", data, out, recipe="released")) == 0
    first, written = capsys.readouterr().out, write_times(out / "weights")
    assert main(words("train", data, out, recipe="released")) == 0
    assert capsys.readouterr().out == first
    assert write_times(out / "weights") == written
    monkeypatch.chdir(tmp_path)
    assert main(["train", "run/config.toml", "--out", "again"]) == 0
    assert "\nnext: raffect report --runs again\n" in capsys.readouterr().out
    for file in (out / "weights").rglob("head.safetensors"):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(out)).read_bytes()


def test_a_run_folder_of_other_settings_or_data_is_refused(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(words("train", data, out)) == 0
    assert main(words("train", data, out, "--loss.alpha", "0.5")) == 2
    fault = "a run with loss.alpha 0.3, this one has 0.5; name a new folder"
    assert fault in capsys.readouterr().err
    # Nothing was trained on folds, so that any number of them is the same run
    assert main(words("train", data, out, "--folds", "3")) == 0
    other = make_data(tmp_path / "other", seed=1)
    assert main(words("train", other, out)) == 2
    assert "a run on other data" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert main(words("train", data, tmp_path / "mine")) == 2
    assert "exists and is not a run folder" in capsys.readouterr().err


def test_a_linear_probe_on_normalised_features_is_trained_and_judged(data, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "judged"
    more = ["--head.depth", "0", "--head.normalise", "l2", "--loss.alpha", "1", "--epochs", "30"]
    assert main(words("train", data, run, *more, "--optim.lr", "0.05")) == 0
    (about,) = scores_of(run)["heads"].values()
    (folder,) = run.glob("weights/*/last")
    head, card = load_head(folder)
    shape = {"dim": DIM, "width": 0, "depth": 0, "outputs": 8}
    assert card.head == {"kind": "mlp", **shape, "normalise": "l2"}
    labels = read_labels(data / "labels" / "expr.parquet")
    validation = read_features(Bank(data / "bank"), labels, EXPR, "validation")
    x = torch.from_numpy(validation.x).float()
    assert torch.allclose(head(x), head(3 * x), atol=1e-4)
    predicted, true = head(x).argmax(1).numpy(), validation.y[:, 0]
    expected = f1_score(true, predicted, labels=range(8), average="macro", zero_division=0)
    assert about["scores"]["last"]["headline"] == pytest.approx(expected, abs=1e-9)
    assert expected > 0.4
    assert main(judge_words(run, data, "--out", str(out))) == 0
    judged = json.loads((out / "metrics.json").read_text())
    assert judged["heads"][0]["score"]["headline"] == pytest.approx(expected, abs=1e-9)
    capsys.readouterr()
