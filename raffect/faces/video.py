"""Videos: which frames a file has, and the frames of a part of it, upright, by number.

A frame's number is its place, from 1, among the time stamps of the stream in order; so it is known
without decoding, does not depend on the frame rate, and is the same whatever part is decoded. A
stream without proper time stamps is decoded once instead, and its frames are counted.

FFmpeg opens the containers of `_FORMATS` alone, and reads from a file that is already open: so
playlists and names such as ``concat:`` reach no other file and no network.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raffect.datasets.frames import MAX_PIXELS
from raffect.errors import RaffectError, how_to_add
from raffect.storage.paths import Damaged, open_regular

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

SUFFIXES = frozenset(
    (
        *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
        *(".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
    )
)
"""File names in folders that are taken for videos."""
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,m4v,h264,hevc"
)
_MOST_PARTS = 10
_REASON_CHARACTERS = 120


def require_av() -> None:
    """Raise `RaffectError` unless PyAV is installed."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise RaffectError(
            f"videos need PyAV ({error}); on every machine {how_to_add('video')}"
        ) from error


@contextlib.contextmanager
def open_video(path: Path) -> Generator[tuple[InputContainer, VideoStream]]:
    """Open a video for a block: its container and its stream of pictures, which is not a cover.

    Raises:
        Damaged: If it is not a video, or has sound alone.
        OSError: If the file cannot be read.
    """
    require_av()
    import av
    from av.stream import Disposition

    # FFmpeg's own messages go nowhere: what is wrong is in our status.
    av.logging.set_level(av.logging.PANIC)
    options = {"format_whitelist": _FORMATS, "max_pixels": str(MAX_PIXELS)}
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:
            raise Damaged("empty file")
        try:
            container: Any = av.open(file, options=options, metadata_errors="replace")
        except faults() as error:
            raise Damaged(f"not a video ({reason(error)})") from error
        with container:
            streams = [
                stream
                for stream in container.streams.video
                if not stream.disposition & Disposition.attached_pic
            ]
            if not streams:
                raise Damaged("no pictures in it, sound alone")
            stream = streams[0]
            if stream.codec_context is None:
                raise Damaged("its pictures are of a codec that FFmpeg does not know")
            # One task takes one CPU, and is the same however many there are.
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            yield container, stream


def faults() -> tuple[type[Exception], ...]:
    """What FFmpeg raises for a file that is not as it should be."""
    import av.error

    return av.error.FFmpegError, ValueError, OverflowError


def reason(error: Exception) -> str:
    """One short line of an error of FFmpeg."""
    text = getattr(error, "strerror", "") or str(error) or type(error).__name__
    return " ".join(text.split())[:_REASON_CHARACTERS]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The frames of a video, known without decoding them.

    Attributes:
        pts: Time stamps in the stream's own unit, ascending, int64, shape (frames,); place numbers
            where frames are counted.
        seconds: Time of each frame from the first one, float64, shape (frames,).
        keys: Whether decoding can begin at a frame, bool, shape (frames,).
        is_counted: Whether frames are numbered by decoding from the start.
        width: Of the upright picture, in pixels.
        height: Of the upright picture, in pixels.
        problem: Where and why the file ends too early; empty if it does not.
    """

    pts: np.ndarray
    seconds: np.ndarray
    keys: np.ndarray
    is_counted: bool
    width: int
    height: int
    problem: str


def scan_video(path: Path) -> Scan:
    """Read a video's packets, and decode its first frame.

    Raises:
        Damaged: If there is no frame in it; the message says why.
        OSError: If the file cannot be read.
        RaffectError: If PyAV is not installed.
    """
    with open_video(path) as (container, stream):
        pts, keys, problem = _read_packets(container, stream)
        unit, promised = float(stream.time_base or 0), stream.frames
    with open_video(path) as (container, stream):
        first = next(_decode(container, stream), None)
        if first is None:
            raise Damaged(problem or "no frame can be decoded")
        height, width = to_rgb(first).shape[:2]
    if None in pts or not unit or len(set(pts)) < len(pts):
        return _count_frames(path, width, height)
    order = np.argsort(np.array(pts, np.int64), kind="stable")
    times = np.array(pts, np.int64)[order]
    seconds = (times - times[0]) * unit
    if not problem and promised > len(pts) + 1:
        problem = f"{len(pts):,} of {promised:,} frames are in the file"
    if problem:
        problem += f"; it stops at {seconds[-1]:.2f} s"
    return Scan(
        pts=times,
        seconds=seconds,
        keys=np.array(keys)[order],
        is_counted=False,
        width=width,
        height=height,
        problem=problem,
    )


def _read_packets(
    container: InputContainer, stream: VideoStream
) -> tuple[list[int | None], list[bool], str]:
    """Time stamps and key marks of a stream's packets, and why reading them stopped early."""
    pts: list[int | None] = []
    keys: list[bool] = []
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                pts.append(packet.pts)
                keys.append(packet.is_keyframe)
    except faults() as error:
        return pts, keys, f"damaged ({reason(error)})"
    return pts, keys, ""


