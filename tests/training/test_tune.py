"""Sweeps: spaces as text, batches of heads, what a second run repeats, ASHA, folds, reports."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from raffect.cli import main
from raffect.config import TuneConfig
from raffect.datasets.affwild2.tasks import EXPR, published_scores
from raffect.errors import RaffectError
from raffect.metrics.scores import Chance
from raffect.progress import Progress
from raffect.recipe import PLAIN_ERM, Recipe, with_settings
from raffect.reporting.report import name_pictures
from raffect.runs.against_erm import Baselines
from raffect.runs.folder import RunFolder
from raffect.runs.records import Curve, HeadRecord, PlannedHead
from raffect.runs.spread import group_by_settings, is_erm, short, signed, spread
from raffect.training.run_batch import partition, plan_batches
from raffect.training.space import add_baseline, list_recipes, read_space
from raffect.training.trial import _axis_text
from raffect.training.tune import _build_scheduler
from raffect.training.watch import ended_batches, move_progress, watched
from tests.helpers.learning import scores_of, words

BASE = Recipe(task="expr")


def test_axes_are_lists_and_ranges_with_both_ends():
    found = read_space(["loss.alpha=0.1:1:0.1"])["loss.alpha"]
    assert found == pytest.approx([k / 10 for k in range(1, 11)])
    axes = ["seed=0:4", "optim.name=adam,adamw", "sam.independent_dropout=true,false"]
    assert read_space(axes) == {
        "seed": [0, 1, 2, 3, 4],
        "optim.name": ["adam", "adamw"],
        "sam.independent_dropout": [True, False],
    }


def test_a_grid_has_every_combination_once_and_the_baseline_behind_it():
    recipes = list_recipes(BASE, ["loss.alpha=0.3,1,0.3", "seed=0,1"], 0)
    assert [(r.loss.alpha, r.seed) for r in recipes] == [(0.3, 0), (0.3, 1), (1.0, 0), (1.0, 1)]
    with_erm = add_baseline(recipes)
    erm = [(r.loss.alpha, r.sam.rho, r.seed) for r in with_erm[4:]]
    assert erm == [(1.0, 0.0, 0), (1.0, 0.0, 1)]
    assert add_baseline(with_erm) == with_erm


def test_random_draws_repeat_and_follow_the_seed():
    axes = ["optim.lr=loguniform(1e-4,1e-2)", "sam.rho=uniform(0,0.5)", "seed=0,1"]
    bases = (BASE, BASE, with_settings(BASE, {"seed": 9}))
    one, again, other = (list_recipes(base, axes, 5) for base in bases)
    assert one == again
    assert len(one) == 10
    assert all(1e-4 <= r.optim.lr <= 1e-2 and 0 <= r.sam.rho <= 0.5 for r in one)
    assert one != other


@pytest.mark.parametrize(
    ("axes", "samples", "match"),
    [
        (["loss.alfa=1"], 0, "did you mean loss.alpha"),
        (["loss.alpha"], 0, "expected NAME=V1,V2"),
        (["loss.alpha=0,1"], 0, "loss.alpha 0.0: expected more than 0"),
        (["loss.alpha=x"], 0, "expected a number"),
        (["loss.alpha=1:0.1:0.1"], 0, "FROM <= TO"),
        (["loss.alpha=0.1:1:0"], 0, "STEP > 0"),
        (
            ["loss.alpha=0.1:1"],
            0,
            "FROM:TO without STEP is for whole numbers; expected a step, such as 0.1:1:0.1",
        ),
        (["loss.alpha=1:2.5"], 0, "FROM:TO without STEP is for whole numbers"),
        (["loss.alpha=a:b"], 0, "'a' is not a number"),
        (["seed=0,1", "seed=2"], 0, "seed is there twice"),
        (["task=expr,au"], 0, "a sweep has one task"),
        (["optim.lr=loguniform(0,1)"], 3, "above 0"),
        (["optim.lr=uniform(1e-4,1e-3)"], 0, "how many draws"),
        (["seed=0,1"], 3, "no axis of --space is a distribution"),
    ],
)
def test_a_wrong_space_is_one_line(axes, samples, match):
    with pytest.raises(RaffectError, match=re.escape(match)):
        list_recipes(BASE, axes, samples)


def test_batches_hold_heads_that_can_train_together_and_no_head_is_lost():
    recipes = list_recipes(BASE, ["loss.alpha=0.1:1:0.1", "seed=0:2", "batch_size=16,32"], 0)
    heads = [PlannedHead(recipe) for recipe in recipes]
    heads += [PlannedHead(BASE, fold, 3) for fold in range(3)]
    batches = partition(heads, 8)
    assert sorted(ids(*batches)) == sorted(ids(heads))
    assert max(map(len, batches)) <= 8
    for batch in batches:
        assert len({(head.recipe.batch_size, head.fold) for head in batch}) == 1
    assert partition(heads, 8) == batches


def test_plain_erm_never_shares_a_batch_with_sam_whose_second_pass_it_would_pay():
    recipes = add_baseline(list_recipes(BASE, ["loss.alpha=0.1:1:0.1", "seed=0:4"], 0))
    batches = partition([PlannedHead(recipe) for recipe in recipes], 64)
    assert [{head.recipe.sam.rho > 0 for head in batch} for batch in batches] == [{True}, {False}]
    assert [len(batch) for batch in batches] == [50, 5]
    # Radii of different lengths are one kind of step.
    radii = [with_settings(BASE, {"sam.rho": rho}) for rho in (0.01, 0.05, 0.5)]
    assert len(partition([PlannedHead(recipe) for recipe in radii], 8)) == 1


def test_a_batch_with_and_without_sam_that_was_begun_before_goes_on_as_it_is(tmp_path):
    folder = RunFolder(tmp_path)
    heads = [PlannedHead(r) for r in add_baseline(list_recipes(BASE, ["seed=0,1"], 0))]
    folder.note_batch(dict.fromkeys(ids(heads), 0))
    folder.state_path(ids(heads)).touch()
    assert plan_batches(folder, heads, 8, one_seed=False) == [heads]
    folder.drop_state(ids(heads))
    assert plan_batches(folder, heads, 8, one_seed=False) == [heads[:2], heads[2:]]


def ids(*batches):
    return [head.id for batch in batches for head in batch]


def sweep(data, out, *more, space=("loss.alpha=0.3,1", "seed=0,1")):
    return words("tune", data, out, "--space", *space, *more)


def read_heads(out):
    """Records of a run's heads as JSON objects."""
    return [json.loads(path.read_text()) for path in (out / "heads").glob("*.json")]


