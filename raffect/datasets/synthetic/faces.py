"""Draw one face from the intensities of its action units.

A face is plain geometry: outline, hair, brows, eyes, nose and mouth are polygons whose points move with the action
units as the FACS manual describes them. `Look` is what stays (the subject), `Pose` is what the camera does, and
`units` is the expression. Everything is a pure function of these three and a noise seed.

Coordinates: the face's centre is (0, 0), x to the viewer's right, y down, 1.0 is half the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 112
"""Side of a drawn face in pixels, as in Aff-Wild2's ``cropped_aligned``."""

DRAWN_UNITS = (
    "AU1",
    "AU2",
    "AU4",
    "AU5",
    "AU6",
    "AU7",
    "AU9",
    "AU10",
    "AU12",
    "AU15",
    "AU17",
    "AU20",
    "AU23",
    "AU24",
    "AU25",
    "AU26",
)
"""Units the pencil knows: the 12 that Aff-Wild2 labels, and AU5, AU9, AU17, AU20, which real faces show as well."""

_SUPERSAMPLE = 2
_SKINS = np.array(
    [
        (247, 215, 190),
        (236, 188, 152),
        (214, 160, 120),
        (178, 120, 82),
        (134, 86, 58),
        (92, 60, 44),
    ],
    float,
)
_HAIRS = np.array(
    [(30, 26, 24), (62, 42, 30), (104, 70, 42), (168, 126, 70), (150, 60, 34), (150, 150, 154)],
    float,
)
_IRISES = np.array([(70, 46, 30), (40, 30, 26), (70, 96, 130), (84, 110, 70)], float)
_HAIRCUTS = ("short", "long", "fringe", "bun", "bald")


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
    """What the camera does: ``roll`` in radians, ``yaw`` in -1..1, ``shift`` in half-picture units, ``light`` a gain."""

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
        haircut=_HAIRCUTS[rng.choice(len(_HAIRCUTS), p=(0.38, 0.25, 0.16, 0.11, 0.10))],
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


def draw_face(look: Look, units: Mapping[str, float], pose: Pose, seed: int) -> np.ndarray:
    """Draw a face as an RGB picture of 112x112.

    Args:
        look: The subject.
        units: Intensity in [0, 1] of each unit in `DRAWN_UNITS`; a missing one is 0.
        pose: The camera.
        seed: Seed of the sensor noise alone.

    Returns:
        uint8 array of shape (112, 112, 3).
    """
    pencil = _Pencil(look, pose)
    au = dict.fromkeys(DRAWN_UNITS, 0.0) | dict(units)
    _draw_head(pencil, look, au)
    for side in (-1, 1):
        _draw_eye(pencil, look, au, side)
        _draw_brow(pencil, look, au, side)
    _draw_folds(pencil, look, au)
    _draw_nose(pencil, look, au)
    _draw_mouth(pencil, look, au)
    if look.glasses:
        for side in (-1, 1):
            pencil.line(_ellipse(side * look.eye_distance, -0.11, 0.2, 0.15), (40, 40, 46), 0.018)
        pencil.line(
            [(-look.eye_distance + 0.2, -0.12), (look.eye_distance - 0.2, -0.12)],
            (40, 40, 46),
            0.018,
        )
    return pencil.finish(seed)


class _Pencil:
    """Maps face coordinates through the pose to pixels and draws there at twice the resolution."""

    def __init__(self, look: Look, pose: Pose) -> None:
        side = SIZE * _SUPERSAMPLE
        self.pose = pose
        self.half = side / 2
        self.image = Image.new("RGB", (side, side), _rgb(look.background))
        self.draw = ImageDraw.Draw(self.image)

    def points(self, points) -> list[tuple[float, float]]:
        xy = np.asarray(points, float)
        x, y = xy[:, 0], xy[:, 1]
        # The middle of a face is nearer to the camera than its rim, so turning moves it further.
        x = x * (1 - 0.1 * abs(self.pose.yaw)) + 0.16 * self.pose.yaw * np.clip(
            1 - x * x * 1.6, 0, 1
        )
        c, s = np.cos(self.pose.roll), np.sin(self.pose.roll)
        x, y = x * c - y * s, x * s + y * c
        out = np.stack([x, y], 1) * self.pose.scale + self.pose.shift
        return [(float(a), float(b)) for a, b in (out + 1) * self.half]

    def fill(self, points, colour) -> None:
        self.draw.polygon(self.points(points), fill=_rgb(colour))

    def line(self, points, colour, width: float) -> None:
        pixels = max(1, round(width * self.half * self.pose.scale))
        self.draw.line(self.points(points), fill=_rgb(colour), width=pixels, joint="curve")

    def finish(self, seed: int) -> np.ndarray:
        pose = self.pose
        pixels = np.asarray(self.image.reduce(_SUPERSAMPLE), np.float32)
        ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)[None, :, None]
        noise = np.random.default_rng(seed).normal(0, pose.noise, pixels.shape).astype(np.float32)
        return np.clip(pixels * (pose.light * (1 + pose.light_side * ramp)) + noise, 0, 255).astype(
            np.uint8
        )


