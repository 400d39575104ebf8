"""Damaged banks, labels and disks: training and judging end in one line, or name what they lack."""

import json
import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from raffect.bank.format import Bank
from raffect.cli import main
from raffect.datasets.labels import read_labels
from raffect.runs.folder import RunFolder
from raffect.storage.tables import write_table
from tests.helpers.learning import (
    FAST,
    judge_words,
    make_data,
    words,
)


def nan_feature(x, expr, au):
    x[100, 3] = np.nan


def one_class(x, expr, au):
    expr[:] = 4


@pytest.mark.parametrize(
    ("change", "more", "match"),
    [
        (nan_feature, [], "the feature of v02 frame 21 is not finite"),
        (one_class, [], "one class only (Happiness"),
        (None, ["--batch-size", "512"], "fewer than --batch-size 512"),
        (None, ["--select", "cv", "--folds", "50"], "--folds 50: the training split has 8 videos"),
        (None, ["--optim.lr", "1e30"], "the loss was no longer finite at step"),
        (None, ["--device", "cuda"], "--device cuda: torch sees no CUDA device"),
    ],
    ids=["nan", "one class", "batch", "folds", "diverged", "cuda"],
)
def test_bad_data_and_settings_are_one_line(tmp_path, capsys, monkeypatch, change, more, match):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = make_data(tmp_path / "bad", change=change)
    assert main(words("train", folder, tmp_path / "run", *more)) == 2
    err = capsys.readouterr().err
    assert match in err
    assert "Traceback" not in err


def test_labels_that_do_not_fit_are_named(data, tmp_path, capsys):
    base = ["--task", "au", "--bank", str(data / "bank"), "--out", str(tmp_path / "run"), *FAST]
    assert main(["train", "paper", *base, "--labels", str(data / "labels" / "expr.parquet")]) == 2
    assert "labels of task expr, not au" in capsys.readouterr().err
    assert main(["train", "paper", *base, "--labels", str(tmp_path / "gone")]) == 2
    assert "no such label table" in capsys.readouterr().err
    table = read_labels(data / "labels" / "au.parquet")
    empty = table.filter(pa.compute.equal(table["split"].cast(pa.string()), "train"))
    write_table(empty, tmp_path / "labels" / "au.parquet", {"task": "au"})
    assert main(["train", "paper", *base, "--labels", str(tmp_path)]) == 2
    assert "no frame of au validation has both a label and a feature" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    data, tmp_path, capsys, monkeypatch
):
    from raffect.storage import atomic

    def refuse(path):
        if "safetensors" in path.name:
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(atomic, "_sync", refuse)
    assert main(words("train", data, tmp_path / "run")) == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert "Traceback" not in err
    assert not list((tmp_path / "run").rglob("head.safetensors"))
    monkeypatch.undo()
    assert main(words("train", data, tmp_path / "run")) == 0


def test_a_damaged_shard_ends_a_stream_with_one_line(data, tmp_path, capfd, local_ray):
    shutil.copytree(data, tmp_path / "data")
    shard = sorted((tmp_path / "data" / "bank" / "shards").glob("*.parquet"))[-1]
    content = bytearray(shard.read_bytes())
    content[:64] = bytes(64)
    content[-64:] = bytes(64)
    shard.write_bytes(content)  # of the recorded size, so it counts until it is read
    assert main(words("train", tmp_path / "data", tmp_path / "run", "--stream", "always")) == 2
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    assert re.search(
        rf"raffect train: .*{shard.name}: not the file that was committed .* again$",
        errors.strip().splitlines()[-1],
    )


@pytest.mark.parametrize("stream", ["never", "always"])
def test_a_flipped_byte_in_a_shard_never_trains_into_a_head(
    data, tmp_path, capfd, local_ray, stream
):
    shutil.copytree(data, tmp_path / "data")
    shard = Bank(tmp_path / "data" / "bank").shard_path(3)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 2
    shard.write_bytes(content)
    assert main(words("train", tmp_path / "data", tmp_path / "run", "--stream", stream)) == 2
    fault = f"{shard.name}: not the file that was committed (SHA-256 differs)"
    assert fault in capfd.readouterr().err
    assert not list((tmp_path / "run").glob("heads/*"))


