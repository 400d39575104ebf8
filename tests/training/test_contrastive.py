"""Heads for captions as a user trains, sweeps, evaluates and reports them."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import raffect
from raffect.cli import main
from raffect.datasets.affwild2.tasks import EXPR
from raffect.datasets.targets import contrastive_task, write_targets
from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_head
from raffect.runs.data import open_dataset
from raffect.runs.folder import RunFolder
from raffect.training.stream import RayStream
from tests.helpers.captions import CAPTIONS, HEAD, add_captions, caption_vectors
from tests.helpers.commands import error_line
from tests.helpers.learning import scores_of


@pytest.fixture(scope="module", autouse=True)
def captions(data):
    """Captions beside the labels of the small bank."""
    add_captions(data)


def words(command, data, out, *more):
    bank = ["--bank", str(data / "bank"), "--labels", str(data / "captions")]
    return [command, "paper", *bank, "--out", str(out), *HEAD, *more]


def judge(data, run, *more):
    bank = ["--bank", str(data / "bank"), "--labels", str(data / "captions")]
    return ["evaluate", *bank, "--run", str(run), "--device", "cpu", *more]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(words("train", data, out, "--num-seeds", "2")) == 0
    return out


def test_a_run_scores_recall_at_1_by_class_beside_chance(data, trained):
    dataset = open_dataset(data / "bank", data / "captions", wanted=["validation"])
    index, vectors = dataset.splits["validation"], dataset.targets.vectors
    unit = vectors.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for name, about in scores_of(trained)["heads"].items():
        head, card = load_head(trained / "weights" / name / "last")
        with torch.no_grad():
            outputs = head(torch.from_numpy(index.read()).float()).numpy()
        hit, score = (outputs @ unit.T).argmax(1) == index.y[:, 0], about["scores"]["last"]
        recalls = [hit[index.y[:, 1] == number].mean() for number in range(8)]
        assert score["headline"] == pytest.approx(np.mean(recalls))
        assert score["metrics"]["accuracy"] == pytest.approx(hit.mean())
        found = [score["outputs"][name]["recall_at_1"] for name in EXPR.outputs]
        assert found == pytest.approx(recalls)
        assert score["interval_95"][0] < score["headline"] < score["interval_95"][1]
        assert (card.task, card.data.targets.dim) == (CAPTIONS, 24)
    chance = scores_of(trained)["chance"]
    assert chance["majority"] == pytest.approx(1 / 16, abs=0.01)
    assert np.mean(recalls) > 0.2


def test_evaluate_and_report_show_scores_by_class_and_chance(data, trained, tmp_path, capsys):
    assert main(judge(data, trained)) == 0
    text = capsys.readouterr().out
    assert re.search(r"recall@1 \.\d+", text)
    assert re.search(r"(a guess among|the most frequent of) [1-9][0-9,]* candidates", text)
    assert re.search(r"by a guess +frames", text)
    recorded = {name: one["scores"]["last"] for name, one in scores_of(trained)["heads"].items()}
    assert main(judge(data, trained, "--out", str(tmp_path / "scores"))) == 0
    again = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    for head in again["heads"]:
        assert head["score"]["headline"] == pytest.approx(recorded[head["id"]]["headline"])
    assert main(["report", "--runs", str(trained), "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.md").read_text()
    assert "recall@1 by class" in page
    assert "own caption, or vector of a teacher, comes first" in page
    assert "16 targets of 24 numbers" in page
    assert "drawn faces" in page


@pytest.mark.cluster
def test_alpha_is_an_axis_of_sweeps(data, tmp_path, capsys):
    out = tmp_path / "sweep"
    space = ["--space", "loss.alpha=0.3,1", "--no-baseline"]
    assert main(words("tune", data, out, *space)) == 0
    assert "alpha 0.3 rho 0  val-last ." in capsys.readouterr().out
    alphas = [head.recipe.loss.alpha for head in RunFolder(out).read_records()]
    assert sorted(alphas) == [0.3, 1]


def test_a_class_left_out_is_in_no_score_of_its_head_anywhere(data, tmp_path):
    out, number = tmp_path / "run", EXPR.outputs.index("Anger")
    more = ["--loss.leave-out", "Anger", "--select", "cv", "--folds", "2"]
    assert main(words("train", data, out, *more)) == 0
    folder = RunFolder(out)
    main_head, *folds = sorted(folder.read_records(), key=lambda record: record.fold is not None)
    assert len(folds) == 2
    for record in folds:  # the epoch is chosen by their statistics
        assert all(sums[number].sum() == 0 for sums in folder.sums_by_epoch(record).values())
    last = main_head.scores["last"]
    assert last.outputs["Anger"]["support"] == 0
    assert last.headline == main_head.curve.validation[-1]
    assert main_head.chance.majority >= round(2**30 / 14) / 2**30  # of 16 captions 2 are hidden
    assert main(judge(data, out, "--out", str(tmp_path / "scores"))) == 0
    again = json.loads((tmp_path / "scores" / "metrics.json").read_text())["heads"][0]["score"]
    assert again["headline"] == pytest.approx(last.headline)
    assert again["outputs"]["Anger"]["support"] == 0
    assert main_head.scores["best"].epoch == int(np.argmax(main_head.curve.validation)) + 1
    assert not (out / "predictions").exists()  # a head for captions answers nothing


@pytest.mark.parametrize(
    ("words_of", "message"),
    [
        (lambda run, data: ["predict", "--head", run, "--bank", data / "bank"], "zeroshot --head"),
        (lambda run, data: ["postprocess", "--run", run], "zeroshot --head RUN"),
    ],
    ids=["predict", "postprocess"],
)
def test_answers_of_heads_for_captions_are_refused_in_one_line(
    words_of, message, data, trained, tmp_path, capsys
):
    out = tmp_path / "out.parquet"
    assert main([str(word) for word in words_of(trained, data)] + ["--out", str(out)]) == 2
    assert message in error_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--head.kind", "mlp"], "head.kind mlp"),
        (["--loss.leave-out", "Grief"], "expected one of Neutral, Anger"),
        (["--loss.weighting", "inverse"], "has vectors to compare with"),
    ],
    ids=["mlp", "class", "weights"],
)
def test_what_cannot_be_trained_on_captions_is_refused(more, message, data, tmp_path, capsys):
    assert main(words("train", data, tmp_path / "run", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_probe_is_refused_for_captions(data, tmp_path, capsys):
    bank = ["--bank", str(data / "bank"), "--labels", str(data / "captions")]
    assert main(["probe", *bank, "--out", str(tmp_path / "probe")]) == 2
    assert "a probe learns classes, labels or values" in capsys.readouterr().err


# Data


def open_captions(data):
    return open_dataset(data / "bank", data / "captions")


@pytest.fixture
def copy(data, tmp_path):
    return shutil.copytree(data, tmp_path / "data")


def test_targets_of_other_weights_than_the_bank_are_refused(copy):
    add_captions(copy, image_sha256="b" * 64)
    with pytest.raises(RaffectError, match="texts by the weights bbbbbbbbbbbb, and .* aaaaaaaa"):
        open_captions(copy)
    add_captions(copy, image_sha256="")  # a teacher has none
    assert open_captions(copy).facts.targets.image_sha256 == ""


def test_the_fingerprint_is_that_of_the_vectors_too(data, copy):
    add_captions(copy, caption_vectors(seed=1))
    assert open_captions(copy).fingerprint != open_captions(data).fingerprint
    add_captions(copy)
    assert open_captions(copy).fingerprint == open_captions(data).fingerprint


def test_heads_are_refused_for_targets_of_another_length(copy, trained, capsys):
    wide = np.hstack([caption_vectors(), caption_vectors()])
    add_captions(copy, wide)
    assert main(judge(copy, trained)) == 2
    assert "its targets are of 48 numbers, and the heads of" in capsys.readouterr().err
    assert main(words("train", copy, copy / "run")) == 2
    assert "not as the targets (48)" in capsys.readouterr().err


def test_vectors_beside_a_table_are_no_label_table(copy, capsys):
    for file in (copy / "captions").iterdir():
        shutil.copy(file, copy / "labels")
    dataset = open_dataset(copy / "bank", copy, "captions")
    assert dataset.targets.facts.count == 16
    with pytest.raises(RaffectError, match="holds labels of au, captions, expr; choose one"):
        open_dataset(copy / "bank", copy)


def test_one_target_alone_cannot_be_trained_on(copy, capsys):
    task = contrastive_task("captions")
    path = add_captions(copy, task=task)
    table = raffect.read_labels(path)
    one = table.set_column(
        table.column_names.index("target"), "target", [np.zeros(len(table), np.int32)]
    )
    write_targets(path, one.select(["video", "frame", "split", "target"]), task, np.eye(24))
    assert main(words("train", copy, copy / "run")) == 2
    assert "one target only (number 0" in capsys.readouterr().err


def test_a_stream_gives_the_targets_of_its_frames(data):
    dataset = open_captions(data)
    index = dataset.splits["train"]
    stream = RayStream(index, dataset.task, 16, 0)
    assert stream.y.shape == (len(index), 2)
    assert np.array_equal(stream.y, index.y)
