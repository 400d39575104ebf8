"""What happens in a drawn video: intensities of every unit over time, labels, and the pictures.

Expressions come in segments that rise and fall, over a background of talking and squinting, so that
neighbouring frames resemble each other, classes are as unequal as in Aff-Wild2, and units occur
without the expression they are known for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raffect.datasets.affwild2.tasks import ACTION_UNITS, EXPRESSIONS
from raffect.datasets.synthetic.faces import DRAWN_UNITS, draw_face
from raffect.datasets.synthetic.looks import Look, Pose, draw_look
from raffect.datasets.synthetic.plan import COURSE_STREAM, LOOK_STREAM, Video

PROTOTYPES: dict[str, tuple[dict[str, float], ...]] = {
    "Neutral": ({},),
    "Anger": (
        {"AU4": 1, "AU5": 0.5, "AU7": 0.8, "AU23": 0.9},
        {"AU4": 1, "AU7": 0.9, "AU24": 0.8, "AU10": 0.3},
    ),
    "Disgust": (
        {"AU9": 1, "AU10": 1, "AU4": 0.4, "AU7": 0.5, "AU25": 0.4},
        {"AU9": 0.9, "AU10": 0.8, "AU15": 0.6, "AU17": 0.5},
    ),
    "Fear": ({"AU1": 1, "AU2": 0.8, "AU4": 0.7, "AU5": 1, "AU20": 0.9, "AU25": 0.7, "AU26": 0.3},),
    "Happiness": ({"AU6": 1, "AU12": 1, "AU25": 0.8}, {"AU6": 0.8, "AU12": 1, "AU7": 0.4}),
    "Sadness": (
        {"AU1": 1, "AU4": 0.7, "AU15": 1, "AU17": 0.7},
        {"AU1": 0.8, "AU15": 0.9, "AU7": 0.4},
    ),
    "Surprise": (
        {"AU1": 1, "AU2": 1, "AU5": 1, "AU25": 1, "AU26": 1},
        {"AU1": 0.9, "AU2": 0.9, "AU5": 0.8, "AU25": 0.6},
    ),
    "Other": (
        {"AU24": 1, "AU6": 0.8},
        {"AU12": 0.9, "AU4": 0.8},
        {"AU7": 0.9, "AU10": 0.7, "AU12": 0.5},
        {"AU26": 0.9, "AU25": 0.9, "AU7": 0.7},
        {"AU23": 0.8, "AU1": 0.7, "AU2": 0.7},
    ),
}
"""Expressions as combinations of units, after EMFACS; "Other" fits none of the seven.

