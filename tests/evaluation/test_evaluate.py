"""Runs and single heads judged again, and what is refused."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from raffect.bank.format import Bank
from raffect.cli import main
from tests.helpers.learning import judge_words, make_data, scores_of, words


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("learn"))


def test_evaluate_scores_a_run_a_head_and_the_training_split(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(words("train", data, out, "--num-seeds", "2")) == 0
    capsys.readouterr()

    # A run: all its heads
    assert main(judge_words(out, data, "--out", str(tmp_path / "judged"))) == 0
    text = capsys.readouterr().out
    assert "over 2 seeds" in text
    assert "Happiness" in text
    judged = json.loads((tmp_path / "judged" / "metrics.json").read_text())
    again = {head["id"]: head["score"]["headline"] for head in judged["heads"]}
    recorded = scores_of(out)["heads"].items()
    assert again == {name: about["scores"]["last"]["headline"] for name, about in recorded}

    # One head, on either split
    head = next((out / "weights").glob("*/best"))
    assert main(judge_words(head, data, "--split", "train")) == 0
    assert "trained on" in capsys.readouterr().out
    assert main(judge_words(head, data)) == 0
    text = capsys.readouterr().out
    assert "snapshot best of 1 head(s)" in text
    assert "optimistic there" in text

    # Never into a run folder
    assert main(judge_words(out, data, "--out", str(out))) == 2
    assert "is a run folder" in capsys.readouterr().err


def test_evaluate_needs_no_split_but_the_one_it_judges_and_says_when_the_gpu_is_full(
    data, tmp_path, monkeypatch, capsys
):
    # Labels of the validation split alone
    assert main(words("train", data, tmp_path / "run")) == 0
    table, labels = pq.read_table(data / "labels" / "expr.parquet"), tmp_path / "expr.parquet"
    pq.write_table(table.filter(pc.field("split").cast(pa.string()) == "validation"), labels)
    capsys.readouterr()
    command = judge_words(tmp_path / "run", data, "--labels", str(labels))
    assert main(command) == 0
    assert "EXPR validation" in capsys.readouterr().out
    assert main([*command, "--split", "train"]) == 2
    assert "no frame of expr train" in capsys.readouterr().err

    def fill(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("raffect.evaluation.inputs.read_rows", fill)
    assert main(command) == 2
    assert "out of GPU memory" in capsys.readouterr().err


def test_evaluate_refuses_features_of_another_encoder_and_damaged_heads(data, tmp_path, capsys):
    # A bank of another encoder
    out = tmp_path / "run"
    assert main(words("train", data, out)) == 0
    other = tmp_path / "other"
    make_data(other)
    file = Bank(other / "bank").read_file()
    of_another = replace(file, identity=replace(file.identity, weights_sha256="b" * 64))
    (other / "bank" / "bank.json").write_bytes(of_another.to_bytes())
    base = ["evaluate", "--labels", str(data), "--run", str(out), "--device", "cpu"]
    assert main([*base, "--bank", str(other / "bank")]) == 2
    assert "another encoder" in capsys.readouterr().err

    # A flipped bit in the weights, a card of nothing, no card
    head = next((out / "weights").glob("*/last/head.safetensors"))
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    head.write_bytes(bytes(content))
    assert main([*base, "--bank", str(data / "bank")]) == 2
    assert "its SHA-256 differs" in capsys.readouterr().err
    (head.parent / "config.json").write_text("{}")
    assert main([*base, "--bank", str(data / "bank")]) == 2
    assert "not a head of this version" in capsys.readouterr().err
    assert main([*base[:4], str(tmp_path), "--bank", str(data / "bank")]) == 2
    assert "no head in weights" in capsys.readouterr().err
