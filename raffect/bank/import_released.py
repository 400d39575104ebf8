"""Import the feature files of the paper's released code into a bank and a label table.

Row k of a file such as ``expr_train_clip.h5`` belongs to line k of ``expr_train.txt``, so their
lengths must be equal. In raffect features and labels are joined on (video, frame).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.features import read_shard_features
from raffect.bank.format import Bank, Identity
from raffect.bank.running import note_of_run
from raffect.config import BankImportConfig
from raffect.datasets.affwild2.lines import parse_expression, parse_units
from raffect.datasets.affwild2.tasks import AU, DTYPES, EXPR
from raffect.datasets.labels import read_labels
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, how_to_add
from raffect.progress import Progress
from raffect.storage.keys import Vocabulary, positions
from raffect.storage.paths import has_file
from raffect.storage.tables import read_metadata, write_table

SPLITS = {"train_features": "train", "val_features": "validation", "test_features": "test"}
"""Name of the data set in a feature file -> split."""

# The released code used OpenAI's clip in float16 and did not normalise. raffect has not seen the
# tensors of that encoder, so they have no fingerprint.
IDENTITY = {
    "model": "ViT-L-14-quickgelu",
    "weights_sha256": "imported",
    "weights": "openai (imported, not verified)",
    "precision": "float16",
    "caveat": "imported features",
    "preprocess": {
        "size": 224,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}
"""Fields of the `Identity` of imported features, without their length."""

_PARSERS: dict[Task, Callable[[bytes], tuple[int, ...]]] = {EXPR: parse_expression, AU: parse_units}
BY_FRAME = [("video", "ascending"), ("frame", "ascending")]


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What was imported.

    Attributes:
        bank: The bank.
        labels: The label table.
        task: Name of the task.
        split: ``train``, ``validation`` or ``test``.
        listed: Frames of the list file.
        labelled: Those that have a label; of hidden labels, such as a challenge's test split, none.
        written: Frames that this run wrote into the bank.
        kept: Frames that were in the bank already.
        differing: Frames among them that the bank has with other features.
        caveat: What every result based on the bank must say.
    """

    bank: Path
    labels: Path
    task: str
    split: str
    listed: int
    labelled: int
    written: int
    kept: int
    differing: int
    caveat: str

    @property
    def waiting(self) -> int:
        """Frames that share a shard with planned frames that are not listed here."""
        return self.listed - self.written - self.kept

    def lines(self) -> list[str]:
        """The report as lines of text."""
        frames = f"{self.written:,} of {self.listed:,} {self.task} {self.split} frames"
        out = [f"imported {frames} into {self.bank}; labels in {self.labels}"]
        if self.kept:
            differ = f", {self.differing:,} of them with other features: "
            differ += "if those are wrong, import into a new --bank"
            out.append(f"kept: {self.kept:,} were there already{differ if self.differing else ''}")
        if self.waiting:
            others = "frames that are planned and not listed here"
            waiting = f"{self.waiting:,} share a shard with {others}"
            out.append(f"waiting: {waiting}; import those as well")
        return [*out, f"caveat: {self.caveat} (encoder taken on trust)", *self._use_lines()]

    def _use_lines(self) -> list[str]:
        """What the split is good for, where that is not training."""
        if not self.labelled:
            what = "no frame has one, so that nothing can be trained or judged on them"
            return [f"labels: {what}; `raffect bank export` has their features"]
        if self.split == "test":
            bank = shlex.quote(str(self.bank))
            labels = shlex.quote(str(self.labels))
            return [
                f"next: raffect evaluate --run RUN --bank {bank} --labels {labels} --split test"
            ]
        return []


def import_released(config: BankImportConfig) -> ImportReport:
    """Bring one split into a bank, and its labels into ``out/labels/<task>.parquet``.

    Raises:
        RaffectError: If h5py is missing, the files do not fit together, a line is wrong, or
            another run writes into the bank.
    """
    task = next((task for task in _PARSERS if task.name == config.task), None)
    if task is None:
        names = " and ".join(task.name for task in _PARSERS)
        raise RaffectError(f"--task {config.task}: the released code has features of {names}")
    # Both files, which belong together by position
    assert config.features is not None  # BankImportConfig has checked all three
    assert config.list is not None
    assert config.out is not None
    split, features = _read_features(config.features)
    videos, frames, labels = _read_list(config.list, task)
    if len(videos) != len(features):
        raise RaffectError(
            f"{config.list} has {len(videos):,} lines but {config.features} has "
            f"{len(features):,} vectors; they belong together by position, so both must come from "
            "the same run"
        )
    columns = [pa.array(videos, pa.string()), pa.array(frames, pa.int32()), np.arange(len(videos))]
    keys = pa.table(columns, names=["video", "frame", "row"]).sort_by(BY_FRAME)
    require_unique(keys, config.list)
    # The bank
    bank = Bank(config.bank.absolute())
    identity = Identity(dim=features.shape[1], **IDENTITY)  # ty: ignore[invalid-argument-type]
    with note_of_run(bank.path, join=None):
        bank.claim(identity)
        written, kept, differing = write_shards(bank, identity, keys, features)
    return ImportReport(
        bank=bank.path,
        labels=_write_labels(config.out, task, keys, labels[keys["row"].to_numpy()], split),
        task=config.task,
        split=split,
        listed=len(keys),
        labelled=int(task.is_labelled(labels).any(axis=1).sum()),
        written=written,
        kept=kept,
        differing=differing,
        caveat=identity.caveat,
    )