def _rgb(colour) -> tuple[int, int, int]:
    r, g, b = (int(min(255, max(0, c))) for c in colour)
    return r, g, b


def _ellipse(
    cx: float,
    cy: float,
    rx: float,
    ry: float,
    start: float = 0,
    stop: float = 2 * np.pi,
    num: int = 28,
) -> np.ndarray:
    t = np.linspace(start, stop, num)
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], 1)


def _curve(a, control, b, num: int = 11) -> np.ndarray:
    """Quadratic Bezier through a, bent towards control, to b."""
    t = np.linspace(0, 1, num)[:, None]
    a, control, b = (np.asarray(p, float) for p in (a, control, b))
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * control + t**2 * b


def _draw_head(pencil: _Pencil, look: Look, au: Mapping[str, float]) -> None:
    width, hair = look.face_width, look.hair
    if look.haircut == "long":
        pencil.fill(_ellipse(0, -0.05, width + 0.2, 1.05), hair)
    elif look.haircut != "bald":
        pencil.fill(_ellipse(0, -0.3, width + 0.09, 0.72), hair)
    if look.haircut == "bun":
        pencil.fill(_ellipse(0, -0.95, 0.36, 0.24), hair)
    pencil.fill(_ellipse(0, 0.95, 0.34, 0.5), look.skin * 0.82)  # neck
    for side in (-1, 1):
        pencil.fill(_ellipse(side * width, 0.0, 0.07, 0.13), look.skin * 0.9)  # ears
    chin = look.chin + 0.11 * au["AU26"]
    t = np.linspace(0, 2 * np.pi, 48)
    x = width * np.sign(np.cos(t)) * np.abs(np.cos(t)) ** 0.9
    y = np.where(np.sin(t) > 0, chin * np.sin(t), 0.86 * np.sin(t))
    pencil.fill(np.stack([x, y], 1), look.skin)
    if look.beard:
        pencil.fill(
            np.concatenate(
                [
                    _ellipse(0, 0.28, width * 0.97, chin - 0.29, 0.12, np.pi - 0.12),
                    [(-0.3, 0.4), (0, 0.33), (0.3, 0.4)],
                ]
            ),
            look.hair * 0.6 + look.skin * 0.4,
        )
    if look.haircut in ("short", "fringe", "bun", "long"):
        drop = -0.42 if look.haircut == "fringe" else -0.56
        pencil.fill(
            np.concatenate(
                [
                    _ellipse(0, -0.28, width + 0.04, 0.64, np.pi, 2 * np.pi),
                    _curve((width, -0.3), (0, drop - 0.2), (-width, -0.3)),
                ]
            ),
            hair,
        )


def _draw_eye(pencil: _Pencil, look: Look, au: Mapping[str, float], side: int) -> None:
    cx, cy = side * look.eye_distance, -0.11
    rx = look.eye_width
    up = look.eye_height * (
        1 + 0.75 * au["AU5"] - 0.5 * au["AU7"] - 0.15 * au["AU6"] - 0.12 * au["AU9"]
    )
    down = look.eye_height * (0.85 - 0.5 * au["AU7"] - 0.45 * au["AU6"])
    up, down = max(up, 0.008), max(down, 0.005)
    lid_up = _curve((cx - rx, cy), (cx, cy - 2 * up), (cx + rx, cy))
    lid_down = _curve((cx + rx, cy), (cx, cy + 2 * down), (cx - rx, cy))
    pencil.fill(np.concatenate([lid_up, lid_down]), (244, 242, 238))
    iris = look.eye_height * 0.95
    t = np.linspace(0, 2 * np.pi, 20)
    for radius, colour in ((iris, look.iris), (iris * 0.5, (14, 12, 12))):
        y = np.clip(cy + radius * np.sin(t), cy - up * 0.98, cy + down * 0.98)
        pencil.fill(np.stack([cx + radius * np.cos(t), y], 1), colour)
    dark = look.skin * 0.36
    pencil.line(lid_up, dark, 0.024)
    pencil.line(lid_down, look.skin * 0.62, 0.012)
    fold = look.skin * 0.72
    if au["AU7"] > 0.15:  # tight lower lid: a straight crease close to the eye
        pencil.line(
            [(cx - rx, cy + down + 0.035), (cx + rx, cy + down + 0.035)],
            look.skin * (1 - 0.42 * au["AU7"]),
            0.016,
        )
    if au["AU6"] > 0.1:  # raised cheek: bulge, pouch under the eye and crow's feet
        strength = au["AU6"]
        pencil.fill(
            _ellipse(cx + side * 0.02, 0.14 - 0.03 * strength, 0.15, 0.085 * strength),
            look.skin * (1.0, 0.86, 0.84) + 6,
        )
        pencil.line(
            _curve((cx - rx, cy + 0.09), (cx, cy + 0.17), (cx + rx, cy + 0.08)), fold, 0.018
        )
        for dy in (-0.05, 0.0, 0.05):
            start = cx + side * (rx + 0.025)
            pencil.line(
                [(start, cy + dy * 0.5), (start + side * 0.09 * strength, cy + dy * 1.5)],
                look.skin * (1 - 0.4 * strength),
                0.014,
            )


