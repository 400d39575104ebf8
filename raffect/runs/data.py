"""What a run trains and judges on: checked features and labels of its splits.

Beside them are the facts that go with every result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from raffect.bank.clips import find_clips
from raffect.bank.facts import DataFacts, SplitFacts, join_caveats
from raffect.bank.features import FeatureIndex, find_features
from raffect.bank.format import Bank
from raffect.bank.in_order import FramesInOrder, frames_in_order
from raffect.bank.records import Commit
from raffect.bank.windows import Window, WindowIndex, find_windows
from raffect.datasets.affwild2 import tasks as affwild2
from raffect.datasets.labels import is_of_clips, read_label_task, read_labels, read_values
from raffect.datasets.targets import CAPTIONS_OF, is_targets_file
from raffect.datasets.tasks import SPLITS, Task
from raffect.errors import RaffectError, require
from raffect.heads.loss_kind import LossKind
from raffect.heads.loss_kinds import loss_kind
from raffect.metrics.task_kinds import kind_of
from raffect.recipe import HeadConfig
from raffect.runs.targets import TargetSet, open_targets
from raffect.runs.windows import window_of
from raffect.storage.tables import read_metadata

_FOLD_SEED = 0


@dataclass(frozen=True)
class Dataset:
    """Splits of a task on a bank.

    Attributes:
        task: The task.
        splits: Where each split's features lie, a sample being one of them.
        facts: Bank, labels, encoders and sizes.
        fingerprint: Names bank, labels and task: equal data, equal fingerprint.
        commits: Of all shards of the bank that counted when it was opened.
        targets: Vectors of a contrastive task; None for other kinds.
        frames: All frames of the bank, labelled or not, where windows are read; else None.
    """

    task: Task
    splits: dict[str, FeatureIndex]
    facts: DataFacts
    fingerprint: str
    commits: Mapping[int, Commit] = field(default_factory=dict, repr=False, compare=False)
    targets: TargetSet | None = field(default=None, repr=False, compare=False)
    frames: FramesInOrder | None = field(default=None, repr=False, compare=False)
    _folds: dict[int, np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _windows: dict[Window, dict[str, WindowIndex]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def num_outputs(self) -> int:
        """Outputs of a head: one each of the task's, or the length of a vector to compare with."""
        return len(self.task.outputs) if self.targets is None else self.targets.facts.dim

    def loss_kind(self, device: torch.device) -> LossKind:
        """The torch half of the task's kind, with what it needs on a device."""
        return loss_kind(self.task, None if self.targets is None else self.targets.to(device))

    def rows(self, split: str, head: HeadConfig) -> FeatureIndex:
        """Where the features lie that heads of a recipe read: windows, or single features.

        The samples and their order are those of ``splits``.
        """
        window, index = window_of(head), self.splits[split]
        if window.length == 1:
            return index

        # Kept, since every batch of heads of a fold asks again; of one shape at a time, since
        # those of a sweep together would be many times larger than the features
        if window not in self._windows:
            self._windows.clear()
        found = self._windows.setdefault(window, {})
        if split not in found:
            frames = self.frames
            if frames is None:
                frames = frames_in_order(index.bank, self.commits)
            found[split] = find_windows(index, frames, window)
        return found[split]

    def fold_of_frames(self, folds: int) -> np.ndarray:
        """Fold of each training frame, shape (N,), the same for every run.

        Videos, or other groups, stay whole. Classes are spread over the folds as evenly as whole
        groups allow.
        """
        # Kept, since every batch of heads of a fold asks again
        if folds not in self._folds:
            self._folds[folds] = self._deal_groups(folds)
        return self._folds[folds]

    def _deal_groups(self, folds: int) -> np.ndarray:
        from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

        # As many groups as folds at least
        train = self.splits["train"]
        classes = kind_of(self.task).strata(targets_of(train, self.task))
        require(
            len(train.groups) >= folds,
            f"--folds {folds}: the training split has {len(train.groups)} "
            f"{self.facts.group_name}; take at most as many folds",
        )

        # By classes where each has enough frames for every fold
        stratified = (
            classes is not None and np.unique(classes, return_counts=True)[1].min() >= folds
        )
        kind = StratifiedGroupKFold if stratified else GroupKFold
        splitter = kind(folds, shuffle=True, random_state=_FOLD_SEED)
        out = np.empty(len(train), np.int64)
        strata = train.y[:, 0] if classes is None else classes
        for number, (_, held_out) in enumerate(splitter.split(out, strata, train.group)):
            out[held_out] = number
        return out


