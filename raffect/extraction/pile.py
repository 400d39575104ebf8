"""Frames of a shard as pixels that follow one another, in memory that serves shard after shard."""

from __future__ import annotations

import threading
import weakref

import numpy as np

KEPT_BYTES = 1 << 28
"""Largest memory that is kept between two shards; one of very large pictures gives its own back."""


class Memory(threading.local):
    """Bytes that a thread lends out again once nobody holds the frames that were in them.

    New pages from the system, which clears each, would cost a fifth of decoding the pixels in them;
    allocators give large ones back between two shards.
    """

    def __init__(self) -> None:
        self._bytes = memoryview(b"")
        self._lent = weakref.ref(np.empty(0, np.uint8))

    def lend(self, size: int) -> np.ndarray:
        """At least ``size`` bytes, uint8, of whatever content."""
        if size > KEPT_BYTES:
            return np.empty(size, np.uint8)
        if self._lent() is not None or len(self._bytes) < size:
            self._bytes = np.empty(size, np.uint8).data
        # Views of an array of a memoryview's hold that array, which is how long it is lent.
        lent = np.frombuffer(self._bytes, np.uint8)
        self._lent = weakref.ref(lent)
        return lent


_MEMORY = Memory()


class Pile:
    """Frames one after another in one buffer."""

    def __init__(self, num_frames: int) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self._num_frames = num_frames
        self._buffer = np.empty(0, np.uint8)
        self._used = 0

    @property
    def pixels(self) -> np.ndarray:
        """All frames, uint8."""
        return self._buffer[: self._used]

    @property
    def frames(self) -> list[np.ndarray]:
        """Views of the frames, each of shape (height, width, 3)."""
        return split_pixels(np.array(self.shapes, np.int32).reshape(-1, 2), self.pixels)

    def room(self, size: int) -> np.ndarray:
        """A view of the next ``size`` bytes, for a decoder to write into."""
        if self._used + size > self._buffer.size:
            # Room for all frames if they are as large as this one, and at least twice as much
            most = max(size * self._num_frames, 2 * self._buffer.size, self._used + size)
            larger = _MEMORY.lend(most)
            larger[: self._used] = self.pixels
            self._buffer = larger
        return self._buffer[self._used : self._used + size]

    def add(self, frame: np.ndarray) -> None:
        """Append a frame, which may be in `room` already."""
        target = self.room(frame.size)
        # Asking for addresses would cost ten times as much.
        if not np.may_share_memory(frame, target):
            target[:] = frame.reshape(-1)
        self._used += frame.size
        self.shapes.append(frame.shape[:2])


def split_pixels(shapes: np.ndarray, pixels: np.ndarray) -> list[np.ndarray]:
    """Views of the frames, each of shape (height, width, 3), in pixels that follow one another.

    Args:
        shapes: Height and width of each frame, shape (frames, 2).
        pixels: uint8, shape (bytes,).
    """
    # Frames may differ in size, so their ends are sums of the sizes before.
    stops = np.cumsum(shapes.prod(1, dtype=np.int64) * 3)
    return [
        pixels[stop - height * width * 3 : stop].reshape(height, width, 3)
        for stop, (height, width) in zip(stops.tolist(), shapes.tolist(), strict=True)
    ]
