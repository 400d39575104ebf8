"""Records of runs and heads, and the statistics behind them.

What is written is read again, and what is damaged is one line.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from raffect.cli import main
from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.errors import RaffectError
from raffect.heads.checkpoint import read_card
from raffect.metrics.scores import Chance, JudgedScore
from raffect.metrics.task_kinds import kind_of
from raffect.recipe import NAMES, LossConfig, Recipe, digest, in_todays_words, with_settings
from raffect.runs.conclusions import conclude_sweep
from raffect.runs.folder import RunFolder
from raffect.runs.group_statistics import Recent, Statistics, read_statistics, write_statistics
from raffect.runs.metrics_file import Metrics, SettingScores
from raffect.runs.pick import find_heads
from raffect.runs.records import Curve, HeadRecord
from raffect.runs.spread import Spread
from raffect.runs.tables import write_tables
from tests.helpers.runs import draw_confusion, make_run

FIRST = Path(__file__).parents[1] / "fixtures" / "first"
CONFUSION = np.arange(64).reshape(8, 8)
SCORE = JudgedScore(**vars(kind_of(EXPR).score(CONFUSION, EXPR)), epoch=3, interval_95=(0.1, 0.2))
RECORD = HeadRecord(
    id="a" * 12,
    task=EXPR,
    recipe=Recipe(task="expr", epochs=3),
    fingerprint="f",
    status="done",
    curve=Curve(lr=(0.1, 0.1, 0.1), train_loss=(2.0, None, 1.0), validation=(0.1, 0.2, 0.3)),
    scores={"last": SCORE},
    chance=Chance(answer="always Other", majority=0.07, prior=0.125),
)


@pytest.mark.parametrize("task", [EXPR, AU, VA], ids=lambda task: task.name)
def test_a_record_comes_back_from_json_as_it_was(task):
    shape = {"multiclass": (8, 8), "multilabel": (12, 4), "regression": (2, 6)}[task.kind]
    statistics = np.random.default_rng(0).integers(1, 50, shape)
    score = JudgedScore(**vars(kind_of(task).score(statistics, task)), epoch=1)
    record = replace(
        RECORD,
        task=task,
        scores={"last": score, "cv": score},
        chance=kind_of(task).chance(statistics, task),
    )
    assert HeadRecord.from_json(record.to_bytes(), "heads/a.json", "do") == record


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            {"status": "fine"},
            "status 'fine': input should be 'done', 'diverged', 'running' or 'stopped'",
        ),
        ({"fold": -1}, "fold -1: input should be greater than or equal to 0"),
        ({"more": 1}, "more: unexpected keyword argument"),
        ({"curve": {"lr": ["x"]}}, "curve.lr.0 'x': input should be a valid number"),
        ({"recipe": {"loss": {"alpha": 7}}}, "loss.alpha 7.0: expected more than 0 and at most 1"),
        ({"recipe": {"loss": {"alfa": 1}}}, "recipe.loss.alfa: unexpected keyword argument"),
        ({"recipe": {"head": {"depth": 10**9}}}, "head.depth 1000000000: expected 0"),
        ({"scores": {"first": SCORE.to_json()}}, "scores.first"),
        ({"task": {"name": "x"}}, "task"),
        ({"format": 3}, "format 3, this program reads 1 or 2; use the raffect that wrote it"),
    ],
)
def test_a_damaged_head_record_is_one_line_with_its_file(tmp_path, change, fault):
    folder = RunFolder(tmp_path)
    folder.write_record(RECORD)
    path = tmp_path / "heads" / f"{RECORD.id}.json"
    path.write_text(json.dumps(RECORD.to_json() | change))
    with pytest.raises(RaffectError) as caught:
        folder.read_record(RECORD.id)
    assert str(caught.value).startswith(f"{path}: ")
    assert fault in str(caught.value)
    assert str(caught.value).endswith("delete it and run the same command again")


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_statistics_come_back_as_they_were_and_equal_ones_have_equal_names(tmp_path, dtype):
    rng = np.random.default_rng(0)
    heads = {
        name: {epoch: rng.integers(0, 9, (3, 2, 4)).astype(dtype) for epoch in epochs}
        for name, epochs in (("a", [1, 2]), ("b", [2]))
    }
    statistics = Statistics(["x", "y", "z"], heads)
    file = write_statistics(tmp_path, statistics)
    found = read_statistics(tmp_path, file)
    assert list(found.groups) == ["x", "y", "z"]
    epochs = {name: list(by_epoch) for name, by_epoch in found.heads.items()}
    assert epochs == {"a": [1, 2], "b": [2]}
    for name, by_epoch in heads.items():
        for epoch, values in by_epoch.items():
            assert np.array_equal(found.heads[name][epoch], values)
    assert write_statistics(tmp_path, statistics) == file
    assert len(list(tmp_path.iterdir())) == 1


def test_statistics_that_are_not_those_the_records_name_are_refused(tmp_path):
    file = write_statistics(tmp_path, Statistics(["x"], {"a": {1: np.ones((1, 2, 2), np.int64)}}))
    path = tmp_path / file.name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))
    fault = r"not the file that the records name \(SHA-256 differs\); delete the records"
    with pytest.raises(RaffectError, match=fault):
        read_statistics(tmp_path, file)
    path.unlink()
    with pytest.raises(RaffectError, match=re.escape(f"{path}: missing; delete the records")):
        read_statistics(tmp_path, file)
    with pytest.raises(RaffectError, match="not a name that raffect gives"):
        read_statistics(tmp_path, replace(file, name="../../secret"))


def test_heads_of_the_first_format_are_read_as_they_were():
    folder = RunFolder(FIRST / "expr")
    records = folder.read_records()
    files = (FIRST / "expr" / "members").glob("*.json")
    old = {path.stem: json.loads(path.read_text()) for path in files}
    assert {record.id for record in records} == old.keys()
    for record in records:
        # Settings, of which two have other names today
        was, recipe = old[record.id], old[record.id]["recipe"]
        settings = {name: recipe.get(name, record.settings[name]) for name in NAMES}
        settings["loss.tail_over"] = "units"
        settings["sam.independent_dropout"] = recipe["sam.redraw_dropout"]
        assert record.settings == settings
        fold = f"-fold{record.fold + 1}of2" if record.fold is not None else ""
        assert record.id == digest(record.recipe) + fold

        # Curve, scores and the counts behind them
        assert record.curve.validation == tuple(was["history"]["val_macro_f1"])
        score, old_score = record.scores["last"], was["scores"]["last"]
        assert score.headline == old_score["macro_f1"]
        happy, old_happy = score.outputs["Happiness"], old_score["classes"]["Happiness"]
        assert happy["predicted"] == old_happy["said"]
        assert np.array_equal(folder.statistics_of(record, "last"), was["videos"]["last"])
        assert record.chance.answer == was["trivial"]["answer"]
        assert record.chance.majority == was["trivial"]["macro_f1"]

    # The run's own record
    run = folder.read_run()
    assert run.command == "train"
    assert run.data.splits["train"].frames == 144
    assert run.data.encoders[0].model == "raffect-faces"
    assert run.data.caveat == "embedded encoder, not CLIP; drawn faces"


def test_cards_of_the_first_format_are_read_as_they_were():
    for path in (FIRST / "au" / "weights").glob("*/*"):
        card, was = read_card(path), json.loads((path / "config.json").read_text())
        assert (card.id, card.epoch, card.sha256) == (was["member"], was["epoch"], was["sha256"])
        assert card.snapshot == {"last": "last", "best": "best", "chosen": "cv"}[was["snapshot"]]
        assert card.data.encoders[0].weights_sha256 == was["encoder"]["weights_sha256"]
        assert card.task == AU


@pytest.mark.parametrize("harm", ["cut", "list", "no task", "text"])
def test_a_damaged_record_of_the_first_format_is_one_line(tmp_path, harm):
    shutil.copytree(FIRST / "au", tmp_path / "au")
    path = sorted((tmp_path / "au" / "members").glob("*.json"))[0]
    content = json.loads(path.read_text())
    text = {
        "cut": json.dumps(content)[:100],
        "list": "[]",
        "no task": json.dumps({"recipe": {}}),
        "text": json.dumps(content | {"history": "x"}),
    }[harm]
    path.write_text(text)
    with pytest.raises(RaffectError, match=re.escape(f"{path}: damaged")):
        RunFolder(tmp_path / "au").read_records()


def test_renamed_settings_of_the_first_format_are_understood_in_a_recipe():
    from raffect.recipe import in_todays_words

    first = {
        "loss.granularity": "sample",
        "sam.redraw_dropout": True,
        "select": "folds",
        "members_per_trial": 3,
        "optim.name": "adam",
    }
    assert in_todays_words(first) == {
        "loss.tail_over": "frames",
        "sam.independent_dropout": True,
        "select": "cv",
        "heads_per_trial": 3,
        "optim.name": "adam",
    }
    assert with_settings(Recipe(), {"loss.tail_over": "frames"}).loss.tail_over == "frames"


def test_metrics_come_back_as_they_were(tmp_path):
    content = json.loads(json.dumps({"data": {}, "run": {}}))
    with pytest.raises(RaffectError, match="metrics.json: damaged, run.time: field required"):
        Metrics.from_json(content, "metrics.json", "do")


@pytest.fixture
def first(tmp_path):
    """A copy of the folders of the first format, to work in."""
    return Path(shutil.copytree(FIRST, tmp_path / "first"))


def repeat(command, run, *more):
    first = run.parent
    data = ["--bank", str(first / "bank"), "--labels", str(first), "--out", str(run)]
    return main([command, str(run / "config.toml"), *data, *more])


def test_a_first_sweep_with_a_head_that_asha_stopped_is_concluded(first, capsys):
    path = sorted((first / "sweep" / "members").glob("*.json"))[0]
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"status": "stopped", "videos": {}, "video_names": []}))
    folder = RunFolder(first / "sweep")
    assert folder.statistics_of(folder.read_record(record["id"]), "last") is None
    assert main(["report", "--runs", str(first / "sweep"), "--out", str(first / "report")]) == 0
    write_tables(folder, folder.read_records())
    assert (first / "sweep" / "heads.csv").read_text().count("\n") == 9
    capsys.readouterr()


@pytest.mark.parametrize("note", [{}, []], ids=["object", "list"])
def test_an_unfinished_run_of_the_first_format_is_refused_and_nothing_is_deleted(
    first, capsys, note
):
    run = first / "expr"
    heads = [record for record in RunFolder(run).read_records() if record.fold is None]
    ids = [record.id for record in heads]
    for name in ids:
        (run / "members" / f"{name}.json").unlink()
    state = RunFolder(run).state_path(ids)
    state.parent.mkdir()
    save_file({"weights": torch.zeros(2)}, state, metadata={"raffect": '{"identity": {}}'})
    content = dict.fromkeys(ids, heads[0].cv_epoch) if note == {} else ids
    state.with_suffix(".json").write_text(json.dumps(content))
    assert repeat("train", run) == 2
    # Beside progress, which a slow machine shows
    errors = capsys.readouterr().err.splitlines()
    (line,) = (error for error in errors if error.startswith("raffect train: "))
    expected = "an unfinished run of another version" if note == {} else "expected a JSON object"
    assert expected in line
    assert state.exists()


def test_a_setting_that_is_younger_than_a_folder_had_its_default(first, capsys):
    assert repeat("train", first / "expr", "--head.normalise", "l2") == 2
    error = capsys.readouterr().err
    assert "a run with head.normalise none, this one has l2; name a new folder" in error
    assert repeat("train", first / "expr") == 0
    capsys.readouterr()


def test_axes_of_a_first_sweep_have_todays_words():
    space = ["loss.granularity=element, sample", "loss.alpha=0.1:1:0.1"]
    expected = ["loss.tail_over=units,frames", "loss.alpha=0.1:1:0.1"]
    assert in_todays_words({"space": space}) == {"space": expected}


def test_a_head_that_was_cross_validated_again_is_evaluated_once(first):
    old = sorted((first / "expr" / "weights").glob("*/chosen"))
    shutil.copytree(old[0], old[0].parent / "cv")
    found = find_heads(first / "expr", "cv")
    assert found == sorted([old[0].parent / "cv", *old[1:]])


def test_going_on_in_a_first_folder_leaves_no_table_by_its_old_name(first, capsys):
    assert repeat("train", first / "expr") == 0
    assert not list((first / "expr").glob("members.*"))
    assert not (first / "expr" / "per_video.csv").exists()
    capsys.readouterr()


def test_statistics_that_no_record_names_are_deleted_at_the_end(tmp_path):
    folder = RunFolder(tmp_path)
    named, other = (
        folder.write_statistics(Statistics(["x"], {"a": {1: np.full((1, 2, 2), count)}}))
        for count in (1, 2)
    )
    folder.drop_unnamed([replace(RECORD, statistics=named)])
    assert [path.name for path in (tmp_path / "statistics").iterdir()] == [named.name]
    assert named != other


def test_a_setting_of_equal_value_has_an_equal_digest():
    whole = Recipe(loss=LossConfig(alpha=1))  # as a notebook may write it
    assert digest(whole) == digest(with_settings(Recipe(), {"loss.alpha": 1.0}))


def test_scores_of_an_evaluated_snapshot_are_a_row_too():
    spread = Spread(mean=0.5, sd=None, interval_95=None, heads=1, epochs=(3,))
    row = SettingScores(settings={"loss.alpha": 0.3}, scores={"best": spread}).row()
    assert (row["best"], row["last"], row["cv"], row["heads"]) == (0.5, None, None, 1)


def test_a_folder_of_official_folds_names_its_runs(tmp_path):
    (tmp_path / "fold-1").mkdir()
    (tmp_path / "fold-1" / "env.json").write_text("{}")
    with pytest.raises(RaffectError, match=r"it holds official folds; .*fold-1"):
        RunFolder(tmp_path).read_run()


def test_tables_and_scores_are_the_same_with_one_file_of_statistics_in_memory(
    tmp_path, monkeypatch
):
    settings = [{"loss.alpha": alpha} for alpha in (1.0, 0.5, 0.3)]
    make_run(tmp_path, settings, lambda rng, _: draw_confusion(rng.uniform(0.3, 0.9)))

    def conclude(most_bytes):
        folder, reads = RunFolder(tmp_path), []
        folder._statistics = Recent(most_bytes)
        load = folder._load_statistics
        monkeypatch.setattr(folder, "_load_statistics", lambda one: reads.append(one) or load(one))
        records = folder.read_records()
        result = conclude_sweep(folder, folder.read_run().data, records, ["loss.alpha"], False)
        tables = [(tmp_path / name).read_bytes() for name in ("per_group.csv", "results.csv")]
        return tables, result.settings, len(folder._statistics), len(reads)

    kept, dropped = conclude(1 << 30), conclude(1)
    assert kept[:2] == dropped[:2]
    assert (kept[2], dropped[2]) == (6, 1)
    assert kept[3] == 6
    assert kept[0][0].count(b"\n") == 1 + 6 * 6
    order = [line.split(b",")[0].decode() for line in kept[0][0].splitlines()[1::6]]
    assert order == [record.id for record in RunFolder(tmp_path).read_records()]


def test_a_record_is_parsed_again_only_if_it_was_replaced(tmp_path, monkeypatch):
    folder, parsed = RunFolder(tmp_path), []
    from_json = HeadRecord.from_json
    monkeypatch.setattr(
        HeadRecord, "from_json", lambda *words: parsed.append(words) or from_json(*words)
    )
    assert folder.read_record(RECORD.id) is None
    folder.write_record(RECORD)
    first = folder.read_record(RECORD.id)
    assert first == RECORD
    assert folder.read_records() == [RECORD]
    assert len(parsed) == 1

    # Another one of as many bytes, written by another process
    other = replace(RECORD, fingerprint="g")
    RunFolder(tmp_path).write_record(other)
    assert folder.read_record(RECORD.id) == other
    assert len(parsed) == 2
    folder.forget_record(RECORD.id)
    assert folder.read_record(RECORD.id) is None
    assert folder.read_records() == []
