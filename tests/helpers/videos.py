"""Small videos of drawn faces that move over a background, written with PyAV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from raffect.datasets.synthetic.faces import draw_face
from raffect.datasets.synthetic.looks import Pose, draw_look

MS = Fraction(1, 1000)
SOUND_RATE = 44100


def face_picture(seed: int = 0, side: int = 64) -> np.ndarray:
    """A drawn face, uint8 (side, side, 3)."""
    from PIL import Image

    face = draw_face(draw_look(np.random.default_rng(seed)), {"AU12": 0.7}, Pose(noise=0.0), seed)
    return np.asarray(Image.fromarray(face).resize((side, side)))


def moving_faces(
    frames: int, width: int = 192, height: int = 96, people: int = 2, side: int = 48
) -> tuple[list[np.ndarray], list[dict]]:
    """Pictures in which drawn faces move, and the box of each face in each frame.

    Face k moves along its own lane; person 1 is hidden in the frames 31 to 45.
    """
    faces = [face_picture(k, side) for k in range(people)]
    pictures, boxes = [], []
    for number in range(1, frames + 1):
        picture = np.full((height, width, 3), 90, np.uint8)
        picture[:, :, 1] = number % 200
        for k, face in enumerate(faces):
            if k == 1 and 31 <= number <= 45:
                continue
            x = round(4 + k * (width // people) + 20 * abs(np.sin(number / 17)))
            y = round(8 + 12 * abs(np.cos(number / 11 + k)))
            picture[y : y + side, x : x + side] = face
            boxes.append({"frame": number, "x": x, "y": y, "w": side, "h": side, "score": 0.9})
        pictures.append(picture)
    return pictures, boxes


def write_video(
    path: Path,
    pictures: Iterable[np.ndarray],
    codec: str = "libx264",
    gop: int = 12,
    times: Sequence[int] | None = None,
    time_base: Fraction = MS,
    rate: int = 25,
    rotation: int = 0,
    sound: str = "",
) -> Path:
    """Write pictures as a video with B-frames where the codec has them.

    Args:
        path: The file; its suffix names the container.
        pictures: uint8 (height, width, 3), of even sizes.
        codec: Of the pictures.
        gop: Frames from one key frame to the next.
        times: Of each picture in units of ``time_base``; by default ``rate`` pictures a second.
        time_base: In seconds.
        rate: Pictures a second.
        rotation: By how many degrees viewers turn it, counterclockwise.
        sound: Codec of a tone that is as long as the video; empty for none.
    """
    if times is None:
        time_base = Fraction(1, rate)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.gop_size, context.thread_count = gop, 1
        if codec == "libx264":
            context.options = {"x264-params": "scenecut=0", "crf": "12"}
        if times is not None:
            context.time_base = stream.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        track = container.add_stream(sound, rate=SOUND_RATE) if sound else None
        last = 0
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            last = frame.pts = number if times is None else times[number]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            write_tone(container, track, float((last + 1) * time_base))
    return path


def write_tone(container, track, seconds: float) -> None:
    """A tone of 440 Hz."""
    for start in range(0, int(seconds * SOUND_RATE), 1024):
        t = (start + np.arange(1024)) / SOUND_RATE
        tone = (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(np.repeat(tone, 2, 0), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, start, Fraction(1, SOUND_RATE)
        container.mux(track.encode(frame))
    container.mux(track.encode(None))


def write_sound(path: Path) -> Path:
    """A file with sound alone."""
    with av.open(str(path), "w") as container:
        write_tone(container, container.add_stream("aac", rate=SOUND_RATE), 0.25)
    return path


def rotate(path: Path, out: Path, degrees: int) -> Path:
    """The same MP4 file whose track header asks viewers to turn it clockwise by so many degrees."""
    matrices = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
    a, b, c, d = matrices[degrees]
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 4 + 20 + 16
    cells = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    content[start : start + 36] = b"".join(cell.to_bytes(4, "big", signed=True) for cell in cells)
    out.write_bytes(content)
    return out


def plain_loop(path: Path) -> list[tuple[float | None, np.ndarray]]:
    """Time and picture of every frame, decoded from the start to the end."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [
            (frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)
        ]
