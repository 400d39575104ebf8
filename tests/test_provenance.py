"""What made a result is in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from raffect.provenance import Provenance, describe_run, git_commit

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_a_checkout_names_its_commit():
    words = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    assert (git_commit() or "").removesuffix("+changes") == head
    assert describe_run().git_commit == git_commit()


def test_a_run_says_when_where_and_with_what():
    run = describe_run()
    assert run.versions["raffect"] == "0.1.0"
    assert run.versions["python"].count(".") == 2
    assert run.time.endswith("+00:00")
    assert run.machine.cores >= 1


def test_names_that_are_not_utf8_are_kept_as_text(monkeypatch):
    monkeypatch.setattr("sys.argv", ["raffect", "train", "caf\udce9"])
    run = describe_run()
    assert Provenance.from_json(run.to_bytes(), "env.json", "") == run


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["/opt/venv/bin/raffect", "train", "paper"], "raffect train paper"),
        (["jobs/train.py", "paper", "--out", "my run"], "raffect train paper --out 'my run'"),
        (["/tmp/ray/working_dir/jobs/train.py", "erm"], "raffect train erm"),
        (["/x/raffect/cli.py", "train", "erm"], "raffect train erm"),
        (["/x/raffect/__main__.py", "train", "erm"], "raffect train erm"),
        (["mine/train.py", "7"], "python mine/train.py 7"),
        (["jobs/tune.py", "erm"], "python jobs/tune.py erm"),
        ([], "raffect"),
    ],
)
def test_a_command_can_be_typed_again_also_that_of_a_job(monkeypatch, words, line):
    monkeypatch.setattr("sys.argv", words)
    assert describe_run().command_line("train") == line
