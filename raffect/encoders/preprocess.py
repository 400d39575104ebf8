"""CLIP's picture transform on the device, pixel for pixel as open_clip does it with PIL on the CPU.

PIL resizes in two passes, columns then rows, and rounds to 8 bits after *each*; torch's own bicubic
does not, and differs in a fifth of the pixels. Each pass is a small matrix. PIL's coefficients have
22 bits, which times 8-bit pixels is more than float32 holds, so each matrix is split into a coarse
and a fine half whose products are both exact: not one pixel differs. Halves and pixels have 11 bits
at most, so that they are exact in TF32 as well.

Shape letters: B pictures, H and W of the input, S side of the encoder's input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raffect.datasets.frames import resized_shape, shrink
from raffect.encoders.rounding import round_sum
from raffect.encoders.weights import view_side
from raffect.errors import RaffectError

_COEFFICIENT_BITS = 22
"""PIL's PRECISION_BITS for 8-bit pictures."""
_INTERPOLATIONS, _RESIZE_MODES = ("bicubic", "bilinear"), ("shortest", "squash")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """An encoder's own transform.

    Attributes:
        size: Side of the input in pixels.
        mean: Of the channels, 0-1.
        std: Of the channels, 0-1.
        interpolation: ``"bicubic"`` or ``"bilinear"``.
        resize_mode: ``"shortest"`` (shorter side to ``size``, centre crop) or ``"squash"`` (both
            sides to ``size``).
        resize_to: Side that is resized to, of which the centre is cropped to ``size``; 0 is
            ``size``.
        view: What of that the encoder sees; empty, or as of `raffect.config.EncoderConfig`.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    resize_to: int = 0
    view: str = ""

    def __post_init__(self) -> None:
        if self.interpolation in _INTERPOLATIONS and self.resize_mode in _RESIZE_MODES:
            return
        what = f"this encoder resizes by {self.resize_mode}/{self.interpolation}"
        expected = "raffect has shortest or squash with bicubic or bilinear"
        raise RaffectError(f"{what}; {expected}: use another --encoder.model")

    def as_dict(self) -> dict:
        """Plain JSON values, for a bank's identity."""
        # What a plain encoder does not have is left out, so that its record stays as it was.
        values = {k: v for k, v in asdict(self).items() if v or k not in ("resize_to", "view")}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @property
    def side(self) -> int:
        """Side that is resized to, before the crop."""
        return self.resize_to or self.size

    def seen_as(self, view: str) -> Preprocess:
        """The transform of a view of the same pictures."""
        side = view_side(self.side, view)
        return replace(self, view=view, resize_to=side if side != self.size else 0)

    def resize(self, pixels_BHWC: Tensor) -> Tensor:
        """Enlarge pictures of one size to the encoder's input.

        Args:
            pixels_BHWC: uint8, shape (B, H, W, 3), no side longer than `side` (see `shrink`).

        Returns:
            float32 of whole numbers 0-255, shape (B, 3, S, S), on the same device.
        """
        height, width = pixels_BHWC.shape[1:3]
        # In the layout that resized pictures have: convolutions choose their kernels by it.
        x = pixels_BHWC.permute(0, 3, 1, 2)
        x = x.to(torch.float32, memory_format=torch.contiguous_format)
        if (height, width) == (self.side, self.side):
            start = round((self.side - self.size) / 2.0)
            centre = slice(start, start + self.size)
            return self._turn(x[:, :, centre, centre].contiguous())
        kind = (self.size, self.side, self.interpolation, self.resize_mode)
        rows, columns = _matrices(height, width, *kind, x.device)
        # Columns first and rounded, then rows, as PIL has it.
        with _tensor_cores():
            x = round_sum(*(x @ half for half in columns))
            return self._turn(round_sum(*(half @ x for half in rows)))

    def _turn(self, pixels_BCSS: Tensor) -> Tensor:
        """Mirror the encoder's input, where that is the view."""
        return pixels_BCSS.flip(-1) if self.view == "flip" else pixels_BCSS

    def shrink(self, pixels: np.ndarray) -> np.ndarray:
        """Bring one picture (H, W, 3) down to the encoder's input if a side is longer.

        See `raffect.datasets.frames.shrink`.
        """
        resampling = Image.Resampling[self.interpolation.upper()]
        keep_ratio = self.resize_mode == "shortest"
        return shrink(pixels, self.side, resampling, keep_ratio, self.size)

    def normalise(self, pixels_BCSS: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Scale 0-255 to the encoder's range in float32, then round to ``dtype``; same shape."""
        offset, scale = _range(self.mean, self.std, pixels_BCSS.device)
        out = torch.empty_like(pixels_BCSS, dtype=dtype)
        return torch.addcmul(offset, pixels_BCSS, scale, out=out)


@contextlib.contextmanager
def _tensor_cores() -> Generator[None]:
    """Products of float32 matrices in TF32, on CUDA; only for numbers that it holds."""
    flags = torch.backends.cuda.matmul
    before, flags.allow_tf32 = flags.allow_tf32, True
    try:
        yield
    finally:
        flags.allow_tf32 = before


@lru_cache(maxsize=8)
def _range(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """``-mean / std`` and ``1 / (255 std)`` of each channel, shape (3, 1, 1), kept on the device.

    A copy to the device would wait for all that is queued there.
    """
    mean_C, std_C = np.array(mean), np.array(std)
    both = np.stack([-mean_C / std_C, 1 / (255 * std_C)]).astype(np.float32)
    offset, scale = torch.from_numpy(both).to(device).view(2, 3, 1, 1)
    return offset, scale


@lru_cache(maxsize=256)
def _matrices(
    height: int,
    width: int,
    size: int,
    side: int,
    interpolation: str,
    resize_mode: str,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Matrices that resize and crop, as coarse and fine halves.

    Returns:
        Rows (2, S, H), which multiply from the left, and columns (2, W, S), from the right.
    """
    new_width, new_height = side, side
    if resize_mode == "shortest":
        new_width, new_height = resized_shape(width, height, side)
    # The crop is a choice of rows of each matrix.
    top, left = round((new_height - size) / 2.0), round((new_width - size) / 2.0)
    rows = resize_matrix(height, new_height, interpolation)[top : top + size]
    columns = resize_matrix(width, new_width, interpolation)[left : left + size].T
    return _halves(rows).to(device), _halves(columns).to(device)


def _halves(matrix: np.ndarray) -> Tensor:
    """Coarse and fine half of a matrix, stacked, float32."""
    # Coefficients at a border are up to 1.1, of which 11 bits are multiples of 2**-10.
    step = 2.0 ** (1 - _COEFFICIENT_BITS // 2)
    coarse = np.round(matrix / step) * step
    return torch.from_numpy(np.stack([coarse, matrix - coarse]).astype(np.float32))


def resize_matrix(old: int, new: int, interpolation: str) -> np.ndarray:
    """PIL's resampling along one axis as a matrix, its coefficients rounded to 22 bits as PIL does.

    Args:
        old: Pixels of the input.
        new: Pixels of the output.
        interpolation: ``"bicubic"`` (a = -0.5) or ``"bilinear"``.

    Returns:
        float64 of whole multiples of 2**-22, shape (new, old).

    Source:
        Pillow ``src/libImaging/Resample.c``, ``precompute_coeffs`` and ``normalize_coeffs_8bpc``.
    """
    # Where the kernel of each output pixel lies, and which input pixels it reaches.
    scale = old / new
    stretch = max(scale, 1.0)
    kernel, reach = (_bicubic, 2.0) if interpolation == "bicubic" else (_bilinear, 1.0)
    support = reach * stretch
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(int), 0)
    last = np.minimum((centre + support + 0.5).astype(int), old)
    # Its weights there, which sum to 1.
    k = np.arange(old)
    weight = kernel((k[None] - centre[:, None] + 0.5) / stretch)
    weight[(k[None] < first[:, None]) | (k[None] >= last[:, None])] = 0
    weight /= weight.sum(1, keepdims=True)
    # Rounded to fixed point, halves away from 0.
    fixed = np.trunc(weight * (1 << _COEFFICIENT_BITS) + np.where(weight < 0, -0.5, 0.5))
    return fixed / (1 << _COEFFICIENT_BITS)


def _bicubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0.0)
