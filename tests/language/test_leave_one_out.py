"""Classes that heads never saw: their heads, their recall, and what cannot be left out."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import recall_score

import raffect
from raffect.config import EvaluateConfig, TuneConfig
from raffect.errors import RaffectError
from raffect.metrics.intervals import Headline
from raffect.recipe import HeadConfig, LossConfig
from raffect.runs.against_erm import Difference
from raffect.runs.data import open_dataset
from raffect.runs.leave_one_out import UnseenClass, read_leave_one_out
from raffect.training.checks import find_left_out
from raffect.training.space import list_recipes
from tests.helpers.zeroshot_heads import (
    PROJECTION,
    SETS,
    SEVEN,
    UNSEEN,
    config_of,
    predict,
    vars_of,
    videos_of,
    weights_of,
    zeroshot_of,
)


def test_a_class_of_one_video_says_why_it_has_no_interval():
    one = Headline(score=0.5, interval_95=None)
    gain = Difference(mean=0.1, interval_95=None)
    fields = {"name": "Fear", "samples": 9, "prompts": "facs", "gain": gain}
    found = UnseenClass(groups=1, trained=one, plain=one, **fields)
    assert found.why_no_interval("videos") == " (one video: no interval)"
    assert (found.row()["groups"], found.row()["samples"]) == (1, 9)
    known = dataclasses.replace(found, trained=Headline(score=0.5, interval_95=(0.2, 0.8)))
    assert known.why_no_interval("videos") == ""
    assert "equal without any video" in dataclasses.replace(found, groups=3).why_no_interval(
        "videos"
    )


def test_each_class_has_heads_that_are_those_of_its_setting_alone(
    texts, captions, left_out, tmp_path
):
    recipes = [record.recipe for record in left_out.records]
    assert [recipe.loss.leave_out for recipe in recipes] == list(UNSEEN)
    assert {record.trained_by.batch_of_heads for record in left_out.records} == {3}
    axes = [setting.settings["loss.leave_out"] for setting in left_out.settings]
    assert sorted(axes) == sorted(UNSEEN)
    # Each is all classes that the training split has
    dataset = open_dataset(texts / "bank", captions, "captions")
    assert find_left_out(("each",), dataset) == list(SEVEN)
    loss = LossConfig(alpha=1.0, leave_out="Fear")
    config = dataclasses.replace(
        config_of(texts, captions, tmp_path / "alone", PROJECTION), loss=loss
    )
    (alone,) = raffect.train(config).records
    (same,) = (record for record in left_out.records if record.id == alone.id)
    path = f"weights/{alone.id}/last/head.safetensors"
    assert (tmp_path / "alone" / path).read_bytes() == (left_out.folder / path).read_bytes()
    assert same.scores["last"].headline == alone.scores["last"].headline


def test_classes_that_are_left_out_do_not_compete(left_out, tmp_path):
    scores = [record.scores["last"].headline for record in left_out.records]
    main_setting = left_out.metrics.headline
    assert left_out.best is None
    assert main_setting.scores["last"].mean == pytest.approx(np.mean(scores))
    assert main_setting.settings["loss.leave_out"] == "each"
    lines = "\n".join(left_out.lines())
    assert "highest" not in lines
    assert "absent" not in lines
    assert "over 3 heads without one class each" in lines
    assert "mean over 3 left-out classes, which are not compared" in lines
    assert "recall@1" in lines
    assert f"next: raffect zeroshot --head {left_out.folder}" in lines
    page = raffect.report((left_out.folder,), tmp_path / "report").markdown.read_text()
    assert "the mean over 3 left-out classes, which are not compared, of the score on" in page
    assert "its main setting" not in page
    assert "optimistic as val-best" not in page
    assert "rows do not compare with each other" in page
    (file,) = (tmp_path / "report" / "plots").glob("*-by-setting.csv")
    rows = list(csv.DictReader(file.open()))
    assert [row["sd"] for row in rows] == [""] * 3  # so the bars are intervals
    key = "recall_at_1"
    assert all(float(row["low"]) < float(row[key]) < float(row["high"]) for row in rows)


def test_the_same_command_trains_no_head_again_and_more_classes_train_theirs_alone(
    texts, captions, tmp_path
):
    config = config_of(texts, captions, tmp_path / "run", PROJECTION, leave_out=("Fear",))
    raffect.train(config)
    (before,) = (tmp_path / "run" / "heads").glob("*.json")
    time, content = before.stat().st_mtime_ns, before.read_bytes()
    more = dataclasses.replace(config, leave_out=("Fear", "Anger"))
    found = raffect.train(more)
    assert [record.recipe.loss.leave_out for record in found.records] == ["Fear", "Anger"]
    assert (before.stat().st_mtime_ns, before.read_bytes()) == (time, content)
    assert raffect.train(more).metrics.settings == found.metrics.settings


def test_recall_of_a_class_is_that_of_the_heads_that_never_saw_it(
    texts, left_out, tmp_path_factory
):
    out = tmp_path_factory.mktemp("runs") / "unseen"
    config = zeroshot_of(texts, out, left_out.folder, prompts=SETS)
    result = raffect.zeroshot(config)
    (table,) = result.left_out
    weights = weights_of(left_out.folder)
    recalls, plain = {}, {}
    for name in UNSEEN:
        # The prompt set by the recall of the other classes on the training split
        k = SEVEN.index(name)
        others = [other for other in range(7) if other != k]
        scores = {}
        for prompts in SETS:
            found, true, _ = predict(texts, prompts, weights[0, name], "train")
            scores[prompts] = recall_score(true, found, labels=others, average="macro")
        chosen = max(scores, key=scores.get)
        for values, weight in ((recalls, weights[0, name]), (plain, None)):
            found, true, _ = predict(texts, chosen, weight)
            values[name] = (found[true == k] == k).mean()
        (one,) = (one for one in table.classes if one.name == name)
        assert one.prompts == chosen
        assert one.samples == (true == k).sum()
        assert one.trained.score == pytest.approx(recalls[name])
        assert one.plain.score == pytest.approx(plain[name])
        assert one.gain.mean == pytest.approx(recalls[name] - plain[name])
    assert table.mean.trained.score == pytest.approx(np.mean(list(recalls.values())))
    assert table.mean.plain.score == pytest.approx(np.mean(list(plain.values())))
    low, high = table.mean.gain.interval_95
    assert low <= table.mean.gain.mean <= high
    assert (table.candidates, table.chance) == (7, pytest.approx(1 / 7))

    # As lines, as files and in the report
    lines = "\n".join(result.lines())
    assert "leave one class out, left-out: recall of each class by heads that never saw it" in lines
    assert "chance .143 (guesses with equal shares); intervals over videos" in lines
    assert read_leave_one_out(out) == result.left_out
    rows = list(csv.DictReader((out / "leave_one_out.csv").open()))
    assert [row["class"] for row in rows] == [*UNSEEN, "mean"]
    assert float(rows[-1]["recall"]) == pytest.approx(table.mean.trained.score)
    page = raffect.report((out,), out / "report").markdown.read_text()
    assert "made 8 heads for EXPR (8 classes) of texts: 6 through heads that left-out" in page
    assert "### Leave one class out" in page
    assert "| **mean** |" in page
    assert f"Heads of left-out find **{table.mean.trained.score:.3f}".replace("0.", ".", 1) in page
    assert page.index("### Leave one class out") < page.index("### Settings")
    for words in ("last epoch", "val-cv", "(val-last)", "epoch cross-validated"):
        assert words not in page, words
    for one in table.classes:
        groups = len(set(videos_of(texts, SEVEN.index(one.name))))
        assert one.groups == groups
        if groups == 1:
            assert one.trained.interval_95 is None
            assert "(one video: no interval)" in lines
    assert [int(row["groups"]) for row in rows[:-1]] == [one.groups for one in table.classes]
    paths = {"bank": texts / "bank", "labels": texts}
    again = "\n".join(raffect.evaluate(EvaluateConfig(run=(out,), **paths)).lines())
    assert "6 heads were trained without one class each" in again
    assert not any(f"leave_out {name}" in again for name in UNSEEN)
    assert again.count("macro F1") <= len(SETS) + 3
    assert "comparison, without a head: chosen on folds" in lines
    assert "by class, " in lines
    # What stands for the run has seen all classes: features.
    assert result.sweep.cross_validated.settings["text.head"] == ""


def test_without_folds_every_prompt_set_has_a_table(texts, left_out, tmp_path):
    config = zeroshot_of(texts, tmp_path / "out", left_out.folder, prompts=SETS, select="none")
    tables = raffect.zeroshot(config).left_out
    assert [{one.prompts for one in table.classes} for table in tables] == [{"facs"}, {"photo"}]
    assert not any(table.is_chosen for table in tables)
    assert read_leave_one_out(tmp_path / "out") == tables

    # A damaged record is refused
    file = tmp_path / "out" / "leave_one_out.json"
    content = json.loads(file.read_text())
    content["tables"][0]["candidates"] = "seven"
    file.write_text(json.dumps(content))
    with pytest.raises(RaffectError, match=r"leave_one_out.json: .*again"):
        read_leave_one_out(tmp_path / "out")


def test_tune_varies_the_class_that_is_left_out(texts, captions, left_out, tmp_path):
    base = vars(config_of(texts, captions, tmp_path / "tune", PROJECTION))
    own = {name: value for name, value in base.items() if name in vars_of(TuneConfig)}
    config = TuneConfig(**own, space=("loss.leave_out=Fear,Anger",), baseline=False)
    base = dataclasses.replace(raffect.recipe.plain(config), task="captions")
    recipes = list_recipes(base, config.space, 0)
    known = {record.id for record in left_out.records}
    assert {raffect.recipe.digest(recipe) for recipe in recipes} < known


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"leave_out": ("Awe",)}, "loss.leave-out Awe: task captions has no such class; expected"),
        ({"leave_out": ("",)}, "--leave-out '': expected names of classes, or each"),
        (
            {"leave_out": ("Fear",), "loss": LossConfig(alpha=1.0, leave_out="Fear")},
            "--leave-out: goes with all classes; take loss.leave-out Fear out",
        ),
    ],
)
def test_classes_that_cannot_be_left_out_are_one_line(texts, captions, tmp_path, more, line):
    config = config_of(texts, captions, tmp_path / "run", PROJECTION)
    with pytest.raises(RaffectError, match=line):
        raffect.train(dataclasses.replace(config, **more))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "more", "line"),
    [
        ("au", {"leave_out": ("each",)}, "--leave-out each: task au is multilabel"),
        ("expr", {"leave_out": ("Fear",)}, "--leave-out Fear: task expr is multiclass"),
        ("expr", {"leave_out": "Fear"}, "loss.leave-out Fear: task expr is multiclass"),
    ],
)
def test_labels_have_no_class_to_leave_out(texts, tmp_path, task, more, line):
    if task == "expr" and isinstance(more["leave_out"], str):
        more = {"loss": LossConfig(alpha=1.0, **more)}
    config = config_of(texts, texts, tmp_path / "run", HeadConfig(depth=0))
    with pytest.raises(RaffectError, match=f"{line}.*captions of its classes"):
        raffect.train(dataclasses.replace(config, task=task, **more))
    assert not (tmp_path / "run").exists()


@pytest.mark.cluster
def test_a_stride_means_nothing_to_heads_that_never_saw_a_class(
    texts, captions, left_out, tmp_path
):
    strided = dataclasses.replace(PROJECTION, stride=4)
    runs = [left_out.folder, tmp_path / "unseen"]
    raffect.train(config_of(texts, captions, runs[1], strided, leave_out=UNSEEN))
    tables = []
    for run in runs:
        out = tmp_path / f"out-{run.name}"
        (table,) = raffect.zeroshot(zeroshot_of(texts, out, run, select="none")).left_out
        tables.append([one.trained.score for one in table.classes])
    assert tables[0] == tables[1]
