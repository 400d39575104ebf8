"""Heads of joined banks on new frames: each part's encoder is run, and its vectors joined."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import raffect
from raffect.bank.format import Bank
from raffect.cli import main
from raffect.config import EncoderConfig, EvaluateConfig, ExtractConfig, RobustConfig
from raffect.datasets.affwild2.tasks import EXPR
from raffect.datasets.frames import read_frames
from raffect.datasets.manifest import read_manifest, write_manifest
from raffect.datasets.synthetic.video import write_video
from raffect.extraction.asked_encoder import load_clip
from raffect.extraction.extract import extract
from raffect.heads.checkpoint import load_head
from raffect.predictions.table import read_facts, read_predictions
from tests.helpers.banks import TINY
from tests.helpers.commands import error_line
from tests.helpers.sample import sampled

pytestmark = pytest.mark.cluster

VIEWS = {"plain": TINY, "flip": replace(TINY, view="flip")}


@pytest.fixture(scope="module")
def world(prepared, tmp_path_factory, local_ray) -> Path:
    """Banks of two views of some frames, and a head on both of them; a video of a second."""
    folder = tmp_path_factory.mktemp("joined")
    whole = read_manifest(prepared)
    manifest = whole.filter(pa.array(whole["frame"].to_numpy() % 4 == 0))
    write_manifest(manifest, folder / "manifest.parquet", True)
    for name, encoder in VIEWS.items():
        extract(ExtractConfig(manifest=folder, bank=folder / name, encoder=encoder))
    banks = ["--bank", str(folder / "plain"), str(folder / "flip")]
    more = ["--labels", str(prepared), "--task", "expr", "--epochs", "3"]
    assert main(["train", "erm", *banks, *more, "--out", str(folder / "both")]) == 0
    average = [*banks, "--how", "average", "--out", str(folder / "mean")]
    assert main(["train", "erm", *more, *average]) == 0
    write_video(folder / "person.mp4", 1.0, seed=1)
    return folder


def predict_words(world, run, out):
    boxes = ["--boxes", str(world / "person.mp4.boxes.csv")]
    inputs = [str(world / "person.mp4"), "--head", str(world / run)]
    return ["predict", *inputs, "--out", str(out), *boxes, "--allow-embedded"]


def test_heads_of_two_views_are_refused_before_a_face_is_looked_for(
    world, prepared, tmp_path, capsys
):
    words = ["--labels", str(prepared), "--task", "expr", "--epochs", "1"]
    runs = [str(tmp_path / name) for name in VIEWS]
    for name, run in zip(VIEWS, runs, strict=True):
        assert main(["train", "erm", "--bank", str(world / name), *words, "--out", run]) == 0
    capsys.readouterr()
    given = ["--head", *runs, "--out", str(tmp_path / "out"), "--allow-embedded"]
    assert main(["predict", str(world / "person.mp4"), *given]) == 2
    assert "are of different encoders or views; predict each alone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("run", sampled(["both", "mean"], ["both"]))
def test_a_video_is_predicted_from_the_features_of_all_parts(world, run, tmp_path):
    assert main(predict_words(world, run, tmp_path / "out")) == 0
    rows = read_predictions(tmp_path / "out" / "predictions.parquet").to_pylist()
    found = {row["frame"]: row for row in rows if row["status"] == "ok"}

    # By hand: crops, two encoders, numpy, one head
    boxes = ["--boxes", str(world / "person.mp4.boxes.csv")]
    faces = tmp_path / "faces"
    assert main(["faces", str(world / "person.mp4"), "--out", str(faces), *boxes]) == 0
    crops = read_manifest(faces)
    pixels = list(read_frames(crops))
    x = [load_clip(config, "cpu", 1).encode(pixels) for config in VIEWS.values()]
    x = np.concatenate(x, axis=1) if run == "both" else np.mean(np.float32(x), axis=0)
    (folder,) = (world / run / "weights").glob("*/last")
    head, card = load_head(folder)
    with torch.no_grad():
        p = torch.softmax(head(torch.from_numpy(x.astype(np.float32))), 1).numpy()
    assert len(found) == len(crops) > 10
    for number, frame in enumerate(crops["frame"].to_pylist()):
        ours = [found[frame][f"p_{name}"] for name in EXPR.outputs]
        assert ours == pytest.approx(p[number], abs=2e-3)

    # What it says of its encoders
    facts = read_facts(tmp_path / "out" / "predictions.parquet")
    assert facts.encoders == card.data.encoders
    assert facts.encoders[0].joined is not None
    assert set(facts.caveats) == {"embedded encoder, not CLIP", "drawn faces"}


@pytest.mark.release
def test_robust_damages_the_frames_of_all_parts(world, prepared, tmp_path):
    grid = {"corruptions": ("occlusion",), "strengths": (5,), "device": "cpu"}
    paths = {"manifest": world, "labels": prepared, "out": tmp_path / "robust"}
    runs = (world / "both",)
    result = raffect.robust(RobustConfig(run=runs, keep_banks=True, **grid, **paths))
    config = EvaluateConfig(run=runs, bank=world / "plain+flip", labels=prepared, device="cpu")
    (setting,) = raffect.evaluate(config).settings
    clean, damaged = (point for point in result.points if point.corruption != "mean")
    assert clean.score == setting.scores["last"]
    assert damaged.score.mean != clean.score.mean
    identity = Bank(tmp_path / "robust" / "banks" / "occlusion-5").require_identity()
    assert identity.caveat.endswith("frames damaged by occlusion of strength 5")
    assert all("corruption" in one.preprocess for one in identity.encoders)


def test_a_head_of_imported_vectors_and_weights_of_two_encoders_are_refused(
    world, prepared, tmp_path, capsys
):
    # Vectors of the same frames from elsewhere
    keys = read_manifest(world).select(["video", "frame"])
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(len(keys), 3)))
    key_file = tmp_path / "keys.parquet"
    pq.write_table(keys, key_file)
    files = ["--npy", str(tmp_path / "x.npy"), "--keys", str(key_file), "--name", "audio"]
    assert main(["bank", "import", *files, "--bank", str(world / "audio")]) == 0
    words = ["--labels", str(prepared), "--task", "expr", "--epochs", "1"]
    banks = ["--bank", str(world / "plain"), str(world / "audio")]
    assert main(["train", "erm", *banks, *words, "--out", str(world / "heard")]) == 0
    capsys.readouterr()
    assert main(predict_words(world, "heard", tmp_path / "out")) == 2
    assert "was trained on imported vectors (audio)" in error_line(capsys.readouterr().err)

    # Weights of one name cannot be those of two encoders
    other = EncoderConfig(model="raffect-faces", weights="random:1")
    extract(ExtractConfig(manifest=world, bank=world / "random", encoder=other))
    banks = ["--bank", str(world / "plain"), str(world / "random")]
    assert main(["train", "erm", *banks, *words, "--out", str(world / "two")]) == 0
    capsys.readouterr()
    more = ["--weights", "embedded"]
    assert main([*predict_words(world, "two", tmp_path / "out"), *more]) == 2
    assert "which are of different weights" in error_line(capsys.readouterr().err)
