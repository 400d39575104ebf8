"""Draw one face from the intensities of its action units.

A face is plain geometry: outline, hair, brows, eyes, nose and mouth are polygons whose points move
with the action units as the FACS manual describes them. `Look` is the subject, `Pose` is the camera
and the light, and ``units`` is the expression. A picture is a pure function of these three and a
noise seed.

Coordinates: the face's centre is (0, 0), x to the viewer's right, y down, 1.0 is half the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from raffect.datasets.synthetic.looks import Look, Pose

SIZE = 112
"""Side of a drawn face in pixels, as in Aff-Wild2's ``cropped_aligned``."""

_UNIT_NUMBERS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 17, 20, 23, 24, 25, 26)
DRAWN_UNITS = tuple(f"AU{number}" for number in _UNIT_NUMBERS)
"""Units that can be drawn: the 12 that Aff-Wild2 labels, and AU5, AU9, AU17 and AU20, which real
faces show as well."""

_SUPERSAMPLE = 2

_GLASSES = (40, 40, 46)


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
    canvas = _Canvas(look, pose)
    au = dict.fromkeys(DRAWN_UNITS, 0.0) | dict(units)

    # From back to front
    _draw_head(canvas, look, au)
    for side in (-1, 1):
        _draw_eye(canvas, look, au, side)
        _draw_brow(canvas, look, au, side)
    _draw_furrows(canvas, look, au)
    _draw_nose(canvas, look, au)
    mouth = _shape_mouth(look, au)
    _draw_lips(canvas, look, au, mouth)
    _draw_mouth_creases(canvas, look, au, mouth)
    if look.glasses:
        _draw_glasses(canvas, look)
    return canvas.finish(seed)


class _Canvas:
    """Maps face coordinates through the pose to pixels and draws there at twice the resolution."""

    def __init__(self, look: Look, pose: Pose) -> None:
        side = SIZE * _SUPERSAMPLE
        self.look, self.pose = look, pose
        self.half = side / 2
        self.image = Image.new("RGB", (side, side), _rgb(look.background))
        self.draw = ImageDraw.Draw(self.image)

    def points(self, points) -> list[tuple[float, float]]:
        xy = np.asarray(points, float)
        x, y = xy[:, 0], xy[:, 1]
        # The middle of a face is nearer to the camera than its rim, so turning moves it further.
        nearness = np.clip(1 - x * x * 1.6, 0, 1)
        x = x * (1 - 0.1 * abs(self.pose.yaw)) + 0.16 * self.pose.yaw * nearness
        c, s = np.cos(self.pose.roll), np.sin(self.pose.roll)
        x, y = x * c - y * s, x * s + y * c
        out = np.stack([x, y], 1) * self.pose.scale + self.pose.shift
        return [(float(a), float(b)) for a, b in (out + 1) * self.half]

    def fill(self, points, colour) -> None:
        self.draw.polygon(self.points(points), fill=_rgb(colour))

    def line(self, points, colour, width: float) -> None:
        pixels = max(1, round(width * self.half * self.pose.scale))
        self.draw.line(self.points(points), fill=_rgb(colour), width=pixels, joint="curve")

    def crease(self, points, depth: float, width: float) -> None:
        """A line in the skin, darker than the skin by ``depth`` in 0-1."""
        self.line(points, self.look.skin * (1 - depth), width)

    def finish(self, seed: int) -> np.ndarray:
        """The picture with light and sensor noise, uint8 (112, 112, 3)."""
        pose = self.pose
        pixels = np.asarray(self.image.reduce(_SUPERSAMPLE), np.float32)
        ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)[None, :, None]
        noise = np.random.default_rng(seed).normal(0, pose.noise, pixels.shape).astype(np.float32)
        lit = pixels * (pose.light * (1 + pose.light_side * ramp)) + noise
        return np.clip(lit, 0, 255).astype(np.uint8)


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
    """Points of an ellipse, or of its arc between two angles in radians: shape (num, 2)."""
    t = np.linspace(start, stop, num)
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], 1)


def _curve(a, control, b, num: int = 11) -> np.ndarray:
    """Quadratic Bezier through a, bent towards control, to b."""
    t = np.linspace(0, 1, num)[:, None]
    a, control, b = (np.asarray(p, float) for p in (a, control, b))
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * control + t**2 * b