def times(out):
    """When each record of a run was written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "heads").glob("*.json")}


def test_a_sweep_trains_each_head_once_goes_on_and_is_reported(data, tmp_path, capsys, local_ray):
    # Two settings of two seeds, and plain ERM
    out = tmp_path / "sweep"
    assert main(sweep(data, out, "--heads-per-trial", "3")) == 0
    text = capsys.readouterr().out
    assert "alpha 0.3 rho 0.05  val-last" in text
    assert "alpha 1 rho 0 (ERM)" in text
    assert "optimistic" in text
    rows = list(csv.DictReader((out / "heads.csv").open()))
    assert len(rows) == len({row["id"] for row in rows}) == 6
    assert all(len(row["curve.val_macro_f1"].split()) == 3 for row in rows)
    assert len(pq.read_table(out / "heads.parquet")) == 6
    assert list(out.rglob("events.out.tfevents*")), "no TensorBoard files"

    # A finished head stays; one without a record is trained again, to the same result
    file = out / "heads" / f"{rows[0]['id']}.json"
    lost = json.loads(file.read_text())
    file.unlink()
    kept = times(out)
    assert main(sweep(data, out, "--heads-per-trial", "3")) == 0
    again = json.loads(file.read_text())
    assert again["curve"] == lost["curve"]
    assert again["scores"] == lost["scores"]
    assert len(times(out).items() & kept.items()) >= 3, "other batches were trained again"

    # A larger space trains only what is new
    capsys.readouterr()
    kept = times(out)
    larger = ("loss.alpha=0.3,0.6,1", "seed=0,1")
    assert main(sweep(data, out, "--heads-per-trial", "1", space=larger)) == 0
    assert len(times(out)) == 8
    assert times(out).items() >= kept.items()

    # Each setting is compared with ERM on the same videos, on the screen as in metrics.json
    assert " against ERM  val-best" in capsys.readouterr().out
    settings = json.loads((out / "metrics.json").read_text())["settings"]
    (erm,) = [setting for setting in settings if setting["erm"]]
    assert erm["against_erm"] is None
    for setting in (other for other in settings if not other["erm"]):
        expected = setting["scores"]["last"]["mean"] - erm["scores"]["last"]["mean"]
        assert setting["against_erm"]["mean"] == pytest.approx(expected)
        low, high = setting["against_erm"]["interval_95"]
        assert low <= expected <= high

    # The report shows all of it, and nothing from elsewhere
    assert main(["report", "--runs", str(out)]) == 0
    report, html = (out / "report.md").read_text(), (out / "report.html").read_text()
    assert "made by a test" in report
    assert "Lin et al." not in report  # published scores never stand beside synthetic ones
    for picture in re.findall(r"\((plots/[^)]+\.png)\)", report):
        assert (out / picture).read_bytes()[:4] == b"\x89PNG"
        assert list(csv.DictReader((out / picture).with_suffix(".csv").open()))
    assert html.count("data:image/png;base64,") == report.count("![")
    assert "http" not in re.sub(r"data:image[^\"]+", "", html)
    points = csv.DictReader((out / "plots" / "sweep-alpha.csv").open())
    assert {row["alpha"] for row in points} == {"0.3", "0.6", "1.0"}


def test_published_scores_stand_beside_aff_wild2_alone(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(words("train", data, out)) == 0
    env = json.loads((out / "env.json").read_text())
    published = published_scores(EXPR, 279_749, 70)
    env["data"] |= {"published": published, "caveat": "", "synthetic": False}
    (out / "env.json").write_text(json.dumps(env))
    assert main(["report", "--runs", str(out), "--out", str(tmp_path / "report")]) == 0
    report = (tmp_path / "report" / "report.md").read_text()
    assert "| - | EXPR | Lin et al. 2024 | unstated | .360 |" in report
    assert "| - | EXPR | official baseline (VGG16) | unstated | .250 |" in report


@pytest.mark.parametrize(
    ("frames", "videos"), [(270_000, 70), (279_749, 69), (284_231, 70), (0, 0)]
)
def test_published_scores_are_of_the_whole_validation_split_alone(frames, videos):
    assert published_scores(EXPR, frames, videos) == {}
    assert published_scores(replace(EXPR, name="mine"), 279_749, 70) == {}


def test_spread_is_over_seeds_and_groups_differ_in_more(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(words("train", data, out, "--num-seeds", "3")) == 0
    folder = RunFolder(out)
    records = folder.read_records()
    (group,) = group_by_settings(records)
    found = spread(folder, group, "last")
    values = [record.scores["last"].headline for record in records]
    assert found.mean == pytest.approx(sum(values) / 3)
    assert found.sd == pytest.approx((sum((v - found.mean) ** 2 for v in values) / 2) ** 0.5)
    assert found.interval_95[0] <= found.interval_95[1]
    assert spread(folder, group, "cv") is None


def test_reports_and_sweeps_refuse_what_makes_no_sense(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    assert main(["report", "--runs", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
    for more, match in (
        (["--scheduler", "asha"], "add --heads-per-trial 1"),
        (
            ["--scheduler", "asha", "--heads-per-trial", "1", "--select", "cv"],
            "does not go with --select cv",
        ),
        (["--gpus-per-trial", "2"], "--gpus-per-trial 2.0: expected 0 to 1"),
        (["--track", "mlflow"], "--track mlflow: not installed"),
        (["--heads-per-trial", "0"], "--heads-per-trial 0"),
    ):
        assert main(sweep(data, tmp_path / "out", *more)) == 2
        assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_written_fails_before_ray_starts(data, tmp_path, monkeypatch, capsys):
    def start(address):
        raise AssertionError("Ray was started")

    monkeypatch.setattr("raffect.training.tune.ray_session", start)
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert main(sweep(data, out)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"raffect tune: {out}")
    assert "Not a directory" in error


def test_tunes_callback_pickles_while_a_live_line_is_shown(monkeypatch):
    from ray import cloudpickle

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("tune", 10) as progress:
        with pytest.raises(TypeError, match="cannot pickle"):
            cloudpickle.dumps(progress)  # which is why it must not hold one
        with watched(progress, [[PlannedHead(BASE)] * 2]) as watch:
            cloudpickle.dumps(watch)
            move_progress(watch.name, 0, 0, {"epoch": 1, "steps": 3, "note": "epoch 1"})
        assert progress.done == 6
        with watched(progress, [["a"], ["b"]]) as watch:
            watch.on_trial_complete(0, [], SimpleNamespace(config={"batch": 1}))
            assert ended_batches(watch.name) == [["b"]]


def test_a_trial_that_goes_on_or_repeats_epochs_is_counted_once():
    with (
        Progress("tune", 60) as progress,
        watched(progress, [[PlannedHead(BASE)] * 2] * 2) as watch,
    ):
        for epoch in (4, 5, 4, 5, 6):  # three by an earlier run; then it died and repeated two
            move_progress(watch.name, 0, 0, {"epoch": epoch, "steps": 3})
        assert (progress.earlier, progress.counted) == (3 * 6, 3 * 6)
        move_progress(watch.name, 0, 1, {"epoch": 1, "steps": 3})
        move_progress(watch.name, 1, 1, {})
        assert (progress.earlier, progress.counted, progress.done) == (18, 24, 42)


def test_tracked_curves_of_heads_have_names_of_their_own():
    settings = {"loss.alpha": 1.0, "sam.rho": 0.0, "loss.weighting": "inverse"}
    recipes = add_baseline(list_recipes(with_settings(BASE, settings), ["seed=0,1"], 0))
    names = {_axis_text(PlannedHead(recipe), ["seed"]) for recipe in recipes}
    assert len(names) == len(recipes) == 4


def record_of(head, cv_epoch=None):
    return HeadRecord(
        id=head.id,
        task=EXPR,
        recipe=head.recipe,
        fingerprint="f",
        status="done",
        cv_epoch=cv_epoch,
        curve=Curve(),
        chance=Chance(answer="always Other", majority=0.07),
    )


@pytest.fixture
def killed(tmp_path):
    """A run of twelve heads that was killed, and its batches.

    The first batch was killed between writing its records and deleting its state, the second after
    it had saved its state, the third before.
    """
    folder = RunFolder(tmp_path)
    recipes = list_recipes(BASE, ["loss.alpha=0.1:0.6:0.1", "seed=0,1"], 0)
    batches = plan_batches(folder, [PlannedHead(recipe) for recipe in recipes], 4, one_seed=False)
    assert [len(batch) for batch in batches] == [4, 4, 4]
    for head in batches[0]:
        folder.write_record(record_of(head))
    for batch in batches:
        folder.note_batch(dict.fromkeys(ids(batch), 0))
    for batch in batches[:2]:
        folder.state_path(ids(batch)).touch()
    return folder, batches


def test_a_run_that_goes_on_keeps_batches_under_way_and_repeats_nothing(killed):
    folder, batches = killed
    new = PlannedHead(with_settings(BASE, {"seed": 9}))
    larger = [*(head for batch in batches for head in batch), new]

    # The batch under way goes on as it is; the others are cut anew
    again = plan_batches(folder, larger, 2, one_seed=False)
    assert again[0] == batches[1]
    assert not folder.state_path(ids(batches[0])).exists()
    assert sorted(ids(*again[1:])) == sorted(ids(batches[2], [new]))
    assert all(len(batch) <= 2 for batch in again[1:])
    for batch in plan_batches(folder, larger, 3, one_seed=True)[1:]:
        assert len({head.recipe.seed for head in batch}) == 1

    # A run of fewer heads came in between and was killed too: one of the two batches goes on
    folder.note_batch({batches[1][0].id: 0})
    folder.state_path([batches[1][0].id]).touch()
    planned = ids(*plan_batches(folder, larger, 2, one_seed=False))
    assert len(planned) == len(set(planned)) == len(larger) - len(batches[0])


def test_heads_that_keep_another_epoch_than_cross_validation_chose_are_trained_again(killed):
    folder, (recorded, under_way, _) = killed

    # A batch under way begins again
    cv_epochs = dict.fromkeys(ids(under_way), 7)
    plan_batches(folder, under_way, 4, False, cv_epochs)
    assert not folder.state_path(ids(under_way)).exists()

    # So does every head but the one whose record has the epoch
    folder.write_record(record_of(recorded[0], cv_epoch=5))
    cv_epochs = dict.fromkeys(ids(recorded), 5)
    planned = ids(*plan_batches(folder, recorded, 4, False, cv_epochs))
    assert recorded[1].id in planned
    assert recorded[0].id not in planned


@pytest.mark.cluster
def test_a_trial_that_keeps_dying_ends_the_sweep_with_one_line(
    data, tmp_path, monkeypatch, capfd, local_ray
):
    def die(trial, sweep):
        os._exit(1)

    monkeypatch.setattr("raffect.training.tune.run_trial", die)
    monkeypatch.setattr("raffect.training.tune._MAX_FAILURES", 1)
    assert main(sweep(data, tmp_path / "run", "--heads-per-trial", "2")) == 2
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    died = r"a trial died 2 times \(.*died\.\)"
    assert re.match(
        rf"raffect tune: 6 of 6 heads are not finished: {died}; finished ones are kept",
        errors.splitlines()[-1],
    )


def test_asha_stops_poor_heads_and_says_so(data, tmp_path, capsys, local_ray):
    # ASHA stops some of six heads early
    out, space = tmp_path / "sweep", ("optim.lr=1e-6,1e-2", "seed=0:2")
    asha = ["--heads-per-trial", "1", "--scheduler", "asha", "--no-save-heads"]
    assert main(sweep(data, out, *asha, "--epochs", "9", "--no-baseline", space=space)) == 0
    records = read_heads(out)
    assert len(records) == 6
    stopped = [record for record in records if record["status"] == "stopped"]
    assert 1 <= len(stopped) <= 5
    assert all(len(record["curve"]["lr"]) < 9 for record in stopped)
    assert all(len(record["curve"]["lr"]) == 9 for record in records if record["status"] == "done")

    # The scores say that they are of those it kept
    text = capsys.readouterr().out
    assert f"{len(stopped)} stopped and left out" in text
    assert "means over the others are optimistic" in text
    assert not (out / "weights").exists()
    assert main(["report", "--runs", str(out)]) == 0
    assert "heads that ASHA kept" in (out / "report.md").read_text()
    assert "nothing was chosen on validation" not in (out / "report.md").read_text()

    # Without a scheduler all are trained to the end; weights cannot be saved afterwards
    whole = ["--heads-per-trial", "3", "--epochs", "9", "--no-baseline"]
    assert main(sweep(data, out, *whole, space=space)) == 2
    assert "trained with --no-save-heads" in capsys.readouterr().err
    assert main(sweep(data, out, *whole, "--no-save-heads", space=space)) == 0
    assert {record["status"] for record in read_heads(out)} == {"done"}


def test_settings_in_which_plain_erm_differs_are_named(data, tmp_path, capsys, local_ray):
    run, more = tmp_path / "run", ["--no-save-heads", "--space", "seed=0"]
    assert main(words("tune", data, run, *more, recipe="weighted")) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("alpha 1")]
    named = [("weighting inverse" in row, "weighting none (ERM)" in row) for row in rows]
    assert named == [(True, False), (False, True)]
    assert len({json.dumps(row["settings"]) for row in scores_of(run)["settings"]}) == 2


def test_a_run_that_goes_on_streams_as_it_began(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.recorded_stream("auto") is None
    (tmp_path / "config.toml").write_text('stream = "always"')
    assert (folder.recorded_stream("auto"), folder.recorded_stream("never")) == ("always", None)


LISTEN = """
import signal, sys
# A background shell ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
from raffect.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.cluster
def test_ctrl_c_interrupts_a_sweep_and_stops_no_head_for_good(data, tmp_path):
    run = tmp_path / "run"
    asha = ["--scheduler", "asha", "--heads-per-trial", "1", "--epochs", "400", "--no-baseline"]
    command = sweep(data, run, *asha, space=("seed=0:2",))
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 120
        while not list((run / "heads").glob("*.json")) and time.monotonic() < end:
            time.sleep(0.05)
        assert list((run / "heads").glob("*.json")), "no epoch ended"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert {record["status"] for record in read_heads(run)} == {"running"}


