"""Who a drawn face is, and how camera and light see it: all that its action units do not decide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Palettes in RGB, of which each subject has a mixture
_LIGHT_SKINS = ((247, 215, 190), (236, 188, 152), (214, 160, 120))
_DARK_SKINS = ((178, 120, 82), (134, 86, 58), (92, 60, 44))
_SKINS = np.array(_LIGHT_SKINS + _DARK_SKINS, float)
_DARK_HAIRS = ((30, 26, 24), (62, 42, 30), (104, 70, 42))
_LIGHT_HAIRS = ((168, 126, 70), (150, 60, 34), (150, 150, 154))
_HAIRS = np.array(_DARK_HAIRS + _LIGHT_HAIRS, float)
_IRISES = np.array([(70, 46, 30), (40, 30, 26), (70, 96, 130), (84, 110, 70)], float)

_HAIRCUTS = ("short", "long", "fringe", "bun", "bald")
_HAIRCUT_SHARES = (0.38, 0.25, 0.16, 0.11, 0.10)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What stays the same of a subject. Lengths are in half-picture units, colours in 0-255 RGB."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    background: np.ndarray
    haircut: str
    face_width: float
    chin: float
    eye_distance: float
    eye_width: float
    eye_height: float
    brow_height: float
    brow_thickness: float
    brow_tilt: float
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_y: float
    lip_thickness: float
    age: float
    glasses: bool
    beard: bool


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Camera and light.

    Attributes:
        roll: Rotation in the picture plane in radians.
        yaw: How far the head is turned, -1 to 1.
        shift: Of the face's centre, (x, y) in half-picture units.
        scale: Size of the face, 1 for the whole picture.
        light: Gain of all pixels.
        light_side: How much brighter the picture's right side is than its middle.
        noise: Standard deviation of the sensor noise in grey levels.
    """

    roll: float = 0.0
    yaw: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    light: float = 1.0
    light_side: float = 0.0
    noise: float = 3.0


def draw_look(rng: np.random.Generator) -> Look:
    """Draw a subject at random.

    Args:
        rng: Source of all randomness of the look.
    """

    # The order of draws decides what a seed looks like.
    def colour(palette: np.ndarray, jitter: float) -> np.ndarray:
        weights = rng.dirichlet(np.full(len(palette), 0.25))
        return np.clip(weights @ palette + rng.normal(0, jitter, 3), 0, 255)

    skin = colour(_SKINS, 5)
    return Look(
        skin=skin,
        hair=colour(_HAIRS, 8),
        iris=colour(_IRISES, 8),
        lips=np.clip(skin * (0.78, 0.55, 0.55) + rng.normal((12, 0, 4), 10), 0, 255),
        background=rng.uniform(40, 215, 3),
        haircut=_HAIRCUTS[rng.choice(len(_HAIRCUTS), p=_HAIRCUT_SHARES)],
        face_width=rng.uniform(0.62, 0.74),
        chin=rng.uniform(0.84, 0.95),
        eye_distance=rng.uniform(0.28, 0.34),
        eye_width=rng.uniform(0.125, 0.16),
        eye_height=rng.uniform(0.055, 0.078),
        brow_height=rng.uniform(0.155, 0.205),
        brow_thickness=rng.uniform(0.022, 0.05),
        brow_tilt=rng.uniform(-0.02, 0.03),
        nose_length=rng.uniform(0.28, 0.36),
        nose_width=rng.uniform(0.075, 0.12),
        mouth_width=rng.uniform(0.2, 0.265),
        mouth_y=rng.uniform(0.47, 0.53),
        lip_thickness=rng.uniform(0.038, 0.07),
        age=rng.uniform(0, 1) ** 2,
        glasses=bool(rng.random() < 0.12),
        beard=bool(rng.random() < 0.12),
    )
