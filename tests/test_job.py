"""Jobs: a command of the command line, and a last line that a program can read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.learning import make_data, words

ROOT = Path(__file__).parents[1]


def run(command, *words, cwd=ROOT):
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{command}.py"), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=200,
    )
    return done, json.loads(done.stdout.splitlines()[-1])


def test_a_job_that_trained_ends_with_scores_run_and_report(tmp_path):
    data = make_data(tmp_path / "data")
    command, *rest = words("train", data, tmp_path / "run", "--batch-size", "32", recipe="erm")
    done, result = run(command, *rest, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (result["job"], result["status"], result["exit"]) == ("train", "done", 0)
    assert result["caveat"] == "made by a test; drawn faces"
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert result["headline"] == metrics["settings"][0]
    assert result["chance"] == metrics["chance"]
    assert Path(result["report"]) == tmp_path / "run" / "report.html"
    assert Path(result["report"]).is_file()


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("--manifest gone.parquet --bank b", "gone.parquet: no such manifest"),
        ("--manifest m --bank b --num-actors -1", "--num-actors -1: expected 0"),
    ],
)
def test_a_job_that_failed_ends_with_the_line_that_says_why(tmp_path, line, what):
    done, result = run("extract", *line.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert result["status"] == "failed"
    assert what in result["error"]
    assert what in done.stderr


def test_a_wrong_flag_and_help_are_results_too(tmp_path):
    done, result = run("tune", "paper", "--no-such-flag", cwd=tmp_path)
    assert done.returncode == result["exit"] == 2
    assert "no-such-flag" in result["error"] or "required" in result["error"]
    done, result = run("extract", "--manifest", "gone", "--bank", "b", "--debug", cwd=tmp_path)
    assert done.returncode == result["exit"] == 1
    assert "gone: no such manifest" in result["error"]
    done, result = run("extract", "--help", cwd=tmp_path)
    assert done.returncode == result["exit"] == 0
    assert result == {"job": "extract", "status": "done", "exit": 0}
