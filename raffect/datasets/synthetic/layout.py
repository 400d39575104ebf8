"""What a drawn copy of a data set holds: pictures by path, and the files of its labels.

Such a copy shows how the real one lies on disk, and every importer is tested on one. Its labels are
written from the same plan as its pictures, in the data set's own words and numbers.

Shape letters: U drawn units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from raffect.datasets.synthetic.course import PROTOTYPES, sample_pose
from raffect.datasets.synthetic.faces import DRAWN_UNITS, draw_face
from raffect.datasets.synthetic.looks import Pose, draw_look
from raffect.datasets.synthetic.plan import COURSE_STREAM, LAYOUT_STREAM, LOOK_STREAM

_MORE_PROTOTYPES = {
    "Contempt": {"AU12": 0.4, "AU24": 0.9, "AU7": 0.5},
    "Anxiety": {"AU1": 0.8, "AU4": 0.8, "AU20": 0.6, "AU7": 0.5},
    "Helplessness": {"AU1": 0.9, "AU17": 0.9, "AU25": 0.3},
    "Disappointment": {"AU15": 0.7, "AU4": 0.3, "AU24": 0.5},
}
"""Expressions that Aff-Wild2 does not have: combinations that are told apart, after no manual."""

_MEAN_LENGTH = 8
"""Pictures a clip on average: real ones have some ten times as many."""


@dataclass(frozen=True)
class Face:
    """A drawn picture.

    Attributes:
        subject: Number of the person.
        clip: Number of the clip, or of the picture where it belongs to none.
        frame: Number of the picture in its clip.
        units: Intensities of `DRAWN_UNITS` in [0, 1].
    """

    subject: int
    clip: int
    frame: int
    units: tuple[float, ...]

    def draw(self, seed: int) -> np.ndarray:
        """The picture, uint8 (112, 112, 3); the head turns a little from frame to frame."""
        look = draw_look(np.random.default_rng([seed, LOOK_STREAM, self.subject]))
        rng = np.random.default_rng([seed, COURSE_STREAM, self.clip, 4])
        pose: Pose = sample_pose(rng)
        pose = dataclasses.replace(pose, roll=pose.roll + 0.02 * np.sin(self.frame))
        noise_seed = seed * 1_000_003 + self.clip * 1_009 + self.frame
        return draw_face(look, dict(zip(DRAWN_UNITS, self.units, strict=True)), pose, noise_seed)


@dataclass
class Layout:
    """A drawn copy.

    Attributes:
        pictures: Path below its root -> the picture there.
        files: Path below its root -> content of a list or of labels.
        rows: What the labels say, a dict a row: an independent record for tests.
    """

    pictures: dict[str, Face] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class DrawnClip:
    """A clip of one expression that rises and falls.

    Attributes:
        number: From 1.
        subject: Number of the person.
        classes: Its expression, or the two of a compound.
        frames: Numbers of its frames; some clips have gaps, as where no face was found.
        faces: The picture of each frame.
    """

    number: int
    subject: int
    classes: tuple[str, ...]
    frames: tuple[int, ...]
    faces: tuple[Face, ...]


def plan_clips(
    num_frames: int, seed: int, classes: Sequence[str], compounds: Sequence[str] = ()
) -> list[DrawnClip]:
    """Clips of all classes in turn, about ``num_frames`` frames in all, and five of each at least.

    Args:
        num_frames: Frames of all clips, about.
        seed: Decides everything.
        classes: Expressions.
        compounds: Pairs of them, joined by ``_``, which further clips show.
    """
    rng = np.random.default_rng([seed, LAYOUT_STREAM, 1])
    shown = [*classes, *compounds]
    count = max(5 * len(shown), round(num_frames / _MEAN_LENGTH))
    order = rng.permutation([shown[k % len(shown)] for k in range(count)]).tolist()
    return [_plan_clip(number, name, seed) for number, name in enumerate(order, 1)]


def _plan_clip(number: int, name: str, seed: int) -> DrawnClip:
    rng = np.random.default_rng([seed, COURSE_STREAM, number, 3])
    length = int(rng.integers(_MEAN_LENGTH - 3, _MEAN_LENGTH + 4))
    frames = np.arange(1, length + 1)
    # A gap in every fourth clip
    if number % 4 == 0:
        frames = np.delete(frames, length // 2)
    height = np.sin(np.pi * frames / (length + 1)) ** 0.5
    classes = tuple(name.split("_"))
    target = np.max([_prototype(part, rng) for part in classes], axis=0)
    units = np.clip(height[:, None] * target, 0, 1)
    faces = [
        Face(number, number, int(frame), tuple(row))
        for frame, row in zip(frames, units.tolist(), strict=True)
    ]
    return DrawnClip(number, number, classes, tuple(frames.tolist()), tuple(faces))


def _prototype(name: str, rng: np.random.Generator) -> np.ndarray:
    """One way to show an expression: intensities, shape (U,)."""
    variants = PROTOTYPES.get(name) or (_MORE_PROTOTYPES[name],)
    variant: Mapping[str, float] = variants[rng.integers(len(variants))]
    target = np.array([variant.get(unit, 0.0) for unit in DRAWN_UNITS])
    return np.clip(target * rng.uniform(0.75, 1.1, len(target)), 0, 1)


def plan_pictures(num_frames: int, seed: int, classes: Sequence[str]) -> list[DrawnClip]:
    """As many pictures of all classes in turn: clips of one frame, at the height of it."""
    rng = np.random.default_rng([seed, LAYOUT_STREAM, 2])
    order = rng.permutation([classes[k % len(classes)] for k in range(num_frames)]).tolist()
    out = []
    for number, name in enumerate(order, 1):
        own = np.random.default_rng([seed, COURSE_STREAM, number, 5])
        face = Face(number, number, 1, tuple(_prototype(name, own).tolist()))
        out.append(DrawnClip(number, number, (name,), (1,), (face,)))
    return out