def _draw_head(canvas: _Canvas, look: Look, au: Mapping[str, float]) -> None:
    # Hair behind the head
    width, hair = look.face_width, look.hair
    if look.haircut == "long":
        canvas.fill(_ellipse(0, -0.05, width + 0.2, 1.05), hair)
    elif look.haircut != "bald":
        canvas.fill(_ellipse(0, -0.3, width + 0.09, 0.72), hair)
    if look.haircut == "bun":
        canvas.fill(_ellipse(0, -0.95, 0.36, 0.24), hair)

    # Neck and ears
    canvas.fill(_ellipse(0, 0.95, 0.34, 0.5), look.skin * 0.82)
    for side in (-1, 1):
        canvas.fill(_ellipse(side * width, 0.0, 0.07, 0.13), look.skin * 0.9)

    # Face; a dropped jaw lengthens it
    chin = look.chin + 0.11 * au["AU26"]
    t = np.linspace(0, 2 * np.pi, 48)
    x = width * np.sign(np.cos(t)) * np.abs(np.cos(t)) ** 0.9
    y = np.where(np.sin(t) > 0, chin * np.sin(t), 0.86 * np.sin(t))
    canvas.fill(np.stack([x, y], 1), look.skin)

    # Beard
    if look.beard:
        edge = _ellipse(0, 0.28, width * 0.97, chin - 0.29, 0.12, np.pi - 0.12)
        under_mouth = [(-0.3, 0.4), (0, 0.33), (0.3, 0.4)]
        colour = look.hair * 0.6 + look.skin * 0.4
        canvas.fill(np.concatenate([edge, under_mouth]), colour)

    # Hair over the forehead
    if look.haircut != "bald":
        drop = -0.42 if look.haircut == "fringe" else -0.56
        top = _ellipse(0, -0.28, width + 0.04, 0.64, np.pi, 2 * np.pi)
        hairline = _curve((width, -0.3), (0, drop - 0.2), (-width, -0.3))
        canvas.fill(np.concatenate([top, hairline]), hair)


def _draw_eye(canvas: _Canvas, look: Look, au: Mapping[str, float], side: int) -> None:
    # How far the lids are open
    cx, cy, rx = side * look.eye_distance, -0.11, look.eye_width
    up_gain = 1 + 0.75 * au["AU5"] - 0.5 * au["AU7"] - 0.15 * au["AU6"] - 0.12 * au["AU9"]
    down_gain = 0.85 - 0.5 * au["AU7"] - 0.45 * au["AU6"]
    up, down = max(look.eye_height * up_gain, 0.008), max(look.eye_height * down_gain, 0.005)

    # White
    lid_up = _curve((cx - rx, cy), (cx, cy - 2 * up), (cx + rx, cy))
    lid_down = _curve((cx + rx, cy), (cx, cy + 2 * down), (cx - rx, cy))
    canvas.fill(np.concatenate([lid_up, lid_down]), (244, 242, 238))

    # Iris and pupil, cut off by the lids
    iris = look.eye_height * 0.95
    t = np.linspace(0, 2 * np.pi, 20)
    for radius, colour in ((iris, look.iris), (iris * 0.5, (14, 12, 12))):
        y = np.clip(cy + radius * np.sin(t), cy - up * 0.98, cy + down * 0.98)
        canvas.fill(np.stack([cx + radius * np.cos(t), y], 1), colour)

    # Lids; a tight lower one makes a straight crease close to the eye
    canvas.line(lid_up, look.skin * 0.36, 0.024)
    canvas.line(lid_down, look.skin * 0.62, 0.012)
    if au["AU7"] > 0.15:
        y = cy + down + 0.035
        canvas.crease([(cx - rx, y), (cx + rx, y)], 0.42 * au["AU7"], 0.016)
    if au["AU6"] > 0.1:
        _draw_raised_cheek(canvas, look, au["AU6"], side)


def _draw_raised_cheek(canvas: _Canvas, look: Look, strength: float, side: int) -> None:
    """The bulge of the cheek, the pouch under the eye and crow's feet (AU6)."""
    cx, cy, rx = side * look.eye_distance, -0.11, look.eye_width
    bulge = _ellipse(cx + side * 0.02, 0.14 - 0.03 * strength, 0.15, 0.085 * strength)
    canvas.fill(bulge, look.skin * (1.0, 0.86, 0.84) + 6)
    pouch = _curve((cx - rx, cy + 0.09), (cx, cy + 0.17), (cx + rx, cy + 0.08))
    canvas.line(pouch, look.skin * 0.72, 0.018)
    start = cx + side * (rx + 0.025)
    stop = start + side * 0.09 * strength
    for dy in (-0.05, 0.0, 0.05):
        canvas.crease([(start, cy + dy * 0.5), (stop, cy + dy * 1.5)], 0.4 * strength, 0.014)


