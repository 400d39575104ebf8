"""What a run trains and judges on: features and labels of both splits, checked, and the facts that go with every result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raffect.data.bank import Bank
from raffect.data.features import FeatureIndex, find_features
from raffect.data.labels import ACTION_UNITS, EXPR, EXPRESSIONS, SPLITS, TASKS, Task
from raffect.data.tables import read_labels, read_metadata
from raffect.errors import RaffectError
from raffect.model.learner import Rows
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

    @property
    def num_outputs(self) -> int:
        """Logits of a head."""
        return len(output_names(self.task))

    def fold_of_frames(self, folds: int) -> np.ndarray:
        """Fold of each training frame, shape (N,): whole videos, alike in classes as far as that goes, the same for every run."""
        if folds not in self._folds:  # every pack of a fold asks again
            self._folds[folds] = self._share_videos(folds)
        return self._folds[folds]

    def _share_videos(self, folds: int) -> np.ndarray:
        from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

        train = self.splits["train"]
        require(len(train.videos) >= folds, f"--folds {folds}: the training split has {len(train.videos)} videos; take at most as many folds")
        stratified = self.task is EXPR and np.bincount(train.y[:, 0])[np.unique(train.y[:, 0])].min() >= folds
        splitter = (StratifiedGroupKFold if stratified else GroupKFold)(folds, shuffle=True, random_state=_FOLD_SEED)
        out = np.empty(len(train), np.int64)
        for number, (_, held_out) in enumerate(splitter.split(out, train.y[:, 0], train.video)):
            out[held_out] = number
        return out


def open_dataset(bank_path: Path, labels_path: Path, task_name: str, wanted: Sequence[str] = SPLITS, *, allow_incomplete: bool = False) -> Dataset:
    """Find the features of both splits of a task, or of some; none is read yet.

    Args:
        bank_path: The bank.
        labels_path: A label table, or the folder that `raffect prepare` wrote.
        task_name: Which task.
        wanted: Splits.
        allow_incomplete: Take a bank that lacks planned frames; ``facts["incomplete"]`` then says so.

    Raises:
        RaffectError: If bank or labels are missing, of another task, a split is empty, or planned frames are not in the bank.
    """
    bank, task = Bank(bank_path).require(), TASKS[task_name]
    file = labels_path / "labels" / f"{task_name}.parquet" if (labels_path / "labels").is_dir() else labels_path
    if file.is_dir():
        file = file / f"{task_name}.parquet"
    table = read_labels(file)
    found_task = read_metadata(table).get("task", task_name)
    require(found_task == task_name, f"{file}: labels of task {found_task}, not {task_name}; give labels/{task_name}.parquet or another --task")
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
        "task": task_name, "bank": str(bank_path.absolute()), "labels": str(file.absolute()), "bank_digest": bank.digest(commits), "labels_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "encoder": asdict(identity), "edition": metadata.get("edition", ""), "synthetic": synthetic,
        "stamp": identity.stamp or ("drawn faces" if synthetic else ""), "aff_wild2": not synthetic and "validation" in splits and _is_complete(task, splits["validation"]),
        **{split: {"frames": len(index), "videos": len(index.videos), "labelled_without_feature": index.missing.total, **asdict(index.missing)} for split, index in splits.items()},
        "incomplete": incomplete,
    }  # fmt: skip
    key = json.dumps([facts["bank_digest"], facts["labels_sha256"], task_name])
    return Dataset(task, splits, facts, hashlib.sha256(key.encode()).hexdigest()[:16])


def output_names(task: Task) -> tuple[str, ...]:
    """Names of a head's outputs, in order."""
    return EXPRESSIONS if task is EXPR else tuple(ACTION_UNITS)


def labels_of(index: FeatureIndex, task: Task) -> np.ndarray:
    """Classes (N,) as int64, or units (N, U) as int8, as training takes them."""
    return index.y[:, 0].astype(np.int64) if task is EXPR else index.y


def read_rows(index: FeatureIndex, task: Task, device: torch.device) -> Rows:
    """Read features onto a device.

    Raises:
        RaffectError: If a feature is not finite.
    """
    x = index.read()
    check_finite(x, index)
    return Rows(torch.from_numpy(x).to(device), torch.from_numpy(labels_of(index, task)).to(device), torch.from_numpy(index.video.astype(np.int64)).to(device), len(index.videos))


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
    if y.ndim == 1:
        found = np.unique(y)
        require(len(found) > 1, f"{where} has one class only ({output_names(task)[found[0]]}, {len(y)} frames); a head needs two or more, check --labels")
    else:
        both = ((y == 1).any(0) & (y == 0).any(0)).sum()
        require(both > 0, f"{where} has no unit with both active and inactive frames; check --labels")


def missing_lines(facts: Mapping[str, Any]) -> list[str]:
    """A line for each split of which many labelled frames have no image, or one that cannot be read."""
    lines = []
    for split in (split for split in SPLITS if split in facts):
        frames, without = facts[split]["frames"], facts[split]["labelled_without_feature"] - facts[split].get("not_extracted", 0)
        if without > _MISSING_SHARE * (frames + without):
            lines.append(
                f"{facts['task'].upper()} {split}: {without:,} of {frames + without:,} labelled frames have no image that can be read; scores are of the others (`raffect bank info`)"
            )
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


def _is_complete(task: Task, validation: FeatureIndex) -> bool:
    """Whether a validation split is Aff-Wild2's own, whole, so that published scores may stand beside ours."""
    annotated = task.complete_annotated["validation"]
    return len(validation.videos) == task.complete_videos["validation"] and 0.98 * annotated <= len(validation) <= annotated