def _draw_brow(pencil: _Pencil, look: Look, au: Mapping[str, float], side: int) -> None:
    base = -0.11 - look.brow_height
    inner_y = base - 0.105 * au["AU1"] + 0.085 * au["AU4"] + 0.02 * au["AU9"]
    outer_y = base + look.brow_tilt + 0.02 - 0.12 * au["AU2"] + 0.015 * au["AU4"]
    middle_y = (inner_y + outer_y) / 2 - 0.035 - 0.03 * au["AU2"] + 0.02 * au["AU4"]
    inner_x = side * (look.eye_distance - 0.145 - 0.045 * au["AU4"])
    outer_x = side * (look.eye_distance + 0.165)
    colour = look.hair * 0.75 if look.haircut != "bald" else look.skin * 0.4
    pencil.line(
        _curve(
            (inner_x, inner_y),
            (side * look.eye_distance, 2 * middle_y - (inner_y + outer_y) / 2),
            (outer_x, outer_y),
        ),
        colour,
        look.brow_thickness * 1.2,
    )


def _draw_folds(pencil: _Pencil, look: Look, au: Mapping[str, float]) -> None:
    """Furrows of the forehead, between the brows and beside the nose; old skin shows them a little at rest."""
    for k, y in enumerate((-0.42, -0.49)):
        inner = max(au["AU1"], 0.25 * look.age)
        if inner > 0.15:
            pencil.line(
                _curve((-0.16, y + 0.015), (0, y - 0.03), (0.16, y + 0.015)),
                look.skin * (1 - 0.34 * inner),
                0.016,
            )
        if au["AU2"] > 0.15:
            for side in (-1, 1):
                pencil.line(
                    _curve((side * 0.22, y), (side * 0.34, y - 0.05), (side * 0.46, y + 0.03 * k)),
                    look.skin * (1 - 0.34 * au["AU2"]),
                    0.016,
                )
    if au["AU4"] > 0.1:
        for side in (-1, 1):
            pencil.line(
                [(side * 0.035, -0.36), (side * 0.05, -0.22)],
                look.skin * (1 - 0.5 * au["AU4"]),
                0.02,
            )
    nasolabial = max(au["AU10"], 0.55 * au["AU12"], 0.5 * au["AU9"], 0.35 * look.age)
    if nasolabial > 0.12:
        reach = 0.06 * au["AU12"]
        for side in (-1, 1):
            x = side * (look.nose_width + 0.035)
            bend = (side * (look.nose_width + 0.12 + reach), 0.2 + 0.06 * (1 - au["AU10"]))
            pencil.line(
                _curve(
                    (x, 0.17 - 0.03 * au["AU10"]),
                    bend,
                    (side * (look.mouth_width + 0.03 + reach), 0.4),
                ),
                look.skin * (1 - 0.38 * nasolabial),
                0.02,
            )


def _draw_nose(pencil: _Pencil, look: Look, au: Mapping[str, float]) -> None:
    top, bottom = -0.1, -0.1 + look.nose_length - 0.035 * au["AU9"] - 0.015 * au["AU10"]
    width = look.nose_width * (1 + 0.22 * au["AU10"] + 0.15 * au["AU9"])
    shade = look.skin * 0.74
    pencil.line(
        _curve((0.03, top), (0.05, (top + bottom) / 2), (width * 0.8, bottom - 0.03)), shade, 0.014
    )
    pencil.line(
        _curve((-width, bottom - 0.02), (0, bottom + 0.07), (width, bottom - 0.02)),
        look.skin * 0.62,
        0.02,
    )
    for side in (-1, 1):
        pencil.fill(
            _ellipse(side * width * 0.45, bottom + 0.005, 0.022, 0.014, num=10), look.skin * 0.4
        )
    if au["AU9"] > 0.15:  # wrinkled root of the nose
        for y in (-0.12, -0.07, -0.02):
            pencil.line(
                _curve((-0.085, y + 0.02), (0, y - 0.04), (0.085, y + 0.02)),
                look.skin * (1 - 0.45 * au["AU9"]),
                0.016,
            )


