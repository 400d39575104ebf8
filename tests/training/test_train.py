"""Train and evaluate as a user runs them: on a small sound bank, and on damaged ones."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

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
from tests.helpers.learning import DIM, FAST, IDENTITY, LEARN, make_data, scores_of, words


def judge(run, data, *more):
    """The words of `raffect evaluate` on the CPU."""
    bank = ["--bank", str(data / "bank"), "--labels", str(data)]
    return ["evaluate", *bank, "--run", str(run), "--device", "cpu", *more]


def times(folder):
    """When each file below a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


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
    first, written = capsys.readouterr().out, times(out / "weights")
    assert main(words("train", data, out, recipe="released")) == 0
    assert capsys.readouterr().out == first
    assert times(out / "weights") == written
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


@pytest.mark.parametrize("task", ["expr", "au"])
def test_folds_choose_the_epoch_without_the_validation_split(data, tmp_path, capsys, task):
    out = tmp_path / "run"
    assert main(words("train", data, out, "--select", "cv", "--folds", "3", task=task)) == 0
    text = capsys.readouterr().out
    assert f"{task.upper()} val-cv" in text
    assert main(words("train", data, out, "--select", "cv", "--folds", "4", task=task)) == 2
    assert "a run with folds 3, this one has 4" in capsys.readouterr().err

    # Every fold keeps statistics of every epoch
    records = [json.loads(path.read_text()) for path in (out / "heads").glob("*.json")]
    folds = [record for record in records if record["fold"] is not None]
    folder = RunFolder(out)
    found = [folder.read_statistics(folder.read_record(record["id"])) for record in folds]
    for statistics, record in zip(found, folds, strict=True):
        assert set(statistics.heads[record["id"]]) == {1, 2, 3}

    # Folds are of training videos alone, and no video is in two
    held_out = [set(statistics.groups) for statistics in found]
    assert len(folds) == 3
    assert set.union(*held_out) == {f"v{k:02d}" for k in range(12) if k % 3 != 2}
    assert sum(map(len, held_out)) == 8

    # The epoch is the best over the frames of all folds
    epoch = next(record for record in records if record["fold"] is None)["scores"]["cv"]["epoch"]
    kind, ids = folder.read_records()[0].kind, [record["id"] for record in folds]
    by_fold = [statistics.heads[name] for statistics, name in zip(found, ids, strict=True)]
    curve = [kind.headline(sum(fold[k].sum(0) for fold in by_fold)) for k in (1, 2, 3)]
    assert epoch == int(np.argmax(curve)) + 1
    assert load_head(next((out / "weights").glob("*/cv")))[1].epoch == epoch


def test_a_run_goes_on_with_its_own_folds_alone(data, tmp_path, capsys):
    out, more = tmp_path / "run", ["--select", "cv", "--folds", "2", "--epochs", "1"]
    assert main(words("train", data, out, *more)) == 0
    note, heads = out / "folds.json", times(out / "heads")
    before = note.read_bytes()
    note.unlink()  # as in a run of an earlier version
    assert main(words("train", data, out, *more)) == 0
    assert note.read_bytes() == before
    note.write_text(json.dumps({"sha256": "0" * 64, "scikit_learn": "1.5.2"}))
    capsys.readouterr()
    assert main(words("train", data, out, *more)) == 2
    line = "its folds are those of scikit-learn 1.5.2, and .* deals others; go on with that version"
    assert re.search(line, capsys.readouterr().err)
    assert times(out / "heads") == heads


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

    # A run: all its heads
    assert main(judge(out, data, "--out", str(tmp_path / "judged"))) == 0
    text = capsys.readouterr().out
    assert "over 2 seeds" in text
    assert "Happiness" in text
    judged = json.loads((tmp_path / "judged" / "metrics.json").read_text())
    again = {head["id"]: head["score"]["headline"] for head in judged["heads"]}
    recorded = scores_of(out)["heads"].items()
    assert again == {name: about["scores"]["last"]["headline"] for name, about in recorded}

    # One head, on either split
    head = next((out / "weights").glob("*/best"))
    assert main(judge(head, data, "--split", "train")) == 0
    assert "trained on" in capsys.readouterr().out
    assert main(judge(head, data)) == 0
    text = capsys.readouterr().out
    assert "snapshot best of 1 head(s)" in text
    assert "optimistic there" in text

    # Never into a run folder
    assert main(judge(out, data, "--out", str(out))) == 2
    assert "is a run folder" in capsys.readouterr().err


