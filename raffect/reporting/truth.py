"""Labels beside predictions: of the frames of a table, by video and frame number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raffect.datasets.labels import read_label_task, read_labels, read_values
from raffect.datasets.targets import is_targets_file
from raffect.datasets.tasks import Task
from raffect.errors import require
from raffect.metrics.task_kinds import kind_of
from raffect.storage.keys import Vocabulary, positions


class Truth:
    """Labels of some tasks.

    Attributes:
        tasks: Those that have labels.
        split: Whose labels these are; empty for all.
    """

    def __init__(self, path: Path, tasks: Sequence[Task], split: str = "") -> None:
        """Read a label table, or those of the folder that `raffect prepare` wrote.

        Raises:
            RaffectError: If there is no label table of one of the tasks, or it is damaged.
        """
        self.split, self._vocabulary = split, Vocabulary()
        self._keys: dict[str, np.ndarray] = {}
        self._targets: dict[str, np.ndarray] = {}
        found = {}
        for file in label_files(path):
            table = read_labels(file)
            labelled = read_label_task(table, file)
            for task in tasks:
                if (labelled.kind, labelled.outputs) == (task.kind, task.outputs):
                    self._add(task, table)
                    found[task.name] = task
        self.tasks = tuple(found.values())
        names = ", ".join(task.name for task in tasks)
        require(bool(found), f"--labels {path}: no label table of {names}; see `raffect prepare`")

    def _add(self, task: Task, table: pa.Table) -> None:
        if self.split:
            table = table.filter(pc.field("split").cast(pa.string()) == self.split)
        keys = self._vocabulary.keys(table)
        order = np.argsort(keys, kind="stable")
        targets = kind_of(task).targets(task, read_values(table, task))
        self._keys[task.name] = keys[order]
        self._targets[task.name] = targets.reshape(len(keys), -1)[order]

    def of(self, task: Task, video: pa.Array, frame: pa.Array) -> np.ndarray:
        """Targets of frames of a task that has labels.

        Args:
            task: One of `tasks`.
            video: Names, N.
            frame: 1-based numbers, N.

        Returns:
            Shape (N, C), float32: the number of the class (C = 1), labels 0 or 1, or values; NaN
            where a frame is not labelled.
        """
        keys, targets = self._keys[task.name], self._targets[task.name]
        wanted = self._vocabulary.keys(pa.table({"video": video, "frame": frame}))
        rows = positions(wanted, keys)
        out = np.full((len(wanted), targets.shape[1]), np.nan, np.float32)
        out[rows >= 0] = targets[rows[rows >= 0]]
        # Classes and labels are -1 without a label
        return out if task.kind == "regression" else np.where(out < 0, np.nan, out)


def label_files(path: Path) -> list[Path]:
    """The file itself, or the label tables of a folder."""
    if not path.is_dir():
        return [path]
    folder = path / "labels" if (path / "labels").is_dir() else path
    files = (file for file in folder.glob("*.parquet") if not is_targets_file(file))
    return sorted(file for file in files if file.name != "manifest.parquet")
