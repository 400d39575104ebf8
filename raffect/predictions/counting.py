"""Additive statistics of decided predictions in numpy, as `raffect.heads.counting` has them.

Shape letters: N frames, G groups, C classes, L labels, V values.
"""

from __future__ import annotations

import numpy as np

from raffect.datasets.tasks import Task
from raffect.metrics.agreement import MOMENTS


class Counting:
    """Counts predictions for some frames again and again; what they share is prepared once.

    Args:
        task: The task.
        target: Classes (N,); labels (N, L), negative where unlabelled; or values (N, V), NaN where
            unlabelled.
        group: Number of each frame's group, shape (N,).
        num_groups: How many there are.
    """

    def __init__(self, task: Task, target: np.ndarray, group: np.ndarray, num_groups: int) -> None:
        self.task, self.num_groups = task, num_groups
        outputs, group = len(task.outputs), group.astype(np.int64)
        # Number of a frame's cell in the flattened result, but for what is predicted
        if task.kind == "multiclass":
            self._cell = (group * outputs + target) * outputs
        elif task.kind == "multilabel":
            # Unlabelled ones count in a group beyond the last one, which is dropped
            row = np.where(target >= 0, group[:, None], num_groups) * outputs + np.arange(outputs)
            self._cell = row * 4 + np.where(target > 0, 2, 3)
        else:
            self._group, self._known = group, np.isfinite(target)
            self._true = np.where(self._known, target, 0).astype(np.float64)

    def count(self, decided: np.ndarray) -> np.ndarray:
        """Statistics by group of what `raffect.predictions.rules.DecisionRules.decide` returns.

        Returns:
            Shape (G, A, B); see `raffect.metrics.task_kinds`.
        """
        outputs, groups = len(self.task.outputs), self.num_groups
        if self.task.kind == "multiclass":
            cells = (self._cell + decided).ravel()
            shape = (groups, outputs, outputs)
            return np.bincount(cells, minlength=groups * outputs * outputs).reshape(shape)
        if self.task.kind == "multilabel":
            cells = (self._cell - 2 * decided).ravel()
            found = np.bincount(cells, minlength=(groups + 1) * outputs * 4)
            return found.reshape(groups + 1, outputs, 4)[:groups]
        return self._moments(decided)

    def _moments(self, decided: np.ndarray) -> np.ndarray:
        out = np.zeros((self.num_groups, self._true.shape[1], MOMENTS))
        for v in range(self._true.shape[1]):
            known, true = self._known[:, v], self._true[:, v]
            predicted = np.where(known, decided[:, v].astype(np.float64), 0)
            terms = (known, true, predicted, true**2, predicted**2, true * predicted)
            for k, term in enumerate(terms):
                out[:, v, k] = np.bincount(self._group, term, minlength=self.num_groups)
        return out
