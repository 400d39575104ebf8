"""`raffect evaluate --classes common`: heads of one data set judged on another one, by name."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.cli import main
from raffect.config import EvaluateConfig
from raffect.datasets.affwild2.tasks import AU
from raffect.datasets.class_map import match_outputs
from raffect.datasets.expressions import expression_task
from raffect.datasets.labels import read_labels, write_labels
from raffect.errors import RaffectError
from raffect.evaluation.evaluate import evaluate
from raffect.evaluation.results import Evaluation
from raffect.heads.checkpoint import load_head
from tests.helpers.two_sets import COMMON, FIRST, SECOND, labels_task, make_set, train_on


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets of expressions, a run on the first, and a judgement of it on the second."""
    top = tmp_path_factory.mktemp("sets")
    first, second = make_set(top / "first", FIRST, 0), make_set(top / "second", SECOND, 1)
    run = train_on(first, top / "run")
    return first, second, run


def judge(run, data, **more):
    config = EvaluateConfig(
        run=(run,), bank=data / "bank", labels=data, device="cpu", classes="common", **more
    )
    (found,) = evaluate(config).tasks
    return found


def answers_of(run, data, task, columns):
    """True labels of validation, and what each head answers among some outputs, by hand."""
    labels = read_labels(data / "labels" / f"{task.name}.parquet")
    found = read_features(Bank(data / "bank"), labels, task, "validation")
    folders = sorted((run / "weights").glob("*/last"))
    assert len(folders) == 2
    x = torch.from_numpy(found.x).float()
    with torch.no_grad():
        return found.y, [load_head(folder)[0](x).numpy()[:, columns] for folder in folders]


def test_scores_over_common_classes_equal_scikit_learn_on_restricted_answers(sets):
    _, second, run = sets
    found = judge(run, second).evaluation
    assert found.data.task.outputs == COMMON
    y, outputs = answers_of(run, second, SECOND, [0, 1, 2, 3])
    # Numbers of the second set in the first one's order; Contempt is in no common class
    place = {0: 3, 2: 2, 3: 0, 4: 1}
    true = np.array([place.get(k, -1) for k in y[:, 0].tolist()])
    keep = true >= 0
    numbers = range(len(COMMON))
    for head, scores in zip(found.heads, outputs, strict=True):
        said = scores.argmax(1)[keep]
        assert head.score.headline == pytest.approx(
            f1_score(true[keep], said, labels=numbers, average="macro", zero_division=0)
        )
        assert head.score.metrics["accuracy"] == pytest.approx(accuracy_score(true[keep], said))
        uar = balanced_accuracy_score(true[keep], said)
        assert head.score.metrics["uar"] == pytest.approx(uar)
    # Without the restriction some answers would be Fear, which the second set lacks
    _, free = answers_of(run, second, SECOND, [0, 1, 2, 3, 4])
    assert any((scores.argmax(1)[keep] == 4).any() for scores in free)

    # What is left out, and chance, are of these frames and classes
    common = found.common
    assert (common.not_in_labels, common.not_in_heads) == (("Fear",), ("Contempt",))
    assert common.left_out == int((~keep).sum()) > 0
    assert common.left_out_of == {"Contempt": common.left_out}
    assert found.data.splits["validation"].frames == int(keep.sum())
    constant = [
        f1_score(true[keep], np.full(keep.sum(), k), labels=numbers, average="macro")
        for k in numbers
    ]
    assert found.chance.majority == pytest.approx(max(constant))
    assert found.chance.prior == pytest.approx(1 / len(COMMON))
    assert found.settings[0].scores["last"].mean > found.chance.level + 0.2


def test_units_that_both_have_are_judged_by_name(tmp_path):
    ours, theirs = labels_task(("AU4", "AU1", "AU9")), labels_task(("AU1", "AU2", "AU4", "AU6"))
    first, second = make_set(tmp_path / "first", theirs, 2), make_set(tmp_path / "second", ours, 3)
    run = train_on(first, tmp_path / "run", "au")
    found = judge(run, second).evaluation
    assert found.data.task.outputs == ("AU1", "AU4")
    y, outputs = answers_of(run, second, ours, [0, 2])
    true = y[:, [1, 0]]
    for head, scores in zip(found.heads, outputs, strict=True):
        each = [
            f1_score(true[known, k], scores[known, k] >= 0)
            for k in range(2)
            for known in [true[:, k] >= 0]
        ]
        assert head.score.headline == pytest.approx(np.mean(each))
    # Frames where only AU9 is labelled have nothing to judge
    assert found.common.left_out == int((true < 0).all(1).sum()) > 0
    assert (found.common.not_in_labels, found.common.not_in_heads) == (("AU2", "AU6"), ("AU9",))
    assert found.common.left_out_of == {}


