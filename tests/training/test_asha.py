"""Sweeps whose poor heads are stopped early, and sweeps that are interrupted."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raffect.cli import main
from raffect.config import TuneConfig
from raffect.recipe import Recipe
from raffect.runs.records import PlannedHead
from raffect.training.space import list_recipes
from raffect.training.tune import _build_scheduler
from tests.helpers.learning import read_heads, sweep_words

BASE = Recipe(task="expr")


@pytest.mark.cluster
def test_asha_stops_poor_heads_and_says_so(data, tmp_path, capsys, local_ray):
    # ASHA stops some of six heads early
    out, space = tmp_path / "sweep", ("optim.lr=1e-6,1e-2", "seed=0:2")
    asha = ["--heads-per-trial", "1", "--scheduler", "asha", "--no-save-heads"]
    assert main(sweep_words(data, out, *asha, "--epochs", "9", "--no-baseline", space=space)) == 0
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
    assert main(sweep_words(data, out, *whole, space=space)) == 2
    assert "trained with --no-save-heads" in capsys.readouterr().err
    assert main(sweep_words(data, out, *whole, "--no-save-heads", space=space)) == 0
    assert {record["status"] for record in read_heads(out)} == {"done"}


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
    command = sweep_words(data, run, *asha, space=("seed=0:2",))
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 300
        while not list((run / "heads").glob("*.json")) and time.monotonic() < end:
            time.sleep(0.05)
        assert list((run / "heads").glob("*.json")), "no epoch ended"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=200)
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
