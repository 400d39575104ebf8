"""Damaged copies of pictures: six kinds of damage in five strengths each.

Heads are judged on such copies by `raffect robust`. All work on uint8 RGB of any size, return the
same shape, and draw from the frame's own seed alone, so that a copy can be made again anywhere.

Source:
    Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations" (ImageNet-C). Its values of noise, brightness and JPEG are taken over.
    Deviations: blur and loss of resolution go by a picture's shorter side, since ImageNet-C's
    pixels are of pictures of 224 and crops of faces have any size; resolution is a plain shrink and
    enlargement, its pixelate shows blocks; occlusion is not in ImageNet-C and is the most usual
    damage of faces.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from raffect.errors import require

VERSION = 1
"""Of the definitions below: copies of another version are never read as these."""
STRENGTHS = 5
"""Strengths of each kind, from 1; 0 is the picture itself."""

BLUR = (0.005, 0.01, 0.02, 0.03, 0.05)
"""Deviation of a Gaussian blur, as a share of the shorter side: .6 to 5.6 of 112 pixels."""
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
"""Standard deviation of Gaussian noise of each pixel and color, as a share of white."""
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""What is added to the value of HSV, as a share of white; hue and saturation stay until white."""
JPEG = (25, 18, 15, 10, 7)
"""Quality of a JPEG file, written by PIL with 4:2:0 colors."""
OCCLUSION = (0.05, 0.1, 0.2, 0.35, 0.5)
"""Share of the area that a grey rectangle of the picture's own aspect covers, at a drawn place."""
LOW_RESOLUTION = (1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 8)
"""Share of each side that is left: 56 to 14 of 112 pixels, enlarged again."""
GREY = 128
_WHITE = 255


@dataclass(frozen=True)
class Corruption:
    """One kind of damage in one strength.

    Attributes:
        name: One of `CORRUPTIONS`.
        strength: 1 to 5, or 0 for none.
        seed: Of what is drawn: noise, and the place of an occlusion.
    """

    name: str
    strength: int
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self.name in CORRUPTIONS,
            f"corruption {self.name}: expected one of {', '.join(CORRUPTIONS)}",
        )
        require(
            0 <= self.strength <= STRENGTHS,
            f"strength {self.strength}: expected 0 (none) to {STRENGTHS}",
        )

    def apply(self, pixels: np.ndarray, video: str, frame: int) -> np.ndarray:
        """The damaged copy of a frame.

        Args:
            pixels: uint8, shape (height, width, 3); left as it is.
            video: With ``frame`` what is drawn follows from.
            frame: Its number.

        Returns:
            uint8 of the same shape; ``pixels`` itself at strength 0.
        """
        if self.strength == 0:
            return pixels
        damage, levels = CORRUPTIONS[self.name]
        return damage(pixels, levels[self.strength - 1], self._generator(video, frame))

    def _generator(self, video: str, frame: int) -> np.random.Generator:
        key = f"{self.seed}\0{self.name}\0{self.strength}\0{video}\0{frame}".encode()
        return np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()[:16], "big"))


def blur(pixels: np.ndarray, share: float, _: np.random.Generator) -> np.ndarray:
    """Gaussian blur, as PIL does it by boxes; ``share`` of the shorter side is its deviation."""
    radius = share * min(pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def noise(pixels: np.ndarray, sd: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of deviation ``sd`` of white, of each pixel and color on its own."""
    drawn = rng.standard_normal(pixels.shape, np.float32) * np.float32(sd * _WHITE)
    return _to_uint8(pixels + drawn)


def brightness(pixels: np.ndarray, added: float, _: np.random.Generator) -> np.ndarray:
    """The value of HSV raised by ``added`` of white; black becomes grey."""
    value = pixels.max(-1, keepdims=True).astype(np.float32)
    raised = np.minimum(value + added * _WHITE, _WHITE)
    return _to_uint8(np.where(value > 0, pixels * (raised / np.maximum(value, 1)), raised))


def jpeg(pixels: np.ndarray, quality: float, _: np.random.Generator) -> np.ndarray:
    """Written as a JPEG file in memory and read again."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=int(quality), subsampling="4:2:0")
    return np.asarray(Image.open(file).convert("RGB"))


def occlusion(pixels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A grey rectangle over ``share`` of the area, within the picture."""
    height, width = (max(1, round(side * share**0.5)) for side in pixels.shape[:2])
    top = int(rng.integers(pixels.shape[0] - height + 1))
    left = int(rng.integers(pixels.shape[1] - width + 1))
    covered = pixels.copy()
    covered[top : top + height, left : left + width] = GREY
    return covered


def low_resolution(pixels: np.ndarray, share: float, _: np.random.Generator) -> np.ndarray:
    """Shrunk to ``share`` of each side by means of boxes, and enlarged again bicubically."""
    height, width = pixels.shape[:2]
    small = (max(1, round(width * share)), max(1, round(height * share)))
    shrunk = Image.fromarray(pixels).resize(small, Image.Resampling.BOX)
    return np.asarray(shrunk.resize((width, height), Image.Resampling.BICUBIC))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, _WHITE).astype(np.uint8)


Damage = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
CORRUPTIONS: Mapping[str, tuple[Damage, tuple[float, ...]]] = {
    "blur": (blur, BLUR),
    "noise": (noise, NOISE),
    "brightness": (brightness, BRIGHTNESS),
    "jpeg": (jpeg, JPEG),
    "occlusion": (occlusion, OCCLUSION),
    "low-resolution": (low_resolution, LOW_RESOLUTION),
}
"""Each kind of damage, and its value at strengths 1 to 5."""
