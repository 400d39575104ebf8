"""Overlays: a video or picture with what was predicted drawn into it and beside it.

Videos become H.264 in MP4, which every browser plays, with the timestamps of the stream, a variable
frame rate included, and with its sound. They are read and written frame by frame.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from raffect.datasets.frames import BadFrame
from raffect.errors import RaffectError
from raffect.faces.pictures import SUFFIXES, read_picture
from raffect.faces.video import Scan, faults, open_video, require_av, scan_video, to_rgb
from raffect.predictions.table import PredictionFacts
from raffect.reporting.course import TimeCourse, read_course
from raffect.reporting.painter import Painter
from raffect.storage.atomic import atomic_path
from raffect.storage.paths import Damaged

_PLAYED = ("aac", "mp3", "opus")
"""Sound that browsers play from an MP4 file and that is copied as it is; other is encoded again."""
SMALL = 224
"""Longer side of a small picture."""
_ENCODER = {"preset": "veryfast", "crf": "21"}


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """An overlay on disk.

    Attributes:
        path: The file.
        frames: Frames that it shows.
        picture: One of the input's, small, from the middle of the face that is there longest.
        problem: Where the input could not be read to its end; empty if it could.
    """

    path: Path
    frames: int
    picture: Image.Image
    problem: str = ""


def draw_overlay(source: Path, rows: pa.Table, facts: PredictionFacts, out: Path) -> Overlay:
    """Draw an overlay.

    Args:
        source: A video or picture.
        rows: The rows of a table of predictions that are of it.
        facts: Of that table.
        out: The file to write: MP4 for a video, PNG or JPEG for a picture.

    Raises:
        RaffectError: If PyAV is missing or the input cannot be read at all.
    """
    course = read_course(rows, facts.tasks, source.name)
    if source.suffix.lower() in SUFFIXES:
        return _draw_picture(source, course, facts, out)
    with atomic_path(out) as temporary:
        copy = _draw_video(source, course, facts, temporary)
    return Overlay(path=out, frames=copy.frames, picture=copy.picture, problem=copy.problem)


def _draw_picture(source: Path, course: TimeCourse, facts: PredictionFacts, out: Path) -> Overlay:
    try:
        picture = Image.fromarray(read_picture(source))
    except BadFrame as error:
        raise RaffectError(f"{source}: not a readable picture ({error})") from error
    painter = Painter(course, *picture.size, facts.caveats)
    drawn = painter.paint(picture, 1, course.span[0])
    with atomic_path(out) as temporary:
        drawn.save(temporary, format="PNG" if out.suffix == ".png" else "JPEG")
    return Overlay(path=out, frames=1, picture=_small(picture))


def _small(picture: Image.Image) -> Image.Image:
    picture.thumbnail((SMALL, SMALL))
    return picture


def _draw_video(source: Path, course: TimeCourse, facts: PredictionFacts, out: Path) -> _Copy:
    require_av()
    import av

    try:
        scan = scan_video(source)
        options = {"movflags": "faststart"}
        with (
            open_video(source) as (reader, stream),
            av.open(str(out), "w", format="mp4", options=options) as writer,
        ):
            copy = _Copy(reader, stream, writer, scan, course, facts)
            copy.run()
    except (Damaged, OSError, *faults()) as error:
        raise RaffectError(f"{source}: not a readable video ({error})") from error
    return copy


def _middle_frame(course: TimeCourse) -> int:
    """The frame in the middle of those of the face that is there longest."""
    frames = course.faces[0].frame if course.faces else np.array([1])
    return int(frames[len(frames) // 2])


class _Copy:
    """Copies a video to another with every frame drawn anew."""

    def __init__(
        self,
        reader: Any,
        stream: Any,
        writer: Any,
        scan: Scan,
        course: TimeCourse,
        facts: PredictionFacts,
    ) -> None:
        self.reader, self.source, self.writer, self.scan = reader, stream, writer, scan
        self.course, self.facts = course, facts
        self.unit = stream.time_base or Fraction(1, 1000)
        self.first = 0 if scan.is_counted else int(scan.pts[0])
        self.frames, self.problem, self._last = 0, scan.problem, -1
        self._painter: Painter | None = None
        self.picture = Image.new("RGB", (1, 1))
        self._wanted = _middle_frame(course)
        self._video: Any = None
        self._sound = _Sound(reader, writer, float(self.first * self.unit))

    def run(self) -> None:
        """Copy everything, as far as it can be read."""
        waiting: list[Any] = []
        packets = self.reader.demux([self.source, *self._sound.sources])
        while True:
            packet = None
            with contextlib.suppress(*faults()):
                packet = next(packets, None)
            if packet is None:
                break
            if packet.stream is self.source:
                with contextlib.suppress(*faults()):
                    frames = packet.decode()
                    for frame in frames:
                        self._write(frame)
            else:
                waiting.append(packet)
            # A file has its header once all of its streams are known
            if self._video is not None:
                for sound in waiting:
                    self._sound.write(sound)
                waiting = []
        if self._video is None:
            raise Damaged("no frame can be decoded")
        self._sound.finish()
        self.writer.mux(self._video.encode(None))

    def _write(self, frame: Any) -> None:
        """Draw a frame and write it at its own time."""
        import av

        # Number and time, as `raffect faces` has them
        if frame.is_corrupt:
            return
        if self.scan.is_counted:
            row = min(self.frames, len(self.scan.pts) - 1)
            stamp = round(self.scan.seconds[row] / self.unit)
        else:
            stamp = frame.pts
            row = min(int(np.searchsorted(self.scan.pts, stamp)), len(self.scan.pts) - 1)
        number, seconds = row + 1, float(self.scan.seconds[row])

        # As displayed
        picture = Image.fromarray(to_rgb(frame))
        if self._painter is None:
            self._painter = Painter(self.course, *picture.size, self.facts.caveats)
            self._open_video(self._painter.size)
        place = seconds if self.course.in_seconds else float(number)
        drawn = av.VideoFrame.from_image(self._painter.paint(picture, number, place))
        if not self.frames or number == self._wanted:
            self.picture = _small(picture)

        # Times rise strictly
        self._last = drawn.pts = max(stamp - self.first, self._last + 1)
        drawn.time_base = self.unit
        self.writer.mux(self._video.encode(drawn))
        self.frames += 1

    def _open_video(self, size: tuple[int, int]) -> None:
        rate = self.source.average_rate or Fraction(25)
        self._video = self.writer.add_stream("libx264", rate=rate, options=_ENCODER)
        self._video.width, self._video.height = size
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.time_base = self.unit
        self._video.codec_context.thread_count = 1  # a task has one core, and bytes are the same
        self._sound.open()


class _Sound:
    """Copies the first sound of a video, or encodes it as AAC where browsers do not play it."""

    def __init__(self, reader: Any, writer: Any, start_s: float) -> None:
        self.sources = list(reader.streams.audio[:1])
        self.writer, self.start_s = writer, start_s
        self.target: Any = None
        self._copies = bool(self.sources) and self.sources[0].codec_context.name in _PLAYED

    def open(self) -> None:
        """Add it to the file."""
        for source in self.sources:
            if self._copies:
                self.target = self.writer.add_stream_from_template(source)
            else:
                self.target = self.writer.add_stream("aac", rate=source.rate)

    def write(self, packet: Any) -> None:
        """Copy one packet, shifted as the pictures are."""
        if packet.dts is None:
            return
        shift = round(self.start_s / packet.time_base)
        if self._copies:
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = self.target
            self.writer.mux(packet)
            return
        with contextlib.suppress(*faults()):
            for frame in packet.decode():
                frame.pts = None if frame.pts is None else frame.pts - shift
                self.writer.mux(self.target.encode(frame))

    def finish(self) -> None:
        """Write what the encoder holds."""
        if self.target is not None and not self._copies:
            self.writer.mux(self.target.encode(None))
