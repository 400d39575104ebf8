"""Decision rules: how probabilities of several heads become what is predicted.

In this order: the weighted mean of the heads' probabilities; the mean over a window of frames; for
classes a bias of each on the log probability, for labels a threshold of each; values are kept
within the task's limits. Rules are chosen by `raffect postprocess` (`raffect.predictions.choose`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from raffect.datasets.tasks import Number, Task
from raffect.errors import require
from raffect.predictions.smoothing import smooth
from raffect.storage.records import Record

RuleName = Literal["weights", "windows", "thresholds", "bias"]
"""What is chosen."""
RULE_TITLES: dict[RuleName, str] = {
    "weights": "ensemble weights",
    "windows": "window",
    "thresholds": "thresholds",
    "bias": "class bias",
}
"""What tables call them."""
RULES_FILE = "decision_rules.json"
"""Name of the rules of a run, in its folder."""
REMEDY = "make it again with `raffect postprocess`"
THRESHOLD = 0.5
"""Probability from which on a label is predicted where no rule says otherwise."""
TINY = 1e-12
"""Probability below which differences do not count any more."""


@dataclass(frozen=True, kw_only=True)
class WeightedHead(Record):
    """One head of an ensemble.

    Attributes:
        folder: Of the head.
        sha256: Of its weights.
        weight: Its share of the mean, before these are scaled to 1.
    """

    folder: str
    sha256: str
    weight: Annotated[float, Gt(0)] = 1.0


@dataclass(frozen=True, kw_only=True)
class DecisionRules(Record):
    """How one task is decided.

    Attributes:
        format: Of this record.
        task: The task.
        heads: Whose probabilities are averaged.
        windows: Half-width in frames of the window of each output: 2 is a mean over 5 frames.
        thresholds: Probability from which on each label is predicted; empty for other kinds.
        bias: What is added to each class's log probability; empty for other kinds.
        chosen_on: Held-out folds of the training split; the validation split, and so optimistic
            there; or nothing: the rules are the plain ones.
    """

    format: Literal[1] = 1
    task: Task
    heads: tuple[WeightedHead, ...] = ()
    windows: tuple[Annotated[int, Ge(0), Le(100_000)], ...]
    thresholds: tuple[Annotated[float, Ge(0), Le(1)], ...] = ()
    bias: tuple[Number, ...] = ()
    chosen_on: Literal["folds", "validation", "nothing"] = "nothing"

    def __post_init__(self) -> None:
        outputs, kind = len(self.task.outputs), self.task.kind
        wanted = {
            "windows": outputs,
            "thresholds": outputs if kind == "multilabel" else 0,
            "bias": outputs if kind == "multiclass" else 0,
        }
        for name, count in wanted.items():
            found = len(getattr(self, name))
            require(found == count, f"{found} {name} for {outputs} outputs, expected {count}")

    @property
    def model(self) -> str:
        """Task and number of heads, as the column ``model`` of a table has it."""
        return f"{self.task.name}: {len(self.heads)} head(s)"

    @property
    def shares(self) -> list[float]:
        """Each head's share of the mean; they add up to 1."""
        total = sum(head.weight for head in self.heads)
        return [head.weight / total for head in self.heads]

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the mean of the heads' probabilities is decided on."""
        plain = plain_rules(self.task)
        same = (self.windows, self.thresholds, self.bias) == (
            plain.windows,
            plain.thresholds,
            plain.bias,
        )
        return same and len({head.weight for head in self.heads}) <= 1

    def describe(self, rule: RuleName) -> str:
        """What was chosen, such as ``mean over ± 25 frames``."""
        if rule == "weights":
            weights = " : ".join(f"{head.weight:g}" for head in self.heads)
            return f"heads weigh {weights}" if len(self.heads) > 1 else "one head alone"
        if rule == "windows" and len(set(self.windows)) == 1:
            return f"mean over ± {self.windows[0]} frames"
        texts: dict[RuleName, list[str]] = {
            "windows": [f"± {window}" for window in self.windows],
            "thresholds": [f"{threshold:.2f}" for threshold in self.thresholds],
            "bias": [f"{bias:+.2f}" for bias in self.bias],
        }
        pairs = zip(self.task.outputs, texts[rule], strict=True)
        return ", ".join(f"{name} {text}" for name, text in pairs)

    def smooth(self, scores: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Probabilities or values of one video as means over the windows.

        Args:
            scores: Shape (N, C).
            frame: 1-based frame numbers, ascending, shape (N,).

        Returns:
            float32, shape (N, C).
        """
        out = np.empty(scores.shape, np.float32)
        for window in set(self.windows):
            columns = [k for k, other in enumerate(self.windows) if other == window]
            out[:, columns] = smooth(scores[:, columns], frame, window)
        return out

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """What is predicted from smoothed probabilities or values of shape (N, C).

        Returns:
            Classes, int64, shape (N,); labels 0 or 1, int8, (N, C); or values, float32, (N, C).
        """
        if self.task.kind == "multiclass":
            if not any(self.bias):
                return scores.argmax(1)
            return (log_scores(scores) + np.asarray(self.bias, np.float32)).argmax(1)
        if self.task.kind == "multilabel":
            return (scores >= np.asarray(self.thresholds, np.float32)).astype(np.int8)
        low, high = self.task.limits or (-np.inf, np.inf)
        return np.clip(scores, low, high).astype(np.float32)


def log_scores(scores: np.ndarray) -> np.ndarray:
    """Log probabilities as a bias is added to them: float32, of the shape of ``scores``."""
    return np.log(np.maximum(scores, TINY, dtype=np.float32))


def plain_rules(task: Task, heads: tuple[WeightedHead, ...] = ()) -> DecisionRules:
    """The rules of a task for which none were chosen: no window, 0.5, no bias."""
    outputs, kind = len(task.outputs), task.kind
    return DecisionRules(
        task=task,
        heads=heads,
        windows=(0,) * outputs,
        thresholds=(THRESHOLD,) * outputs if kind == "multilabel" else (),
        bias=(0.0,) * outputs if kind == "multiclass" else (),
    )


def read_rules(file: Path) -> DecisionRules:
    """Read a file of rules.

    Raises:
        RaffectError: If it is missing or damaged.
    """
    require(file.is_file(), f"--postprocess {file}: no such file; expected auto, none or rules")
    return DecisionRules.from_json(file.read_bytes(), file, REMEDY)
