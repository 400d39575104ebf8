"""Kinds of tasks: how labels are read, and how predictions are scored.

The torch half, losses and counting, is in `raffect.heads.loss_kind`; the base of all kinds in
`raffect.metrics.kind`, and targets that are vectors in `raffect.metrics.retrieval`.
"""

from __future__ import annotations

import numpy as np

from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.metrics import agreement
from raffect.metrics.f1 import describe_classes, divide, f1_scores, one_against_rest
from raffect.metrics.kind import Kind
from raffect.metrics.recalls import uar
from raffect.metrics.retrieval import Contrastive
from raffect.metrics.scores import Chance, Number, Score

_VARIES = 1e-9
"""Share of its mean square from which a variance is more than rounding of sums."""


class ScoredByF1(Kind):
    """What classes and labels share: their headline is macro F1."""

    key, title, lowest = "macro_f1", "macro F1", 0.0
    columns = (
        ("F1", "f1"),
        ("precision", "precision"),
        ("recall", "recall"),
        ("frames", "support"),
    )


class Multiclass(ScoredByF1):
    """One class of several a frame.

    Statistics: confusion matrix (C, C), rows true, columns predicted. Headline: macro F1.
    """

    parts, part = "classes", "class"

    def num_columns(self, task: Task) -> int:
        """One, with the number of the class."""
        return 1

    def targets(self, task: Task, values: np.ndarray) -> np.ndarray:
        """Classes, int64, shape (N,)."""
        return values[:, 0].astype(np.int64)

    def find_wrong(self, task: Task, values: np.ndarray) -> np.ndarray:
        """Those that are not the number of a class."""
        is_number = (values >= 0) & (values < len(task.outputs)) & (values == np.floor(values))
        return task.is_labelled(values) & ~is_number

    def why_untrainable(self, task: Task, targets: np.ndarray) -> str:
        """One class alone cannot be learnt."""
        found = np.unique(targets)
        if len(found) > 1:
            return ""
        frames = f"{task.outputs[found[0]]}, {len(targets)} frames"
        return f"one class only ({frames}); a head needs two or more"

    def output_scores(self, statistics: np.ndarray) -> np.ndarray:
        """F1 of each class."""
        return f1_scores(one_against_rest(statistics))

    def occurs(self, statistics: np.ndarray) -> np.ndarray:
        """Classes with a true frame."""
        return statistics.sum(-1) > 0

    def score(self, statistics: np.ndarray, task: Task) -> Score:
        """``macro_f1``, ``accuracy``, ``uar``; F1, precision, recall of each class; confusion."""
        counts = one_against_rest(statistics)
        macro_f1 = float(f1_scores(counts).mean())
        accuracy = float(np.trace(statistics) / max(statistics.sum(), 1))
        return Score(
            headline=macro_f1,
            metrics={"macro_f1": macro_f1, "accuracy": accuracy, "uar": float(uar(statistics))},
            outputs=describe_classes(counts, task.outputs),
            confusion=tuple(tuple(map(int, row)) for row in statistics),
        )

    def chance(self, statistics: np.ndarray, task: Task) -> Chance:
        """The most frequent class; and classes drawn at random with the split's own shares p_k.

        On average a draw has F1 p_k of class k, so it scores 1/C whatever the shares. No other
        predictor that never looks reaches more.
        """
        # The constant has precision p, recall 1 and so F1 2p / (1 + p) of its own class, else 0.
        true = statistics.sum(1)
        best = int(true.argmax())
        majority = float(divide(2 * true[best], true[best] + true.sum())) / len(true)
        return Chance(answer=f"always {task.outputs[best]}", majority=majority, prior=1 / len(true))

    def statistics_by_chance(self, statistics: np.ndarray) -> np.ndarray:
        """Classes drawn with the shares that they have in all groups together."""
        true = statistics.sum(-1)
        shares = true.sum(0) / max(true.sum(), 1)
        return true[..., None] * shares

    def count_frames(self, statistics: np.ndarray) -> np.ndarray:
        """All cells."""
        return statistics.sum((-2, -1))

    def shares(self, task: Task, values: np.ndarray) -> dict[str, float]:
        """Frames of each class."""
        counts = np.bincount(values[:, 0].astype(int), minlength=len(task.outputs))
        return dict(zip(task.outputs, counts.tolist(), strict=True))

    def strata(self, targets: np.ndarray) -> np.ndarray | None:
        """The classes."""
        return targets


