"""Decision rules that `raffect predict` takes: of a run, of a file, and those it leaves aside."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import raffect
from raffect.datasets.affwild2.tasks import EXPR
from raffect.evaluation.choose_rules import RULES_FILE
from raffect.heads.checkpoint import read_card
from raffect.predictions.rules import WeightedHead, plain_rules
from tests.helpers.heads import make_head
from tests.helpers.predicted import brute_force, predict
from tests.helpers.runs import draw_confusion, make_run


@pytest.fixture
def sweep(tmp_path):
    """A sweep of two settings, and the folders of its heads from `tmp_path`."""
    settings = [{"loss.alpha": alpha} for alpha in (0.1, 0.3)]
    folder = make_run(tmp_path / "sweep", settings, lambda *_: draw_confusion(0.5))
    names = []
    for seed, record in enumerate(folder.read_records()):
        path = folder.weights_path(record.id, "last")
        make_head(path, EXPR, recipe=record.recipe, seed=seed, id=record.id)
        names.append(str(path.relative_to(tmp_path)))
    return names


def write_rules(tmp_path, names, weights=(3.0, 1.0), file="runs/expr/decision_rules.json", **more):
    """Rules of some heads with weights, a window and a bias; returns them."""
    folders = [tmp_path / name for name in names]
    heads = tuple(
        WeightedHead(folder="where they were", sha256=read_card(folder).sha256, weight=weight)
        for folder, weight in zip(folders, weights, strict=False)
    )
    plain = plain_rules(EXPR, heads)
    more = {"windows": (2,) * 8, "bias": tuple(range(8)), "chosen_on": "folds"} | more
    rules = dataclasses.replace(plain, **more)
    (tmp_path / file).write_bytes(rules.to_bytes())
    return rules


TWO = ("runs/expr/weights/h2/last", "runs/expr/weights/h0/last")


def test_rules_of_a_run_are_applied_wherever_it_was_moved(bank, heads, tmp_path):
    rules = write_rules(tmp_path, TWO)
    assert (tmp_path / "runs/expr" / RULES_FILE).is_file()
    shutil.move(tmp_path / "runs/expr", tmp_path / "moved")
    result = predict(tmp_path, "moved")
    (used,) = result.facts.rules
    assert (used.windows, used.bias, used.chosen_on) == (rules.windows, rules.bias, "folds")
    assert [head.folder for head in used.heads] == [
        str(tmp_path / "moved/weights" / name / "last") for name in ("h2", "h0")
    ]
    assert f"EXPR: decision rules of {tmp_path / 'moved' / RULES_FILE}" in result.lines()
    # The weighted mean of two heads, over five frames, with a bias on the log
    x = torch.tensor(np.array(list(bank[1].values())), dtype=torch.float32)
    h0, _, h2, _ = (module(x).softmax(1).detach().numpy() for module in heads["expr"])
    expected = brute_force(dict(zip(bank[1], (3 * h2 + h0) / 4, strict=True)), (2,) * 8)
    rows = result.to_pandas().query("status == 'ok'")
    scores = rows[[f"p_{name}" for name in EXPR.outputs]].to_numpy()
    np.testing.assert_allclose(scores, list(expected.values()), atol=2e-6)
    decided = (np.log(scores) + np.arange(8)).argmax(1)
    assert rows["expr"].tolist() == [EXPR.outputs[k] for k in decided]


@pytest.mark.parametrize(
    ("names", "named", "why"),
    [
        (["runs/expr/weights/h0/last"], TWO, "1 of the 2 head(s) that it names are not of the"),
        (["runs/expr", "runs/other"], TWO, "it names no head of"),
    ],
)
def test_rules_for_other_heads_are_left_aside_and_said(bank, heads, tmp_path, names, named, why):
    write_rules(tmp_path, named)
    result = predict(tmp_path, *names)
    assert result.facts.rules[0].is_plain
    (note,) = result.notes
    assert note.startswith(f"EXPR: without the decision rules of {tmp_path / 'runs/expr'}")
    assert why in note


def test_no_rules_and_rules_of_a_file_are_said(bank, heads, tmp_path):
    write_rules(tmp_path, TWO)
    write_rules(tmp_path, TWO[:1], file="mine.json", chosen_on="validation")
    none = predict(tmp_path, "runs/expr", postprocess="none")
    assert none.facts.rules[0].is_plain
    assert none.notes == ("EXPR: no decision rules (--postprocess none)",)
    mine = predict(tmp_path, "runs/expr", "runs/au", postprocess=str(tmp_path / "mine.json"))
    assert [len(rules.heads) for rules in mine.facts.rules] == [1, 1]
    assert mine.notes[0].endswith("mine.json, chosen on validation: optimistic there")
    assert mine.notes[1] == "AU: no decision rules chosen (`raffect postprocess` chooses them)"


def test_a_file_of_rules_that_does_not_fit_is_one_line(bank, heads, tmp_path):
    with pytest.raises(raffect.RaffectError, match="--postprocess gone.json: no such file"):
        predict(tmp_path, "runs/expr", postprocess="gone.json")
    write_rules(tmp_path, TWO, file="mine.json")
    with pytest.raises(raffect.RaffectError, match="2 of the 2 head.s. that it names are not"):
        predict(tmp_path, "runs/other", postprocess=str(tmp_path / "mine.json"))
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(raffect.RaffectError, match="mine.json: damaged"):
        predict(tmp_path, "runs/other", postprocess=str(tmp_path / "mine.json"))


def test_a_named_file_for_a_task_that_no_head_predicts_is_refused(bank, heads, tmp_path):
    write_rules(tmp_path, TWO, file="mine.json")
    with pytest.raises(raffect.RaffectError, match="rules for expr, and the heads predict au and"):
        predict(tmp_path, "runs/au", "one head", postprocess=str(tmp_path / "mine.json"))
    assert not (tmp_path / "p.parquet").exists()


def test_a_named_file_that_leaves_out_a_named_folder_is_refused(bank, heads, tmp_path):
    write_rules(tmp_path, TWO, file="mine.json")
    with pytest.raises(raffect.RaffectError, match=r"it names no head of .*other; leave that out"):
        predict(tmp_path, "runs/expr", "runs/other", postprocess=str(tmp_path / "mine.json"))


def test_rules_that_name_heads_of_other_settings_count_where_their_run_is_named(
    bank, sweep, tmp_path
):
    main = {head.folder for head in predict(tmp_path, "sweep").facts.rules[0].heads}
    every = {str(tmp_path / name) for name in sweep}
    assert main < every
    file = "sweep/decision_rules.json"
    write_rules(tmp_path, sweep, range(1, len(sweep) + 1), file=file)
    rows = []
    for names, more in (["sweep"], {}), (sweep, {}), (["sweep"], {"postprocess": tmp_path / file}):
        result = predict(tmp_path, *names, **more)
        (used,) = result.facts.rules
        assert {head.folder for head in used.heads} == every
        assert used.chosen_on == "folds"
        others = "which take 2 head(s) of other settings" in result.notes[-1]
        assert others == (names == ["sweep"])
        rows.append(result.to_pandas())
    for other in rows[1:]:
        pd.testing.assert_frame_equal(rows[0], other)
    # The snapshot is still the one that was asked for
    for seed, name in enumerate(sweep):
        card = read_card(tmp_path / name)
        best = tmp_path / name.replace("/last", "/best")
        more = {"recipe": card.recipe, "id": card.id, "snapshot": "best"}
        make_head(best, EXPR, seed=seed + 50, **more)
    other = predict(tmp_path, "sweep", epoch="best")
    assert other.facts.rules[0].is_plain
    assert "are not of the heads or runs that were named" in other.notes[-1]


def test_rules_never_take_a_head_of_a_run_that_was_not_named_or_that_was_trained_again(
    bank, heads, sweep, tmp_path
):
    names = [*sweep, "runs/other/weights/probe/last"]
    write_rules(tmp_path, names, (1.0,) * len(names), file="sweep/decision_rules.json")
    assert predict(tmp_path, "sweep").facts.rules[0].is_plain
    assert predict(tmp_path, "sweep", "runs/other").facts.rules[0].chosen_on == "folds"
    card = read_card(tmp_path / sweep[0])
    make_head(tmp_path / sweep[0], EXPR, recipe=card.recipe, seed=99, id=card.id)
    again = predict(tmp_path, "sweep", "runs/other")
    assert again.facts.rules[0].is_plain
    assert "1 of the 5 head(s) that it names" in again.notes[-1]
