"""Sweeps as a user runs them: what is trained, what a second run repeats, what is refused."""

import csv
import json
import os
import re
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from raffect.cli import main
from raffect.datasets.affwild2.tasks import EXPR, published_scores
from raffect.runs.folder import RunFolder
from raffect.runs.spread import group_by_settings, spread
from tests.helpers.learning import (
    scores_of,
    sweep_words,
    words,
    write_times,
)


def test_a_sweep_trains_each_head_once_goes_on_and_is_reported(data, tmp_path, capsys, local_ray):
    # Two settings of two seeds, and plain ERM
    out = tmp_path / "sweep"
    assert main(sweep_words(data, out, "--heads-per-trial", "3")) == 0
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
    kept = write_times(out / "heads")
    assert main(sweep_words(data, out, "--heads-per-trial", "3")) == 0
    again = json.loads(file.read_text())
    assert again["curve"] == lost["curve"]
    assert again["scores"] == lost["scores"]
    assert len(write_times(out / "heads").items() & kept.items()) >= 3, (
        "other batches were trained again"
    )

    # A larger space trains only what is new
    capsys.readouterr()
    kept = write_times(out / "heads")
    larger = ("loss.alpha=0.3,0.6,1", "seed=0,1")
    assert main(sweep_words(data, out, "--heads-per-trial", "1", space=larger)) == 0
    assert len(write_times(out / "heads")) == 8
    assert write_times(out / "heads").items() >= kept.items()

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
        assert main(sweep_words(data, tmp_path / "out", *more)) == 2
        assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_written_fails_before_ray_starts(data, tmp_path, monkeypatch, capsys):
    def start(address):
        raise AssertionError("Ray was started")

    monkeypatch.setattr("raffect.training.tune.ray_session", start)
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert main(sweep_words(data, out)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"raffect tune: {out}")
    assert "Not a directory" in error


@pytest.mark.cluster
def test_a_trial_that_keeps_dying_ends_the_sweep_with_one_line(
    data, tmp_path, monkeypatch, capfd, local_ray
):
    def die(trial, sweep):
        os._exit(1)

    monkeypatch.setattr("raffect.training.tune.run_trial", die)
    monkeypatch.setattr("raffect.training.tune._MAX_FAILURES", 1)
    assert main(sweep_words(data, tmp_path / "run", "--heads-per-trial", "2")) == 2
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    died = r"a trial died 2 times \(.*died\.\)"
    assert re.match(
        rf"raffect tune: 6 of 6 heads are not finished: {died}; finished ones are kept",
        errors.splitlines()[-1],
    )


@pytest.mark.cluster
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
