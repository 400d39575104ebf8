"""Which setting stands for a sweep, and why."""

from __future__ import annotations

import pytest

from raffect.errors import RaffectError
from raffect.reporting.results import results_table
from raffect.reporting.run import read_runs
from raffect.runs.conclusions import conclude_sweep
from raffect.runs.cross_validation import select_by_cv
from raffect.runs.main_setting import choose_main_setting
from raffect.runs.metrics_file import Metrics
from raffect.runs.spread import finished, group_by_settings
from tests.helpers.runs import ERM, draw_confusion, make_run

RATES = (1e-6, 1e-3, 1e-2)
SKILLS = dict(zip(RATES, (0.1, 0.4, 0.7), strict=True))
SETTINGS = [{"optim.lr": rate} for rate in RATES]


def by_rate(rng, settings):
    return draw_confusion(SKILLS[settings["optim.lr"]])


def main_of(folder):
    records = folder.read_records()
    groups = group_by_settings(finished(records))
    found = choose_main_setting(folder, groups, select_by_cv(folder, groups, records))
    return found.heads[0].recipe.optim.lr, found.rule


def test_a_sweep_of_the_learning_rate_stands_for_the_recipes_own(tmp_path):
    run = make_run(tmp_path / "run", SETTINGS, by_rate, own={"optim.lr": 1e-3})
    assert main_of(run) == (1e-3, "own")
    text = "\n".join(results_table(read_runs([run.path])))
    assert "| run | EXPR | lr 0.001 (the recipe's own) | val-last |" in text
    assert "lr 1e-06 (" not in text


def test_cross_validation_comes_before_the_recipes_own(tmp_path):
    cv = (0.9, 0.2, 0.3)  # against the order of the scores on validation
    run = make_run(tmp_path / "run", SETTINGS, by_rate, own={"optim.lr": 1e-3}, cv_scores=cv)
    assert main_of(run) == (1e-6, "cv")
    rows = results_table(read_runs([run.path]))
    assert any("| lr 1e-06 (chosen on folds) | val-cv |" in row for row in rows)


@pytest.mark.parametrize("own", [None, {"optim.lr": 5e-4}], ids=["no config", "not in the sweep"])
def test_without_the_recipes_own_the_highest_stands_and_is_called_optimistic(tmp_path, own):
    run = make_run(tmp_path / "run", SETTINGS, by_rate, own=own)
    assert main_of(run) == (1e-2, "best")
    (read,) = read_runs([run.path])
    assert "lr 0.01 (highest val-last, optimistic)" in results_table([read])[2]
    assert read.main.why.endswith("compared on the validation split itself: optimistic")


def test_one_setting_stands_for_itself(tmp_path):
    run = make_run(tmp_path / "run", SETTINGS[:1], by_rate, own={"optim.lr": 1e-3})
    assert main_of(run) == (1e-6, "only")


def test_the_baseline_beside_a_sweep_does_not_stand_for_it(tmp_path):
    settings = [{"loss.alpha": alpha} for alpha in (0.1, 0.3)] + [ERM]
    run = make_run(
        tmp_path / "run", settings, lambda *_: draw_confusion(0.5), own={"loss.alpha": 0.3}
    )
    groups = group_by_settings(finished(run.read_records()))
    found = choose_main_setting(run, groups, None)
    assert (found.heads[0].recipe.loss.alpha, found.rule) == (0.3, "own")


def test_metrics_and_report_name_the_same_setting(tmp_path):
    run = make_run(tmp_path / "run", SETTINGS, by_rate, own={"optim.lr": 1e-3})
    records = run.read_records()
    found = conclude_sweep(run, run.read_run().data, records, ["optim.lr"], saved_heads=False)
    again = Metrics.from_json((run.path / "metrics.json").read_bytes(), "metrics.json", "")
    for metrics in (found.metrics, again):
        assert metrics.headline.settings["optim.lr"] == 1e-3
        assert "the recipe's own values" in metrics.headline.chosen_by
        assert metrics.best.settings["optim.lr"] == 1e-2


def test_a_damaged_config_is_named(tmp_path):
    run = make_run(tmp_path / "run", SETTINGS, by_rate, own={})
    (run.path / "config.toml").write_text("= broken")
    with pytest.raises(RaffectError, match=r"config\.toml: not a TOML file"):
        main_of(run)
