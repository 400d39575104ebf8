"""A bank, runs and heads that raffect of November 2026 wrote (tests/fixtures/first): every later version reads them.

They were made by: synth --frames 240 --seed 11, one frame overwritten with text, prepare, extract --shard-rows 64, then
train paper --task expr|au --epochs 4 --head.width 12 --head.depth 2 --batch-size 16 --num-seeds 2 --select cv --folds 2,
and tune with --space loss.alpha=0.3,0.6,1 seed=0,1.
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
    verdict = verify(Bank(FIRST / "bank"), read_manifest(FIRST / "manifest.parquet"))
    assert verdict.complete
    assert (verdict.rows, verdict.rejects) == (231, 1)


@pytest.mark.parametrize(
    ("task", "frames", "digest"), [(EXPR, 144, "c3cec926b6e9d412"), (AU, 137, "46f10d42838dc3f7")]
)
def test_features_of_the_first_bank_are_what_they_were(task, frames, digest):
    features = read_features(
        Bank(FIRST / "bank"), read_labels(FIRST / "labels" / f"{task.name}.parquet"), task, "train"
    )
    assert len(features.x) == frames
    assert (
        hashlib.sha256(
            features.x.tobytes() + np.ascontiguousarray(features.y).tobytes()
        ).hexdigest()[:16]
        == digest
    )


@pytest.mark.parametrize("run", ["expr", "au"])
def test_a_first_run_given_again_trains_nothing_and_prints_the_scores_it_had(run, first, capsys):
    records = {path.name: path.read_bytes() for path in (first / run / "members").glob("*.json")}
    before = json.loads((first / run / "metrics.json").read_text())
    words = [
        "train",
        str(first / run / "config.toml"),
        "--bank",
        str(first / "bank"),
        "--labels",
        str(first),
        "--out",
        str(first / run),
    ]
    assert main(words) == 0
    after = json.loads((first / run / "metrics.json").read_text())
    assert {
        path.name: path.read_bytes() for path in (first / run / "members").glob("*.json")
    } == records
    names = {"last": "last", "best": "best", "chosen": "cv"}
    assert {name: part["mean"] for name, part in after["settings"][0]["scores"].items()} == {
        names[name]: part["mean"] for name, part in before["scores"].items()
    }
    assert "val-cv" in capsys.readouterr().out


def test_a_first_sweep_given_again_trains_nothing(first, capsys):
    records = {
        path.name: path.read_bytes() for path in (first / "sweep" / "members").glob("*.json")
    }
    assert (
        main(
            [
                "tune",
                str(first / "sweep" / "config.toml"),
                "--bank",
                str(first / "bank"),
                "--labels",
                str(first),
                "--out",
                str(first / "sweep"),
            ]
        )
        == 0
    )
    assert {
        path.name: path.read_bytes() for path in (first / "sweep" / "members").glob("*.json")
    } == records
    assert "8 heads" in capsys.readouterr().out


def test_a_new_recipe_is_trained_on_the_first_bank(first, capsys):
    words = [
        "--epochs",
        "1",
        "--head.width",
        "8",
        "--head.depth",
        "1",
        "--batch-size",
        "16",
        "--out",
        str(first / "new"),
        "--device",
        "cpu",
    ]
    assert (
        main(
            [
                "train",
                "paper",
                "--task",
                "expr",
                "--bank",
                str(first / "bank"),
                "--labels",
                str(first),
                *words,
            ]
        )
        == 0
    )
    assert "val-last" in capsys.readouterr().out


@pytest.mark.parametrize("run", ["expr", "au"])
def test_first_heads_score_what_they_scored(run, first, capsys):
    out = first / "judged"
    assert (
        main(
            [
                "evaluate",
                "--run",
                str(first / run),
                "--bank",
                str(first / "bank"),
                "--labels",
                str(first),
                "--out",
                str(out),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    capsys.readouterr()
    recorded = {
        record["id"]: record["scores"]["last"]["macro_f1"]
        for record in _records(first / run)
        if record["fold"] is None
    }
    found = {
        head["id"]: head["score"]["headline"]
        for head in json.loads((out / "metrics.json").read_text())["heads"]
    }
    assert found == pytest.approx(
        recorded, abs=0.02
    )  # another processor's last bits may move a frame


def test_first_runs_and_sweeps_are_reported(first, capsys):
    assert (
        main(
            [
                "report",
                "--runs",
                str(first / "sweep"),
                str(first / "expr"),
                str(first / "au"),
                "--out",
                str(first / "report"),
            ]
        )
        == 0
    )
    page = (first / "report" / "report.html").read_text()
    assert "Figure 2" in page
    assert page.count("data:image/png") == 9
    capsys.readouterr()


def _records(run: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((run / "members").glob("*.json"))]
