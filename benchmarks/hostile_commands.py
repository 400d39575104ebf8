"""What `hostile.py` damages, made small and whole, and the commands that read it.

Each `Family` is one kind of file. Its units are folders (or files) of which every case has a copy
of its own; whatever else a command needs is read from the whole ones.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.cli import main
from raffect.config import PackConfig, PrepareConfig, TrainConfig, TuneConfig
from raffect.errors import RaffectError

FIRST = Path(__file__).parents[1] / "tests" / "fixtures" / "first"
_DIM, _VIDEOS, _LENGTH = 12, 9, 20
_HEAD = {"head.width": 8, "head.depth": 1, "epochs": 3, "batch_size": 16, "head.dropout": 0.0}
_REPORTS = 8
"""One of so many damaged runs has its whole report drawn, which takes seconds; of all of them
everything is read, and all tables are made."""

Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A damaged copy.

    Attributes:
        copy: Of a unit of a family.
        file: Which file of it is damaged.
        whole: Folder with all that is whole.
        data: Folder in it that the unit is from.
        rng: Decides what the commands leave open.
    """

    copy: Path
    file: Path
    whole: Path
    data: Path
    rng: random.Random


@dataclass(frozen=True)
class Family:
    """Files that are damaged alike, and the commands that read them.

    Attributes:
        units: Folders or files of which a copy is damaged, below the whole ones.
        patterns: Which files of a folder.
        steps: Commands that read a copy, one after the other.
        share: Of all cases.
    """

    units: tuple[str, ...]
    patterns: tuple[str, ...]
    steps: Callable[[Case], Iterator[Step]]
    share: float

    def files(self, copy: Path) -> list[Path]:
        """Files that may be damaged."""
        found = {path for pattern in self.patterns for path in copy.glob(pattern)}
        return [copy] if copy.is_file() else sorted(path for path in found if path.is_file())


# Whole files


def make_whole(folder: Path) -> None:
    """Everything of the families, in a few seconds and a few megabytes."""
    shutil.copytree(FIRST, folder / "first")
    new = folder / "new"
    _make_bank(new)
    _make_targets(new)
    for task in ("expr", "va"):
        words = ["--task", task, *_data(new), "--out", str(new / task)]
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


def _data(folder: Path) -> list[str]:
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


def _half_job(folder: Path, out: Path):
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

    job, dataset = _half_job(folder, folder / "half")
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


# Commands


def _read_bank(case: Case) -> Iterator[Step]:
    bank = ["--bank", str(case.copy)]
    for words in ("info", "rejects", "verify"):
        yield partial(main, ["bank", words, *bank])
    yield partial(_open_data, case.copy, case.data / "labels" / "expr.parquet")
    out = case.copy.with_name("export")
    yield partial(main, ["bank", "export", *bank, "--out", str(out)])
    yield partial(main, ["bank", "verify", *bank, "--repair"])
    yield partial(main, ["bank", "verify", *bank])


def _open_data(bank: Path, labels: Path) -> None:
    """What training reads."""
    import torch

    from raffect.runs.data import check_trainable, open_dataset, targets_of
    from raffect.runs.read_samples import read_rows

    dataset = open_dataset(bank, labels, allow_incomplete=True)
    for index in dataset.splits.values():
        read_rows(index, dataset.task, torch.device("cpu"))
    check_trainable(targets_of(dataset.splits["train"], dataset.task), dataset.task, 2, "x")


def _read_manifest(case: Case) -> Iterator[Step]:
    from raffect.bank.format import Bank
    from raffect.datasets.frames import read_frames
    from raffect.datasets.manifest import read_manifest

    beside, manifest = case.copy.with_name, str(case.copy)
    yield lambda: Bank(beside("bank")).extend_plan(read_manifest(case.copy), 64)
    yield lambda: read_frames(read_manifest(case.copy).slice(0, 4))
    bank = case.whole / ("new" if case.data.name == "new" else "first") / "bank"
    yield partial(main, ["bank", "verify", "--bank", str(bank), "--manifest", manifest])
    yield partial(main, ["pack", "--manifest", manifest, "--out", str(beside("packed"))])


def _read_labels(case: Case) -> Iterator[Step]:
    yield partial(_open_data, case.data / "bank", case.copy)
    run = case.data / case.copy.stem
    head = next(run.glob("weights/*/last"))
    words = ["--run", str(head), "--bank", str(case.data / "bank"), "--labels", str(case.copy)]
    yield partial(main, ["evaluate", *words, "--device", "cpu"])


def _read_targets(case: Case) -> Iterator[Step]:
    yield partial(_open_data, case.data / "bank", case.copy / "captions.parquet")


def _read_recipe(case: Case) -> Iterator[Step]:
    out = str(case.copy.with_name("out"))
    data = ["--bank", str(case.whole / "none"), "--labels", str(case.whole), "--out", out]
    yield partial(main, ["train", str(case.copy), *data])
    yield partial(main, ["tune", str(case.copy), *data])


