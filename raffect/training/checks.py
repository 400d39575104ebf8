"""What is refused before a run writes or starts anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raffect.config import LearnConfig
from raffect.errors import require
from raffect.heads.head_batch import EmbeddingSpec, HeadSpec
from raffect.runs.data import Dataset, check_trainable, pick_device, targets_of
from raffect.runs.windows import require_full_window
from raffect.training.run_batch import spec_of


def find_left_out(words: Sequence[str], dataset: Dataset) -> list[str]:
    """Classes that ``--leave-out`` means: those that are named, or each that training would see.

    Raises:
        RaffectError: If the task has no classes. A class that it lacks is refused as the setting
            ``loss.leave_out`` is.
    """
    task = dataset.task
    if words:
        _require_captions(f"--leave-out {' '.join(words)[:60]}", dataset)
    if "each" not in words:
        return list(dict.fromkeys(words))
    require(
        len(task.outputs) > 1,
        f"--leave-out each: the captions of {task.name} are of no classes; make captions of "
        "classes with `raffect captions`, or leave it out",
    )
    classes = np.unique(targets_of(dataset.splits["train"], task)[:, 1])
    return [task.outputs[k] for k in classes if k >= 0]


def _require_captions(what: str, dataset: Dataset) -> None:
    """Refuse to leave a class out of labels: a head can never give an answer that it never saw.

    Raises:
        RaffectError: Names the task and the remedy.
    """
    task = dataset.task
    require(
        dataset.targets is not None,
        f"{what}: task {task.name} is {task.kind}, whose heads can never give an answer that they "
        "have not seen; make captions of its classes with `raffect captions`, or leave it out",
    )


def _require_other_vectors(spec: HeadSpec, dataset: Dataset) -> None:
    """Refuse a head that maps texts as it maps features for targets that are texts already.

    Raises:
        RaffectError: Names the kind of head and the remedy.
    """
    maps_texts = isinstance(spec, EmbeddingSpec) and (
        type(spec).embed_texts is not EmbeddingSpec.embed_texts
    )
    targets = dataset.facts.targets
    require(
        not maps_texts or targets is None or not targets.image_sha256,
        f"head.kind {spec.kind}: maps texts as it maps features, and the targets of "
        f"{dataset.facts.labels} are texts of the bank's own weights, which would be mapped once "
        "more; give vectors of a teacher (`raffect captions --teacher`), or head.kind temporal",
    )


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
    if config.loss.leave_out:
        _require_captions(f"loss.leave-out {config.loss.leave_out[:60]}", dataset)
    kind.require_recipe(config)
    _require_other_vectors(spec or spec_of(dataset, config), dataset)
    index = dataset.rows("train", config.head)
    require_full_window(index, config.head, dataset.facts.of_clips)
    targets = targets_of(dataset.splits["train"], dataset.task)
    check_trainable(targets, dataset.task, config.batch_size, where)
    if config.loss.leave_out:
        check_trainable(kind.without(targets, config.loss), dataset.task, 1, where)
