"""Extraction without its tower and its files.

An encoder that only waits, and a manifest of any size that names a few pictures over and over.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sized
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.format import Identity
from raffect.config import EncoderConfig
from raffect.datasets.manifest import write_manifest
from raffect.errors import RaffectError

DIM = 768
IDENTITY = Identity(
    model="stand-in",
    weights_sha256="0" * 64,
    weights="none",
    preprocess={},
    precision="float16",
    dim=DIM,
    caveat="stand-in",
)
PICTURES = 64
VIDEO_FRAMES = 4096


class StandIn:
    """An encoder that takes ``s_per_frame`` of waiting, as a busy GPU does, and no CPU."""

    batch_size, identity = 256, IDENTITY

    def __init__(self, s_per_frame: float) -> None:
        self.s_per_frame = s_per_frame

    def encode(self, frames: Sized) -> np.ndarray:
        time.sleep(self.s_per_frame * len(frames))
        return np.zeros((len(frames), DIM), np.float16)

    def probe(self) -> float:
        """Frames/s of itself alone, measured for a second at most.

        It is measured, because a sleep takes a little longer than it was asked to.
        """
        frames, start = round(min(1000, 1 / max(self.s_per_frame, 1e-3))), time.perf_counter()
        time.sleep(self.s_per_frame * frames)
        return frames / (time.perf_counter() - start)


def load_stand_in(config: EncoderConfig, device: str, threads: int, s_per_frame: float) -> StandIn:
    """What `extract` takes as ``load``, once ``s_per_frame`` is bound."""
    if "torch" in sys.modules:
        what = "an actor of a stand-in loaded torch"
        raise RaffectError(f"{what}: its memory would be the measurement")
    return StandIn(s_per_frame)


def make_manifest(folder: Path, num_rows: int) -> Path:
    """``num_rows`` frames in videos of 4096; their files are a few pictures, again and again."""
    # Pictures
    root = folder / "images"
    _draw_pictures(root / "v")

    # A row a frame
    row = np.arange(num_rows)
    names = pa.array([f"video-{k:07d}" for k in range(num_rows // VIDEO_FRAMES + 1)])
    files = pa.array([f"v/{k:05d}.jpg" for k in range(PICTURES)])
    number, roots = (row // VIDEO_FRAMES).astype(np.int32), np.zeros(num_rows, np.int32)
    columns = {
        "video": pa.DictionaryArray.from_arrays(number, names),
        "frame": (row % VIDEO_FRAMES + 1).astype(np.int32),
        "path": files.take(pa.array(row % PICTURES)),
        "root": pa.DictionaryArray.from_arrays(roots, pa.array([str(root)])),
    }
    path = folder / "manifest.parquet"
    write_manifest(pa.table(columns), path, synthetic=True)
    return path


def _draw_pictures(folder: Path) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for k in range(PICTURES):
        small = Image.fromarray(rng.integers(0, 255, (14, 14, 3), np.uint8))
        picture = small.resize((112, 112), Image.Resampling.BICUBIC)
        picture.save(folder / f"{k:05d}.jpg", quality=90)