def open_dataset(
    bank_path: Path,
    labels_path: Path,
    task_name: str = "",
    wanted: Sequence[str] = SPLITS,
    *,
    allow_incomplete: bool = False,
    around: bool = False,
) -> Dataset:
    """Find the features of both splits of a task, or of some; none is read yet.

    Args:
        bank_path: The bank.
        labels_path: A label table, or the folder that `raffect prepare` wrote.
        task_name: Which task of a folder; may be left out if there is only one.
        wanted: Splits.
        allow_incomplete: Take a bank that lacks planned frames; ``facts.incomplete`` then says so.
        around: Whether frames around labelled ones are read as well, so that they count as lacking.

    Raises:
        RaffectError: If bank or labels are missing, labels are of another task, a split is empty,
            planned frames are not in the bank, or vectors of targets are missing, damaged or of
            other weights than the bank.
    """
    # Labels of the task
    bank, file = Bank(bank_path).require(), find_labels(labels_path, task_name)
    table, task = _read_task(file, task_name)
    targets = open_targets(file, table, task, bank.require_identity(), bank_path)

    # Features of each split
    commits = bank.read_commits()
    find = find_clips if is_of_clips(table) else find_features
    splits = {split: find(bank, table, task, split, commits=commits) for split in wanted}
    frames = frames_in_order(bank, commits) if around else None
    incomplete = _describe_incomplete(splits)
    if frames is not None and not incomplete and not is_of_clips(table):
        incomplete = frames.describe_incomplete()
    require(
        allow_incomplete or not incomplete,
        f"{bank_path}: {incomplete} are planned and not there, not extracted yet or damaged; "
        f"finish `{bank.fill_command}` (`{bank.repair_command}` withdraws "
        "what is damaged), or add --allow-incomplete, and every score will say so",
    )

    facts = _describe(bank, bank.digest(commits), file, table, task, splits, incomplete)
    facts = replace(facts, targets=targets.facts if targets else None)
    return Dataset(task, splits, facts, fingerprint_of(facts), commits, targets, frames)


def targets_of(index: FeatureIndex, task: Task) -> np.ndarray:
    """Labels as training takes them, one row a frame.

    See `raffect.metrics.task_kinds.Kind.targets`.
    """
    return kind_of(task).targets(task, index.y)


