"""A probe of reading and encoding, which runs in a process like that of a run's encoder.

Nothing here imports torch at module level; the encoder's process loads it as in a run.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raffect.bank.format import Identity
from raffect.bank.plan import DEFAULT_SHARD_ROWS
from raffect.config import EncoderConfig
from raffect.datasets.frames import read_contents
from raffect.errors import RaffectError
from raffect.extraction.steps import Geometry, LoadEncoder, decode_frames

if TYPE_CHECKING:
    from raffect.encoders.tower import Encoder

SAMPLE = 256
"""Most frames that are encoded, again and again; of loose frames as many are read."""
_ENCODE_S = 3.0
"""Seconds of encoding whose rate is taken, after a first batch that is not counted."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was measured in a process like that of a run's encoder.

    Attributes:
        identity: What a bank would record of the encoder.
        sampled: Frames that were read.
        unreadable: Frames among them that could not be read.
        read_s: Wall seconds of reading and decoding a frame.
        read_cpu_s: CPU seconds of that.
        encoder_frames_per_s: Rate of this encoder, with nobody reading.
        spent_s: Seconds that all of it took but for loading the encoder.
    """

    identity: Identity
    sampled: int
    unreadable: int
    read_s: float
    read_cpu_s: float
    encoder_frames_per_s: float
    spent_s: float


def probe(
    rows: pa.Table,
    config: EncoderConfig,
    geometry: Geometry,
    device: str,
    threads: int,
    load: LoadEncoder,
) -> Probe | str:
    """Time reading and encoding.

    Args:
        rows: Rows of the manifest to read.
        config: The encoder.
        geometry: Its input.
        device: Where to encode: ``cuda`` or ``cpu``.
        threads: Threads of the encoder on a CPU.
        load: Builds the encoder.

    Returns:
        What was measured, or the line of an error, which Ray would wrap in its own.
    """
    try:
        # Reading and decoding; the first frame pays for what is imported for it
        decode_frames(read_contents(rows.slice(0, 1)), geometry)
        start, start_cpu = time.perf_counter(), time.process_time()
        pile, bad = decode_frames(read_contents(rows), geometry)
        read_s, read_cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
        # Encoding; where no frame is readable, black ones serve
        black = np.zeros((geometry.size, geometry.size, 3), np.uint8)
        frames = [frame.copy() for frame in pile.frames[:SAMPLE]] or [black]
        del pile
        encoder = load(config, device, threads)
        start = time.perf_counter()
        frames_per_s = time_encoder(encoder, frames)
    except RaffectError as error:
        return str(error)
    return Probe(
        identity=encoder.identity,
        sampled=len(rows),
        unreadable=len(bad),
        read_s=read_s / len(rows),
        read_cpu_s=read_cpu_s / len(rows),
        encoder_frames_per_s=frames_per_s,
        spent_s=read_s + time.perf_counter() - start,
    )


def time_encoder(encoder: Encoder, frames: list[np.ndarray]) -> float:
    """Frames/s of an encoder from pixels to vectors, over about `_ENCODE_S` seconds.

    Args:
        encoder: Of any device.
        frames: Encoded again and again, uint8 of shape (height, width, 3).
    """
    # The first batch allocates and compiles, and is not counted.
    supply = itertools.cycle(frames)
    encoder.encode(list(itertools.islice(supply, encoder.batch_size)))
    # Pieces of whole batches, at least one, of half the time and at most a shard, since a fast
    # device waits at the end of each
    start, done, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < _ENCODE_S:
        rate = done / elapsed if done else 0.0
        most = min(DEFAULT_SHARD_ROWS, int(rate * _ENCODE_S / 2))
        size = max(1, most // encoder.batch_size) * encoder.batch_size
        encoder.encode(list(itertools.islice(supply, size)))
        done, elapsed = done + size, time.perf_counter() - start
    return done / elapsed