def _read_run(case: Case) -> Iterator[Step]:
    from raffect.reporting.opening import opening_lines
    from raffect.reporting.origins import origin_lines
    from raffect.reporting.results import results_table, settings_rows, settings_table
    from raffect.reporting.run import read_runs

    def read() -> None:
        runs = read_runs([case.copy])
        for lines in (results_table, opening_lines, origin_lines):
            lines(runs)
        for rows in (settings_table, settings_rows):
            rows(runs[0])

    yield read
    if not case.rng.randrange(_REPORTS):
        out = str(case.copy.with_name("report"))
        yield partial(main, ["report", "--runs", str(case.copy), "--out", out])
    yield partial(main, ["evaluate", "--run", str(case.copy), *_data(case.data)])
    yield partial(_again, case.copy, case.data)


def _again(run: Path, data: Path) -> object:
    """The same command once more; of a sweep what it does after training, which needs Ray."""
    from raffect.runs.conclusions import conclude_sweep
    from raffect.runs.folder import RunFolder

    if run.name != "sweep":
        words = [*_data(data), "--out", str(run), "--threads", "1"]
        return main(["train", str(run / "config.toml"), *words])
    folder = RunFolder(run)
    facts, records = folder.read_run().data, folder.read_records()
    whole = [record for record in records if record.fold is None]
    return conclude_sweep(folder, facts, whole, ["loss.alpha"], saved_heads=True).lines()


def _read_head(case: Case) -> Iterator[Step]:
    import raffect

    yield partial(raffect.load_head, case.file.parent)
    yield partial(main, ["evaluate", "--run", str(case.file.parent), *_data(case.data)])


def _read_state(case: Case) -> Iterator[Step]:
    yield partial(go_on, case.data, case.copy)


def go_on(data: Path, run: Path) -> None:
    """Go on in a copy of the run that `make_whole` stopped after its first epoch."""
    from raffect.runs.folder import RunFolder
    from raffect.training.run_batch import plan_batches, run_batch

    job, dataset = _half_job(data, run)
    for batch in plan_batches(RunFolder(run), job.heads, 2, one_seed=False):
        run_batch(replace(job, heads=tuple(batch)), dataset)


def _read_packed(case: Case) -> Iterator[Step]:
    import pyarrow.compute as pc

    from raffect.datasets.frames import read_frames
    from raffect.datasets.manifest import read_manifest

    def read() -> None:
        # The copies of the packed files, wherever the manifest was made
        table = read_manifest(case.copy)
        names = pc.split_pattern(table["root"].cast(pa.string()), "/").to_pylist()
        roots = pa.array([str(case.copy / parts[-1]) for parts in names])
        read_frames(table.set_column(table.column_names.index("root"), "root", roots))

    yield read
    manifest = case.whole / "faces" / "data" / "manifest.parquet"
    size = ["--shard-rows", "16", "--groups-per-file", "2"]
    yield partial(main, ["pack", "--manifest", str(manifest), "--out", str(case.copy), *size])


def _read_annotations(case: Case) -> Iterator[Step]:
    images, out = str(case.whole / "faces" / "cropped_aligned"), str(case.copy.with_name("out"))
    words = ["prepare", "--images", images, "--annotations", str(case.copy), "--out", out]
    if case.copy.is_dir():
        yield partial(main, words)
        return
    for kind in ("auto", "multilabel", "regression"):
        yield partial(main, [*words, "--dataset", "table", "--task", "moods", "--kind", kind])


def _read_picture(case: Case) -> Iterator[Step]:
    from raffect.datasets.frames import BadFrame, decode

    def read() -> None:
        try:
            decode(case.file.read_bytes())
        except BadFrame as reason:  # a reject of the bank
            raise RaffectError(f"{case.file}: {reason}") from None

    yield read


_RUN_FILES = ("*.json", "config.toml", "members/*", "heads/*", "statistics/*", "weights/*/*/*")
FAMILIES: dict[str, Family] = {
    "banks": Family(("first/bank", "new/bank"), ("**/*",), _read_bank, 0.05),
    "manifests": Family(
        ("first/manifest.parquet", "new/manifest.parquet", "faces/data/manifest.parquet"),
        (),
        _read_manifest,
        0.15,
    ),
    "labels": Family(
        tuple(f"first/labels/{name}.parquet" for name in ("expr", "au"))
        + tuple(f"new/labels/{name}.parquet" for name in ("expr", "va")),
        (),
        _read_labels,
        0.15,
    ),
    "targets": Family(("new/captions",), ("*.parquet",), _read_targets, 0.05),
    "recipes": Family(
        ("new/expr.toml", "first/sweep/config.toml", "new/expr/config.toml"), (), _read_recipe, 0.15
    ),
    "runs": Family(
        ("first/expr", "first/au", "first/sweep", "new/expr", "new/va", "new/sweep"),
        _RUN_FILES,
        _read_run,
        0.05,
    ),
    "heads": Family(("first/au/weights", "new/va/weights"), ("*/*/*",), _read_head, 0.15),
    "states": Family(("new/half",), ("state/*", "env.json"), _read_state, 0.05),
    "packed": Family(("faces/packed",), ("*.parquet",), _read_packed, 0.05),
    "annotations": Family(
        ("faces/8th_ABAW_Annotations", "tables/moods.csv", "tables/moods.parquet"),
        ("**/*.txt",),
        _read_annotations,
        0.1,
    ),
    "pictures": Family(("faces/cropped_aligned",), ("*/*",), _read_picture, 0.1),
}
"""By name."""