def test_equal_classes_in_another_order_lose_nothing(sets, tmp_path):
    first, _, run = sets
    order = (3, 0, 4, 2, 1)
    task = expression_task([FIRST.outputs[k].upper() for k in order])
    labels = read_labels(first / "labels/expr.parquet")
    number = {old: new for new, old in enumerate(order)} | {-1: -1}
    moved = np.array([number[k] for k in labels["expression"].to_pylist()], np.int16)
    place = labels.column_names.index("expression")
    write_labels(
        tmp_path / "expr.parquet", labels.set_column(place, "expression", pa.array(moved)), task
    )
    same = EvaluateConfig(run=(run,), bank=first / "bank", labels=first, device="cpu")
    (plain,) = evaluate(same).tasks
    config = EvaluateConfig(
        run=(run,),
        bank=first / "bank",
        labels=tmp_path / "expr.parquet",
        device="cpu",
        classes="common",
    )
    (found,) = evaluate(config).tasks
    assert found.evaluation.heads == plain.evaluation.heads
    assert not found.evaluation.common.is_part
    assert found.evaluation.caveats == plain.evaluation.caveats


def test_the_command_says_what_is_judged_and_writes_it(sets, tmp_path, capsys):
    _, second, run = sets
    places = ["--run", str(run), "--bank", str(second / "bank"), "--labels", str(second)]
    places += ["--device", "cpu"]
    assert main(["evaluate", *places]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "has other outputs than the heads of" in error
    assert "evaluate --classes common" in error
    (run / "decision_rules.json").write_text("{}")
    out = tmp_path / "judged"
    assert main(["evaluate", *places, "--classes", "common", "--out", str(out)]) == 0
    (run / "decision_rules.json").unlink()
    text = capsys.readouterr().out
    assert "common classes, by name: Happiness, Sadness, Neutral, Anger" in text
    assert "never predicted, since the labels lack them: Fear" in text
    assert "unknown to the heads: Contempt" in text
    assert "without decision rules: " in text
    assert "caveat: judged on the 4 classes that heads and labels both have" in text
    file = out / "metrics.json"
    stored = Evaluation.from_json(file.read_bytes(), file, "")
    assert f"left out: {stored.common.left_out} frames of these alone (Contempt " in text
    # A file from before cross-set evaluation has no such field, and is read
    content = json.loads(file.read_text())
    del content["common"]
    for head in content["heads"]:
        del head["trained_on"]
    assert Evaluation.from_json(content, file, "").common is None


def test_what_cannot_be_matched_is_refused_in_one_line(sets, tmp_path):
    first, second, run = sets
    labels = read_labels(second / "labels/expr.parquet")
    other = tmp_path / "labels/expr.parquet"

    def judge_on(task, table=labels):
        write_labels(other, table, task)
        config = EvaluateConfig(
            run=(run,), bank=second / "bank", labels=other, device="cpu", classes="common"
        )
        return evaluate(config)

    with pytest.raises(RaffectError, match="too few in common: Happiness, Sadness, .* calm, happy"):
        judge_on(expression_task(("calm", "happy", "x", "y", "z")))
    with pytest.raises(RaffectError, match="happy and Happiness are one class by name"):
        judge_on(expression_task(("happy", "sad", "Happiness", "y", "z")))
    place = labels.column_names.index("expression")
    contempt = labels.set_column(place, "expression", pa.array(np.ones(len(labels), np.int16)))
    with pytest.raises(RaffectError, match="no labelled frame of validation is of Happiness, Sad"):
        judge_on(SECOND, contempt)
    units = replace(labels_task(("Happiness", "Sadness")), name="expr")
    make_set(tmp_path / "units", FIRST, 4)
    table = read_labels(tmp_path / "units/labels/expr.parquet")
    for name in units.columns:
        table = table.append_column(name, pa.array(np.ones(len(table), np.int8)))
    write_labels(tmp_path / "units/labels/expr.parquet", table, units)
    with pytest.raises(RaffectError, match="heads are multiclass and labels multilabel; expected"):
        judge(run, tmp_path / "units")
    with pytest.raises(RaffectError, match="rules are for all classes of the heads"):
        EvaluateConfig(
            run=(run,), bank=first, labels=first, classes="common", postprocess="rules.json"
        )


def test_names_are_matched_as_expressions_and_units():
    assert match_outputs(SECOND, FIRST).tolist() == [3, -1, 2, 0, 1]
    assert match_outputs(labels_task(("AU12", "AU3")), AU).tolist() == [
        AU.outputs.index("AU12"),
        -1,
    ]
