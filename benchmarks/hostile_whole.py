"""What `hostile.py` damages, made small and whole: banks, labels, runs, faces and tables."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.cli import main
from raffect.config import PackConfig, PrepareConfig, TrainConfig, TuneConfig

FIRST = Path(__file__).parents[1] / "tests" / "fixtures" / "first"
_DIM, _VIDEOS, _LENGTH = 12, 9, 20
_HEAD = {"head.width": 8, "head.depth": 1, "epochs": 3, "batch_size": 16, "head.dropout": 0.0}


def make_whole(folder: Path) -> None:
    """Everything of the families, in a few seconds and a few megabytes."""
    shutil.copytree(FIRST, folder / "first")
    new = folder / "new"
    _make_bank(new)
    _make_targets(new)
    for task in ("expr", "va"):
        words = ["--task", task, *data_words(new), "--out", str(new / task)]
        _quiet(["train", str(_write_recipe(new, task)), *words, "--select", "cv", "--folds", "2"])
    _make_sweep(new)
    _make_half(new)
    _make_faces(folder / "faces")
    _make_tables(folder)


def _make_bank(folder: Path) -> None:
    """A bank of format 2, its manifest, and labels of classes and of numbers."""
    from raffect.bank.format import Bank, Identity
    from raffect.datasets.affwild2.tasks import EXPR, VA
    from raffect.datasets.imported import Imported
    from raffect.datasets.manifest import write_manifest
    from raffect.datasets.prepare import _write_labels

    # Keys, values and features that carry them
    rng, count = np.random.default_rng(0), _VIDEOS * _LENGTH
    names = [f"v{k}" for k in range(_VIDEOS) for _ in range(_LENGTH)]
    frames = np.tile(np.arange(1, _LENGTH + 1, dtype=np.int32), _VIDEOS)
    classes, numbers = rng.integers(0, 8, count), rng.uniform(-1, 1, (count, 2))
    features = rng.normal(size=(count, _DIM)).astype(np.float16)
    features[np.arange(count), classes] += 3
    features[:, 8:10] = numbers

    # Manifest and bank
    paths = [f"{name}/{frame:05d}.jpg" for name, frame in zip(names, frames, strict=True)]
    video = pa.array(names).dictionary_encode()
    roots = pa.array(["/nowhere"] * count).dictionary_encode()
    manifest = pa.table({"video": video, "frame": frames, "path": paths, "root": roots})
    write_manifest(manifest, folder / "manifest.parquet", synthetic=True)
    identity = Identity(
        model="m",
        weights_sha256="a" * 64,
        weights="random:0",
        preprocess={"size": 4},
        precision="float32",
        dim=_DIM,
    )
    bank = Bank(folder / "bank")
    plan = bank.extend_plan(manifest, 64)
    bank.claim(identity)
    for shard in range(plan.num_shards):
        rows = np.arange(plan.offsets[shard], plan.offsets[shard + 1])
        rejects = {2: "empty file"} if shard == 1 else {}
        good = np.delete(rows, sorted(rejects))
        bank.commit(shard, plan.rows(shard), features[good], rejects, identity)

    # Labels
    split = np.where(np.repeat(np.arange(_VIDEOS) % 3 == 2, _LENGTH), "validation", "train")
    keys = {"video": video, "frame": frames, "split": pa.array(split).dictionary_encode()}
    values = {name: numbers[:, k].astype(np.float32) for k, name in enumerate(VA.columns)}
    found = Imported(manifest=manifest, labels={}, edition="made up", digest="", groups="videos")
    found.labels[EXPR] = pa.table(keys | {EXPR.columns[0]: classes.astype(np.int8)})
    found.labels[VA] = pa.table(keys | values)
    _write_labels(found, folder / "labels", earlier=[])


def _make_targets(folder: Path) -> None:
    """A label table of captions of the classes, and its vectors."""
    from raffect.datasets.affwild2.tasks import EXPR
    from raffect.datasets.labels import read_labels
    from raffect.datasets.targets import contrastive_task, write_targets

    labels = read_labels(folder / "labels" / "expr.parquet")
    number, rows = labels["expression"], labels.select(["video", "frame", "split"])
    rows = rows.append_column("target", number).append_column("class", number)
    names = EXPR.outputs
    write_targets(
        folder / "captions" / "captions.parquet",
        rows,
        contrastive_task("captions", names),
        np.eye(len(names), _DIM),
        captions=names,
        image_sha256="a" * 64,
    )


def data_words(folder: Path) -> list[str]:
    return ["--bank", str(folder / "bank"), "--labels", str(folder), "--device", "cpu"]


def _quiet(words: list[str]) -> None:
    if status := main(words):
        raise RuntimeError(f"raffect {' '.join(words)}: status {status}")


def _write_recipe(folder: Path, task: str) -> Path:
    """A recipe of small heads."""
    file = folder / f"{task}.toml"
    file.write_text(
        f'task = "{task}"\nseed = 0\nepochs = 3\nbatch_size = 16\n\n[head]\nwidth = 8\ndepth = 1\n'
        "dropout = 0.0\n\n[loss]\nalpha = 0.5\ntail_over = 'units'\n\n[optim]\nlr = 0.01\n"
    )
    return file


def _heads(config: TrainConfig | TuneConfig, axes: list[dict]) -> tuple:
    from raffect.recipe import plain, with_settings
    from raffect.runs.records import PlannedHead

    return tuple(PlannedHead(with_settings(plain(config), axis)) for axis in axes)


def _make_sweep(folder: Path) -> None:
    """A sweep of four settings, whose heads are trained in this process."""
    from raffect.runs.conclusions import conclude_sweep
    from raffect.runs.folder import RunFolder
    from raffect.training.batch_job import BatchJob
    from raffect.training.run_batch import open_data, run_batch

    fields = {"bank": folder / "bank", "labels": folder, "out": folder / "sweep", "device": "cpu"}
    space = ("loss.alpha=0.3,1", "sam.rho=0,0.05")
    settings = _HEAD | {"task": "expr"}
    config = TuneConfig.from_recipe("paper", settings, space=space, stream="never", **fields)
    dataset = open_data(config, [config.head])
    run = RunFolder.create(config, dataset.facts, dataset.fingerprint)
    axes = [{"loss.alpha": alpha, "sam.rho": rho} for alpha in (0.3, 1.0) for rho in (0.0, 0.05)]
    for head in _heads(config, axes):
        run_batch(BatchJob(config=config, heads=(head,), threads=1), dataset)
    conclude_sweep(run, dataset.facts, run.read_records(), ["loss.alpha", "sam.rho"], True)


class _Stop(BaseException):
    pass


def half_job(folder: Path, out: Path):
    """A batch of two heads, and its data."""
    from raffect.training.batch_job import BatchJob
    from raffect.training.run_batch import open_data

    fields = {"bank": folder / "bank", "labels": folder, "out": out, "device": "cpu"}
    config = TrainConfig.from_recipe("paper", _HEAD | {"task": "expr"}, stream="never", **fields)
    heads = tuple(replace(head, fold=0, num_folds=2) for head in _heads(config, [{}, {"seed": 1}]))
    job = BatchJob(config=config, heads=heads, threads=1, save_every_s=0.0)
    return job, open_data(config, [config.head])


def _make_half(folder: Path) -> None:
    """A run that was stopped after its first epoch, and has saved what it goes on from."""
    from raffect.runs.folder import RunFolder
    from raffect.training.run_batch import run_batch

    def stop(history: object) -> None:
        raise _Stop

    job, dataset = half_job(folder, folder / "half")
    RunFolder.create(job.config, dataset.facts, dataset.fingerprint)
    with contextlib.suppress(_Stop):
        run_batch(job, dataset, on_epoch=stop)


def _make_faces(folder: Path) -> None:
    """Drawn faces, prepared and packed."""
    from raffect.datasets.prepare import prepare
    from raffect.datasets.synthetic.tree import EDITION, write_synthetic
    from raffect.extraction.pack import pack

    write_synthetic(folder, 200, 0)
    images = (folder / "cropped_aligned",)
    prepare(PrepareConfig(images=images, annotations=folder / EDITION, out=folder / "data"))
    manifest = folder / "data" / "manifest.parquet"
    pack(PackConfig(manifest=manifest, out=folder / "packed", shard_rows=16, groups_per_file=2))


def _make_tables(folder: Path) -> None:
    """Label tables of others, in CSV and Parquet, for some of the faces."""
    import pyarrow.csv
    import pyarrow.parquet as pq

    from raffect.datasets.manifest import read_manifest

    manifest = read_manifest(folder / "faces" / "data").slice(0, 30)
    number = list(range(len(manifest)))
    split = ["train" if k % 3 else "validation" for k in number]
    columns = {name: manifest[name].cast(pa.string()) for name in ("path", "video")}
    keys = columns | {"frame": manifest["frame"], "split": split}
    keys["subject"] = [str(k // 10) for k in number]
    table = pa.table(keys | {"mood": ["glad" if k % 2 else "sad" for k in number]})
    (folder / "tables").mkdir()
    pyarrow.csv.write_csv(table, folder / "tables" / "moods.csv")
    pq.write_table(table, folder / "tables" / "moods.parquet")