class Multilabel(ScoredByF1):
    """Any number of labels a frame, each active, not active or unlabelled.

    Statistics: counts (L, 4). Headline: macro F1.
    """

    parts, part = "labels", "label"

    def targets(self, task: Task, values: np.ndarray) -> np.ndarray:
        """1 active, 0 not, -1 unlabelled: int8, shape (N, L)."""
        return np.where(task.is_labelled(values), values, -1).astype(np.int8)

    def find_wrong(self, task: Task, values: np.ndarray) -> np.ndarray:
        """Those that are neither 0 nor 1."""
        return task.is_labelled(values) & (values != 0) & (values != 1)

    def why_untrainable(self, task: Task, targets: np.ndarray) -> str:
        """Some label has to be active in a frame and not in another."""
        both = ((targets == 1).any(0) & (targets == 0).any(0)).any()
        return "" if both else "no label with both active and inactive frames"

    def output_scores(self, statistics: np.ndarray) -> np.ndarray:
        """F1 of each label."""
        return f1_scores(statistics)

    def occurs(self, statistics: np.ndarray) -> np.ndarray:
        """Labels with an active frame."""
        return statistics[..., 0] + statistics[..., 2] > 0

    def score(self, statistics: np.ndarray, task: Task) -> Score:
        """``macro_f1``, and F1, precision and recall of each label."""
        macro_f1 = float(f1_scores(statistics).mean())
        outputs = describe_classes(statistics, task.outputs)
        return Score(headline=macro_f1, metrics={"macro_f1": macro_f1}, outputs=outputs)

    def chance(self, statistics: np.ndarray, task: Task) -> Chance:
        """All labels active: the best constant, which no predictor that never looks exceeds."""
        # Precision is a label's rate p, recall 1, and so F1 2p / (1 + p).
        positive, labelled = statistics[:, [0, 2]].sum(1), statistics.sum(1)
        majority = float(divide(2 * positive, positive + labelled).mean())
        return Chance(answer="all labels active", majority=majority)

    def statistics_by_chance(self, statistics: np.ndarray) -> np.ndarray:
        """All labels active."""
        active, inactive = statistics[..., [0, 2]].sum(-1), statistics[..., [1, 3]].sum(-1)
        return np.stack([active, inactive, 0 * active, 0 * active], -1)

    def count_frames(self, statistics: np.ndarray) -> np.ndarray:
        """Those of the label that is labelled in most frames."""
        return statistics.sum(-1).max(-1)

    def shares(self, task: Task, values: np.ndarray) -> dict[str, float]:
        """Rate of each label among frames where it is labelled."""
        targets = self.targets(task, values)
        rates = (targets == 1).sum(0) / np.maximum((targets >= 0).sum(0), 1)
        return dict(zip(task.outputs, rates.tolist(), strict=True))