def _draw_brow(canvas: _Canvas, look: Look, au: Mapping[str, float], side: int) -> None:
    base = -0.11 - look.brow_height
    inner_y = base - 0.105 * au["AU1"] + 0.085 * au["AU4"] + 0.02 * au["AU9"]
    outer_y = base + look.brow_tilt + 0.02 - 0.12 * au["AU2"] + 0.015 * au["AU4"]
    middle_y = (inner_y + outer_y) / 2 - 0.035 - 0.03 * au["AU2"] + 0.02 * au["AU4"]
    inner_x = side * (look.eye_distance - 0.145 - 0.045 * au["AU4"])
    outer_x = side * (look.eye_distance + 0.165)
    colour = look.hair * 0.75 if look.haircut != "bald" else look.skin * 0.4
    bend = (side * look.eye_distance, 2 * middle_y - (inner_y + outer_y) / 2)
    brow = _curve((inner_x, inner_y), bend, (outer_x, outer_y))
    canvas.line(brow, colour, look.brow_thickness * 1.2)


def _draw_furrows(canvas: _Canvas, look: Look, au: Mapping[str, float]) -> None:
    """Furrows of the forehead, between the brows and beside the nose.

    Old skin shows them a little at rest.
    """
    # Forehead, over the inner and the outer brows
    for k, y in enumerate((-0.42, -0.49)):
        inner = max(au["AU1"], 0.25 * look.age)
        if inner > 0.15:
            furrow = _curve((-0.16, y + 0.015), (0, y - 0.03), (0.16, y + 0.015))
            canvas.crease(furrow, 0.34 * inner, 0.016)
        if au["AU2"] > 0.15:
            for side in (-1, 1):
                end = (side * 0.46, y + 0.03 * k)
                furrow = _curve((side * 0.22, y), (side * 0.34, y - 0.05), end)
                canvas.crease(furrow, 0.34 * au["AU2"], 0.016)

    # Between the brows
    if au["AU4"] > 0.1:
        for side in (-1, 1):
            canvas.crease([(side * 0.035, -0.36), (side * 0.05, -0.22)], 0.5 * au["AU4"], 0.02)

    # From the nose to the corners of the mouth
    nasolabial = max(au["AU10"], 0.55 * au["AU12"], 0.5 * au["AU9"], 0.35 * look.age)
    if nasolabial > 0.12:
        reach = 0.06 * au["AU12"]
        for side in (-1, 1):
            start = (side * (look.nose_width + 0.035), 0.17 - 0.03 * au["AU10"])
            bend = (side * (look.nose_width + 0.12 + reach), 0.2 + 0.06 * (1 - au["AU10"]))
            end = (side * (look.mouth_width + 0.03 + reach), 0.4)
            canvas.crease(_curve(start, bend, end), 0.38 * nasolabial, 0.02)


def _draw_nose(canvas: _Canvas, look: Look, au: Mapping[str, float]) -> None:
    top, bottom = -0.1, -0.1 + look.nose_length - 0.035 * au["AU9"] - 0.015 * au["AU10"]
    width = look.nose_width * (1 + 0.22 * au["AU10"] + 0.15 * au["AU9"])

    # Ridge, wings and nostrils
    ridge = _curve((0.03, top), (0.05, (top + bottom) / 2), (width * 0.8, bottom - 0.03))
    canvas.line(ridge, look.skin * 0.74, 0.014)
    wings = _curve((-width, bottom - 0.02), (0, bottom + 0.07), (width, bottom - 0.02))
    canvas.line(wings, look.skin * 0.62, 0.02)
    for side in (-1, 1):
        nostril = _ellipse(side * width * 0.45, bottom + 0.005, 0.022, 0.014, num=10)
        canvas.fill(nostril, look.skin * 0.4)

    # Wrinkled root
    if au["AU9"] > 0.15:
        for y in (-0.12, -0.07, -0.02):
            wrinkle = _curve((-0.085, y + 0.02), (0, y - 0.04), (0.085, y + 0.02))
            canvas.crease(wrinkle, 0.45 * au["AU9"], 0.016)


@dataclass(frozen=True, kw_only=True)
class _Mouth:
    """Shape of a mouth: half its width, heights of its parts, and the opening between the lips."""

    half: float
    middle: float
    corner: float
    gap: float
    thickness: float
    upper_out: float
    upper_in: float
    lower_in: float
    lower_out: float

    def lip(self, level: float) -> np.ndarray:
        """A curve from corner to corner that reaches ``level`` in its middle, shape (17, 2)."""
        left, right = (-self.half, self.corner), (self.half, self.corner)
        return _curve(left, (0, 2 * level - self.corner), right, 17)


