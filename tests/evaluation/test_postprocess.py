"""`raffect postprocess` and what evaluate and report make of it, on a small cross-validated run."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.metrics import f1_score

from raffect.cli import main
from raffect.config import PostprocessConfig, TrainConfig
from raffect.datasets.affwild2.tasks import EXPR
from raffect.datasets.labels import write_clip_labels
from raffect.errors import RaffectError
from raffect.evaluation import held_out
from raffect.evaluation.evaluate import evaluate
from raffect.evaluation.postprocess import postprocess
from raffect.heads.checkpoint import load_head
from raffect.predictions.gains import read_gains
from raffect.predictions.rules import RULES_FILE, DecisionRules
from raffect.recipe import HeadConfig, LossConfig, OptimConfig
from raffect.reporting.report import report
from raffect.runs.data import open_dataset
from raffect.runs.folder import RunFolder
from raffect.training import run_batch
from raffect.training.train import train
from tests.helpers.learning import make_data

FOLDS = 2


def config_of(data, out, **more):
    recipe = {
        "epochs": 2,
        "head": HeadConfig(width=16, depth=1, dropout=0.0),
        "loss": LossConfig(alpha=1.0),
        "optim": OptimConfig(lr=0.01),
    }
    cv = {"select": "cv", "folds": FOLDS, "num_seeds": 2, "threads": 1, "device": "cpu"}
    paths = {"bank": data / "bank", "labels": data / "labels" / "expr.parquet", "out": out}
    return TrainConfig(**{"task": "expr", **recipe, **cv, **paths, **more})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Classes that last for 20 frames, so that a window helps."""

    def last(x, expr, au):
        slow = np.repeat(expr[::20], 20)[: len(expr)]
        x[np.arange(len(expr)), expr] -= 2.5
        x[np.arange(len(expr)), slow] += 2.0
        expr[:] = slow

    return make_data(tmp_path_factory.mktemp("rules"), videos=18, length=80, change=last)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "expr"
    train(config_of(data, out))
    return out


@pytest.fixture(scope="module")
def chosen(run, tmp_path_factory):
    return postprocess(PostprocessConfig(run=(run,)))


def copy_of(run, folder):
    return shutil.copytree(run, folder / "run")


def records_of_folds(run):
    return [record for record in RunFolder(run).read_records() if record.fold is not None]


@pytest.mark.parametrize("task", ["expr", "au"])
def test_kept_predictions_are_those_of_heads_that_never_saw_the_fold(
    data, tmp_path, monkeypatch, task
):
    # Weights of heads of folds are not kept by training; here they are
    kept = {}
    real = run_batch.fit

    def keeping(job, **more):
        fitted = real(job, **more)
        for place, recipe in enumerate(job.recipes):
            state = fitted.heads("last").state(place)
            kept[len(job.validation), recipe.seed, float(job.validation.x[0, 0])] = (
                fitted.spec.build_module(state)
            )
        return fitted

    monkeypatch.setattr(run_batch, "fit", keeping)
    labels = data / "labels" / f"{task}.parquet"
    train(config_of(data, tmp_path / "run", task=task, labels=labels))

    dataset = open_dataset(data / "bank", labels, task)
    index, folds = dataset.splits["train"], dataset.fold_of_frames(FOLDS)
    features, seen = index.read(), 0
    for record in records_of_folds(tmp_path / "run"):
        found = RunFolder(tmp_path / "run").read_predictions([record])
        rows = np.flatnonzero(folds == record.fold)
        module = kept[len(rows), record.recipe.seed, float(features[rows[0], 0])]
        with torch.no_grad():
            outputs = module.eval()(torch.from_numpy(features[rows]).float()).numpy()
        expected = softmax(outputs, 1) if task == "expr" else expit(outputs)
        assert found.heads[record.id].dtype == np.float16
        assert found.heads[record.id] == pytest.approx(expected, abs=6e-4)
        videos = [found.videos[number] for number in found.video]
        assert videos == [index.videos[number] for number in index.video[rows]]
        assert np.array_equal(found.frame, index.frame[rows])
        seen += len(rows)
    assert seen == 2 * len(index)


