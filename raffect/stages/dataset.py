"""What a run trains and judges on: features and labels of both splits, checked, and the facts that go with every result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raffect.data import affwild2
from raffect.data.bank import Bank
from raffect.data.features import FeatureIndex, find_features, read_values
from raffect.data.tables import read_labels, read_metadata
from raffect.data.tasks import SPLITS, Task
from raffect.errors import RaffectError
from raffect.metrics.kinds import kind_of
from raffect.model.samples import Samples
from raffect.recipe import require

_FOLD_SEED = 0
_CHECKED_ROWS = 256  # so few that they stay in the cache
_MISSING_SHARE = 0.05


@dataclass(frozen=True)
class Dataset:
    """Both splits of a task on a bank.

    Attributes:
        task: The task.
        splits: Where each split's features lie.
        facts: Bank, labels, encoder and sizes, as plain JSON values.
        fingerprint: Names bank, labels and task: equal data, equal fingerprint.
    """

    task: Task
    splits: dict[str, FeatureIndex]
    facts: dict[str, Any]
    fingerprint: str
    _folds: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def fold_of_frames(self, folds: int) -> np.ndarray:
        """Fold of each training frame, shape (N,): whole videos, or other groups, alike in classes as far as that goes, the same for every run."""
        if folds not in self._folds:  # every pack of a fold asks again
            self._folds[folds] = self._share_videos(folds)
        return self._folds[folds]

    def _share_videos(self, folds: int) -> np.ndarray:
        from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

        train = self.splits["train"]
        classes = kind_of(self.task).strata(targets_of(train, self.task))
        require(len(train.groups) >= folds, f"--folds {folds}: the training split has {len(train.groups)} {self.facts['groups']}; take at most as many folds")
        stratified = classes is not None and np.unique(classes, return_counts=True)[1].min() >= folds
        splitter = (StratifiedGroupKFold if stratified else GroupKFold)(folds, shuffle=True, random_state=_FOLD_SEED)
        out = np.empty(len(train), np.int64)
        for number, (_, held_out) in enumerate(splitter.split(out, train.y[:, 0] if classes is None else classes, train.group)):
            out[held_out] = number
        return out


def open_dataset(bank_path: Path, labels_path: Path, task_name: str = "", wanted: Sequence[str] = SPLITS, *, allow_incomplete: bool = False) -> Dataset:
    """Find the features of both splits of a task, or of some; none is read yet.

    Args:
        bank_path: The bank.
        labels_path: A label table, or the folder that `raffect prepare` wrote.
        task_name: Which task of a folder; may be left out where there is one.
        wanted: Splits.
        allow_incomplete: Take a bank that lacks planned frames; ``facts["incomplete"]`` then says so.

    Raises:
        RaffectError: If bank or labels are missing, of another task, a split is empty, or planned frames are not in the bank.
    """
    bank, file = Bank(bank_path).require(), _find_labels(labels_path, task_name)
    table = read_labels(file)
    task = affwild2.read_task(read_metadata(table).get("task", task_name), str(file))
    require(task_name in ("", task.name), f"{file}: labels of task {task.name}, not {task_name}; give labels/{task_name}.parquet or another --task")
    _require_labels(table, task, file)
    commits = bank.read_commits()
    splits = {split: find_features(bank, table, task, split, commits=commits) for split in wanted}
    identity, metadata = bank.read_identity(), read_metadata(table)
    assert identity is not None  # find_features has seen it
    incomplete = _describe_incomplete(splits)
    require(
        allow_incomplete or not incomplete,
        f"{bank_path}: {incomplete} are planned and not there, not extracted yet or damaged; finish `raffect extract` (`raffect bank verify --bank {bank_path} --repair` withdraws what is damaged), or add --allow-incomplete, and every score will say so",
    )
    synthetic = metadata.get("synthetic") == "true"
    facts = {
        "task": task.to_json(), "bank": str(bank_path.absolute()), "labels": str(file.absolute()), "bank_digest": bank.digest(commits), "labels_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "encoder": asdict(identity), "edition": metadata.get("edition", ""), "synthetic": synthetic,
        "stamp": identity.stamp or ("drawn faces" if synthetic else ""), "published": {} if synthetic or "validation" not in splits else affwild2.published_scores(task, len(splits["validation"]), len(splits["validation"].videos)),
        **{split: {"frames": len(index), "videos": len(index.groups), "labelled_without_feature": index.missing.total, **asdict(index.missing)} for split, index in splits.items()},
        "incomplete": incomplete, "groups": metadata.get("groups", "videos"),
    }  # fmt: skip
    key = json.dumps([facts["bank_digest"], facts["labels_sha256"], task.name])
    return Dataset(task, splits, facts, hashlib.sha256(key.encode()).hexdigest()[:16])


def targets_of(index: FeatureIndex, task: Task) -> np.ndarray:
    """Labels as training takes them, one row a frame; see `raffect.metrics.kinds.Kind.targets`."""
    return kind_of(task).targets(task, index.y)


def read_rows(index: FeatureIndex, task: Task, device: torch.device) -> Samples:
    """Read features onto a device.

    Raises:
        RaffectError: If a feature is not finite.
    """
    x = index.read()
    check_finite(x, index)
    y, video = torch.from_numpy(targets_of(index, task)), torch.from_numpy(index.group.astype(np.int64))
    return Samples(torch.from_numpy(x).to(device), y.to(device), video.to(device), len(index.groups))


def check_finite(x: np.ndarray, index: FeatureIndex, rows: np.ndarray | None = None) -> None:
    """Refuse NaN and infinity by the frame that has them: one such feature makes every weight NaN within an epoch.

    Args:
        x: Features, shape (N, dim).
        index: What they are of.
        rows: Row of ``index`` of each feature, shape (N,); all in order by default.

    Raises:
        RaffectError: Names the first one.
    """
    for start in range(0, len(x), _CHECKED_ROWS):
        part = x[start : start + _CHECKED_ROWS].view(np.uint16)
        if (part & 0x7FFF).max() >= 0x7C00:
            row = start + int(((part & 0x7FFF) >= 0x7C00).any(axis=1).argmax())
            row = row if rows is None else int(rows[row])
            raise RaffectError(
                f"{index.bank.path}: the feature of {index.videos[index.video[row]]} frame {index.frame[row]} is not finite, and perhaps others; encode with --encoder.precision float32 into a new bank"
            )


def check_trainable(y: np.ndarray, task: Task, batch_size: int, where: str) -> None:
    """Refuse training rows from which nothing can be learnt.

    Raises:
        RaffectError: If there are fewer than a batch, or only one class.
    """
    require(len(y) >= batch_size, f"{where} has {len(y)} frames, fewer than --batch-size {batch_size}; take a smaller batch or more frames")
    why = kind_of(task).why_untrainable(task, y)
    require(not why, f"{where} has {why}; check --labels")


def missing_lines(facts: Mapping[str, Any]) -> list[str]:
    """A line for each split of which many labelled frames have no image, or one that cannot be read."""
    lines, name = [], affwild2.read_task(facts["task"], "the facts of a run").name.upper()
    for split in (split for split in SPLITS if split in facts):
        frames, without = facts[split]["frames"], facts[split]["labelled_without_feature"] - facts[split].get("not_extracted", 0)
        if without > _MISSING_SHARE * (frames + without):
            lines.append(f"{name} {split}: {without:,} of {frames + without:,} labelled frames have no image that can be read; scores are of the others (`raffect bank info`)")
    return lines


def incomplete_mark(facts: Mapping[str, Any]) -> str:
    """What follows every score of an incomplete bank; empty for a complete one."""
    return f" [INCOMPLETE BANK, it lacks {facts['incomplete']}]" if facts.get("incomplete") else ""


def _describe_incomplete(splits: Mapping[str, FeatureIndex]) -> str:
    """``1,024 of 8,000 train frames``, for each split that lacks planned frames."""
    lacking = {split: index.missing.not_extracted for split, index in splits.items() if index.missing.not_extracted}
    return " and ".join(f"{count:,} of {len(splits[split]) + count:,} {split} frames" for split, count in lacking.items())


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one.

    Raises:
        RaffectError: If CUDA is asked for and missing.
    """
    has_cuda = torch.cuda.is_available()
    require(name != "cuda" or has_cuda, "--device cuda: torch sees no CUDA device; see `raffect doctor`, or use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and has_cuda) else "cpu")


def _find_labels(path: Path, task_name: str) -> Path:
    """The label table: ``path`` itself, or the one of a task in the folder that `raffect prepare` wrote."""
    folder = path / "labels" if (path / "labels").is_dir() else path
    if not folder.is_dir():
        return path
    if task_name:
        return folder / f"{task_name}.parquet"
    found = sorted(file.stem for file in folder.glob("*.parquet"))
    require(bool(found), f"--labels {path}: no label table in it; make one with `raffect prepare`")
    require(len(found) == 1, f"--labels {path}: holds labels of {', '.join(found)}; choose one with --task")
    return folder / f"{found[0]}.parquet"


def _require_labels(table: pa.Table, task: Task, file: Path) -> None:
    """Refuse labels that the task does not have: they would be other classes without a word.

    Raises:
        RaffectError: Names the first one.
    """
    values = read_values(table, task)
    wrong = kind_of(task).find_wrong(task, values)
    if wrong.any():
        row, column = (int(part) for part in np.argwhere(wrong)[0])
        frame = f"{table['video'][row].as_py()} frame {table['frame'][row].as_py()}"
        raise RaffectError(
            f"{file}: {int(wrong.sum())} values are no labels of task {task.name}, first {task.columns[column]} {values[row, column]:g} of {frame}; make it again with `raffect prepare`"
        )
