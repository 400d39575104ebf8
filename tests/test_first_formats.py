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
import pyarrow as pa
import pytest

from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.bank.verify import verify
from raffect.cli import main
from raffect.datasets.affwild2.tasks import AU, EXPR
from raffect.datasets.labels import read_labels
from raffect.datasets.listing import list_images
from raffect.datasets.manifest import read_manifest, write_manifest
from raffect.datasets.synthetic.tree import write_synthetic

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


CONTINUE = "--encoder.model raffect-faces --encoder.weights embedded"
FIRST_DIGEST = "2fc8d32a20db46a21cc3f65520c3736f5a914fd35cfaa7a912c232d588339ad2"


def test_the_first_bank_given_again_stays_as_it_is(first, capsys):
    whole = _bytes_of(first / "bank")
    words = ["--manifest", str(first / "manifest.parquet"), "--bank", str(first / "bank")]
    assert main(["extract", *words, *CONTINUE.split(), "--max-reject-share", "0.5"]) == 0
    assert _bytes_of(first / "bank") == whole
    assert Bank(first / "bank").read_file().format == 1
    assert Bank(first / "bank").digest() == FIRST_DIGEST


def test_a_first_bank_that_is_raised_to_format_2_has_the_fingerprint_that_its_runs_know(first):
    bank = Bank(first / "bank")
    bank.claim(bank.read_identity(), 2)
    assert bank.read_file().format == 2
    assert bank.digest() == FIRST_DIGEST


@pytest.mark.cluster
def test_the_first_bank_is_continued_as_one_of_format_2_and_keeps_its_shards(
    first, tree, local_ray
):
    # Its own pictures, drawn again, and those of another data set
    write_synthetic(first / "faces", 240, 11)
    old = read_manifest(first / "manifest.parquet").to_pylist()
    faces = first / "faces" / "cropped_aligned"
    new = list_images([tree / "cropped_aligned"]).table.to_pylist()
    rows = [row | {"root": str(faces)} for row in old]
    rows += [row | {"video": "new" + row["video"]} for row in new[:40]]
    rows.sort(key=lambda row: (row["video"], row["frame"]))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    table = pa.table(columns | {"frame": pa.array(columns["frame"], pa.int32())})
    write_manifest(table, first / "more.parquet", synthetic=True)
    # The same command, with 40 frames more
    bank, before = Bank(first / "bank"), _bytes_of(first / "bank")
    assert bank.commit_path(3).exists()
    bank.commit_path(3).unlink()
    words = ["--manifest", str(first / "more.parquet"), "--bank", str(bank.path)]
    assert main(["extract", *words, *CONTINUE.split(), "--max-reject-share", "0.5"]) == 0
    found = verify(Bank(bank.path), read_manifest(first / "more.parquet"))
    assert found.complete, found
    assert (found.rows, found.rejects) == (271, 1)
    # Old shards are what they were; new ones have their own names and digests of their pictures
    after, commits = _bytes_of(first / "bank"), bank.read_commits()
    kept = [name for name in before if "000003" not in name and name != "bank.json"]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert [bool(record.pictures) for record in commits.values()] == [False] * 3 + [True] * 2
    assert commits[3].features_file.startswith("shards/000003-")
    # bank.json says so to an older raffect, which reads format 1 alone
    content = json.loads((bank.path / "bank.json").read_text())
    assert content["format"] == 2
    assert content["identity"]["caveat"] == "embedded encoder, not CLIP"
    assert content["identity"]["arithmetic"] == 1
    assert content["threads"] >= 1


def _bytes_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "runs"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
