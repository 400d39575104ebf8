"""Zero-shot classifiers: heads of depth 0 on normalised features, whose rows are vectors of texts;
or on the vectors of a trained head.

Shape letters: C outputs, D feature, N frames, P classifiers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from raffect.encoders.text import TextEncoder
from raffect.errors import require
from raffect.heads.head import MlpSpec
from raffect.heads.head_batch import HeadBatch
from raffect.language.prompt_sets import Parts, TaskPrompts

Ensemble = Literal["vectors", "logits"]
Against = Literal["rest", "mean"]
Embed = Callable[[np.ndarray], np.ndarray]
"""Vectors of texts, (N, D), as a trained head compares them: of length 1, float64, (N, E)."""
NEVER = -1e4
"""Output of a class that is never predicted: its probability is 0 in float32, whatever others
have."""


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of normalised features.

    Attributes:
        weight: Rows, shape (C, D), float32, with the scale of the weights in them.
        bias: Shape (C,).
        silent: Numbers of the outputs that no text describes.
    """

    weight: np.ndarray
    bias: np.ndarray
    silent: tuple[int, ...] = ()

    def with_threshold(self, threshold: float) -> Classifier:
        """The same, whose first undescribed output is predicted below a threshold of the others."""
        bias = self.bias.copy()
        bias[self.silent[0]] = threshold
        return Classifier(self.weight, bias, self.silent)


def build_classifier(
    prompts: TaskPrompts,
    encoder: TextEncoder,
    ensemble: Ensemble,
    against: Against,
    embed: Embed | None = None,
) -> Classifier:
    """The classifier that prompts describe.

    A class's output is the cosine with its texts, times the scale that the weights learnt. A
    label's is the difference of two of these, since its sigmoid is then the softmax of both.

    Args:
        prompts: Of a task.
        encoder: The text tower.
        ensemble: How prompts of a class go together. ``"vectors"``: the mean of their normalised
            vectors, normalised again, as open_clip has it. ``"logits"``: the mean of their logits,
            which is that of the vectors, and so shorter the more they differ.
        against: What labels are compared with: texts of a face at rest, or the mean over all other
            labels.
        embed: What a trained head makes of vectors of texts; the outputs are then products with
            that head's own vectors, which are scaled already.
    """
    # Every prompt once, in one go
    texts = prompts.prompts
    encoded = encoder.encode(texts)
    units = _normalise(encoded.astype(np.float64)) if embed is None else embed(encoded)
    vectors = dict(zip(texts, units, strict=True))
    scale = encoder.identity.scale if embed is None else 1.0

    # A row an output; undescribed ones have none
    def row(parts: Parts) -> np.ndarray:
        found = [_mean([vectors[text] for text in part], ensemble) for part in parts]
        return found[0] if len(found) == 1 else _mean(found, ensemble)

    outputs = list(prompts.outputs.values())
    dim = units.shape[1]
    rows = np.stack([np.zeros(dim) if parts is None else row(parts) for parts in outputs])
    silent = tuple(k for k, parts in enumerate(outputs) if parts is None)
    if prompts.rest:
        rows -= _compared(rows, against, row((prompts.rest,)))
    bias = np.where(np.isin(np.arange(len(rows)), silent), NEVER, 0.0)
    return Classifier((scale * rows).astype(np.float32), bias.astype(np.float32), silent)


def build_batch(
    classifiers: list[Classifier], device: torch.device, normalise: str = "l2"
) -> HeadBatch:
    """Classifiers of one task as a batch of heads.

    Args:
        classifiers: Of one source.
        device: Where to compute.
        normalise: ``"none"`` for vectors of a trained head, which are compared as they are.
    """
    count, dim = classifiers[0].weight.shape
    spec = MlpSpec(dim, 0, 0, count, normalise)
    flat = [np.concatenate([found.weight.ravel(), found.bias]) for found in classifiers]
    return spec.build(torch.from_numpy(np.stack(flat)).to(device))


def choose_thresholds(
    classifiers: list[Classifier],
    x: Tensor,
    target: np.ndarray,
    candidates: int = 200,
    normalise: str = "l2",
) -> list[float]:
    """Below which largest output each classifier should say that no class fits.

    That with the highest macro F1 on labelled frames; the first of equals, of ``candidates``
    quantiles of the largest output.

    Args:
        classifiers: With one undescribed class each.
        x: Features, shape (N, D).
        target: Classes, shape (N,).
        candidates: How many thresholds are compared.
        normalise: See `build_batch`.
    """
    from raffect.metrics.f1 import f1_scores, one_against_rest

    require(len(target) > 0, "--other threshold: no training frame to choose it on")
    thresholds = []
    for classifier in classifiers:
        heads = build_batch([classifier], x.device, normalise)
        largest, predicted = _largest(heads, x)
        ends = np.unique(np.quantile(largest, np.linspace(0, 1, candidates)))

        # Frames by the number of thresholds that they reach, then added up: above each threshold
        # the class of the largest output is predicted, below it the undescribed one
        classes = len(classifier.bias)
        reached = np.searchsorted(ends, largest, side="right")
        flat = (reached * classes + target) * classes + predicted
        shape = (len(ends) + 1, classes, classes)
        counts = np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)
        below = counts.cumsum(0)[:-1]
        confusion = counts.sum(0) - below
        confusion[..., classifier.silent[0]] += below.sum(-1)
        scores = f1_scores(one_against_rest(confusion)).mean(-1)
        thresholds.append(float(ends[scores.argmax()]))
    return thresholds


@torch.no_grad()
def _largest(heads: HeadBatch, x: Tensor, chunk: int = 32_768) -> tuple[np.ndarray, np.ndarray]:
    """Largest output and its number of one classifier, each of shape (N,)."""
    predict = heads.predictor(heads.rows, heads.buffers)
    parts = [predict(x[k : k + chunk].float())[0].max(-1) for k in range(0, len(x), chunk)]
    values, numbers = (torch.cat(list(both)).cpu().numpy() for both in zip(*parts, strict=True))
    return values, numbers


def _compared(rows: np.ndarray, against: Against, rest: np.ndarray) -> np.ndarray:
    """What is taken from each label's row: shape (D,) or (C, D)."""
    if against == "rest":
        return rest
    require(len(rows) > 1, "--against mean: one label alone has no others; use rest")
    return (rows.sum(0) - rows) / (len(rows) - 1)


def _mean(vectors: list[np.ndarray], ensemble: Ensemble) -> np.ndarray:
    mean = np.mean(vectors, axis=0)
    return _normalise(mean) if ensemble == "vectors" else mean


def _normalise(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; one that is all 0 stays so."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
