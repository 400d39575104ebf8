"""The whole demo once, small, and once more on its own results."""

import json

import pytest

from raffect.cli import main


@pytest.mark.cluster
def test_the_demo_shows_that_features_carry_the_signal(tmp_path, local_ray, capsys):
    out = tmp_path / "demo"
    command = ["demo", "--out", str(out), "--frames", "1200"]
    assert main(command) == 0
    text = capsys.readouterr().out
    # Scores against the chance level.
    names = ("expr-alpha", "au")
    sweep, run = (json.loads((out / name / "metrics.json").read_text()) for name in names)
    best = max(row["scores"]["last"]["mean"] for row in sweep["settings"])
    assert best > 3 * sweep["chance"]["majority"]
    assert run["settings"][0]["scores"]["last"]["mean"] > run["chance"]["majority"]
    # What the demo prints and writes.
    assert len(sweep["settings"]) == 7
    assert "caveat: embedded encoder, not CLIP; drawn faces" in text
    assert "sound and complete" in text
    plots = ("expr-alpha-alpha.png", "expr-alpha-alpha.csv", "au-labels.png")
    for name in ("report.html", "report.md", *(f"plots/{plot}" for plot in plots)):
        assert (out / name).stat().st_size > 0
    assert "embedded encoder, not CLIP; drawn faces" in (out / "report.md").read_text()
    # Again: nothing is trained a second time.
    heads = out / "expr-alpha" / "heads"
    times = {path: path.stat().st_mtime_ns for path in heads.glob("*.json")}
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in heads.glob("*.json")} == times


def test_an_out_that_cannot_be_written_fails_before_ray_starts(tmp_path, monkeypatch, capsys):
    def start(address):
        raise AssertionError("Ray was started")

    monkeypatch.setattr("raffect.pipelines.demo.ray_session", start)
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert main(["demo", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"raffect demo: {out}: Not a directory")
