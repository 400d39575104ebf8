"""Data sets end to end: drawn, prepared, encoded with the embedded encoder, trained on."""

from collections.abc import Callable
from pathlib import Path

import pytest

import raffect
from raffect.datasets.frames import read_frames
from raffect.datasets.synthetic.layouts import LAYOUTS
from raffect.encoders.tower import load_encoder
from tests.helpers.banks import TINY

SHORT = {"epochs": 1, "batch_size": 8}


def go_through(layout: str, folder: Path, num_frames: int, extract: Callable, **more):
    """Scores after one epoch on a drawn copy."""
    root = folder / "set"
    raffect.write_synthetic(root, num_frames, seed=1, workers=1, layout=layout)
    prepared = raffect.prepare(
        raffect.PrepareConfig(dataset="auto", root=root, out=folder / "data")
    )
    extract(prepared.manifest, folder / "bank")
    task = max(prepared.labels)
    config = raffect.TrainConfig.from_recipe(
        "erm" if task != "va" else "va",
        SHORT,
        bank=folder / "bank",
        labels=prepared.labels[task],
        out=folder / "run",
        device="cpu",
        **more,
    )
    is_official = config.folds == "official"
    return (raffect.train_on_official_folds if is_official else raffect.train)(config)


def encode(manifest: Path, bank_path: Path) -> None:
    """A bank without Ray."""
    bank, rows = raffect.Bank(bank_path), raffect.read_manifest(manifest)
    plan, encoder = bank.extend_plan(rows, 64), load_encoder(TINY, "cpu")
    identity = encoder.identity
    bank.claim(identity)
    for shard in range(plan.num_shards):
        pictures = read_frames(rows.slice(plan.offsets[shard], 64))
        bank.commit(shard, plan.rows(shard), encoder.encode(pictures), {}, identity)


def extract_on_ray(manifest: Path, bank_path: Path) -> None:
    config = raffect.ExtractConfig(manifest=manifest, bank=bank_path, encoder=TINY, shard_rows=64)
    assert raffect.extract(config).rejects == 0


def test_drawn_pictures_of_rafdb_are_trained_on(tmp_path):
    found = go_through("rafdb", tmp_path, 60, encode)
    assert found.data.group_name == "pictures"
    assert "drawn faces" in found.data.caveat
    labelled = found.data.splits["train"].frames + found.data.splits["validation"].frames
    assert labelled == 48, "a fifth is test"


@pytest.mark.cluster
@pytest.mark.parametrize("layout", LAYOUTS)
def test_drawn_copies_of_all_data_sets_are_trained_on(layout, tmp_path, local_ray):
    found = go_through(layout, tmp_path, 150, extract_on_ray)
    assert "drawn faces" in found.data.caveat
    assert found.data.of_clips == (layout in ("dfew", "ferv39k", "mafw", "afew"))


@pytest.mark.cluster
def test_drawn_clips_of_dfew_are_trained_on_fold_by_fold(tmp_path, local_ray):
    found = go_through("dfew", tmp_path, 300, extract_on_ray, folds="official")
    assert len(found.runs) == 5
    assert sum(run.data.splits["validation"].frames for run in found.runs) == 38


@pytest.mark.cluster
def test_heads_of_affectnet_are_judged_on_rafdb_by_the_names_of_classes(tmp_path, local_ray):
    go_through("affectnet", tmp_path / "affectnet", 150, encode)
    # Of its tasks that one trained va
    labels = tmp_path / "affectnet/data/labels/expr.parquet"
    config = raffect.TrainConfig.from_recipe(
        "erm",
        SHORT,
        bank=tmp_path / "affectnet/bank",
        labels=labels,
        out=tmp_path / "run",
        device="cpu",
    )
    trained = raffect.train(config)

    # RAF-DB in AffectNet's classes, seven of eight
    root, data, bank = tmp_path / "rafdb", tmp_path / "mapped", tmp_path / "bank"
    raffect.write_synthetic(root, 60, seed=3, workers=1, layout="rafdb")
    prepared = raffect.prepare(
        raffect.PrepareConfig(dataset="auto", root=root, out=data, map=labels)
    )
    encode(prepared.manifest, bank)
    config = raffect.EvaluateConfig(
        run=(trained.folder,), bank=bank, labels=data, split="test", device="cpu"
    )
    found = raffect.evaluate(config)
    assert any("absent from test: Contempt" in line for line in found.lines())