def _draw_mouth(pencil: _Pencil, look: Look, au: Mapping[str, float]) -> None:
    tight, press = au["AU23"], au["AU24"]
    half = look.mouth_width * (
        1
        + 0.28 * au["AU12"]
        + 0.36 * au["AU20"]
        - 0.42 * tight
        - 0.06 * press
        - 0.2 * au["AU26"] * (1 - au["AU20"])
    )
    y = look.mouth_y + 0.02 * au["AU26"] - 0.015 * au["AU17"]
    corner = y - 0.1 * au["AU12"] + 0.1 * au["AU15"] + 0.02 * au["AU20"]
    gap = 0.055 * au["AU25"] + 0.17 * au["AU26"]
    if au["AU25"] < 0.05:
        gap *= 0.15  # a jaw that drops behind closed lips only lengthens the face
    thick = look.lip_thickness * (1 - 0.35 * tight) * (1 - 0.8 * press)
    lift = 0.075 * au["AU10"]
    upper_in, lower_in = y - 0.3 * gap - 0.6 * lift * min(1, gap * 12), y + 0.7 * gap
    upper_out, lower_out = min(upper_in, y) - thick - lift, lower_in + 1.15 * thick
    left, right = (-half, corner), (half, corner)

    def lip(level: float) -> np.ndarray:
        return _curve(left, (0, 2 * level - corner), right, 17)

    lips = look.lips * (1 - 0.12 * tight)
    cupid = lip(upper_out)
    cupid[8, 1] += 0.3 * thick
    pencil.fill(np.concatenate([cupid, lip(lower_out)[::-1]]), lips)
    if gap > 0.012:
        inside = np.concatenate([lip(upper_in), lip(lower_in)[::-1]])
        pencil.fill(inside, (58, 18, 22))
        if gap > 0.03:  # upper teeth; they show most in a smile or under a raised lip
            teeth = upper_in + min(
                0.5 * gap, 0.035 + 0.03 * max(au["AU12"], au["AU10"], au["AU20"])
            )
            pencil.fill(
                np.concatenate([lip(upper_in) * (0.86, 1), (lip(teeth) * (0.86, 1))[::-1]]),
                (238, 234, 224),
            )
    else:
        pencil.line(lip((upper_in + lower_in) / 2), look.lips * 0.5, 0.018 + 0.014 * press)
    if press > 0.15:  # pressed lips: skin bulges above and below the line
        for dy, bend in ((-0.06, -0.03), (0.065, 0.03)):
            pencil.line(
                _curve((-half * 0.8, y + dy), (0, y + dy + bend), (half * 0.8, y + dy)),
                look.skin * (1 - 0.32 * press),
                0.018,
            )
    if tight > 0.15:  # tight lips: fine vertical lines around a narrow mouth
        for x in (-0.6, 0.0, 0.6):
            pencil.line(
                [(x * half, upper_out - 0.05), (x * half, upper_out - 0.012)],
                look.skin * (1 - 0.34 * tight),
                0.014,
            )
    if au["AU15"] > 0.15:  # pouches below the corners
        for side in (-1, 1):
            pencil.line(
                _curve(
                    (side * (half + 0.01), corner),
                    (side * (half + 0.045), corner + 0.05),
                    (side * (half + 0.02), corner + 0.11),
                ),
                look.skin * (1 - 0.42 * au["AU15"]),
                0.02,
            )
    if au["AU12"] > 0.2:  # dimples beyond the corners
        for side in (-1, 1):
            pencil.line(
                _curve(
                    (side * (half + 0.035), corner - 0.04),
                    (side * (half + 0.06), corner),
                    (side * (half + 0.035), corner + 0.045),
                ),
                look.skin * (1 - 0.38 * au["AU12"]),
                0.018,
            )
    if au["AU17"] > 0.15:  # puckered chin
        pencil.line(
            _curve((-0.09, y + 0.2), (0, y + 0.15), (0.09, y + 0.2)),
            look.skin * (1 - 0.4 * au["AU17"]),
            0.022,
        )
