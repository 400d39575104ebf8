"""`raffect prepare --map`: labels of one data set in the classes of another one, matched by name.

So a head that was trained on one set is judged on another, on the classes that both have. Samples
of other classes are unlabelled. A head still may answer a class that the other set lacks, which
then is wrong.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.datasets.expressions import find_expression
from raffect.datasets.imported import Imported, count_splits
from raffect.datasets.labels import read_label_task, read_labels, read_values
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require

_MULTICLASS = "multiclass"


def map_classes(found: Imported, file: Path) -> None:
    """Replace labels of classes by those of another label table's task.

    Of several such tasks the one with most classes in common is taken; all others stay.

    Args:
        found: What an importer found; changed in place.
        file: A label table of classes.

    Raises:
        RaffectError: If it has no classes, the data set has none, or they have fewer than two in
            common.
    """
    # Both tasks
    target = read_label_task(read_labels(file), file)
    require(
        target.kind == _MULTICLASS,
        f"--map {file}: labels of {target.name} are {target.kind}, expected classes",
    )
    own = [task for task in found.labels if task.kind == _MULTICLASS]
    require(bool(own), f"--map {file}: the data set has no classes")
    task = max(own, key=lambda one: (match_outputs(one, target) >= 0).sum())
    number = match_outputs(task, target)
    common = [name for name, k in zip(task.outputs, number, strict=True) if k >= 0]
    if len(common) < 2:
        classes = f"{', '.join(target.outputs)} and {', '.join(task.outputs)}"
        raise RaffectError(f"--map {file}: fewer than two classes in common: {classes}")

    # Labels by the other task's numbers
    table = found.labels.pop(task)
    require(
        target.name not in {other.name for other in found.labels},
        f"--map {file}: the data set has another task {target.name}, too",
    )
    values = read_values(table, task)
    known = task.is_labelled(values)[:, 0]
    labels = np.full(len(table), -1, np.int16)
    labels[known] = number[values[known, 0].astype(int)]
    mark = -1 if target.unlabelled is None else target.unlabelled
    cells = np.where(labels < 0, mark, labels).astype(np.int16)
    place = table.column_names.index(task.columns[0])
    mapped = table.set_column(place, target.columns[0], pa.array(cells))
    found.labels[target] = mapped

    # The data set's words for classes, in the other task's names
    renamed = dict(zip(task.outputs, number.tolist(), strict=True))
    found.names[target.name] = {
        word: target.outputs[renamed[name]]
        for word, name in found.names.pop(task.name, {}).items()
        if renamed[name] >= 0
    }

    # Report
    found.counts = [part for part in found.counts if part.task != task.name]
    found.counts += count_splits(target, mapped, labels >= 0, found.manifest)
    lost = [name for name, k in zip(task.outputs, number, strict=True) if k < 0]
    absent = [name for k, name in enumerate(target.outputs) if k not in number]
    lines = [f"mapped: {task.name} to the classes of {file}, by name: {', '.join(common)}"]
    if lost:
        count = f"{int((known & (labels < 0)).sum()):,} samples"
        lines.append(f"mapped: {count} of other classes are unlabelled: {', '.join(lost)}")
    if absent:
        lines.append(f"mapped: classes that this data set lacks: {', '.join(absent)}")
    found.lines += lines


def match_outputs(task: Task, target: Task) -> np.ndarray:
    """Which output of another task each output of a task is, by name.

    Args:
        task: The task.
        target: The other one.

    Returns:
        Numbers in ``target.outputs``, -1 for one that it lacks, shape (outputs of ``task``,).

    Raises:
        RaffectError: If the other task has two names of one output, such as Happy and Happiness.
    """
    number: dict[str, int] = {}
    for k, name in enumerate(target.outputs):
        first = number.setdefault(_common(name), k)
        require(
            first == k,
            f"task {target.name}: {target.outputs[first]} and {name} are one class by name; "
            "name them apart",
        )
    return np.array([number.get(_common(name), -1) for name in task.outputs])


def _common(name: str) -> str:
    """The name that all data sets share, such as ``happiness`` for ``Happy``."""
    return (find_expression(name) or name.strip()).lower()