def test_evaluate_needs_no_split_but_the_one_it_judges_and_says_when_the_gpu_is_full(
    data, tmp_path, monkeypatch, capsys
):
    # Labels of the validation split alone
    assert main(words("train", data, tmp_path / "run")) == 0
    table, labels = pq.read_table(data / "labels" / "expr.parquet"), tmp_path / "expr.parquet"
    pq.write_table(table.filter(pc.field("split").cast(pa.string()) == "validation"), labels)
    capsys.readouterr()
    command = judge(tmp_path / "run", data, "--labels", str(labels))
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


SLOW = "--epochs 200 --head.width 64 --head.depth 2 --device cpu --threads 1"
SAVE_EVERY_EPOCH = """
import sys
from functools import partial
import raffect.training.train as train
from raffect.cli import main
train.BatchJob = partial(train.BatchJob, save_every_s=0.0)
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_run_goes_on_to_the_same_bytes(data, tmp_path):
    """SIGKILL at a moment that depends on the machine, wherever in an epoch that is."""
    bank = ["--bank", str(data / "bank"), "--labels", str(data)]
    command = ["train", "paper", "--task", "expr", *bank, *SLOW.split(), "--out"]
    half, straight = tmp_path / "killed", tmp_path / "straight"

    # Killed as soon as there is something to go on from
    killed = subprocess.Popen(
        [sys.executable, "-c", SAVE_EVERY_EPOCH, *command, str(half)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = half / "state"
    deadline = time.monotonic() + 120
    while not list(state.glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert list(state.glob("*.safetensors")), "killed before the first save"
    assert not list((half / "weights").rglob("*")), "killed too late"

    # Gone on with, it has the weights of a run that was not disturbed
    assert main([*command, str(half)]) == 0
    assert main([*command, str(straight)]) == 0
    for file in (straight / "weights").rglob("head.safetensors"):
        assert file.read_bytes() == (half / file.relative_to(straight)).read_bytes()
    assert not list(state.glob("*.safetensors"))


def test_workers_of_ray_train_give_the_result_of_one_process(data, tmp_path, local_ray):
    more = ["--batch-size", "16", "--epochs", "2"]
    assert main(words("train", data, tmp_path / "two", *more, "--num-workers", "2")) == 0
    assert main(words("train", data, tmp_path / "one", *more)) == 0
    files = (next((tmp_path / name / "heads").glob("*.json")) for name in ("one", "two"))
    one, two = (json.loads(file.read_text()) for file in files)
    assert (one["trained_by"]["num_workers"], two["trained_by"]["num_workers"]) == (1, 2)
    assert one["curve"]["train_loss"] == pytest.approx(two["curve"]["train_loss"], rel=1e-4)
    scores = [record["scores"]["last"]["headline"] for record in (one, two)]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)


def test_a_stream_learns_from_every_row_once_an_epoch_in_an_order_of_its_own(
    data, tmp_path, local_ray
):
    assert main(words("train", data, tmp_path / "run", "--stream", "always", *LEARN)) == 0
    assert scores_of(tmp_path / "run")["settings"][0]["scores"]["last"]["mean"] > 0.4

    # Rows of epoch 0, of epoch 1, and of epoch 0 again
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

    # Each has every row of the split once, with its label
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
    assert main(judge(tmp_path / "run", tmp_path / "data")) == 2
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
    evaluate = judge(run, tmp_path / "data")
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
    assert main(judge(run, data, "--out", str(out))) == 0
    judged = json.loads((out / "metrics.json").read_text())
    assert judged["heads"][0]["score"]["headline"] == pytest.approx(expected, abs=1e-9)
    capsys.readouterr()


def test_statistics_of_folds_end_where_a_head_diverged(data, tmp_path, capsys):
    out = tmp_path / "run"
    more = ["--select", "cv", "--folds", "2", "--num-seeds", "1", "--optim.lr", "1e30"]
    assert main(words("train", data, out, *more)) == 2
    assert "no head was trained to the end on any fold" in capsys.readouterr().err
    folder = RunFolder(out)
    for record in folder.read_records():
        assert record.status == "diverged"
        assert record.statistics is None
