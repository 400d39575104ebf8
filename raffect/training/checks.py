"""What is refused before a run writes or starts anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raffect.config import LearnConfig
from raffect.errors import RaffectError
from raffect.heads.head_batch import HeadSpec
from raffect.runs.data import Dataset, check_trainable, pick_device, targets_of
from raffect.runs.windows import require_full_window
from raffect.training.run_batch import spec_of


def find_left_out(words: Sequence[str], dataset: Dataset) -> list[str]:
    """Classes that ``--leave-out`` means: those that are named, or each that training would see.

    Raises:
        RaffectError: If the task has no classes. A class that it lacks is refused as the setting
            ``loss.leave_out`` is.
    """
    if "each" not in words:
        return list(dict.fromkeys(words))
    task, kind = dataset.task, dataset.loss_kind(pick_device("cpu"))
    targets = torch.from_numpy(targets_of(dataset.splits["train"], task))
    classes = kind.classes(targets) if kind.has_classes and len(task.outputs) > 1 else None
    if classes is None:
        raise RaffectError(
            f"--leave-out each: task {task.name} has no classes; make captions of classes with "
            "`raffect captions`, or leave it out"
        )
    return [task.outputs[k] for k in classes.unique().tolist() if k >= 0]


def check_before(config: LearnConfig, dataset: Dataset, spec: HeadSpec | None = None) -> None:
    """Refuse what cannot be trained before anything is written or started; see `train_on`.

    Raises:
        RaffectError: If there are too few rows, classes or videos, windows are too long, or the
            task does not have the loss.
    """
    if config.select == "cv":
        dataset.fold_of_frames(config.num_folds)
    kind = dataset.loss_kind(pick_device("cpu"))
    where = f"the training split of {dataset.facts.labels}"
    kind.require_recipe(config)
    if spec is None:
        spec_of(dataset, config)
    index = dataset.rows("train", config.head)
    require_full_window(index, config.head, dataset.facts.of_clips)
    targets = targets_of(dataset.splits["train"], dataset.task)
    check_trainable(targets, dataset.task, config.batch_size, where)
    if config.loss.leave_out:
        check_trainable(kind.without(targets, config.loss), dataset.task, 1, where)