def test_asha_lets_the_longest_heads_of_a_space_end():
    recipes = list_recipes(BASE, ["epochs=16,64"], 0)
    config = TuneConfig(
        task="expr",
        bank=Path("b"),
        labels=Path("l"),
        out=Path("o"),
        scheduler="asha",
        heads_per_trial=1,
    )
    assert _build_scheduler(config, [[PlannedHead(recipe)] for recipe in recipes])._max_t == 64


def test_a_setting_is_compared_with_the_erm_that_differs_from_it_least():
    def group(**settings):
        return [PlannedHead(with_settings(BASE, PLAIN_ERM | settings))]

    slow, fast = group(**{"optim.lr": 1e-4}), group(**{"optim.lr": 1e-2})
    tail = group(**{"optim.lr": 1e-2, "loss.alpha": 0.3})
    other = group(**{"optim.lr": 1e-3, "loss.alpha": 0.3})
    assert Baselines([slow, fast, tail]).beside(tail) is fast
    assert Baselines([slow, fast, other]).beside(other) is None  # which of the two?
    assert Baselines([slow, other]).beside(other) is slow
    assert Baselines([slow, fast]).beside(slow) is None


def test_erm_is_plain_whatever_the_sweep_is_of():
    erm = {"loss.alpha": 1.0, "sam.rho": 0.0}
    classes = {"loss.weighting": "effective", "loss.logit_adjustment": 1.0}
    weighted = with_settings(BASE, erm | classes)
    assert [is_erm(recipe) for recipe in add_baseline([weighted])] == [False, True]


def test_pictures_of_runs_have_names_of_their_own():
    stems = name_pictures(["\u8868\u60c5", "\u6570\u636e", "a b", "a_b", "x"])
    assert len(set(stems)) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", stem) for stem in stems)
    assert len(set(name_pictures(["figure2", "figure2", "1-figure2"]))) == 3
    assert name_pictures(["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.4123, ".412"), (0.0, ".000"), (1.0, "1.000"), (None, "-")]
)
def test_scores_are_written_as_the_field_does(value, text):
    assert short(value) == text


def test_differences_have_a_sign():
    assert [signed(value) for value in (0.0123, -0.4, 0.0)] == ["+.012", "-.400", "+.000"]