def _count_frames(path: Path, width: int, height: int) -> Scan:
    """Number the frames of a stream without proper time stamps by decoding them."""
    times = []
    with open_video(path) as (container, stream):
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        times = [frame.time for frame in _decode(container, stream)]
    seconds = np.arange(len(times)) / rate
    known = np.array([np.nan if time is None else time for time in times])
    if np.isfinite(known).all() and (np.diff(known) > 0).all():
        seconds = known - known[0]
    return Scan(
        pts=np.arange(len(times)),
        seconds=seconds,
        keys=np.arange(len(times)) == 0,
        is_counted=True,
        width=width,
        height=height,
        problem="",
    )


def cut_segments(scan: Scan, least: int) -> list[tuple[int, int]]:
    """Split a video at key frames into parts of ``least`` frames or more.

    A part never has more than `_MOST_PARTS` times as many, so that its crops fit into memory: where
    there is no key frame, it begins without one, and decoding begins further ahead.

    Returns:
        First frame and the one behind the last of each, from 1; together they are the whole video.
    """
    total, starts = len(scan.pts), [1]
    for frame in (*(np.flatnonzero(scan.keys) + 1).tolist(), total + 1):
        while frame - starts[-1] > _MOST_PARTS * least:
            starts.append(starts[-1] + _MOST_PARTS * least)
        if frame - starts[-1] >= least and frame <= total:
            starts.append(frame)
    return list(zip(starts, [*starts[1:], total + 1], strict=True))


def decode_frames(
    path: Path, scan: Scan, first: int, stop: int, every: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode a part of a video, beginning at the last key frame before it.

    Args:
        path: The file.
        scan: Of this file.
        first: Number of the first frame.
        stop: Number behind the last one.
        every: Yield frames 1, 1 + every, 1 + 2 * every ... alone.

    Yields:
        Number and upright picture, uint8 (height, width, 3), in order. Frames that cannot be
        decoded are left out.
    """
    wanted = range(max(1, first), min(stop, len(scan.pts) + 1))
    if not wanted:
        return
    for frame, picture in _number_frames(path, scan, wanted):
        if (frame - 1) % every == 0 and (rgb := _rgb_or_none(picture)) is not None:
            yield frame, rgb


def _number_frames(path: Path, scan: Scan, wanted: range) -> Iterator[tuple[int, Any]]:
    """Frames in a range of numbers, still as FFmpeg's, each once and in order."""
    with open_video(path) as (container, stream):
        if scan.is_counted:
            for frame, picture in enumerate(_decode(container, stream), 1):
                if frame >= wanted.stop:
                    return
                if frame >= wanted.start:
                    yield frame, picture
            return
        number = {pts: frame for frame, pts in enumerate(scan.pts.tolist(), 1)}
        last = wanted.start - 1
        for picture in _decode_from(path, container, stream, scan, wanted.start):
            frame = number.get(picture.pts, 0)
            if frame >= wanted.stop:
                return
            if frame > last:
                last = frame
                yield frame, picture


def _decode_from(
    path: Path, container: InputContainer, stream: VideoStream, scan: Scan, first: int
) -> Iterator[Any]:
    """Frames from the last key frame up to ``first`` on, or from the start where seeking fails.

    Frames that are shown before that key frame may need what lies before it: they come out damaged
    or not at all, and the caller leaves them out.
    """
    before = np.flatnonzero(scan.keys[:first])
    if len(before) and before[-1] > 0:
        key = int(scan.pts[before[-1]])
        with contextlib.suppress(*faults()):
            container.seek(key, stream=stream)
            frames = _decode(container, stream)
            head = next(frames, None)
            if head is not None and head.pts is not None and head.pts <= key:
                yield head
                yield from frames
                return
        with open_video(path) as (again, whole):
            yield from _decode(again, whole)
        return
    yield from _decode(container, stream)


def _decode(container: InputContainer, stream: VideoStream) -> Iterator[Any]:
    """Frames as far as they can be decoded; packets that cannot are passed over."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except faults():
            packet = None
        frames: list[Any] = []
        with contextlib.suppress(*faults()):
            frames = packet.decode() if packet is not None else stream.decode(None)
        yield from (frame for frame in frames if not frame.is_corrupt)
        if packet is None:
            return


def to_rgb(frame: Any) -> np.ndarray:
    """An upright picture, uint8 (height, width, 3), of a decoded frame.

    Raises:
        Damaged: If it is larger than `MAX_PIXELS`.
    """
    if frame.width * frame.height > MAX_PIXELS:
        what = f"{frame.width}x{frame.height} is larger than {MAX_PIXELS // 1_000_000} megapixels"
        raise Damaged(what)
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def _rgb_or_none(frame: Any) -> np.ndarray | None:
    with contextlib.suppress(Damaged, *faults()):
        return to_rgb(frame)
    return None
