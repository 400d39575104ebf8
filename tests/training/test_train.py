"""Train, evaluate and tune as a user runs them: on a small bank of drawn faces and on banks made to be bad."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
from raffect.runs.data import open_dataset
from raffect.runs.folder import RunFolder
from raffect.storage.tables import write_table
from raffect.training.stream import RayStream
from tests.helpers.learning import FAST, IDENTITY, LEARN, make_data, scores_of, words


def test_a_run_folder_holds_everything_and_its_heads_score_what_it_says(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(words("train", data, out, "--num-seeds", "2", *LEARN)) == 0
    text = capsys.readouterr().out
    assert "EXPR val-last" in text
    assert "over 2 seeds" in text
    assert "EXPR chance" in text
    assert "caveat: made by a test" in text
    assert {
        "config.toml",
        "env.json",
        "heads",
        "weights",
        "heads.csv",
        "heads.parquet",
        "results.csv",
        "per_group.csv",
        "metrics.json",
    } <= {p.name for p in out.iterdir()}
    assert not list((out / "state").glob("*")) if (out / "state").exists() else True
    validation = read_features(
        Bank(data / "bank"), read_labels(data / "labels" / "expr.parquet"), EXPR, "validation"
    )
    for name, about in scores_of(out)["heads"].items():
        head, card = load_head(out / "weights" / name / "last")
        guess = head(torch.from_numpy(validation.x).float()).argmax(1).numpy()
        expected = f1_score(
            validation.y[:, 0], guess, labels=range(8), average="macro", zero_division=0
        )
        assert about["scores"]["last"]["headline"] == pytest.approx(expected, abs=1e-9)
        assert (
            card.validation.to_json()
            == JudgedScore.from_json(about["scores"]["last"], "metrics.json", "").to_json()
        )
        assert card.data.encoders == (IDENTITY,)
        assert card.task == EXPR
        assert (card.data.caveat, card.versions["raffect"]) == ("made by a test", "0.1.0")
    assert expected > 0.4
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert len(rows) == 20
    assert len(pq.read_table(out / "heads.parquet")) == 2
    assert {row["group"] for row in csv.DictReader((out / "per_group.csv").open())} == set(
        validation.videos
    )


def test_training_twice_trains_once_and_config_toml_repeats_it(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(words("train", data, out, recipe="released")) == 0
    first, stamps = (
        capsys.readouterr().out,
        {p: p.stat().st_mtime_ns for p in (out / "weights").rglob("*") if p.is_file()},
    )
    assert main(words("train", data, out, recipe="released")) == 0
    assert capsys.readouterr().out == first
    assert {p: p.stat().st_mtime_ns for p in (out / "weights").rglob("*") if p.is_file()} == stamps
    assert main(["train", str(out / "config.toml"), "--out", str(tmp_path / "again")]) == 0
    for file in (out / "weights").rglob("head.safetensors"):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(out)).read_bytes()


def test_a_run_folder_of_other_settings_or_data_is_refused(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(words("train", data, out)) == 0
    assert main(words("train", data, out, "--loss.alpha", "0.5")) == 2
    assert (
        "a run with loss.alpha 0.3, this one has 0.5; name a new folder" in capsys.readouterr().err
    )
    other = make_data(tmp_path / "other", seed=1)
    assert main(words("train", other, out)) == 2
    assert "a run on other data" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert main(words("train", data, tmp_path / "mine")) == 2
    assert "exists and is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["expr", "au"])
def test_folds_choose_the_epoch_without_the_validation_split(data, tmp_path, capsys, task):
    out = tmp_path / "run"
    assert main(words("train", data, out, "--select", "cv", "--folds", "3", task=task)) == 0
    text = capsys.readouterr().out
    assert f"{task.upper()} val-cv" in text
    records = [json.loads(path.read_text()) for path in (out / "heads").glob("*.json")]
    folds = [record for record in records if record["fold"] is not None]
    folder = RunFolder(out)
    found = [folder.read_statistics(folder.read_record(record["id"])) for record in folds]
    assert all(
        set(statistics.heads[record["id"]]) == {1, 2, 3}
        for statistics, record in zip(found, folds, strict=True)
    )  # every epoch
    held_out = [set(statistics.groups) for statistics in found]
    assert len(folds) == 3
    assert set.union(*held_out) == {f"v{k:02d}" for k in range(12) if k % 3 != 2}
    assert sum(map(len, held_out)) == 8  # no video in two folds
    chosen = next(record for record in records if record["fold"] is None)["scores"]["cv"]["epoch"]
    assert (
        chosen == int(np.mean([record["curve"]["validation"] for record in folds], 0).argmax()) + 1
    )
    assert load_head(next((out / "weights").glob("*/cv")))[1].epoch == chosen


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


def test_evaluate_scores_a_run_a_head_and_the_training_split(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(words("train", data, out, "--num-seeds", "2")) == 0
    capsys.readouterr()
    base = ["evaluate", "--bank", str(data / "bank"), "--labels", str(data), "--device", "cpu"]
    assert main([*base, "--run", str(out), "--out", str(tmp_path / "judged")]) == 0
    text = capsys.readouterr().out
    assert "over 2 seeds" in text
    assert "Happiness" in text
    judged = json.loads((tmp_path / "judged" / "metrics.json").read_text())
    recorded = scores_of(out)["heads"]
    assert {head["id"]: head["score"]["headline"] for head in judged["heads"]} == {
        name: about["scores"]["last"]["headline"] for name, about in recorded.items()
    }
    head = next((out / "weights").glob("*/best"))
    assert main([*base, "--run", str(head), "--split", "train"]) == 0
    assert "trained on" in capsys.readouterr().out
    assert main([*base, "--run", str(head)]) == 0
    text = capsys.readouterr().out
    assert "snapshot best of 1 head(s)" in text
    assert "optimistic there" in text
    assert main([*base, "--run", str(out), "--out", str(out)]) == 2
    assert "is a run folder" in capsys.readouterr().err


def test_evaluate_needs_no_split_but_the_one_it_judges_and_says_when_the_gpu_is_full(
    data, tmp_path, monkeypatch, capsys
):
    assert main(words("train", data, tmp_path / "run")) == 0
    table = pq.read_table(data / "labels" / "expr.parquet")
    pq.write_table(
        table.filter(pc.field("split").cast(pa.string()) == "validation"), tmp_path / "expr.parquet"
    )
    capsys.readouterr()
    command = [
        "evaluate",
        "--bank",
        str(data / "bank"),
        "--labels",
        str(tmp_path / "expr.parquet"),
        "--run",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    assert "EXPR validation" in capsys.readouterr().out
    assert main([*command, "--split", "train"]) == 2
    assert "no frame of expr train" in capsys.readouterr().err
    monkeypatch.setattr(
        "raffect.evaluation.evaluate.read_rows",
        lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")),
    )
    assert main(command) == 2
    assert "out of GPU memory" in capsys.readouterr().err


def test_evaluate_refuses_features_of_another_encoder_and_damaged_heads(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(words("train", data, out)) == 0
    other = tmp_path / "other"
    make_data(other)
    identity = json.loads((other / "bank" / "bank.json").read_text())
    (other / "bank" / "bank.json").write_text(json.dumps(identity).replace("a" * 64, "b" * 64))
    base = ["evaluate", "--labels", str(data), "--run", str(out), "--device", "cpu"]
    assert main([*base, "--bank", str(other / "bank")]) == 2
    assert "another encoder" in capsys.readouterr().err
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


SLOW = [
    "--epochs",
    "200",
    "--head.width",
    "64",
    "--head.depth",
    "2",
    "--device",
    "cpu",
    "--threads",
    "1",
]


def test_a_killed_run_goes_on_to_the_same_bytes(data, tmp_path):
    """SIGKILL at a moment that depends on the machine, wherever in an epoch that is."""
    command = [
        "train",
        "paper",
        "--task",
        "expr",
        "--bank",
        str(data / "bank"),
        "--labels",
        str(data),
        *SLOW,
    ]
    script = "import sys, raffect.training.train as t; from functools import partial; t.BatchJob = partial(t.BatchJob, save_every_s=0.0); from raffect.cli import main; sys.exit(main(sys.argv[1:]))"
    killed = subprocess.Popen(
        [sys.executable, "-c", script, *command, "--out", str(tmp_path / "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = tmp_path / "killed" / "state"
    deadline = time.monotonic() + 120
    while not list(state.glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert list(state.glob("*.safetensors")), "killed before the first save"
    assert not list((tmp_path / "killed" / "weights").rglob("*")), "killed too late"
    assert main([*command, "--out", str(tmp_path / "killed")]) == 0
    assert main([*command, "--out", str(tmp_path / "straight")]) == 0
    for file in (tmp_path / "straight" / "weights").rglob("head.safetensors"):
        assert (
            file.read_bytes()
            == (tmp_path / "killed" / file.relative_to(tmp_path / "straight")).read_bytes()
        )
    assert not list(state.glob("*.safetensors"))


def test_workers_of_ray_train_give_the_result_of_one_process(data, tmp_path, local_ray):
    more = ["--batch-size", "16", "--epochs", "2"]
    assert main(words("train", data, tmp_path / "two", *more, "--num-workers", "2")) == 0
    assert main(words("train", data, tmp_path / "one", *more)) == 0
    (one, two) = (
        json.loads(next((tmp_path / name / "heads").glob("*.json")).read_text())
        for name in ("one", "two")
    )
    assert (one["trained_by"]["num_workers"], two["trained_by"]["num_workers"]) == (1, 2)
    assert one["curve"]["train_loss"] == pytest.approx(two["curve"]["train_loss"], rel=1e-4)
    assert one["scores"]["last"]["headline"] == pytest.approx(
        two["scores"]["last"]["headline"], abs=0.02
    )


def test_a_stream_learns_from_every_row_once_an_epoch_in_an_order_of_its_own(
    data, tmp_path, local_ray
):
    assert main(words("train", data, tmp_path / "run", "--stream", "always", *LEARN)) == 0
    assert scores_of(tmp_path / "run")["settings"][0]["scores"]["last"]["mean"] > 0.4
    index = open_dataset(data / "bank", data, "expr").splits["train"]
    stream = RayStream(index, EXPR, batch_size=10, seed=3, window_rows=100)
    epochs = [
        [(x.numpy().copy(), y.numpy().copy()) for x, y in stream.batches(epoch)]
        for epoch in (0, 1, 0)
    ]
    features, labels = (
        [np.concatenate([batch[k] for batch in epoch]) for epoch in epochs] for k in (0, 1)
    )
    assert np.array_equal(features[0], features[2])
    assert not np.array_equal(features[0], features[1])
    expected = index.read()
    order = np.lexsort(expected.T)
    for x, y in zip(features[:2], labels[:2], strict=True):
        assert len(stream.windows(0)) > 1
        mine = np.lexsort(x.T)
        assert np.array_equal(x[mine], expected[order])
        assert np.array_equal(y[mine], index.y[order, 0])


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
    assert (
        "000003.parquet: not the file that was committed (SHA-256 differs)"
        in capfd.readouterr().err
    )
    assert not list((tmp_path / "run").glob("heads/*"))


def test_a_flipped_byte_in_a_shard_is_never_judged_on(data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    assert main(words("train", tmp_path / "data", tmp_path / "run")) == 0
    for shard in sorted((tmp_path / "data" / "bank" / "shards").glob("*.parquet")):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 2
        shard.write_bytes(content)
    assert (
        main(
            [
                "evaluate",
                "--run",
                str(tmp_path / "run"),
                "--bank",
                str(tmp_path / "data" / "bank"),
                "--labels",
                str(tmp_path / "data"),
            ]
        )
        == 2
    )
    assert "not the file that was committed" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["not extracted", "truncated", "gone"])
def test_an_incomplete_bank_is_refused_or_said_with_every_score(data, tmp_path, capsys, harm):
    shutil.copytree(data, tmp_path / "data")
    bank, run = Bank(tmp_path / "data" / "bank"), tmp_path / "run"
    if harm == "not extracted":
        bank.commit_path(3).unlink()
    elif harm == "truncated":
        os.truncate(bank.shard_path(3), 100)
    else:
        bank.shard_path(3).unlink()
    command = words("train", tmp_path / "data", run, "--num-seeds", "2")
    judge = [
        "evaluate",
        "--run",
        str(run),
        "--bank",
        str(bank.path),
        "--labels",
        str(tmp_path / "data"),
    ]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert re.search(
        r"24 of 320 train frames and 40 of 160 validation frames are planned and not there.*--allow-incomplete",
        error,
    )
    assert not run.exists()
    assert main([*command, "--allow-incomplete"]) == 0
    mark = "[INCOMPLETE BANK, it lacks 24 of 320 train frames and 40 of 160 validation frames]"
    scores = [
        line
        for line in capsys.readouterr().out.splitlines()
        if "macro F1" in line and "chance" not in line
    ]
    assert len(scores) == 2
    assert all(line.endswith(mark) for line in scores)
    assert all(
        json.loads(file.read_text())["incomplete"]
        == "24 of 320 train frames and 40 of 160 validation frames"
        for file in (run / "heads").glob("*.json")
    )
    assert main(judge) == 2
    assert "40 of 160 validation frames are planned and not there" in capsys.readouterr().err
    assert main([*judge, "--allow-incomplete"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"macro F1 .*\[INCOMPLETE BANK, it lacks 40 of 160 validation frames\]", text)
    assert "trained on an incomplete bank, which lacked 24 of 320 train frames" in text
    assert main(["report", "--runs", str(run)]) == 0
    rows = [
        line
        for line in (run / "report.md").read_text().splitlines()
        if line.startswith("|") and "val-" in line
    ]
    assert len(rows) == 2
    assert all("INCOMPLETE BANK" in row for row in rows)


def test_frames_without_an_image_are_a_count_and_no_incomplete_bank(data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    labels = read_labels(tmp_path / "data" / "labels" / "expr.parquet")
    more = pa.table(
        {
            "video": ["nowhere"] * 50,
            "frame": pa.array(range(1, 51), pa.int32()),
            "split": ["train"] * 50,
            "expression": pa.array([1] * 50, pa.int8()),
        }
    )
    plain = labels.replace_schema_metadata(None).cast(more.schema)
    write_table(
        pa.concat_tables([plain, more]),
        tmp_path / "data" / "labels" / "expr.parquet",
        {"task": "expr", "synthetic": "true"},
    )
    assert main(words("train", tmp_path / "data", tmp_path / "run")) == 0
    text = capsys.readouterr().out
    assert "EXPR train: 50 of 370 labelled frames have no image that can be read" in text
    assert "INCOMPLETE" not in text
    facts = RunFolder(tmp_path / "run").read_run().data
    assert (
        facts.splits["train"].no_image,
        facts.splits["train"].not_extracted,
        facts.incomplete,
    ) == (50, 0, "")
