"""Every later version reads the bank, runs and heads that raffect of November 2026 wrote.

They are in tests/fixtures/first, and were made by: synth --frames 240 --seed 11, one frame
overwritten with text, prepare, extract --shard-rows 64, then train paper --task expr|au --epochs 4
--head.width 12 --head.depth 2 --batch-size 16 --num-seeds 2 --select cv --folds 2, and tune with
--space loss.alpha=0.3,0.6,1 seed=0,1.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.bank.verify import verify
from raffect.cli import main
from raffect.datasets.affwild2.tasks import AU, EXPR
from raffect.datasets.labels import read_labels
from raffect.datasets.manifest import read_manifest

FIRST = Path(__file__).parent / "fixtures" / "first"


@pytest.fixture
def first(tmp_path):
    """A copy to work in."""
    return Path(shutil.copytree(FIRST, tmp_path / "first"))


def test_the_first_bank_is_sound_and_complete():
    verification = verify(Bank(FIRST / "bank"), read_manifest(FIRST / "manifest.parquet"))
    assert verification.complete
    assert (verification.rows, verification.rejects) == (231, 1)


@pytest.mark.parametrize(
    ("task", "frames", "digest"), [(EXPR, 144, "c3cec926b6e9d412"), (AU, 137, "46f10d42838dc3f7")]
)
def test_features_of_the_first_bank_are_what_they_were(task, frames, digest):
    labels = read_labels(FIRST / "labels" / f"{task.name}.parquet")
    features = read_features(Bank(FIRST / "bank"), labels, task, "train")
    assert len(features.x) == frames
    content = features.x.tobytes() + np.ascontiguousarray(features.y).tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == digest


@pytest.mark.parametrize("run", ["expr", "au"])
def test_a_first_run_given_again_trains_nothing_and_prints_the_scores_it_had(run, first, capsys):
    records = _bytes_of_records(first / run)
    before = json.loads((first / run / "metrics.json").read_text())
    recipe = str(first / run / "config.toml")
    assert main(["train", recipe, *_data(first), "--out", str(first / run)]) == 0
    after = json.loads((first / run / "metrics.json").read_text())
    assert _bytes_of_records(first / run) == records
    names = {"last": "last", "best": "best", "chosen": "cv"}
    expected = {names[name]: part["mean"] for name, part in before["scores"].items()}
    found = {name: part["mean"] for name, part in after["settings"][0]["scores"].items()}
    assert found == expected
    assert "val-cv" in capsys.readouterr().out


def test_a_first_sweep_given_again_trains_nothing(first, capsys):
    records = _bytes_of_records(first / "sweep")
    recipe = str(first / "sweep" / "config.toml")
    assert main(["tune", recipe, *_data(first), "--out", str(first / "sweep")]) == 0
    assert _bytes_of_records(first / "sweep") == records
    assert "8 heads" in capsys.readouterr().out


def test_a_new_recipe_is_trained_on_the_first_bank(first, capsys):
    small = "--epochs 1 --head.width 8 --head.depth 1 --batch-size 16 --device cpu"
    words = ["train", "paper", "--task", "expr", *_data(first), "--out", str(first / "new")]
    assert main(words + small.split()) == 0
    assert "val-last" in capsys.readouterr().out


@pytest.mark.parametrize("run", ["expr", "au"])
def test_first_heads_score_what_they_scored(run, first, capsys):
    out = first / "judged"
    words = ["evaluate", "--run", str(first / run), *_data(first), "--out", str(out)]
    assert main([*words, "--device", "cpu"]) == 0
    capsys.readouterr()
    recorded = {
        record["id"]: record["scores"]["last"]["macro_f1"]
        for record in _records(first / run)
        if record["fold"] is None
    }
    heads = json.loads((out / "metrics.json").read_text())["heads"]
    found = {head["id"]: head["score"]["headline"] for head in heads}
    # The last bits of another processor may move a frame.
    assert found == pytest.approx(recorded, abs=0.02)


def test_first_runs_and_sweeps_are_reported(first, capsys):
    runs = [str(first / name) for name in ("sweep", "expr", "au")]
    assert main(["report", "--runs", *runs, "--out", str(first / "report")]) == 0
    page = (first / "report" / "report.html").read_text()
    assert "Figure 2" in page
    assert page.count("data:image/png") == 9
    capsys.readouterr()


def _data(first: Path) -> list[str]:
    return ["--bank", str(first / "bank"), "--labels", str(first)]


def _bytes_of_records(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "members").glob("*.json")}


def _records(run: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((run / "members").glob("*.json"))]
