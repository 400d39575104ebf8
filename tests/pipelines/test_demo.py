"""The whole demo once, small, and again on what it left."""

import json

from raffect.cli import main


def test_the_demo_shows_that_features_carry_the_signal(tmp_path, local_ray, capsys):
    out = tmp_path / "demo"
    words = ["demo", "--out", str(out), "--frames", "1200"]
    assert main(words) == 0
    text = capsys.readouterr().out
    sweep, run = (
        json.loads((out / name / "metrics.json").read_text()) for name in ("expr-alpha", "au")
    )
    assert (
        max(row["scores"]["last"]["mean"] for row in sweep["settings"])
        > 3 * sweep["chance"]["majority"]
    )
    assert run["settings"][0]["scores"]["last"]["mean"] > run["chance"]["majority"]
    assert len(sweep["settings"]) == 7
    assert "caveat: embedded encoder, drawn faces" in text
    assert "sound and complete" in text
    for name in (
        "report.html",
        "report.md",
        "plots/expr-alpha-alpha.png",
        "plots/expr-alpha-alpha.csv",
        "plots/au-labels.png",
    ):
        assert (out / name).stat().st_size > 0
    assert "embedded encoder, drawn faces" in (out / "report.md").read_text()
    stamps = {
        path: path.stat().st_mtime_ns for path in (out / "expr-alpha" / "heads").glob("*.json")
    }
    assert main(words) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {
        path: path.stat().st_mtime_ns for path in (out / "expr-alpha" / "heads").glob("*.json")
    } == stamps