def test_a_flipped_byte_in_a_shard_is_never_judged_on(data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    assert main(words("train", tmp_path / "data", tmp_path / "run")) == 0
    for shard in sorted((tmp_path / "data" / "bank" / "shards").glob("*.parquet")):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 2
        shard.write_bytes(content)
    assert main(judge_words(tmp_path / "run", tmp_path / "data")) == 2
    assert "not the file that was committed" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["not extracted", "truncated", "gone"])
def test_an_incomplete_bank_is_refused_or_named_with_every_score(data, tmp_path, capsys, harm):
    # A bank that lacks shard 3
    shutil.copytree(data, tmp_path / "data")
    bank, run = Bank(tmp_path / "data" / "bank"), tmp_path / "run"
    if harm == "not extracted":
        bank.commit_path(3).unlink()
    elif harm == "truncated":
        os.truncate(bank.shard_path(3), 100)
    else:
        bank.shard_path(3).unlink()
    # Refused, and with --allow-incomplete named with every score
    command = words("train", tmp_path / "data", run, "--num-seeds", "2")
    lacking = "24 of 320 train frames and 40 of 160 validation frames"
    assert main(command) == 2
    error = capsys.readouterr().err
    assert re.search(rf"{lacking} are planned and not there.*--allow-incomplete", error)
    assert not run.exists()
    assert main([*command, "--allow-incomplete"]) == 0
    lines = capsys.readouterr().out.splitlines()
    scores = [line for line in lines if "macro F1" in line and "chance" not in line]
    assert len(scores) == 2
    assert all(line.endswith(f"[INCOMPLETE BANK, it lacks {lacking}]") for line in scores)
    for file in (run / "heads").glob("*.json"):
        assert json.loads(file.read_text())["incomplete"] == lacking

    # The same for evaluation
    evaluate = judge_words(run, tmp_path / "data")
    assert main(evaluate) == 2
    assert "40 of 160 validation frames are planned and not there" in capsys.readouterr().err
    assert main([*evaluate, "--allow-incomplete"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"macro F1 .*\[INCOMPLETE BANK, it lacks 40 of 160 validation frames\]", text)
    assert "trained on an incomplete bank, which lacked 24 of 320 train frames" in text

    # And for the report
    assert main(["report", "--runs", str(run)]) == 0
    lines = (run / "report.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|") and "val-" in line]
    assert len(rows) == 2
    assert all("INCOMPLETE BANK" in row for row in rows)


def test_frames_without_an_image_are_counted_and_the_bank_is_complete(data, tmp_path, capsys):
    # Labels of 50 frames of a video that is not in the plan
    shutil.copytree(data, tmp_path / "data")
    file = tmp_path / "data" / "labels" / "expr.parquet"
    labels = read_labels(file)
    more = pa.table(
        {
            "video": ["nowhere"] * 50,
            "frame": pa.array(range(1, 51), pa.int32()),
            "split": ["train"] * 50,
            "expression": pa.array([1] * 50, pa.int8()),
        }
    )
    plain = labels.replace_schema_metadata(None).cast(more.schema)
    table = pa.concat_tables([plain, more])
    write_table(table, file, {"task": "expr", "synthetic": "true"})

    # A line says so, and the facts
    assert main(words("train", tmp_path / "data", tmp_path / "run")) == 0
    text = capsys.readouterr().out
    assert "EXPR train: 50 of 370 labelled frames have no image that can be read" in text
    assert "INCOMPLETE" not in text
    facts = RunFolder(tmp_path / "run").read_run().data
    train = facts.splits["train"]
    assert (train.no_image, train.not_extracted, facts.incomplete) == (50, 0, "")