Each has one variant or more: intensities in [0, 1] of the units that it shows.
"""

# Share of the time in which a unit is active whatever the expression
_BACKGROUND = {
    "AU25": 0.5,
    "AU7": 0.27,
    "AU10": 0.24,
    "AU6": 0.14,
    "AU12": 0.06,
    "AU4": 0.06,
    "AU26": 0.03,
}

# Valence and arousal of each expression at its height
_CIRCUMPLEX = {
    "Neutral": (0.05, 0.05),
    "Anger": (-0.55, 0.65),
    "Disgust": (-0.6, 0.35),
    "Fear": (-0.5, 0.75),
    "Happiness": (0.75, 0.45),
    "Sadness": (-0.65, -0.15),
    "Surprise": (0.15, 0.75),
    "Other": (0.0, 0.2),
}
# Most intensity of another expression that is mixed into a segment's own
_MOST_TRACE = 0.7

# Share of segments that the annotator labels as Neutral or Other
_DOUBT = 0.15

# Intensity from which a unit, and an expression, is labelled
_AU_THRESHOLD = 0.3
_EXPR_THRESHOLD = 0.35


@dataclass(frozen=True)
class Course:
    """What happens in a video of T frames.

    Attributes:
        units: Intensities, shape (T, len(DRAWN_UNITS)), in [0, 1].
        expr: EXPR labels, shape (T,), -1 unlabelled.
        au: AU labels, shape (T, 12), -1 unlabelled.
        va: Valence and arousal, shape (T, 2), -5 unlabelled.
        face: Whether a frame has an image, shape (T,).
    """

    units: np.ndarray
    expr: np.ndarray
    au: np.ndarray
    va: np.ndarray
    face: np.ndarray


def sample_prototype(rng: np.random.Generator, expression: str) -> np.ndarray:
    """One way to show an expression: intensities of `DRAWN_UNITS`, shape (16,).

    Each intensity is varied by about a fifth.
    """
    variants = PROTOTYPES[expression]
    variant = variants[rng.integers(len(variants))]
    target = np.array([variant.get(unit, 0.0) for unit in DRAWN_UNITS])
    return np.clip(target * rng.uniform(0.75, 1.1, len(target)), 0, 1)


def sample_pose(rng: np.random.Generator) -> Pose:
    """A camera at random, as after a face detector and with a cheap webcam."""
    return Pose(
        roll=rng.normal(0, 0.07),
        yaw=float(np.clip(rng.normal(0, 0.35), -1, 1)),
        shift=(rng.normal(0, 0.03), rng.normal(0, 0.03)),
        scale=rng.uniform(0.93, 1.08),
        light=rng.uniform(0.7, 1.15),
        light_side=rng.normal(0, 0.12),
        noise=rng.uniform(1, 6),
    )


def draw_course(video: Video, seed: int) -> Course:
    """What happens in a video; a pure function of the video and the seed."""
    rng = np.random.default_rng([seed, COURSE_STREAM, video.index])
    frames = video.num_frames

    # Segments: an expression that rises and falls, and its label
    bounds = np.linspace(0, frames, len(video.expressions) + 1).round().astype(int)
    target = np.zeros((frames, len(DRAWN_UNITS)))
    envelope, expression = np.zeros(frames), np.zeros(frames, int)
    for start, stop, label in zip(bounds, bounds[1:], video.expressions, strict=False):
        rise = rng.uniform(0.4, 1.0) * _ramp(stop - start)
        target[start:stop] = rise[:, None] * _sample_blend(rng, label)
        envelope[start:stop], expression[start:stop] = rise, _sample_label(rng, label)

    # Units of the face over time
    units = np.maximum(target, _draw_background(rng, frames))
    units = np.clip(units + _smooth(rng.normal(0, 0.12, units.shape), 5) * (units > 0.05), 0, 1)

    # Labels of the three tasks
    expr = np.where(envelope > _EXPR_THRESHOLD, expression, 0)
    labelled = [DRAWN_UNITS.index(unit) for unit in ACTION_UNITS]
    au = (units[:, labelled] > _AU_THRESHOLD).astype(int)
    centre = np.array([_CIRCUMPLEX[EXPRESSIONS[label]] for label in expression]) * envelope[:, None]
    va = np.clip(centre + _smooth(rng.normal(0, 0.2, (frames, 2)), 9), -1, 1)

    # Frames without a face, and unlabelled ones
    face = ~_spans(rng, frames, 0.03)
    expr[_spans(rng, frames, 0.05)] = -1
    au[_spans(rng, frames, 0.03)] = -1
    au[rng.random(au.shape) < 0.002] = -1
    va[_spans(rng, frames, 0.03)] = -5
    return Course(units, expr, au, va, face)


def _ramp(length: int) -> np.ndarray:
    """From near 0 to 1 in a fifth of a segment's frames, and back at its end: shape (length,)."""
    from_ends = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1))
    return np.clip(from_ends / max(2.0, length / 5), 0, 1)


def _sample_blend(rng: np.random.Generator, label: int) -> np.ndarray:
    """An expression with a trace of another one in it, as spontaneous ones have."""
    trace = sample_prototype(rng, EXPRESSIONS[rng.integers(1, len(EXPRESSIONS))])
    own = sample_prototype(rng, EXPRESSIONS[label])
    return np.maximum(own, rng.uniform(0, _MOST_TRACE) * trace)