def _shape_mouth(look: Look, au: Mapping[str, float]) -> _Mouth:
    # Width, height and corners
    tight, press = au["AU23"], au["AU24"]
    stretch = 1 + 0.28 * au["AU12"] + 0.36 * au["AU20"]
    jaw = au["AU26"] * (1 - au["AU20"])
    half = look.mouth_width * (stretch - 0.42 * tight - 0.06 * press - 0.2 * jaw)
    y = look.mouth_y + 0.02 * au["AU26"] - 0.015 * au["AU17"]
    corner = y - 0.1 * au["AU12"] + 0.1 * au["AU15"] + 0.02 * au["AU20"]

    # Opening; a jaw that drops behind closed lips only lengthens the face
    gap = 0.055 * au["AU25"] + 0.17 * au["AU26"]
    if au["AU25"] < 0.05:
        gap *= 0.15

    # Lips
    thickness = look.lip_thickness * (1 - 0.35 * tight) * (1 - 0.8 * press)
    lift = 0.075 * au["AU10"]
    upper_in, lower_in = y - 0.3 * gap - 0.6 * lift * min(1, gap * 12), y + 0.7 * gap
    return _Mouth(
        half=half,
        middle=y,
        corner=corner,
        gap=gap,
        thickness=thickness,
        upper_out=min(upper_in, y) - thickness - lift,
        upper_in=upper_in,
        lower_in=lower_in,
        lower_out=lower_in + 1.15 * thickness,
    )


def _draw_lips(canvas: _Canvas, look: Look, au: Mapping[str, float], mouth: _Mouth) -> None:
    # Both lips; the middle of the upper edge is indented
    edge = mouth.lip(mouth.upper_out)
    edge[8, 1] += 0.3 * mouth.thickness
    outline = np.concatenate([edge, mouth.lip(mouth.lower_out)[::-1]])
    canvas.fill(outline, look.lips * (1 - 0.12 * au["AU23"]))

    # A closed mouth is a line
    upper, lower = mouth.upper_in, mouth.lower_in
    if mouth.gap <= 0.012:
        width = 0.018 + 0.014 * au["AU24"]
        canvas.line(mouth.lip((upper + lower) / 2), look.lips * 0.5, width)
        return

    # Opening, and upper teeth, which show most in a smile or under a raised lip
    canvas.fill(np.concatenate([mouth.lip(upper), mouth.lip(lower)[::-1]]), (58, 18, 22))
    if mouth.gap > 0.03:
        shown = 0.035 + 0.03 * max(au["AU12"], au["AU10"], au["AU20"])
        below = mouth.lip(upper + min(0.5 * mouth.gap, shown)) * (0.86, 1)
        teeth = np.concatenate([mouth.lip(upper) * (0.86, 1), below[::-1]])
        canvas.fill(teeth, (238, 234, 224))


def _draw_mouth_creases(
    canvas: _Canvas, look: Look, au: Mapping[str, float], mouth: _Mouth
) -> None:
    half, y, corner = mouth.half, mouth.middle, mouth.corner

    # Pressed lips: skin bulges above and below the line
    if au["AU24"] > 0.15:
        for dy, bend in ((-0.06, -0.03), (0.065, 0.03)):
            bulge = _curve((-half * 0.8, y + dy), (0, y + dy + bend), (half * 0.8, y + dy))
            canvas.crease(bulge, 0.32 * au["AU24"], 0.018)

    # Tight lips: fine vertical lines around a narrow mouth
    if au["AU23"] > 0.15:
        top, bottom = mouth.upper_out - 0.05, mouth.upper_out - 0.012
        for x in (-0.6, 0.0, 0.6):
            canvas.crease([(x * half, top), (x * half, bottom)], 0.34 * au["AU23"], 0.014)

    # Pouches below the corners
    if au["AU15"] > 0.15:
        for side in (-1, 1):
            start, end = (side * (half + 0.01), corner), (side * (half + 0.02), corner + 0.11)
            pouch = _curve(start, (side * (half + 0.045), corner + 0.05), end)
            canvas.crease(pouch, 0.42 * au["AU15"], 0.02)

    # Dimples beyond the corners
    if au["AU12"] > 0.2:
        for side in (-1, 1):
            x = side * (half + 0.035)
            bend = (side * (half + 0.06), corner)
            dimple = _curve((x, corner - 0.04), bend, (x, corner + 0.045))
            canvas.crease(dimple, 0.38 * au["AU12"], 0.018)

    # Puckered chin
    if au["AU17"] > 0.15:
        pucker = _curve((-0.09, y + 0.2), (0, y + 0.15), (0.09, y + 0.2))
        canvas.crease(pucker, 0.4 * au["AU17"], 0.022)


def _draw_glasses(canvas: _Canvas, look: Look) -> None:
    for side in (-1, 1):
        canvas.line(_ellipse(side * look.eye_distance, -0.11, 0.2, 0.15), _GLASSES, 0.018)
    bridge = [(-look.eye_distance + 0.2, -0.12), (look.eye_distance - 0.2, -0.12)]
    canvas.line(bridge, _GLASSES, 0.018)