def test_rules_gain_on_held_out_folds_and_on_the_validation_split(data, run, chosen):
    found = chosen.found
    assert found.rules.chosen_on == "folds"
    assert found.rules.windows[0] >= 2
    assert found.difference.gain > 0.05
    assert found.difference.interval_95[0] > 0
    assert found.single <= found.before.score + 0.02
    assert DecisionRules.from_json((run / RULES_FILE).read_bytes(), "", "") == found.rules
    assert read_gains(run) == found
    assert any("made by a test" in line for line in chosen.lines())

    # The same rules by hand: mean, window, bias, argmax
    judged = evaluate_of(run, data)
    labels = data / "labels" / "expr.parquet"
    index = open_dataset(data / "bank", labels, "expr", ["validation"]).splits["validation"]
    x, true = torch.from_numpy(index.read()).float(), index.y[:, 0]
    folders = [run / head.folder for head in found.rules.heads]
    weights = np.array([head.weight for head in found.rules.heads])
    with torch.no_grad():
        mean = sum(
            w * load_head(folder)[0](x).softmax(1).double().numpy()
            for w, folder in zip(weights / weights.sum(), folders, strict=True)
        )
    smooth = np.empty_like(mean)
    for k in range(len(mean)):
        near = index.video == index.video[k]
        near &= np.abs(index.frame - index.frame[k]) <= found.rules.windows[0]
        smooth[k] = mean[near].mean(0)
    predicted = (np.log(smooth) + found.rules.bias).argmax(1)
    expected = f1_score(true, predicted, labels=range(8), average="macro", zero_division=0)
    after = judged.tasks[0].evaluation.postprocessed
    assert after.after.score == pytest.approx(expected, abs=1e-6)
    assert after.difference.gain > 0.05
    assert any(line.startswith("with decision rules: macro F1") for line in judged.lines())
    assert judged.heads == evaluate_of(run, data, postprocess="none").heads


def evaluate_of(run, data, **more):
    from raffect.config import EvaluateConfig

    labels = data / "labels" / "expr.parquet"
    given = {"bank": data / "bank", "labels": labels, "device": "cpu"}
    return evaluate(EvaluateConfig(run=(run,), **given, **more))


