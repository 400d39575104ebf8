"""Steps of `lists.py` that go through all frames: of a manifest, of a bank, of a folder tree."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
from made import make_bank
from stand_in import IDENTITY

from raffect.bank.format import Bank, Identity
from raffect.datasets.manifest import read_manifest, write_manifest
from raffect.datasets.manifest_paths import Manifest

DIM, FRAMES_A_VIDEO, BATCH = 8, 10_000, 4096
SHARE_OF_TRAINING = 0.8
_ENCODER = replace(IDENTITY, dim=DIM)
_OTHER = replace(_ENCODER, model="stand-in-2", weights_sha256="1" * 64)

Measured = Callable[[], Any]

# What there is


def make_manifests(folder: Path, frames: int) -> None:
    """``manifest.parquet`` alone, with paths as long as those of Aff-Wild2."""
    length = min(FRAMES_A_VIDEO, frames // 20)  # as `make_bank` has it
    number, frame = np.divmod(np.arange(frames), length)
    names = pa.array([f"video{k:05d}" for k in range(number[-1] + 1)])
    video = pa.DictionaryArray.from_arrays(number.astype(np.int32), names)
    files = [f"-1280x720/{k + 1:05d}.jpg" for k in range(length)]
    counts = np.bincount(number).tolist()
    parts = (
        [name + file for file in files[:count]]
        for name, count in zip(names.to_pylist(), counts, strict=True)
    )
    path = pa.chunked_array([pa.array(part) for part in parts])
    root = pa.DictionaryArray.from_arrays(np.zeros(frames, np.int32), pa.array(["/images"]))
    columns = {"video": video, "frame": (frame + 1).astype(np.int32), "path": path, "root": root}
    write_manifest(pa.table(columns), folder / "manifest.parquet", synthetic=True)


def make_frames(folder: Path, frames: int) -> None:
    """A manifest, a bank of it, and labels."""
    make_manifests(folder, frames)
    _make_bank(folder / "one", frames, _ENCODER)


def _make_bank(folder: Path, frames: int, identity: Identity) -> None:
    train = int(frames * SHARE_OF_TRAINING)
    with mock.patch("os.fsync"):  # these data need not outlive the machine
        make_bank(folder, train, frames - train, identity=identity, frames_a_video=FRAMES_A_VIDEO)


def make_tree(folder: Path, frames: int) -> None:
    """Folders of empty pictures, and annotations of EXPR."""
    rng, number = np.random.default_rng(0), 0
    for split in ("Train_Set", "Validation_Set"):
        own = folder / "annotations" / "EXPR_Classification_Challenge" / split
        own.mkdir(parents=True)
        count = frames * (4 if split == "Train_Set" else 1) // 5
        for start in range(0, count, FRAMES_A_VIDEO // 10):
            length = min(FRAMES_A_VIDEO // 10, count - start)
            name = f"video-{number:05d}-1280x720"
            images = folder / "cropped_aligned" / name
            images.mkdir(parents=True)
            for frame in range(1, length + 1):
                os.close(os.open(images / f"{frame:05d}.jpg", os.O_CREAT))
            classes = "\n".join(map(str, rng.integers(0, 8, length)))
            header = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other"
            (own / f"{name}.txt").write_text(f"{header}\n{classes}\n")
            number += 1


# Steps


def prepare_tree(folder: Path) -> Measured:
    """`raffect prepare`."""
    from raffect.config import PrepareConfig
    from raffect.datasets.prepare import prepare

    images, annotations = (folder / "cropped_aligned",), folder / "annotations"
    config = PrepareConfig(images=images, annotations=annotations, out=folder / "prepared")
    return partial(prepare, config)


def load_manifest(folder: Path) -> Measured:
    """`read_manifest`."""
    return partial(read_manifest, folder / "manifest.parquet")


def start_extract(folder: Path) -> Measured:
    """All that the driver of a first extraction does before, and with items of every wave."""
    return partial(_drive, folder, folder / "new")


def resume_extract(folder: Path) -> Measured:
    """The same where a shard is left to encode."""
    bank = Bank(folder / "one" / "bank")
    last = bank.plan.num_shards - 1
    kept = bank.commit_path(last).read_bytes()

    def run() -> None:
        bank.commit_path(last).unlink()
        try:
            _drive(folder, bank.path)
        finally:
            bank.commit_path(last).write_bytes(kept)

    return run


def _drive(folder: Path, path: Path) -> None:
    from raffect.extraction import extract as stage

    listed, bank = Manifest(folder / "manifest.parquet"), Bank(path)
    stage.is_finished(bank, listed.frames)
    stage._compare_pictures(bank, listed)
    plan = bank.extend_plan(listed.frames)
    todo = stage.choose_shards(plan, bank.read_commits(), None)
    for items in stage.iter_waves(plan, todo, listed):
        del items


def open_data(folder: Path) -> Measured:
    """`open_dataset`: labels, plan and records, joined."""
    from raffect.runs.data import open_dataset

    return partial(open_dataset, folder / "one" / "bank", folder / "one" / "data")


def deal_folds(folder: Path) -> Measured:
    """Folds of the training split."""
    dataset = open_data(folder)()
    return partial(dataset.fold_of_frames, 5)


def order_frames(folder: Path) -> Measured:
    """`frames_in_order`."""
    from raffect.bank.in_order import frames_in_order

    return partial(frames_in_order, Bank(folder / "one" / "bank"))


def build_windows(folder: Path) -> Measured:
    """Windows of 8 frames around each training frame."""
    from raffect.bank.windows import Window, find_windows

    dataset, frames = open_data(folder)(), order_frames(folder)()
    return partial(find_windows, dataset.splits["train"], frames, Window(8, 1))


def read_features(folder: Path) -> Measured:
    """Features of the training split onto the CPU."""
    import torch

    from raffect.runs.read_samples import read_rows

    dataset = open_data(folder)()
    return partial(read_rows, dataset.splits["train"], dataset.task, torch.device("cpu"))


def plan_stream(folder: Path) -> Measured:
    """The order of a streamed epoch."""
    from raffect.training.stream import RayStream

    dataset = open_data(folder)()
    return lambda: RayStream(dataset.splits["train"], dataset.task, BATCH, 0).windows(0)


def train_heads(folder: Path) -> Measured:
    """`raffect train --select cv` of one epoch on two folds."""
    from raffect.config import TrainConfig
    from raffect.training.train import train

    settings = {"epochs": 1, "batch_size": BATCH, "head.width": 8, "sam.rho": 0.0}
    places = {"bank": folder / "one" / "bank", "labels": folder / "one" / "data"}
    config = TrainConfig.from_recipe(
        "paper", settings, **places, out=folder / "run", select="cv", folds=2, threads=1
    )
    return partial(train, config)


def evaluate_heads(folder: Path) -> Measured:
    """`raffect evaluate` on the training split."""
    from raffect.config import EvaluateConfig
    from raffect.evaluation.evaluate import evaluate

    bank, labels = folder / "one" / "bank", folder / "one" / "data"
    config = EvaluateConfig(run=(folder / "run",), split="train", bank=bank, labels=labels)
    return partial(evaluate, config)


def choose_rules(folder: Path) -> Measured:
    """`raffect postprocess`."""
    from raffect.config import PostprocessConfig
    from raffect.evaluation.postprocess import postprocess

    return partial(postprocess, PostprocessConfig(run=(folder / "run",)))


def predict_bank(folder: Path) -> Measured:
    """`raffect predict --bank`."""
    from raffect.config import PredictConfig
    from raffect.evaluation.predict import predict

    bank, out = folder / "one" / "bank", folder / "predictions.parquet"
    return partial(predict, PredictConfig(head=(folder / "run",), bank=bank, out=out))


def describe(folder: Path) -> Measured:
    """`raffect bank info`, with its table of videos."""
    from raffect.bank.inspect import count_videos, describe_bank

    bank = Bank(folder / "one" / "bank")
    return lambda: (describe_bank(bank).lines(), count_videos(bank))


def verify_bank(folder: Path) -> Measured:
    """`raffect bank verify`."""
    from raffect.bank.verify import verify

    return partial(
        verify, Bank(folder / "one" / "bank"), read_manifest(folder / "manifest.parquet")
    )


def join_two(folder: Path) -> Measured:
    """`raffect bank join` of two."""
    from raffect.bank.join import join_banks

    frames = len(Bank(folder / "one" / "bank").plan.table)
    _make_bank(folder / "two", frames, _OTHER)
    parts = tuple(folder / name / "bank" for name in ("one", "two"))
    return partial(join_banks, parts, folder / "joined")


STEPS = {
    "driver of a resumed extract": resume_extract,
    "bank info": describe,
    "bank verify": verify_bank,
    "bank join": join_two,
    "open_dataset": open_data,
    "folds": deal_folds,
    "frames_in_order": order_frames,
    "windows of 8": build_windows,
    "read_rows": read_features,
    "order of a stream": plan_stream,
    "train --select cv": train_heads,
    "evaluate --split train": evaluate_heads,
    "postprocess": choose_rules,
    "predict --bank": predict_bank,
}
MANIFEST_STEPS = {"read_manifest": load_manifest, "driver of a first extract": start_extract}
TREE_STEPS = {"prepare": prepare_tree}
