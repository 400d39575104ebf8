"""Few frames a class, drawn by group, and what is learnt from them.

Frames of a video are alike, so k shots are one frame of each of k videos (or other groups); frames
of one video would make k look larger than it is.

Shape letters: N frames, D feature, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raffect.errors import RaffectError, require

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Values of logistic regression's C that folds choose from; features have length 1."""
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
"""Values of ridge regression's alpha that folds choose from."""
_WITHOUT_FOLDS = 1.0
"""C and alpha where every frame is of one group, so that nothing can be held out."""


@dataclass(frozen=True)
class Frames:
    """Labelled frames to learn from.

    Attributes:
        x: Features of length 1, float32, shape (N, D).
        y: Classes, int64, shape (N,); or values, float64, shape (N, V).
        group: Number of each frame's group, shape (N,).
    """

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray

    def take(self, rows: np.ndarray) -> Frames:
        """Some of them."""
        return Frames(self.x[rows], self.y[rows], self.group[rows])


def draw_shots(
    y: np.ndarray,
    group: np.ndarray,
    shots: int,
    names: list[str],
    group_name: str,
    rng: np.random.Generator,
) -> np.ndarray:
    """One frame of each of k groups, for every class.

    Args:
        y: Class of each frame, shape (N,); others than 0 to C - 1 are left out.
        group: Its group, shape (N,).
        shots: k.
        names: Of the C classes.
        group_name: What groups are called, for errors.
        rng: Where draws come from.

    Returns:
        Numbers of the frames, shape (k * C,).

    Raises:
        RaffectError: If a class is in fewer than k groups.
    """
    rows = []
    for number, name in enumerate(names):
        of_class = np.flatnonzero(y == number)
        groups = np.unique(group[of_class])
        require(
            len(groups) >= shots,
            f"--shots {shots}: {name} is in {len(groups)} {group_name} of the training split; take "
            "at most as many",
        )
        for chosen in rng.choice(groups, shots, replace=False):
            rows.append(rng.choice(of_class[group[of_class] == chosen]))
    return np.array(rows)


def prototypes(
    frames: Frames, num_classes: int, texts: np.ndarray | None = None, text_shots: float = 0.0
) -> np.ndarray:
    """Mean feature of each class, of length 1.

    Args:
        frames: Frames of every class.
        num_classes: C.
        texts: A vector of length 1 a class, NaN for one without; None for prototypes of frames.
        text_shots: As how many frames a text counts: the mean with that many pseudo-observations.

    Returns:
        Shape (C, D).
    """
    total = np.zeros((num_classes, frames.x.shape[1]))
    np.add.at(total, frames.y, frames.x)
    if texts is not None:
        total += text_shots * np.nan_to_num(texts)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def fit_logistic(
    frames: Frames, num_classes: int, folds: int, seed: int
) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """Logistic regression, its C chosen by macro F1 on held-out folds of whole groups.

    Args:
        frames: What to learn from.
        num_classes: C.
        folds: Most folds; as many as there are groups if these are fewer.
        seed: Deals groups to folds.

    Returns:
        A function from features (N, D) to outputs (N, C), -inf for a class without a frame; and
        the chosen value.
    """
    from sklearn.metrics import f1_score

    def held_out_score(strength: float, parts: list[tuple[np.ndarray, np.ndarray]]) -> float:
        predicted = np.empty_like(frames.y)
        for train, test in parts:
            outputs = _logistic(frames.take(train), num_classes, strength)(frames.x[test])
            predicted[test] = outputs.argmax(1)
        return float(f1_score(frames.y, predicted, average="macro", zero_division=0))

    strength = _choose(STRENGTHS, frames, folds, seed, held_out_score)
    return _logistic(frames, num_classes, strength), strength


def fit_ridge(
    frames: Frames, folds: int, seed: int
) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """Ridge regression, its alpha chosen by squared error on held-out folds of whole groups.

    Returns:
        A function from features (N, D) to values (N, V), and the chosen value.
    """
    from sklearn.linear_model import Ridge

    def held_out_score(penalty: float, parts: list[tuple[np.ndarray, np.ndarray]]) -> float:
        errors = 0.0
        for train, test in parts:
            model = Ridge(alpha=penalty).fit(frames.x[train], frames.y[train])
            predicted = np.reshape(model.predict(frames.x[test]), frames.y[test].shape)
            errors += float(np.square(predicted - frames.y[test]).sum())
        return -errors

    penalty = _choose(PENALTIES, frames, folds, seed, held_out_score)
    model = Ridge(alpha=penalty).fit(frames.x, frames.y)
    return lambda x: np.reshape(model.predict(x), (len(x), frames.y.shape[1])), penalty


def _choose(
    values: tuple[float, ...],
    frames: Frames,
    folds: int,
    seed: int,
    score: Callable[[float, list[tuple[np.ndarray, np.ndarray]]], float],
) -> float:
    """The value with the highest score on held-out folds; the first of equals."""
    from sklearn.model_selection import GroupKFold

    count = min(folds, len(np.unique(frames.group)))
    if count < 2:
        return _WITHOUT_FOLDS
    splitter = GroupKFold(count, shuffle=True, random_state=seed)
    parts = list(splitter.split(frames.x, groups=frames.group))
    # A fold of a class's only group leaves nothing of it to learn from, or one class alone.
    classes = frames.y.ndim == 1
    if classes and any(len(np.unique(frames.y[train])) < 2 for train, _ in parts):
        return _WITHOUT_FOLDS
    scores = [score(value, parts) for value in values]
    return values[int(np.argmax(scores))]


def _logistic(
    frames: Frames, num_classes: int, strength: float
) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    classes = np.unique(frames.y)
    if len(classes) < 2:
        raise RaffectError("one class only; a probe needs two or more")
    model = LogisticRegression(C=strength, max_iter=300)
    with warnings.catch_warnings(action="ignore"):  # a large C need not converge
        model.fit(frames.x, frames.y)

    def outputs(x: np.ndarray) -> np.ndarray:
        found = model.decision_function(x)
        found = np.stack([-found, found], 1) if len(classes) == 2 else found
        out = np.full((len(x), num_classes), -np.inf)
        out[:, classes] = found
        return out

    return outputs
