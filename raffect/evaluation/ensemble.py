"""Heads of one task together: features in, the mean of their probabilities out.

Whoever predicts, from a bank or from pictures, loads `Ensemble`s and calls `Ensemble.scores`.

Shape letters: P heads, N frames, D feature, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raffect.datasets.tasks import Task
from raffect.evaluation.choose_rules import choose_rules, require_one_task, require_rules
from raffect.evaluation.pick import PickedHead
from raffect.heads.checkpoint import load_batch
from raffect.heads.head_batch import HeadBatch
from raffect.heads.loss_kinds import loss_kind
from raffect.predictions.rules import DecisionRules

_AT_ONCE = 8_192
"""Frames times heads that are predicted at once: so few that a layer's outputs stay small."""


@dataclass(frozen=True)
class _Part:
    """Heads of one spec, side by side.

    Attributes:
        rows: Their places in the ensemble, shape (P,).
        dtype: Of their weights.
        predict: Features (N, D) of that type to outputs (P, N, C).
    """

    rows: list[int]
    dtype: torch.dtype
    predict: Callable[[Tensor], Tensor]


class Ensemble:
    """Heads of one task, and the rules by which they decide.

    Args:
        heads: At least one, of the task of ``rules``; those that ``rules.heads`` names, in its
            order.
        rules: How their probabilities are averaged, smoothed and decided.
        device: Where to compute.

    Raises:
        RaffectError: If a head is damaged.
    """

    def __init__(
        self, heads: Sequence[PickedHead], rules: DecisionRules, device: torch.device
    ) -> None:
        self.heads, self.rules, self.device = tuple(heads), rules, device
        self._kind = loss_kind(rules.task)
        weight = torch.tensor([head.weight for head in rules.heads], dtype=torch.float64)
        self._weight_P = (weight / weight.sum()).float().to(device)
        self._parts = _side_by_side([head.folder for head in heads], device)

    @property
    def task(self) -> Task:
        """What they predict."""
        return self.rules.task

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Weighted mean of the heads' probabilities, or of their values within the task's limits.

        Args:
            features: float16, shape (N, D).

        Returns:
            float32, shape (N, C); neither smoothed nor decided.
        """
        step = max(1, _AT_ONCE // len(self.heads))
        parts = []
        with torch.inference_mode():
            for start in range(0, max(len(features), 1), step):
                # A copy, since torch takes no view of a file's bytes
                x = torch.from_numpy(features[start : start + step].copy()).to(self.device)
                mean = torch.einsum("p,pnc->nc", self._weight_P, self._predict(x))
                parts.append(mean.cpu().numpy())
        return np.concatenate(parts)

    def _predict(self, x: Tensor) -> Tensor:
        """Scores of all heads for some frames, float32, shape (P, N, C)."""
        found = [self._kind.probabilities(p.predict(x.to(p.dtype))).float() for p in self._parts]
        if len(found) == 1:
            return found[0]
        scores = found[0].new_empty(len(self.heads), *found[0].shape[1:])
        for part, values in zip(self._parts, found, strict=True):
            scores[part.rows] = values
        return scores


def load_ensembles(
    heads: Sequence[PickedHead], device: torch.device, postprocess: str = "auto"
) -> tuple[list[Ensemble], list[str]]:
    """An ensemble for each task of some heads, in the order in which tasks come up.

    Args:
        heads: Of `raffect.evaluation.pick.pick_heads`.
        device: Where to compute.
        postprocess: See `raffect.evaluation.choose_rules.choose_rules`.

    Returns:
        The ensembles, and a line each that says which decision rules it has.

    Raises:
        RaffectError: If a head is damaged, or rules do not fit.
    """
    tasks = [head.card.task for head in heads]
    require_one_task(tasks)
    require_rules(postprocess, tasks)
    ensembles, notes = [], []
    for name in dict.fromkeys(head.card.task.name for head in heads):
        of_task = [head for head in heads if head.card.task.name == name]
        rules, chosen, note = choose_rules(of_task[0].card.task, of_task, postprocess)
        ensembles.append(Ensemble(chosen, rules, device))
        notes.append(note)
    return ensembles, notes


def _side_by_side(folders: Sequence[Path], device: torch.device) -> list[_Part]:
    """Load heads; those of one spec run as one batch, which costs their products alone."""
    alike: dict[tuple, list[tuple[int, HeadBatch]]] = {}
    for row, folder in enumerate(folders):
        batch, _ = load_batch(folder, device)
        alike.setdefault((batch.spec, batch.rows.dtype), []).append((row, batch))
    parts = []
    for (spec, dtype), found in alike.items():
        batches = [batch for _, batch in found]
        buffers = {
            name: torch.cat([batch.buffers[name] for batch in batches]) for name in spec.buffers
        }
        whole = spec.build(torch.cat([batch.rows for batch in batches]), buffers)
        predict = whole.predictor(whole.rows, whole.buffers)
        parts.append(_Part([row for row, _ in found], dtype, predict))
    return parts
