"""Heads of one task together: samples in, the mean of their probabilities out.

Whoever predicts, from a bank or from pictures, loads `Ensemble`s and calls `Ensemble.scores`.

Shape letters: P heads, N frames, D feature, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raffect.bank.windows import Window
from raffect.datasets.tasks import Task
from raffect.evaluation.choose_rules import choose_rules, require_one_task, require_rules
from raffect.evaluation.inputs import Inputs
from raffect.heads.checkpoint import load_batch
from raffect.heads.contrastive import require_answers
from raffect.heads.head_batch import HeadBatch
from raffect.heads.loss_kinds import loss_kind
from raffect.predictions.rules import DecisionRules
from raffect.runs.pick import PickedHead
from raffect.runs.windows import window_of

_AT_ONCE = 8_192
"""Frames times heads that are predicted at once: so few that a layer's outputs stay small."""


@dataclass(frozen=True)
class _Part:
    """Heads of one spec, side by side.

    Attributes:
        rows: Their places in the ensemble, shape (P,).
        window: The shape of a sample.
        dtype: Of their weights.
        predict: Samples (N, D) or (N, T, D) of that type to outputs (P, N, C).
    """

    rows: list[int]
    window: Window
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
        self._weight_P = torch.tensor(rules.shares, device=device)
        self._parts = _side_by_side(heads, device)

    @property
    def task(self) -> Task:
        """What they predict."""
        return self.rules.task

    @property
    def windows(self) -> list[Window]:
        """The shapes of samples that its heads read."""
        return list(dict.fromkeys(part.window for part in self._parts))

    def scores(self, inputs: np.ndarray | Mapping[Window, Inputs]) -> np.ndarray:
        """Weighted mean of the heads' probabilities, or of their values within the task's limits.

        Args:
            inputs: Features of N frames, float16, shape (N, D), or the N samples in each of
                `windows`.

        Returns:
            float32, shape (N, C); neither smoothed nor decided.
        """
        if isinstance(inputs, np.ndarray):
            inputs = {Window(): Inputs(inputs)}
        longest = max(window.length for window in self.windows)
        step = max(1, _AT_ONCE // (len(self.heads) * longest))
        size, parts = len(inputs[self.windows[0]]), []
        with torch.inference_mode():
            take = {window: inputs[window].to(self.device) for window in self.windows}
            for start in range(0, max(size, 1), step):
                some = slice(start, start + step)
                found = self._predict({window: of(some) for window, of in take.items()})
                mean = torch.einsum("p,pnc->nc", self._weight_P, found)
                parts.append(mean.cpu().numpy())
        return np.concatenate(parts)

    def _predict(self, samples: Mapping[Window, Tensor]) -> Tensor:
        """Scores of all heads for some samples, float32, shape (P, N, C)."""
        found = [
            self._kind.probabilities(part.predict(samples[part.window].to(part.dtype))).float()
            for part in self._parts
        ]
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
        heads: Of `raffect.runs.pick.pick_heads`.
        device: Where to compute.
        postprocess: See `raffect.evaluation.choose_rules.choose_rules`.

    Returns:
        The ensembles, and a line each that says which decision rules it has.

    Raises:
        RaffectError: If a head is damaged, or rules do not fit.
    """
    tasks = [head.card.task for head in heads]
    require_one_task(tasks)
    for task in tasks:
        require_answers(task)
    require_rules(postprocess, tasks)
    ensembles, notes = [], []
    for name in dict.fromkeys(head.card.task.name for head in heads):
        of_task = [head for head in heads if head.card.task.name == name]
        rules, chosen, note = choose_rules(of_task[0].card.task, of_task, postprocess)
        ensembles.append(Ensemble(chosen, rules, device))
        notes.append(note)
    return ensembles, notes


def _side_by_side(heads: Sequence[PickedHead], device: torch.device) -> list[_Part]:
    """Load heads; those of one spec run as one batch, which costs their products alone."""
    alike: dict[tuple, list[tuple[int, HeadBatch]]] = {}
    for row, head in enumerate(heads):
        batch, card = load_batch(head.folder, device)
        key = (batch.spec, window_of(card.recipe.head), batch.rows.dtype)
        alike.setdefault(key, []).append((row, batch))
    parts = []
    for (spec, window, dtype), found in alike.items():
        batches = [batch for _, batch in found]
        buffers = {
            name: torch.cat([batch.buffers[name] for batch in batches]) for name in spec.buffers
        }
        whole = spec.build(torch.cat([batch.rows for batch in batches]), buffers)
        predict = whole.predictor(whole.rows, whole.buffers)
        parts.append(_Part([row for row, _ in found], window, dtype, predict))
    return parts
