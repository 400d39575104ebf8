"""Made-up populations of videos whose true score is known, to try intervals on.

Videos differ in length (log-normal, median and 90th percentile of Aff-Wild2), in what they show
(around Aff-Wild2's shares) and in how well a head does on them. A draw has two heads on the same
videos, the second of which shares half of the first one's luck with a video.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from raffect.datasets.affwild2.tasks import COMPLETE_AU_RATES, COMPLETE_EXPR_COUNTS
from raffect.metrics.task_kinds import KINDS, Kind

_MEDIAN, _SIGMA, _SHORTEST = 3937, 0.65, 73


@dataclass(frozen=True)
class Population(ABC):
    """Videos of a kind of task.

    Attributes:
        name: For tables.
        mix: Concentration of what a video shows; 1 shows little beside one class.
        skill: Concentration of a head's behaviour on a video; small if videos differ much.
    """

    name: str
    mix: float
    skill: float

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """How it is scored."""

    @abstractmethod
    def draw(self, videos: int, rng: np.random.Generator) -> np.ndarray:
        """Statistics of two heads on new videos, shape (2, videos, A, B)."""

    @abstractmethod
    def expected(self) -> np.ndarray:
        """Statistics of two heads on all videos there are, per frame: shape (2, A, B)."""

    @property
    def truth(self) -> np.ndarray:
        """Headline scores of both heads on all videos there are."""
        return self.kind.headline(self.expected())


class Expressions(Population):
    """Eight classes with Aff-Wild2's shares; the head confuses them with frequent ones."""

    kind = KINDS["multiclass"]

    def expected(self) -> np.ndarray:
        return self._shares[:, None] * np.stack([_confusions(r, self._shares) for r in _RECALLS])

    def draw(self, videos: int, rng: np.random.Generator) -> np.ndarray:
        # What a video shows, and how each head answers there
        mixes = _dirichlet(np.tile(self.mix * self._shares, (videos, 1)), rng)
        frames = rng.multinomial(_lengths(videos, rng), mixes)
        first, second = (_confusions(recall, self._shares) for recall in _RECALLS)
        answers = _dirichlet(np.tile(self.skill * first, (videos, 1, 1)), rng)
        own = _dirichlet(np.tile(self.skill * (2 * second - first), (videos, 1, 1)), rng)
        both = np.stack([answers, (answers + own) / 2])
        return rng.multinomial(frames, both).astype(float)

    @property
    def _shares(self) -> np.ndarray:
        counts = np.array(COMPLETE_EXPR_COUNTS["validation"], float)
        return counts / counts.sum()


class Units(Population):
    """Twelve units with Aff-Wild2's rates."""

    kind = KINDS["multilabel"]

    def expected(self) -> np.ndarray:
        return np.stack([self._counts(1.0, _RATES, found, _FALSE) for found in _FOUND])

    def draw(self, videos: int, rng: np.random.Generator) -> np.ndarray:
        # Which units a video shows, and how well each head finds them there
        lengths = _lengths(videos, rng)[:, None]
        rates = _beta(self.mix, np.tile(_RATES, (videos, 1)), rng)
        found, false = (
            _beta(self.skill, np.tile(mean, (videos, 1)), rng) for mean in (_FOUND[0], _FALSE)
        )
        own = _beta(self.skill, np.tile(2 * _FOUND[1] - _FOUND[0], (videos, 1)), rng)
        own_false = _beta(self.skill, np.tile(_FALSE, (videos, 1)), rng)
        return np.stack(
            [
                self._counts(lengths, rates, found, false),
                self._counts(lengths, rates, (found + own) / 2, (false + own_false) / 2),
            ]
        )

    @staticmethod
    def _counts(frames, rates, found, false) -> np.ndarray:
        """True positives, false positives, false negatives, true negatives."""
        active, other = frames * rates, frames * (1 - rates)
        cells = (active * found, other * false, active * (1 - found), other * (1 - false))
        return np.stack(np.broadcast_arrays(*cells), -1)


class Numbers(Population):
    """Valence and arousal: videos differ in level, and heads in offset, gain and noise."""

    kind = KINDS["regression"]

    def expected(self) -> np.ndarray:
        # No closed form: very many videos
        drawn = self.draw(400_000, np.random.default_rng(7)).sum(1)
        return drawn / drawn[..., :1]

    def draw(self, videos: int, rng: np.random.Generator) -> np.ndarray:
        # Truth: level and variance of each video
        frames = _lengths(videos, rng)[:, None].astype(float)
        size = (videos, 2)
        mean = rng.normal((0.2, 0.25), 0.6 / np.sqrt(self.mix), size)
        variance = 0.05 * rng.gamma(2, 0.5, size)

        # Predictions: half of the luck with a video is common to both heads
        wide = 1 / np.sqrt(self.skill)
        luck = rng.normal(0, wide, (2, 2, *size))
        luck[1] = (luck[0] + luck[1]) / 2
        heads = []
        for (offset, more_gain), slope in zip(luck, (0.6, 0.7), strict=True):
            gain = slope + more_gain
            predicted = 0.1 + 0.2 * offset + gain * mean
            noise = gain**2 * variance + 0.02
            moments = (
                np.ones(size),
                mean,
                predicted,
                mean**2 + variance,
                predicted**2 + noise,
                mean * predicted + gain * variance,
            )
            heads.append(frames[..., None] * np.stack(moments, -1))
        return np.stack(heads)


POPULATIONS = (
    Expressions("EXPR sparser", 2, 8),
    Expressions("EXPR sparse", 4, 16),
    Expressions("EXPR mild", 8, 16),
    Units("AU sparser", 1.5, 5),
    Units("AU sparse", 3, 8),
    Units("AU mild", 6, 16),
    Numbers("VA sparse", 4, 4),
    Numbers("VA mild", 12, 16),
)
"""Those of the table in docs/metrics.md.

Mixes and skills of the sparse and mild ones are such that a bootstrap over videos covers about what
was found of it before: EXPR .67-.75 with 13 videos and .82-.87 with 70, AU .71-.84 and .87-.92. The
sparser ones are harder than that.
"""

_RATES = np.array(COMPLETE_AU_RATES)
_FOUND = np.linspace(0.45, 0.75, 12)[np.argsort(np.argsort(_RATES))] + np.array([[0.0], [0.03]])
_FALSE = 0.05 + 0.3 * _RATES
_RECALLS = np.array([0.62, 0.30, 0.25, 0.30, 0.55, 0.50, 0.40, 0.50]) + np.array([[0.0], [0.02]])
"""Of both heads: recall of each unit, rate of false alarms, recall of each class."""


def _confusions(recalls: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Share of each answer to each class, shape (8, 8): errors fall on frequent classes."""
    others = np.tile(shares, (8, 1))
    np.fill_diagonal(others, 0)
    answers = (1 - recalls)[:, None] * others / others.sum(1, keepdims=True)
    np.fill_diagonal(answers, recalls)
    return answers


def _lengths(videos: int, rng: np.random.Generator) -> np.ndarray:
    lengths = np.exp(rng.normal(np.log(_MEDIAN), _SIGMA, videos))
    return np.maximum(_SHORTEST, lengths).astype(int)


def _dirichlet(alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.standard_gamma(alpha) + 1e-300
    return drawn / drawn.sum(-1, keepdims=True)


def _beta(concentration: float, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.beta(concentration * mean, concentration * (1 - mean))