def check_trainable(y: np.ndarray, task: Task, batch_size: int, where: str) -> None:
    """Refuse training rows from which nothing can be learnt.

    Raises:
        RaffectError: If there are fewer than a batch, or only one class.
    """
    require(
        len(y) >= batch_size,
        f"{where} has {len(y)} rows, fewer than --batch-size {batch_size}; "
        "take a smaller batch or more rows",
    )
    why = kind_of(task).why_untrainable(task, y)
    require(not why, f"{where} has {why}; check --labels")


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA if there is one.

    Raises:
        RaffectError: If CUDA is asked for and missing.
    """
    has_cuda = torch.cuda.is_available()
    require(
        name != "cuda" or has_cuda,
        "--device cuda: torch sees no CUDA device; see `raffect doctor`, or use --device cpu",
    )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and has_cuda) else "cpu")


def _describe(
    bank: Bank,
    digest: str,
    file: Path,
    table: pa.Table,
    task: Task,
    splits: Mapping[str, FeatureIndex],
    incomplete: str,
) -> DataFacts:
    """The facts of bank, labels and splits."""
    identity, metadata = bank.read_identity(), read_metadata(table)
    assert identity is not None  # find_features has read it

    # Published scores stand beside those on the same frames alone
    synthetic = metadata.get("synthetic") == "true"
    published = {}
    if not synthetic and (validation := splits.get("validation")) is not None:
        published = affwild2.published_scores(task, len(validation), len(validation.videos))
    missing = {name: asdict(index.missing) for name, index in splits.items()}
    return DataFacts(
        task=task,
        bank=str(bank.path.absolute()),
        labels=str(file.absolute()),
        bank_digest=digest,
        labels_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        encoders=(identity,),
        edition=metadata.get("edition", ""),
        synthetic=synthetic,
        caveat=join_caveats(identity.caveat, synthetic, metadata.get(CAPTIONS_OF, "")),
        published=published,
        splits={
            name: SplitFacts(frames=len(index), groups=len(index.groups), **missing[name])
            for name, index in splits.items()
        },
        incomplete=incomplete,
        group_name=metadata.get("groups", "videos"),
        of_clips=is_of_clips(table),
    )


def fingerprint_of(facts: DataFacts) -> str:
    """A digest of what would change a score; a label table has the hash of its vectors in it."""
    key = json.dumps([facts.bank_digest, facts.labels_sha256, facts.task.name])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _describe_incomplete(splits: Mapping[str, FeatureIndex]) -> str:
    """``1,024 of 8,000 train frames``, for each split that lacks planned frames."""
    lacking = []
    for name, index in splits.items():
        if count := index.missing.not_extracted:
            lacking.append(f"{count:,} of {len(index) + count:,} {name} frames")
    return " and ".join(lacking)


def find_labels(path: Path, task_name: str) -> Path:
    """The label table: ``path`` itself, or a task's in the folder that `raffect prepare` wrote."""
    folder = path / "labels" if (path / "labels").is_dir() else path
    if not folder.is_dir():
        return path
    if task_name:
        return folder / f"{task_name}.parquet"
    files = folder.glob("*.parquet")
    found = sorted(file.stem for file in files if not is_targets_file(file))
    require(bool(found), f"--labels {path}: no label table in it; make one with `raffect prepare`")
    require(
        len(found) == 1,
        f"--labels {path}: holds labels of {', '.join(found)}; choose one with --task",
    )
    return folder / f"{found[0]}.parquet"


def _read_task(file: Path, task_name: str) -> tuple[pa.Table, Task]:
    """A label table and its task, both checked.

    Raises:
        RaffectError: If it is not of task ``task_name``, or has labels that its task lacks.
    """
    table = read_labels(file)
    task = read_label_task(table, file, task_name)
    require(
        task_name in ("", task.name),
        f"{file}: labels of task {task.name}, not {task_name}; "
        f"give labels/{task_name}.parquet, or prepare these with --task {task_name}",
    )
    _require_labels(table, task, file)
    return table, task


def _require_labels(table: pa.Table, task: Task, file: Path) -> None:
    """Refuse labels that the task does not have: they would silently be other classes.

    Raises:
        RaffectError: Names the first one.
    """
    values = read_values(table, task)
    wrong = kind_of(task).find_wrong(task, values)
    if wrong.any():
        row, column = (int(part) for part in np.argwhere(wrong)[0])
        frame = f"{table['video'][row].as_py()} frame {table['frame'][row].as_py()}"
        first = f"first {task.columns[column]} {values[row, column]:g} of {frame}"
        command = "prepare" if kind_of(task).answers else "captions"
        raise RaffectError(
            f"{file}: {int(wrong.sum())} values are not labels of task {task.name}, {first}; "
            f"make it again with `raffect {command}`"
        )
