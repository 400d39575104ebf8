"""Which files `hostile.py` damages, and the commands that read them.

Each `Family` is one kind of file. Its units are folders (or files) of which every case has a copy
of its own; whatever else a command needs is read from those of `hostile_whole.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
from hostile_whole import data_words, half_job

from raffect.cli import main
from raffect.errors import RaffectError

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
    yield partial(main, ["evaluate", "--run", str(case.copy), *data_words(case.data)])
    yield partial(_again, case.copy, case.data)


def _again(run: Path, data: Path) -> object:
    """The same command once more; of a sweep what it does after training, which needs Ray."""
    from raffect.runs.conclusions import conclude_sweep
    from raffect.runs.folder import RunFolder

    if run.name != "sweep":
        words = [*data_words(data), "--out", str(run), "--threads", "1"]
        return main(["train", str(run / "config.toml"), *words])
    folder = RunFolder(run)
    facts, records = folder.read_run().data, folder.read_records()
    whole = [record for record in records if record.fold is None]
    return conclude_sweep(folder, facts, whole, ["loss.alpha"], saved_heads=True).lines()


def _read_head(case: Case) -> Iterator[Step]:
    import raffect

    yield partial(raffect.load_head, case.file.parent)
    yield partial(main, ["evaluate", "--run", str(case.file.parent), *data_words(case.data)])


def _read_state(case: Case) -> Iterator[Step]:
    yield partial(go_on, case.data, case.copy)


def go_on(data: Path, run: Path) -> None:
    """Go on in a copy of the run that `make_whole` stopped after its first epoch."""
    from raffect.runs.folder import RunFolder
    from raffect.training.run_batch import plan_batches, run_batch

    job, dataset = half_job(data, run)
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