def _sample_label(rng: np.random.Generator, label: int) -> int:
    """An annotator's label of a segment: sometimes Neutral or Other, as after a doubt."""
    if rng.random() >= _DOUBT:
        return label
    return int(rng.choice([EXPRESSIONS.index("Neutral"), EXPRESSIONS.index("Other")]))


def _draw_background(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Talking, squinting, half-smiles: mild units that come and go whatever the expression.

    Returns:
        Intensities of `DRAWN_UNITS`, shape (frames, 16).
    """
    out = np.zeros((frames, len(DRAWN_UNITS)))
    for unit, share in _BACKGROUND.items():
        wave = _smooth(rng.normal(size=(frames, 1)), 11)[:, 0]
        on = wave > np.quantile(wave, 1 - np.clip(share * rng.uniform(0.4, 1.6), 0.01, 0.95))
        out[:, DRAWN_UNITS.index(unit)] = _smooth((on * rng.uniform(0.35, 0.65))[:, None], 3)[:, 0]
    return out


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Weighted moving average over time with a Hann window; the ends are padded by their values.

    Args:
        values: Shape (frames, columns).
        width: Length of the window in frames.

    Returns:
        Shape (frames, columns).
    """
    kernel = np.hanning(width + 2)[1:-1]
    kernel /= kernel.sum()
    frames = len(values)
    padded = [np.pad(column, width // 2, mode="edge") for column in values.T]
    return np.stack([np.convolve(column, kernel, mode="valid")[:frames] for column in padded], 1)


def _spans(rng: np.random.Generator, frames: int, share: float) -> np.ndarray:
    """A mask that is true in a few runs of about eight frames, ``share`` of the time on average."""
    starts = rng.random(frames) < share / 8
    return np.convolve(starts, np.ones(8), mode="full")[:frames] > 0


def iter_frames(video: Video, course: Course, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """The pictures of a video, for every frame that shows a face.

    Yields:
        1-based number of the frame, and uint8 (112, 112, 3).
    """
    # The subject, and a camera that drifts
    look: Look = draw_look(np.random.default_rng([seed, LOOK_STREAM, video.subject]))
    rng = np.random.default_rng([seed, COURSE_STREAM, video.index, 1])
    base = sample_pose(rng)
    drift = _smooth(rng.normal(0, 1, (video.num_frames, 4)), 15)

    for t in np.flatnonzero(course.face).tolist():
        pose = dataclasses.replace(
            base,
            roll=base.roll + 0.1 * drift[t, 0],
            yaw=float(np.clip(base.yaw + 0.5 * drift[t, 1], -1, 1)),
            shift=(base.shift[0] + 0.04 * drift[t, 2], base.shift[1] + 0.04 * drift[t, 3]),
        )
        units = dict(zip(DRAWN_UNITS, course.units[t].tolist(), strict=True))
        noise_seed = seed * 1_000_003 + video.index * 100_003 + t
        yield t + 1, draw_face(look, units, pose, noise_seed)


def contact_sheet(seed: int, num_subjects: int = 6) -> np.ndarray:
    """Subjects by expressions: a picture to check that a person can name them.

    Returns:
        uint8 array of shape (112 * num_subjects, 112 * 8, 3); columns in the order of
        `EXPRESSIONS`.
    """
    rows = []
    for subject in range(num_subjects):
        rng = np.random.default_rng([seed, COURSE_STREAM, subject, 2])
        look = draw_look(np.random.default_rng([seed, LOOK_STREAM, subject]))
        pose = sample_pose(rng)
        cells = []
        for name in EXPRESSIONS:
            units = dict(zip(DRAWN_UNITS, sample_prototype(rng, name).tolist(), strict=True))
            cells.append(draw_face(look, units, pose, seed))
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows)