def write_shards(
    bank: Bank, identity: Identity, keys: pa.Table, features: np.ndarray
) -> tuple[int, int, int]:
    """Commit the shards of which all rows are listed.

    Args:
        bank: The bank.
        identity: What made the features.
        keys: ``video, frame, row``, sorted; ``row`` is the row of ``features``.
        features: float16, shape (N, dim), in the order of the released file.

    Returns:
        Number of rows that were written, that the bank had already, and that it had with other
        features.
    """
    # The plan, and the row of each listed frame in the released file
    plan = bank.extend_plan(_with_planned(bank, keys))
    done = bank.read_commits()
    vocabulary = Vocabulary(keys["video"].unique().to_pylist())
    listed, order = vocabulary.keys(keys), keys["row"].to_numpy()
    # Committed shards are compared; shards of which every row is listed are committed.
    written = kept = differing = 0
    with Progress("import", len(keys)) as progress:
        for shard in range(plan.num_shards):
            rows = plan.rows(shard)
            where = positions(vocabulary.keys(rows), listed)
            own = where >= 0
            if shard in done and own.any():
                kept += int(own.sum())
                stored = read_shard_features(bank, done[shard], identity.dim)
                differing += int((stored[own] != features[order[where[own]]]).any(1).sum())
            elif own.all():  # a shard with frames of another split waits for that split's import
                bank.commit(shard, rows, np.ascontiguousarray(features[order[where]]), {}, identity)
                written += len(rows)
            progress.advance(int(own.sum()))
    return written, kept, differing


def _read_features(file: Path) -> tuple[str, np.ndarray]:
    """Split and features of a released HDF5 file: float16, shape (N, dim), N > 0."""
    try:
        import h5py
    except ImportError:
        raise RaffectError(f"h5py is not installed; {how_to_add('h5')}") from None
    try:
        with h5py.File(file) as content:
            name = next((name for name in SPLITS if name in content), None)
            if name is None:
                names, found = " or ".join(SPLITS), ", ".join(content) or "none"
                raise RaffectError(f"{file}: expected a dataset {names}, found {found}")
            features = content[name][:] if isinstance(content[name], h5py.Dataset) else np.empty(0)
    except OSError as error:
        raise RaffectError(f"{file}: not a readable HDF5 file ({error})") from error
    if features.ndim != 2 or features.dtype != np.float16 or not len(features):
        found = f"{features.dtype} of shape {features.shape}"
        raise RaffectError(f"{file}: {name} is {found}, expected float16 (N, 768) with N > 0")
    return SPLITS[name], features


def _read_list(file: Path, task: Task) -> tuple[list[str], list[int], np.ndarray]:
    """Videos, frame numbers and labels of a released list file, in its order."""
    parse = _PARSERS[task]
    videos, frames, labels = [], [], []
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise RaffectError(f"--list {file}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(lines, start=1):
        try:
            # Such as ``cropped_aligned/video1/00001.jpg``, a tab and a label
            path, label = line.split(b"\t")
            folder, name = path.decode().rsplit("/", 2)[-2:]
            stem = name.split(".")[0]
            if not (stem.isascii() and stem.isdigit() and 0 < int(stem) < 1 << 31):
                raise ValueError(f"{name!r} is not a frame number")
            labels.append(parse(label.strip()))
        except ValueError as error:
            what = f"expected <folder>/<video>/00001.jpg, a tab and a label ({error})"
            raise RaffectError(f"{file}:{number}: {what}") from None
        videos.append(folder)
        frames.append(int(stem))
    return videos, frames, np.array(labels, DTYPES[task])


def require_unique(keys: pa.Table, file: Path) -> None:
    """Refuse a frame that is there twice in ``video, frame``, sorted.

    Raises:
        RaffectError: Names the first one.
    """
    video, frame = keys["video"].to_numpy(zero_copy_only=False), keys["frame"].to_numpy()
    same = (video[1:] == video[:-1]) & (frame[1:] == frame[:-1])
    if same.any():
        row = int(np.flatnonzero(same)[0])
        what = f"{video[row]}/{frame[row]:05d} is listed twice"
        raise RaffectError(f"{file}: {what}; a bank holds each frame once")


def _with_planned(bank: Bank, keys: pa.Table) -> pa.Table:
    """The bank's frames and the new ones, each once, as a manifest would list them."""
    planned = bank.plan.table
    planned = pa.table({"video": planned["video"].cast(pa.string()), "frame": planned["frame"]})
    both = pa.concat_tables([planned, keys.select(["video", "frame"])])
    return both.group_by(["video", "frame"]).aggregate([]).sort_by(BY_FRAME)


def _write_labels(out: Path, task: Task, keys: pa.Table, labels: np.ndarray, split: str) -> Path:
    """Write the labels of a split into the task's table, in place of those it had of this split."""
    # The table of this split
    path = out / "labels" / f"{task.name}.parquet"
    columns = {"video": keys["video"], "frame": keys["frame"]}
    columns["split"] = pa.array([split] * len(keys), pa.string())
    columns |= {name: labels[:, k] for k, name in enumerate(task.columns)}
    table = pa.table(columns)
    # Other splits that were imported before
    if has_file(path):
        old = read_labels(path)
        if read_metadata(old).get("edition") != "imported":
            raise RaffectError(f"{path} was not imported; choose another --out")
        old = old.replace_schema_metadata(None)
        others = old.filter(pa.array([value != split for value in old["split"].to_pylist()]))
        table = pa.concat_tables([others.cast(table.schema), table])
    about = {"raffect": "labels/2", "task": json.dumps(task.to_json()), "edition": "imported"}
    write_table(table, path, about | {"digest": "", "synthetic": "false"})
    return path