class Regression(Kind):
    """Numbers, each of which may be unlabelled.

    Statistics: moments (V, 6). Headline: CCC, the mean over the values; chance is 0.
    """

    key, title, lowest = "ccc", "CCC", -1.0
    parts, part = "values", "value"
    columns = (("CCC", "ccc"), ("PCC", "pcc"), ("RMSE", "rmse"), ("frames", "frames"))

    def targets(self, task: Task, values: np.ndarray) -> np.ndarray:
        """Float32 of shape (N, V), NaN where unlabelled."""
        return np.where(task.is_labelled(values), values, np.nan).astype(np.float32)

    def find_wrong(self, task: Task, values: np.ndarray) -> np.ndarray:
        """Those beyond the task's limits, and infinite ones."""
        # NaN compares false with any limit, and means unlabelled.
        low, high = task.limits or (-np.inf, np.inf)
        return np.isinf(values) | (task.is_labelled(values) & ((values < low) | (values > high)))

    def why_untrainable(self, task: Task, targets: np.ndarray) -> str:
        """Some value has to vary."""
        labelled = [column[np.isfinite(column)] for column in targets.T]
        varies = any(len(values) and np.ptp(values) > 0 for values in labelled)
        return "" if varies else "no value that varies"

    def output_scores(self, statistics: np.ndarray) -> np.ndarray:
        """CCC of each value."""
        return agreement.ccc(statistics)

    def occurs(self, statistics: np.ndarray) -> np.ndarray:
        """Values that vary: CCC with a constant is 0."""
        count, true, _, true2 = np.moveaxis(statistics, -1, 0)[:4]
        square = divide(true2, count)
        return square - divide(true, count) ** 2 > _VARIES * square

    def score(self, statistics: np.ndarray, task: Task) -> Score:
        """``ccc``, ``pcc`` and ``rmse``, means over the values, and the same of each value."""
        # Each value's scores; those of the task are their means.
        scores = {"ccc": agreement.ccc, "pcc": agreement.pcc, "rmse": agreement.rmse}
        found = {key: score(statistics) for key, score in scores.items()}
        outputs: dict[str, dict[str, Number]] = {}
        for k, name in enumerate(task.outputs):
            outputs[name] = {key: float(part[k]) for key, part in found.items()}
            outputs[name]["frames"] = int(statistics[k, 0])
        metrics = {key: float(part.mean()) for key, part in found.items()}
        return Score(headline=metrics["ccc"], metrics=metrics, outputs=outputs)

    def chance(self, statistics: np.ndarray, task: Task) -> Chance:
        """A constant has no covariance with anything."""
        return Chance(answer="any constant", majority=0.0)

    def statistics_by_chance(self, statistics: np.ndarray) -> np.ndarray:
        """The constant 0."""
        return statistics * np.array([1, 1, 0, 1, 0, 0])

    def count_frames(self, statistics: np.ndarray) -> np.ndarray:
        """Those of the value that is labelled in most frames."""
        return statistics[..., 0].max(-1).astype(np.int64)

    def shares(self, task: Task, values: np.ndarray) -> dict[str, float]:
        """Mean of each value where it is labelled."""
        out = {}
        for name, column in zip(task.outputs, self.targets(task, values).T, strict=True):
            is_labelled = np.isfinite(column).any()
            out[f"mean {name}"] = float(np.nanmean(column)) if is_labelled else 0.0
        return out


KINDS: dict[str, Kind] = {
    "multiclass": Multiclass(),
    "multilabel": Multilabel(),
    "regression": Regression(),
    "contrastive": Contrastive(),
}
"""Kinds by scikit-learn's words for them; it has none for targets that are vectors."""


def kind_of(task: Task) -> Kind:
    """The kind of a task.

    Raises:
        RaffectError: If this version of raffect does not know it, or columns do not go with it.
    """
    kind = KINDS.get(task.kind)
    if kind is None:
        what = f"task {task.name}: kind {task.kind!r}: expected one of {', '.join(KINDS)}"
        remedy = "make the label table again, or use the raffect that wrote it"
        raise RaffectError(f"{what}; {remedy}")
    if len(task.columns) != (wanted := kind.num_columns(task)):
        outputs = f"{len(task.outputs)} outputs of kind {task.kind}"
        what = f"task {task.name}: {len(task.columns)} label columns for {outputs}"
        raise RaffectError(f"{what}; expected {wanted}")
    return kind