def test_labels_of_the_validation_split_change_no_rule(data, run, chosen, tmp_path):
    # The same features and training labels; every label of the validation split is another one
    other = make_data_with_other_validation(data, tmp_path / "other")
    train(config_of(other, tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.json").read_bytes() != (run / "metrics.json").read_bytes()
    found = postprocess(PostprocessConfig(run=(tmp_path / "run",))).found
    assert found.rules == chosen.rules
    assert (found.before, found.after, found.gains) == (
        chosen.found.before,
        chosen.found.after,
        chosen.found.gains,
    )

    # Chosen on that split they change with its labels, and are called optimistic
    runs = (run, tmp_path / "run")
    both = [
        postprocess(PostprocessConfig(run=(one,), on="validation", out=tmp_path / str(k)))
        for k, one in enumerate(runs)
    ]
    assert both[0].found.after != both[1].found.after
    assert "optimistic" in both[0].lines()[0]
    file = str(tmp_path / "0" / RULES_FILE)
    lines = evaluate_of(run, data, postprocess=file).lines()
    assert any("chosen on the validation split: optimistic here" in line for line in lines)


def make_data_with_other_validation(data, folder):
    shutil.copytree(data, folder)
    file = folder / "labels" / "expr.parquet"
    table = pq.read_table(file)
    is_validation = np.array(table["split"].cast(pa.string()).to_pylist()) == "validation"
    value = table["expression"].to_numpy()
    column = pa.array(np.where(is_validation, (value + 1) % 8, value), pa.int8())
    place = table.column_names.index("expression")
    pq.write_table(table.set_column(place, "expression", column), file)
    return folder


def test_the_report_shows_rules_from_the_records_alone(run, chosen, tmp_path):
    copy = copy_of(run, tmp_path)
    for name in ("weights", "predictions"):
        shutil.rmtree(copy / name)
    report([copy], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "### Decision rules" in text
    assert f"mean over ± {chosen.rules.windows[0]} frames" in text
    (curve,) = (tmp_path / "out" / "plots").glob("*window.csv")
    assert len(curve.read_text().splitlines()) == 13


def test_several_runs_make_one_ensemble_and_evaluate_finds_its_heads(data, run, tmp_path):
    train(config_of(data, tmp_path / "second", seed=7, num_seeds=1))
    runs = (run, tmp_path / "second")
    found = postprocess(PostprocessConfig(run=runs, out=tmp_path / "both")).found
    assert found.num_candidates == 3
    judged = evaluate_of(run, data, postprocess=str(tmp_path / "both" / RULES_FILE))
    assert judged.tasks[0].evaluation.postprocessed.heads == len(found.rules.heads)

    # A head that was trained again since is not the one that was named
    file = tmp_path / "both" / RULES_FILE
    content = json.loads(file.read_bytes())
    content["heads"] = [content["heads"][0] | {"sha256": "0" * 64}]
    file.write_text(json.dumps(content))
    with pytest.raises(RaffectError, match="not the head that it names"):
        evaluate_of(run, data, postprocess=str(file))


def test_a_run_that_is_named_twice_counts_once(data, run, tmp_path):
    train(config_of(data, tmp_path / "second", seed=7, num_seeds=1))
    second = tmp_path / "second"
    runs = (run, run, second, run.parent / "." / run.name)
    found = postprocess(PostprocessConfig(run=runs, out=tmp_path / "both")).found
    assert found.num_candidates == 3
    assert found.runs == (str(run), str(second))

    # What is wrong with the third is said of the third
    edit(second / "env.json", lambda content: content["data"]["task"]["outputs"].reverse())
    config = PostprocessConfig(run=(run, run, second))
    with pytest.raises(RaffectError, match=f"--run {second}: heads of expr, and those of {run}"):
        held_out.find_candidates(config)


def test_evaluate_refuses_a_named_file_that_is_missing_or_for_another_task(
    data, run, chosen, tmp_path, monkeypatch
):
    # Before any head is scored
    monkeypatch.setattr("raffect.evaluation.evaluate.count", None)
    with pytest.raises(RaffectError, match=r"--postprocess gone.json: no such file"):
        evaluate_of(run, data, postprocess="gone.json")
    file = tmp_path / "mine.json"
    shutil.copy(run / RULES_FILE, file)
    edit(file, lambda content: content["task"].update(name="other"))
    with pytest.raises(RaffectError, match="rules for other, and the heads predict expr; name"):
        evaluate_of(run, data, postprocess=str(file))


def test_one_run_that_is_named_twice_is_refused_by_evaluate(data, run):
    from raffect.config import EvaluateConfig

    paths = {"bank": data / "bank", "labels": data / "labels" / "expr.parquet"}
    with pytest.raises(RaffectError, match="both are of task expr"):
        evaluate(EvaluateConfig(run=(run, run), device="cpu", **paths))


def test_a_zeroshot_run_is_sent_to_the_validation_split(run, tmp_path):
    copy = copy_of(run, tmp_path)
    edit(copy / "env.json", lambda content: content.update(command="zeroshot"))
    config = PostprocessConfig(run=(copy,))
    with pytest.raises(RaffectError, match=r"zeroshot trains nothing .* \(--on validation: opt"):
        held_out.collect(held_out.find_candidates(config), config)


@pytest.fixture(scope="module")
def clips(data, tmp_path_factory):
    """Runs on the frames of `data` as clips of one frame, and of one or more from each second."""
    folder = tmp_path_factory.mktemp("clips")
    table = pq.read_table(data / "labels" / "expr.parquet")
    rows = table.rename_columns({"frame": "start"}).append_column("end", table["frame"])
    overlapping = rows.filter(pc.less(rows["start"], 80)).to_pandas()
    overlapping["end"] += 1
    both = pa.concat_tables(
        [rows, pa.Table.from_pandas(overlapping, rows.schema, preserve_index=False)]
    )
    for name, found in (("one", rows), ("two", both)):
        write_clip_labels(folder / f"{name}.parquet", found, EXPR)
        train(config_of(data, folder / name, labels=folder / f"{name}.parquet", num_seeds=1))
    return folder


def test_clips_have_no_windows(clips, chosen):
    # On the same frames, which are not clips, a window gains
    assert "windows" in [gain.rule for gain in chosen.found.gains]
    result = postprocess(PostprocessConfig(run=(clips / "one",)))
    assert [gain.rule for gain in result.found.gains] == ["bias"]
    assert set(result.rules.windows) == {0}
    assert result.found.curve == ()
    report([clips / "one"], clips / "report")
    # What they were chosen on is called clips, in the lines and in the report
    size = f"{result.found.frames:,} clips of {result.found.groups:,} videos"
    assert size in result.lines()[0]
    assert size in (clips / "report" / "report.md").read_text()
    own = dataclasses.replace(result.found, group_name="clips")
    assert own.size == f"{result.found.frames:,} clips"
    with pytest.raises(RaffectError, match="--per-output: the labels of expr are of clips"):
        postprocess(PostprocessConfig(run=(clips / "one",), per_output=True))


def test_runs_whose_clips_share_a_first_frame_are_not_joined(clips):
    assert postprocess(PostprocessConfig(run=(clips / "two",))).found.frames > 0
    config = PostprocessConfig(run=(clips / "one", clips / "two"))
    with pytest.raises(RaffectError, match=f"--run {clips / 'two'}: has clips that begin at one"):
        postprocess(config)


def edit(file, change):
    """Change a JSON file by a function of its content."""
    content = json.loads(file.read_bytes())
    change(content)
    file.write_text(json.dumps(content))


def test_runs_without_predictions_say_what_to_do(run, tmp_path, capsys):
    def fault(*runs):
        assert main(["postprocess", "--run", *map(str, runs)]) == 2
        return capsys.readouterr().err

    # Not kept, and as earlier versions wrote it, without the field
    bare = copy_of(run, tmp_path / "bare")
    for file in (bare / "heads").glob("*fold*.json"):
        edit(file, lambda content: content.pop("predictions"))
    assert "kept no predictions (--no-save-predictions" in fault(bare)

    # A fold that is missing, or all of them
    for file in (bare / "heads").glob("*fold2of2.json"):
        file.unlink()
    assert "only 1 of 2 folds of seed" in fault(bare)
    for file in (bare / "heads").glob("*fold*.json"):
        file.unlink()
    assert "train into a new --out with --select cv" in fault(bare)

    # Another task, or a damaged file
    edit(bare / "env.json", lambda content: content["data"]["task"]["outputs"].reverse())
    assert "rules are chosen for one task at a time" in fault(run, bare)
    damaged = copy_of(run, tmp_path / "damaged")
    file = next((damaged / "predictions").iterdir())
    file.write_bytes(file.read_bytes()[:-9] + b"x" * 9)
    assert "SHA-256 differs" in fault(damaged)
    file.unlink()
    assert "missing; delete the records of its heads" in fault(damaged)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("last", [0, 1])
def test_a_death_before_or_between_the_records_keeps_the_bytes(
    data, run, tmp_path, monkeypatch, last
):
    # Predictions of the first fold are there, and one of its two heads has no record
    written, real = [], RunFolder.write_record

    def dying(folder, record):
        if len(written) == last:
            raise KeyboardInterrupt
        written.append(record.id)
        real(folder, record)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_record", dying)
        with pytest.raises(KeyboardInterrupt):
            train(config_of(data, out))
    assert len(list((out / "predictions").iterdir())) == 1

    # A head that is trained again alone is in another file, with the same numbers
    train(config_of(data, out))
    if not last:
        assert contents(out / "predictions") == contents(run / "predictions")
    for record, again in zip(records_of_folds(run), records_of_folds(out), strict=True):
        found, other = (
            RunFolder(folder).read_predictions([one]).heads[one.id]
            for folder, one in ((run, record), (out, again))
        )
        assert found == pytest.approx(other, abs=1e-3)


def test_predictions_that_no_record_names_are_deleted_and_the_setting_may_change(data, tmp_path):
    out = tmp_path / "run"
    config = config_of(data, out, num_seeds=1)
    train(config)
    names = {path.name for path in (out / "predictions").iterdir()}
    assert names == {record.predictions.name for record in records_of_folds(out)}
    (out / "predictions" / f"{'0' * 16}.parquet").write_bytes(b"left by a kill")
    train(dataclasses.replace(config, save_predictions=False))
    assert {path.name for path in (out / "predictions").iterdir()} == names


def test_runs_on_other_labels_do_not_go_together(data, run, tmp_path):
    other = make_data(tmp_path / "other", seed=1, videos=12, length=40)
    train(config_of(other, tmp_path / "run", num_seeds=1))
    config = PostprocessConfig(run=(run, tmp_path / "run"))
    with pytest.raises(RaffectError, match="other labels of the same frames"):
        held_out.collect(held_out.find_candidates(config), config)


def test_evaluate_leaves_out_heads_that_diverged_but_for_one_that_is_named_alone(
    data, run, tmp_path
):
    copy = copy_of(run, tmp_path)
    first, second = sorted(copy.glob("weights/*/last"))
    edit(first / "config.json", lambda content: content.update(status="diverged"))
    judged = evaluate_of(copy, data, postprocess="none")
    assert [head.folder for head in judged.heads] == [str(second)]
    assert f"left out: {first}, which diverged" in judged.lines()
    alone = evaluate_of(first, data, postprocess="none")
    assert f"note: {first} diverged; its last sound epoch is judged" in alone.lines()
